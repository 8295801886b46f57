"""HashEE and ConsistentEE for tokens: reading by a schedule, and words that leave by a policy."""

from itertools import pairwise

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from eeutils.data.samples import Batch, Samples
from eeutils.errors import InputError
from eeutils.exiting.rules import policy
from eeutils.exiting.tradeoff import decide
from eeutils.models.decoder import Decoder, Flow
from eeutils.models.generate import Generator
from eeutils.models.reading import HashReader
from eeutils.models.schedule import TokenSchedule
from eeutils.models.token_exits import TokenExitModel
from eeutils.models.token_record import record_states, record_tokens
from eeutils.papers import consistentee_tokens, hashee_tokens
from eeutils.papers.consistentee import ConsistentOptions, log_leaving, memorized_layers, policy_loss
from eeutils.papers.controls import token_policies
from eeutils.training import decoders
from eeutils.training.recorded_policies import RecordedPolicies, as_units, right_or_not, said_of
from eeutils.training.settings import Setting
from tests.tiny import END, VOCABULARY

DEPTH = 6


def hugging_face() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=DEPTH,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=END,
        initializer_range=0.3,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def reader(first: int, last: int, first_in_full: bool = True) -> HashReader:
    ranks = torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(1))
    ranks[3] = 1.0  # a type that training never saw
    return HashReader(Decoder(hugging_face()), TokenSchedule(ranks, DEPTH, first, last), first_in_full).eval()


def as_texts(prompts: list[list[int]], targets: list[list[int]]) -> Samples:
    return Samples(
        tuple((*prompt, *target) for prompt, target in zip(prompts, targets, strict=True)),
        tuple((*[0] * len(prompt), *[1] * len(target)) for prompt, target in zip(prompts, targets, strict=True)),
        None,
        torch.arange(len(prompts)),
        padding=0,
    )


