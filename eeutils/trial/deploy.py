"""A trained model that leaves early, in a folder that needs neither the data nor the run that it comes from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

from eeutils.data.specs import spec_of
from eeutils.errors import InputError
from eeutils.exiting.rules import NEVER
from eeutils.exiting.tradeoff import threshold_for_speedup
from eeutils.files import atomic_write
from eeutils.models.backbone import load_tokenizer
from eeutils.models.runtime import Runtime
from eeutils.training import loop
from eeutils.training.runs import Run
from eeutils.training.settings import Setting
from eeutils.trial.recommended import METHOD, rule_for

SPEEDUPS = (1.5, 2.0, 3.0)
"""What is asked for in FLOPs; a threshold for each is chosen on dev."""

_CARD, _WEIGHTS = "model.json", "model.safetensors"


@dataclass(frozen=True)
class EarlyExit:
    """Texts in, answers out; as many layers run as each text needs.

    Attributes:
        runtime: what runs the model, and gives stages and logits, too.
        classes: the names of the answers; empty where the answer is a number.
    """

    runtime: Runtime
    classes: tuple[str, ...]

    def __call__(
        self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, batch_size: int = 32
    ) -> list[str] | list[float]:
        """The class of each text (or pair of texts) by name, or its number.

        Raises:
            InputError: no text, or an empty one.
        """
        found = self.runtime(texts, text_pairs, batch_size).predictions.tolist()
        return [self.classes[number] for number in found] if self.classes else found


def thresholds(run: Run) -> dict[float, float]:
    """Speed-up -> the threshold that is nearest to it on dev."""
    rule = rule_for(run.dev.regression)
    return {speedup: threshold_for_speedup(run.dev, rule, speedup) for speedup in SPEEDUPS}


def save(run: Run, folder: Path) -> None:
    """Write what `load` needs: weights, classes, thresholds, and how the model is built."""
    card = {
        "setting": run.setting.to_dict(),
        "options": run.options.to_dict(),
        "classes": spec_of(run.setting.task).class_names,
        "thresholds": {f"{speedup:g}": threshold for speedup, threshold in thresholds(run).items()},
    }
    with atomic_write(folder) as partial:
        partial.mkdir()
        shutil.copyfile(run.directory / _WEIGHTS, partial / _WEIGHTS)
        (partial / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path, speedup: float = 2.0) -> EarlyExit:
    """The model of a trial, ready to answer, on the accelerator if there is one.

    Args:
        folder: the folder `model` of a trial.
        speedup: in FLOPs, one of those that the trial measured; 1 never leaves early.

    Raises:
        InputError: no such folder, files that cannot be read, or another speed-up; the sentence lists the valid ones.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no model of a trial ({error}); run `python -m eeutils try PATH`") from error
    known = {float(name): threshold for name, threshold in card["thresholds"].items()} | {1.0: NEVER}
    if speedup not in known:
        raise InputError(
            f"no threshold was chosen for {speedup:g}x; choose one of: {', '.join(map('{:g}'.format, known))}"
        )
    setting, classes = Setting(**card["setting"]), tuple(card["classes"])
    model = METHOD.build(setting, len(classes) or 1, METHOD.with_options(**card["options"]))
    try:
        load_model(model, folder / _WEIGHTS)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder / _WEIGHTS} cannot be read ({error}); run the trial again") from error
    model = model.to(loop.best_device(), torch.float32).eval()
    runtime = Runtime(
        *(model, rule_for(not classes), known[speedup], load_tokenizer(setting.backbone), setting.max_length)
    )
    return EarlyExit(runtime, classes)
