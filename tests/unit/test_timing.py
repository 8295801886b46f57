"""What is timed side by side takes turns, and a ratio is taken within a round."""

import time
from functools import partial

import numpy as np
import torch

from eeutils.models.timing import race, ratio

CPU = torch.device("cpu")


def test_what_is_compared_takes_turns_call_by_call() -> None:
    order: list[str] = []
    tracks = {"a": [partial(order.append, "a1"), partial(order.append, "a2")], "b": [partial(order.append, "b1")]}
    seconds = race(tracks, rounds=2, device=CPU)
    assert order == ["a1", "b1"] + ["a1", "b1", "a2"] * 2  # the first two warm up
    assert {name: times.shape for name, times in seconds.items()} == {"a": (2, 2), "b": (2, 1)}


def test_the_clock_reads_what_a_call_takes() -> None:
    seconds = race({"long": [partial(time.sleep, 0.05)], "short": [lambda: None]}, rounds=2, device=CPU)
    assert (seconds["long"] >= 0.05).all()
    assert (ratio(seconds, "long", "short") > 1).all()


def test_a_ratio_compares_mean_calls_round_by_round() -> None:
    seconds = {"slow": np.array([[2.0, 4.0], [8.0, 4.0]]), "fast": np.array([[1.0], [3.0]])}
    assert ratio(seconds, "slow", "fast").tolist() == [3.0, 2.0]
