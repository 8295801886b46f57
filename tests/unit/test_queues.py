"""One worker and its queues, by hand and as properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eeutils.errors import InputError
from workflow.queues import SATURATED, Measured, Way, poisson, serve

TO_THE_END, QUEUED = Way("a batch to its end"), Way("a queue", (1,), patience=100.0)


def of(left: list[int], stages: int = 2) -> Measured:
    """A second a stage, whatever the batch."""
    return Measured(np.array([1, 32]), np.ones((stages, 2)), np.array(left))


def test_whoever_comes_while_the_worker_is_busy_waits_for_the_whole_batch() -> None:
    served = serve(of([0, 1]), np.array([0.0, 0.5]), TO_THE_END)
    assert served.waits.tolist() == [1.0, 2.5]  # 0 to 1; from 1 on both stages, to 3
    assert (served.seconds, served.batch) == (3.0, 1.0)


def test_whoever_leaves_is_answered_before_those_who_stay() -> None:
    assert serve(of([1, 0, 1]), np.zeros(3), TO_THE_END).waits.tolist() == [2.0, 1.0, 2.0]


def test_those_who_stay_wait_for_others_and_go_on_together() -> None:
    # Batches of two: first (0, 1) and (2, 3) through the first stage, one of each stays, then both in one batch.
    served = serve(of([1, 0, 1, 0]), np.zeros(4), QUEUED, largest=2)
    assert served.waits.tolist() == [3.0, 1.0, 3.0, 2.0]
    assert served.batch == 2.0
    # Without a queue between the stages the second batch waits for one text alone in the upper stage.
    assert serve(of([1, 0, 1, 0]), np.zeros(4), TO_THE_END, largest=2).waits.tolist() == [2.0, 1.0, 4.0, 3.0]


def test_patience_ends() -> None:
    arrivals, left = np.array([0.0, 1.0, 1.0, 2.0, 2.0]), [1, 0, 0, 0, 0]
    patient = serve(of(left), arrivals, Way("", (1,), patience=1.0), largest=2)
    assert patient.waits[0] == 3.0  # others have the first stage from 1 to 2, then it has waited for a second
    assert serve(of(left), arrivals, QUEUED, largest=2).waits[0] == 4.0


def test_times_between_measured_sizes_lie_on_a_straight_line() -> None:
    engine = Measured(np.array([1, 3]), np.array([[2.0, 4.0]]), np.array([0, 0]))
    assert engine.step(0, [0, 1]) == (3.0, pytest.approx([True, True]))


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.sampled_from([(), (1,), (2,), (1, 2, 3)]),
    st.integers(1, 8),
    st.floats(0.1, 10),
)
def test_all_are_answered_once_and_no_work_is_lost(
    left: list[int], splits: tuple[int, ...], largest: int, rate: float
) -> None:
    engine, arrivals = of(left, stages=4), poisson(len(left), rate)
    served = serve(engine, arrivals, Way("", splits, patience=2.0), largest)
    # A second for each stage below the answer, at the least.
    assert (served.waits >= np.array(left) + 1 - 1e-9).all()
    # With all there from the start the worker is never idle, so full batches at every stage are the fastest it can be.
    fastest = sum(-(-sum(stage <= last for last in left) // largest) for stage in range(4))
    assert serve(engine, np.zeros(len(left)), Way("", splits), largest).seconds >= fastest
    every = serve(engine, np.zeros(len(left)), Way("", (1, 2, 3), patience=1e9), largest)
    assert every.seconds == fastest


def test_arrivals_come_at_the_rate_that_was_asked_for() -> None:
    arrivals = poisson(20_000, 50.0)
    assert 1 / np.diff(arrivals).mean() == pytest.approx(50.0, rel=0.03)
    assert (poisson(3, SATURATED) == 0).all()


def test_what_cannot_be_served_is_told() -> None:
    with pytest.raises(InputError, match="ascending"):
        serve(of([0, 0]), np.array([1.0, 0.0]), TO_THE_END)
    with pytest.raises(InputError, match=r"from 1 to 1; got \[2\]"):
        serve(of([0]), np.zeros(1), Way("", (2,)))
