"""A trained run as a folder that answers texts: without PyTorch, or in it.

    deploy.export(run, "reviews", rules.entropy(), speedup=2.0)  # one ONNX graph for each stage, tokenizer, threshold
    deploy.load("reviews")(["A fine film."])                     # needs onnxruntime, tokenizers and numpy alone
    deploy.save_pretrained(run, "weights", rules.entropy())      # safetensors
    deploy.from_pretrained("weights", speedup=2.0)(["A fine film."])

Importing this package imports neither PyTorch nor transformers; what needs them does, when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eeutils.deploy.served import Answered, Deployed, load

if TYPE_CHECKING:
    from eeutils.deploy.weights import EarlyExit
    from eeutils.exiting.rules import Rule
    from eeutils.training.runs import Run

__all__ = ["Answered", "Deployed", "export", "from_pretrained", "load", "save_pretrained"]


def export(run: Run, folder: Path | str, *choices: Any, **named: Any) -> Deployed:
    """See `eeutils.deploy.exporting.export`."""
    from eeutils.deploy.exporting import export as with_torch

    return with_torch(run, folder, *choices, **named)


def save_pretrained(run: Run, folder: Path | str, rule: Rule | None = None) -> None:
    """See `eeutils.deploy.weights.save_pretrained`."""
    from eeutils.deploy import weights

    weights.save_pretrained(run, folder, rule)


def from_pretrained(folder: Path | str, speedup: float = 2.0) -> EarlyExit:
    """See `eeutils.deploy.weights.from_pretrained`."""
    from eeutils.deploy import weights

    return weights.from_pretrained(folder, speedup)
