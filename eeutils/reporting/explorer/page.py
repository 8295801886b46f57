"""The explorer as one HTML file that asks nothing of any network, and in a notebook cell."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import IFrame
from torch import Tensor

from eeutils.data.specs import spec_of
from eeutils.data.tasks import task_of
from eeutils.errors import InputError
from eeutils.exiting.rules import Rule, confidence, divergence, entropy, patience
from eeutils.files import repository_root
from eeutils.models.backbone import described
from eeutils.reporting.explorer import view
from eeutils.training.runs import Run

SHOWN = 300
"""Sentences that one sees, unless told: more of them make a slow page."""

SEED = 0
"""Of the draw."""

_PARTS = Path(__file__).parent


def document(grounds: Sequence[dict[str, Any]]) -> str:
    """The whole page: one HTML document with its style, its script and its evidence inside.

    Args:
        grounds: of `view.ground`; the reader chooses among them.

    Raises:
        InputError: no ground, or one in another format.
    """
    if not grounds:
        raise InputError("the explorer needs at least one ground; make one with view.ground()")
    for shown in grounds:
        if shown.get("format") != view.FORMAT:
            raise InputError(
                f"{shown.get('title', 'a ground')!r} is in format {shown.get('format')} and this page reads "
                f"{view.FORMAT}; make it again"
            )
    whole = (_PARTS / "page.html").read_text(encoding="utf-8")
    # In a script "</" could end it, whatever a sentence says.
    evidence = json.dumps(list(grounds), separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace(
        "</", "<\\/"
    )
    parts = {"style": "page.css", "script": "page.js"}
    for name, file in parts.items():
        whole = whole.replace(f"{{{{ {name} }}}}", (_PARTS / file).read_text(encoding="utf-8"))
    return whole.replace("{{ evidence }}", evidence)


def grounds_dir() -> Path:
    """Where the grounds that are committed lie."""
    return repository_root() / "data" / "explorer"


def committed() -> list[dict[str, Any]]:
    """The grounds that are committed, one file each, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(grounds_dir().glob("*.json"))]


def explore(*runs: Run, rules: Sequence[Rule] = (), shown: int = SHOWN, height: int = 900) -> IFrame:
    """The explorer on runs of yours, in a notebook cell: choose rule and threshold, see sentences leave.

    Its sentences are kept in the notebook, a few hundred kB: clear the cell before you commit it.

    Args:
        runs: of one task and one size of test, each a method; without any, the grounds that are committed.
        rules: beside each method's own and the usual ones.
        shown: test sentences, drawn by chance; scores are those of these sentences.
        height: of the cell, in pixels.

    Raises:
        InputError: runs on different sentences, or a run of one exit.
    """
    whole = document([ground_of(runs, rules, shown)] if runs else committed())
    title = "Explorer: move a threshold and see sentences leave at their layers"
    # The document travels in the notebook: no file is written, and none is asked for.
    return IFrame("about:blank", "100%", height, extras=[f'srcdoc="{html.escape(whole)}"', f'title="{title}"'])


def ground_of(runs: Sequence[Run], rules: Sequence[Rule] = (), shown: int = SHOWN) -> dict[str, Any]:
    """Trained runs as a ground: what `explore` shows.

    Raises:
        InputError: as `explore`.
    """
    first = runs[0].setting
    for run in runs[1:]:
        if (run.setting.task, run.setting.test_size) != (first.task, first.test_size):
            raise InputError(
                f"runs are compared on the same sentences; got {first.task!r} and {run.setting.task!r}: explore them "
                "one by one"
            )
    seen = drawn(runs[0], shown)
    models = [model_of(run.method.title, run, [*run.method.rules.values(), *rules], seen) for run in runs]
    return assembled(runs[0], seen, models)


def drawn(run: Run, shown: int) -> Tensor:
    """Which rows of a run's test evidence are shown, in order: a draw by chance, and the same for every run on it."""
    samples = run.test.samples
    return torch.from_numpy(np.random.default_rng(SEED).permutation(samples)[:shown]).sort().values


def model_of(name: str, run: Run, rules: Sequence[Rule], seen: Tensor) -> dict[str, Any]:
    """A run as one of the methods: its own rules, then those that need no more than answers."""
    evidence = run.test.take(seen)
    # Of two classes the surer one has the lower entropy: the two rules are one.
    of_classes = [] if evidence.regression else [entropy()] if evidence.classes == 2 else [entropy(), confidence()]
    usual = [*of_classes, patience(), divergence()]
    by_name = {rule.name: rule for rule in [*rules, *usual]}
    return view.model(name, evidence, list(by_name.values()), run.metric)


def assembled(run: Run, seen: Tensor, models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The ground of models on the sentences of one run."""
    setting, spec, evidence = run.setting, spec_of(run.setting.task), run.test
    rows = task_of(setting.task, setting.train_size, setting.test_size).test.to_pandas().set_index("id")
    kept = evidence.take(seen)
    texts = ["\n".join(filter(None, rows.loc[key, ["text_a", "text_b"]])) for key in kept.ids.tolist()]
    part = "All" if len(seen) == evidence.samples else f"{len(seen):,} of {evidence.samples:,}"
    by_chance = "" if part == "All" else ", drawn by chance"
    about = (
        f"{part} test sentences{by_chance}; seed {setting.seed}. Scores are those of the sentences that are shown; "
        "other sentences, other seeds and intervals are in the notebooks."
    )
    title = f"{spec.title}, {described(setting.backbone)}"
    return view.ground(title, about, spec.metrics[0], spec.class_names or None, texts, kept.labels.tolist(), models)
