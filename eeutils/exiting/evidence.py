"""Evidence: what every stage said about every unit and what it had spent by then, recorded in one pass.

A unit is what leaves: a sample, or a token where tokens leave. With evidence every threshold of every rule is tensor
arithmetic; nothing is run again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eeutils.errors import InputError
from eeutils.files import atomic_write

KINDS = ("layers", "flops")
"""The kinds of cost that are counted."""


class Later(Mapping):
    """Costs that are counted when the first of them is looked at: a rule that asks for none is spared the work."""

    def __init__(self, count: Callable[[], Mapping[str, Tensor]]) -> None:
        self._count = count

    @cached_property
    def _counted(self) -> Mapping[str, Tensor]:
        return self._count()

    def __getitem__(self, kind: str) -> Tensor:
        return self._counted[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)


_VERSION = "2"
_PLAIN, _NAMED = ("logits", "ids", "labels", "groups"), ("cost", "reference", "extras")
"""Fields of evidence that are one tensor, and fields that are several by name."""


@dataclass(frozen=True)
class Evidence:
    """What S stages said of N units.

    Attributes:
        logits: (S, N, C); C = 1 for regression.
        ids: (N,) stable numbers of the units; anything joined to evidence is joined by them.
        cost: kind -> (S, N), what a unit had spent by the time that stage s answered: "layers" (a mean over a sample's
            tokens where they run different ones) and "flops".
        reference: kind -> (N,), what the plain full model spends on it.
        layers: transformer layers below each stage's answer, one entry a stage: the stages' names in figures.
        labels: (N,), or None where nobody knows them (at run time).
        extras: named (S, N, ...) tensors, such as distances to prototypes or a policy's probability.
        groups: (N,) which units belong together, such as the tokens of one sequence: what a bootstrap draws. By default
            every unit is a group of its own.
        first: number of the first stage held, from 0: a runtime keeps only what its rule reads.
    """

    logits: Float[Tensor, "stages units classes"]
    ids: Int[Tensor, " units"]
    cost: Later | Mapping[str, Tensor]
    reference: Later | Mapping[str, Tensor]
    layers: tuple[int, ...]
    labels: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Tensor | None = None
    first: int = 0

    def __post_init__(self) -> None:
        stages, units, _ = self.logits.shape
        if len(self.layers) != stages:
            raise InputError(f"evidence of {stages} stages needs {stages} entries in layers, got {len(self.layers)}")
        for kind, wanted, tensors in (("cost", (stages, units), self.cost), ("reference", (units,), self.reference)):
            if isinstance(tensors, Later):  # nobody has asked yet
                continue
            if tensors.keys() != set(KINDS):
                raise InputError(f"evidence needs {kind} in {' and '.join(KINDS)}; got it in {sorted(tensors)}")
            for name, tensor in tensors.items():
                if tensor.shape != wanted:
                    raise InputError(f"{kind} {name!r} must be {wanted}, got {tuple(tensor.shape)}")
        for name, tensor in self.extras.items():
            if tensor.shape[:2] != (stages, units):
                raise InputError(f"extra {name!r} must be ({stages}, {units}, ...), got {tuple(tensor.shape)}")
        for name, tensor in (("labels", self.labels), ("groups", self.groups)):
            if tensor is not None and tensor.shape != (units,):
                raise InputError(f"{name} must be ({units},), got {tuple(tensor.shape)}")

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor | None = None, **extras: Tensor) -> Evidence:
        """Evidence of logits (S, N, C) alone, for examples and one's own models: a stage is a layer, and costs 1."""
        stages, units, _ = logits.shape
        layers = tuple(range(1, stages + 1))
        run = torch.tensor(layers, dtype=torch.float64)[:, None].expand(stages, units)
        cost, reference = dict.fromkeys(KINDS, run), dict.fromkeys(KINDS, run[-1])
        return cls(logits, torch.arange(units), cost, reference, layers, labels, extras)

    @property
    def stages(self) -> int:
        """S."""
        return self.logits.shape[0]

    @property
    def samples(self) -> int:
        """N, the number of units."""
        return self.logits.shape[1]

    @property
    def reference_layers(self) -> int:
        """L, the layers of the plain full model."""
        return round(float(self.reference["layers"].max()))

    @property
    def classes(self) -> int:
        """C, 1 for regression."""
        return self.logits.shape[2]

    @property
    def regression(self) -> bool:
        """Whether the answer is a number rather than a class."""
        return self.classes == 1

    @property
    def log_probabilities(self) -> Float[Tensor, "stages units classes"]:
        """log p_s, in double precision: in single precision all confident samples would tie.

        Raises:
            InputError: for regression, where one logit is no distribution (its entropy is always 0).
        """
        if self.regression:
            raise InputError("a regression answer is one number, not a distribution; use patience, fixed or random")
        return torch.log_softmax(self.logits, dim=-1, dtype=torch.float64)

    @property
    def predictions(self) -> Tensor:
        """(S, N): the class of each stage's answer, or its number for regression."""
        return predict(self.logits)

    @property
    def entropy(self) -> Float[Tensor, "stages units"]:
        """H(p_s) / ln C in [0, 1]: 1 for a uniform distribution."""
        return (entropy_of(self.log_probabilities) / math.log(self.classes)).clamp(0, 1)

    @property
    def confidence(self) -> Float[Tensor, "stages units"]:
        """max_c p_s(c)."""
        return self.log_probabilities.amax(dim=-1).exp()

    @property
    def margin(self) -> Float[Tensor, "stages units"]:
        """Probability of the best class minus that of the second best."""
        best = self.log_probabilities.topk(2, dim=-1).values.exp()
        return best[..., 0] - best[..., 1]

    def upto(self, stage: int, reads: int | None = None) -> Evidence:
        """The evidence of the stages up to `stage` (from 0), itself included: all that a rule may know there. With
        `reads` the last so many of them only."""
        start = 0 if reads is None else max(0, stage + 1 - reads)
        held = slice(start, stage + 1)
        return replace(
            self,
            logits=self.logits[held],
            cost={kind: tensor[held] for kind, tensor in self.cost.items()},
            layers=self.layers[held],
            extras={name: tensor[held] for name, tensor in self.extras.items()},
            first=self.first + start,
        )

    def take(self, rows: Tensor) -> Evidence:
        """The evidence of some units: row numbers or a mask."""
        return replace(
            self,
            logits=self.logits[:, rows],
            ids=self.ids[rows],
            cost={kind: tensor[:, rows] for kind, tensor in self.cost.items()},
            reference={kind: tensor[rows] for kind, tensor in self.reference.items()},
            labels=None if self.labels is None else self.labels[rows],
            extras={name: tensor[:, rows] for name, tensor in self.extras.items()},
            groups=None if self.groups is None else self.groups[rows],
        )

    def save(self, path: Path | str) -> None:
        """Write to one safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name) for name in _PLAIN if getattr(self, name) is not None}
        for kind in _NAMED:
            tensors |= {f"{kind}.{name}": tensor for name, tensor in getattr(self, kind).items()}
        about = {"version": _VERSION, "layers": list(self.layers), "first": self.first}
        with atomic_write(path) as partial:
            # Copies, for two names may stand for one tensor, which the format refuses.
            copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
            save_file(copies, partial, {"evidence": json.dumps(about)})

    @classmethod
    def load(cls, path: Path | str) -> Evidence:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, cut off, not evidence, or of another version.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["evidence"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not readable evidence ({error}); delete it and record it again") from error
        if about.get("version") != _VERSION:
            raise InputError(f"{path} was written by another version; delete it and record it again")
        plain = {name: tensors.pop(name, None) for name in _PLAIN}
        named: dict[str, dict[str, Tensor]] = {kind: {} for kind in _NAMED}
        for name, tensor in tensors.items():
            kind, _, own = name.partition(".")
            named[kind][own] = tensor
        return cls(**plain, **named, layers=tuple(about["layers"]), first=about["first"])


def concatenate(parts: Sequence[Evidence], ids: Int[Tensor, " units"]) -> Evidence:
    """Evidence of different units from models of the same stages as one, in the order of `ids`.

    Raises:
        InputError: parts that do not hold each of the ids exactly once.
    """
    present = torch.cat([part.ids for part in parts])
    if not torch.equal(present.sort().values, ids.sort().values):
        raise InputError(f"parts of {len(present)} samples cannot be put in the order of {len(ids)} other ids")
    of_stages = {name: _joined(parts, name, 1) for name in ("logits", "cost", "extras")}
    of_units = {name: _joined(parts, name, 0) for name in ("ids", "reference", "labels", "groups")}
    whole = replace(parts[0], **of_stages, **of_units)
    return whole.take(present.argsort()[ids.argsort().argsort()])


def as_stages(parts: Sequence[Evidence]) -> Evidence:
    """Several passes over the same units, each under a schedule of its own, as stages of one evidence: the cheapest
    first.

    Nobody passes from one stage to the next: each costs what its own pass does. With `rules.fixed()` the evidence is a
    trade-off curve, and reading it between two schedules sends a share of the units through each.

    Raises:
        InputError: no part, or parts that are not one answer to the same units.
    """
    if not parts or any(part.stages != 1 or not torch.equal(part.ids, parts[0].ids) for part in parts):
        raise InputError("schedules make a curve when each of them has answered the same samples once")
    by_cost = sorted(parts, key=lambda part: float(part.cost["flops"].mean()))
    of_stages = {name: _joined(by_cost, name, 0) for name in ("logits", "cost", "extras")}
    return replace(by_cost[0], **of_stages, layers=tuple(part.layers[0] for part in by_cost))


def predict(logits: Float[Tensor, "*shape classes"]) -> Tensor:
    """The class with the largest logit, or the number itself for regression."""
    return logits[..., 0] if logits.shape[-1] == 1 else logits.argmax(dim=-1)


def entropy_of(log_p: Float[Tensor, "*shape classes"]) -> Float[Tensor, "*shape"]:
    """H(p) in nats, without NaN on any logits: exp(log p) underflows to 0 where log p is very negative."""
    return -(log_p.exp() * log_p).sum(dim=-1)


def _joined(parts: Sequence[Evidence], name: str, dimension: int) -> Tensor | dict[str, Tensor] | None:
    """One field of all parts, end to end; each of its tensors where it holds several by name."""
    values = [getattr(part, name) for part in parts]
    if values[0] is None:
        return None
    if isinstance(values[0], Mapping):
        return {key: torch.cat([named[key] for named in values], dim=dimension) for key in values[0]}
    return torch.cat(values, dim=dimension)
