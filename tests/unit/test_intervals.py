"""Bootstraps against scipy's, and against what an interval promises."""

import numpy as np
import pytest
import torch
from scipy import stats

from eeutils.errors import InputError
from eeutils.exiting import rules
from eeutils.exiting.intervals import (
    Interval,
    area_difference,
    bootstrap,
    difference_interval,
    equal_cost_difference,
    score_interval,
    with_band,
)
from eeutils.exiting.tradeoff import Reading, area, sweep
from tests.helpers import accuracy, make_evidence, random_evidence

GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(2, size=400)


def right_with(probability: float, generator: np.random.Generator, labels: np.ndarray = LABELS) -> np.ndarray:
    """Predictions that are right with some probability each."""
    return np.where(generator.random(len(labels)) < probability, labels, 1 - labels)


def test_with_one_seed_it_is_the_percentile_bootstrap_of_scipy() -> None:
    predictions = right_with(0.8, GENERATOR)
    ours = score_interval(accuracy, [predictions], LABELS, resamples=4000)
    theirs = stats.bootstrap(
        (predictions, LABELS), accuracy, paired=True, vectorized=False, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    assert ours.estimate == accuracy(predictions, LABELS)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_several_seeds_widen_the_interval_when_they_differ() -> None:
    generator = np.random.default_rng(1)
    alike = [right_with(0.8, generator)] * 4
    unlike = [right_with(probability, generator) for probability in (0.6, 0.75, 0.85, 1.0)]
    narrow, wide = score_interval(accuracy, alike, LABELS), score_interval(accuracy, unlike, LABELS)
    assert narrow.estimate == pytest.approx(accuracy(alike[0], LABELS))
    assert wide.estimate == pytest.approx(np.mean([accuracy(one, LABELS) for one in unlike]))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_seeds_that_agree_exactly_leave_the_normal_interval_of_the_samples() -> None:
    predictions = right_with(0.8, np.random.default_rng(7))
    ours = score_interval(accuracy, [predictions] * 3, LABELS, resamples=2000)
    theirs = stats.bootstrap(
        (predictions == LABELS,), np.mean, vectorized=True, n_resamples=2000, rng=1, method="percentile"
    )
    half = stats.norm.ppf(0.975) * theirs.standard_error
    assert (ours.high - ours.estimate, ours.estimate - ours.low) == pytest.approx((half, half), rel=0.08)
    assert (ours.units, ours.seeds) == (400, 3)


def test_samples_that_do_not_matter_leave_student_s_interval_of_the_seeds() -> None:
    values = [0.61, 0.7, 0.75, 0.82]
    ours = bootstrap(lambda seed, rows: values[seed], 100, 4, resamples=50, level=0.9)
    theirs = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(theirs)


def drawn_seeds(values: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """The percentile bootstrap that draws seeds, too, with replacement: what the interval is not."""
    seeds, samples = values.shape
    means = [
        values[generator.integers(seeds, size=seeds)][:, generator.integers(samples, size=samples)].mean()
        for _ in range(200)
    ]
    return tuple(np.quantile(means, [0.025, 0.975]))


def test_with_few_seeds_the_interval_still_holds_the_truth_as_often_as_it_says() -> None:
    # Five seeds around a truth of 0, on samples that are easy or hard for all of them alike.
    generator, ours, naive, trials = np.random.default_rng(8), 0, 0, 300
    for _ in range(trials):
        values = generator.normal(0, 0.06, (5, 1)) + generator.normal(0, 0.1, 100) + generator.normal(0, 0.1, (5, 100))
        interval = bootstrap(lambda seed, rows, values=values: values[seed, rows].mean(), 100, 5, resamples=100)
        ours += interval.low <= 0 <= interval.high
        low, high = drawn_seeds(values, generator)
        naive += low <= 0 <= high
    assert ours / trials >= 0.92
    assert naive / trials < 0.9
    assert (ours - naive) / trials > 0.04


def test_a_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    generator = np.random.default_rng(2)
    theirs = right_with(0.8, generator)
    ours = np.where(generator.random(400) < 0.05, LABELS, theirs)
    paired = difference_interval(accuracy, [ours], [theirs], LABELS)
    assert paired.estimate == pytest.approx(accuracy(ours, LABELS) - accuracy(theirs, LABELS))
    one, two = score_interval(accuracy, [ours], LABELS), score_interval(accuracy, [theirs], LABELS, seed=1)
    unpaired = np.hypot(one.high - one.low, two.high - two.low)
    assert paired.high - paired.low < 0.5 * unpaired
    assert difference_interval(accuracy, [ours], [ours], LABELS).low == 0


def test_the_same_resamples_are_drawn_every_time() -> None:
    predictions = [right_with(0.7, GENERATOR) for _ in range(3)]
    assert score_interval(accuracy, predictions, LABELS) == score_interval(accuracy, predictions, LABELS)
    assert score_interval(accuracy, predictions, LABELS) != score_interval(accuracy, predictions, LABELS, seed=1)


def test_seeds_share_the_drawn_samples() -> None:
    seen: list[tuple[int, bytes]] = []

    def statistic(seed: int, rows: np.ndarray) -> float:
        seen.append((seed, rows.tobytes()))
        return 0.0

    bootstrap(statistic, 30, 4, resamples=20)
    drawn = seen[4:]
    assert len({rows for _, rows in drawn}) == 20
    assert len(drawn) > 20


GROUPS = np.array([7, 7, -1, 3, 3, 3, -1, 7, 20, 3])
"""Ten samples in four groups, of 3, 2, 4 and 1."""


def test_whole_groups_are_drawn_as_many_as_there_are() -> None:
    drawn: list[np.ndarray] = []

    def statistic(seed: int, rows: np.ndarray) -> float:
        drawn.append(rows)
        return 0.0

    bootstrap(statistic, 10, resamples=300, groups=GROUPS)
    assert drawn[0].tolist() == list(range(10))
    times = np.array([np.bincount(rows, minlength=10) for rows in drawn[1:]])
    by_group = {group: times[:, group == GROUPS] for group in np.unique(GROUPS)}
    for members in by_group.values():
        assert (members == members[:, :1]).all()
    # Four draws each time, every group drawn as often as the others: 300 on average, with a deviation of 15.
    assert (sum(members[:, 0] for members in by_group.values()) == 4).all()
    assert all(abs(members[:, 0].sum() - 300) < 60 for members in by_group.values())


@pytest.mark.parametrize("own", [np.arange(400), 3 * GENERATOR.permutation(400) - 7], ids=["in order", "shuffled"])
def test_with_each_sample_its_own_group_it_is_the_plain_bootstrap(own: np.ndarray) -> None:
    values = np.random.default_rng(4).normal(size=400) ** 2

    def statistic(seed: int, rows: np.ndarray) -> float:
        return float(values[rows].mean())

    plain, grouped = (bootstrap(statistic, 400, resamples=4000, groups=groups) for groups in (None, own))
    # The standard error of the mean is 0.07; the ends of 4000 draws differ by less than a tenth of it.
    assert (grouped.estimate, grouped.low, grouped.high) == pytest.approx(
        (plain.estimate, plain.low, plain.high), abs=0.01
    )


def test_samples_that_are_alike_within_their_group_count_once() -> None:
    # 40 groups of ten samples each, right or wrong as one: as sure as 40 samples, not as 400.
    groups, right = np.arange(400) // 10, np.repeat(np.random.default_rng(5).random(40) < 0.7, 10)
    labels = np.ones(400, dtype=int)
    clustered = score_interval(accuracy, [right.astype(int)], labels, resamples=2000, groups=groups)
    plain = score_interval(accuracy, [right.astype(int)], labels, resamples=2000)
    share = right.mean()
    assert clustered.high - clustered.low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 40), rel=0.1)
    assert clustered.high - clustered.low == pytest.approx(np.sqrt(10) * (plain.high - plain.low), rel=0.15)
    assert clustered.estimate == plain.estimate