@pytest.mark.parametrize("size", [1, 8])
def test_a_window_at_the_top_reads_in_full(
    size: int, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = reader(DEPTH, DEPTH)
    plain = Generator(TokenExitModel(model.decoder).eval(), tokenizer).generate_tokens(prompts, 9, size).written
    read = Generator(model, tokenizer).generate_tokens(prompts, 9, size).written
    assert [one.tokens for one in read] == [one.tokens for one in plain]
    assert [one.prompt_flops for one in read] == [one.prompt_flops for one in plain]
    hurried = Generator(reader(1, 2), tokenizer).generate_tokens(prompts, 9, size).written
    assert [one.tokens for one in hurried] != [one.tokens for one in plain]


def test_reading_and_writing_token_by_token_is_the_parallel_pass(
    prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = reader(1, 5)
    together, alone = (Generator(model, tokenizer).generate_tokens(prompts, 8, size).written for size in (8, 1))
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    texts = as_texts(prompts, [one.tokens for one in together])
    with torch.inference_mode():  # padding on the right here, on the left there
        said = model(*texts.batch(range(len(texts))).inputs).logits[-1].argmax(dim=-1)
    assert said.tolist() == [word for one in together for word in one.tokens]
    evidence = record_tokens(model, texts)
    assert evidence.predictions[-1].tolist() == [word for one in together for word in one.tokens[1:]]


def test_what_reading_costs_is_known_before_and_is_what_torch_counts(
    prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = reader(1, 4)
    read = Generator(model, tokenizer).read(prompts, 4)
    assert read.flops == pytest.approx(model.reading_flops(prompts).tolist())
    calls: list[int] = []
    for layer in model.decoder.layers:
        layer.modules.mlp.register_forward_hook(lambda _, given, __: calls.append(given[0].shape[:-1].numel()))
    prompt = prompts[1]
    ids = torch.tensor([prompt])
    run = model.layers_read(ids, torch.ones_like(ids))[0]
    assert run[0] == run[-1] == DEPTH
    assert run[ids[0] == 3].tolist() == [DEPTH] * int((ids == 3).sum())
    assert len(set(run[1:-1].tolist())) > 1
    with FlopCounterMode(display=False) as counter:
        Generator(model, tokenizer).read([prompt], 4)
    assert sum(calls) == int(run.sum())
    # On a CPU torch's counter does not see attention: what a token pays for those before it.
    attention = float((run * model.costs.per_key * torch.arange(1, len(prompt) + 1)).sum())
    assert counter.get_total_flops() == pytest.approx(model.reading_flops([prompt])[0].item() - attention)


def test_what_has_stopped_stays_as_it_is(prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = reader(1, 5), as_texts(prompts, [[5, 6, 7]] * len(prompts))
    after: list[Tensor] = []
    step = model.decoder.run_layer

    def spy(layer: int, flow: Flow, active: Tensor | None = None) -> Flow:
        flow = step(layer, flow, active)
        after.append(flow.states)
        return flow

    monkeypatch.setattr(model.decoder, "run_layer", spy)
    batch = texts.batch(range(len(texts)))
    with torch.inference_mode():
        state = model.begin(*batch.inputs)
        before = state.flow.states
        model.run_to(0, state)
    assert (state.run[batch.token_type_ids == 1] == DEPTH).all()
    for row, column in batch.attention_mask.nonzero().tolist():
        states = [before[row, column], *(layer[row, column] for layer in after)]
        moved = [not torch.equal(*pair) for pair in pairwise(states)]
        assert moved == [layer < state.run[row, column] for layer in range(DEPTH)]


def test_a_schedule_survives_half_precision_and_a_window_is_placed_by_its_cost(prompts: list[list[int]]) -> None:
    model = reader(1, DEPTH)
    ids = torch.arange(VOCABULARY)[None]
    before = model.layers_read(ids, torch.ones_like(ids))
    assert torch.equal(model.to(torch.bfloat16).layers_read(ids, torch.ones_like(ids)), before)
    whole = model.under(model.schedule.window(DEPTH, DEPTH)).reading_flops(prompts).sum()
    assert model.window_at(1.0, prompts) == (DEPTH, DEPTH)
    assert model.window_at(100.0, prompts) == (1, 1)
    window = model.window_at(1.3, prompts)
    reached = float(whole / model.under(model.schedule.window(*window)).reading_flops(prompts).sum())
    assert reached == pytest.approx(1.3, abs=0.1)
    with pytest.raises(InputError, match="1 or more"):
        model.window_at(0.5, prompts)
    with pytest.raises(InputError, match="make it for this decoder"):
        HashReader(model.decoder, TokenSchedule(torch.rand(7), DEPTH))


def test_a_policy_writes_what_the_parallel_pass_of_the_same_text_says(
    prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    torch.manual_seed(3)
    policies = nn.ModuleList(consistentee_tokens.TokenPolicy(torch.randn(50, 32), more) for more in (2, 1))
    for one in policies:
        nn.init.normal_(one.network.weight, std=0.4)
        nn.init.constant_(one.network.bias, 0.0)
    model = consistentee_tokens.PolicyTokenModel(Decoder(hugging_face()), (2, 4), 4, policies).eval()
    generator = Generator(model, tokenizer, policy(), 0.5)
    together, alone = (generator.generate_tokens(prompts, 8, size).written for size in (8, 1))
    assert [(one.tokens, one.layers) for one in together] == [(one.tokens, one.layers) for one in alone]
    left = [layer for one in together for layer in one.layers[1:]]
    assert set(left) == {2, 4, DEPTH}
    evidence = record_tokens(model, as_texts(prompts, [one.tokens for one in together]), policy(), 0.5)
    stages = decide(evidence, policy(), 0.5).stages
    assert torch.tensor(evidence.layers)[stages].tolist() == left
    said = evidence.predictions[stages, torch.arange(evidence.samples)]
    assert said.tolist() == [word for one in together for word in one.tokens[1:]]


def test_a_word_belongs_to_the_state_before_it_and_what_was_read_is_no_unit(prompts: list[list[int]]) -> None:
    other = hugging_face()
    model, targets = TokenExitModel(Decoder(other), (2, 4), 4).eval(), [[5, 6, 7, 8], [9, 10]] * 4
    states, words, texts, written = record_states(model, as_texts(prompts, targets))
    order = written.nonzero()[:, 0]
    order = order[texts[order].argsort(stable=True)]  # batches hold texts of like length
    states, words, texts = states[:, order].float(), words[order], texts[order]
    evidence, said = said_of(model, states, words, texts)
    assert words.tolist() == [word for target in targets for word in target[1:]]  # the first one never leaves early
    expected = []
    with torch.inference_mode():
        for prompt, target in zip(prompts, targets, strict=True):
            log_p = other(torch.tensor([[*prompt, *target]])).logits[0].log_softmax(dim=-1)
            places = range(len(prompt), len(prompt) + len(target) - 1)
            expected += [log_p[place, word].item() for place, word in zip(places, target[1:], strict=True)]
    torch.testing.assert_close(evidence.extras["label"][-1], torch.tensor(expected), atol=0.05, rtol=0.02)  # half
    losses = nn.functional.cross_entropy(said[-1], torch.zeros(len(words), dtype=torch.long), reduction="none")
    torch.testing.assert_close(losses, -evidence.extras["label"][-1], atol=1e-5, rtol=1e-5)
    assert set(memorized_layers(evidence).tolist()) <= {2, 4, DEPTH}  # counted from 1


def test_two_logits_have_the_loss_and_the_gradient_of_all_words() -> None:
    torch.manual_seed(4)
    logits, words = torch.randn(6, 30, requires_grad=True), torch.randint(30, (6,))
    scaled = logits * torch.tensor([1.0, 1, 10, 10, 100, 100])[:, None]  # sure ones too
    whole = nn.functional.cross_entropy(scaled, words, reduction="none")
    two = nn.functional.cross_entropy(right_or_not(scaled, words), torch.zeros(6, dtype=torch.long), reduction="none")
    torch.testing.assert_close(two, whole)
    gradients = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (whole, two)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("seldom", [0.0, 0.3])
def test_mode_3_gives_maps_the_gradient_of_the_exits_that_are_taken(
    seldom: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eeutils.training.recorded_policies.SELDOM", seldom)
    torch.manual_seed(5)
    model = TokenExitModel(Decoder(hugging_face()), (2, 4), 4).eval()
    for weight in model.maps.parameters():
        nn.init.normal_(weight, std=0.2)
    states, words = torch.randn(3, 10, 32), torch.randint(VOCABULARY, (10,))
    policies = nn.ModuleList(consistentee_tokens.TokenPolicy(own, 1) for own in states[:2])
    for one in policies:
        nn.init.normal_(one.network.weight, std=0.5)
    evidence, said = said_of(model, states, words, torch.arange(10))
    model.decoder.requires_grad_(False)
    learner, units = RecordedPolicies(model, policies, states, words, said), as_units(memorized_layers(evidence))
    batch: Batch = units.batch(range(10))
    answers = learner(*batch.inputs)
    policy_loss(ConsistentOptions(gradient="exact"), True, learner, answers, batch).backward()
    taken = log_leaving(answers.extras["policy_logit"]).exp().detach()
    for stage, layer in enumerate((2, 4)):
        own = model.maps[str(layer)]
        loss = nn.functional.cross_entropy(model.say(stage, states[stage]), words, reduction="none")
        counts = taken[stage] * (taken[stage] >= seldom)
        assert (counts == 0).any() == (seldom > 0)
        expected = torch.autograd.grad((counts * loss).mean(), [*own.parameters()])
        for weight, gradient in zip(own.parameters(), expected, strict=True):
            torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-4)


def test_both_methods_learn_are_found_again_and_write(repeating: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_policies, "WEIGHTS", (0.0, 3.0))
    monkeypatch.setattr(consistentee_tokens, "EPOCHS", 30)  # of a few steps
    base = decoders.with_exits(repeating)
    searched = token_policies.search(base, ConsistentOptions(hardness="constant"))
    assert searched.layers.iloc[1] < searched.layers.iloc[0] - 0.5  # a layer that costs three nats is not worth it
    assert token_policies.nearest(searched, [1.0, 9.0]) == [0.0, 3.0]
    runs = [consistentee_tokens.trained(base, ConsistentOptions(speed_weight=0.5)) for _ in range(2)]
    assert runs[0] == runs[1]
    evidence = runs[0].evidence("dev")
    assert runs[0].learned.layer.tolist() == [1, 2, 3]
    assert runs[0].texts("test") == runs[1].texts("test")
    assert evidence.extras["policy"][-1].tolist() == [1.0] * evidence.samples

    plain = decoders.plain_model(repeating)
    prompts = hashee_tokens.training_prompts(repeating)
    assert prompts.tokens[0] == tuple(base.prompts("train")[0])
    order = hashee_tokens.reader_of(plain, repeating, "frequency")
    window = hashee_tokens.window_for(order, repeating, 1.3)
    read, raw = (
        hashee_tokens.hashed(repeating, "frequency", window),
        hashee_tokens.as_it_is(repeating, "frequency", window),
    )
    assert read == hashee_tokens.hashed(repeating, "frequency", window)
    steps = [
        int(each.steps.sum()) for each in (pd.read_csv(decoders.finetuned(repeating) / "history.csv"), read.history)
    ]
    assert steps[1] == pytest.approx(steps[0] * hashee_tokens.SHARE, abs=2)
    trained, untouched = (-each.evidence("dev").extras["label"][-1].mean() for each in (read, raw))
    assert trained < untouched  # what was switched off is made up for
    assert read.texts("test") == read.texts("test")
