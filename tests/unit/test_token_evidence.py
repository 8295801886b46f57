"""Evidence of tokens, what leaving costs them, and rules that read it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from eeutils.errors import InputError
from eeutils.exiting import risk_control, rules, token_rules, tradeoff
from eeutils.exiting.token_evidence import TokenEvidence, TokenPrices, signals_of

WORDS, UNITS, LAYERS = 50, 6, (2, 4, 6)
PRICES = TokenPrices(head=80.0, shortlist=5.0, fill=1.0, exit=0.5)


def evidence(**extras: torch.Tensor) -> tuple[TokenEvidence, torch.Tensor]:
    logits = torch.randn(len(LAYERS), UNITS, WORDS, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(UNITS)
    kept, signals = zip(*(signals_of(own, labels) for own in logits), strict=True)
    layers = torch.tensor(LAYERS, dtype=torch.float64)[:, None].expand(-1, UNITS)
    known = {name: torch.stack([each[name] for each in signals]) for name in signals[0]}
    known |= {"layers": layers * 10, "position": torch.arange(1.0, UNITS + 1).expand(3, -1), **extras}
    cost = {"layers": layers, "flops": layers}
    reference = {"layers": layers[-1], "flops": layers[-1] * 10 + PRICES.head}
    made = TokenEvidence(torch.stack(kept), torch.arange(UNITS), cost, reference, LAYERS, labels, known, prices=PRICES)
    return made, logits


def test_what_is_kept_of_logits_is_what_rules_would_read_from_all_of_them() -> None:
    kept, logits = evidence()
    p = logits.double().softmax(-1)
    two = p.topk(2, dim=-1)
    assert torch.equal(kept.predictions, two.indices[..., 0])
    torch.testing.assert_close(kept.confidence, two.values[..., 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.margin, two.values[..., 0] - two.values[..., 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.entropy, -(p * p.log()).sum(-1) / math.log(WORDS), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.logits.double().exp().sum(-1), torch.ones(3, UNITS).double(), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="two best words only"):
        rules.divergence().readiness(kept)


def test_words_are_scored_not_places_among_the_kept_logits() -> None:
    kept, logits = evidence()
    curve = tradeoff.sweep(kept, rules.fixed(), lambda said, right: float(np.mean(said == right)), [3])
    assert curve.score[0] == float((logits[2].argmax(-1) == torch.arange(UNITS)).double().mean())


@pytest.mark.parametrize(
    ("look", "at_first", "at_top"),
    [
        # 2 layers of 10, the exit's map, the looks, keys and values of 4 layers; at the top nothing to fill.
        ("head", 20 + 0.5 + 80 + 4, 60 + 1.0 + 3 * 80),
        ("state", 20 + 0.5 + 80 + 4, 60 + 80),
        ("shortlist", 20 + 0.5 + 5 + 80 + 4, 60 + 1.0 + 2 * 5 + 80),
    ],
)
def test_a_look_is_paid_where_it_is_taken(look: str, at_first: float, at_top: float) -> None:
    flops = evidence()[0].priced(look).cost["flops"]
    assert flops[0, 0] == at_first
    assert flops[-1, 0] == at_top


def test_fewer_exits_are_fewer_looks() -> None:
    kept, _ = evidence(similarity=torch.ones(3, UNITS))
    few = kept.at([1, 2]).priced("head")
    assert few.layers == (4, 6)
    assert few.cost["flops"][:, 0].tolist() == [40 + 0.5 + 80 + 2, 60 + 0.5 + 2 * 80]
    with pytest.raises(InputError, match="similarity"):  # it was measured from an exit that is no longer there
        token_rules.similarity().readiness(few)
    with pytest.raises(InputError, match="the top, stage 2"):
        kept.at([0, 1])


def test_the_threshold_falls_along_the_text() -> None:
    kept, _ = evidence()
    plain, falling = token_rules.softmax_margin(), token_rules.decaying(token_rules.softmax_margin(), longest=UNITS)
    expected = plain.readiness(kept) / (0.9 + 0.1 * torch.exp(-4 * torch.arange(1.0, UNITS + 1) / UNITS))
    torch.testing.assert_close(falling.readiness(kept), expected, atol=1e-6, rtol=1e-5)
    lost = replace(kept, extras={name: value for name, value in kept.extras.items() if name != "position"})
    with pytest.raises(InputError, match="position"):  # a position that is never passed switches the decay off
        falling.readiness(lost)


def test_a_schedule_is_linear_in_the_position() -> None:
    kept, _ = evidence()
    left = tradeoff.decide(kept, token_rules.schedule(UNITS), 0.0).stages
    # n(t) = 6 (1 - t / 6) = 5, 4, 3, 2, 1, 0: the first exit not below it.
    assert [LAYERS[stage] for stage in left.tolist()] == [6, 4, 4, 2, 2, 2]


def test_the_first_exit_is_never_similar_to_itself() -> None:
    kept, _ = evidence(similarity=torch.ones(3, UNITS))
    assert tradeoff.decide(kept, token_rules.similarity(), 0.5).stages.tolist() == [1] * UNITS


def test_p_values_are_valid_and_those_of_the_literature() -> None:
    # With no loss at all these are the smallest risks that so many texts certify at 0.05.
    assert risk_control.hoeffding_bentkus(0.0, 100, 0.030) <= 0.05 < risk_control.hoeffding_bentkus(0.0, 100, 0.029)
    # Under a risk of exactly delta a p-value is below u in at most u of all draws (losses of 0 or 1: binomial).
    n, delta = 60, 0.2
    for u in (0.01, 0.05, 0.2, 0.5):
        rejected = sum(
            binom.pmf(k, n, delta) for k in range(n + 1) if risk_control.hoeffding_bentkus(k / n, n, delta) <= u
        )
        assert rejected <= u


def test_testing_stops_at_the_first_that_is_not_rejected() -> None:
    good, bad = np.zeros((1, 200)), np.full((1, 200), 0.5)
    losses = np.concatenate([good, good, bad, good])
    assert risk_control.certified(losses, delta=0.1) == 2  # what stands behind a failure is never certified
    assert risk_control.certified(losses[2:], delta=0.1) == 0
    with pytest.raises(InputError, match="from 0 to 1"):
        risk_control.certified(losses * 3, 0.1)


def test_the_guarantee_holds_over_random_halves() -> None:
    random = np.random.RandomState(0)
    means = np.linspace(0.02, 0.5, 20)
    losses = (random.rand(20, 2000) < means[:, None]).astype(float)
    splits = risk_control.over_splits(losses, np.ones_like(losses), delta=0.2, splits=100)
    assert splits.broken.mean() <= 0.05
    assert splits.certified.min() >= 5  # and it is not empty
