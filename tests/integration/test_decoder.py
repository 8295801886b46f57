"""A decoder layer by layer is the family's own model, and what leaves early is what the parallel pass says."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from eeutils.data.samples import Samples
from eeutils.errors import InputError
from eeutils.exiting import rules, token_rules
from eeutils.exiting.rules import Rule
from eeutils.exiting.tradeoff import decide
from eeutils.models.decoder import Cache, Decoder, load_decoder, load_decoder_tokenizer
from eeutils.models.generate import Generator, write_under
from eeutils.models.token_exits import TokenExitModel
from eeutils.models.token_record import record_tokens
from eeutils.papers.self_speculation import speculate
from tests.tiny import END, VOCABULARY

_SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END, "initializer_range": 0.3}
_LLAMA = _SIZES | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**_LLAMA),
    "llama, tied": LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**_LLAMA),
    "gpt2": GPT2Config(**_SIZES, n_embd=32, n_layer=6, n_head=4, n_positions=64),
}


def hugging_face(family: str = "llama") -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGS[family]).eval()


def with_exits(family: str = "llama") -> TokenExitModel:
    model = TokenExitModel(Decoder(hugging_face(family)), (2, 4), rank=4).eval()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for weight in model.maps.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    return model


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


@pytest.mark.parametrize("family", CONFIGS)
@torch.inference_mode()
def test_all_layers_are_the_familys_own_model(family: str, prompts: list[list[int]]) -> None:
    other = hugging_face(family)
    own = Decoder(other).eval()
    ids, mask = padded(prompts)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    expected = other(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    torch.testing.assert_close(own(ids, mask.bool())[mask.bool()], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(own(ids[1:2]), other(ids[1:2]).logits, atol=1e-6, rtol=1e-5)
    # With a cache, in pieces of any length.
    cache, said = Cache(own.depth, mask[:, :6].bool(), 3), []
    for start, end in ((0, 6), (6, 7), (7, 9)):
        flow = own.embed(ids[:, start:end], mask[:, start:end].bool(), cache)
        for layer in range(own.depth):
            flow = own.run_layer(layer, flow)
        cache.advance(end - start)
        said.append(own.read(flow.states))
        assert cache.lengths().tolist() == mask[:, :end].sum(dim=1).tolist()
    torch.testing.assert_close(torch.cat(said, dim=1)[mask.bool()], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_a_rule_it_writes_what_transformers_writes(
    family: str, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    other = hugging_face(family)
    model = TokenExitModel(Decoder(other), (2, 4)).eval()
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = other.generate(ids, do_sample=False, max_new_tokens=9, pad_token_id=0, eos_token_id=END)
        expected.append(whole[0, len(prompt) :].tolist())
    for batch_size in (1, 8):
        outcome = Generator(model, tokenizer).generate_tokens(prompts, 9, batch_size)
        assert [one.tokens for one in outcome.written] == expected
    if family == "llama":  # where some texts end, and others go on
        assert len({len(one) for one in expected}) > 1


RULES: dict[str, tuple[Rule, float]] = {
    "margin": (token_rules.softmax_margin(), 0.15),
    "decaying": (token_rules.decaying(token_rules.softmax_margin(), 8), 0.15),
    "similarity": (token_rules.similarity(), 0.8),
    "classifier": (token_rules.judged(), 0.5),
    "shortlist": (token_rules.short_margin(), 0.3),
    "patience": (rules.patience(), 1),
    "schedule": (token_rules.schedule(8), 0.2),
    "fixed": (rules.fixed(), 1),
}


@pytest.mark.parametrize("name", RULES)
def test_token_by_token_in_any_batch_is_the_parallel_pass_of_the_same_text(
    name: str, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    rule, threshold = RULES[name]
    model, shortlist = with_exits(), torch.arange(10, 30)
    model.judge = torch.nn.Linear(32, 1)
    torch.nn.init.normal_(model.judge.weight, generator=torch.Generator().manual_seed(3))
    generator = Generator(model, tokenizer, rule, threshold, shortlist)
    together, alone = (generator.generate_tokens(prompts, 8, size).written for size in (8, 1))
    assert [(one.tokens, one.layers) for one in together] == [(one.tokens, one.layers) for one in alone]
    words = [list(zip(one.tokens, one.layers, strict=True))[1:] for one in together]
    left = {layer for text in words for _, layer in text}
    assert left == {2} if name == "fixed" else len(left) > 1  # rows of a batch do leave at different layers

    samples = Samples(
        tuple((*prompt, *one.tokens) for prompt, one in zip(prompts, together, strict=True)),
        tuple((*[0] * len(prompt), *[1] * len(one.tokens)) for prompt, one in zip(prompts, together, strict=True)),
        None,
        torch.arange(len(prompts)),
        padding=0,
    )
    evidence = record_tokens(model, samples, rule, threshold, shortlist=shortlist)
    decision, units = decide(evidence, rule, threshold), torch.arange(evidence.samples)
    assert torch.tensor(evidence.layers)[decision.stages].tolist() == [layer for text in words for _, layer in text]
    said = evidence.predictions[decision.stages, units]
    assert said.tolist() == [word for text in words for word, _ in text]
    # What the evidence says that it costs is what writing says that it spent.
    flops = evidence.cost["flops"][decision.stages, units]
    for number, one in enumerate(together):
        assert one.flops == pytest.approx(float(flops[evidence.groups == number].sum()))


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["margin", "shortlist", "similarity"])
def test_costs_are_those_that_torch_counts(
    name: str, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = with_exits()
    calls: list[int] = []
    for layer in model.decoder.layers:
        layer.modules.mlp.register_forward_hook(lambda _, read, __: calls.append(read[0].shape[:-1].numel()))
    rule, threshold = RULES[name]
    generator = Generator(model, tokenizer, rule, threshold, torch.arange(10, 30))
    for prompt in prompts[:1]:
        read = generator.read([prompt], 8)
        calls.clear()
        outcome = None

        def write() -> None:
            nonlocal outcome
            outcome = generator.write(read, 8)  # noqa: B023 (called at once)

        total = counted(write)
        [one] = outcome.written
        assert sum(calls) == sum(one.layers[1:])
        # On a CPU torch's counter does not see attention: that is what a token pays for those before it.
        seen = [len(prompt) + place for place in range(1, len(one.tokens))]
        attention = sum(layer * model.costs.per_key * keys for layer, keys in zip(one.layers[1:], seen, strict=True))
        assert total == one.flops - attention


@torch.inference_mode()
def test_keys_and_values_above_an_exit_are_the_layers_own_of_the_frozen_state(prompts: list[list[int]]) -> None:
    model = with_exits()
    ids = torch.tensor([prompts[1]])
    state = model.begin(ids, torch.ones_like(ids), torch.ones_like(ids))
    state = model.run_to(0, state)
    frozen = state.flow.states[0, 3]
    state = model.leave(state, torch.arange(8) == 3)
    kept: dict[int, Tensor] = {}
    attend = model.decoder._keys_and_values

    def spy(parts: object, normed: Tensor, flow: object) -> tuple[Tensor, Tensor]:
        keys, values = attend(parts, normed, flow)
        kept[len(kept)] = keys[0, :, 3]
        return keys, values

    model.decoder._keys_and_values = spy
    state = model.run_to(2, model.run_to(1, state))
    assert torch.equal(state.flow.states[0, 3], frozen)
    other = hugging_face().model
    cos, sin = other.rotary_emb(ids.float()[..., None], position_ids=torch.tensor([[3]]))
    for number, layer in enumerate(other.layers[2:]):
        keys = layer.self_attn.k_proj(layer.input_layernorm(frozen)).view(1, 2, 1, 8)
        turned, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
        torch.testing.assert_close(kept[number], turned[0, :, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("layer", "draft"), [(2, 4), (4, 1)])
def test_speculation_writes_the_full_models_text(
    layer: int, draft: int, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = with_exits()
    plain = Generator(model, tokenizer).generate_tokens(prompts[:3], 10, 1)
    found = speculate(model, tokenizer, prompts[:3], 10, layer, draft)
    assert found.tokens == [one.tokens for one in plain.written]
    assert 0 < found.acceptance < 1
    with pytest.raises(InputError, match="layer 3 has no exit"):
        speculate(model, tokenizer, prompts, 12, 3, draft)


def test_a_prompt_is_read_once_for_several_rules(prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    model = with_exits()
    ways = [Generator(model, tokenizer), Generator(model, tokenizer, *RULES["margin"]), Generator(model, tokenizer)]
    first, early, again = write_under(ways, prompts, 8, batch_size=3)
    assert first.texts == again.texts
    assert early.mean_layers < first.mean_layers == 6
    forgets = Generator(model, tokenizer, *RULES["margin"], fills=False)
    forgotten = forgets.generate_tokens(prompts, 8)
    assert forgotten.mean_flops < early.mean_flops
    assert forgotten.texts != early.texts  # what is not there is not seen
    with pytest.raises(InputError, match="generators that fill"):
        write_under([ways[0], forgets], prompts, 8)


def test_streaming_writes_the_same_text(prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    generator = Generator(with_exits(), tokenizer, *RULES["margin"])
    pieces, layers = zip(*generator.stream("the film was good", max_new_tokens=8), strict=True)
    outcome = generator.generate(["the film was good"], max_new_tokens=8)
    assert "".join(pieces).strip() == outcome.texts[0]
    assert list(layers) == outcome.written[0].layers


def test_bad_input_is_told_in_a_sentence(prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    model = with_exits()
    generator = Generator(model, tokenizer)
    for call, told in (
        (lambda: generator.generate([]), "nothing to read"),
        (lambda: generator.generate("a text"), "give a list of texts"),
        (lambda: generator.generate(["good film", " "]), "the text at place 1 is empty"),
        (lambda: generator.read([[3, 4], []], 8), "a prompt is empty"),
        (lambda: generator.read([[3] * 60], 8), "do not fit this decoder's context of 64"),
        (lambda: generator.read([[3]], 0), "max_new_tokens must be 1"),
        (lambda: Generator(model, tokenizer, token_rules.softmax_margin(), 1.5), "outside the range"),
        (lambda: Generator(model, tokenizer, rules.oracle(), 1), "cannot drive a generator"),
        (lambda: Generator(model, tokenizer, *RULES["shortlist"]), "give shortlist="),
        (lambda: TokenExitModel(model.decoder, (6,)), "below the top"),
        (lambda: model.only((3,)), "no exit on layer 3"),
        (lambda: load_decoder("nothing-here"), "the offline decoders are"),
        (lambda: load_decoder_tokenizer("nothing-here"), "the offline decoders are"),
        (lambda: Decoder(BertLMHeadModel(BertConfig(num_hidden_layers=1, is_decoder=True))), "decoder family"),
    ):
        with pytest.raises(InputError, match=told):
            call()


def test_an_end_at_once_ends_the_text(tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> None:
    model = with_exits()
    generator = Generator(model, tokenizer, *RULES["margin"])
    read = generator.read(prompts[:2], 8)
    ended = replace(read, first=torch.tensor([END, int(read.first[1])]))
    written = generator.write(ended, 8).written
    assert written[0].tokens == [END]
    assert written[0].flops == 0
    assert len(written[1].tokens) > 1
