"""Numbers in words, for the sentences that stand under figures: no sentence is stronger than its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eeutils.exiting.intervals import Interval


def difference(interval: Interval | None) -> str:
    """A difference with its interval, and that it is not told from 0 where the interval contains 0; None could not be
    read."""
    if unreadable := _unreadable(interval):
        return unreadable
    return _signed(interval) + ("" if better(interval) or worse(interval) else ", not told from 0")


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; "none" of nothing."""
    words = list(words)
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]])) or "none"


def compared(interval: Interval | None) -> str:
    """What a difference of scores says of two sides, as a verb: "beats", "loses to", or that it says nothing."""
    if _unreadable(interval):
        return "cannot be compared with"
    return "beats" if better(interval) else "loses to" if worse(interval) else "cannot be told from"


def told(difference: Interval | None, what: str = "sentences") -> str:
    """A difference as the end of a sentence that begins "A minus B is": whether it can be told from 0, and on how
    much."""
    if unreadable := _unreadable(difference):
        return unreadable
    if better(difference) or worse(difference):
        return f"{_signed(difference)}, {'above' if better(difference) else 'below'} 0"
    units = "" if difference.units is None else f" on {difference.units:,} {what}"
    return f"{_signed(difference)}, which cannot be told from 0{units}"


def better(difference: Interval | None) -> bool:
    """Whether a difference is above 0 by more than its interval."""
    return difference is not None and difference.low > 0


def worse(difference: Interval | None) -> bool:
    """Whether a difference is below 0 by more than its interval."""
    return difference is not None and difference.high < 0


def _signed(difference: Interval) -> str:
    return f"{difference.estimate:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _unreadable(difference: Interval | None) -> str:
    """Why a difference says nothing; empty where it has an interval."""
    if difference is None:
        return "out of reach"
    numbers = (difference.estimate, difference.low, difference.high)
    return "" if all(map(math.isfinite, numbers)) else "undefined here"
