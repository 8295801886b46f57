"""One training loop for every method: phases, each an objective and the parameters it trains.

Runs under Accelerate: one process or several, CPU or GPU, any precision that `accelerate launch` sets. Batches hold
samples of like length. An interrupted run goes on where it stopped, within an epoch too, and ends with the same weights
as one that was never interrupted.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, set_seed
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from eeutils.batching import Batch, LengthBuckets, Samples
from eeutils.checkpoints import Checkpoints, Position
from eeutils.errors import InputError
from eeutils.evidence import Evidence, record
from eeutils.exits import Answers, MultiStageModel
from eeutils.settings import Setting
from eeutils.tradeoff import Metric, fixed_exits

Objective = Callable[[MultiStageModel, Answers, Batch], Tensor]


def mean_stage_score(evidence: Evidence, metric: Metric) -> float:
    """The default for choosing the best epoch: the mean score over all stages, since any of them may have to answer."""
    return float(fixed_exits(evidence, metric).score.mean())


@dataclass(frozen=True)
class Phase:
    """One stage of training.

    Attributes:
        name: as in the history.
        objective: (model, answers of all stages, batch) -> loss to minimise.
        trains: model -> the modules whose parameters are trained, by default all. What is frozen runs in evaluation
            mode (no dropout) and is left out of gradient clipping.
        epochs, learning_rate: the setting's, unless given.
        monitor: (dev evidence, metric) -> the number whose best epoch is kept.
    """

    name: str
    objective: Objective
    trains: Callable[[MultiStageModel], list[nn.Module]] = lambda model: [model]
    epochs: int | None = None
    learning_rate: float | None = None
    monitor: Callable[[Evidence, Metric], float] = mean_stage_score


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Each sample's loss at each stage, (S, B): cross entropy, or squared error for regression (C = 1)."""
    stages, samples, classes = logits.shape
    if classes == 1:
        return (logits[..., 0] - labels.to(logits.dtype)).square()
    repeated = labels.expand(stages, samples).reshape(-1)
    return nn.functional.cross_entropy(logits.reshape(-1, classes), repeated, reduction="none").view(stages, samples)


def depth_weighted(losses: Float[Tensor, "stages batch"]) -> Float[Tensor, ""]:
    """sum_j j L_j / sum_j j: the mean over samples and stages, deeper stages weighing more, as in PABEE."""
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype, device=losses.device)
    return (weights * losses.mean(dim=1)).sum() / weights.sum()


