"""What every paper's file ends in: one `Method` value with the same fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eeutils.errors import unknown
from eeutils.exits import MultiStageModel
from eeutils.rules import Rule
from eeutils.settings import Setting
from eeutils.training import Phase

Notes = Mapping[str, tuple[Tensor, Tensor]]
"""Name -> (ids, values): what an objective must know of each training sample."""


def no_notes(*_: Any, **__: Any) -> Notes:
    """Most objectives need the labels and nothing else."""
    return {}


def one_encoder(setting: Setting, **_: Any) -> tuple[str, ...]:
    """Most models read the vocabulary of one encoder: the setting's backbone."""
    return (setting.backbone,)


@dataclass(frozen=True)
class Method:
    """A paper as three choices: a multi-stage model, a way to train it, rules to stop.

    Attributes:
        name: short, as in run directories and tables.
        title: as in figures.
        citation: authors, title, venue.
        build: (setting, classes, **options) -> the untrained model, pre-trained weights loaded.
        phases: (**options) -> the training phases, in order.
        rules: name -> rule, the paper's own first.
        options: names and defaults of what may be varied.
        annotate: (setting, **options) -> notes on the training samples, made before training; objectives find them in
            `batch.notes`.
        reads: (setting, **options) -> the backbones whose tokenizers the model needs, the setting's own first.
        starts_from: the method whose trained weights this one starts from; runs of both share them.
    """

    name: str
    title: str
    citation: str
    build: Callable[..., MultiStageModel]
    phases: Callable[..., list[Phase]]
    rules: Mapping[str, Rule]
    options: Mapping[str, Any] = field(default_factory=dict)
    annotate: Callable[..., Notes] = no_notes
    reads: Callable[..., tuple[str, ...]] = one_encoder
    starts_from: Method | None = None

    def with_options(self, **options: Any) -> dict[str, Any]:
        """The defaults with some options changed.

        Raises:
            InputError: an option that this method does not have.
        """
        for name in options:
            if name not in self.options:
                raise unknown(f"option of {self.name}", name, self.options)
        return {**self.options, **options}