def test_every_interval_takes_groups() -> None:
    generator = np.random.default_rng(6)
    groups = np.arange(400) // 10
    ours = np.where(np.repeat(generator.random(40) < 0.9, 10), LABELS, 1 - LABELS)
    theirs = np.where(np.repeat(generator.random(40) < 0.6, 10), LABELS, 1 - LABELS)
    readings = (Reading(0.5, (torch.tensor(side), torch.tensor(side))) for side in (ours, theirs))
    at_cost = equal_cost_difference(accuracy, *([each] for each in readings), LABELS, groups=groups)
    plain = difference_interval(accuracy, [ours], [theirs], LABELS, groups=groups)
    assert (at_cost.estimate, at_cost.low, at_cost.high) == pytest.approx((plain.estimate, plain.low, plain.high))
    alone = difference_interval(accuracy, [ours], [theirs], LABELS)
    assert plain.high - plain.low > 2 * (alone.high - alone.low)


def test_groups_of_other_samples_and_a_single_group_are_refused() -> None:
    with pytest.raises(InputError, match=r"over 11 samples needs as many group numbers; got shape \(10,\)"):
        bootstrap(lambda seed, rows: 0.0, 11, groups=GROUPS)
    with pytest.raises(InputError, match="needs 2 samples or groups of them"):
        bootstrap(lambda seed, rows: 0.0, 10, groups=np.zeros(10))


