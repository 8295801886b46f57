"""L2W-DEN without a model: the meta gradient against finite differences of the whole pseudo-update, the budget and who
leaves under it, and what the names of the normalisations mean."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from eeutils.errors import InputError
from eeutils.papers import l2w
from eeutils.papers.l2w import L2wOptions, WeightNetwork, budget, meta_loss, simulated_exits, through_pseudo_update

X = torch.tensor([0.3, -1.2, 0.8, 2.0, -0.4], dtype=torch.float64)
"""Half A of a toy: five samples."""
Y = torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64)
"""Half B."""
THETA = {"a": torch.tensor(0.7, dtype=torch.float64), "b": torch.tensor(-0.3, dtype=torch.float64)}
RATE = 0.3


def toy_losses(theta: dict[str, Tensor], x: Tensor) -> Tensor:
    """Two exits, two parameters: the second exit reads both."""
    return torch.stack([(theta["a"] * x - 1) ** 2, (theta["a"] * theta["b"] * x - 1) ** 2 + theta["b"] ** 2])


def toy_judge(theta: dict[str, Tensor]) -> Tensor:
    first, second = toy_losses(theta, Y)
    return first[:1].mean() + second[1:].mean()


def whole_pseudo_update(weights: Tensor) -> float:
    """M after the pseudo-update with these weights, by the definition."""
    theta = {name: value.clone().requires_grad_() for name, value in THETA.items()}
    step = torch.autograd.grad((weights * toy_losses(theta, X)).mean(), list(theta.values()))
    moved = [value.detach() - RATE * each for value, each in zip(theta.values(), step, strict=True)]
    return toy_judge(dict(zip(theta, moved, strict=True))).item()


def test_the_meta_gradient_is_that_of_the_whole_pseudo_update_by_finite_differences() -> None:
    weights = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heard, found = through_pseudo_update(
        lambda theta: (toy_losses(theta, X), torch.zeros(2, 5)), lambda *_: weights, toy_judge, THETA, RATE
    )
    assert torch.equal(heard[0], toy_losses(THETA, X))
    for place in [(k, i) for k in range(2) for i in range(5)]:
        nudge = torch.zeros(2, 5, dtype=torch.float64)
        nudge[place] = 1e-5
        wanted = (whole_pseudo_update(weights + nudge) - whole_pseudo_update(weights - nudge)) / 2e-5
        assert found[place].item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert found.abs().min() > 0


def test_weights_that_hang_on_the_losses_are_constants_of_the_pseudo_update() -> None:
    # Where they were not, the step would also be drawn to where weights are small.
    weigh = lambda losses, _: losses.square()  # noqa: E731
    constant = toy_losses(THETA, X).square()
    heard = lambda theta: (toy_losses(theta, X), torch.zeros(2, 5))  # noqa: E731
    found = through_pseudo_update(heard, weigh, toy_judge, THETA, RATE)[1]
    wanted = through_pseudo_update(heard, lambda *_: constant, toy_judge, THETA, RATE)[1]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("exits", "q", "mean_exit"), [(5, 0.75, 2.44), (12, 0.75, 3.61), (4, 1.0, 2.5)])
def test_the_budget_falls_geometrically(exits: int, q: float, mean_exit: float) -> None:
    shares = budget(q, exits).tolist()
    assert sum(shares) == pytest.approx(1)
    assert [after / before for before, after in itertools.pairwise(shares)] == pytest.approx([q] * (exits - 1))
    assert sum(k * share for k, share in enumerate(shares, start=1)) == pytest.approx(mean_exit, abs=0.005)


@pytest.mark.parametrize("samples", [1, 2, 3, 16, 64])
def test_so_many_leave_at_each_exit_as_the_budget_has_and_the_last_gets_no_rest_of_roundings(samples: int) -> None:
    shares = budget(0.75, 12)
    confidences = torch.rand(12, samples, generator=torch.Generator().manual_seed(samples))
    counts = torch.bincount(simulated_exits(confidences, shares), minlength=12)
    assert counts.sum() == samples
    assert ((counts.cumsum(dim=0) - samples * shares.cumsum(dim=0)).abs() <= 0.5 + 1e-9).all()
    # Share by share rounded down, the last of twelve exits would get 5 of 16 samples.
    assert counts[-1] <= math.ceil(samples * shares[-1])


def test_the_surest_of_those_who_are_left_leave_worked_out_by_hand() -> None:
    confidences = torch.tensor([[0.9, 0.6, 0.8, 0.7], [0.5, 0.6, 0.99, 0.8], [0.5, 0.5, 0.5, 0.5]])
    # Two leave at exit 1: samples 0 and 2. One at exit 2: of 1 and 3 the surer, which is 3, though 2 is surer still.
    assert simulated_exits(confidences, torch.tensor([0.5, 0.25, 0.25])).tolist() == [0, 2, 0, 1]


def test_those_who_are_equally_sure_leave_in_their_order() -> None:
    assert simulated_exits(torch.ones(2, 4), torch.tensor([0.5, 0.5])).tolist() == [0, 0, 1, 1]


def test_each_exit_counts_once_however_many_leave_there_and_an_empty_one_not_at_all() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0, 8.0], [10.0, 20.0, 40.0, 80.0], [100.0, 200.0, 400.0, 800.0]])
    confidences = torch.tensor([[0.9, 0.8, 0.7, 0.6]] * 3)
    # q = 0.5 on 4 samples: shares 4/7, 2/7, 1/7, so 2, 1 and 1 leave.
    assert meta_loss(losses, confidences, 0.5).item() == pytest.approx((1 + 2) / 2 + 40 + 800)
    # Of a single sample nothing is left for the other exits.
    assert meta_loss(losses[:, :1], confidences[:, :1], 0.5).item() == pytest.approx(1)


def network(**changes: object) -> WeightNetwork:
    torch.manual_seed(0)
    made = WeightNetwork(3, l2w.METHOD.with_options(**changes))
    for parameter in made.layers[2].parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made


LOSSES = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) * 2
SURE = torch.rand(3, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("normalisation", "axis"), [("col", 0), ("row", 1)])
def test_col_is_over_the_exits_of_a_sample_and_row_over_the_samples_of_an_exit(normalisation: str, axis: int) -> None:
    # In the authors' code losses stand as (samples, exits), which makes the names look swapped.
    weights = network(normalisation=normalisation)(LOSSES, SURE)
    torch.testing.assert_close(weights.mean(dim=axis), torch.ones(weights.shape[1 - axis]))
    assert (weights.mean(dim=1 - axis) - 1).abs().max() > 0.01


def test_mat_is_over_everything_and_nothing_less() -> None:
    weights = network(normalisation="mat")(LOSSES, SURE)
    assert weights.mean().item() == pytest.approx(1)
    assert min((weights.mean(dim=axis) - 1).abs().max() for axis in (0, 1)) > 0.01


def test_weights_are_those_of_the_formula() -> None:
    made = network(eps=0.3)
    t = made.layers(torch.log(1 + LOSSES).T).T
    assert t.abs().max() < 1
    torch.testing.assert_close(made(LOSSES, SURE), 1 + 0.3 * (t - t.mean(dim=0)))


def test_a_sample_s_weights_do_not_hang_on_its_batch_under_col() -> None:
    made = network()
    torch.testing.assert_close(made(LOSSES[:, 1:2], SURE[:, 1:2]), made(LOSSES, SURE)[:, 1:2])


@pytest.mark.parametrize(("reads", "changes"), [("losses", (1, 0)), ("confidences", (0, 1)), ("both", (1, 1))])
def test_what_the_network_reads_is_what_moves_it(reads: str, changes: tuple[int, int]) -> None:
    made = network(reads=reads)
    before = made(LOSSES, SURE)
    moved = (made(LOSSES + 1, SURE), made(LOSSES, SURE / 2))
    assert tuple(int(not torch.equal(before, after)) for after in moved) == changes


def test_all_weights_are_one_at_first_and_with_eps_zero_for_ever() -> None:
    assert torch.equal(WeightNetwork(3, L2wOptions())(LOSSES, SURE), torch.ones(3, 4))
    assert torch.equal(network(eps=0.0)(LOSSES, SURE), torch.ones(3, 4))


def test_up_to_which_eps_no_weight_is_negative() -> None:
    # One exit at t = -1 and all others at 1: 1 - eps (2 K - 2) / K.
    for exits in (3, 5):
        t = torch.ones(exits, 1)
        t[0] = -1
        largest = exits / (2 * exits - 2)
        lowest = [(1 + eps * (t - t.mean(dim=0))).min().item() for eps in (largest, largest + 0.01)]
        assert lowest[0] == pytest.approx(0, abs=1e-6)
        assert lowest[1] < 0


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("eps", -0.1, "eps is how far weights may go from 1, a finite number of 0 or more; got -0.1"),
        ("eps", math.nan, "got nan"),
        ("q", 0.0, "q must be a finite number above 0; got 0.0"),
        ("rate", math.inf, "rate must be a finite number above 0; got inf"),
        ("interval", 0, "interval counts steps, 1 or more; got 0"),
    ],
)
def test_options_say_what_they_cannot_be(option: str, value: float, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        l2w.METHOD.with_options(**{option: value})
