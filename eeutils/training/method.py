"""What every paper's file ends in: one `Method` value with the same fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from eeutils.errors import InputError, unknown
from eeutils.exiting.rules import Rule, fixed
from eeutils.models.stages import MultiStageModel
from eeutils.training.loop import Phase
from eeutils.training.settings import Setting

Notes = Mapping[str, tuple[Tensor, Tensor]]
"""Name -> (ids, values): what an objective must know of each training sample."""


@dataclass(frozen=True)
class Options:
    """What may be varied of a method; a paper with something to vary adds its fields, each with the paper's default.

    Words are `Literal` fields, which `Method.with_options` checks; numbers that have bounds are held to them in a
    `__post_init__`.
    """

    def to_dict(self) -> dict[str, Any]:
        """All fields, for a run's config.json."""
        return asdict(self)

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        usual = type(self)()
        return {name: value for name, value in self.to_dict().items() if value != getattr(usual, name)}


def no_notes(setting: Setting, options: Options) -> Notes:
    """Most objectives need the labels and nothing else."""
    return {}


def one_encoder(setting: Setting, options: Options) -> tuple[str, ...]:
    """Most models are made of one encoder: the setting's backbone."""
    return (setting.backbone,)


@dataclass(frozen=True)
class Method:
    """A paper as three choices: a multi-stage model, a way to train it, rules to stop.

    Attributes:
        name: short, as in run directories and tables.
        title: as in figures.
        citation: authors, title, venue.
        build: (setting, classes, options) -> the untrained model, pre-trained weights loaded.
        phases: options -> the training phases, in order.
        rules: name -> rule, the paper's own first.
        options: what may be varied, at its defaults.
        annotate: (setting, options) -> notes on the training samples, made before training; objectives find them in
            `batch.notes`.
        encoders: (setting, options) -> the encoders that the model is made of, the one that speed-ups are measured
            against last.
        starts_from: the method whose trained weights this one starts from; runs of both share them.
    """

    name: str
    title: str
    citation: str
    build: Callable[[Setting, int, Any], MultiStageModel]
    phases: Callable[[Any], list[Phase]]
    rules: Mapping[str, Rule]
    options: Options = Options()
    annotate: Callable[[Setting, Any], Notes] = no_notes
    encoders: Callable[[Setting, Any], tuple[str, ...]] = one_encoder
    starts_from: Method | None = None

    @property
    def own_rule(self) -> Rule:
        """The paper's own rule, the first that it names; everybody to the last stage where it has none."""
        return next(iter(self.rules.values()), fixed())

    def with_options(self, **changes: Any) -> Options:
        """The defaults with some options changed.

        Raises:
            InputError: an option that this method does not have, or a value that it cannot take; the sentence lists the
                valid ones.
        """
        kinds = get_type_hints(type(self.options))
        for name, value in changes.items():
            if not kinds:
                raise InputError(f"{self.name} has no options; got {name!r}")
            if name not in kinds:
                raise unknown(f"option of {self.name}", name, kinds)
            if get_origin(kinds[name]) is Literal and value not in get_args(kinds[name]):
                raise unknown(name, value, get_args(kinds[name]))
        return replace(self.options, **changes)
