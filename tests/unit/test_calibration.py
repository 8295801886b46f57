"""Calibration: reliability, temperatures and the difficulty inversion score, against hand, brute force, libraries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve

from eeutils import rules, tradeoff
from eeutils.calibration import (
    at_temperatures,
    difficulty_inversion_score,
    expected_calibration_error,
    reliability,
    temperatures,
)
from eeutils.errors import InputError
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


def test_temperatures_are_those_that_scipy_finds() -> None:
    evidence = random_evidence(3, stages=3, samples=80, classes=3)
    for found, logits in zip(temperatures(evidence), evidence.logits.double().numpy(), strict=True):

        def loss(log_t: float, logits=logits) -> float:
            return -log_softmax(logits / math.exp(log_t), axis=1)[range(80), evidence.labels.numpy()].mean()

        best = minimize_scalar(loss, bounds=(-math.log(20), math.log(20)), method="bounded", options={"xatol": 1e-7})
        assert loss(math.log(found)) == pytest.approx(best.fun, abs=1e-6)


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
    found = difficulty_inversion_score(sure, hard)
    assert found == pytest.approx(sum(pairs) / len(pairs)) if pairs else math.isnan(found)


def test_the_inversion_score_by_hand() -> None:
    # Easy: 0.9 and 0.6; hard: 0.7 and 0.5. Three of the four pairs are in order.
    sure, hard = torch.tensor([0.9, 0.6, 0.7, 0.5]), torch.tensor([False, False, True, True])
    assert difficulty_inversion_score(sure, hard) == 0.75
