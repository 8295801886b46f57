"""Evidence: what every stage said about every sample, recorded in one pass.

With it every threshold of every rule is tensor arithmetic; nothing is run again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eeutils.batching import Samples, batches
from eeutils.errors import InputError
from eeutils.exits import MultiExitModel, MultiStageModel
from eeutils.files import atomic_write

_VERSION = "1"


@dataclass(frozen=True)
class Evidence:
    """What S stages said of N samples.

    Attributes:
        logits: (S, N, C); C = 1 for regression.
        ids: (N,) stable sample numbers; anything joined to evidence is joined by them.
        cost: (S, N) cumulative FLOPs when stage s answers.
        reference_cost: (N,) FLOPs of the plain full model.
        layers_run: (S, N) layers that a sample has run when stage s answers (a mean over its tokens where they differ).
        layers: cumulative transformer layers when stage s answers, one entry a stage.
        reference_layers: layers of the plain full model.
        labels: (N,), or None where nobody knows them (at run time).
        extras: named (S, N, ...) tensors, such as distances to prototypes or a policy's probability.
    """

    logits: Float[Tensor, "stages samples classes"]
    ids: Int[Tensor, " samples"]
    cost: Float[Tensor, "stages samples"]
    reference_cost: Float[Tensor, " samples"]
    layers_run: Float[Tensor, "stages samples"]
    layers: tuple[int, ...]
    reference_layers: int
    labels: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stages, samples, _ = self.logits.shape
        if len(self.layers) != stages:
            raise InputError(f"evidence of {stages} stages needs {stages} entries in layers, got {len(self.layers)}")
        for name, tensor in self.extras.items():
            if tensor.shape[:2] != (stages, samples):
                raise InputError(f"extra {name!r} must be ({stages}, {samples}, ...), got {tuple(tensor.shape)}")
        if self.labels is not None and self.labels.shape != (samples,):
            raise InputError(f"labels must be ({samples},), got {tuple(self.labels.shape)}")

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor | None = None, **extras: Tensor) -> Evidence:
        """Evidence of logits (S, N, C) alone, for examples and one's own models: a stage is a layer, and costs 1."""
        stages, samples, _ = logits.shape
        layers = tuple(range(1, stages + 1))
        run = torch.tensor(layers, dtype=torch.float64)[:, None].expand(stages, samples)
        return cls(logits, torch.arange(samples), run, run[-1], run, layers, stages, labels, extras)

    @property
    def stages(self) -> int:
        """S."""
        return self.logits.shape[0]

    @property
    def samples(self) -> int:
        """N."""
        return self.logits.shape[1]

    @property
    def classes(self) -> int:
        """C, 1 for regression."""
        return self.logits.shape[2]

    @property
    def regression(self) -> bool:
        """Whether the answer is a number rather than a class."""
        return self.classes == 1

    @property
    def log_probabilities(self) -> Float[Tensor, "stages samples classes"]:
        """log p_s, in double precision: in single precision all confident samples would tie.

        Raises:
            InputError: for regression, where one logit is no distribution (its entropy is always 0).
        """
        if self.regression:
            raise InputError("a regression answer is one number, not a distribution; use patience, fixed or random")
        return torch.log_softmax(self.logits.double(), dim=-1)

    @property
    def predictions(self) -> Tensor:
        """(S, N): the class of each stage's answer, or its number for regression."""
        return predict(self.logits)

    def upto(self, stage: int) -> Evidence:
        """The evidence of the first stages only, `stage` (from 0) included: all that a rule may know there."""
        end = stage + 1
        return Evidence(
            self.logits[:end],
            self.ids,
            self.cost[:end],
            self.reference_cost,
            self.layers_run[:end],
            self.layers[:end],
            self.reference_layers,
            self.labels,
            {name: tensor[:end] for name, tensor in self.extras.items()},
        )

    def select(self, rows: Tensor) -> Evidence:
        """The evidence of some samples: row numbers or a mask."""
        return Evidence(
            self.logits[:, rows],
            self.ids[rows],
            self.cost[:, rows],
            self.reference_cost[rows],
            self.layers_run[:, rows],
            self.layers,
            self.reference_layers,
            None if self.labels is None else self.labels[rows],
            {name: tensor[:, rows] for name, tensor in self.extras.items()},
        )

    def save(self, path: Path | str) -> None:
        """Write to one safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name) for name in ("logits", "ids", "cost", "reference_cost", "layers_run")}
        if self.labels is not None:
            tensors["labels"] = self.labels
        tensors |= {f"extra.{name}": tensor for name, tensor in self.extras.items()}
        about = {"version": _VERSION, "layers": list(self.layers), "reference_layers": self.reference_layers}
        with atomic_write(path) as partial:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                partial,
                {"evidence": json.dumps(about)},
            )

    @classmethod
    def load(cls, path: Path | str) -> Evidence:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, cut off, or not evidence.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["evidence"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not readable evidence ({error}); delete it and record it again") from error
        extras = {name.removeprefix("extra."): t for name, t in tensors.items() if name.startswith("extra.")}
        return cls(
            tensors["logits"],
            tensors["ids"],
            tensors["cost"],
            tensors["reference_cost"],
            tensors["layers_run"],
            tuple(about["layers"]),
            about["reference_layers"],
            tensors.get("labels"),
            extras,
        )


def concatenate(parts: Sequence[Evidence], ids: Int[Tensor, " samples"]) -> Evidence:
    """Evidence of different samples from models of the same stages as one, in the order of `ids`.

    Raises:
        InputError: parts that do not hold each of the ids exactly once.
    """
    first, found = parts[0], torch.cat([part.ids for part in parts])
    if not torch.equal(found.sort().values, ids.sort().values):
        raise InputError(f"parts of {len(found)} samples cannot be put in the order of {len(ids)} other ids")

    def joined(name: str, dimension: int) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=dimension)

    whole = Evidence(
        joined("logits", 1),
        found,
        joined("cost", 1),
        joined("reference_cost", 0),
        joined("layers_run", 1),
        first.layers,
        first.reference_layers,
        None if first.labels is None else joined("labels", 0),
        {name: torch.cat([part.extras[name] for part in parts], dim=1) for name in first.extras},
    )
    return whole.select(found.argsort()[ids.argsort().argsort()])


def predict(logits: Float[Tensor, "*shape classes"]) -> Tensor:
    """The class with the largest logit, or the number itself for regression."""
    return logits[..., 0] if logits.shape[-1] == 1 else logits.argmax(dim=-1)


@torch.inference_mode()
def record(model: MultiStageModel, samples: Samples, batch_size: int = 64, progress: bool = False) -> Evidence:
    """One pass of all stages over all samples, in evaluation mode.

    Samples run in order of length, so that little is padded, and stand in the evidence in their own order.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    order, logits, extras = [], [], []
    for rows, batch in batches(samples, batch_size, progress="recording evidence" if progress else None):
        answers = model(*batch.to(device).inputs)
        order.append(rows)
        logits.append(answers.logits.float().cpu())
        extras.append({name: tensor.float().cpu() for name, tensor in answers.extras.items()})
    model.train(was_training)
    back = torch.cat(order).argsort()
    return Evidence(
        torch.cat(logits, dim=1)[:, back],
        samples.ids,
        model.cost(samples),
        model.reference_cost(samples),
        model.layers_run(samples),
        model.layers,
        model.reference_layers,
        samples.labels,
        {name: torch.cat([part[name] for part in extras], dim=1)[:, back] for name in extras[0]},
    )


@torch.no_grad()
def record_features(
    model: MultiExitModel, samples: Samples, batch_size: int = 64
) -> Float[Tensor, "stages samples width"]:
    """The vectors that the exits of a trained model read, in the samples' own order: for heads learned afterwards."""
    device = next(model.parameters()).device
    order, found = [], []
    for rows, batch in batches(samples, batch_size, progress="features"):
        state, features = model.begin(*batch.to(device).inputs), []
        for stage, layer in enumerate(model.layers):
            state, _ = model.step(stage, state)
            features.append(model.exits[str(layer)].features(state).float().cpu())
        order.append(rows)
        found.append(torch.stack(features))
    return torch.cat(found, dim=1)[:, torch.cat(order).argsort()]
