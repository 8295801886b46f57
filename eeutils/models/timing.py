"""Wall-clock, compared fairly: what is compared takes turns, so that other load on the machine hits all sides alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

Track = Sequence[Callable[[], object]]
"""What one side does, call by call, such as one batch after the other."""


def race(
    tracks: Mapping[str, Track], rounds: int, device: torch.device, progress: str | None = None
) -> dict[str, Float[np.ndarray, "rounds calls"]]:
    """Seconds of every call of each track in each round.

    Within a round the tracks take turns, call by call; the calls of a shorter track are spread evenly over the round.
    Each track's first call runs once before the clock does. On a GPU the device is waited for before each reading of
    the clock.

    Args:
        tracks: name -> calls.
        rounds: how often all calls are made.
        device: where they run.
        progress: names a progress bar.
    """
    turns = sorted(
        ((place + 0.5) / len(calls), name, place) for name, calls in tracks.items() for place in range(len(calls))
    )
    seconds = {name: np.zeros((rounds, len(calls))) for name, calls in tracks.items()}
    for calls in tracks.values():
        calls[0]()
    with tqdm(total=rounds * len(turns), desc=progress, disable=progress is None, leave=False, delay=2) as bar:
        for number in range(rounds):
            for _, name, place in turns:
                _wait_for(device)
                start = time.perf_counter()
                tracks[name][place]()
                _wait_for(device)
                seconds[name][number, place] = time.perf_counter() - start
                bar.update()
    return seconds


def ratio(
    seconds: Mapping[str, Float[np.ndarray, "rounds calls"]], slow: str, fast: str
) -> Float[np.ndarray, " rounds"]:
    """How many times longer a call of one track takes than one of another, round by round."""
    return seconds[slow].mean(axis=1) / seconds[fast].mean(axis=1)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
