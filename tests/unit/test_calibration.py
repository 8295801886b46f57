"""Calibration: reliability, temperatures and the difficulty inversion score, against hand, brute force, libraries."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve

from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.exiting.calibration import (
    agreement,
    at_temperatures,
    auroc,
    difficulty_inversion_score,
    error_correlation,
    expected_calibration_error,
    reliability,
    temperatures,
)
from tests.helpers import accuracy, make_evidence, random_evidence


def confidences(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator), torch.rand(count, generator=generator) < 0.6


def test_the_expected_calibration_error_worked_out_by_hand() -> None:
    # Bins (0.5, 0.6): sure 0.55 on average, 1 of 2 right; (0.9, 1.0): sure 0.95, both right.
    sure = torch.tensor([0.52, 0.58, 0.92, 0.98])
    right = torch.tensor([True, False, True, True])
    table = reliability(sure, right, bins=10)
    assert table.confidence.tolist() == pytest.approx([0.55, 0.95])
    assert table.accuracy.tolist() == [0.5, 1.0]
    assert table.samples.tolist() == [2, 2]
    assert expected_calibration_error(sure, right, bins=10) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)


@given(count=st.integers(5, 200), seed=st.integers(0, 50), bins=st.integers(2, 20))
def test_the_diagram_is_scikit_learn_s(count: int, seed: int, bins: int) -> None:
    sure, right = confidences(count, seed)
    table = reliability(sure, right, bins)
    accuracies, means = calibration_curve(right.numpy(), sure.double().numpy(), n_bins=bins)
    assert table.accuracy.tolist() == pytest.approx(accuracies.tolist())
    assert table.confidence.tolist() == pytest.approx(means.tolist())
    assert table.samples.sum() == count


def test_certainty_of_one_has_a_bin_and_nonsense_is_refused() -> None:
    assert expected_calibration_error(torch.ones(3), torch.tensor([True, True, False])) == pytest.approx(1 / 3)
    for sure, bins in ((torch.tensor([1.5]), 10), (torch.tensor([-0.1]), 10), (torch.tensor([0.5]), 0)):
        with pytest.raises(InputError, match="from 0 to 1"):
            reliability(sure, torch.tensor([True]), bins)


@pytest.mark.parametrize("seed", range(5))
def test_no_temperature_of_a_fine_grid_is_better(seed: int) -> None:
    # A calibrated stage, one that is four times too sure and one that doubts too much, each with some noise.
    generator = torch.Generator().manual_seed(seed)
    true = 2 * torch.randn(120, 3, generator=generator)
    labels = torch.multinomial(true.softmax(dim=-1), 1, generator=generator)[:, 0]
    noise = torch.randn(3, 120, 3, generator=generator)
    evidence = make_evidence((true + noise / 3) * torch.tensor([1.0, 4.0, 0.3])[:, None, None], labels)
    grid = np.exp(np.linspace(-math.log(20), math.log(20), 6001))  # a step of 0.1%
    for temperature, logits in zip(temperatures(evidence).tolist(), evidence.logits.double().numpy(), strict=True):

        def loss(t: float, logits: np.ndarray = logits) -> float:
            return -log_softmax(logits / t, axis=1)[range(120), labels.numpy()].mean()

        losses = np.array([loss(t) for t in grid])
        assert loss(temperature) <= losses.min() + 1e-9
        assert temperature == pytest.approx(grid[losses.argmin()], rel=2e-3)
        assert 0.1 < temperature < 10


def test_a_model_that_is_too_sure_is_cooled_to_calibration() -> None:
    # Logits of a calibrated model, tripled: the temperature must be 3.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
    evidence = make_evidence(3 * logits[None], labels)
    assert temperatures(evidence).item() == pytest.approx(3, rel=0.03)
    before, after = evidence, at_temperatures(evidence, temperatures(evidence))
    errors = [
        expected_calibration_error(rules.confidence().readiness(e)[0], e.predictions[0] == labels)
        for e in (before, after)
    ]
    assert errors[1] < 0.02 < 0.1 < errors[0]


def test_a_stage_that_is_always_right_gets_a_finite_temperature() -> None:
    evidence = make_evidence([[[2.0, 0.0], [0.0, 2.0]]], [0, 1])
    assert 1 / 20 <= temperatures(evidence).item() < 0.2


def test_temperature_moves_no_answer_and_with_two_classes_and_two_stages_no_curve() -> None:
    evidence = random_evidence(1, stages=2, samples=60, classes=2)
    cooled = at_temperatures(evidence, torch.tensor([2.5, 0.5], dtype=torch.float64))
    assert torch.equal(cooled.predictions, evidence.predictions)
    curves = [tradeoff.sweep(e, rules.confidence(), accuracy, points=1000) for e in (evidence, cooled)]
    columns = ["score", "layers", "flops"]
    assert curves[0][columns].to_numpy() == pytest.approx(curves[1][columns].to_numpy())


def test_temperatures_need_classes_and_labels() -> None:
    for evidence in (make_evidence([[[1.0, 0.0]]]), make_evidence([[[1.0]]], [1.0])):
        with pytest.raises(InputError, match="classes with labels"):
            temperatures(evidence)


@given(count=st.integers(1, 60), seed=st.integers(0, 50))
def test_the_inversion_score_is_the_share_of_all_pairs(count: int, seed: int) -> None:
    sure, hard = confidences(count, seed)
    sure = (sure * 8).round() / 8  # so that ties happen: a tie is no inversion
    pairs = [bool(i >= j) for i in sure[~hard] for j in sure[hard]]
    score = difficulty_inversion_score(sure, hard)
    assert score == pytest.approx(sum(pairs) / len(pairs)) if pairs else math.isnan(score)


def test_the_inversion_score_by_hand() -> None:
    # Easy: 0.9 and 0.6; hard: 0.7 and 0.5. Three of the four pairs are in order.
    sure, hard = torch.tensor([0.9, 0.6, 0.7, 0.5]), torch.tensor([False, False, True, True])
    assert difficulty_inversion_score(sure, hard) == 0.75


@given(count=st.integers(1, 60), seed=st.integers(0, 50))
def test_the_area_under_the_roc_curve_is_the_share_of_pairs_in_order_and_undefined_without_a_pair(
    count: int, seed: int
) -> None:
    ready, good = confidences(count, seed)
    ready = (ready * 8).round() / 8
    pairs = [1.0 if i > j else 0.5 if i == j else 0.0 for i in ready[good] for j in ready[~good]]
    for area in (auroc(good, ready), auroc(good.numpy(), ready.numpy())):
        assert area == pytest.approx(np.mean(pairs)) if pairs else math.isnan(area)


@pytest.mark.parametrize("good", [[True] * 4, [False] * 4], ids=["all good", "none good"])
def test_where_all_are_alike_nothing_can_be_told_apart(good: list[bool]) -> None:
    assert math.isnan(auroc(torch.tensor(good), torch.tensor([0.1, 0.2, 0.3, 0.4])))


def test_agreement_and_correlation_of_errors_by_hand() -> None:
    answers = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]])
    evidence = make_evidence(torch.nn.functional.one_hot(answers, 2).float(), [0, 0, 1, 0])
    assert agreement(evidence).tolist() == [[1.0, 0.75, 0.0], [0.75, 1.0, 0.25], [0.0, 0.25, 1.0]]
    # Wrong: 0001, 0101, 1110. Phi of the first two is 1/sqrt(3), and the third is the opposite of the first.
    phi = error_correlation(evidence)
    assert phi[0, 1].item() == pytest.approx(1 / math.sqrt(3))
    assert phi[0, 2].item() == pytest.approx(-1)
    always_right = replace(evidence, labels=answers[0])
    assert error_correlation(always_right)[0].isnan().all()
    with pytest.raises(InputError, match="needs labels"):
        error_correlation(replace(evidence, labels=None))
