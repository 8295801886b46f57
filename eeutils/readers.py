"""Raw tables from where they lie: the pinned archive, files in GLUE's layout, a folder of one's own, the hub."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from eeutils.errors import InputError
from eeutils.sources import fetch
from eeutils.specs import TASKS, TaskSpec, read_card


def read_offline(domain: str) -> pd.DataFrame:
    """One domain of the pinned archive: columns id, text_a, text_b, label (valence) and group.

    Sentences of one review share a group, so that no review is divided over splits.

    Raises:
        SourceError: the archive could not be downloaded.
    """
    path = fetch("vader") / f"{domain}.tsv"
    table, _ = _read_tsv(path, ("id", "valence", "text"), header=("id", "valence", "text"))
    frame, _ = _parse(TASKS[f"{domain}-valence"], table, ("text",), "valence", str(path))
    # "309_7" is sentence 7 of review 309; elsewhere every sentence stands alone.
    frame["group"] = table["id"].str.split("_").str[0]
    return frame


def read_files(spec: TaskSpec, glue_dir: Path | str | None) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The two labelled files of a GLUE task or of a folder of one's own: train, test, and rows skipped as malformed.

    Args:
        spec: what to read.
        glue_dir: folder with GLUE in its original layout; by default `$GLUE_DIR`, and without it the hub.

    Raises:
        InputError: a folder, file or column that is missing; a malformed row, empty text or bad label (file and line
            are named); a hub out of reach.
    """
    if spec.source == "folder":
        layout, glue_dir = _folder_layout(spec), Path(spec.name).parent
    else:
        layout, glue_dir = _LAYOUTS[spec.name], glue_dir or os.environ.get("GLUE_DIR")
    if glue_dir and not Path(glue_dir).is_dir():
        raise InputError(
            f"the GLUE folder {glue_dir} does not exist; set GLUE_DIR to the one that holds {layout.folder}/train.tsv"
        )
    skipped, frames = 0, []
    for file, hub_split in (("train.tsv", "train"), (layout.test_file, layout.hub_test)):
        if glue_dir:
            path = Path(glue_dir) / layout.folder / file
            table, malformed = _read_tsv(path, (*layout.texts, layout.label), layout.header, layout.forgiving)
            frame, empty = _parse(spec, table, layout.texts, layout.label, str(path), layout.named, layout.forgiving)
        else:
            table, texts, malformed = _read_hub(layout, hub_split), layout.hub_texts or layout.texts, 0
            where = f"{_HUB} {layout.hub} {hub_split}"
            frame, empty = _parse(spec, table, texts, "label", where, forgiving=layout.forgiving)
        skipped += malformed + empty
        frames.append(frame)
    return *frames, skipped


