"""The learned-exits gate: every exit is held to a linear model on its own vector."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from eeutils.errors import InputError
from eeutils.models.record import record_features
from eeutils.papers import cascadebert, hashee, pabee
from eeutils.training import runs
from eeutils.training.probes import learned_exits
from eeutils.training.runs import Run, load_or_train
from eeutils.training.settings import Setting

pytestmark = pytest.mark.usefixtures("tiny_tasks")


def train(setting: Setting) -> Run:
    return load_or_train(pabee.METHOD, replace(setting, epochs=4, learning_rate=5e-3, pool="mean"), progress=False)


def test_a_probe_is_a_logistic_regression_on_what_its_exit_reads(setting: Setting) -> None:
    run = train(setting)
    evidence, model = run.probe_test, run.model()
    vectors = {split: record_features(model, run.samples(split))[1].numpy() for split in ("train", "test")}
    for stage in range(4):
        scaler = StandardScaler().fit(vectors["train"][stage])
        linear = LogisticRegression(C=0.1, max_iter=500)
        linear.fit(scaler.transform(vectors["train"][stage]), run.samples("train").labels.numpy())
        expected = linear.predict_log_proba(scaler.transform(vectors["test"][stage]))
        np.testing.assert_allclose(evidence.log_probabilities[stage].numpy(), expected, atol=1e-4)
    assert torch.equal(evidence.ids, run.test.ids)
    assert torch.equal(evidence.cost["flops"], run.test.cost["flops"])


def test_features_are_what_the_classifiers_read_and_come_with_the_same_evidence(setting: Setting) -> None:
    run = train(setting)
    model, samples = run.model(), run.samples("test")
    evidence, features = record_features(model, samples, batch_size=5)
    torch.testing.assert_close(evidence.logits, run.test.logits, atol=1e-5, rtol=1e-5)
    heads = [model.exit_at(stage).classifier for stage in range(4)]
    logits = torch.stack([head(vectors) for head, vectors in zip(heads, features, strict=True)])
    torch.testing.assert_close(logits, run.test.logits, atol=1e-5, rtol=1e-5)
    assert not heads[0]._forward_pre_hooks, "nothing may stay behind on the model"


def test_probes_are_learned_with_the_run_and_again_where_their_files_are_gone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(setting)
    assert run.has_probes
    first = run.probe_dev
    for file in run.directory.glob("evidence-probe-*"):
        file.unlink()
    again = load_or_train(run.method, run.setting, progress=False)
    assert not again.has_probes
    assert torch.equal(again.probe_dev.logits, first.logits)
    assert again.has_probes
    monkeypatch.setattr(runs, "_save_probes", lambda *_: pytest.fail("they are there"))
    assert again.probe_test.samples == 24


def test_an_exit_that_has_learned_nothing_is_told_from_those_that_have(setting: Setting) -> None:
    run = train(setting)
    right = torch.nn.functional.one_hot(run.dev.labels, 2).float().expand(4, -1, -1)
    exits, probes = (replace(run.dev, logits=right.clone()) for _ in range(2))
    exits.logits[1] = torch.tensor([9.0, 0.0])  # the same answer for everybody
    exits.logits[2, 0] = right[2, 0].flip(0)  # one of twenty wrong
    gate = learned_exits(exits, probes, run.metric)
    assert gate.layer.tolist() == [1, 2, 3, 4]
    assert gate.exit.tolist() == [1.0, 0.5, 0.95, 1.0]
    assert gate.probe.tolist() == [1.0] * 4
    assert gate.gap.tolist() == pytest.approx([0.0, -0.5, -0.05, 0.0])
    # One error of twenty is within half the interval.
    assert gate.learned.tolist() == [True, False, True, True]


def test_numbers_are_probed_by_a_ridge_regression(setting: Setting) -> None:
    run = train(replace(setting, task="movie-valence"))
    assert run.probe_dev.regression
    assert run.learned.probe.iloc[-1] > 0.3  # chance is 0, with twenty samples give or take 0.2


@pytest.mark.parametrize("method", [hashee.METHOD, cascadebert.METHOD], ids=lambda method: method.name)
def test_a_model_without_exits_is_refused(setting: Setting, method: object) -> None:
    options = {"models": (setting.backbone,), "weight": 0.0} if method is cascadebert.METHOD else {}
    run = load_or_train(method, replace(setting, epochs=1), progress=False, **options)
    with pytest.raises(InputError, match=r"probes read the vectors of exits on one encoder, and .* has none"):
        _ = run.learned
