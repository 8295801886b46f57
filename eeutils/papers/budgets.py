"""What each profile can afford of the methods: how many models, of which kinds. Everything else is in the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Budget:
    """What notebooks and study train of a method beyond its one run.

    Attributes:
        shallow_depths: k of the k-layer models.
        wirings: of BADGE.
        cascade: options of CascadeBERT that save trainings: five folds over five seeds are 25 of them before the first
            that counts.
        speed_weights: of ConsistentEE.
        windows: of HashEE's schedules in the study, (first, last); None is the top.
        diversities: lambda of ensemble exits, first the one that the study takes: the largest of its search that leaves
            every exit learned.
        frozen_weights: of ConsistentEE's policies on a frozen encoder, which are learned in seconds.
        seeds: of those policies.
        skip_prices: lamada of SmartBERT's price, a weak and a strong one.
    """

    shallow_depths: tuple[int, ...]
    wirings: tuple[str, ...]
    cascade: dict[str, Any]
    speed_weights: tuple[float, ...]
    windows: tuple[tuple[int, int | None], ...]
    diversities: tuple[float, ...]
    frozen_weights: tuple[float, ...]
    seeds: int
    skip_prices: tuple[float, ...]


def budget_of(profile: str, depth: int) -> Budget:
    """The budget of a profile for an encoder of that many layers."""
    # An ordinary token runs half a window on average, and the encoder ends with it: about 1.5x, 2x and 3x in FLOPs.
    windows = ((1, None), (1, max(1, depth - max(1, depth // 6))), (1, max(1, depth // 2)))
    skip_prices = (0.02, 0.1)

    def speed_weights(*values: float) -> tuple[float, ...]:
        # Found at six layers: a layer of twelve is half as much of the encoder, and costs half as much.
        return tuple(round(value * min(1.0, 6 / depth), 3) for value in values)

    frozen_weights = speed_weights(0.0, 0.05, 0.1, 0.15, 0.2)
    if profile == "smoke":
        return Budget(
            shallow_depths=(depth // 2,) if depth > 1 else (),
            wirings=("parallel", "serial", "stream", "wide-head"),
            cascade={"folds": 2, "repeats": 1},
            speed_weights=speed_weights(0.15),
            windows=windows[:2],
            diversities=(0.1,),
            frozen_weights=speed_weights(0.0, 0.15),
            seeds=2,
            skip_prices=skip_prices,
        )
    # Half of the layers is 2x, a third 3x, two thirds 1.5x: the speed-ups at which k-layer models are quoted.
    depths = tuple(dict.fromkeys(k for k in (depth // 3, depth // 2, 2 * depth // 3) if k > 0))
    if profile == "quick":
        return Budget(
            shallow_depths=depths,
            wirings=("parallel", "wide-head"),
            cascade={"folds": 2, "repeats": 5},
            speed_weights=speed_weights(0.05, 0.15),
            windows=windows,
            diversities=(1.0,),
            frozen_weights=frozen_weights,
            seeds=3,
            skip_prices=skip_prices,
        )
    return Budget(
        shallow_depths=depths if profile == "study" else tuple(range(1, depth)),
        wirings=("parallel", "serial", "stream", "wide-head"),
        cascade={"folds": 2} if profile == "study" else {},
        speed_weights=speed_weights(0.05, 0.1, 0.15),
        windows=windows,
        diversities=(1.0,) if profile == "study" else (1.0, 0.1, 0.3, 3.0),
        frozen_weights=frozen_weights,
        seeds=3,
        skip_prices=skip_prices,
    )
