"""The training loop: it learns, it repeats itself, and an interruption anywhere changes nothing."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from eeutils.data.samples import Batch, Samples
from eeutils.errors import InputError
from eeutils.exiting.tradeoff import fixed_exits
from eeutils.models.cascade import Cascade
from eeutils.models.exits import MultiExitModel
from eeutils.models.record import record
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.training import checkpoints, loop
from eeutils.training.checkpoints import remove_checkpoints
from eeutils.training.loop import Phase, answer_loss, fit, over_exits
from eeutils.training.settings import Setting
from tests.helpers import accuracy
from tests.tiny import tiny_model, tiny_samples

ROOT = Path(__file__).parent.parent.parent
TRAIN = tiny_samples(40, longest=6)
SETTING = Setting(epochs=2, batch_size=8, learning_rate=2e-3, head_rate=1.0, pool="mean")


def mean_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    return answer_loss(answers.logits, batch.labels).mean()


def last_head(model: MultiStageModel) -> list[torch.nn.Module]:
    return [model.exits["4"]]


def train(
    directory: Path,
    phases: list[Phase] | None = None,
    setting: Setting = SETTING,
    checkpoint_seconds: float = 60.0,
    **fitted: object,
) -> tuple[MultiExitModel, pd.DataFrame]:
    model = tiny_model(pool="mean")
    history = fit(
        model,
        phases or [Phase("all", mean_loss)],
        fitted.get("train", TRAIN),
        setting,
        directory,
        progress=False,
        checkpoint_seconds=checkpoint_seconds,
    )
    return model, history


def same(one: tuple[MultiExitModel, pd.DataFrame], two: tuple[MultiExitModel, pd.DataFrame]) -> None:
    """The same weights to the last bit, and the same history but for the clock."""
    for (name, first), second in zip(one[0].state_dict().items(), two[0].state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    clock = ["seconds", "samples_per_second"]
    pd.testing.assert_frame_equal(one[1].drop(columns=clock), two[1].drop(columns=clock))


def different(one: MultiExitModel, two: MultiExitModel) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def interrupted_at(step: int, objective: Callable = mean_loss) -> Callable[[MultiStageModel, Answers, Batch], Tensor]:
    """An objective that is interrupted once, at its given call (from 1)."""
    calls = 0

    def loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        return objective(model, answers, batch)

    return loss


def two_phases(objective: Callable = mean_loss) -> list[Phase]:
    return [Phase("all", objective), Phase("last head", objective, trains=last_head, rate=5.0)]


def test_a_tiny_task_is_learned(tmp_path: Path) -> None:
    model, history = train(
        tmp_path, setting=Setting(epochs=12, batch_size=8, learning_rate=5e-3, head_rate=1.0, pool="mean")
    )
    assert history.loss.iloc[-1] < 0.5 * history.loss.iloc[0]
    assert fixed_exits(record(model, TRAIN), accuracy).score.max() > 0.9
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_history_tells_each_epoch(tmp_path: Path) -> None:
    _, history = train(tmp_path, two_phases())
    assert list(history) == ["phase", "epoch", "steps", "loss", "seconds", "samples_per_second"]
    assert history.phase.tolist() == ["all", "all", "last head", "last head"]
    assert history.epoch.tolist() == [1, 2, 1, 2]
    assert history.steps.tolist() == [5] * 4  # 40 samples in batches of 8


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first = train(tmp_path / "1", two_phases())
    same(first, train(tmp_path / "2", two_phases()))
    other = train(tmp_path / "3", two_phases(), setting=Setting(**(SETTING.to_dict() | {"seed": 1})))
    assert different(first[0], other[0])


# Five steps an epoch: in the first epoch, at its end, in the second, between the phases, in the second phase.
@pytest.mark.parametrize("step", [1, 3, 5, 6, 9, 11, 13, 16])
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 60.0], ids=["saved every step", "saved every epoch"])
def test_an_interrupted_run_ends_like_one_that_never_was(tmp_path: Path, step: int, checkpoint_seconds: float) -> None:
    whole = train(tmp_path / "whole", two_phases())
    broken = two_phases(interrupted_at(step))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", broken, checkpoint_seconds=checkpoint_seconds)
    same(whole, train(tmp_path / "broken", two_phases(), checkpoint_seconds=checkpoint_seconds))


def test_a_run_interrupted_again_and_again_ends_like_one_that_never_was(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", two_phases())
    for _ in range(40):
        try:
            ended = train(tmp_path / "broken", two_phases(interrupted_at(2)), checkpoint_seconds=0.0)
            break
        except KeyboardInterrupt:
            continue
    same(whole, ended)


_KILLED = """
    import sys, time
    from pathlib import Path
    import tests.integration.test_training as here
    import torch

    torch.set_num_threads(1)

    def slow(model, answers, batch):
        Path(sys.argv[2]).write_text("running")
        time.sleep(0.05)
        return here.mean_loss(model, answers, batch)

    here.train(Path(sys.argv[1]), here.two_phases(slow), checkpoint_seconds=0.0)
