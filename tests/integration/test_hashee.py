"""HashEE: the packed form is the masked form, nobody is asked twice, and its cost is what torch counts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eeutils.data.samples import Batch, Samples
from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.exiting.evidence import Evidence, as_stages, concatenate
from eeutils.models.backbone import Backbone
from eeutils.models.exits import Exit, Pooler
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.models.schedule import FUNCTIONS, TokenSchedule, make_schedule, windows
from eeutils.models.tokens import HashExitModel
from eeutils.papers import finetuned, hashee
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.helpers import accuracy
from tests.tiny import CONFIGS, tiny_encoder, tiny_samples, tiny_tokenizer

SAMPLES = tiny_samples(40)
DEPTH = 4


def model_of(
    name: str = "bert", function: str = "frequency", attention: str = "sdpa", classes: int = 2, **options
) -> HashExitModel:
    """A tiny encoder under a schedule from the tiny samples."""
    backbone = Backbone(tiny_encoder(name, attention=attention))
    table = backbone.model.get_input_embeddings().weight
    special = tiny_tokenizer().all_special_ids
    schedule = make_schedule(function, SAMPLES, table, DEPTH, **{"special": special, **options})
    torch.manual_seed(0)
    return HashExitModel(backbone, Exit(16, classes, "mean", Pooler(backbone)), schedule).eval()


def logits_of(model: HashExitModel, samples: Samples = SAMPLES, batch_size: int = 64) -> Tensor:
    return record(model, samples, batch_size).logits[0]


def alone(model: HashExitModel, samples: Samples = SAMPLES) -> tuple[Evidence, Tensor]:
    """Evidence of samples that pass a BERT one by one, and how many tokens of each one every layer makes queries of,
    (layers, samples): counted by hooks."""
    queries, parts = torch.zeros(DEPTH, len(samples), dtype=torch.long), []

    def count(layer: int, row: int, states: Tensor) -> None:
        queries[layer, row] += states.numel() // states.shape[-1]

    for row in range(len(samples)):
        hooks = [
            part.attention.self.query.register_forward_pre_hook(
                lambda _, inputs, layer=layer, row=row: count(layer, row, inputs[0])
            )
            for layer, part in enumerate(model.backbone.layers)
        ]
        parts.append(record(model, samples.take([row])))
        for hook in hooks:
            hook.remove()
    return concatenate(parts, samples.ids), queries


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_tokens_say_what_masked_ones_do_in_every_family(name: str, attention: str) -> None:
    model = model_of(name, attention=attention)
    for window in windows(DEPTH):
        schedule = model.schedule.window(*window)
        packed, masked = (logits_of(model.under(schedule, packed=packed)) for packed in (True, False))
        torch.testing.assert_close(packed, masked, atol=1e-5, rtol=1e-5)
    # The windows make a difference, or nothing would have been compared.
    first, last = (logits_of(model.under(model.schedule.window(*window))) for window in ((1, 1), (3, 4)))
    assert (first - last).abs().max() > 1e-2


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_special_token_at_the_top_and_no_one_left_in_the_last_layers(function: str) -> None:
    model = model_of(function=function, special=(), last=2)
    one_by_one, queries = alone(model)
    assert (queries[2:] == 0).all()
    packed, masked = (record(model.under(model.schedule, packed=packed), SAMPLES) for packed in (True, False))
    torch.testing.assert_close(packed.logits, masked.logits, atol=1e-5, rtol=1e-5)
    for evidence in (one_by_one, packed, masked):
        assert (evidence.cost["layers"] <= 2).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_sentence_alone_gets_the_answer_that_it_gets_in_a_batch(function: str) -> None:
    model = model_of(function=function)
    one_by_one, together = (record(model, SAMPLES, batch_size) for batch_size in (1, 32))
    torch.testing.assert_close(one_by_one.logits, together.logits, atol=1e-5, rtol=1e-5)
    for kind, cost in one_by_one.cost.items():
        assert torch.equal(cost, together.cost[kind])


@pytest.mark.parametrize("name", ["bert", "mpnet", "nomic_bert", "modernbert"])
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    model, [sentence] = model_of(name), SAMPLES.take([3]).tokens
    # Embeddings would give other positions to what stands behind padding, so the states before layer 1 are held fixed.
    ids = torch.tensor([sentence])
    state = model.begin(ids, torch.ones_like(ids))
    states = torch.nn.functional.pad(state.hidden.states, (0, 0, 3, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (3, 0))
    shared = model.backbone.family.shared(model.backbone.model, states, mask.bool())
    hidden = replace(state.hidden, states=states, attention_mask=mask.bool(), shared=shared, padded=True)
    left = replace(state, hidden=hidden, layers=torch.nn.functional.pad(state.layers, (3, 0)))
    torch.testing.assert_close(model.step(0, left)[1].logits, model.step(0, state)[1].logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_with_every_token_at_the_top_it_is_the_plain_model(name: str) -> None:
    model = model_of(name, first=DEPTH, last=DEPTH)
    inputs = SAMPLES.batch(range(len(SAMPLES))).inputs
    with torch.inference_mode():
        ids, mask, _ = inputs
        kept = {"input_ids": ids, "attention_mask": mask}
        plain = model.backbone.model(**kept).last_hidden_state
        state, _ = model.step(0, model.begin(*inputs))
    assert torch.equal(state.hidden.states[mask.bool()], plain[mask.bool()])


def test_a_frozen_token_keeps_its_state_and_is_still_seen_by_the_others() -> None:
    model = model_of(last=1)
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    state = model.begin(ids, torch.ones_like(ids))
    after_one = model.backbone.run_layer(0, state.hidden).states
    at_the_top = model.step(0, state)[0].hidden.states
    assert torch.equal(at_the_top[:, 1:4], after_one[:, 1:4])
    # Another word in the middle, frozen after layer 1 as well, changes what the special tokens become.
    other = model.begin(torch.tensor([[2, 5, 8, 7, 3]]), torch.ones_like(ids))
    assert (model.step(0, other)[0].hidden.states[:, 0] - at_the_top[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "mpnet", "nomic_bert", "modernbert"])
def test_gradients_of_the_packed_form_are_those_of_the_masked_form(name: str) -> None:
    model, batch = model_of(name), SAMPLES.batch(range(8))
    gradients = []
    for packed in (True, False):
        model.zero_grad()
        finetuned.last_exit_loss(model, model.under(model.schedule, packed)(*batch.inputs), batch).backward()
        named = model.named_parameters()
        gradients.append({part: weight.grad.clone() for part, weight in named if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for part, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][part], atol=1e-5, rtol=1e-4, msg=part)
    words = "tok_embeddings" if name == "modernbert" else "word_embeddings"
    assert gradients[0][f"backbone.model.embeddings.{words}.weight"].abs().sum() > 0
    assert name != "mpnet" or gradients[0]["backbone.model.encoder.relative_attention_bias.weight"].abs().sum() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_of_one_sentence_are_those_that_torch_counts(name: str) -> None:
    model = model_of(name)
    few = SAMPLES.take([0, 5, 11])
    for window in windows(DEPTH):
        under = model.under(model.schedule.window(*window))
        cost = record(under, few).cost["flops"][0]
        for row in range(len(few)):
            ids = torch.tensor([few.tokens[row]])
            # The mathematical form of attention: a fused kernel is not seen by the counter.
            with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                under(ids, torch.ones_like(ids))
            assert cost[row].item() == counter.get_total_flops()


@pytest.mark.parametrize("packed", [True, False])
def test_a_sentence_without_active_tokens_spends_nothing_on_a_layer_that_others_in_its_batch_run(packed: bool) -> None:
    model = model_of()
    # Words 5 and 6 stop after layer 1, all others after layer 3.
    ranks = torch.full((40,), 0.99)
    ranks[[5, 6]] = 0.0
    under = model.under(TokenSchedule(ranks, DEPTH, first=1, last=3), packed=packed)
    shallow, deep = (5, 6, 5), (7, 8, 9, 7)
    evidence = record(under, Samples((shallow, deep), None, None, torch.arange(2), 0))
    assert evidence.cost["layers"].tolist() == [[1, 3]]
    # BERT's embeddings are free; the layers are alike, so that one of them is a quarter of all four.
    head = model.head.plain_flops
    layers = (evidence.reference["flops"] - head) / DEPTH
    assert evidence.cost["flops"][0].tolist() == (torch.tensor([1, 3]) * layers + head).tolist()


def test_costs_and_layers_are_those_of_the_plain_model_at_the_top_and_fall_with_the_window() -> None:
    model = model_of()
    curve = hashee.record_under(model, [model.schedule.window(*window) for window in windows(DEPTH)], SAMPLES)
    for kind, cost in curve.cost.items():
        assert torch.equal(cost[-1], curve.reference[kind])
    assert (curve.cost["layers"][-1] == DEPTH).all()
    assert (curve.cost["flops"][1:] >= curve.cost["flops"][:-1]).all()
    frame = tradeoff.fixed_exits(curve, accuracy)
    assert frame.layer_speedup.is_monotonic_decreasing
    assert frame.flops_speedup.iloc[-1] == 1
    # Two special tokens of four layers, the others of 1 on average: worked out from the lengths.
    lengths = SAMPLES.lengths.double()
    torch.testing.assert_close(curve.cost["layers"][0], (2 * DEPTH + (lengths - 2)) / lengths)


def test_layers_share_tokens_as_the_schedule_says() -> None:
    model = model_of(function="random-occurrence")
    one_by_one, queries = alone(model)
    together = record(model, SAMPLES)
    for row, sentence in enumerate(SAMPLES.tokens):
        layers = model.schedule.layers_of(torch.tensor([sentence]), torch.ones(1, len(sentence)))[0]
        assert queries[:, row].tolist() == [int((layers >= layer).sum()) for layer in range(1, DEPTH + 1)]
        for evidence in (one_by_one, together):
            assert evidence.cost["layers"][0, row].item() == pytest.approx(layers.double().mean().item())


def test_a_family_read_between_two_schedules_is_a_mix_of_both() -> None:
    model = model_of()
    curve = hashee.record_under(model, [model.schedule.window(1, last) for last in (4, 1)], SAMPLES)
    cheap, dear = (float(1 / speedup) for speedup in tradeoff.fixed_exits(curve, accuracy).flops_speedup)
    reading = tradeoff.at_speedup(curve, rules.fixed(), 2 / (cheap + dear))
    assert reading.share == pytest.approx(0.5)
    assert [answers.tolist() for answers in reading.predictions] == curve.predictions.tolist()


def test_schedules_that_answered_different_samples_make_no_curve() -> None:
    model = model_of()
    parts = [record(model, samples) for samples in (SAMPLES, SAMPLES.take([1, 0]))]
    for wrong in (parts, []):
        with pytest.raises(InputError, match="same samples"):
            as_stages(wrong)


def test_a_schedule_of_another_encoder_is_refused() -> None:
    model = model_of()
    for wrong in (TokenSchedule(torch.ones(40), depth=6), TokenSchedule(torch.ones(39), depth=DEPTH)):
        with pytest.raises(InputError, match="4 layers and 40 token ids"):
            model.under(wrong)


def test_tokens_cannot_leave_inside_an_albert_layer_of_several() -> None:
    model = model_of("albert")
    backbone = Backbone(tiny_encoder("albert", inner_group_num=2))
    model = HashExitModel(backbone, Exit(16, 2, "mean"), model.schedule).eval()
    with pytest.raises(InputError, match="inner_group_num 1"):
        logits_of(model)


def test_a_model_trained_with_drawn_windows_draws_in_training_only() -> None:
    model = model_of()
    drawn = HashExitModel(model.backbone, model.head, model.schedule, drawn=True)
    inputs = SAMPLES.batch(range(8)).inputs
    in_training = {float(drawn.train().begin(*inputs).layers.double().mean()) for _ in range(40)}
    in_use = {float(drawn.eval().begin(*inputs).layers.double().mean()) for _ in range(10)}
    assert len(in_training) > 4
    assert len(in_use) == 1


def test_another_schedule_does_not_switch_dropout_on() -> None:
    model = model_of()
    under = model.under(model.schedule.window(1, 2))
    record(under, SAMPLES)
    assert not under.backbone.training


@pytest.mark.usefixtures("tiny_tasks")
@pytest.mark.parametrize("last", [1, 2, 3])
def test_the_encoder_ends_at_the_last_bucket_and_is_measured_against_the_whole(setting: Setting, last: int) -> None:
    short, whole = (
        hashee.build(setting, 2, hashee.METHOD.with_options(last=last, truncated=cut)).eval() for cut in (True, False)
    )
    assert (short.backbone.depth, whole.backbone.depth) == (last, DEPTH)
    assert short.schedule.depth == last
    samples = tiny_samples(12)
    ours, theirs = record(short, samples), record(whole, samples)
    for kind in ("layers", "flops"):
        assert torch.equal(ours.reference[kind], theirs.reference[kind])
    plain = record(finetuned.build(setting, 2, finetuned.METHOD.options).eval(), samples)
    assert torch.equal(ours.reference["flops"], plain.cost["flops"][-1])
    # Two special tokens run to the top, of what there is; the others run the same layers in both.
    assert (ours.cost["layers"] <= last).all()
    lengths = samples.lengths.double()
    torch.testing.assert_close((theirs.cost["layers"] - ours.cost["layers"])[0], 2 * (DEPTH - last) / lengths)
    assert (ours.cost["flops"] < theirs.cost["flops"]).all()
    # Under another schedule it is measured as before.
    under = record(short.under(short.schedule.window(1, 1)), samples)
    assert torch.equal(under.reference["flops"], ours.reference["flops"])
    if last == 1:
        assert torch.equal(under.cost["flops"], ours.cost["flops"])


@pytest.mark.usefixtures("tiny_tasks")
def test_a_schedule_to_the_top_cuts_nothing(setting: Setting) -> None:
    for options in ({}, {"last": DEPTH}, {"first": 2}):
        assert hashee.build(setting, 2, hashee.METHOD.with_options(**options)).backbone.depth == DEPTH


@pytest.mark.usefixtures("tiny_tasks")
@pytest.mark.parametrize("task", ["movie", "movie-valence"])
def test_from_training_to_the_runtime(setting: Setting, task: str) -> None:
    setting = replace(setting, task=task, pool="mean", epochs=6, learning_rate=5e-3)
    run = load_or_train(hashee.METHOD, setting, progress=False, last=3)
    assert run.history.loss.iloc[-1] < run.history.loss.iloc[0]
    model, samples = run.model(), run.samples("test")
    # The weights were trained under this order, which comes back with them.
    again = record(model, samples)
    torch.testing.assert_close(again.logits, run.test.logits)
    for kind, cost in again.cost.items():
        assert torch.equal(cost, run.test.cost[kind])
    assert (run.test.cost["layers"] < DEPTH).all()
    outcome = Runtime(model, rules.fixed())(samples, batch_size=7)
    torch.testing.assert_close(outcome.logits.float(), run.test.logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("tiny_tasks")
def test_statistics_come_from_train_alone(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    samples_of = hashee.samples_of
    monkeypatch.setattr(hashee, "samples_of", lambda setting, split: asked.append(split) or samples_of(setting, split))
    for function in FUNCTIONS:
        hashee.build(setting, 2, hashee.METHOD.with_options(function=function))
    assert set(asked) == {"train"}


def test_samples_that_leave_take_along_the_columns_that_nobody_needs() -> None:
    model = model_of()
    shortest, longest = int(SAMPLES.lengths.argmin()), int(SAMPLES.lengths.argmax())
    batch: Batch = SAMPLES.batch([shortest, longest])
    kept = model.leave(model.begin(*batch.inputs), torch.tensor([False, True]))
    assert kept.layers.shape == kept.hidden.attention_mask.shape == (1, int(SAMPLES.lengths.min()))
    by_itself = logits_of(model, SAMPLES.take([shortest]))
    torch.testing.assert_close(model.step(0, kept)[1].logits, by_itself, atol=1e-5, rtol=1e-5)
