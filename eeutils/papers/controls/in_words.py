"""Intervals in sentences that are no stronger than they."""

from __future__ import annotations

import math

from eeutils.exiting.intervals import Interval


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
