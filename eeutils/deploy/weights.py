"""A trained model that leaves early in PyTorch, in a folder that needs neither the data nor the run it comes from."""

from __future__ import annotations

import importlib
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
from eeutils.exiting import rules
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import NEVER, Rule
from eeutils.exiting.tradeoff import threshold_for_speedup
from eeutils.files import atomic_write
from eeutils.models.backbone import load_tokenizer
from eeutils.models.runtime import Runtime
from eeutils.training import loop
from eeutils.training.method import Method
from eeutils.training.runs import Run
from eeutils.training.settings import Setting

SPEEDUPS = (1.5, 2.0, 3.0)
"""In FLOPs; a threshold for each is chosen on dev."""

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


def thresholds(dev: Evidence, rule: Rule) -> dict[float, float]:
    """Speed-up -> the threshold that is nearest to it on dev."""
    return {speedup: threshold_for_speedup(dev, rule, speedup) for speedup in SPEEDUPS}


def save_pretrained(run: Run, folder: Path | str, rule: Rule | None = None) -> None:
    """Write what `from_pretrained` needs: weights, classes, thresholds, and how the model is built.

    Args:
        run: of a method of `eeutils.papers`.
        folder: made, or replaced.
        rule: when to leave; the paper's own by default.

    Raises:
        InputError: a rule that cannot be named, such as one that was written or learned for one run.
    """
    rule = rule or run.method.own_rule
    _rule_called(rule.name, run.method)
    card = {
        "method": run.method.name,
        "setting": run.setting.to_dict(),
        "options": run.options.to_dict(),
        "classes": spec_of(run.setting.task).class_names,
        "rule": rule.name,
        "thresholds": {f"{speedup:g}": threshold for speedup, threshold in thresholds(run.dev, rule).items()},
    }
    with atomic_write(folder) as partial:
        partial.mkdir()
        shutil.copyfile(run.directory / _WEIGHTS, partial / _WEIGHTS)
        (partial / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def from_pretrained(folder: Path | str, speedup: float = 2.0) -> EarlyExit:
    """A saved model, ready to answer, on the accelerator if there is one.

    Args:
        folder: what `save_pretrained` wrote.
        speedup: in FLOPs, one of those that thresholds were chosen for; 1 never leaves early.

    Raises:
        InputError: no such folder, files that cannot be read, or another speed-up; the sentence lists the valid ones.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        method: Method = importlib.import_module(f"eeutils.papers.{card['method']}").METHOD
        rule = _rule_called(card["rule"], method)
    except (OSError, ValueError, KeyError, ModuleNotFoundError) as error:
        raise InputError(f"{folder} holds no saved model ({error}); write one with save_pretrained") from error
    known = {float(name): threshold for name, threshold in card["thresholds"].items()} | {1.0: NEVER}
    if speedup not in known:
        raise InputError(
            f"no threshold was chosen for {speedup:g}x; choose one of: {', '.join(map('{:g}'.format, known))}"
        )
    setting, classes = Setting(**card["setting"]), tuple(card["classes"])
    model = method.build(setting, len(classes) or 1, method.with_options(**card["options"]))
    try:
        load_model(model, folder / _WEIGHTS)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder / _WEIGHTS} cannot be read ({error}); save the model again") from error
    model = model.to(loop.best_device(), torch.float32).eval()
    tokenizer = load_tokenizer(setting.backbone)
    return EarlyExit(Runtime(model, rule, known[speedup], tokenizer, setting.max_length), classes)


def _rule_called(name: str, method: Method) -> Rule:
    makers = (rules.entropy, rules.confidence, rules.margin, rules.patience, rules.divergence, rules.vote, rules.fixed)
    known = {rule.name: rule for rule in [*(make() for make in makers), *method.rules.values()]}
    if name not in known:
        raise InputError(
            f"rule {name!r} cannot be named in a file; choose one of: {', '.join(known)}, or export the run, which "
            "writes the rule itself"
        )
    return known[name]
