"""Bootstraps against scipy's, and against what an interval promises."""

import numpy as np
import pytest
import torch
from scipy import stats

from eeutils.errors import InputError
from eeutils.statistics import Interval, bootstrap, difference_interval, equal_cost_difference, score_interval
from eeutils.tradeoff import Reading
from tests.helpers import accuracy

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
    found = equal_cost_difference(accuracy, [ours], [theirs], labels)
    assert found.estimate == pytest.approx(0.25)
    # The share of even rows in 400 draws has a standard error of 0.025.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.025, rel=0.2)
    with pytest.raises(InputError, match="same seeds"):
        equal_cost_difference(accuracy, [ours, ours], [theirs], labels)
