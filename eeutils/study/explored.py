"""The explorer's committed evidence, from the runs of the study."""

from __future__ import annotations

import json
from pathlib import Path

from eeutils.errors import InputError
from eeutils.files import atomic_write
from eeutils.papers import badge, de3bert, deebert, fastbert, pabee
from eeutils.reporting.explorer.page import SHOWN, assembled, drawn, grounds_dir, model_of
from eeutils.study.entries import entries_for, result_of
from eeutils.training.settings import Setting

METHODS = tuple(paper.METHOD.title for paper in (deebert, pabee, badge, de3bert, fastbert))
"""Those that are shown, where they have been run: one model each, and different answers to when one leaves."""


def explored(profile: str, setting: Setting, shown: int = SHOWN) -> Path:
    """Write the ground of a task, an encoder and a seed where those that are committed lie; nothing is trained.

    Returns:
        The file.

    Raises:
        InputError: none of `METHODS` has been run there.
    """
    entries = [entry for entry in entries_for(setting.task, setting.backbone) if entry.label in METHODS]
    results = [result for entry in entries if (result := result_of(entry, profile, setting))]
    if not results:
        raise InputError(
            f"none of {', '.join(METHODS)} has been run: profile {profile}, {setting.task}, {setting.backbone}, seed "
            f"{setting.seed}; train them with `python -m eeutils.study train`"
        )
    results.sort(key=lambda result: METHODS.index(result.entry.label))
    first = results[0].runs[0]
    seen = drawn(first, shown)
    made = assembled(
        first, seen, [model_of(result.entry.label, result.runs[0], [result.rule], seen) for result in results]
    )
    path = grounds_dir() / f"{Path(setting.task).name}-{Path(setting.backbone).name}.json"
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(made, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
    return path
