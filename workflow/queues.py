"""One worker, requests that arrive when they please, and queues between the stages: who waits for whom, and how long.

A batch that loses texts on its way runs emptier and emptier. A queue between two stages lets those who stay wait for
others, so that the upper layers run full batches again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from eeutils.errors import InputError

LARGEST = 32
"""Texts in a batch at most."""
SATURATED = float("inf")
"""The load at which all requests are there from the start: what counts is how many are answered in a second."""


class Engine(Protocol):
    """Whatever runs stages: for real, or by the times that were measured."""

    stages: int

    def step(self, stage: int, requests: Sequence[int]) -> tuple[float, np.ndarray]:
        """Run one stage for some requests: the seconds that it took, and (B,) who leaves there; at the last, all."""
        ...


@dataclass(frozen=True)
class Way:
    """How batches are formed.

    Attributes:
        name: in tables.
        splits: stages (from 1) before which those who stay go into a queue of their own; none: a batch runs to its end.
        patience: seconds after which whoever waits between two stages is not left waiting for a full batch.
    """

    name: str
    splits: tuple[int, ...] = ()
    patience: float = 0.0


@dataclass(frozen=True)
class Served:
    """What was served: (N,) seconds from arrival to answer; seconds from the first arrival to the last answer; and the
    mean size of a batch over all stages that ran."""

    waits: np.ndarray
    seconds: float
    batch: float


def serve(engine: Engine, arrivals: np.ndarray, way: Way, largest: int = LARGEST) -> Served:
    """One worker serves requests 0 .. N-1 that arrive at `arrivals` (N,) seconds, ascending.

    The worker takes the deepest queue that fills a batch or whose first has waited for `way.patience`, else the
    shallowest that is not empty. Whoever leaves is answered at once.

    Raises:
        InputError: no request, arrivals that do not ascend, or a split where no stage follows.
    """
    if len(arrivals) == 0 or (np.diff(arrivals) < 0).any():
        raise InputError("arrivals are at least one, in ascending order")
    if not all(0 < split < engine.stages for split in way.splits):
        raise InputError(f"splits lie between stages, from 1 to {engine.stages - 1}; got {list(way.splits)}")
    begins = (0, *sorted(way.splits))
    queues: list[deque[tuple[int, float]]] = [deque() for _ in begins]
    now, coming, answered, sizes = 0.0, 0, np.full(len(arrivals), np.nan), []
    while coming < len(arrivals) or any(queues):
        if not any(queues):
            now = max(now, arrivals[coming])
        while coming < len(arrivals) and arrivals[coming] <= now:
            queues[0].append((coming, arrivals[coming]))
            coming += 1
        chosen = _next_queue(queues, now, way.patience, largest)
        requests = np.array([queues[chosen].popleft()[0] for _ in range(min(largest, len(queues[chosen])))])
        end = begins[chosen + 1] if chosen + 1 < len(begins) else engine.stages
        for stage in range(begins[chosen], end):
            seconds, leave = engine.step(stage, requests.tolist())
            now, sizes = now + seconds, [*sizes, len(requests)]
            answered[requests[leave]] = now
            requests = requests[~leave]
            if len(requests) == 0:
                break
        if len(requests):
            queues[chosen + 1].extend((request, now) for request in requests.tolist())
    return Served(answered - arrivals, now - arrivals[0], float(np.mean(sizes)))


def _next_queue(queues: Sequence[deque[tuple[int, float]]], now: float, patience: float, largest: int) -> int:
    waiting = [place for place, queue in enumerate(queues) if queue]
    for place in reversed(waiting):
        if len(queues[place]) >= largest or (place and now - queues[place][0][1] >= patience):
            return place
    return waiting[0]


@dataclass(frozen=True)
class Measured:
    """An engine that looks its answers up.

    Attributes:
        sizes: (K,) batch sizes that were measured, ascending.
        seconds: (S, K) of each stage; between two sizes a straight line.
        left: (N,) the stage (from 0) at which each request leaves.
    """

    sizes: np.ndarray
    seconds: np.ndarray
    left: np.ndarray

    @property
    def stages(self) -> int:
        return len(self.seconds)

    def step(self, stage: int, requests: Sequence[int]) -> tuple[float, np.ndarray]:
        return float(np.interp(len(requests), self.sizes, self.seconds[stage])), self.left[list(requests)] <= stage


def poisson(requests: int, per_second: float, seed: int = 0) -> np.ndarray:
    """(N,) arrivals at random, so many a second on average; all at 0 where that is `SATURATED`."""
    if per_second == SATURATED:
        return np.zeros(requests)
    return np.random.default_rng(seed).exponential(1 / per_second, requests).cumsum()
