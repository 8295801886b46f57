"""Rows of the bench: a value and the target that it is held to, and memory in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Row:
    """One line of the table; `target` is "", or a comparison such as ">= 3.5" that `value` is held to."""

    what: str
    value: float
    unit: str
    note: str
    target: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if not self.target:
            return None
        comparison, bar = self.target.split()
        return self.value >= float(bar) if comparison == ">=" else self.value <= float(bar)


def row(what: str, ratios: Float[np.ndarray, " rounds"], target: str, note: str, unit: str = "x") -> Row:
    """The median of a ratio over the rounds, and in the note how far they lie apart."""
    apart = f"{ratios.min():.2f} to {ratios.max():.2f} over {len(ratios)} rounds"
    return Row(what, round(float(np.median(ratios)), 3), unit, f"{note}; {apart}", target)


def in_fresh_process(work: Callable[..., Any], *given: Any) -> Any:
    """What the work gives in a process that has done nothing else, but for its imports."""
    context = get_context("forkserver")
    # Not the module that was started: it is imported again under another name.
    context.set_forkserver_preload(["eeutils.training.runs"])
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        return pool.submit(work, *given).result()


def peak_resident_bytes() -> int:
    """Of this process so far."""
    import resource  # not on Windows

    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
