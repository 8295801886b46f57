"""Sweeps against a loop over samples and thresholds, and readings of the curve against numbers worked out by hand."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from eeutils.errors import InputError
from eeutils.exiting import rules
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.tradeoff import (
    Reading,
    area,
    at_speedup,
    at_threshold,
    blind_curve,
    blind_policy,
    can_reach,
    decide,
    fixed_exits,
    score_at,
    settled,
    sweep,
    threshold_for_loss,
    threshold_for_speedup,
)
from tests.helpers import accuracy, every_rule, make_evidence, negative_error, random_evidence, regression_rules

EARLIEST = {"entropy": 1, "confidence": 1, "margin": 1, "patience": 2, "vote": 1, "divergence (jsd)": 2, "policy": 1}
EARLIEST |= {"entropy, 2 in a row": 2, "divergence (jsd), 3 in a row": 4, "fixed exits": 1, "random": 1}


def leave_one_by_one(evidence: Evidence, rule: rules.Rule, threshold: float) -> list[int]:
    """The stage at which each sample leaves, as one would write it without tensors."""
    readiness = rule.readiness(evidence)
    stages = []
    for sample in range(evidence.samples):
        for stage in range(evidence.stages):
            if readiness[stage, sample] >= threshold or stage == evidence.stages - 1:
                stages.append(stage)
                break
    return stages


def point_one_by_one(evidence: Evidence, rule: rules.Rule, metric, threshold: float) -> dict[str, float]:
    stages = leave_one_by_one(evidence, rule, threshold)
    answers = rule.answers(evidence)
    given = [answers[stage, sample] for sample, stage in enumerate(stages)]
    predictions = [float(logits[0]) if len(logits) == 1 else int(logits.argmax()) for logits in given]
    layers = np.mean([evidence.layers[stage] for stage in stages])
    flops = np.mean([float(evidence.cost["flops"][stage, sample]) for sample, stage in enumerate(stages)])
    return {
        "score": metric(np.array(predictions), evidence.labels.numpy()),
        "layers": layers,
        "layer_speedup": evidence.reference_layers / layers,
        "flops": flops,
        "flops_speedup": float(evidence.reference["flops"].mean()) / flops,
        **{f"leave_{stage + 1}": stages.count(stage) / len(stages) for stage in range(evidence.stages)},
    }


def uneven(evidence: Evidence) -> Evidence:
    """The same answers from stages on layers 2, 3, 5, .., and samples of different cost."""
    layers = tuple(2 * stage + 2 - stage % 2 for stage in range(evidence.stages))
    lengths = torch.arange(1, evidence.samples + 1, dtype=torch.float64)
    run = torch.tensor(layers, dtype=torch.float64)[:, None].expand(evidence.stages, evidence.samples)
    cost = {"layers": run, "flops": run * lengths**2 + 3}
    reference = {"layers": torch.full_like(lengths, 12), "flops": 12 * lengths**2 + 1}
    return replace(evidence, layers=layers, cost=cost, reference=reference)


@pytest.mark.parametrize("name", every_rule())
def test_a_sweep_equals_a_loop_over_samples_and_thresholds(name: str) -> None:
    evidence, rule = uneven(random_evidence(3, 5, 12, 3, step=0.5)), every_rule()[name]
    curve = sweep(evidence, rule, accuracy)
    assert len(curve) >= 1
    for row in curve.to_dict("records"):
        threshold = row.pop("threshold")
        assert row == pytest.approx(point_one_by_one(evidence, rule, accuracy, threshold)), threshold


@pytest.mark.parametrize("name", regression_rules())
def test_a_sweep_of_a_regression_equals_a_loop(name: str) -> None:
    evidence, rule = uneven(random_evidence(4, 5, 12, 1, step=0.2)), regression_rules()[name]
    for row in sweep(evidence, rule, negative_error).to_dict("records"):
        threshold = row.pop("threshold")
        wanted = point_one_by_one(evidence, rule, negative_error, threshold)
        assert row == pytest.approx(wanted, abs=1e-6), threshold


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    stages=st.integers(1, 6),
    samples=st.integers(1, 9),
    classes=st.integers(2, 4),
    scale=st.sampled_from([1.0, 1e4]),
    name=st.sampled_from(sorted(every_rule())),
)
def test_the_curve_is_monotone_in_the_threshold_and_never_ends_it_at_the_last_stage(
    seed: int, stages: int, samples: int, classes: int, scale: float, name: str
) -> None:
    evidence, rule = random_evidence(seed, stages, samples, classes, scale, step=0.25), every_rule()[name]
    curve = sweep(evidence, rule, accuracy)
    assert curve.layers.is_monotonic_increasing
    by_threshold = curve.sort_values("threshold")
    assert by_threshold.layers.is_monotonic_increasing
    assert by_threshold.flops.is_monotonic_increasing
    never = curve[curve.threshold == rules.NEVER].iloc[0]
    last = rule.answers(evidence)[-1].argmax(dim=-1)
    assert never.layers == stages
    assert never[f"leave_{stages}"] == 1
    assert never.score == accuracy(last.numpy(), evidence.labels.numpy())


@pytest.mark.parametrize("name", EARLIEST)
def test_the_loosest_threshold_gives_the_earliest_stage_at_which_the_rule_can_leave(name: str) -> None:
    evidence, rule = random_evidence(5, 6, 200, 2), every_rule()[name]
    loosest = max(rule.low, -1e300)
    assert decide(evidence, rule, loosest).stages.min() + 1 == EARLIEST[name]
    if name not in {"patience", "policy", "random"}:
        assert decide(evidence, rule, loosest).stages.max() + 1 == EARLIEST[name]
    assert sweep(evidence, rule, accuracy)["leave_" + str(EARLIEST[name])].max() > 0


def test_turning_points_are_found_whatever_their_number_and_points_limits_them() -> None:
    evidence = random_evidence(6, 4, 300, 2)
    whole = sweep(evidence, rules.entropy(), accuracy, points=10**6)
    few = sweep(evidence, rules.entropy(), accuracy, points=11)
    assert len(whole) > 300
    assert 5 <= len(few) <= 12
    assert few.layers.min() < 1.6
    assert few.layers.max() == 4
    # Every exit that any threshold can bring about is on the curve of all turning points.
    for threshold in np.linspace(0, 1, 57):
        layers = at_threshold(evidence, rules.entropy(), accuracy, float(threshold))["layers"]
        assert np.isclose(whole.layers, layers).any()


def test_given_thresholds_are_the_ones_on_the_curve_cheapest_first() -> None:
    evidence = random_evidence(7, 5, 50, 2)
    curve = sweep(evidence, rules.patience(), accuracy, [4, 1, rules.NEVER, 2])
    assert set(curve.threshold) == {1, 2, 4, rules.NEVER}
    assert curve.layers.is_monotonic_increasing
    assert list(curve)[:6] == ["threshold", "score", "layers", "layer_speedup", "flops", "flops_speedup"]
    assert curve.filter(like="leave_").sum(axis=1).tolist() == pytest.approx([1.0] * 4)


def test_a_sweep_refuses_what_it_cannot_do() -> None:
    evidence = random_evidence(8, 3, 5, 2)
    with pytest.raises(InputError, match="needs labels"):
        sweep(replace(evidence, labels=None), rules.entropy(), accuracy)
    with pytest.raises(InputError, match="outside the range"):
        sweep(evidence, rules.entropy(), accuracy, [0.5, 2.0])
    with pytest.raises(InputError, match="at least one threshold"):
        sweep(evidence, rules.entropy(), accuracy, [])
    with pytest.raises(InputError, match="regression"):
        sweep(random_evidence(8, 3, 5, 1), rules.entropy(), negative_error)


def test_fixed_exits_score_each_stage_on_its_own() -> None:
    evidence = uneven(random_evidence(9, 4, 30, 3))
    exits = fixed_exits(evidence, accuracy)
    assert exits.stage.tolist() == [1, 2, 3, 4]
    assert exits.layers.tolist() == list(evidence.layers)
    assert exits.flops.tolist() == pytest.approx(evidence.cost["flops"].mean(dim=1).tolist())
    wanted = [accuracy(row.numpy(), evidence.labels.numpy()) for row in evidence.predictions]
    assert exits.score.tolist() == pytest.approx(wanted)


def test_layers_and_flops_are_never_confused() -> None:
    # Four layers cost 100 together, but the heads make the first two stages dear.
    evidence = make_evidence(torch.zeros(2, 1, 2), [0], layers=(1, 4), cost=torch.tensor([[60.0], [110.0]]))
    evidence = replace(evidence, reference={**evidence.reference, "flops": torch.tensor([100.0])})
    first = fixed_exits(evidence, accuracy).iloc[0]
    assert (first.layers, first.layer_speedup) == (1, 4)
    assert (first.flops, first.flops_speedup) == (60, pytest.approx(100 / 60))


def hand_made() -> pd.DataFrame:
    """0.6 at cost 1/4 (4x), 0.8 at cost 1/2 (2x), 0.9 at cost 1; in FLOPs a little dearer."""
    return pd.DataFrame(
        {
            "threshold": [0.1, 0.5, math.inf],
            "score": [0.6, 0.8, 0.9],
            "layer_speedup": [4.0, 2.0, 1.0],
            "flops_speedup": [3.0, 1.6, 0.9],
        }
    )


def test_scores_between_two_points_are_on_a_line_in_cost_not_in_speedup() -> None:
    curve = hand_made()
    assert score_at(curve, 4, axis="layers") == pytest.approx(0.6)
    assert score_at(curve, 1, axis="layers") == pytest.approx(0.9)
    # 3x costs 1/3: a third of the way from 1/4 to 1/2. On a line in speed-up it would be 0.7.
    assert score_at(curve, 3, axis="layers") == pytest.approx(0.6 + 0.2 / 3)
    assert score_at(curve, 1.6, axis="layers") == pytest.approx(0.825)
    assert score_at(curve, 3) == pytest.approx(0.6)
    # The point of 0.9x costs 1/0.9; 1x is on the line from 1/1.6 to there.
    assert score_at(curve, 1) == pytest.approx(0.8 + 0.1 * (1 - 1 / 1.6) / (1 / 0.9 - 1 / 1.6))
    assert score_at(curve.sample(frac=1, random_state=0), 2) == score_at(curve, 2)


def test_a_speedup_that_the_curve_does_not_reach_is_nan_not_a_guess() -> None:
    curve = hand_made()
    assert math.isnan(score_at(curve, 4.1, axis="layers"))
    assert math.isnan(score_at(curve, 0.9, axis="layers"))
    assert math.isnan(score_at(curve, 3.1))


def test_points_of_the_same_cost_count_by_their_mean() -> None:
    curve = pd.concat([hand_made(), pd.DataFrame({"score": [0.7], "layer_speedup": [2.0], "flops_speedup": [1.6]})])
    assert score_at(curve, 2, axis="layers") == pytest.approx(0.75)
    assert score_at(curve, 1.6) == pytest.approx(0.75)


def test_the_area_is_the_mean_height_by_hand() -> None:
    curve = hand_made()
    assert area(curve, axis="layers") == pytest.approx(0.85)
    # From 1/4 to 1: a quarter at a mean height of 0.7, a half at 0.85, over three quarters.
    assert area(curve, low=1 / 4, axis="layers") == pytest.approx((0.25 * 0.7 + 0.5 * 0.85) / 0.75)
    assert math.isnan(area(curve, low=1 / 5, axis="layers"))
    assert area(curve.iloc[:2], axis="layers") == pytest.approx(0.8)
    # Without the point at a half, half-way along the line from 1/4 to 1 is inside it: 0.6 + 0.3 / 3 = 0.7 there.
    assert area(curve.iloc[[0, 2]], axis="layers") == pytest.approx((0.7 + 0.9) / 2)
    # In FLOPs from 1/3 to 1/1.6 alone: half-way between 0.6 and 0.8.
    assert area(curve, low=1 / 3, high=1 / 1.6) == pytest.approx(0.7)


def easy_first() -> Evidence:
    """Ten samples of label 1, right from stage 2 on and surer the smaller their number; at stage 1 samples 0 and 1 are
    sure and wrong."""
    gaps = torch.linspace(5.0, 0.5, 10)
    first = torch.where(torch.arange(10) < 2, -gaps, gaps / 100)
    logits = torch.stack([torch.stack([torch.zeros(10), row], dim=-1) for row in (first, gaps, gaps + 1)])
    return make_evidence(logits, [1] * 10, layers=(1, 2, 4))


def test_the_threshold_for_a_speedup_is_the_nearest_in_cost_and_needs_no_labels() -> None:
    evidence = easy_first()
    unlabelled = replace(evidence, labels=None)
    for speedup in (1.0, 1.2, 1.5, 2.0, 4.0):
        chosen = threshold_for_speedup(unlabelled, rules.confidence(), speedup, axis="layers")
        curve = sweep(evidence, rules.confidence(), accuracy)
        nearest = (1 / curve.layer_speedup - 1 / speedup).abs().min()
        reached = at_threshold(evidence, rules.confidence(), accuracy, chosen)["layer_speedup"]
        assert abs(1 / reached - 1 / speedup) == pytest.approx(nearest)
    assert threshold_for_speedup(evidence, rules.confidence(), 1.0, axis="layers") == rules.NEVER
    flops = threshold_for_speedup(evidence, rules.confidence(), 2.0)
    assert at_threshold(evidence, rules.confidence(), accuracy, flops)["flops_speedup"] == pytest.approx(2.0, rel=0.1)
    with pytest.raises(InputError, match="1 or more"):
        threshold_for_speedup(evidence, rules.confidence(), 0.5)


def test_the_threshold_for_a_tolerated_loss_is_the_fastest_that_keeps_it() -> None:
    evidence = easy_first()
    # 0 tolerated: samples 0 and 1 must pass stage 1, so stage 1 may let nobody go who is as sure as they are wrong.
    none = threshold_for_loss(evidence, rules.entropy(), accuracy, 0.0)
    point = at_threshold(evidence, rules.entropy(), accuracy, none)
    assert point["score"] == 1
    # 0.2 tolerated: the two wrong ones may leave first, and then everybody may.
    some = threshold_for_loss(evidence, rules.entropy(), accuracy, 0.2)
    assert at_threshold(evidence, rules.entropy(), accuracy, some)["layers"] == 1
    for tolerance in (0.0, 0.1, 0.2):
        chosen = threshold_for_loss(evidence, rules.entropy(), accuracy, tolerance)
        curve = sweep(evidence, rules.entropy(), accuracy)
        fastest = curve[curve.score >= 1 - tolerance - 1e-9].layers.min()
        assert at_threshold(evidence, rules.entropy(), accuracy, chosen)["layers"] == fastest
    with pytest.raises(InputError, match="0 or more"):
        threshold_for_loss(evidence, rules.entropy(), accuracy, -0.1)


@pytest.mark.parametrize(
    ("read", "arguments"),
    [
        (score_at, (hand_made(), 2.0)),
        (area, (hand_made(),)),
        (at_speedup, (easy_first(), rules.entropy(), 2.0)),
        (can_reach, (easy_first(), rules.entropy(), 2.0)),
        (threshold_for_speedup, (easy_first(), rules.entropy(), 2.0)),
        (threshold_for_loss, (easy_first(), rules.entropy(), accuracy, 0.1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unknown_axis_is_refused_with_the_valid_ones(read: Callable, arguments: tuple) -> None:
    with pytest.raises(InputError, match="unknown axis 'seconds'; choose one of: flops, layers"):
        read(*arguments, axis="seconds")


@given(layers=st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_expected_saving_and_speedup_are_two_names_of_one_thing(layers: list[int]) -> None:
    # DeeBERT prints 1 - a / L, PABEE and later papers L / a: a saving of 50% is 2x, of 75% is 4x.
    evidence = make_evidence(torch.zeros(12, len(layers), 2), [0] * len(layers))
    reached = torch.zeros(12, len(layers), dtype=torch.float64)
    reached[torch.tensor(layers) - 1, torch.arange(len(layers))] = 1
    given_exits = rules.Rule("given", lambda evidence: reached)
    point = at_threshold(evidence, given_exits, accuracy, 1.0)
    saving = 1 - np.mean(layers) / 12
    assert 1 - 1 / point["layer_speedup"] == pytest.approx(saving)
    assert point["layers"] == pytest.approx(np.mean(layers))


@given(
    seed=st.integers(0, 1000),
    speedup=st.sampled_from([1.0, 1.2, 1.5, 2.0, 2.7]),
    axis=st.sampled_from(["layers", "flops"]),
)
@pytest.mark.parametrize("rule", [rules.entropy(), rules.patience(), rules.fixed()], ids=lambda rule: rule.name)
def test_a_reading_has_the_score_of_the_curve_at_exactly_that_speedup(
    rule: rules.Rule, seed: int, speedup: float, axis: str
) -> None:
    evidence = random_evidence(seed, 4, 23, 2)
    score = score_at(sweep(evidence, rule, accuracy), speedup, axis)
    if not can_reach(evidence, rule, speedup, axis):
        assert math.isnan(score)
        with pytest.raises(InputError, match=r"reaches .* speed-ups from"):
            at_speedup(evidence, rule, speedup, axis)
    else:
        reading = at_speedup(evidence, rule, speedup, axis)
        assert 0 <= reading.share <= 1
        assert reading.score(accuracy, evidence.labels.numpy()) == pytest.approx(score, abs=1e-9)


def test_fixed_exits_read_between_two_layers_mix_both() -> None:
    evidence = make_evidence([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]], [[0, 1], [0, 1]], [[0, 1], [0, 1]]], [1, 1])
    # 1.5 layers of 4: half the samples leave at the first stage, which is always wrong, half at the second.
    reading = at_speedup(evidence, rules.fixed(), 4 / 1.5, axis="layers")
    assert reading.share == pytest.approx(0.5)
    assert reading.score(accuracy, evidence.labels.numpy()) == pytest.approx(0.5)


def test_a_mix_is_scored_as_if_each_sample_drew_its_side() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 3000)
    always, good = np.zeros_like(labels), np.where(generator.random(3000) < 0.8, labels, 1 - labels)

    def correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
        return 0.0 if len(set(predictions)) == 1 else float(np.corrcoef(predictions, labels)[0, 1])

    def drawn(metric: Callable, share: float) -> float:
        sides = (np.where(generator.random(3000) < share, always, good) for _ in range(300))
        return float(np.mean([metric(side, labels) for side in sides]))

    correlation.averages = False
    for share in (0.3, 0.5):
        mix = Reading(share, (torch.from_numpy(always), torch.from_numpy(good)))
        assert mix.score(correlation, labels) == pytest.approx(drawn(correlation, share), abs=0.003)
        assert mix.score(accuracy, labels) == pytest.approx(drawn(accuracy, share), abs=0.003)
        # What the mean of the two scores would say is another number for the one and the same for the other.
        assert abs(mix.score(correlation, labels) - (1 - share) * correlation(good, labels)) > 0.01
    halves = Reading(0.37, (torch.from_numpy(good), torch.from_numpy(good)))
    assert halves.score(correlation, labels) == pytest.approx(correlation(good, labels), abs=1e-9)


def test_where_tokens_stop_on_their_own_the_layer_speedup_is_that_of_each_sample() -> None:
    evidence = make_evidence([[[0.0, 1.0], [0.0, 1.0]]], [1, 1], layers=(4,))
    early = replace(evidence, cost={**evidence.cost, "layers": torch.tensor([[1.0, 3.0]])})
    assert fixed_exits(early, accuracy).layer_speedup.tolist() == [2.0]


def test_where_readiness_is_no_number_nobody_is_ready() -> None:
    evidence = random_evidence(3, 4, 40, 2)
    lost = rules.Rule("lost", lambda e: torch.where(e.ids % 2 == 0, e.confidence, torch.nan), reads=1)
    for threshold in (0.6, rules.NEVER):
        stages = decide(evidence, lost, threshold).stages
        assert (stages[evidence.ids % 2 == 1] == 3).all()
        assert torch.equal(
            stages[evidence.ids % 2 == 0],
            decide(evidence, rules.confidence(), threshold).stages[evidence.ids % 2 == 0],
        )


CONTINUOUS = [name for name, rule in every_rule().items() if not rule.discrete]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_no_threshold_stands_on_a_sample_s_readiness_where_its_last_digit_would_decide(name: str) -> None:
    evidence, rule = random_evidence(11, 5, 40, 3), every_rule()[name]
    readiness = rule.readiness(evidence)[:-1].double()
    thresholds = torch.tensor(sweep(evidence, rule, accuracy, points=10**6).threshold)
    finite = thresholds[thresholds.isfinite()]
    assert len(finite) >= 1
    # On the end of the rule's own range there is nothing below to go halfway to.
    assert not torch.isin(finite, readiness[readiness > rule.low]).any()
    # The loosest lets everybody go whom any threshold above the end of the range would.
    ever = (readiness > rule.low) & readiness.isfinite()
    for batch_noise in (1e-12, -1e-12):
        loosest = replace(rule, readiness=lambda _, noise=batch_noise: torch.cat([readiness + noise, readiness[:1]]))
        stages = decide(evidence, loosest, finite.min().item()).stages
        first = torch.cat([ever, torch.ones_like(ever[:1])]).long().argmax(dim=0)
        assert torch.equal(stages[first == 0], first[first == 0])


def test_one_threshold_alone_is_an_evidence_of_one_stage() -> None:
    evidence, rule = uneven(random_evidence(12, 4, 30, 3)), rules.entropy()
    threshold = float(sweep(evidence, rule, accuracy).threshold.iloc[20])
    alone, point = settled(evidence, rule, threshold), at_threshold(evidence, rule, accuracy, threshold)
    stages = leave_one_by_one(evidence, rule, threshold)
    assert alone.stages == 1
    assert alone.predictions[0].tolist() == [evidence.predictions[stage, n].item() for n, stage in enumerate(stages)]
    assert alone.cost["flops"][0].tolist() == [evidence.cost["flops"][stage, n] for n, stage in enumerate(stages)]
    assert alone.layers == (round(np.mean([evidence.layers[stage] for stage in stages])),)
    [row] = fixed_exits(alone, accuracy).itertuples()
    assert (row.score, row.layers, row.flops) == pytest.approx((point["score"], point["layers"], point["flops"]))
    # As good as its answers under a rule that votes, which no stage may have given.
    voted = settled(evidence, rules.vote(), 2)
    assert voted.predictions[0].tolist() == decide(evidence, rules.vote(), 2).predictions.tolist()


def of_checkpoints(seed: int, number: int, stages: int = 4, samples: int = 30) -> list[Evidence]:
    """Checkpoints of different costs on the same labelled samples."""
    first, *others = (random_evidence(seed + one, stages, samples, 2) for one in range(number))
    generator = torch.Generator().manual_seed(seed)
    whole = [first, *(replace(other, ids=first.ids, labels=first.labels) for other in others)]
    lengths = torch.rand(number, 1, samples, generator=generator, dtype=torch.float64) + 0.5
    costs = torch.rand(number, stages, 1, generator=generator, dtype=torch.float64).sort(dim=1).values * 60
    return [
        replace(one, cost={**one.cost, "flops": cost * length})
        for one, cost, length in zip(whole, costs, lengths, strict=True)
    ]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), number=st.integers(1, 3), speedup=st.sampled_from([1.0, 1.3, 2.0, 3.0, 6.0]))
def test_the_blind_policy_is_the_best_mixture_that_a_linear_programme_finds(
    seed: int, number: int, speedup: float
) -> None:
    checkpoints = of_checkpoints(seed, number)
    labels = checkpoints[0].labels.numpy()
    scores = [accuracy(answers.numpy(), labels) for one in checkpoints for answers in one.predictions]
    costs = [
        float(cost.mean() / one.reference["flops"].mean()) for one in checkpoints for cost in one.cost["flops"].double()
    ]
    # Chosen and read on the same samples: what is read is what dev promises.
    reading = blind_policy([(one, one) for one in checkpoints], speedup, accuracy)
    if min(costs) > 1 / speedup + 1e-9:
        assert reading is None
        return
    ones = np.ones((1, len(costs)))
    best = linprog(-np.array(scores), A_ub=[costs], b_ub=[1 / speedup + 1e-12], A_eq=ones, b_eq=[1])
    assert reading.score(accuracy, labels) == pytest.approx(-best.fun, abs=1e-7)
    assert 0 <= reading.share <= 1


def test_a_blind_policy_is_chosen_on_dev_and_read_elsewhere() -> None:
    # Three stages, of costs 11, 22 and 33 over 31: dev has the second best, test the third.
    def right(*counts: int) -> Evidence:
        hit = torch.stack([(torch.arange(10) < count).float() for count in counts])
        return make_evidence(torch.stack([1 - hit, hit], dim=-1), [1] * 10)

    dev, test = right(2, 9, 5), right(3, 4, 10)
    labels = test.labels.numpy()
    for speedup in (31 / 22, 1.0, 0.5):
        reading = blind_policy([(dev, test)], speedup, accuracy)
        assert reading.score(accuracy, labels) == pytest.approx(0.4), speedup
        # The labels of test have no say, only their place at the end.
        other = blind_policy([(dev, replace(test, labels=1 - test.labels))], speedup, accuracy)
        assert other.share == reading.share
        assert all(map(torch.equal, other.predictions, reading.predictions))
    # Halfway between the first two in cost, half of the samples through each.
    reading = blind_policy([(dev, test)], 31 / 16.5, accuracy)
    assert reading.share == pytest.approx(0.5)
    assert reading.score(accuracy, labels) == pytest.approx((0.3 + 0.4) / 2)
    assert blind_policy([(dev, test)], 31 / 11 + 0.01, accuracy) is None
    # By layers the first stage is 3x.
    assert blind_policy([(dev, test)], 3.0, accuracy, "layers").score(accuracy, labels) == pytest.approx(0.3)


def test_of_stages_that_cost_the_same_dev_chooses_at_exactly_that_cost_too() -> None:
    # 11 of 91: one over one over it is a digit less than itself.
    answers = torch.tensor([[[0.0, 1.0]] * 4, [[0.0, 1.0]] * 4])
    wrong = make_evidence(answers, [0] * 4, reference_layers=9)
    right = make_evidence(1 - answers, [0] * 4, reference_layers=9)
    assert 1 / (1 / (11 / 91)) < 11 / 91
    for order in ([wrong, right], [right, wrong]):
        reading = blind_policy([(one, one) for one in order], 1 / (11 / 91), accuracy)
        assert reading.score(accuracy, np.zeros(4, dtype=int)) == 1


def test_the_curve_of_blind_policies_runs_from_the_cheapest_stage_to_the_plain_model_s_cost_and_never_falls() -> None:
    checkpoints = of_checkpoints(3, 2, samples=200)
    curve = blind_curve([(one, one) for one in checkpoints], accuracy, points=9)
    cheapest = min(float(one.cost["flops"][0].mean() / one.reference["flops"].mean()) for one in checkpoints)
    assert len(curve) == 9
    assert (1 / curve.flops_speedup).tolist() == pytest.approx(np.linspace(cheapest, 1, 9).tolist())
    assert curve.score.is_monotonic_increasing
    for row in curve.itertuples():
        reading = blind_policy([(one, one) for one in checkpoints], row.flops_speedup, accuracy)
        assert row.score == reading.score(accuracy, checkpoints[0].labels.numpy())
    by_layers = blind_curve([(checkpoints[0], checkpoints[0])], accuracy, "layers")
    assert by_layers.layer_speedup.iloc[[0, -1]].tolist() == pytest.approx([4, 1])


def test_a_blind_policy_needs_a_checkpoint_and_labels_of_dev() -> None:
    one = random_evidence(0, 2, 5, 2)
    for checkpoints in ([], [(one, one), (replace(one, labels=None), one)]):
        with pytest.raises(InputError, match="chosen on dev"):
            blind_policy(checkpoints, 1.0, accuracy)