"""


def test_a_run_that_is_killed_is_taken_up_where_it_stood(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", two_phases())
    command = [sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path / "killed"), str(tmp_path / "sign")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    until = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("step-[3-9]/position.json"))) == 0:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = 0

    def counting(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        nonlocal steps
        steps += 1
        return mean_loss(model, answers, batch)

    same(whole, train(tmp_path / "killed", two_phases(counting)))
    assert 0 < steps <= 17, "the three steps that were saved must not be taken again"


def test_frozen_modules_do_not_move_and_run_without_dropout(tmp_path: Path) -> None:
    seen: list[dict[str, bool]] = []

    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        seen.append({name: module.training for name, module in model.named_modules() if name})
        return mean_loss(model, answers, batch)

    before = {name: tensor.clone() for name, tensor in tiny_model(pool="mean").state_dict().items()}
    model, _ = train(tmp_path, [Phase("last head", objective, trains=last_head)])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("exits.4.")), name
    for modes in seen:
        for name, in_training in modes.items():
            if name != "exits":
                assert in_training == name.startswith("exits.4"), name


def test_what_is_trained_runs_with_dropout(tmp_path: Path) -> None:
    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        assert all(module.training for module in model.modules())
        return mean_loss(model, answers, batch)

    train(tmp_path, [Phase("all", objective)])


def test_clipping_looks_only_at_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clipped: list[set[int]] = []
    clip = loop.Accelerator.clip_grad_norm_

    def watched(self: loop.Accelerator, parameters: list, norm: float) -> Tensor:
        clipped.append({id(parameter) for parameter in parameters})
        assert norm == SETTING.gradient_clip
        total_before = clip(self, parameters, norm)
        total = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        assert total <= norm * 1.001
        return total_before

    monkeypatch.setattr(loop.Accelerator, "clip_grad_norm_", watched)
    model, _ = train(tmp_path, [Phase("last head", mean_loss, trains=last_head)])
    assert clipped
    assert all(each == {id(parameter) for parameter in model.exits["4"].parameters()} for each in clipped)
    # Nothing else has a gradient that could have been counted.
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("exits.4."))


def test_every_step_is_taken_and_the_last_weights_are_kept(tmp_path: Path) -> None:
    """With a loss that only ever gets worse: nothing stops early, and nothing is taken back."""
    steps = 0
    seen: list[Tensor] = []

    def worse(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        nonlocal steps
        steps += 1
        seen.append(model.exits["4"].classifier.weight.detach().clone())
        return -mean_loss(model, answers, batch)

    setting = Setting(**(SETTING.to_dict() | {"epochs": 4}))
    model, history = train(tmp_path, [Phase("all", worse)], setting)
    assert steps == 4 * 5 == history.steps.sum()
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    # The last step moved them once more, by next to nothing: the learning rate has fallen.
    last = model.exits["4"].classifier.weight
    assert (last - seen[-1]).abs().max() < (seen[-1] - seen[0]).abs().max() / 20


def test_a_phase_may_have_its_own_epochs_and_a_multiple_of_the_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    adamw = torch.optim.AdamW

    def watched(groups: list, **options: float) -> torch.optim.AdamW:
        rates.append(options["lr"])
        return adamw(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", watched)
    phases = [Phase("one", mean_loss, epochs=1), Phase("two", mean_loss, epochs=3, rate=2.5, trains=last_head)]
    _, history = train(tmp_path, phases)
    assert history.phase.tolist() == ["one", "two", "two", "two"]
    assert rates == pytest.approx([SETTING.learning_rate, 2.5 * SETTING.learning_rate])


def test_the_learning_rate_warms_up_and_falls_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *arguments: object, **options: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(tmp_path, setting=Setting(**(SETTING.to_dict() | {"warmup": 0.2, "learning_rate": 1.0})))
    assert rates == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_weight_decay_is_on_matrices_only() -> None:
    model = tiny_model()
    model.requires_grad_(False)
    model.exits["2"].requires_grad_(True)
    matrices, vectors = loop._groups(model, 1.0, 1.0, 0.25)
    head = model.exits["2"]
    assert {id(p) for p in matrices["params"]} == {id(head.classifier.weight), id(head.pooler.dense.weight)}
    assert {id(p) for p in vectors["params"]} == {id(head.classifier.bias), id(head.pooler.dense.bias)}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0.0)


def test_heads_have_a_rate_of_their_own_which_a_phase_scales_too(tmp_path: Path) -> None:
    rates: list[dict[str, float]] = []

    def watched(groups: list, **options: float) -> torch.optim.AdamW:
        optimizer = adamw(groups, **options)
        rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        rates.append({name: rate_of[id(p)] for name, p in model.named_parameters() if id(p) in rate_of})
        return optimizer

    adamw, model = torch.optim.AdamW, tiny_model(pool="mean")
    setting = Setting(**(SETTING.to_dict() | {"head_rate": 10.0, "epochs": 1}))
    phases = [Phase("all", mean_loss), Phase("last head", mean_loss, trains=last_head, rate=3.0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", watched)
        fit(model, phases, TRAIN, setting, tmp_path, progress=False)
    # The warm-up begins at 0, so these are the peaks that the schedule scales.
    joint, last = rates
    assert {rate for name, rate in joint.items() if name.startswith("backbone.")} == {2e-3}
    assert {rate for name, rate in joint.items() if name.startswith("exits.")} == {2e-2}
    assert len(joint) == len(list(model.parameters()))
    assert set(last.values()) == {6e-2}
    assert all(name.startswith("exits.4.") for name in last)


def test_a_model_in_a_row_may_learn_at_a_rate_of_its_own() -> None:
    small, large = tiny_model(num_hidden_layers=2), tiny_model()
    small.rate = 4.0
    row = Cascade([small, large])
    groups = loop._groups(row, 1e-3, 10.0, 0.25)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(row.parameters()))
    for model, scale in ((small, 4.0), (large, 1.0)):
        assert {rates[id(p)] for p in model.backbone.parameters()} == {1e-3 * scale}
        assert {rates[id(p)] for p in model.exits.parameters()} == {1e-2 * scale}


def test_every_sample_is_trained_on_once_an_epoch(tmp_path: Path) -> None:
    seen: list[int] = []

    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        seen.extend(batch.ids.tolist())
        return mean_loss(model, answers, batch)

    odd = tiny_samples(37, longest=6)
    train(tmp_path, [Phase("all", objective)], train=odd)
    assert sorted(seen[:37]) == sorted(seen[37:]) == list(range(37))
    assert seen[:37] != seen[37:]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_a_sentence(tmp_path: Path, value: float) -> None:
    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        return mean_loss(model, answers, batch) * value

    with pytest.raises(InputError, match=rf"loss of phase 'all' became {value} in epoch 1; lower learning_rate"):
        train(tmp_path, [Phase("all", objective)])


def test_training_refuses_what_it_cannot_train(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="phase 'none' trains no parameter"):
        train(tmp_path, [Phase("none", mean_loss, trains=lambda model: [])])
    unlabelled = Samples(TRAIN.tokens, TRAIN.types, None, TRAIN.ids, TRAIN.padding)
    with pytest.raises(InputError, match="at least one sample, and labels"):
        train(tmp_path, train=unlabelled)
    with pytest.raises(InputError, match="at least one sample"):
        train(tmp_path, train=Samples((), None, TRAIN.labels[:0], TRAIN.ids[:0], 0))


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.Accelerator, "num_processes", property(lambda self: 3))
    with pytest.raises(InputError, match="batch_size 8 cannot be shared by 3 processes; choose a multiple"):
        train(tmp_path)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("write failed: No space left on device")]
)
def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole = train(tmp_path / "whole", two_phases())
    calls = 0

    def full_at(real: Callable) -> Callable:
        def write(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 3:
                Path(str(arguments[1])).parent.mkdir(exist_ok=True)
                raise error
            return real(*arguments, **options)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(loop.Accelerator, "save_state", full_at(loop.Accelerator.save_state))
        with pytest.raises(OSError, match=r"the disk is full: .* was not written; free some space and run again"):
            train(tmp_path / "full", two_phases(), checkpoint_seconds=0.0)
    assert calls == 3
    assert not list((tmp_path / "full").glob(".partial-*"))
    same(whole, train(tmp_path / "full", two_phases(), checkpoint_seconds=0.0))


def test_checkpoints_that_take_long_are_written_as_much_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk on which a checkpoint takes 30 seconds, and steps of 10: with a clock that only they move."""
    now, saves = 0.0, []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    save = loop.Accelerator.save_state

    def slow(self: loop.Accelerator, *arguments: object, **options: object) -> object:
        nonlocal now
        saves.append(now)
        now += 30
        return save(self, *arguments, **options)

    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        nonlocal now
        now += 10
        return mean_loss(model, answers, batch)

    monkeypatch.setattr(loop.Accelerator, "save_state", slow)
    setting = Setting(**(SETTING.to_dict() | {"epochs": 40}))
    train(tmp_path, [Phase("all", objective)], setting, checkpoint_seconds=120.0)
    assert 120 <= saves[0] < 140, "the first when it is due, for nobody knows yet how long it takes"
    assert all(600 <= later - earlier - 30 < 620 for earlier, later in itertools.pairwise(saves))
    assert len(saves) == 4
    assert 30 * len(saves[1:]) <= 0.05 * (now - saves[0])