def test_a_statistic_that_is_undefined_on_some_draws_has_the_interval_of_the_others_and_on_all_none() -> None:
    values = np.arange(10.0)

    def statistic(seed: int, rows: np.ndarray) -> float:
        return float(values[rows].mean()) if 0 in rows else np.nan

    some = bootstrap(statistic, 10, resamples=500)
    assert some.low < some.estimate < some.high
    none = bootstrap(lambda seed, rows: np.nan, 10)
    assert np.isnan([none.estimate, none.low, none.high]).all()


def test_ninety_of_a_hundred_90_percent_intervals_hold_the_truth() -> None:
    generator, held = np.random.default_rng(3), 0
    for trial in range(200):
        labels = generator.integers(2, size=150)
        predictions = right_with(0.75, generator, labels)
        interval = score_interval(accuracy, [predictions], labels, resamples=200, level=0.9, seed=trial)
        held += interval.low <= 0.75 <= interval.high
    assert 0.83 <= held / 200 <= 0.96


def test_an_interval_prints_itself() -> None:
    assert str(Interval(0.81239, 0.8, 0.825)) == "0.812 [0.800, 0.825]"
    assert str(Interval(-0.0001, -0.0004, -0.0)) == "0.000 [0.000, 0.000]", "nothing is below nothing"


@pytest.mark.parametrize(
    "wrong",
    [{"samples": 1}, {"samples": 10, "seeds": 0}, {"samples": 10, "resamples": 0}, {"samples": 10, "level": 1.0}],
)
def test_nothing_to_resample_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="a bootstrap needs"):
        bootstrap(lambda seed, rows: 0.0, **wrong)


def test_a_paired_difference_needs_the_same_seeds() -> None:
    with pytest.raises(InputError, match="same seeds on both sides; got 2 and 1"):
        difference_interval(accuracy, [LABELS, LABELS], [LABELS], LABELS)


def test_an_equal_cost_difference_pairs_samples_and_mixes_both_thresholds() -> None:
    labels = np.ones(400)
    right, wrong = torch.ones(400), torch.zeros(400)
    half = torch.arange(400) % 2
    ours, theirs = Reading(0.25, (wrong, right)), Reading(1.0, (half, right))
    same = equal_cost_difference(accuracy, [ours], [ours], labels)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    difference = equal_cost_difference(accuracy, [ours], [theirs], labels)
    assert difference.estimate == pytest.approx(0.25)
    # The share of even rows in 400 draws has a standard error of 0.025.
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * 0.025, rel=0.2)
    with pytest.raises(InputError, match="same seeds"):
        equal_cost_difference(accuracy, [ours, ours], [theirs], labels)


def test_a_band_is_the_interval_of_each_point_of_the_curve() -> None:
    evidence = random_evidence(1, 4, 60, 2)
    curve = with_band(evidence, rules.entropy(), accuracy, points=6, resamples=100)
    plain = sweep(evidence, rules.entropy(), accuracy, points=6)
    assert curve.drop(columns=["low", "high"]).equals(plain)
    assert 4 <= len(curve) <= 7
    labels = evidence.labels.numpy()
    for row, stage in ((curve.iloc[-1], 3), (with_band(evidence, rules.fixed(), accuracy, resamples=100).iloc[1], 1)):
        alone = score_interval(accuracy, [evidence.predictions[stage].numpy()], labels, resamples=100)
        assert (row.score, row.low, row.high) == pytest.approx((alone.estimate, alone.low, alone.high))
    assert ((curve.low < curve.score) & (curve.score < curve.high)).all()


def test_the_difference_of_two_areas_by_hand_paired_over_samples() -> None:
    # Two stages, read by fixed exits: the area from the first one's cost to 1 is the mean of both scores.
    generator = np.random.default_rng(9)
    right = torch.tensor(generator.random((2, 2, 40)) < 0.6).float()
    cost = torch.tensor([[10.0], [20.0]]).expand(2, 40)
    ours, theirs = (
        make_evidence(torch.stack([1 - side, side], dim=-1), [1] * 40, cost=cost, reference_layers=2) for side in right
    )
    ours, theirs = ((side, rules.fixed()) for side in (ours, theirs))
    low = 10 / 21
    gap = area_difference(accuracy, ours, theirs, low, resamples=100)
    # Beyond the dearest point, at 20 of 21, a curve stays level.
    weights = (np.array([0.5, 0.5]) * (20 - 10) + np.array([0, 1]) * (21 - 20)) / (21 - 10)
    each = np.tensordot(weights, right[0].numpy() - right[1].numpy(), 1)
    alone = bootstrap(lambda _, rows: each[rows].mean(), 40, resamples=100)
    assert (gap.estimate, gap.low, gap.high) == pytest.approx((alone.estimate, alone.low, alone.high))
    curves = [area(sweep(*side, accuracy), low=low) for side in (ours, theirs)]
    assert gap.estimate == pytest.approx(curves[0] - curves[1])
    same = area_difference(accuracy, ours, ours, low, resamples=20)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
