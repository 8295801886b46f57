"""Ensemble exits: the diversity term by hand and by brute force, its bound, and votes against patience."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting import rules
from eeutils.exiting.tradeoff import decide
from eeutils.papers import ensemble, pabee
from eeutils.papers.ensemble import EnsembleOptions
from eeutils.training.settings import Setting
from tests.helpers import answers_of, make_evidence, random_evidence
from tests.tiny import tiny_model

MODEL = tiny_model()  # the losses do not look at it


def batch_of(labels: list[int]) -> Batch:
    zeros = torch.zeros(len(labels), 2, dtype=torch.long)
    return Batch(zeros, zeros + 1, None, torch.tensor(labels), torch.arange(len(labels)))


def loss_of(logits: Tensor, labels: list[int], **options: Any) -> Tensor:
    """The loss with some options changed."""
    return ensemble.ensemble_loss(EnsembleOptions(**options), MODEL, answers_of(logits), batch_of(labels))


def random_logits(stages: int, samples: int, classes: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(stages, samples, classes, generator=generator, dtype=torch.float64)


def pair(logits: Tensor, i: int, j: int, sample: int, bound: float | None = None) -> float:
    """CE(p_i, p_j) of one sample, from its definition."""
    p, q = (np.exp(z) / np.exp(z).sum() for z in (logits[i, sample].numpy(), logits[j, sample].numpy()))
    value = -float((p * np.log(q)).sum())
    return value if bound is None else min(value, bound * math.log(logits.shape[-1]))


@pytest.mark.parametrize("bound", [None, 1.0, 0.4])
def test_the_diversity_term_per_sample_by_brute_force(bound: float | None) -> None:
    logits = random_logits(4, 5, 3)
    wanted = sum(
        min(pair(logits, i, j, sample, bound) for j in range(i)) / 5 for i in range(1, 4) for sample in range(5)
    )
    options = EnsembleOptions(bound=bound)
    assert ensemble.diversity_term(logits, options).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("bound", [None, 0.4])
def test_the_diversity_term_per_batch_chooses_the_classifier_that_is_nearest_on_average(bound: float | None) -> None:
    logits = random_logits(4, 5, 3)
    wanted = sum(
        min(np.mean([pair(logits, i, j, sample, bound) for sample in range(5)]) for j in range(i)) for i in range(1, 4)
    )
    by_batch, by_sample = (
        ensemble.diversity_term(logits, EnsembleOptions(bound=bound, per=per)).item() for per in ("batch", "sample")
    )
    assert by_batch == pytest.approx(wanted, rel=1e-9)
    # A minimum of means is never below the mean of minima.
    assert wanted >= by_sample - 1e-12


def test_the_last_classifier_can_be_left_out() -> None:
    logits = random_logits(4, 5, 2)
    without_it = ensemble.diversity_term(logits, EnsembleOptions(last=False)).item()
    assert without_it == pytest.approx(ensemble.diversity_term(logits[:3]).item())


@pytest.mark.parametrize("last", [True, False])
def test_a_single_classifier_has_nobody_to_differ_from(last: bool) -> None:
    assert ensemble.diversity_term(random_logits(1, 5, 2), EnsembleOptions(last=last)).item() == 0


def test_the_loss_by_hand() -> None:
    # Probabilities of class 1: 0.8 and then 0.6; the label is 1.
    logits = torch.tensor([[[0.2, 0.8]], [[0.4, 0.6]]], dtype=torch.float64).log()
    right = -math.log(0.8) - math.log(0.6)
    unlike = -(0.4 * math.log(0.2) + 0.6 * math.log(0.8))  # 0.778, which is above ln 2
    for bound, counted in ((None, unlike), (1.0, math.log(2)), (2.0, unlike)):
        loss = loss_of(logits, [1], diversity=0.5, bound=bound)
        assert loss.item() == pytest.approx(right - 0.5 * counted)


def test_without_diversity_the_loss_is_the_plain_sum_or_pabee_s_up_to_scale() -> None:
    logits = random_logits(5, 4, 3)
    batch = batch_of([0, 1, 2, 1])
    by_stage = [torch.nn.functional.cross_entropy(stage, batch.labels).item() for stage in logits]
    plain = loss_of(logits, [0, 1, 2, 1], diversity=0.0)
    assert plain.item() == pytest.approx(sum(by_stage))
    deep = loss_of(logits, [0, 1, 2, 1], diversity=0.0, weights="depth")
    assert deep.item() == pytest.approx(5 * pabee.weighted_loss(MODEL, answers_of(logits), batch).item())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.1, 3.0, 100.0, 1e4]),
    classes=st.integers(2, 4),
    diversity=st.sampled_from([0.1, 1.0, 50.0]),
)
def test_with_the_bound_the_loss_has_a_floor_and_finite_gradients(
    seed: int, scale: float, classes: int, diversity: float
) -> None:
    logits = random_logits(5, 3, classes, seed, scale).float().requires_grad_()
    loss = loss_of(logits, [0, 1, 0], diversity=diversity)
    loss.backward()
    assert loss.item() >= -diversity * 4 * math.log(classes) * (1 + 1e-5)
    assert logits.grad.isfinite().all()


def descend(bound: float | None, diversity: float, steps: int = 1000) -> Tensor:
    """Gradient descent on the loss of one sample whose five classifiers start out right; returns their logits."""
    logits = (torch.tensor([0.0, 1.0]).repeat(5, 1, 1) + random_logits(5, 1, 2, scale=0.1).float()).requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(logits, [1], diversity=diversity, bound=bound).backward()
        optimizer.step()
    return logits.detach()[:, 0]


def test_without_the_bound_a_large_lambda_makes_classifiers_wrong_and_with_it_does_not() -> None:
    runaway, bounded = descend(None, 0.8), descend(1.0, 0.8)
    assert (runaway.argmax(dim=-1) != 1).any()
    assert runaway.abs().max() > 20
    assert (bounded.argmax(dim=-1) == 1).all()


@pytest.mark.parametrize(("margin", "gains"), [(9.0, False), (11.0, True)])
def test_being_wrong_pays_once_the_margin_exceeds_one_over_lambda(margin: float, gains: bool) -> None:
    def loss(doubt: float) -> float:
        second = torch.tensor([doubt, 1 - doubt], dtype=torch.float64).log()
        logits = torch.stack([torch.tensor([0.0, margin], dtype=torch.float64), second])[:, None]
        return loss_of(logits, [1], diversity=0.1, bound=None).item()

    assert (loss(0.02) < loss(0.01)) is gains


def test_gradients_of_the_diversity_term_reach_both_classifiers() -> None:
    logits = random_logits(2, 3, 2).requires_grad_()
    ensemble.diversity_term(logits, EnsembleOptions(bound=None)).backward()
    assert (logits.grad.abs().sum(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diversity": -0.1}, "0 or more; got -0.1"),
        ({"diversity": math.nan}, "0 or more; got nan"),
        ({"bound": 0.0}, "positive number"),
        ({"bound": math.inf}, "None for no bound"),
        ({"per": "epoch"}, "unknown per 'epoch'; choose one of: batch, sample"),
        ({"weights": "deep"}, "unknown weights 'deep'"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_training(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ensemble.METHOD.with_options(**options)


def test_a_regression_is_refused_before_a_backbone_is_loaded() -> None:
    with pytest.raises(InputError, match=r"vote on classes.*use pabee"):
        ensemble.build(Setting(backbone="no such backbone"), 1, EnsembleOptions())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), stages=st.integers(2, 8), classes=st.integers(2, 4))
def test_t_plus_one_votes_never_leave_later_than_patience_t(seed: int, stages: int, classes: int) -> None:
    evidence = random_evidence(seed, stages, 30, classes)
    for t in range(1, stages):
        voted = decide(evidence, rules.vote(), t + 1).stages
        patient = decide(evidence, rules.patience(), t).stages
        assert (voted <= patient).all()


def test_both_answers_leave_together_and_differ_where_the_current_one_is_in_the_minority() -> None:
    # Answers 0, 0, 1, 1, 1: at the third stage 0 leads, at the end 1 does.
    answers = torch.tensor([[0], [0], [1], [1], [1]])
    evidence = make_evidence(torch.nn.functional.one_hot(answers, 2).float(), [1])
    majority, current = ensemble.METHOD.rules.values()
    for votes, stage, both in ((2, 1, (0, 0)), (3, 4, (1, 1))):
        decided = [decide(evidence, rule, votes) for rule in (majority, current)]
        assert [int(each.stages) for each in decided] == [stage, stage]
        assert tuple(int(each.predictions) for each in decided) == both
    third = make_evidence(evidence.logits[:3], [1])
    decided = [int(decide(third, rule, rules.NEVER).predictions) for rule in (majority, current)]
    assert decided == [0, 1]


def test_votes_over_a_root_of_the_stages_by_brute_force() -> None:
    evidence = random_evidence(3, 6, 40, 3)
    readiness = rules.vote(gamma=0.5).readiness(evidence)
    for sample in range(40):
        answers = evidence.predictions[:, sample].tolist()
        for stage in range(6):
            most = max(answers[: stage + 1].count(name) for name in range(3))
            assert readiness[stage, sample].item() == pytest.approx(most / math.sqrt(stage + 1))
    assert torch.equal(rules.vote(0.5).answers(evidence), rules.vote().answers(evidence))


@pytest.mark.parametrize("gamma", [-0.1, 1.0, math.nan])
def test_a_share_of_votes_is_refused_for_it_never_keeps_anybody(gamma: float) -> None:
    with pytest.raises(InputError, match="gamma of a vote lies from 0 to below 1"):
        rules.vote(gamma)
