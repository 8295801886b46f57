"""Verdicts follow from intervals, and the ledger is checked."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eeutils.errors import InputError
from eeutils.exiting import claims
from eeutils.exiting.intervals import Interval

ENTRY = """
[[claim]]
id = "X1"
paper = "deebert"
text = "it helps"
source = "[P]"
test = "score at 2x minus the fixed exit"
bar = 0.0
"""


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put another ledger in the place of the repository's."""
    monkeypatch.setattr(claims, "repository_root", lambda: tmp_path)

    def write(text: str) -> None:
        claims.ledger.cache_clear()
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "claims.toml").write_text(text)

    write(ENTRY)
    yield write
    claims.ledger.cache_clear()


ABOVE, BELOW, ACROSS = Interval(0.2, 0.1, 0.3), Interval(-0.2, -0.3, -0.1), Interval(0.0, -0.1, 0.1)
NIL = Interval(-0.001, -0.004, 0.005)
"""Within half a point of 0, the usual margin."""


@pytest.mark.parametrize(
    ("intervals", "outcome"),
    [
        (ABOVE, "reproduced"),
        (BELOW, "not reproduced"),
        (ACROSS, "undecided"),
        (NIL, "no difference"),
        (Interval(-0.001, -0.006, 0.004), "undecided"),
        # What clears the bar is reproduced, however small; what does not is not, unless it is next to nothing.
        (Interval(0.002, 0.0, 0.004), "reproduced"),
        (Interval(-0.003, -0.004, -0.001), "no difference"),
        (Interval(0.1, 0.0, 0.2), "reproduced"),
        (Interval(-0.1, -0.2, 0.0), "undecided"),
        ([ABOVE, ABOVE], "reproduced"),
        ([BELOW, BELOW], "not reproduced"),
        ([NIL, NIL], "no difference"),
        ([ABOVE, BELOW], "mixed"),
        ([ABOVE, NIL], "mixed"),
        ([ABOVE, BELOW, ACROSS], "mixed"),
        ([ABOVE, ACROSS], "undecided"),
        ([ACROSS, ACROSS], "undecided"),
        ([NIL, ACROSS], "undecided"),
        ([BELOW, NIL], "not reproduced"),
        # All of several must clear the bar: one that firmly does not is enough.
        ([BELOW, ACROSS], "not reproduced"),
    ],
)
def test_the_interval_decides(ledger: Callable, intervals: Interval | list[Interval], outcome: str) -> None:
    assert claims.judge("X1", intervals).outcome == outcome


def test_a_claim_names_its_own_margin_and_a_number_that_is_no_difference_has_none(ledger: Callable) -> None:
    within, beyond = Interval(-0.01, -0.019, -0.001), Interval(-0.02, -0.021, -0.019)
    ledger(ENTRY + "margin = 0.02\n")
    assert [claims.judge("X1", each).outcome for each in (within, beyond)] == ["no difference", "not reproduced"]
    ledger(ENTRY.replace("bar = 0.0", "bar = 0.9") + "margin = 0\n")
    assert claims.judge("X1", NIL).outcome == "not reproduced"


def test_what_could_hardly_have_failed_is_no_reproduction_but_can_fail(ledger: Callable) -> None:
    ledger(ENTRY + 'by_construction = "the rank says it"\n')
    held = claims.judge("X1", ABOVE, "one task")
    assert (held.outcome, held.note) == ("by construction", "one task; the rank says it")
    assert claims.judge("X1", BELOW).outcome == "not reproduced"
    assert claims.judge("X1", BELOW).note == ""


def with_units(estimate: float, half: float, units: int | None = 800) -> Interval:
    return Interval(estimate, estimate - half, estimate + half, units=units)


def test_an_undecided_claim_says_how_many_samples_would_tell(ledger: Callable) -> None:
    # Half a width of 0.02 on 800 samples is to shrink to the 0.01 between number and bar: four times as many.
    verdict = claims.judge("X1", with_units(0.01, 0.02), "on movie")
    assert verdict.outcome == "undecided"
    assert verdict.note == "on movie; about 3,200 test samples would tell, if the number stays as it is"
    # Of several the hardest: 800 * (0.03 / 0.005)^2 = 28,800, to two digits. What is decided asks for none.
    several = [with_units(0.01, 0.02), with_units(-0.005, 0.03), with_units(0.5, 0.1)]
    assert "about 29,000 test samples" in claims.judge("X1", several).note
    assert claims.judge("X1", ABOVE).note == ""


