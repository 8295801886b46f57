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
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from eeutils.data.samples import Batch, LengthBuckets, Samples
from eeutils.errors import InputError
from eeutils.models.backbone import Backbone
from eeutils.models.exits import Exit
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.training.checkpoints import Checkpoints, Position
from eeutils.training.settings import Setting

CHECKPOINT_SECONDS = 120.0

Objective = Callable[[MultiStageModel, Answers, Batch], Tensor]


@dataclass(frozen=True)
class Phase:
    """One stage of training.

    Attributes:
        name: as in the history.
        objective: (model, answers of all stages, batch) -> loss to minimise.
        trains: model -> the modules whose parameters are trained, by default all. What is frozen runs in evaluation
            mode (no dropout) and is left out of gradient clipping.
        epochs: the setting's, unless given.
        rate: times the setting's learning rates, that of the encoder and that of the heads.
    """

    name: str
    objective: Objective
    trains: Callable[[MultiStageModel], list[nn.Module]] = lambda model: [model]
    epochs: int | None = None
    rate: float = 1.0


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
    setting: Setting,
    directory: Path,
    *,
    progress: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> pd.DataFrame:
    """Train a model in place through its phases.

    Every step is taken and the last weights are kept: the learning rate has fallen to nothing by then, all methods get
    the steps that they were given, and dev is left for what is chosen between trainings.

    Args:
        model: trained in place.
        phases: run in order.
        train: tokenised samples with labels.
        setting: batch size, learning rate, epochs, seed and so on.
        directory: for checkpoints; the same directory resumes an interrupted run.
        checkpoint_seconds: about that much training is lost at most when a run is killed, or what keeps checkpoints
            to a twentieth of the time where one takes long; 0 saves after every step.

    Returns:
        One row per phase and epoch: phase, epoch, steps (of that epoch), loss (their mean), seconds,
        samples_per_second.

    Raises:
        InputError: no samples, no labels, a batch size that the processes cannot share, a phase that trains nothing, or
            a loss that is not finite.
    """
    if len(train) == 0 or train.labels is None:
        raise InputError("training needs at least one sample, and labels")
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
        _Training(model, phase, train, setting, accelerator, checkpoints, position, progress).run()
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
    setting: Setting
    accelerator: Accelerator
    checkpoints: Checkpoints
    position: Position
    progress: bool

    def run(self) -> None:
        """Train epoch by epoch."""
        position, epochs = self.position, self.phase.epochs or self.setting.epochs
        if position.epoch == position.step == 0:
            set_seed(1000 * self.setting.seed + position.phase)
        self._choose_what_is_trained()
        self._prepare(epochs)
        self.checkpoints.restore(position)
        with self._bar(epochs) as bar:
            while position.epoch < epochs:
                self._run_epoch(bar)
                self._end_epoch()
        # Takes off what prepare() put around forward for mixed precision: else the next phase would wrap it again.
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        position.phase, position.epoch = position.phase + 1, 0

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
        rate = self.phase.rate * setting.learning_rate
        optimizer = torch.optim.AdamW(
            _groups(self.model, rate, setting.head_rate, setting.weight_decay),
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

    def _end_epoch(self) -> None:
        position, steps = self.position, len(self.sampler)
        position.history.append(
            {
                "phase": self.phase.name,
                "epoch": position.epoch + 1,
                "steps": steps,
                "loss": position.loss_sum / steps,
                "seconds": position.seconds,
                "samples_per_second": len(self.train) / position.seconds,
            }
        )
        position.epoch, position.step, position.seconds, position.loss_sum = position.epoch + 1, 0, 0.0, 0.0


def _groups(model: nn.Module, rate: float, head_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Heads at `head_rate` times the rate, and the models of a row each at its own; weight decay on matrices only, not
    on biases and layer norms."""
    encoders = [module for module in model.modules() if isinstance(module, Backbone)]
    pretrained = {parameter for encoder in encoders for parameter in encoder.parameters()}
    stages = [module for module in model.modules() if isinstance(module, MultiStageModel)]
    # From the outside in: a model in a row has the last word on its own parameters.
    scales = dict.fromkeys(model.parameters(), 1.0)
    scales |= {parameter: stage.rate for stage in stages for parameter in stage.parameters()}
    kinds: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter, scale in scales.items():
        if parameter.requires_grad:
            kinds.setdefault((parameter not in pretrained, scale), []).append(parameter)
    groups = []
    for (is_head, scale), trained in sorted(kinds.items(), key=lambda kind: kind[0]):
        peak = (head_rate if is_head else 1.0) * rate * scale
        groups += [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay, "lr": peak},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0, "lr": peak},
        ]
    return [group for group in groups if group["params"]]


def _train_mode(model: nn.Module) -> None:
    """Training mode for what is trained; a module all of whose parameters are frozen stays in evaluation mode."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
