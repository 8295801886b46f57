"""BERxiT: which loss counts in which step, learning to exit by hand, and the learned rule from training to the runtime,
on classes and on numbers."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.models.backbone import Backbone
from eeutils.models.exits import MultiExitModel, Pooler
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.papers import berxit
from eeutils.papers.berxit import BerxitOptions, LteExit, lte_loss, lte_targets
from eeutils.training import loop
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.helpers import answers_of, interrupted_at
from tests.tiny import flops_counted, tiny_encoder, tiny_samples

LOGITS = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.5, 0.0]], [[1.0, 0.0], [0.0, 4.0]]])
LABELS = torch.tensor([0, 1])
UNCERTAIN = torch.tensor([[0.2, 0.9], [0.5, 0.3], [0.1, 0.0]])
WRONG = [[0, 0], [1, 1], [0, 0]]  # of each exit and sample above


def cross_entropies() -> list[float]:
    """The loss of each exit of LOGITS by hand: ln(1 + exp(-margin of the right class)), mean over the two samples."""
    margins = [[2.0, 1.0], [-3.0, -0.5], [1.0, 4.0]]
    return [sum(math.log(1 + math.exp(-margin)) for margin in row) / 2 for row in margins]


LTE = sum((u - t) ** 2 for us, ts in zip(UNCERTAIN.tolist(), WRONG, strict=True) for u, t in zip(us, ts)) / 6  # noqa: B905


def build(setting: Setting, classes: int = 2, seed: int = 0, **changes: object) -> MultiExitModel:
    torch.manual_seed(seed)
    return berxit.build(setting, classes, berxit.METHOD.with_options(**changes)).eval()


def losses_of(options: BerxitOptions, model: MultiExitModel, steps: int) -> list[float]:
    """What the phase's objective gives in so many steps on LOGITS."""
    [phase] = berxit.phases(options)
    batch = tiny_samples(2).batch([0, 1])._replace(labels=LABELS)
    extras = {"uncertainty": UNCERTAIN} if options.lte else {}
    return [phase.objective(model, answers_of(LOGITS, **extras), batch).item() for _ in range(steps)]


def test_even_steps_learn_the_last_exit_and_odd_ones_the_others_worked_out_by_hand(setting: Setting) -> None:
    first, second, last = cross_entropies()
    found = losses_of(BerxitOptions(), build(setting), 4)
    assert found == pytest.approx([last + LTE, first + second + LTE] * 2, rel=1e-5)


def test_without_learning_to_exit_odd_steps_keep_the_last_exit(setting: Setting) -> None:
    first, second, last = cross_entropies()
    found = losses_of(BerxitOptions(lte=False), build(setting, lte=False), 3)
    assert found == pytest.approx([last, first + second + last, last], rel=1e-5)


def test_joint_training_sums_all_losses_in_every_step(setting: Setting) -> None:
    wanted = sum(cross_entropies()) + LTE
    assert losses_of(BerxitOptions(training="joint"), build(setting), 2) == pytest.approx([wanted] * 2, rel=1e-5)


def test_what_is_to_be_learned_is_who_is_wrong_and_no_gradient_runs_into_it() -> None:
    logits = LOGITS.clone().requires_grad_()
    targets = lte_targets(logits, LABELS)
    assert targets.tolist() == WRONG
    assert not targets.requires_grad
    # The very number that is predicted is a target of 0, an error of 2 one of tanh 2, whichever its sign.
    numbers = torch.tensor([[[1.0], [3.0]], [[-1.0], [1.0]]])
    wanted = torch.tensor([[0.0, math.tanh(2)], [math.tanh(2), 0.0]])
    torch.testing.assert_close(lte_targets(numbers, torch.tensor([1.0, 1.0])), wanted)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_a_column_of_answers_never_spreads_over_the_batch(setting: Setting, samples: int) -> None:
    # The authors' shapes (n) and (n, 1) broadcast to n x n; with one sample in the last batch they even agree.
    model, batch = build(setting, classes=1), tiny_samples(samples, regression=True).batch(range(samples))
    answers = model(*batch.inputs)
    assert answers.extras["uncertainty"].shape == (4, samples)
    by_hand = [
        (answers.extras["uncertainty"][stage, i] - torch.tanh(answers.logits[stage, i, 0] - batch.labels[i]).abs()) ** 2
        for stage in range(4)
        for i in range(samples)
    ]
    torch.testing.assert_close(lte_loss(answers, batch.labels), sum(by_hand) / len(by_hand))