def test_the_nearer_of_bar_and_ceiling_is_what_samples_must_tell(ledger: Callable) -> None:
    ledger(ENTRY.replace("bar = 0.0", "bar = -0.1\nceiling = 0.05"))
    claim = claims.ledger()["X1"]
    # 0.02 from the ceiling and 0.13 from the bar, half a width of 0.06: nine times as many.
    assert "about 7,200 test samples" in claims.would_decide(claim, [with_units(0.03, 0.06)])


def test_no_number_of_samples_tells_what_lies_on_the_bar_and_none_is_said_of_unknown_units(ledger: Callable) -> None:
    claim = claims.ledger()["X1"]
    for estimate in (0.0, 1e-6):
        assert claims.would_decide(claim, [with_units(estimate, 0.02)]).startswith("our number lies on the bar")
    assert claims.would_decide(claim, [with_units(0.01, 0.02, units=None)]) == ""
    assert claims.judge("X1", ACROSS, "a note").note == "a note"


def test_every_verdict_word_is_explained_and_can_be_given(ledger: Callable) -> None:
    given = {claims.judge("X1", each).outcome for each in (ABOVE, BELOW, NIL, ACROSS, [ABOVE, BELOW])}
    given.add(claims.not_testable("X1", "no data").outcome)
    ledger(ENTRY + 'by_construction = "so it is"\n')
    given.add(claims.judge("X1", ABOVE).outcome)
    assert given == set(claims.VERDICTS)


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        (Interval(0.0, -9.0, 0.01), "reproduced"),
        (Interval(0.1, 0.05, 0.2), "not reproduced"),
        (Interval(0.02, 0.0, 0.05), "undecided"),
        (Interval(0.0, float("nan"), float("nan")), "not testable here"),
    ],
)
def test_a_ceiling_bounds_from_above(ledger: Callable, interval: Interval, outcome: str) -> None:
    ledger(ENTRY.replace("bar = 0.0", "bar = -inf\nceiling = 0.02"))
    assert claims.judge("X1", interval).outcome == outcome
    assert claims.table([claims.judge("X1", interval)]).bar.tolist() == ["<= 0.02"]


def test_a_verdict_shows_its_numbers_in_the_table(ledger: Callable) -> None:
    verdicts = [claims.judge("X1", [ABOVE, BELOW], note="two tasks"), claims.not_testable("X1", "no such data")]
    table = claims.table(verdicts)
    assert table.ours.tolist() == ["0.200 [0.100, 0.300]; -0.200 [-0.300, -0.100]", ""]
    assert table.verdict.tolist() == ["mixed", "not testable here"]
    assert table.note.tolist() == ["two tasks", "no such data"]
    assert table.paper.tolist() == ["not available"] * 2


def test_the_repository_s_ledger_keeps_what_is_recalled_apart_and_can_be_judged() -> None:
    for claim in claims.ledger().values():
        assert claim.source in ("[P]", "[R]", "[S]", "[A]", "[M]", "[O]"), claim.id
        assert claim.recalled == (claim.source == "[M]")
        # Who only recalls a claim has no number of the paper's.
        assert claim.paper_number == claims.NOT_AVAILABLE or not claim.recalled, claim.id
        assert claim.margin >= 0, claim.id
        assert math.isfinite(claim.bar) or math.isfinite(claim.ceiling), claim.id
        assert claim.bar < claim.ceiling, claim.id


def test_an_unknown_claim_and_a_verdict_on_nothing_are_refused(ledger: Callable) -> None:
    for judge in (lambda: claims.judge("X2", ABOVE), lambda: claims.not_testable("X2", "")):
        with pytest.raises(InputError, match="unknown claim 'X2'; choose one of: X1"):
            judge()
    with pytest.raises(InputError, match="X1 needs an interval"):
        claims.judge("X1", [])


@pytest.mark.parametrize(
    "text",
    [
        ENTRY.replace('test = "score at 2x minus the fixed exit"\n', ""),
        ENTRY + "colour = 3\n",
        ENTRY.replace("[[claim]]", "[[claims]]"),
        ENTRY.replace("bar = 0.0", "bar = "),
        ENTRY + ENTRY,
    ],
    ids=["missing field", "unknown field", "no claim", "not TOML", "twice the same id"],
)
def test_a_malformed_ledger_is_refused(ledger: Callable, text: str) -> None:
    ledger(text)
    with pytest.raises(InputError, match=r"claims\.toml"):
        claims.ledger()
