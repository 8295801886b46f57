"""Weights of easy and of hard samples, worked out by hand."""

import pytest
import torch

from eeutils.exiting.intervals import Interval
from eeutils.papers.controls.learned_weights import Weighed, turned

HARD = torch.tensor([0.9, 0.1, 0.5, 0.4, 0.2, 0.3, 0.8, 0.7])


def test_quarters_are_those_of_the_mean_loss() -> None:
    weights = torch.stack([2 - HARD, HARD])
    table = Weighed(weights, HARD).by_quarter().set_index(["samples", "exit"]).weight
    # The easiest two have 0.1 and 0.2, the hardest 0.8 and 0.9, the other four 0.3 to 0.7.
    assert table["easiest quarter", 1] == pytest.approx(1.85)
    assert table["hardest quarter", 1] == pytest.approx(1.15)
    assert table["between", 2] == pytest.approx((0.3 + 0.4 + 0.5 + 0.7) / 4)


def test_whiskers_hold_the_middle_half() -> None:
    many = torch.linspace(0, 1, 101)
    table = Weighed(many[None], many).by_quarter().set_index("samples")
    assert (table.low < table.weight).all()
    assert (table.weight < table.high).all()
    between = table.loc["between"]
    assert between.high - between.low == pytest.approx(0.25, abs=0.02)


def test_what_rises_with_hardness_correlates_and_what_is_the_same_for_all_does_not() -> None:
    weights = torch.stack([-HARD.exp(), torch.ones(8), HARD.square()])
    found = Weighed(weights, HARD)
    assert found.rank_correlation(0, resamples=50).estimate == pytest.approx(-1)
    assert found.rank_correlation(-1, resamples=50).low == pytest.approx(1)
    assert found.rank_correlation(1, resamples=50).estimate == 0


def test_turned_is_the_interval_of_the_other_sign() -> None:
    assert turned(Interval(-0.2, -0.3, 0.1)) == Interval(0.2, -0.1, 0.3)


def test_first_over_last_is_about_the_easiest_quarter_alone() -> None:
    weights = torch.stack([2 - HARD, torch.zeros(8), HARD])
    # The easiest two, of 0.1 and 0.2: 1.9 - 0.1 and 1.8 - 0.2.
    assert Weighed(weights, HARD).first_over_last(resamples=50).estimate == pytest.approx(1.7)
