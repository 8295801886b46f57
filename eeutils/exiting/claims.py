"""Claims of the papers, and verdicts on them.

A claim is data (`data/claims.toml`): whose it is, what it says in our words, where we have it from, the paper's own
number if a source gives one, and the bar that our number must clear. A verdict is decided by the interval of our
number, not by eye.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from eeutils.errors import InputError, unknown
from eeutils.exiting.intervals import Interval
from eeutils.files import repository_root

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NO_DIFFERENCE = "no difference"
MIXED = "mixed"
UNDECIDED = "undecided"
BY_CONSTRUCTION = "by construction"
NOT_TESTABLE = "not testable here"
VERDICTS = {
    REPRODUCED: "the whole interval clears the bar",
    NOT_REPRODUCED: "no part of the interval clears the bar",
    NO_DIFFERENCE: "the interval lies within the claim's margin around 0",
    MIXED: "several operating points or tasks, and they firmly disagree",
    UNDECIDED: "the interval is too wide to tell",
    BY_CONSTRUCTION: "it holds, and could hardly have failed",
    NOT_TESTABLE: "the ground lacks what it needs, or the treatment did not take",
}
"""Every verdict, and when it is given."""

NOT_AVAILABLE = "not available"
RECALLED = "[M]"
"""The source of a claim that is recalled and unverified: a hypothesis, never called the paper's."""
OURS = "[O]"
"""The source of a control of our own."""


@dataclass(frozen=True)
class Claim:
    """One claim of one paper.

    Attributes:
        id: as in the ledger, such as "D1".
        paper: the method's name.
        text: the claim in our words.
        source: the key of its source: [P] paper, [R] authors' README, [S] another paper's table, [A] abstract, [M] as
            commonly recalled, not verified: a hypothesis, [O] a control of our own.
        paper_number: what the paper reports, or "not available".
        test: how we test it, in words: what is measured, against what.
        bar: what our number must be at least for the claim to hold.
        ceiling: what it must be at most; no limit unless the claim sets one.
        margin: our number is a difference, and within that much of 0 it is none; 0 where it is no difference.
        by_construction: why it could hardly have failed, for a claim that follows from what is built.
        guess: why it may not hold here, where no control shows it.
    """

    id: str
    paper: str
    text: str
    source: str
    test: str
    bar: float
    ceiling: float = math.inf
    margin: float = 0.005
    paper_number: str = NOT_AVAILABLE
    by_construction: str = ""
    guess: str = ""

    @property
    def recalled(self) -> bool:
        """Whether nobody has verified that the paper says so."""
        return self.source == RECALLED


@dataclass(frozen=True)
class Verdict:
    """A claim, our numbers, and what follows."""

    claim: Claim
    outcome: str
    ours: str
    note: str = ""


@lru_cache
def ledger() -> dict[str, Claim]:
    """All claims by id, from `data/claims.toml`.

    Raises:
        InputError: no TOML, no entry, an entry with a missing or an unknown field, or two with the same id.
    """
    path = repository_root() / "data" / "claims.toml"
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise InputError(f"{path.name} must hold [[claim]] entries and does not: {error}") from error
    try:
        claims = [Claim(**entry) for entry in entries]
    except TypeError as error:
        raise InputError(f"{path.name} has an entry whose fields are not those of a claim: {error}") from error
    by_id = {claim.id: claim for claim in claims}
    if len(by_id) < len(claims):
        raise InputError(f"{path.name} holds {len(claims)} claims under {len(by_id)} ids; give each an id of its own")
    return by_id


def judge(claim_id: str, intervals: Sequence[Interval] | Interval, note: str = "") -> Verdict:
    """Decide by the interval alone; `VERDICTS` says how.

    Of several intervals (tasks, operating points) all must clear the bar for "reproduced"; some that do and some that
    firmly do not are "mixed"; one that firmly does not, where none does, is "not reproduced". Otherwise one that cannot
    tell leaves the whole undecided, and the note then says how many samples would tell.

    Raises:
        InputError: an unknown claim, or no interval.
    """
    claim = _claim(claim_id)
    intervals = [intervals] if isinstance(intervals, Interval) else list(intervals)
    if not intervals:
        raise InputError(f"claim {claim_id} needs an interval to be judged by; use not_testable() if there is none")
    ours = "; ".join(map(str, intervals))
    if not all(math.isfinite(bound) for interval in intervals for bound in (interval.low, interval.high)):
        return Verdict(claim, NOT_TESTABLE, ours, "our number is undefined on this run")
    found = {_one(claim, interval) for interval in intervals}
    if REPRODUCED in found and found & {NOT_REPRODUCED, NO_DIFFERENCE}:
        outcome = MIXED
    elif UNDECIDED in found and NOT_REPRODUCED not in found:
        outcome = UNDECIDED
        note = "; ".join(filter(None, [note, would_decide(claim, intervals)]))
    elif NOT_REPRODUCED in found:
        outcome = NOT_REPRODUCED
    else:
        (outcome,) = found
    if outcome == REPRODUCED and claim.by_construction:
        outcome, note = BY_CONSTRUCTION, "; ".join(filter(None, [note, claim.by_construction]))
    return Verdict(claim, outcome, ours, note)


def _one(claim: Claim, interval: Interval) -> str:
    if claim.bar <= interval.low and interval.high <= claim.ceiling:
        return REPRODUCED
    if claim.margin and -claim.margin <= interval.low and interval.high <= claim.margin:
        return NO_DIFFERENCE
    return NOT_REPRODUCED if interval.high < claim.bar or interval.low > claim.ceiling else UNDECIDED


def would_decide(claim: Claim, intervals: Sequence[Interval]) -> str:
    """How many test samples would tell on which side of the bar our number is, if it stays as it is: an interval
    shrinks with the root of their number. Of several intervals the hardest; nothing where none knows its units."""
    wanted = []
    for interval in intervals:
        distance = min(abs(interval.estimate - bound) for bound in (claim.bar, claim.ceiling) if math.isfinite(bound))
        half = (interval.high - interval.low) / 2
        if _one(claim, interval) == UNDECIDED and interval.units:
            wanted.append(interval.units * (half / distance) ** 2 if distance else math.inf)
    if not wanted:
        return ""
    most = max(wanted)
    if most > 1e6:
        return "our number lies on the bar: no number of samples would tell"
    # Two digits: it is an order of magnitude.
    return f"about {float(f'{most:.1e}'):,.0f} test samples would tell, if the number stays as it is"


def not_testable(claim_id: str, why: str) -> Verdict:
    """The verdict on a claim that cannot be tested here, and why.

    Raises:
        InputError: an unknown claim.
    """
    return Verdict(_claim(claim_id), NOT_TESTABLE, "", why)


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The claims table of a notebook."""
    return pd.DataFrame(
        [
            {
                "claim": verdict.claim.id,
                "what it says": verdict.claim.text,
                "source": verdict.claim.source,
                "paper": verdict.claim.paper_number,
                "our test": verdict.claim.test,
                "bar": _range(verdict.claim),
                "ours": verdict.ours,
                "verdict": verdict.outcome,
                "note": verdict.note,
            }
            for verdict in verdicts
        ]
    )


def _claim(claim_id: str) -> Claim:
    claims = ledger()
    if claim_id not in claims:
        raise unknown("claim", claim_id, claims)
    return claims[claim_id]


def _range(claim: Claim) -> str:
    if math.isinf(claim.bar):
        return f"<= {claim.ceiling:g}"
    return f">= {claim.bar:g}" if math.isinf(claim.ceiling) else f"{claim.bar:g} to {claim.ceiling:g}"