def test_only_one_checkpoint_is_kept(tmp_path: Path) -> None:
    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        assert len(list(tmp_path.glob("step-*"))) <= 1
        return mean_loss(model, answers, batch)

    train(tmp_path, [Phase("all", objective)], checkpoint_seconds=0.0)
    remove_checkpoints(tmp_path)
    assert not tmp_path.exists()


def test_the_loss_of_each_answer_is_torch_s_own() -> None:
    logits, labels = torch.randn(3, 5, 4), torch.tensor([0, 3, 1, 1, 2])
    losses = answer_loss(logits, labels)
    for stage in range(3):
        for sample in range(5):
            one = torch.nn.functional.cross_entropy(logits[stage, sample], labels[sample])
            assert losses[stage, sample].item() == pytest.approx(one.item(), abs=1e-6)
    numbers = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    squared = (logits[..., 0] - numbers) ** 2
    torch.testing.assert_close(answer_loss(logits[..., :1], numbers), squared)


def test_exits_share_a_loss_alike_or_by_their_depth() -> None:
    losses = torch.tensor([[1.0, 3.0], [4.0, 0.0], [6.0, 6.0]])
    assert over_exits(losses, "uniform").item() == pytest.approx((2 + 2 + 6) / 3)
    assert over_exits(losses, "depth").item() == pytest.approx((1 * 2 + 2 * 2 + 3 * 6) / 6)


@pytest.fixture
def set_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Choose the arithmetic as `make` does; Accelerate remembers it for as long as a process lives."""

    def choose(precision: str) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        AcceleratorState._reset_state(reset_partial_state=True)

    yield choose
    AcceleratorState._reset_state(reset_partial_state=True)


def test_in_bfloat16_steps_are_rounded_and_weights_are_not(
    tmp_path: Path, set_precision: Callable[[str], None]
) -> None:
    """All committed tables are trained like this."""
    set_precision("bf16")
    precisions: set[torch.dtype] = set()

    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        precisions.add(model.exits["1"].classifier(torch.ones(1, 16)).dtype)
        return mean_loss(model, answers, batch)

    model, _ = train(tmp_path / "bf16", [Phase("all", objective)])
    assert precisions == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    set_precision("no")
    assert different(model, train(tmp_path / "float32", [Phase("all", mean_loss)])[0])
    # Another call of forward is not rounded any more.
    assert model(*TRAIN.batch([0, 1]).inputs).logits.dtype == torch.float32
    torch.testing.assert_close(
        model(*TRAIN.batch([0, 1]).inputs).logits, model.all_stages(*TRAIN.batch([0, 1]).inputs).logits
    )
