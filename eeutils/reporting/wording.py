"""Numbers in words, for the sentences that stand under figures: no sentence is stronger than its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eeutils.exiting.intervals import Interval


def difference(interval: Interval | None) -> str:
    """A difference with its interval, and that it is not told from 0 where the interval contains 0; None could not be
    read."""
    if interval is None:
        return "out of reach"
    numbers = (interval.estimate, interval.low, interval.high)
    if not all(map(math.isfinite, numbers)):
        return "undefined here"
    estimate, low, high = (f"{number:+.3f}" for number in numbers)
    told = "" if interval.low > 0 or interval.high < 0 else ", not told from 0"
    return f"{estimate} [{low}, {high}]{told}"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; "none" of nothing."""
    words = list(words)
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]])) or "none"


def compared(interval: Interval | None) -> str:
    """What a difference of scores says of two sides, as a verb: "beats", "loses to", or that it says nothing."""
    if interval is None or not all(map(math.isfinite, (interval.low, interval.high))):
        return "cannot be compared with"
    return "beats" if interval.low > 0 else "loses to" if interval.high < 0 else "cannot be told from"