def test_one_map_serves_all_layers_and_reads_what_the_classifier_reads(setting: Setting) -> None:
    model, batch = build(setting), tiny_samples(6).batch(range(6))
    exits = [model.exit_at(stage) for stage in range(4)]
    assert len({id(exit_.lte) for exit_ in exits}) == 1
    assert len({id(exit_.pooler) for exit_ in exits}) == 4
    seen: list[Tensor] = []
    hooks = [exit_.classifier.register_forward_pre_hook(lambda _, read: seen.append(read[0])) for exit_ in exits]
    with torch.inference_mode():
        uncertainty = model(*batch.inputs).extras["uncertainty"]
        weight, bias = exits[0].lte.weight[0], exits[0].lte.bias[0]
        for stage, read in enumerate(seen):
            torch.testing.assert_close(uncertainty[stage], 1 / (1 + torch.exp(-(read @ weight + bias))))
    for hook in hooks:
        hook.remove()


def test_learning_to_exit_trains_the_encoder_too(setting: Setting) -> None:
    model, batch = build(setting), tiny_samples(6).batch(range(6))
    lte_loss(model(*batch.inputs), batch.labels).backward()
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().sum()}
    assert "exits.1.lte.weight" in moved
    assert {"exits.2.pooler.dense.weight"} <= moved
    assert any(name.startswith("backbone") for name in moved)
    assert not any("classifier" in name for name in moved)


def test_exits_start_alike_with_learning_to_exit_and_without(setting: Setting) -> None:
    with_it, without = build(setting).state_dict(), build(setting, lte=False).state_dict()
    assert set(with_it) - set(without) == {f"exits.{k}.lte.{part}" for k in "1234" for part in ("weight", "bias")}
    assert all(torch.equal(with_it[name], without[name]) for name in without)


@pytest.mark.parametrize("step", [4, 9])
def test_a_training_taken_up_again_goes_on_with_the_right_kind_of_step(
    setting: Setting, tmp_path: Path, step: int
) -> None:
    # Seven batches an epoch, so that the second epoch begins with an odd step.
    train, short = tiny_samples(50), replace(setting, learning_rate=1e-2)
    [phase] = berxit.phases(BerxitOptions())
    whole, broken, resumed = build(setting), build(setting), build(setting, seed=1)
    loop.fit(whole, [phase], train, short, tmp_path / "whole", progress=False)
    stopping = replace(phase, objective=interrupted_at(step, phase.objective))
    with pytest.raises(KeyboardInterrupt):
        loop.fit(broken, [stopping], train, short, tmp_path / "broken", progress=False, checkpoint_seconds=0)
    loop.fit(resumed, [phase], train, short, tmp_path / "broken", progress=False, checkpoint_seconds=0)
    assert int(whole.steps_taken) == int(resumed.steps_taken) == 14
    kept = resumed.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.usefixtures("tiny_tasks")
def test_alternating_is_another_training_than_joint(setting: Setting) -> None:
    runs = [load_or_train(berxit.METHOD, setting, progress=False, training=how) for how in ("alternating", "joint")]
    assert runs[0].directory != runs[1].directory
    assert not torch.allclose(runs[0].test.logits, runs[1].test.logits, atol=1e-3)


