"""Verdicts follow from intervals, and the ledger is checked."""

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


@pytest.mark.parametrize(
    ("intervals", "outcome"),
    [
        (ABOVE, "reproduced"),
        (BELOW, "not reproduced"),
        (ACROSS, "partly"),
        (Interval(0.1, 0.0, 0.2), "reproduced"),
        (Interval(-0.1, -0.2, 0.0), "partly"),
        ([ABOVE, ABOVE], "reproduced"),
        ([BELOW, BELOW], "not reproduced"),
        ([ABOVE, BELOW], "partly"),
        ([ABOVE, ACROSS], "partly"),
        ([ACROSS, ACROSS], "partly"),
        ([BELOW, ACROSS], "not reproduced"),
    ],
)
def test_the_interval_decides(ledger: Callable, intervals: Interval | list[Interval], outcome: str) -> None:
    assert claims.judge("X1", intervals).outcome == outcome


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        (Interval(0.0, -9.0, 0.01), "reproduced"),
        (Interval(0.1, 0.05, 0.2), "not reproduced"),
        (Interval(0.02, 0.0, 0.05), "partly"),
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
    assert table.verdict.tolist() == ["partly", "not testable here"]
    assert table.note.tolist() == ["two tasks", "no such data"]
    assert table.paper.tolist() == ["not available"] * 2


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
