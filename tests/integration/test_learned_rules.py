"""Learned rules and PCEE-BERT's on a model that really stops: the runtime equals the sweep, sample by sample."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from eeutils.exiting import tradeoff
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.learned import learn, learned_on_test, learned_rule
from eeutils.exiting.rules import Rule, learned
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.papers import berxit, pabee, pceebert
from eeutils.papers.controls import best_rule, exit_readers
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.helpers import accuracy, negative_error
from tests.tiny import tiny_model, tiny_samples


def recorded(classes: int, seed: int, first_id: int) -> tuple[Evidence, object]:
    samples = tiny_samples(24, seed=seed, regression=classes == 1)
    samples = replace(samples, ids=samples.ids + first_id)
    return record(tiny_model(classes=classes), samples), samples


def stops_where_it_should(rule: Rule, evidence: Evidence, samples: object, classes: int) -> int:
    """The number of thresholds at which both ways of leaving were compared."""
    metric = negative_error if classes == 1 else accuracy
    thresholds = tradeoff.sweep(evidence, rule, metric, points=3).threshold.tolist()
    for threshold in thresholds:
        wanted = tradeoff.decide(evidence, rule, threshold)
        for batch_size in (1, 8):
            found = Runtime(tiny_model(classes=classes), rule, threshold)(samples, batch_size=batch_size)
            assert found.stages.tolist() == wanted.stages.tolist()
            torch.testing.assert_close(found.logits.float(), wanted.logits.float(), atol=1e-4, rtol=1e-4)
    return len(thresholds)


@pytest.mark.parametrize("classes", [1, 2])
def test_a_learned_rule_stops_where_the_sweep_says(classes: int) -> None:
    dev, samples_of_dev = recorded(classes, 0, 0)
    test, samples = recorded(classes, 1, 1000)
    rule = learned_rule(dev)
    assert stops_where_it_should(rule, test, samples, classes) > 2
    # Dev samples are known again by the runtime, too, and judged by rules that have not seen them.
    assert stops_where_it_should(rule, dev, samples_of_dev, classes) > 2


def test_a_rule_that_knows_test_labels_drives_no_runtime() -> None:
    dev, _ = recorded(2, 0, 0)
    with pytest.raises(ValueError, match="needs to know what is right"):
        Runtime(tiny_model(), learned_on_test(dev), -0.5)


@pytest.mark.parametrize("answer", pceebert.ANSWERS)
def test_pcee_stops_and_answers_as_the_sweep_says(answer: str) -> None:
    test, samples = recorded(2, 1, 1000)
    assert stops_where_it_should(pceebert.patient_and_confident(2, answer), test, samples, 2) > 2


@pytest.mark.usefixtures("tiny_tasks")
def test_pcee_needs_no_training_where_pabee_is_there(setting: Setting) -> None:
    run, same = (load_or_train(each.METHOD, setting, progress=False) for each in (pabee, pceebert))
    assert run.directory == same.directory
    assert same.method.title == "PCEE-BERT"
    assert pceebert.tuned(same).name.startswith("entropy, 2 in a row")


@pytest.mark.usefixtures("tiny_tasks")
@pytest.mark.parametrize("task", ["movie", "movie-valence"])
def test_published_rules_and_shares_of_a_run(setting: Setting, task: str) -> None:
    run = load_or_train(berxit.METHOD, replace(setting, task=task), progress=False)
    published = best_rule.published(run)
    assert best_rule.LTE in published
    assert ("entropy" in published) == (task == "movie")
    best = learn(run.dev)
    groups = best_rule.alike(run.test)
    assert groups["uncertainty"] == ["uncertainty", "uncertainty, mean so far"]
    assert sorted(itertools.chain(*groups.values())) == sorted(best.reads(run.test).index)
    assert list(best.reads(run.test, groups).index) == list(groups)
    table = best_rule.shares(published, best.rule, run, (1.2, 50.0))
    assert set(table["speed-up"]) <= {"1.2x"}
    assert table[table.share.notna()].possible.map(lambda text: not text.startswith("-")).all()
    assert "1.2x" in best_rule.in_words(table)
    told = best_rule.uncertainty_by_exit(run.test)
    assert list(told.index) == [1, 2, 3, 4]
    assert told["what it stands for"].between(0, 1).all()
    knowing = best_rule.knows(run.test, published[best_rule.LTE])
    assert len(knowing) == 4
    by_size = best_rule.by_size(run, (12, 500), (1.2,), draws=2)
    assert by_size.samples.tolist() == [12, 12, run.dev.samples, run.test.samples // 2]
    assert np.isfinite(best_rule.score_of(run.test, best.rule, 1.2, run.metric))
    assert np.isnan(best_rule.score_of(run.test, best.rule, 50.0, run.metric))


@pytest.mark.usefixtures("tiny_tasks")
def test_readers_that_learn_afterwards_say_how_wrong_each_exit_is(setting: Setting) -> None:
    run = load_or_train(berxit.METHOD, setting, progress=False)
    readers = exit_readers.afterwards(run, most=20)
    assert len(readers) == 4
    for evidence in readers.values():
        assert torch.equal(evidence.ids, run.test.ids)
        torch.testing.assert_close(evidence.logits, run.test.logits, atol=1e-5, rtol=1e-5)
        said = evidence.extras["uncertainty"]
        assert said.shape == run.test.logits.shape[:2]
        assert ((said >= 0) & (said <= 1)).all()
        assert len(tradeoff.sweep(evidence, learned(), run.metric)) > 1


def test_shares_in_words_by_hand() -> None:
    rows = {
        "rule": ["entropy", "patience", "entropy"],
        "speed-up": ["2x", "2x", "3x"],
        "gain": ["", "", ""],
        "possible": ["0.030 [0.010, 0.050]"] * 2 + ["0.001 [-0.010, 0.012]"],
        "share": [0.9, 0.1, np.nan],
        "low": [0.6, -0.2, np.nan],
        "high": [1.1, 0.4, np.nan],
    }
    said = best_rule.in_words(best_rule.pd.DataFrame(rows))
    assert said == (
        "at 2x of 0.030 [0.010, 0.050]: entropy 90% [60%, 110%], patience 10% [-20%, 40%]; "
        "at 3x the learned rule gains 0.001 [-0.010, 0.012], not told from 0: no shares"
    )
    assert best_rule.in_words(best_rule.pd.DataFrame(rows).iloc[:0]) == "no speed-up is in reach"


def test_temperatures_change_no_answer_and_extras_can_be_left_out() -> None:
    evidence, _ = recorded(2, 1, 0)
    evidence = replace(evidence, extras={"policy": torch.rand(evidence.stages, evidence.samples)})
    assert best_rule.without_extras(evidence).extras == {}
    errors = best_rule.calibration_errors(evidence)
    assert len(errors) == evidence.stages
    assert all(0 <= error <= 1 for error in errors)
