"""A trail against the plain list of everything that was added."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eeutils.models.trail import Trail


@given(steps=st.integers(0, 70))
def test_each_stretch_is_the_mean_of_the_steps_that_lie_in_it(steps: int) -> None:
    values = torch.randn(steps, 2, 3, generator=torch.Generator().manual_seed(steps))
    trail = Trail(2, 3, slots=4)
    for each in values:
        trail.add(each)
    ends, means = trail.read()
    assert len(ends) <= 4
    assert ends.tolist()[-1:] == [steps] * (steps > 0)
    starts = [0, *ends.tolist()]
    for start, end, mean in zip(starts, ends.tolist(), means, strict=False):
        torch.testing.assert_close(mean, values[start:end].mean(dim=0))
    lengths = ends.diff(prepend=torch.tensor([0])).tolist()
    assert all(length == lengths[0] for length in lengths[:-1])


def test_no_more_than_twice_too_few_stretches_are_kept() -> None:
    trail = Trail(1, slots=8)
    for step in range(1, 200):
        trail.add(torch.ones(1))
        assert len(trail.read()[0]) >= min(step, 4)


def test_what_was_kept_is_part_of_the_state() -> None:
    one, other = Trail(1, slots=4), Trail(1, slots=4)
    for step in range(6):
        one.add(torch.tensor([float(step)]))
    other.load_state_dict(one.state_dict())
    for trail in (one, other):
        trail.add(torch.tensor([9.0]))
    assert other.read()[0].tolist() == [2, 4, 6, 7]
    assert other.read()[1].flatten().tolist() == pytest.approx([0.5, 2.5, 4.5, 9.0])
    assert torch.equal(one.read()[1], other.read()[1])