@dataclass(frozen=True)
class _Layout:
    """How a GLUE task lies in its folder and, where that differs, on the hub.

    Attributes:
        folder: in the GLUE folder; it holds `train.tsv` and `test_file`, the public dev split.
        texts, label: names of the columns.
        header: names of all columns, for files without a header line.
        named: the files hold the names of the classes, not their numbers.
        forgiving: skip malformed rows, for a file that was published with some.
        hub: name of the configuration; `hub_texts` its text columns, `hub_test` its dev split.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    hub: str
    header: tuple[str, ...] = ()
    named: bool = False
    forgiving: bool = False
    test_file: str = "dev.tsv"
    hub_texts: tuple[str, ...] = ()
    hub_test: str = "validation"


_PAIR = ("sentence1", "sentence2")
_MNLI = _Layout("MNLI", _PAIR, "gold_label", "mnli", named=True, hub_texts=("premise", "hypothesis"))
_LAYOUTS = {
    "sst2": _Layout("SST-2", ("sentence",), "label", "sst2"),
    "mrpc": _Layout("MRPC", ("#1 String", "#2 String"), "Quality", "mrpc", hub_texts=_PAIR),
    "rte": _Layout("RTE", _PAIR, "label", "rte", named=True),
    "cola": _Layout("CoLA", ("sentence",), "label", "cola", header=("source", "label", "star", "sentence")),
    "stsb": _Layout("STS-B", _PAIR, "score", "stsb"),
    "qnli": _Layout("QNLI", ("question", "sentence"), "label", "qnli", named=True),
    "qqp": _Layout("QQP", ("question1", "question2"), "is_duplicate", "qqp", forgiving=True),
    "mnli": replace(_MNLI, test_file="dev_matched.tsv", hub_test="validation_matched"),
    "mnli-mm": replace(_MNLI, test_file="dev_mismatched.tsv", hub_test="validation_mismatched"),
    "wnli": _Layout("WNLI", _PAIR, "label", "wnli"),
}


def _folder_layout(spec: TaskSpec) -> _Layout:
    card = read_card(spec.name)
    folder = Path(spec.name).name
    return _Layout(folder, tuple(card["texts"]), card["label"], hub="", named=True, test_file="test.tsv")


_HUB = "nyu-mll/glue"


def _read_hub(layout: _Layout, split: str) -> pd.DataFrame:
    try:
        data = datasets.load_dataset(_HUB, layout.hub, split=split)
    except (OSError, ValueError) as error:
        offline = ", ".join(name for name, spec in TASKS.items() if spec.source == "offline")
        raise InputError(
            f"{_HUB} could not be loaded from the hub ({error}); set GLUE_DIR to a folder that holds "
            f"{layout.folder}/train.tsv, or take a task that needs no hub: {offline}"
        ) from error
    table = data.to_pandas().astype(str)
    table["row"] = range(len(table))
    table.index += 1
    return table


def _read_tsv(
    path: Path, columns: Sequence[str], header: Sequence[str] = (), forgiving: bool = False
) -> tuple[pd.DataFrame, int]:
    """Columns of a tab-separated file as text, with `row` and by line number; and how many malformed rows were skipped.

    Quotes have no meaning and a line ends at a newline only: GLUE's texts hold lone quotes and odd line separators.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}); a GLUE folder holds CoLA, MRPC, ..., each with its own tsv files"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); use the file as it was published") from error
    if lines[-1] == "" and len(lines) > 1:
        del lines[-1]
    first = 1 if header else 2
    header = list(header) or lines[0].rstrip("\r").split("\t")
    absent = [column for column in columns if column not in header]
    if absent:
        raise InputError(
            f"{path} has no column {absent[0]!r}; its columns are {', '.join(header)}. GLUE's test files carry no "
            "labels: use the published train and dev files"
        )
    places = [header.index(column) for column in columns]
    numbers, rows = [], []
    for number, line in enumerate(lines[first - 1 :], first):
        cells = line.rstrip("\r").split("\t")
        if len(cells) == len(header):
            numbers.append(number)
            rows.append([cells[place] for place in places])
        elif not forgiving:
            raise InputError(
                f"{path}, line {number}: found {len(cells)} columns, expected {len(header)} ({', '.join(header)})"
            )
    table = pd.DataFrame(rows, columns=list(columns), index=numbers, dtype=str)
    table["row"] = table.index - first
    return table, len(lines) - first + 1 - len(rows)


def _parse(
    spec: TaskSpec,
    table: pd.DataFrame,
    texts: Sequence[str],
    label: str,
    where: str,
    named: bool = False,
    forgiving: bool = False,
) -> tuple[pd.DataFrame, int]:
    """Columns id, text_a, text_b and label from a table of text, and how many rows without a text were skipped."""
    frame = pd.DataFrame({"id": table["row"], "text_a": table[texts[0]].str.strip(), "text_b": ""})
    if len(texts) == 2:
        frame["text_b"] = table[texts[1]].str.strip()
    empty = (frame[list(spec.text_columns)] == "").any(axis="columns")
    if empty.any() and not forgiving:
        raise InputError(f"{where}, line {empty.idxmax()}: the text is empty; remove the row or restore its text")
    labels = table.loc[~empty, label].str.strip()
    if spec.kind == "classification":
        names = spec.class_names if named else [str(number) for number in range(len(spec.class_names))]
        values = labels.map({name: number for number, name in enumerate(names)})
        expected = f"one of {', '.join(names)}"
    else:
        values = pd.to_numeric(labels, errors="coerce").astype("float32")
        expected = "a finite number"
    bad = ~np.isfinite(values)
    if bad.any():
        line = bad.idxmax()
        hint = "; GLUE's test files carry no labels: use the published train and dev files"
        raise InputError(
            f"{where}, line {line}: the label is {labels[line]!r}, expected {expected}"
            f"{hint if labels[line] in ('-1', '', '-') else ''}"
        )
    frame = frame[~empty].copy()
    frame["label"] = values.astype("int64" if spec.kind == "classification" else "float32")
    return frame, int(empty.sum())
