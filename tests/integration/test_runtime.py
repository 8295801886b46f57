"""Stopping for real gives the same answers at the same stages as the simulation from evidence, whatever the batch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eeutils.exiting import rules, tradeoff
from eeutils.models.backbone import Backbone
from eeutils.data.samples import Batch, Samples
from eeutils.models.cost import layer_flops, linear_flops
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence, record
from eeutils.models.exits import Answer, Exit, ExitState, MultiExitModel, MultiStageModel
from eeutils.exiting.rules import NEVER, Rule
from eeutils.models.runtime import Runtime
from tests.helpers import accuracy, every_rule, regression_rules
from tests.tiny import CONFIGS, sentences, tiny_encoder, tiny_model, tiny_samples, tiny_tokenizer


class PolicyExit(Exit):
    """An exit that also says with what probability to leave, and passes a running mean of its features on."""

    def forward(self, state: ExitState) -> tuple[Answer, Mapping[str, Tensor]]:
        features = self.features(state)
        running = state.carried.get("running", torch.zeros_like(features)) / 2 + features
        logits = self.classifier(running)
        return Answer(logits, {"policy": running[:, 0].sigmoid(), "distances": logits.abs()}), {"running": running}


def policy_model(classes: int) -> MultiExitModel:
    """Six exits whose answers depend on what earlier exits carried along."""
    backbone = Backbone(tiny_encoder(num_hidden_layers=6))
    model = MultiExitModel(backbone, {layer: PolicyExit(16, classes, "mean") for layer in range(1, 7)})
    torch.manual_seed(3)
    for head in model.exits.values():
        nn.init.normal_(head.classifier.weight, std=0.5)
    return model.eval()


@dataclass(frozen=True)
class CascadeState:
    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None


class Cascade(MultiStageModel):
    """A stage is a whole model: a two-layer encoder, then a four-layer one, as in CascadeBERT."""

    def __init__(self) -> None:
        super().__init__()
        encoders = [tiny_encoder(num_hidden_layers=2), tiny_encoder(seed=1)]
        self.parts = nn.ModuleList(Backbone(encoder) for encoder in encoders)
        torch.manual_seed(5)
        self.heads = nn.ModuleList(nn.Linear(16, 2) for _ in encoders)
        self.layers, self.reference_layers = (2, 6), 4
        self.ran: list[int] = []

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> CascadeState:
        return CascadeState(input_ids, attention_mask, token_type_ids)

    def step(self, stage: int, state: CascadeState) -> tuple[CascadeState, Answer]:
        self.ran.append(len(state.input_ids))
        hidden = self.parts[stage](state.input_ids, state.attention_mask, state.token_type_ids)
        return state, Answer(self.heads[stage](hidden[:, 0]))

    def select(self, state: CascadeState, rows: Tensor) -> CascadeState:
        types = None if state.token_type_ids is None else state.token_type_ids[rows]
        return CascadeState(state.input_ids[rows], state.attention_mask[rows], types)

    def cost(self, samples: Samples) -> Tensor:
        each = [part.depth * layer_flops(part, samples.lengths) + linear_flops(self.heads) / 2 for part in self.parts]
        return torch.stack(each).cumsum(dim=0)

    def reference_cost(self, samples: Samples) -> Tensor:
        return self.cost(samples)[1] - self.cost(samples)[0]


def thresholds(evidence: Evidence, rule: Rule) -> list[float]:
    """Thresholds that split the samples, half-way between two readinesses so that the last digit cannot decide."""
    readiness = rule.readiness(evidence).double()
    found = readiness[readiness.isfinite() & (readiness >= rule.low)].unique()
    if rule.discrete or rule.low == rule.high:
        return [*found.tolist()[:1], NEVER]
    gaps = found.diff()
    wide = (gaps > 1e-4).nonzero().flatten()
    middles = (found[:-1] + gaps / 2)[wide]
    middles = middles[(middles >= rule.low) & (middles <= rule.high)]
    return [middles[int(place * (len(middles) - 1))].item() for place in (0.3, 0.85)]


def agree(model: MultiStageModel, samples: Samples, rule: Rule, batch_sizes: tuple[int, ...] = (1, 7, 32)) -> Counter:
    """Hold the runtime to the simulation, sample by sample; returns how many samples left at each stage in all."""
    evidence = recorded(model, samples)
    left: Counter = Counter()
    for threshold in thresholds(evidence, rule):
        simulated = tradeoff.decide(evidence, rule, threshold)
        for batch_size in batch_sizes:
            outcome = Runtime(model, rule, threshold)(samples, batch_size=batch_size)
            where = f"{rule.name} at {threshold}, batch {batch_size}"
            assert outcome.stages.tolist() == simulated.stages.tolist(), where
            torch.testing.assert_close(
                outcome.logits.float(), simulated.logits.float(), atol=1e-4, rtol=1e-4, msg=where
            )
            if evidence.classes > 1:
                assert torch.equal(outcome.predictions, simulated.predictions), where
        left.update(simulated.stages.tolist())
    return left


_RECORDED: dict[tuple[int, int], tuple[Any, Any, Evidence]] = {}


def recorded(model: MultiStageModel, samples: Samples) -> Evidence:
    """Evidence of a model on samples, recorded once."""
    known = _RECORDED.setdefault((id(model), id(samples)), (model, samples, record(model, samples)))
    return known[2]


@cache
def classifier() -> MultiExitModel:
    return policy_model(classes=3)


@cache
def regressor() -> MultiExitModel:
    return policy_model(classes=1)


@cache
def singles() -> Samples:
    return tiny_samples(20)


@cache
def numbers() -> Samples:
    return tiny_samples(20, regression=True)


# Comparing with all earlier stages is the same for every kind of divergence; the oracle cannot drive a runtime.
DRIVING = [name for name in every_rule() if "of earlier" not in name or "jsd" in name if name != "oracle"]


@pytest.mark.parametrize("name", DRIVING)
def test_every_rule_stops_where_the_simulation_does(name: str) -> None:
    left = agree(classifier(), singles(), every_rule()[name])
    assert len(left) >= 2, "the thresholds of this test send everybody to one stage, which shows nothing"


@pytest.mark.parametrize("name", regression_rules())
def test_every_rule_on_regression_stops_where_the_simulation_does(name: str) -> None:
    assert len(agree(regressor(), numbers(), regression_rules()[name])) >= 2


@pytest.mark.parametrize("kind", ["pairs", "one length", "one sample"])
@pytest.mark.parametrize("rule", [rules.confidence(), rules.patience(), rules.policy()], ids=lambda rule: rule.name)
def test_pairs_and_batches_without_padding_stop_where_the_simulation_does(kind: str, rule: Rule) -> None:
    samples = tiny_samples(24, pairs=kind == "pairs", longest=2 if kind == "one length" else 12)
    if kind == "one sample":
        samples = replace(samples, tokens=samples.tokens[:1], labels=samples.labels[:1], ids=samples.ids[:1])
    assert (samples.lengths.unique().numel() == 1) == (kind != "pairs")
    agree(classifier(), samples, rule)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_stops_where_the_simulation_does(name: str) -> None:
    left = agree(tiny_model(name, pool="mean"), tiny_samples(20, pairs=True, longest=8), rules.confidence(), (1, 20))
    assert len(left) >= 2


def test_exits_on_some_layers_only_stop_where_the_simulation_does() -> None:
    model = tiny_model()
    sparse = MultiExitModel(model.backbone, {layer: model.exits[str(layer)] for layer in (2, 4)}).eval()
    assert len(agree(sparse, singles(), rules.entropy())) == 2


def test_a_row_of_whole_models_goes_through_evidence_sweep_and_runtime_unchanged() -> None:
    model = Cascade().eval()
    assert len(agree(model, singles(), rules.confidence())) == 2
    evidence = recorded(model, singles())
    curve = tradeoff.sweep(evidence, rules.confidence(), accuracy)
    never = curve[curve.threshold == NEVER].iloc[0]
    assert (never.layers, never.layer_speedup) == (6, pytest.approx(4 / 6))
    threshold = thresholds(evidence, rules.confidence())[1]
    model.ran.clear()
    stages = Runtime(model, rules.confidence(), threshold)(singles()).stages
    # The second model sees those alone whom the first was not sure about.
    assert model.ran == [20, int((stages == 1).sum())]
    assert 0 < model.ran[1] < 20


def test_results_stand_in_the_order_of_the_texts() -> None:
    texts, _ = sentences(20, longest=15)
    runtime = Runtime(classifier(), rules.confidence(), 0.6, tiny_tokenizer(), max_length=40)
    together = runtime(texts, batch_size=20)
    for place, text in enumerate(texts):
        alone = runtime([text])
        torch.testing.assert_close(alone.logits[0], together.logits[place], atol=1e-4, rtol=1e-4)
        assert alone.stages[0] == together.stages[place]


def test_samples_that_are_done_leave_and_columns_of_padding_go_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = classifier(), singles()
    seen: list[tuple[int, int]] = []
    run_layer = Backbone.run_layer

    def watched(self: Backbone, layer: int, hidden):
        seen.append(tuple(hidden.states.shape[:2]))
        return run_layer(self, layer, hidden)

    monkeypatch.setattr(Backbone, "run_layer", watched)
    # Longer sentences leave first, one stage for each of six lengths.
    by_length = samples.lengths.unique().flip(0)
    leave_at = {int(length): min(place, 5) for place, length in enumerate(by_length)}
    lengths = dict(zip(samples.ids.tolist(), samples.lengths.tolist(), strict=True))
    ready = Rule(
        "long ones first",
        lambda evidence: torch.tensor(
            [[float(stage >= leave_at[lengths[i]]) for i in evidence.ids.tolist()] for stage in range(evidence.stages)]
        ),
    )
    Runtime(model, ready, 1.0)(samples, batch_size=32)
    for layer, (rows, columns) in enumerate(seen):
        still = [length for length in samples.lengths.tolist() if leave_at[length] >= layer]
        assert (rows, columns) == (len(still), max(still))
    assert len(seen) == 6


def test_layers_really_run_are_the_layers_of_the_simulation() -> None:
    model, samples = classifier(), singles()
    ran = torch.zeros(model.backbone.depth, dtype=torch.long)

    def counter(layer: int):
        def count(module: nn.Module, arguments: tuple, output: Any) -> None:
            ran[layer] += len(arguments[0])

        return count

    hooks = [layer.register_forward_hook(counter(k)) for k, layer in enumerate(model.backbone.layers)]
    try:
        evidence = recorded(model, samples)
        for threshold in thresholds(evidence, rules.entropy()):
            for batch_size in (1, 7, 32):
                ran.zero_()
                Runtime(model, rules.entropy(), threshold)(samples, batch_size=batch_size)
                simulated = tradeoff.operate(evidence, rules.entropy(), accuracy, threshold)
                assert ran.sum() / len(samples) == pytest.approx(simulated["layers"])
    finally:
        for hook in hooks:
            hook.remove()


def test_the_last_stage_always_answers() -> None:
    model = classifier()
    outcome = Runtime(model, rules.confidence(), 1.0)(singles())
    never = Runtime(model, rules.confidence(), NEVER)(singles())
    assert never.stages.tolist() == [5] * 20
    torch.testing.assert_close(never.logits.float(), recorded(model, singles()).logits[-1], atol=1e-4, rtol=1e-4)
    assert outcome.stages.max() == 5


def test_a_model_left_in_training_mode_answers_without_dropout() -> None:
    model = tiny_model(pool="mean")
    calm = Runtime(model, rules.confidence(), 0.7)(singles())
    model.train()
    again = Runtime(model, rules.confidence(), 0.7)(singles())
    assert torch.equal(calm.logits, again.logits)
    assert not model.training


def test_the_tokenizer_is_asked_for_the_cut_and_longer_texts_answer_like_their_beginning() -> None:
    words = ["good", *["film"] * 5000]
    runtime = Runtime(classifier(), rules.confidence(), 0.6, tiny_tokenizer(), max_length=20)
    found = runtime([" ".join(words), " ".join(words[:18])])
    torch.testing.assert_close(found.logits[0], found.logits[1])
    with pytest.raises(InputError, match=r"max_length 41 does not fit.*3 to 40"):
        replace(runtime, max_length=41)(["good"])


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "nothing to encode"),
        (["good film", " \n"], "place 1 is empty"),
        ("good film", r"for a single text write \[text\]"),
    ],
)
def test_texts_that_are_none_are_refused_with_a_sentence(texts: Any, sentence: str) -> None:
    runtime = Runtime(classifier(), rules.confidence(), 0.6, tiny_tokenizer(), max_length=40)
    with pytest.raises(InputError, match=sentence):
        runtime(texts)


def test_pairs_need_as_many_second_texts_as_first_ones() -> None:
    runtime = Runtime(classifier(), rules.confidence(), 0.6, tiny_tokenizer(), max_length=40)
    with pytest.raises(InputError, match="2 first and 1 second texts"):
        runtime(["good", "bad"], ["film"])


def test_samples_without_a_single_one_are_refused() -> None:
    none = replace(singles(), tokens=(), labels=None, ids=singles().ids[:0])
    with pytest.raises(InputError, match="at least one"):
        Runtime(classifier(), rules.confidence(), 0.6)(none)
    with pytest.raises(InputError, match="at least one"):
        record(classifier(), none)


def test_texts_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        Runtime(classifier(), rules.confidence(), 0.6)(["good"])


@pytest.mark.parametrize("rule", [rules.oracle(), rules.confidence()], ids=lambda rule: rule.name)
def test_rules_that_cannot_drive_a_runtime_say_so(rule: Rule) -> None:
    if rule.name == "oracle":
        with pytest.raises(InputError, match=r"needs labels.*cannot drive a runtime"):
            Runtime(classifier(), rule, 1.0)(singles())
    else:
        with pytest.raises(InputError, match="regression"):
            Runtime(regressor(), rule, 0.5)(numbers())
        with pytest.raises(InputError, match="outside the range"):
            Runtime(classifier(), rule, 1.5)(singles())


def test_random_exits_do_not_depend_on_the_batch() -> None:
    runtime = Runtime(classifier(), rules.random(1), 0.8)
    one, many = runtime(singles(), batch_size=1), runtime(singles(), batch_size=32)
    assert torch.equal(one.stages, many.stages)
    assert len(one.stages.unique()) > 2


def test_measuring_counts_every_sample_once_after_the_warm_up() -> None:
    model = classifier()
    ran: list[int] = []
    begin = model.begin

    def watched(*inputs: Tensor) -> Any:
        ran.append(len(inputs[0]))
        return begin(*inputs)

    model.begin = watched  # type: ignore[method-assign]
    try:
        timing = Runtime(model, rules.confidence(), 0.6).measure(singles(), batch_size=6, warm_up=2)
    finally:
        del model.begin
    assert ran[2:] == [6, 6, 6, 2]
    assert len(timing.seconds) == 4
    assert timing.samples == 20
    assert timing.throughput == pytest.approx(20 / sum(timing.seconds))
    assert timing.latency(50) <= timing.latency(95) <= 1000 * max(timing.seconds)


def test_one_batch_answers_like_the_whole() -> None:
    samples = singles()
    batch: Batch = samples.batch([4, 9, 2], pad_to=30)
    found = Runtime(classifier(), rules.confidence(), 0.6).run(batch)
    whole = Runtime(classifier(), rules.confidence(), 0.6)(samples)
    assert found.stages.tolist() == whole.stages[[4, 9, 2]].tolist()
    torch.testing.assert_close(found.logits, whole.logits[[4, 9, 2]], atol=1e-4, rtol=1e-4)
