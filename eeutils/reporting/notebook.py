"""What only notebooks need: their parameters, sources shown in cells, figures and tables shown and kept."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import pandas as pd
from IPython import get_ipython
from IPython.display import Markdown, display, update_display
from matplotlib.figure import Figure

from eeutils.data.specs import TASKS, TaskSpec, spec_of
from eeutils.errors import InputError
from eeutils.exiting import claims
from eeutils.exiting.tradeoff import Metric, score_at
from eeutils.files import atomic_write
from eeutils.models.backbone import config_of, described
from eeutils.papers.budgets import Budget, budget_of
from eeutils.reporting import plots
from eeutils.reporting.plots.tradeoffs import SPEEDUP_NAMES
from eeutils.training.runs import Run, metric_of
from eeutils.training.settings import Setting, check_parameters

FINDINGS = "findings"
"""The display at the top of a notebook that `Notebook.found` fills."""


@dataclass(frozen=True)
class Notebook:
    """What a notebook is run with, and where what it shows is kept.

    Attributes:
        profile: how much is run.
        setting: task, backbone, seed and so on.
        spec: what the task is; `name` is its headline metric's name and `metric` computes it.
        folder: where figures and tables are kept; None keeps nothing.
    """

    profile: str
    setting: Setting
    spec: TaskSpec
    folder: Path | None

    @cached_property
    def depth(self) -> int:
        """L, layers of the encoder."""
        return config_of(self.setting.backbone).num_hidden_layers

    @property
    def budget(self) -> Budget:
        """What the profile can afford of each method."""
        return budget_of(self.profile, self.depth)

    @property
    def metric(self) -> Metric:
        """(predictions, labels) -> score."""
        return metric_of(self.setting.task)

    @property
    def name(self) -> str:
        """The headline metric, such as accuracy."""
        return self.spec.metrics[0]

    def found(self, *sentences: str) -> None:
        """What came out, in sentences computed from the numbers: shown here, and at the top of the notebook, where its
        reader begins."""
        text = "\n".join(["**What came out**", "", *(f"- {sentence}" for sentence in sentences)])
        display(Markdown(text))
        update_display(Markdown(text), display_id=FINDINGS)

    def trained(self, runs: Mapping[str, Run]) -> dict[str, str]:
        """The gate: whether every exit of every checkpoint has learned what its own vector can tell.

        Shows a line a checkpoint: steps, seconds and the loss of the last epoch, and of every exit its score on dev,
        with a mark where it is below its probe by more than the gate allows.

        Returns:
            Name -> why no verdict may count it, for the checkpoints that fail.
        """
        rows, unfit = {}, {}
        for name, run in runs.items():
            cells = {}
            if run.has_probes:
                gate = run.learned
                cells = {
                    f"exit {row.layer}": f"{row.exit:.3f}" + ("" if row.learned else f" ✗ ({row.probe:.3f})")
                    for row in gate.itertuples()
                }
                if not gate.learned.all():
                    layers = ", ".join(map(str, gate.layer[~gate.learned]))
                    unfit[name] = f"{name} has not learned what its vectors can tell at layer {layers}"
            history = run.history
            facts = {"steps": history.steps.sum(), "seconds": round(history.seconds.sum())}
            rows[name] = {**facts, "last loss": f"{history.loss.iloc[-1]:.3f}", **cells}
        display(pd.DataFrame.from_dict(rows, orient="index").fillna(""))
        told = "; ".join(unfit.values()) or "every exit has learned what a linear probe finds in its own vector"
        display(Markdown(f"Exits on dev, ✗ where a linear probe on the same vector does better: {told}."))
        return unfit

    def show(self, figure: Figure, alt: str, name: str = "") -> None:
        """Display a figure with its alternative text, which tells what is to be seen; with a name, keep it."""
        plots.show(figure, alt, self.folder / "figures" / f"{name}.png" if self.folder and name else None)

    def keep(self, frame: pd.DataFrame, name: str) -> None:
        """Keep a tidy table as `results/NAME.csv`."""
        if self.folder:
            with atomic_write(self.folder / "results" / f"{name}.csv") as partial:
                frame.to_csv(partial, index=False, float_format="%.6g")

    def keep_curves(self, curves: Mapping[str, pd.DataFrame], name: str) -> None:
        """Keep trade-off curves in one table: rule, threshold, score, cost and both speed-ups."""
        points = pd.concat([curve.assign(rule=rule) for rule, curve in curves.items()])
        self.keep(points[["rule", "threshold", "score", "layers", "layer_speedup", "flops_speedup"]], name)

    def judge(self, verdicts: Sequence[claims.Verdict], name: str) -> pd.DataFrame:
        """The claims table of a notebook, which is kept too."""
        pd.set_option("display.max_colwidth", None)
        ledger = claims.table(verdicts)
        self.keep(ledger, name)
        return ledger[["claim", "source", "paper", "our test", "bar", "ours", "verdict", "note"]]


def parameters_of(namespace: dict[str, Any]) -> tuple[str, str, str, int]:
    """A notebook's profile, task, backbone and seed.

    Whatever is not an import stands in the namespace by then because the parameters cell or papermill put it there.
    Only the first call in a notebook looks for unknown names: later the notebook's own variables are there, too.

    Raises:
        InputError: an unknown parameter; the sentence lists the valid ones.
    """
    hidden = getattr(get_ipython(), "user_ns_hidden", ())
    imported = (ModuleType, FunctionType, BuiltinFunctionType, type)
    if not namespace.get("_parameters_checked"):
        check_parameters(
            name
            for name, value in namespace.items()
            if not name.startswith("_") and name not in hidden and not isinstance(value, imported)
        )
        namespace["_parameters_checked"] = True
    return tuple(namespace[name] for name in ("profile", "task", "backbone", "seed"))


def open_notebook(
    namespace: dict[str, Any], *, needs_classes: bool = True, needs_encoder: bool = True, **changes: Any
) -> Notebook:
    """Check a notebook's parameters and set the theme of its figures: call it with `globals()` right after them.

    Args:
        namespace: the notebook's globals.
        needs_classes: whether its method reads class probabilities.
        needs_encoder: whether it runs anything; one that only reads tables does not say with what.
        changes: fields of the setting that this notebook fixes.

    Raises:
        InputError: an unknown parameter, an unknown value of one, or a regression where classes are needed; the
            sentence lists the valid ones.
    """
    profile, task, backbone, seed = parameters_of(namespace)
    setting, spec = Setting.from_profile(profile, task, backbone, seed, **changes), spec_of(task)
    if needs_classes and spec.kind != "classification":
        valid = ", ".join(name for name, other in TASKS.items() if other.kind == "classification")
        raise InputError(f"this notebook needs classes and task {task!r} is a regression; choose one of: {valid}")
    plots.use_theme()
    here = Notebook(profile, setting, spec, Path(namespace["save_to"]) if namespace["save_to"] else None)
    if needs_encoder:
        encoder = f"{described(backbone)} ({here.depth} layers)"
        display(Markdown(f"{spec.title}, {encoder}, profile {profile}, seed {seed}"))
    # Filled by `found` at the end of the notebook.
    display(Markdown("*What came out stands here once the notebook has run.*"), display_id=FINDINGS)
    return here


def show_source(*objects: Any) -> None:
    """Show the source of functions or classes as they stand in the package: what is read is what runs."""
    for thing in objects:
        display(Markdown(f"```python\n{inspect.getsource(thing).rstrip()}\n```"))


def speedup_table(curves: Mapping[str, pd.DataFrame], speedups: Sequence[float], axis: str = "flops") -> pd.DataFrame:
    """What curves score at some speed-ups: one row per curve, NaN where it does not reach one."""
    columns = {f"{speedup:g}x": [score_at(curve, speedup, axis) for curve in curves.values()] for speedup in speedups}
    return pd.DataFrame(columns, index=pd.Index(curves, name=SPEEDUP_NAMES[axis]))
