"""ConsistentEE without a model: what is memorized, where a policy leaves, what it gains, and how it learns."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.exiting.evidence import Evidence
from eeutils.papers import consistentee
from eeutils.papers.consistentee import ConsistentOptions
from eeutils.papers.controls import frozen_policies
from eeutils.training.settings import Setting
from tests.helpers import make_evidence, random_evidence

LAYERS = (1, 2, 3, 4)


def evidence_of(*answers: list[int], labels: list[int]) -> Evidence:
    """Evidence of samples whose exits answer with these classes."""
    logits = torch.nn.functional.one_hot(torch.tensor(answers).T, 2).double()
    return make_evidence(logits, labels)


def spread_over(*probabilities: float) -> Tensor:
    """Policy logits (4, 1) of one sample; the last exit's own is a decoy that must not count."""
    return torch.tensor([*probabilities, 0.99], dtype=torch.float64).logit()[:, None]


def test_a_sample_is_memorized_from_the_first_layer_after_which_no_exit_is_wrong() -> None:
    evidence = evidence_of([1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0], labels=[1, 1, 1, 1, 1])
    assert consistentee.memorized_layers(evidence).tolist() == [1, 3, 4, 4, 4]


@given(st.integers(0, 10_000))
def test_memorized_layers_against_a_search_over_all_layers(seed: int) -> None:
    evidence = random_evidence(seed, stages=5, samples=20, classes=3)
    wanted = []
    for sample in range(20):
        right = [int(evidence.predictions[s, sample]) == int(evidence.labels[sample]) for s in range(5)]
        wanted.append(next((layer for layer in range(1, 6) if all(right[layer - 1 :])), 5))
    assert consistentee.memorized_layers(evidence).tolist() == wanted


def test_memorized_layers_are_layers_and_not_the_numbers_of_exits() -> None:
    logits = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
    assert consistentee.memorized_layers(make_evidence(logits, [0], layers=[2, 4, 6])).tolist() == [4]


def test_memorized_layers_need_labels() -> None:
    with pytest.raises(InputError, match="need labels"):
        consistentee.memorized_layers(make_evidence(torch.zeros(2, 1, 2)))


def test_leaving_by_hand() -> None:
    leaving = consistentee.log_leaving(spread_over(0.5, 0.2, 0.9)).exp()[:, 0]
    assert leaving.tolist() == pytest.approx([0.5, 0.5 * 0.2, 0.5 * 0.8 * 0.9, 0.5 * 0.8 * 0.1])


def test_log_probabilities_stay_finite_and_so_do_their_gradients_where_the_policy_is_saturated() -> None:
    for signs in itertools.product([-1e4, 1e4], repeat=4):
        logits = torch.tensor(signs)[:, None].requires_grad_()
        log_p = consistentee.log_leaving(logits)
        assert log_p.isfinite().all()
        assert log_p.exp().sum().item() == pytest.approx(1)
        reward = torch.tensor([[-0.1], [-3.0], [-0.2], [0.0]])
        for estimate in (consistentee.sampled_gradient, consistentee.exact_gradient):
            logits.grad = None
            estimate(logits, reward)[0].backward()
            assert logits.grad.isfinite().all()


def test_draws_leave_as_often_as_the_probabilities_say() -> None:
    torch.manual_seed(0)
    logits = spread_over(0.5, 0.2, 0.9)
    drawn = consistentee.draw_exits(logits, 40_000)[:, 0]
    frequency = torch.bincount(drawn, minlength=4) / len(drawn)
    probability = consistentee.log_leaving(logits).exp()[:, 0]
    error = (probability * (1 - probability) / len(drawn)).sqrt()
    assert ((frequency - probability).abs() < 4 * error).all()


def test_policies_start_by_trying_every_exit_as_often() -> None:
    torch.manual_seed(0)
    features = 0.1 * torch.randn(12, 200, 16)
    networks = torch.nn.ModuleList(consistentee.policy_network(16, 11 - stage) for stage in range(12))
    tried = consistentee.log_leaving(frozen_policies.policy_logits(networks, features)).exp().mean(dim=1)
    # At one half each, the first exit would be tried 2,048 times as often as the last one.
    assert tried.max() / tried.min() < 3


def test_rewards_by_hand() -> None:
    losses = torch.tensor([[0.9, 0.9], [0.5, 0.8], [0.2, 0.8], [0.1, 0.3]])
    memorized = torch.tensor([1, 4])
    reward = consistentee.rewards(losses, LAYERS, memorized, speed_weight=0.1)
    # Memorized at layer 1 of 4, a layer costs 0.1 * (1 - 1 / 4); memorized at the last one, nothing.
    assert reward[:, 0].tolist() == pytest.approx([-0.975, -0.65, -0.425, -0.4])
    assert reward[:, 1].tolist() == pytest.approx([-0.9, -0.8, -0.8, -0.3])
    constant = consistentee.rewards(losses, LAYERS, memorized, speed_weight=0.1, hardness="constant")
    assert constant[:, 1].tolist() == pytest.approx([-1.0, -1.0, -1.1, -0.7])


def test_no_gradient_runs_through_a_reward() -> None:
    losses = torch.rand(4, 2, requires_grad=True)
    assert not consistentee.rewards(losses, LAYERS, torch.tensor([1, 2]), 0.1).requires_grad


