"""BADGE without a model: what a bottleneck starts as, what its rules are, and where divergence alone goes wrong."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.papers import badge
from eeutils.papers.controls.gradient_conflict import cosines
from tests.helpers import make_evidence


def test_a_bottleneck_begins_as_nothing_and_its_first_gradient_reaches_w_up_alone() -> None:
    bottleneck, x = badge.Bottleneck(6, 2, 4.0), torch.randn(3, 5, 6)
    assert bottleneck(x).abs().max() == 0
    bottleneck(x).sum().backward()
    assert bottleneck.down.weight.grad.abs().sum() == 0
    assert bottleneck.up.weight.grad.abs().sum() > 0


def test_a_bottleneck_by_hand() -> None:
    bottleneck = badge.Bottleneck(2, 1, 0.5)
    with torch.no_grad():
        bottleneck.down.weight.copy_(torch.tensor([[1.0, -1.0]]))
        bottleneck.down.bias.fill_(0.5)
        bottleneck.up.weight.copy_(torch.tensor([[2.0], [-4.0]]))
    # W_down x + b = 3 - 1 + 0.5 = 2.5; GELU(z) is z times the normal distribution function of z.
    narrow = 2.5 * 0.5 * (1 + math.erf(2.5 / math.sqrt(2)))
    assert bottleneck(torch.tensor([[3.0, 1.0]])).tolist()[0] == pytest.approx([0.5 * 2 * narrow, 0.5 * -4 * narrow])


@pytest.mark.parametrize("scale", [4.0, 16.0])
def test_the_scale_is_a_learning_rate_of_the_bypass_s_own(scale: float) -> None:
    # One step of Adam moves every weight by the same, whatever the size of its gradient: what is added grows with s.
    outputs, x = [], torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    for of in (1.0, scale):
        torch.manual_seed(1)
        bottleneck = badge.Bottleneck(6, 3, of)
        optimizer = torch.optim.Adam(bottleneck.parameters(), lr=1e-2)
        bottleneck(x).square().sub(bottleneck(x)).sum().backward()
        optimizer.step()
        outputs.append(bottleneck(x).detach())
    torch.testing.assert_close(outputs[1], scale * outputs[0], rtol=1e-4, atol=1e-6)
    assert outputs[0].abs().max() > 0


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_leaves_no_bypass_is_refused(scale: float) -> None:
    with pytest.raises(InputError, match=r"scale of a bypass is above 0; got .*; use wiring='none'"):
        badge.METHOD.with_options(scale=scale)


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_below_1_is_refused(rank: int) -> None:
    with pytest.raises(InputError, match=f"rank of 1 or more; got {rank}; use wiring='none'"):
        badge.METHOD.with_options(rank=rank)


def test_an_unknown_wiring_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(InputError, match=r"unknown wiring 'paralel' \(did you mean 'parallel'\?\).*none.*wide-head"):
        badge.METHOD.with_options(wiring="paralel")


def test_the_method_s_rules_are_every_divergence_against_every_past_and_jsd_with_the_previous_comes_first() -> None:
    names = list(badge.METHOD.rules)
    assert names[0] == "divergence (jsd)"
    assert len(names) == 2 * len(rules.DIVERGENCES) * len(rules.AGAINST)
    assert sum(name.endswith("2 in a row") for name in names) == len(names) / 2


def test_the_rule_leaves_at_the_first_exit_that_agrees_with_the_one_before() -> None:
    p = torch.tensor([[0.5, 0.5], [0.7, 0.3], [0.72, 0.28], [0.1, 0.9]], dtype=torch.float64)
    evidence = make_evidence(p.log()[:, None, :], [0])
    # scipy gives the square root of the divergence.
    by_scipy = [jensenshannon(p[stage - 1], p[stage]) ** 2 for stage in range(1, 4)]
    rule = badge.METHOD.rules["divergence (jsd)"]
    assert rule.readiness(evidence)[1:, 0].tolist() == pytest.approx([-d for d in by_scipy], abs=1e-6)
    between = (by_scipy[1] + by_scipy[0]) / 2
    assert int(tradeoff.decide(evidence, rule, -between).stages[0]) == 2
    assert int(tradeoff.decide(evidence, badge.METHOD.rules["divergence (jsd), 2 in a row"], -between).stages[0]) == 3


def test_divergence_alone_sends_out_those_of_whom_neither_exit_knows_anything() -> None:
    # The first sample puzzles the first two exits alike; the second is clear to both, more so to the second of them.
    undecided, sure = [[0.1, 0.0], [0.0, 0.0], [4.0, 0.0]], [[1.5, 0.0], [3.0, 0.0], [4.0, 0.0]]
    evidence = make_evidence(torch.tensor([undecided, sure]).transpose(0, 1), [0, 0])
    diverges = badge.METHOD.rules["divergence (jsd)"].readiness(evidence)[1]
    assert diverges[0] > diverges[1]
    # The entropy of the mean, which F-PABEE's code computes, asks for confidence, too, and orders them the other way.
    mixed = badge.METHOD.rules["divergence (mean-entropy)"].readiness(evidence)[1]
    assert mixed[0] < mixed[1]


def test_cosines_count_only_the_blocks_that_both_gradients_reach() -> None:
    # Three exits on three blocks of two weights: the first exit moves the first block only, the last all of them.
    gradients = torch.zeros(3, 3, 2, dtype=torch.float64)
    gradients[:, 0] = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [-3.0, -4.0]])
    gradients[1:, 1] = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    gradients[2, 2] = torch.tensor([5.0, 5.0])
    products = torch.einsum("ikw,jkw->kij", gradients, gradients)
    between = cosines(products)
    assert between[0].tolist() == pytest.approx([1, 0, -1])
    # Exits 2 and 3 share two blocks: (-4, 3, 1, 0) and (-3, -4, 1, 1).
    assert between[1, 2].item() == pytest.approx(1 / math.sqrt(26 * 27))
    assert cosines(products[2:])[0].isnan().all()
    assert cosines(products[1:2])[1, 2].item() == pytest.approx(1 / math.sqrt(2))
    assert torch.equal(cosines(torch.stack([products, products]))[1], between)
