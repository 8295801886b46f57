"""Stopping for real gives the same answers at the same stages as the simulation from evidence, whatever the batch."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eeutils.data.samples import Batch, Samples
from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import NEVER, Rule
from eeutils.models.backbone import Backbone
from eeutils.models.cascade import Cascade
from eeutils.models.cost import Spent, exact, layer_flops, linear_flops
from eeutils.models.exits import Carried, Exit, ExitState, MultiExitModel
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.models.schedule import make_schedule
from eeutils.models.stages import Answer, MultiStageModel
from eeutils.models.tokens import HashExitModel
from tests.helpers import accuracy, every_rule, regression_rules
from tests.tiny import CONFIGS, sentences, tiny_encoder, tiny_model, tiny_samples, tiny_tokenizer


class PolicyExit(Exit):
    """An exit that also says with what probability to leave, and passes a running mean of its features on."""

    def read(self, state: ExitState) -> tuple[Tensor, Carried]:
        vector, _ = super().read(state)
        running = state.carried.get("running", torch.zeros_like(vector)) / 2 + vector
        return running, {"running": running}

    def answer(self, vector: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.classifier(vector)
        extras = {"policy": vector[:, 0].sigmoid(), "uncertainty": vector[:, 1].sigmoid(), "distances": logits.abs()}
        return logits, extras


def policy_model(classes: int) -> MultiExitModel:
    """Six exits whose answers depend on what earlier exits carried along."""
    backbone = Backbone(tiny_encoder(num_hidden_layers=6))
    model = MultiExitModel(backbone, {layer: PolicyExit(16, classes, "mean") for layer in range(1, 7)})
    torch.manual_seed(3)
    for head in model.exits.values():
        nn.init.normal_(head.classifier.weight, std=0.5)
    return model.eval()


@dataclass(frozen=True)
class RowState:
    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None


class RowOfModels(MultiStageModel):
    """A model of one's own whose stage is a whole model: a two-layer encoder, then a four-layer one."""

    def __init__(self) -> None:
        super().__init__()
        encoders = [tiny_encoder(num_hidden_layers=2), tiny_encoder(seed=1)]
        self.parts = nn.ModuleList(Backbone(encoder) for encoder in encoders)
        torch.manual_seed(5)
        self.heads = nn.ModuleList(nn.Linear(16, 2) for _ in encoders)
        self.layers, self.reference_layers, self.classes = (2, 6), 4, 2
        self.ran: list[int] = []

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> RowState:
        return RowState(input_ids, attention_mask, token_type_ids)

    def step(self, stage: int, state: RowState) -> tuple[RowState, Answer]:
        self.ran.append(len(state.input_ids))
        states = self.parts[stage](state.input_ids, state.attention_mask, state.token_type_ids)
        return state, Answer(self.heads[stage](states[:, 0]), self.spent(stage, state.attention_mask))

    def leave(self, state: RowState, done: Tensor) -> RowState:
        types = None if state.token_type_ids is None else state.token_type_ids[~done]
        return RowState(state.input_ids[~done], state.attention_mask[~done], types)

    def reference(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Spent:
        return self.spent(1, attention_mask)

    def spent(self, stage: int, attention_mask: Tensor) -> Spent:
        tokens, depth = attention_mask.sum(dim=1), self.parts[stage].depth
        flops = depth * layer_flops(16, 24, tokens) + linear_flops(self.heads[stage])
        return Spent(exact(torch.full_like(tokens, depth)), flops)


def thresholds(evidence: Evidence, rule: Rule) -> list[float]:
    """Thresholds that split the samples, half-way between two readinesses so that the last digit cannot decide."""
    readiness = rule.readiness(evidence).double()
    values = readiness[readiness.isfinite() & (readiness >= rule.low)].unique()
    if rule.discrete or rule.low == rule.high:
        return [*values.tolist()[:1], NEVER]
    gaps = values.diff()
    wide = (gaps > 1e-4).nonzero().flatten()
    middles = (values[:-1] + gaps / 2)[wide]
    middles = middles[(middles >= rule.low) & (middles <= rule.high)]
    return [middles[int(place * (len(middles) - 1))].item() for place in (0.3, 0.85)]


def watched(rule: Rule, whole: Evidence) -> Rule:
    """The same rule, which fails where a runtime shows it anything but its part of what was recorded of the samples:
    the stages that it reads, with what had really been spent by then, and no labels."""

    def readiness(shown: Evidence) -> Tensor:
        stage = shown.first + shown.stages - 1
        known = whole.upto(stage, rule.reads).take(shown.ids)
        assert (shown.first, shown.stages, shown.layers) == (known.first, known.stages, known.layers)
        for kind in ("layers", "flops"):
            assert torch.equal(shown.cost[kind], known.cost[kind])
            assert torch.equal(shown.reference[kind], known.reference[kind])
        torch.testing.assert_close(shown.logits, known.logits, atol=1e-4, rtol=1e-4)
        assert shown.labels is None
        return rule.readiness(shown)

    return replace(rule, readiness=readiness)


def agree(model: MultiStageModel, samples: Samples, rule: Rule, batch_sizes: tuple[int, ...] = (1, 7, 32)) -> Counter:
    """Hold the runtime to the simulation, sample by sample; returns how many samples left at each stage in all."""
    evidence = recorded(model, samples)
    left: Counter = Counter()
    for threshold in thresholds(evidence, rule):
        simulated = tradeoff.decide(evidence, rule, threshold)
        for batch_size in batch_sizes:
            outcome = Runtime(model, watched(rule, evidence), threshold)(samples, batch_size=batch_size)
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
    model = RowOfModels().eval()
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


def hashed(last: int) -> HashExitModel:
    """A tiny encoder whose ordinary tokens stop between layer 1 and `last`, and its head reads the mean."""
    backbone = Backbone(tiny_encoder(seed=last))
    table = backbone.model.get_input_embeddings().weight
    schedule = make_schedule("frequency", singles(), table, 4, last=last, special=tiny_tokenizer().all_special_ids)
    head = Exit(16, 2, "mean")
    nn.init.normal_(head.classifier.weight)
    return HashExitModel(backbone, head, schedule).eval()


def for_its_price(kind: str) -> Rule:
    """A rule that weighs what it has heard against what was spent on it, and asks for more where little was."""
    return Rule(
        f"confidence for its price in {kind}",
        lambda evidence: evidence.confidence * evidence.cost[kind] / evidence.reference[kind],
        high=10.0,
        reads=1,
    )


@pytest.mark.parametrize("rule", [for_its_price("flops"), for_its_price("layers")], ids=lambda rule: rule.name)
@pytest.mark.parametrize("kind", ["exits", "cascade", "tokens that stop", "a model of one's own"])
def test_a_rule_that_reads_cost_stops_where_the_simulation_does(kind: str, rule: Rule) -> None:
    # In a cascade of hashed models the layers and FLOPs of a sample hang on its words.
    model: MultiStageModel = {
        "exits": lambda: tiny_model(pool="mean"),
        "cascade": lambda: Cascade([tiny_model(num_hidden_layers=2, seed=3), tiny_model()]).eval(),
        "tokens that stop": lambda: Cascade([hashed(2), hashed(4)]).eval(),
        "a model of one's own": lambda: RowOfModels().eval(),
    }[kind]()
    assert len(agree(model, singles(), rule)) >= 2


def test_what_was_spent_is_counted_only_for_a_rule_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(*_: object) -> Tensor:
        raise AssertionError("counted")

    model = tiny_model(pool="mean")
    simulated = tradeoff.decide(recorded(model, singles()), rules.confidence(), 0.6)
    monkeypatch.setattr("eeutils.models.backbone.layer_flops", counted)
    assert torch.equal(Runtime(model, rules.confidence(), 0.6)(singles(), batch_size=7).stages, simulated.stages)
    assert len(simulated.stages.unique()) >= 2
    with pytest.raises(AssertionError, match="counted"):
        Runtime(model, for_its_price("flops"), 0.6)(singles())


def test_nothing_is_packed_again_where_nobody_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = tiny_model(pool="mean"), []
    whole = model.backbone.take
    monkeypatch.setattr(model.backbone, "take", lambda *given: packed.append(1) or whole(*given))
    alone = Runtime(model, rules.confidence(), 0.6)(singles(), batch_size=1)
    assert len(alone.stages.unique()) >= 2
    assert not packed
    Runtime(model, rules.confidence(), 0.6)(singles(), batch_size=20)
    assert packed


def test_a_rule_that_reads_what_the_last_stage_added_stops_where_the_simulation_does() -> None:
    def readiness(evidence: Evidence) -> Tensor:
        added = evidence.cost["flops"].diff(dim=0) / evidence.reference["flops"]
        gained = evidence.confidence.diff(dim=0).abs() / added
        return torch.cat([torch.zeros(1, evidence.samples, dtype=torch.float64), gained])

    gain = Rule("gain for its price", readiness, high=100.0, reads=2)
    assert len(agree(classifier(), singles(), gain)) >= 2


def test_one_model_whose_tokens_stop_shows_a_rule_what_it_spent() -> None:
    assert agree(hashed(3), singles(), rules.fixed()) == {0: 40}
    shares = recorded(hashed(3), singles())
    assert len((shares.cost["layers"] / shares.reference["layers"]).unique()) > 3


@pytest.mark.parametrize("reads", [1, 2, 3, None])
def test_a_rule_is_shown_the_stages_that_it_reads_and_answers_the_same(reads: int | None) -> None:
    shown: list[tuple[int, int]] = []

    def readiness(evidence: Evidence) -> Tensor:
        shown.append((evidence.first, evidence.stages))
        return evidence.margin

    runtime = Runtime(classifier(), Rule("margin", readiness, reads=reads), 0.9)
    outcome = runtime(singles(), batch_size=20)
    most = reads or 6
    assert shown == [(max(0, stage + 1 - most), min(stage + 1, most)) for stage in range(5)]
    simulated = tradeoff.decide(recorded(classifier(), singles()), rules.margin(), 0.9)
    assert outcome.stages.tolist() == simulated.stages.tolist()
    assert len(outcome.stages.unique()) == 2


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

    def counted(self: Backbone, layer: int, hidden, active: Tensor | None = None):
        seen.append(tuple(hidden.states.shape[:2]))
        return run_layer(self, layer, hidden, active)

    monkeypatch.setattr(Backbone, "run_layer", counted)
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


@contextmanager
def counted_layers(model: MultiStageModel, size: Callable[[Tensor], int]) -> Iterator[list[int]]:
    """What every BERT layer of a model really ran on, as hooks see its feed-forward: `size` of all inputs."""
    ran: list[int] = []
    layers = [layer for part in model.modules() if isinstance(part, Backbone) for layer in part.layers]
    hooks = [
        layer.intermediate.register_forward_pre_hook(lambda _, inputs: ran.append(size(inputs[0]))) for layer in layers
    ]
    yield ran
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", ["exits", "cascade"])
def test_layers_really_run_are_the_layers_of_the_simulation(kind: str) -> None:
    small = tiny_model(num_hidden_layers=2, seed=3)
    model = classifier() if kind == "exits" else Cascade([small, tiny_model()]).eval()
    samples, rule = singles(), rules.entropy()
    evidence = recorded(model, samples)
    for threshold in thresholds(evidence, rule):
        simulated = tradeoff.at_threshold(evidence, rule, accuracy, threshold)
        for batch_size in (1, 7, 32):
            with counted_layers(model, len) as ran:
                Runtime(model, rule, threshold)(samples, batch_size=batch_size)
            assert sum(ran) / len(samples) == pytest.approx(simulated["layers"])


def test_tokens_that_layers_really_run_on_are_the_layers_of_the_simulation() -> None:
    model, samples, rule = Cascade([hashed(2), hashed(4)]).eval(), singles(), rules.confidence()
    evidence = recorded(model, samples)
    threshold = thresholds(evidence, rule)[1]
    stages = tradeoff.decide(evidence, rule, threshold).stages
    assert len(stages.unique()) == 2
    for row, length in enumerate(samples.lengths.tolist()):
        with counted_layers(model, lambda states: states.numel() // 16) as ran:
            Runtime(model, rule, threshold)(samples.take([row]))
        assert sum(ran) / length == pytest.approx(evidence.cost["layers"][stages[row], row].item())


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
    outcome = runtime([" ".join(words), " ".join(words[:18])])
    torch.testing.assert_close(outcome.logits[0], outcome.logits[1])
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


@pytest.mark.parametrize(
    ("classes", "rule", "threshold", "sentence"),
    [
        (3, rules.confidence(), 1.5, r"threshold 1\.5 is outside the range of rule 'confidence', \[0, 1\]"),
        (3, rules.patience(), 0.5, r"outside the range of rule 'patience'"),
        (1, rules.entropy(), 0.5, r"'entropy' reads class probabilities and the task is a regression"),
        (1, rules.entropy(), NEVER, r"the task is a regression"),
        (3, rules.oracle(), 1.0, r"'oracle' needs to know what is right; it cannot drive a runtime"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_runs(
    classes: int, rule: Rule, threshold: float, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier() if classes > 1 else regressor()
    for call in ("begin", "step", "reference"):
        monkeypatch.setattr(model, call, lambda *_: pytest.fail("the model was asked"), raising=True)
    with pytest.raises(InputError, match=sentence):
        Runtime(model, rule, threshold)(singles())


def test_random_exits_do_not_depend_on_the_batch() -> None:
    runtime = Runtime(classifier(), rules.random(1), 0.8)
    one, many = runtime(singles(), batch_size=1), runtime(singles(), batch_size=32)
    assert torch.equal(one.stages, many.stages)
    assert len(one.stages.unique()) > 2


def test_one_batch_answers_like_the_whole() -> None:
    samples = singles()
    batch: Batch = samples.batch([4, 9, 2], pad_to=30)
    some = Runtime(classifier(), rules.confidence(), 0.6).run(batch)
    whole = Runtime(classifier(), rules.confidence(), 0.6)(samples)
    assert some.stages.tolist() == whole.stages[[4, 9, 2]].tolist()
    torch.testing.assert_close(some.logits, whole.logits[[4, 9, 2]], atol=1e-4, rtol=1e-4)
