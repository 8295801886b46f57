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
from typing import Any, Literal

import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, set_seed
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from eeutils.data.samples import Batch, LengthBuckets, Samples
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.tradeoff import Metric, fixed_exits
from eeutils.models.backbone import Backbone
from eeutils.models.exits import Exit
from eeutils.models.record import record
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.training.checkpoints import Checkpoints, Position
from eeutils.training.settings import Setting

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
        epochs, learning_rate: the setting's, unless given; a rate that is given is that of heads, too.
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


Weights = Literal["uniform", "depth"]
"""How exits share a loss: all alike, or deeper ones more, in proportion to their number, as in PABEE."""


def over_exits(losses: Float[Tensor, "stages batch"], weights: Weights) -> Float[Tensor, ""]:
    """sum_j w_j L_j / sum_j w_j, L_j the mean over the batch; w_j is 1, or j."""
    if weights == "uniform":
        return losses.mean()
    depth = torch.arange(1, len(losses) + 1, dtype=losses.dtype, device=losses.device)
    return (depth * losses.mean(dim=1)).sum() / depth.sum()


def start_at_mean(model: MultiStageModel, train: Samples) -> None:
    """Let every exit begin with the mean of the numbers that it is to learn.

    One step moves a bias by no more than the learning rate, so a mean far from zero is reached through the encoder
    instead: exits that learn together then bend it to one constant, and may learn nothing else in a short training.
    """
    mean = train.labels.double().mean().item()
    for module in model.modules():
        if isinstance(module, Exit):
            torch.nn.init.constant_(module.classifier.bias, mean)


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
        samples_per_second, best. Dev is scored in the model's own precision, whatever the steps are computed in: as
        evidence is.

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
    checkpoints = Checkpoints(directory, accelerator, checkpoint_seconds)
    position = checkpoints.position() or Position(history=[])
    model.to(accelerator.device)
    while position.phase < len(phases):
        phase = phases[position.phase]
        training = _Training(model, phase, train, dev, metric, setting, accelerator, checkpoints, position, progress)
        training.run()
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