def fit(
    model: MultiStageModel,
    phases: list[Phase],
    train: Samples,
    dev: Samples,
    metric: Metric,
    setting: Setting,
    directory: Path,
    *,
    progress: bool = True,
    checkpoint_seconds: float = 60.0,
) -> pd.DataFrame:
    """Train a model in place through its phases.

    Args:
        model: trained in place; on return it holds the best epoch's weights of the last phase.
        phases: run in order; each keeps the weights of its epoch with the best `monitor` on dev.
        train, dev: tokenised samples with labels.
        metric: (predictions, labels) -> score.
        setting: batch size, learning rate, epochs, seed and so on.
        directory: for checkpoints; the same directory resumes an interrupted run.
        checkpoint_seconds: at most that much training is lost when a run is killed; 0 saves after every step.

    Returns:
        One row per phase and epoch: phase, epoch, loss, score (the monitor), exit_1 .. exit_S (dev scores), seconds,
        samples_per_second, best.

    Raises:
        InputError: no samples, no labels, a batch size that the processes cannot share, a phase that trains nothing, or
            a loss that is not finite.
    """
    if len(train) == 0 or train.labels is None or dev.labels is None:
        raise InputError("training needs at least one sample, and labels for train and dev")
    accelerator = Accelerator(
        cpu=on_cpu(),
        step_scheduler_with_optimizer=False,
        # An encoder brings parts that no exit reads, such as its own pooler.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if setting.batch_size % accelerator.num_processes:
        raise InputError(
            f"batch_size {setting.batch_size} cannot be shared by {accelerator.num_processes} processes; "
            "choose a multiple"
        )
    directory.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(directory, accelerator)
    position = checkpoints.position() or Position(history=[])
    model.to(accelerator.device)
    while position.phase < len(phases):
        _run_phase(
            model, phases, position, train, dev, metric, setting, accelerator, checkpoints, progress, checkpoint_seconds
        )
        checkpoints.load_best(model, position.phase)
        position.phase, position.epoch, position.best, position.best_epoch = position.phase + 1, 0, None, -1
    model.requires_grad_(True).eval()
    return pd.DataFrame(position.history)


def on_cpu() -> bool:
    """Whether there is no accelerator. Accelerate must be told, or several processes on CPUs do not know each other."""
    return not torch.accelerator.is_available()


def best_device() -> torch.device:
    """The accelerator of this machine, or the CPU."""
    return torch.device("cpu") if on_cpu() else torch.accelerator.current_accelerator()


def precision() -> str:
    """The arithmetic of training that `accelerate launch` or `ACCELERATE_MIXED_PRECISION` asks for; "no" is float32."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def processes() -> PartialState:
    """This process among those that train together: one, or several under a launcher."""
    return PartialState(cpu=on_cpu())


def _run_phase(
    model: MultiStageModel,
    phases: list[Phase],
    position: Position,
    train: Samples,
    dev: Samples,
    metric: Metric,
    setting: Setting,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    progress: bool,
    checkpoint_seconds: float,
) -> None:
    phase = phases[position.phase]
    epochs = phase.epochs or setting.epochs
    if position.epoch == position.step == 0:
        set_seed(1000 * setting.seed + position.phase)
    model.requires_grad_(False)
    for module in phase.trains(model):
        module.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(f"phase {phase.name!r} trains no parameter; check its `trains`")

    sampler = LengthBuckets(
        train.lengths,
        setting.batch_size,
        seed=1000 * setting.seed + position.phase,
        share=(accelerator.process_index, accelerator.num_processes),
    )
    # A generator of its own: else making the iterator would move the global one, and a resumed run would differ.
    loader = DataLoader(
        range(len(train)), batch_sampler=sampler, collate_fn=train.batch, generator=torch.Generator().manual_seed(0)
    )
    optimizer = torch.optim.AdamW(
        _decay_groups(model, setting.weight_decay),
        lr=phase.learning_rate or setting.learning_rate,
        eps=1e-8,
        fused=True,  # on two cores the plain loop over tensors costs a tenth of a step
    )
    steps = len(sampler)
    schedule = get_linear_schedule_with_warmup(optimizer, int(setting.warmup * steps * epochs), steps * epochs)
    # The sampler shares the batches out itself: Accelerate would leave out one that is not full.
    wrapped, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    checkpoints.restore(position)

    bar = tqdm(
        total=steps * epochs,
        initial=position.epoch * steps + position.step,
        desc=phase.name,
        disable=not (progress and accelerator.is_main_process),
        unit="step",
        leave=False,
        delay=2,
        mininterval=1,
    )
    last_saved = time.monotonic()
    with bar:
        while position.epoch < epochs:
            sampler.start(position.epoch, position.step)
            _train_mode(model)
            started = time.monotonic() - position.seconds
            for batch in loader:
                batch = batch.to(accelerator.device)
                with accelerator.autocast():
                    answers = wrapped(*batch.inputs)
                    loss = phase.objective(model, Answers(answers.logits.float(), answers.extras), batch)
                # All processes act on the same numbers: one that saved or stopped alone would leave the others waiting.
                due = accelerator.is_main_process and time.monotonic() - last_saved >= checkpoint_seconds
                told = torch.stack([loss.detach().float(), loss.new_tensor(float(due), dtype=torch.float32)])
                mean_loss, due = accelerator.reduce(told, "mean").tolist()
                if not math.isfinite(mean_loss):
                    raise InputError(
                        f"the loss of phase {phase.name!r} became {mean_loss} in epoch {position.epoch + 1}; lower "
                        "learning_rate or check the objective"
                    )
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(trained, setting.gradient_clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                position.step += 1
                position.loss_sum += mean_loss
                position.seconds = time.monotonic() - started
                bar.update()
                if due:
                    checkpoints.save(position)
                    last_saved = time.monotonic()
            evidence = record(model, dev)
            (score,) = broadcast_object_list([phase.monitor(evidence, metric)])
            better = position.best is None or score > position.best
            position.history.append(_row(phase, position, steps, len(train), score, evidence, metric))
            if better:
                position.best, position.best_epoch = score, position.epoch
                checkpoints.save_best(model, position.phase)
            position.epoch, position.step, position.seconds, position.loss_sum = position.epoch + 1, 0, 0.0, 0.0
            bar.set_postfix(dev=f"{score:.3f}")
            if position.epoch - 1 - position.best_epoch >= setting.early_stopping:
                break
            if position.epoch < epochs:
                checkpoints.save(position)
                last_saved = time.monotonic()
    for row in position.history:
        if row["phase"] == phase.name:
            row["best"] = row["epoch"] == position.best_epoch + 1
    # Takes off what prepare() put around forward for mixed precision: else the next phase would wrap it again, and
    # evidence would come from another arithmetic than the runtime's.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    accelerator.free_memory()


def _row(
    phase: Phase, position: Position, steps: int, samples: int, score: float, evidence: Evidence, metric: Metric
) -> dict[str, Any]:
    stages = fixed_exits(evidence, metric).score
    return {
        "phase": phase.name,
        "epoch": position.epoch + 1,
        "loss": position.loss_sum / steps,
        "score": score,
        **{f"exit_{stage + 1}": value for stage, value in enumerate(stages)},
        "seconds": position.seconds,
        "samples_per_second": samples / position.seconds,
    }


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only, not on biases and layer norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _train_mode(model: nn.Module) -> None:
    """Training mode for what is trained; a module all of whose parameters are frozen stays in evaluation mode."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
