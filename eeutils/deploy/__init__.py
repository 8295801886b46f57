"""A trained run as a folder that answers texts without PyTorch.

    deploy.export(run, "reviews", rules.entropy(), speedup=2.0)  # one ONNX graph for each stage, tokenizer, threshold
    deploy.load("reviews")(["A fine film."])                     # needs onnxruntime, tokenizers and numpy alone

Importing this package imports neither PyTorch nor transformers; `export` does, when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eeutils.deploy.served import Answered, Deployed, load

if TYPE_CHECKING:
    from eeutils.training.runs import Run

__all__ = ["Answered", "Deployed", "export", "load"]


def export(run: Run, folder: Path | str, *choices: Any, **named: Any) -> Deployed:
    """See `eeutils.deploy.exporting.export`."""
    from eeutils.deploy.exporting import export as with_torch

    return with_torch(run, folder, *choices, **named)