@pytest.mark.usefixtures("tiny_tasks")
def test_in_two_stages_the_second_leaves_the_plain_model_as_it_is(setting: Setting) -> None:
    model = build(setting, training="two-stage").train()
    fine_tune, off_ramps = berxit.phases(BerxitOptions(training="two-stage"))
    trained = [parameter for part in off_ramps.trains(model) for parameter in part.parameters()]
    frozen = [*model.backbone.parameters(), *model.exit_at(-1).classifier.parameters()]
    assert not {id(each) for each in trained} & {id(each) for each in frozen}
    assert {id(each) for each in model.exit_at(0).lte.parameters()} <= {id(each) for each in trained}
    first = {id(each) for part in fine_tune.trains(model) for each in part.parameters()}
    assert {id(each) for each in frozen} <= first
    assert id(model.exit_at(0).lte.weight) not in first
    run = load_or_train(berxit.METHOD, setting, progress=False, training="two-stage")
    assert run.history.phase.unique().tolist() == ["fine-tune", "off-ramps"]


@pytest.mark.usefixtures("tiny_tasks")
@pytest.mark.parametrize("task", ["movie", "movie-valence"])
def test_the_learned_rule_from_training_to_the_runtime(setting: Setting, task: str) -> None:
    learning = replace(setting, task=task, epochs=8, learning_rate=5e-3, pool="mean")
    run = load_or_train(berxit.METHOD, learning, progress=False)
    rule, left = berxit.METHOD.rules["learned"], set()
    for speedup in (1.3, 2.0):
        threshold = tradeoff.threshold_for_speedup(run.dev, rule, speedup)
        simulated = tradeoff.decide(run.test, rule, threshold)
        left |= set(simulated.stages.tolist())
        for batch_size in (1, 8):
            outcome = Runtime(run.model(), rule, threshold)(run.samples("test"), batch_size=batch_size)
            assert outcome.stages.tolist() == simulated.stages.tolist()
            torch.testing.assert_close(outcome.logits.float(), simulated.logits.float(), atol=1e-4, rtol=1e-4)
    assert len(left) > 1, "everybody leaves at one exit, which shows nothing"


def test_the_last_layer_always_answers_however_unsure_it_says_it_is(setting: Setting) -> None:
    model, samples = build(setting), tiny_samples(9)
    torch.nn.init.constant_(model.exit_at(0).lte.bias, 50.0)  # every layer is sure to be wrong
    outcome = Runtime(model, rules.learned(), 0.5)(samples)
    assert outcome.stages.tolist() == [3] * 9
    torch.nn.init.constant_(model.exit_at(0).lte.bias, -50.0)
    assert Runtime(model, rules.learned(), 0.5)(samples).stages.tolist() == [0] * 9


def test_the_learned_rule_leaves_below_theta(setting: Setting) -> None:
    evidence = record(build(setting), tiny_samples(20))
    theta = evidence.extras["uncertainty"].median().item()
    decided = tradeoff.decide(evidence, rules.learned(), 1 - theta).stages.tolist()
    for row, stage in enumerate(decided):
        below = (evidence.extras["uncertainty"][:3, row].double() <= theta + 1e-9).nonzero().flatten().tolist()
        assert stage == (below[0] if below else 3)
    assert len(set(decided)) > 1


def test_without_learning_to_exit_there_is_nothing_for_the_learned_rule_to_read(setting: Setting) -> None:
    evidence = record(build(setting, lte=False), tiny_samples(4))
    with pytest.raises(InputError, match=r"rule 'learned' needs evidence with the extra 'uncertainty'.*BERxiT"):
        tradeoff.decide(evidence, rules.learned(), 0.5)


def test_learning_to_exit_costs_what_it_computes() -> None:
    backbone = Backbone(tiny_encoder(attention="eager"))
    lte = torch.nn.Linear(16, 1)
    model = MultiExitModel(backbone, {k: LteExit(16, 2, "cls", Pooler(backbone), lte) for k in range(1, 5)}).eval()
    samples = tiny_samples(3)
    evidence = record(model, samples)
    for row, length in enumerate(samples.lengths.tolist()):
        assert evidence.cost["flops"][:, row].tolist() == flops_counted(model, length)