@dataclass
class _Training:
    """One phase, from where `position` stands to its end."""

    model: MultiStageModel
    phase: Phase
    train: Samples
    dev: Samples
    metric: Metric
    setting: Setting
    accelerator: Accelerator
    checkpoints: Checkpoints
    position: Position
    progress: bool

    def run(self) -> None:
        """Train epoch by epoch, keep the best one, stop early."""
        position, epochs = self.position, self.phase.epochs or self.setting.epochs
        if position.epoch == position.step == 0:
            set_seed(1000 * self.setting.seed + position.phase)
        self._choose_what_is_trained()
        self._prepare(epochs)
        self.checkpoints.restore(position)
        with self._bar(epochs) as bar:
            while position.epoch < epochs and not self._is_getting_worse():
                self._run_epoch(bar)
                self._judge_epoch(bar)
                if position.epoch < epochs and not self._is_getting_worse():
                    self.checkpoints.save(position)
        for row in position.history:
            if row["phase"] == self.phase.name:
                row["best"] = row["epoch"] == position.best_epoch + 1
        # Takes off what prepare() put around forward for mixed precision: else the next phase would wrap it again.
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _choose_what_is_trained(self) -> None:
        self.model.requires_grad_(False)
        for module in self.phase.trains(self.model):
            module.requires_grad_(True)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not self.trained:
            raise InputError(f"phase {self.phase.name!r} trains no parameter; check its `trains`")

    def _prepare(self, epochs: int) -> None:
        setting, accelerator, seed = self.setting, self.accelerator, 1000 * self.setting.seed + self.position.phase
        share = (accelerator.process_index, accelerator.num_processes)
        self.sampler = LengthBuckets(self.train.lengths, setting.batch_size, seed=seed, share=share)
        self.loader = DataLoader(
            range(len(self.train)),
            batch_sampler=self.sampler,
            collate_fn=self.train.batch,
            # Its own: else making the iterator would move the global one, and a resumed run would differ.
            generator=torch.Generator().manual_seed(0),
        )
        rate = self.phase.learning_rate or setting.learning_rate
        head_rate = self.phase.learning_rate or setting.head_rate * setting.learning_rate
        optimizer = torch.optim.AdamW(
            _groups(self.model, head_rate, setting.weight_decay),
            lr=rate,
            eps=1e-8,
            fused=True,  # on two cores the plain loop over tensors costs a tenth of a step
        )
        steps = len(self.sampler) * epochs
        schedule = get_linear_schedule_with_warmup(optimizer, int(setting.warmup * steps), steps)
        # The sampler shares the batches out itself: Accelerate would leave out one that is not full.
        self.wrapped, self.optimizer, self.schedule = accelerator.prepare(self.model, optimizer, schedule)

    def _bar(self, epochs: int) -> tqdm:
        return tqdm(
            total=len(self.sampler) * epochs,
            initial=self.position.epoch * len(self.sampler) + self.position.step,
            desc=self.phase.name,
            disable=not (self.progress and self.accelerator.is_main_process),
            unit="step",
            leave=False,
            delay=2,
            mininterval=1,
        )

    def _run_epoch(self, bar: tqdm) -> None:
        position = self.position
        self.sampler.start(position.epoch, position.step)
        _train_mode(self.model)
        started = time.monotonic() - position.seconds
        for batch in self.loader:
            loss, save_now = self._step(batch.to(self.accelerator.device))
            position.step += 1
            position.loss_sum += loss
            position.seconds = time.monotonic() - started
            bar.update()
            if save_now:
                self.checkpoints.save(position)

    def _step(self, batch: Batch) -> tuple[float, bool]:
        """One step of the optimizer: its loss, and whether a checkpoint is due."""
        accelerator = self.accelerator
        with accelerator.autocast():
            answers = self.wrapped(*batch.inputs)
            loss = self.phase.objective(self.model, answers._replace(logits=answers.logits.float()), batch)
        # All processes act on the same numbers: one that saved or stopped alone would leave the others waiting.
        due = accelerator.is_main_process and self.checkpoints.due
        told = torch.stack([loss.detach().float(), loss.new_tensor(float(due), dtype=torch.float32)])
        mean_loss, due = accelerator.reduce(told, "mean").tolist()
        if not math.isfinite(mean_loss):
            raise InputError(
                f"the loss of phase {self.phase.name!r} became {mean_loss} in epoch {self.position.epoch + 1}; lower "
                "learning_rate or check the objective"
            )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.trained, self.setting.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return mean_loss, bool(due)

    def _judge_epoch(self, bar: tqdm) -> None:
        position, evidence = self.position, record(self.model, self.dev)
        (score,) = broadcast_object_list([self.phase.monitor(evidence, self.metric)])
        exits = fixed_exits(evidence, self.metric).score
        position.history.append(
            {
                "phase": self.phase.name,
                "epoch": position.epoch + 1,
                "loss": position.loss_sum / len(self.sampler),
                "score": score,
                **{f"exit_{stage + 1}": value for stage, value in enumerate(exits)},
                "seconds": position.seconds,
                "samples_per_second": len(self.train) / position.seconds,
            }
        )
        if position.best is None or score > position.best:
            position.best, position.best_epoch = score, position.epoch
            self.checkpoints.save_best(self.model, position.phase)
        position.epoch, position.step, position.seconds, position.loss_sum = position.epoch + 1, 0, 0.0, 0.0
        bar.set_postfix(dev=f"{score:.3f}")

    def _is_getting_worse(self) -> bool:
        return self.position.epoch - 1 - self.position.best_epoch >= self.setting.early_stopping


def _groups(model: nn.Module, head_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Heads at a rate of their own; weight decay on matrices only, not on biases and layer norms."""
    encoders = [module for module in model.modules() if isinstance(module, Backbone)]
    pretrained = {parameter for encoder in encoders for parameter in encoder.parameters()}
    groups = []
    for is_head in (False, True):
        trained = [p for p in model.parameters() if p.requires_grad and (p not in pretrained) == is_head]
        rate = {"lr": head_rate} if is_head else {}
        groups += [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay, **rate},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0, **rate},
        ]
    return [group for group in groups if group["params"]]


def _train_mode(model: nn.Module) -> None:
    """Training mode for what is trained; a module all of whose parameters are frozen stays in evaluation mode."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
