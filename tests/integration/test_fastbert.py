"""FastBERT: students that learn from the last classifier and from no label, what is frozen, and what the heads cost."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.models.backbone import Backbone
from eeutils.models.exits import Exit, MultiExitModel, Pooler
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.papers import fastbert, finetuned
from eeutils.papers.fastbert import FastbertOptions, Student, distillation_loss
from eeutils.training import loop
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.helpers import answers_of
from tests.tiny import flops_counted, tiny_encoder, tiny_model, tiny_samples

LOGITS = [[[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]], [[0.0, 3.0, 0.5], [0.5, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 4.0, 1.0]]]
"""Two students and a teacher on two samples of three classes."""


def softmax(logits: list[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(logit) / total for logit in logits]


def build(setting: Setting, classes: int = 2, seed: int = 0, **changes: object) -> MultiExitModel:
    torch.manual_seed(seed)
    return fastbert.build(setting, classes, fastbert.METHOD.with_options(**changes)).eval()


def test_the_loss_is_the_divergence_of_each_student_from_the_teacher_by_hand() -> None:
    wanted = 0.0
    for student in LOGITS[:2]:
        for said, truth in zip(student, LOGITS[2], strict=True):
            p, q = softmax(truth), softmax(said)
            # Summed over classes and students, the mean over samples: not over samples and classes.
            wanted += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    batch = tiny_samples(2).batch([0, 1])
    assert distillation_loss(tiny_model(), answers_of(torch.tensor(LOGITS)), batch).item() == pytest.approx(wanted)


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn_and_the_teacher_never_has() -> None:
    logits = torch.tensor([LOGITS[2], LOGITS[2], LOGITS[2]]).requires_grad_()
    loss = distillation_loss(tiny_model(), answers_of(logits), tiny_samples(2).batch([0, 1]))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    other = torch.tensor(LOGITS).requires_grad_()
    distillation_loss(tiny_model(), answers_of(other), tiny_samples(2).batch([0, 1])).backward()
    assert other.grad[-1].abs().max() == 0
    assert (other.grad[:-1].abs().amax(dim=(1, 2)) > 0).all()


def test_it_stays_finite_where_a_student_is_sure_of_something_else() -> None:
    logits = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]]).requires_grad_()
    loss = distillation_loss(tiny_model(), answers_of(logits), tiny_samples(1).batch([0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def fitted(setting: Setting, folder: Path, labels: Tensor) -> MultiExitModel:
    model, samples = build(setting), replace(tiny_samples(40), labels=labels)
    phases = fastbert.METHOD.phases(FastbertOptions())
    loop.fit(model, phases, samples, setting, folder, progress=False)
    return model


def test_students_learn_the_same_whatever_the_labels_are(setting: Setting, tmp_path: Path) -> None:
    labels = tiny_samples(40).labels
    first, second = (
        fitted(setting, tmp_path / name, given).state_dict()
        for name, given in (("right", labels), ("wrong", 1 - labels))
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    untrained = build(setting).state_dict()
    moved = {name for name in first if not torch.equal(first[name], untrained[name])}
    assert {f"exits.{k}.attention.query.weight" for k in "123"} <= moved
    assert not any(name.startswith(("backbone", "exits.4")) for name in moved), "encoder and teacher are frozen"


@pytest.mark.parametrize("students", ["attention", "pooler"])
def test_students_stand_on_every_layer_but_the_last_which_is_the_plain_head(setting: Setting, students: str) -> None:
    exits = [build(setting, students=students).exits[str(k)] for k in (1, 2, 3, 4)]
    kind = Student if students == "attention" else Exit
    assert [type(head) for head in exits] == [kind, kind, kind, Exit]
    assert isinstance(exits[3].pooler, Pooler)
    if students == "attention":
        assert all(head.attention.heads == 2 and head.attention.inner == 128 for head in exits[:3])


@pytest.mark.usefixtures("tiny_tasks")
@pytest.mark.parametrize("students", ["attention", "pooler"])
def test_from_training_to_the_runtime(setting: Setting, students: str) -> None:
    learning = replace(setting, epochs=8, learning_rate=5e-3, head_rate=3.0, pool="mean")
    run = load_or_train(fastbert.METHOD, learning, progress=False, students=students)
    plain = load_or_train(finetuned.METHOD, learning, progress=False)
    assert torch.equal(run.test.logits[-1], plain.test.logits[-1])
    assert run.history.loss.iloc[-1] < run.history.loss.iloc[0]
    same = (run.train.predictions[:-1] == run.train.predictions[-1]).double().mean(dim=1)
    assert same.min() > 0.85, "students come to agree with the teacher"
    assert run.has_probes, "exits of one width are probed"
    rule = fastbert.METHOD.rules["entropy"]
    threshold = tradeoff.threshold_for_speedup(run.dev, rule, 1.5, axis="layers")
    simulated = tradeoff.decide(run.test, rule, threshold)
    assert len(simulated.stages.unique()) > 1
    for batch_size in (1, 8):
        outcome = Runtime(run.model(), rule, threshold)(run.samples("test"), batch_size=batch_size)
        assert outcome.stages.tolist() == simulated.stages.tolist()
        torch.testing.assert_close(outcome.logits.float(), simulated.logits.float(), atol=1e-4, rtol=1e-4)


def test_speed_is_a_threshold_on_the_normalised_entropy(setting: Setting) -> None:
    evidence = record(build(setting, classes=3), tiny_samples(20))
    speed = float(evidence.entropy[0].median())  # half of them are that sure at the first exit
    decided = tradeoff.decide(evidence, rules.entropy(), 1 - speed).stages.tolist()
    for row, stage in enumerate(decided):
        p = [softmax(evidence.logits[k, row].tolist()) for k in range(3)]
        sure = [k for k in range(3) if -sum(a * math.log(a) for a in p[k]) / math.log(3) <= speed + 1e-6]
        assert stage == (sure[0] if sure else 3)
    assert len(set(decided)) > 1


def test_a_regression_is_refused(setting: Setting) -> None:
    with pytest.raises(InputError, match=r"distributions over classes.*'movie-valence' is a regression"):
        fastbert.build(replace(setting, task="movie-valence"), 1, FastbertOptions())


def test_what_students_cost_is_what_torch_counts() -> None:
    # Torch counts attention as zero on CPU where it is fused: 4 T^2 at width 128 is added for each student so far.
    backbone = Backbone(tiny_encoder(attention="eager"))
    exits = {k: Student(backbone, 2, "mean") for k in (1, 2, 3)} | {4: Exit(16, 2, "mean", Pooler(backbone))}
    model = MultiExitModel(backbone, exits).eval()
    samples = tiny_samples(4)
    evidence = record(model, samples)
    for row, length in enumerate(samples.lengths.tolist()):
        counted = [flops + 4 * 128 * length**2 * min(k, 3) for k, flops in enumerate(flops_counted(model, length), 1)]
        assert evidence.cost["flops"][:, row].tolist() == counted
