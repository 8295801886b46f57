"""What only notebooks need: their parameters, sources shown in cells, tables shown and kept beside the figures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import pandas as pd
from IPython import get_ipython
from IPython.display import Markdown, display

from eeutils.errors import InputError
from eeutils.files import atomic_write
from eeutils.settings import Setting, check_parameters
from eeutils.specs import TASKS, spec_of
from eeutils.tradeoff import score_at


def setting_of(namespace: dict[str, Any], **changes: Any) -> Setting:
    """The setting of a notebook from its parameters: call it with `globals()` in the cell after the parameters.

    Whatever is not an import stands in the namespace by then because the parameters cell or papermill put it there.
    Only the first call in a notebook looks for unknown names: later the notebook's own variables are there, too.

    Args:
        namespace: the notebook's globals.
        changes: fields of the setting that this notebook fixes.

    Raises:
        InputError: an unknown parameter, or an unknown value of one; the sentence lists the valid ones.
    """
    shell = get_ipython()
    hidden = set(shell.user_ns_hidden) if shell is not None else set()
    imported = (ModuleType, FunctionType, BuiltinFunctionType, type)
    if not namespace.get("_parameters_checked"):
        check_parameters(
            name
            for name, value in namespace.items()
            if not name.startswith("_") and name not in hidden and not isinstance(value, imported)
        )
        namespace["_parameters_checked"] = True
    return Setting.from_profile(
        namespace["profile"], namespace["task"], namespace["backbone"], namespace["seed"], **changes
    )


def needs_classes(setting: Setting) -> None:
    """Stop a notebook whose method reads class probabilities when the task has none.

    Raises:
        InputError: names the classification tasks.
    """
    if spec_of(setting.task).kind != "classification":
        valid = ", ".join(name for name, spec in TASKS.items() if spec.kind == "classification")
        raise InputError(
            f"this notebook needs classes and task {setting.task!r} is a regression; choose one of: {valid}"
        )


def show_source(*objects: Any) -> None:
    """Show the source of functions or classes as they stand in the package: what is read is what runs."""
    for thing in objects:
        display(Markdown(f"```python\n{inspect.getsource(thing).rstrip()}\n```"))


def keep_table(frame: pd.DataFrame, save_to: str | Path, name: str) -> None:
    """Write a tidy table to `save_to/results/NAME.csv`; without `save_to`, nothing."""
    if save_to:
        with atomic_write(Path(save_to) / "results" / f"{name}.csv") as partial:
            frame.to_csv(partial, index=False, float_format="%.6g")


def speedup_table(curves: Mapping[str, pd.DataFrame], speedups: Sequence[float], axis: str = "layers") -> pd.DataFrame:
    """What curves score at some speed-ups: one row per curve, NaN where it does not reach one."""
    columns = {f"{speedup:g}x": [score_at(curve, speedup, axis) for curve in curves.values()] for speedup in speedups}
    return pd.DataFrame(columns, index=pd.Index(curves, name=f"{'FLOPs' if axis == 'flops' else 'layer'} speed-up"))


def keep_curves(curves: Mapping[str, pd.DataFrame], save_to: str | Path, name: str) -> None:
    """Write trade-off curves to one table, as `keep_table` does: rule, threshold, score, cost and both speed-ups."""
    points = pd.concat([curve.assign(rule=rule) for rule, curve in curves.items()])
    keep_table(points[["rule", "threshold", "score", "layers", "layer_speedup", "flops_speedup"]], save_to, name)
