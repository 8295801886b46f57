"""The learned-exits gate: every exit is held to a linear model on its own vector."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.models.record import record_features
from eeutils.papers import cascadebert, finetuned, hashee, pabee
from eeutils.training import runs
from eeutils.training.probes import learned_exits
from eeutils.training.runs import Run, load_or_train
from eeutils.training.settings import Setting
from tests.helpers import accuracy, make_evidence

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


def test_a_single_exit_has_no_other_to_be_told_from_and_gets_no_probe(setting: Setting) -> None:
    run = load_or_train(finetuned.METHOD, replace(setting, epochs=1), progress=False)
    assert not run.has_probes
    assert not list(run.directory.glob("evidence-probe-*"))


def with_gap(labels: int, better: int, exits: int = 4) -> tuple[Evidence, Evidence]:
    """Exits that are right on nine of ten samples, and probes that are right on `better` more of them."""
    said = torch.ones(exits, labels, dtype=torch.long)
    said[:, : labels // 10] = 0
    probed = said.clone()
    probed[:, :better] = 1
    return tuple(
        make_evidence(torch.nn.functional.one_hot(answers, 2).float(), [1] * labels) for answers in (said, probed)
    )


@pytest.mark.parametrize(
    ("labels", "better", "learned"),
    [
        (1000, 0, True),
        (1000, 9, True),  # a point below is as good
        (1000, 30, False),  # three points and an interval of one and a half
        (100, 4, True),  # four points of a hundred samples may be chance
        (100, 10, False),
    ],
)
def test_an_exit_may_be_a_point_below_its_probe_or_what_the_samples_cannot_tell(
    labels: int, better: int, learned: bool
) -> None:
    gate = learned_exits(*with_gap(labels, better), accuracy)
    assert gate.gap.tolist() == pytest.approx([-better / labels] * 4)
    assert gate.learned.tolist() == [learned] * 4
    assert learned_exits(*reversed(with_gap(labels, better)), accuracy).learned.all(), "better than the probe is fine"


def test_the_more_exits_are_asked_the_wider_is_each_interval() -> None:
    one, twelve = (learned_exits(*with_gap(300, 6, exits), accuracy).iloc[0] for exits in (1, 12))
    # Bonferroni: the 2.5th percentile for one exit, the 0.2nd for twelve; 1.96 and 2.87 deviations of a normal.
    assert (twelve.high - twelve.low) / (one.high - one.low) == pytest.approx(2.87 / 1.96, rel=0.15)
