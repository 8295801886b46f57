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
PARTLY = "partly"
NOT_REPRODUCED = "not reproduced"
NOT_TESTABLE = "not testable here"
NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class Claim:
    """One claim of one paper.

    Attributes:
        id: as in the ledger, such as "D1".
        paper: the method's name.
        text: the claim in our words.
        source: the key of its source: [P] paper, [R] authors' README, [S] another paper's table, [A] abstract, [M] as
            commonly recalled, not verified: a hypothesis.
        paper_number: what the paper reports, or "not available".
        test: how we test it, in words: what is measured, against what.
        bar: what our number must be at least for the claim to hold.
        ceiling: what it must be at most; no limit unless the claim sets one.
        why: the likely reason where it does not hold here; true whatever the numbers are.
    """

    id: str
    paper: str
    text: str
    source: str
    test: str
    bar: float
    ceiling: float = math.inf
    paper_number: str = NOT_AVAILABLE
    why: str = ""


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
    """Decide by the interval: reproduced when all of it lies between bar and ceiling, not reproduced when none of it
    does, else partly.

    With several intervals (tasks, operating points) all of them must clear the bar for "reproduced"; when none
    clears it and at least one lies wholly below, the claim is not reproduced.

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
    clears = [claim.bar <= interval.low and interval.high <= claim.ceiling for interval in intervals]
    fails = [interval.high < claim.bar or interval.low > claim.ceiling for interval in intervals]
    outcome = REPRODUCED if all(clears) else NOT_REPRODUCED if any(fails) and not any(clears) else PARTLY
    return Verdict(claim, outcome, ours, note)


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
