"""Wall-clock: tracks take turns, each call's seconds stand in its place, and nobody is timed cold."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eeutils.exiting import rules
from eeutils.models import timing
from eeutils.models.runtime import Runtime
from eeutils.models.timing import race, ratio
from tests.tiny import tiny_model, tiny_samples

CPU = torch.device("cpu")


class Clock:
    """A clock that only calls move on, and what was called in which order."""

    def __init__(self) -> None:
        self.now, self.called = 0.0, []

    def call(self, name: str, *seconds: float):
        """A call that takes the first number of seconds at first, then the second, and so on."""
        remaining = list(seconds)

        def take() -> None:
            self.called.append(name)
            self.now += remaining.pop(0)

        return take


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_tracks_take_turns_and_a_shorter_one_is_spread_over_the_round(clock: Clock) -> None:
    tracks = {
        "long": [clock.call(f"long {place}", *[1.0] * 3) for place in range(4)],
        "short": [clock.call(f"short {place}", *[1.0] * 3) for place in range(2)],
    }
    race(tracks, rounds=2, device=CPU)
    one_round = ["long 0", "short 0", "long 1", "long 2", "short 1", "long 3"]
    assert clock.called == ["long 0", "short 0", *one_round, *one_round]


def test_every_call_s_seconds_stand_in_its_round_and_place_and_the_first_call_warms_up(clock: Clock) -> None:
    tracks = {
        "slow": [clock.call("slow 0", 50.0, 4.0, 6.0), clock.call("slow 1", 8.0, 10.0)],
        "fast": [clock.call("fast 0", 50.0, 2.0, 3.0), clock.call("fast 1", 1.0, 1.0)],
    }
    seconds = race(tracks, rounds=2, device=CPU)
    assert seconds["slow"].tolist() == [[4.0, 8.0], [6.0, 10.0]]
    assert seconds["fast"].tolist() == [[2.0, 1.0], [3.0, 1.0]]
    np.testing.assert_allclose(ratio(seconds, "slow", "fast"), [12 / 3, 16 / 4])


def test_a_ratio_is_that_of_a_call_where_tracks_differ_in_their_number() -> None:
    seconds = {"one by one": np.full((3, 10), 2.0), "batches": np.full((3, 2), 5.0)}
    np.testing.assert_allclose(ratio(seconds, "batches", "one by one"), [2.5] * 3)


def test_a_runtime_s_calls_see_every_sample_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = tiny_model(), tiny_samples(20)
    begin, seen = model.begin, []

    def watched(*inputs: Tensor) -> Any:
        seen.append(inputs[1].sum(dim=1).tolist())
        return begin(*inputs)

    monkeypatch.setattr(model, "begin", watched)
    tracks = {"early": Runtime(model, rules.confidence(), 0.6).calls(samples, 6)}
    seconds = race(tracks, rounds=2, device=CPU)
    assert seconds["early"].shape == (2, 4)
    assert (seconds["early"] > 0).all()
    lengths = samples.lengths.sort().values.split(6)
    assert seen == [part.tolist() for part in (lengths[0], *lengths, *lengths)]


def test_a_runtime_s_calls_answer_what_the_runtime_answers() -> None:
    runtime, samples = Runtime(tiny_model(pool="mean"), rules.confidence(), 0.7), tiny_samples(9)
    order = samples.lengths.argsort(stable=True)
    stages = torch.cat([call().stages for call in runtime.calls(samples, 4)])
    assert stages.tolist() == runtime(samples, batch_size=4).stages[order].tolist()