def test_the_exact_gradient_is_that_of_the_expected_reward() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    reward = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    consistentee.exact_gradient(logits, reward)[0].backward()

    def expected(values: Tensor) -> float:
        total = 0.0
        for sample in range(5):
            reach = 1.0
            for stage in range(4):
                leave = 1 / (1 + math.exp(-values[stage, sample])) if stage < 3 else 1.0
                total += reach * leave * float(reward[stage, sample])
                reach *= 1 - leave
        return total / 5

    step = 1e-6
    for stage, sample in itertools.product(range(4), range(5)):
        up, down = logits.detach().clone(), logits.detach().clone()
        up[stage, sample] += step
        down[stage, sample] -= step
        slope = (expected(up) - expected(down)) / (2 * step)
        assert logits.grad[stage, sample].item() == pytest.approx(-slope, abs=1e-8)


def test_the_sampled_gradient_agrees_with_the_exact_one_within_its_standard_error() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    reward = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def gradient(estimate) -> Tensor:
        leaf = logits.clone().requires_grad_()
        estimate(leaf, reward)[0].backward()
        return leaf.grad

    torch.manual_seed(3)
    drawn = torch.stack([gradient(consistentee.sampled_gradient) for _ in range(4000)])
    error = drawn.std(dim=0) / math.sqrt(len(drawn))
    # A baseline that holds the replica itself takes away one part in K.
    wanted = gradient(consistentee.exact_gradient) * (1 - 1 / consistentee.REPLICAS)
    assert ((drawn.mean(dim=0) - wanted).abs() <= 4 * error).all()
    assert (error[:-1] < 0.2 * wanted.abs().max()).all()
    # Twelve numbers within four standard errors would not notice a gradient of half the size; their sum does.
    assert (drawn.mean(dim=0) * wanted).sum() / wanted.square().sum() == pytest.approx(1, abs=0.05)


def test_shares_taken_are_those_of_the_replicas_and_in_the_exact_form_the_probabilities() -> None:
    logits, reward = spread_over(0.5, 0.2, 0.9), torch.zeros(4, 1, dtype=torch.float64)
    torch.manual_seed(0)
    _, taken = consistentee.sampled_gradient(logits, reward)
    torch.manual_seed(0)
    drawn = consistentee.draw_exits(logits, consistentee.REPLICAS)[:, 0]
    assert taken[:, 0].tolist() == (torch.bincount(drawn, minlength=4) / consistentee.REPLICAS).tolist()
    _, expected = consistentee.exact_gradient(logits, reward)
    assert expected[:, 0].tolist() == pytest.approx([0.5, 0.1, 0.36, 0.04])


def easy_and_hard(samples: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    """Features that tell easy samples from hard ones, losses of which easy ones are low from the first exit on, hard
    ones at the last exit only, and the layers at which they are memorized."""
    generator = torch.Generator().manual_seed(0)
    hard = torch.arange(samples) % 2 == 1
    features = torch.randn(4, samples, 8, generator=generator) + 2 * (2 * hard.float() - 1)[:, None]
    losses = torch.where(hard, torch.tensor([1.2, 1.2, 1.2, 0.1])[:, None], torch.tensor([[0.1]]))
    return features, losses, torch.where(hard, 4, 1)


@pytest.mark.parametrize("gradient", ["sampled", "exact"])
def test_without_a_price_the_policy_goes_deep_and_at_a_high_one_shallow(gradient: str) -> None:
    features, losses, _ = easy_and_hard()
    losses = losses - 0.1 * torch.arange(4)[:, None]  # deeper is always better
    passed = {}
    for price in (0.0, 5.0):
        reward = consistentee.rewards(losses, LAYERS, torch.full((120,), 1), price)
        _, curve = frozen_policies.learn_policies(features, reward, gradient=gradient, seed=0, epochs=20)
        passed[price] = curve.layers.iloc[-1]
        assert curve.reward.iloc[-1] > curve.reward.iloc[0]
    assert passed[0.0] > 3.6
    assert passed[5.0] < 1.2


def test_a_policy_learns_to_send_easy_samples_out_early_and_hard_ones_on() -> None:
    features, losses, memorized = easy_and_hard()
    reward = consistentee.rewards(losses, LAYERS, memorized, 0.1)
    networks, curve = frozen_policies.learn_policies(features, reward, gradient="sampled", seed=0, epochs=20)
    evidence = frozen_policies.with_policies(make_evidence(torch.zeros(4, 120, 2)), networks, features)
    stages = tradeoff.decide(evidence, rules.policy(), consistentee.OPERATING_POINT).stages
    assert stages[memorized == 1].double().mean() < 0.2
    assert stages[memorized == 4].double().mean() > 2.8
    # No fixed exit earns as much: the best one is the last, or the first.
    assert curve.reward.iloc[-1] > reward.mean(dim=1).max() + 0.05


def test_learning_again_with_the_same_seed_is_the_same_and_leaves_the_global_random_numbers_alone() -> None:
    features, losses, memorized = easy_and_hard(40)
    reward = consistentee.rewards(losses, LAYERS, memorized, 0.1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (
        frozen_policies.learn_policies(features, reward, gradient="sampled", seed=seed)[1] for seed in (0, 0, 1)
    )
    assert first.equals(second)
    assert not first.equals(other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "papers_own"),
    [("hardness", "memorized"), ("gradient", "sampled"), ("consistent", "one exit"), ("memorized", "in-sample")],
)
def test_an_unknown_choice_is_refused_with_the_ones_there_are(name: str, papers_own: str) -> None:
    assert getattr(consistentee.METHOD.options, name) == papers_own
    with pytest.raises(InputError, match=f"unknown {name} 'perhaps'.*{papers_own}"):
        consistentee.METHOD.with_options(**{name: "perhaps"})


@pytest.mark.parametrize("weight", [-0.1, math.nan])
def test_a_price_below_zero_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="speed_weight"):
        consistentee.METHOD.with_options(speed_weight=weight)


def test_a_regression_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="is a regression"):
        consistentee.build(Setting(task="movie-valence", backbone="nowhere"), 1, ConsistentOptions())
