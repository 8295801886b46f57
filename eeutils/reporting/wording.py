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


def told(difference: Interval | None, what: str = "sentences") -> str:
    """A difference as the end of a sentence that begins "A minus B is": whether it can be told from 0, and on how
    much."""
    if difference is None:
        return "out of reach"
    if not (math.isfinite(difference.low) and math.isfinite(difference.high)):
        return "undefined here"
    if difference.low > 0 or difference.high < 0:
        return f"{_signed(difference)}, {'above' if difference.low > 0 else 'below'} 0"
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
