"""Clauses on comparisons: no stronger than their intervals, and those with the same outcome together."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from eeutils.exiting import rules
from eeutils.exiting.comparisons import at_equal_cost
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval
from eeutils.reporting import phrases
from eeutils.reporting.wording import compared, difference, listed
from tests.helpers import accuracy, make_evidence

ABOVE, BELOW = Interval(0.02, 0.01, 0.03, units=1600), Interval(-0.02, -0.03, -0.01, units=1600)
ALIKE, LOST = Interval(0.001, -0.01, 0.012, units=1600), Interval(float("nan"), float("nan"), float("nan"))


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (ABOVE, "beats"),
        (BELOW, "loses to"),
        (ALIKE, "cannot be told from"),
        (Interval(0.01, 0.0, 0.02), "cannot be told from"),  # 0 is in it
        (None, "cannot be compared with"),
        (LOST, "cannot be compared with"),
    ],
)
def test_a_comparison_is_said_as_strongly_as_its_interval_allows(interval: Interval | None, words: str) -> None:
    assert compared(interval) == words


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        (ABOVE, "+0.020 [+0.010, +0.030]"),
        (ALIKE, "+0.001 [-0.010, +0.012], not told from 0"),
        (BELOW, "-0.020 [-0.030, -0.010]"),
        (None, "out of reach"),
        (LOST, "undefined here"),
    ],
)
def test_a_difference_has_its_interval_and_says_where_that_holds_zero(interval: Interval | None, told: str) -> None:
    assert difference(interval) == told


def test_words_are_listed_as_one_says_them() -> None:
    told = [listed(words) for words in ([], ["a"], ["a", "b"], ("a", "b", "c"))]
    assert told == ["none", "a", "a and b", "a, b and c"]


def test_places_with_the_same_outcome_stand_together_and_chance_has_its_number_of_samples() -> None:
    assert phrases.against("a coin", {"at 2x": ABOVE}) == "beats a coin at 2x (0.020 [0.010, 0.030])"
    gaps = {"at 1.5x": ALIKE, "at 2x": ABOVE, "at 3x": ALIKE, "at 4x": None}
    assert phrases.against("a coin", gaps) == (
        "cannot be told from a coin on 1,600 samples at 1.5x (0.001 [-0.010, 0.012]) and at 3x (0.001 [-0.010, "
        "0.012]), beats a coin at 2x (0.020 [0.010, 0.030]) and cannot be compared with a coin at 4x (out of reach)"
    )


def right_on(first: int, last: int) -> Evidence:
    """Two exits that are right on so many of forty samples; one costs half as much as the other."""
    right = torch.stack([(torch.arange(40) < count).float() for count in (first, last)])
    cost = torch.tensor([[10.5], [21.0]]).expand(2, 40)
    return make_evidence(torch.stack([1 - right, right], dim=-1), [1] * 40, cost=cost)


GOOD, BAD, DEEP = ((right_on(*counts), rules.fixed()) for counts in ((36, 38), (10, 12), (36, 38)))
DEEP = (DEEP[0].upto(1, reads=1), DEEP[1])


def test_gaps_are_read_at_equal_cost_and_against_the_policy_that_dev_prefers() -> None:
    gaps = phrases.gaps_at(GOOD, BAD, (1.0, 2.0, 4.0), accuracy)
    assert list(gaps) == ["at 1x", "at 2x", "at 4x"]
    assert gaps["at 2x"] == at_equal_cost(GOOD, BAD, 2.0, accuracy)
    assert gaps["at 2x"].estimate == pytest.approx(26 / 40)
    assert gaps["at 4x"] is None
    over = phrases.gaps_over_blind(GOOD, [(BAD[0], BAD[0])], (2.0, 4.0), accuracy)
    assert over["at 2x"].estimate == pytest.approx(26 / 40)
    assert over["at 4x"] is None


def test_where_a_curve_stands_among_its_rivals_leaves_out_who_is_not_that_fast() -> None:
    rivals = {"A": BAD, "B": GOOD, "C": BAD, "D": DEEP}
    assert phrases.standing(GOOD, rivals, (1.0, 2.0, 4.0), accuracy) == (
        "at 1x it beats A and C and cannot be told from B and D; at 2x it beats A and C and cannot be told from B; at "
        "4x it meets no rival"
    )


def test_what_the_study_searched_is_said_and_nothing_where_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phrases, "repository_root", lambda: tmp_path)
    assert phrases.searched("BADGE", "scale", "s") == ""
    rows = [
        ("BADGE", "scale", "1.0", 0.80, False),
        ("BADGE", "scale", "4.0", 0.82, True),
        ("HashEE", "b", "mass", 0.7, True),
    ]
    columns = ["method", "what", "value", "dev_area", "in_use"]
    (tmp_path / "data" / "results").mkdir(parents=True)
    table = pd.DataFrame(rows, columns=columns).assign(task="movie", seed=0)
    table.to_csv(tmp_path / "data" / "results" / "study-search.csv", index=False)
    told = phrases.searched("BADGE", "scale", "s")
    assert told.startswith("The study searched s on dev (movie, seed 0; ")
    assert "0.800 at 1, 0.820 at 4; in use is 4, highest is 4." in told
    assert phrases.searched("BADGE", "rank", "r") == ""
