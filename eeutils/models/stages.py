"""Models that can answer at several points, as everything downstream sees them.

A stage is a point where a model can answer. Evidence, rules, trade-off and runtime know a model only through
`MultiStageModel`: begin, run one stage, let those who are done leave, go on. Exits on the layers of one encoder, a row
of complete models and an encoder whose tokens stop on their own are implementations of the same calls.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from eeutils.errors import InputError
from eeutils.models.cost import Spent


class Answer(NamedTuple):
    """What one stage says of B units, and what it spent on each.

    `logits` (B, C), C = 1 for regression; `spent` by THIS stage, its exit included; named extras (B, ...).
    """

    logits: Float[Tensor, "units classes"]
    spent: Spent
    extras: dict[str, Tensor] = {}  # noqa: RUF012 (a NamedTuple default; never written to)


class Answers(NamedTuple):
    """What all stages say of B units: `logits` (S, B, C), `spent` by each stage (S, B), and extras (S, B, ...)."""

    logits: Float[Tensor, "stages units classes"]
    spent: Spent
    extras: dict[str, Tensor] = {}  # noqa: RUF012


class MultiStageModel(nn.Module, ABC):
    """A model that can answer after each of several stages.

    Attributes:
        layers: transformer layers below each stage's answer, one entry a stage: the stages' names in figures.
        reference_layers: layers of the plain model that the speed-up is measured against.
        classes: C, 1 for regression.
        rate: times the learning rates of training; for a small model in a row with larger ones, which learn slower.
    """

    layers: tuple[int, ...]
    reference_layers: int
    classes: int
    rate: float = 1.0

    @property
    def stages(self) -> int:
        """S, the number of stages."""
        return len(self.layers)

    @abstractmethod
    def begin(self, *inputs: Tensor | None) -> Any:
        """The state before the first stage, from `Batch.inputs`: token ids, attention mask, token types or None."""

    @abstractmethod
    def step(self, stage: int, state: Any) -> tuple[Any, Answer]:
        """Run stage number `stage` (from 0) on the units in `state`."""

    @abstractmethod
    def leave(self, state: Any, done: Bool[Tensor, " units"]) -> Any:
        """The state without the units that are done, or with them frozen: the model's own business."""

    @abstractmethod
    def reference(self, *inputs: Tensor | None) -> Spent:
        """What the plain model with its one head spends on the same inputs: the numerator of every speed-up."""

    def forward(self, *inputs: Tensor | None) -> Answers:
        """All stages of all units; `inputs` as for `begin`."""
        return self.all_stages(*inputs)

    def all_stages(self, *inputs: Tensor | None) -> Answers:
        """As `forward`, in the model's own precision: mixed precision is wrapped around `forward` while training."""
        state = self.begin(*inputs)
        answers = []
        for stage in range(self.stages):
            state, answer = self.step(stage, state)
            answers.append(answer)
        return stack(answers)


def on_cpu(answers: Answer | Answers) -> Answer | Answers:
    """The same in main memory and single precision, as evidence is kept; costs stay as exact as they are."""
    return answers._replace(
        logits=answers.logits.float().cpu(),
        spent=answers.spent.cpu(),
        extras={name: tensor.float().cpu() for name, tensor in answers.extras.items()},
    )


def stack(answers: list[Answer]) -> Answers:
    """Stage by stage answers as one tensor each.

    Raises:
        InputError: stages that do not give the same extras.
    """
    names = answers[0].extras.keys()
    if any(answer.extras.keys() != names for answer in answers):
        raise InputError(f"every stage must give the same extras; got {[sorted(answer.extras) for answer in answers]}")
    spent = [answer.spent for answer in answers]
    return Answers(
        torch.stack([answer.logits for answer in answers]),
        Spent.later(lambda: map(torch.stack, zip(*spent, strict=True))),
        {name: torch.stack([answer.extras[name] for answer in answers]) for name in names},
    )
