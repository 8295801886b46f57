"""PCEE-BERT's rule: patient and confident, and what it answers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.exiting.evidence import Evidence
from eeutils.papers import pabee, pceebert
from eeutils.papers.pceebert import mean_probabilities, patient_and_confident
from tests.helpers import accuracy, make_evidence, random_evidence

few = settings(max_examples=20)


def told(*p_class_1: float) -> Evidence:
    """One sample, to whose class 1 the exits give these probabilities."""
    p = torch.tensor(p_class_1, dtype=torch.float64)
    return make_evidence(torch.stack([1 - p, p], dim=-1).log()[:, None], [1])


def doubt(p: float) -> float:
    return -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)


def leaves(evidence: Evidence, t: int, tau: float) -> int:
    """The exit, from 1."""
    return int(tradeoff.decide(evidence, patient_and_confident(t), 1 - tau).stages) + 1


def counted(evidence: Evidence, t: int, tau: float) -> list[int]:
    """The paper's counter, written as a loop, sample by sample."""
    left = []
    for sample in range(evidence.samples):
        count, at = 0, evidence.stages
        for stage in range(evidence.stages):
            count = count + 1 if float(evidence.entropy[stage, sample]) < tau else 0
            if count == t:
                at = stage + 1
                break
        left.append(at)
    return left


@few
@given(seed=st.integers(0, 2**32 - 1), stages=st.integers(1, 8), t=st.integers(1, 5), tau=st.floats(0.001, 0.999))
def test_it_leaves_where_the_papers_counter_does(seed: int, stages: int, t: int, tau: float) -> None:
    evidence = random_evidence(seed, stages, 6, 3, scale=4.0)
    decided = tradeoff.decide(evidence, patient_and_confident(t), 1 - tau).stages + 1
    assert decided.tolist() == counted(evidence, t, tau)


def test_the_earliest_exit_is_t_where_patience_has_t_plus_one() -> None:
    sure = told(0.99, 0.99, 0.99, 0.99, 0.99)
    for t in (1, 2, 3, 4):
        assert leaves(sure, t, 0.5) == t
        assert int(tradeoff.decide(sure, rules.patience(), t).stages) + 1 == t + 1


def test_the_sure_ones_need_not_agree() -> None:
    assert leaves(told(0.99, 0.01, 0.99, 0.99), 2, 0.5) == 2
    # For patience this sample agrees with itself at exit 4 only.
    assert int(tradeoff.decide(told(0.99, 0.01, 0.99, 0.99), rules.patience(), 1).stages) + 1 == 4


def test_one_doubtful_exit_starts_the_count_again() -> None:
    assert leaves(told(0.99, 0.6, 0.99, 0.99, 0.99), 2, 0.5) == 4
    assert leaves(told(0.99, 0.6, 0.99, 0.6, 0.99), 2, 0.5) == 5  # nobody twice in a row: the last one answers


def test_doubt_is_the_entropy_over_its_largest() -> None:
    tau = doubt(0.8)
    assert leaves(told(0.8, 0.8, 0.99, 0.99), 1, tau + 1e-6) == 1
    assert leaves(told(0.8, 0.8, 0.99, 0.99), 1, tau - 1e-6) == 3


def test_patience_1_is_plain_entropy_with_every_answer_that_is_the_run() -> None:
    evidence = random_evidence(0, 5, 40, 3)
    for threshold in (0.1, 0.5, 0.9, rules.NEVER):
        plain = tradeoff.decide(evidence, rules.entropy(), threshold)
        for answer in ("current", "run"):
            found = tradeoff.decide(evidence, patient_and_confident(1, answer), threshold)
            assert torch.equal(found.stages, plain.stages)
            assert torch.equal(found.predictions, plain.predictions)


def test_answers_average_probabilities_and_the_run_includes_the_current_exit() -> None:
    evidence = told(0.3, 0.9, 0.6, 0.2)
    run, every = patient_and_confident(2, "run"), patient_and_confident(2, "all")
    assert run.answers(evidence)[:, 0, 1].tolist() == pytest.approx([0.3, 0.6, 0.75, 0.4])
    assert every.answers(evidence)[:, 0, 1].tolist() == pytest.approx([0.3, 0.6, 0.6, 0.5])
    # The mean of logits would say otherwise: one very sure exit outweighs two that lean the other way.
    split = told(0.4, 0.4, 0.99999)
    assert patient_and_confident(3, "run").answers(split)[2, 0, 1].item() == pytest.approx(0.6, abs=1e-4)
    assert split.log_probabilities.mean(dim=0).softmax(dim=-1)[0, 1].item() > 0.95


def test_a_run_never_reaches_behind_the_exit_that_broke_it() -> None:
    # In the authors' code the doubtful exit 1 would count in the mean: (0.45 + 0.05 + 0.96) / 3 < 1/2 says class 0.
    evidence = told(0.45, 0.05, 0.96)
    assert leaves(evidence, 2, 0.5) == 3
    answered = tradeoff.decide(evidence, patient_and_confident(2, "run"), 0.5)
    assert int(answered.predictions) == 1
    assert int(tradeoff.decide(evidence, patient_and_confident(2, "all"), 0.5).predictions) == 0


@few
@given(seed=st.integers(0, 2**32 - 1), stages=st.integers(1, 6), t=st.integers(1, 4), stage=st.integers(0, 5))
def test_it_is_causal_and_asks_for_no_more_than_it_reads(seed: int, stages: int, t: int, stage: int) -> None:
    evidence, stage = random_evidence(seed, stages, 5, 3), min(stage, stages - 1)
    for answer in ("current", "run", "all"):
        rule = patient_and_confident(t, answer)
        held = evidence.upto(stage, rule.reads)
        assert torch.equal(rule.readiness(held)[-1], rule.readiness(evidence)[stage])
        assert torch.equal(rule.answers(held)[-1], rule.answers(evidence)[stage])
    assert [patient_and_confident(t, answer).reads for answer in ("current", "run", "all")] == [t, t, None]


def test_its_runs_are_pabees() -> None:
    assert (pceebert.METHOD.name, pceebert.METHOD.build, pceebert.METHOD.phases) == (
        pabee.METHOD.name,
        pabee.METHOD.build,
        pabee.METHOD.phases,
    )
    assert pceebert.METHOD.title != pabee.METHOD.title
    assert next(iter(pceebert.METHOD.rules.values())).name == "entropy, 2 in a row"


def test_numbers_unknown_answers_and_no_patience_are_refused() -> None:
    with pytest.raises(InputError, match="regression"):
        tradeoff.decide(random_evidence(0, 3, 4, 1), patient_and_confident(), 0.5)
    with pytest.raises(InputError, match=r"unknown answer 'mean'.*all, current, run"):
        patient_and_confident(2, "mean")
    with pytest.raises(InputError, match="1 stage or more"):
        patient_and_confident(0)


def test_areas_are_those_of_every_patience_that_can_save_half() -> None:
    evidence = random_evidence(1, 8, 60, 2)
    found = pceebert.areas(evidence, accuracy)
    assert set(found) == {2, 3}  # t = 4 costs half of the layers and a head too many
    curve = tradeoff.sweep(evidence, rules.sustained(rules.entropy(), 2), accuracy)
    assert found[2] == tradeoff.area(curve)


def test_means_of_few_exits_are_over_those_that_have_spoken() -> None:
    evidence = told(0.2, 0.4)
    assert mean_probabilities(5, evidence)[:, 0, 1].tolist() == pytest.approx([0.2, 0.3])
