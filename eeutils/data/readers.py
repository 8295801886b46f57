"""Raw tables from where they lie: the pinned archive, files in GLUE's layout, the hub."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from eeutils.data.sources import fetch
from eeutils.data.specs import TASKS, TaskSpec
from eeutils.data.texts import is_empty
from eeutils.errors import InputError


def read_offline(corpus: str) -> pd.DataFrame:
    """A pinned corpus: columns id, text_a, text_b, label and group, what must not be divided over splits.

    Of rated sentences the label is the valence and the group the review, of Wikipedia's paragraphs the topic's number
    and the paragraph; those that nobody has put under a topic are left out.
    """
    return _read_wiki() if corpus == "wiki" else _read_rated(corpus)


def _read_wiki() -> pd.DataFrame:
    topics = {name: number for number, name in enumerate(TASKS["wiki"].class_names)}
    articles = json.loads((fetch("wiki") / "summaries.json").read_text(encoding="utf-8")).values()
    frame = pd.DataFrame(
        {"id": number, "text_a": article["extract"].strip(), "text_b": "", "label": topics.get(article["topic"])}
        for number, article in enumerate(articles)
    )
    frame = frame[frame["label"].notna() & ~frame["text_a"].map(is_empty)]
    return frame.assign(label=frame["label"].astype("int64"), group=frame["id"].astype(str))


def _read_rated(domain: str) -> pd.DataFrame:
    path = fetch("vader") / f"{domain}.tsv"
    table = _read_tsv(path, _VADER)
    frame = _parse(TASKS[f"{domain}-valence"], _VADER, table, str(path))
    # "309_7" is sentence 7 of review 309, and no review is divided over splits; elsewhere every sentence stands alone.
    frame["group"] = table["id"].str.split("_").str[0]
    return frame


def read_files(spec: TaskSpec) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The two labelled files of a GLUE task: train, test, and how many rows they hold.

    The frames have fewer rows than that where malformed ones were skipped. Errors are those of `load_task`.
    """
    layout, root = _LAYOUTS[spec.name], os.environ.get("GLUE_DIR")
    if root and not Path(root).is_dir():
        raise InputError(
            f"the GLUE folder {root} does not exist; set GLUE_DIR to the one that holds {layout.folder}/train.tsv"
        )
    if not root:
        layout = replace(layout, texts=layout.hub_texts or layout.texts, label="label", named=False)
    rows, frames = 0, []
    for file, hub_split in (("train.tsv", "train"), (layout.test_file, layout.hub_test)):
        where = str(Path(root, layout.folder, file)) if root else f"{_HUB} {layout.hub} {hub_split}"
        table = _read_tsv(Path(where), layout) if root else _read_hub(layout, hub_split)
        rows += len(table)
        frames.append(_parse(spec, layout, table, where))
    return *frames, rows


@dataclass(frozen=True)
class _Layout:
    """How a task lies in its files and, where that differs, on the hub."""

    folder: str  # it holds `train.tsv` and `test_file`
    texts: tuple[str, ...]  # names of the columns
    label: str
    hub: str = ""  # the configuration's name
    header: tuple[str, ...] = ()  # names of all columns, for files without a header line
    named: bool = False  # the files hold the names of the classes, not their numbers
    forgiving: bool = False  # skip malformed rows, for a file that was published with some
    test_file: str = "dev.tsv"
    hub_texts: tuple[str, ...] = ()
    hub_test: str = "validation"
    # What to know where a file, or a column or label in it, is not as expected.
    about_files: str = "a GLUE folder holds CoLA, MRPC, ..., each with its own tsv files as they were published"
    about_labels: str = "use the published train and dev files; GLUE's test files carry no labels"


_HUB = "nyu-mll/glue"
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

_DAMAGED = "delete the file and run again: it is taken out of the offline archive once more"
_VADER = _Layout("", ("text",), "valence", "", ("id", "valence", "text"), about_files=_DAMAGED, about_labels=_DAMAGED)


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
    table.index += 1
    return table


def _read_tsv(path: Path, layout: _Layout) -> pd.DataFrame:
    """The columns that a layout names, as text, by line number; a malformed row to be skipped has no text.

    Quotes have no meaning and a line ends at a newline only: GLUE's texts hold lone quotes and odd line separators.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); {layout.about_files}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); {layout.about_files}") from error
    header = list(layout.header) or lines.pop(0).rstrip("\r").split("\t")
    columns = list(layout.header) or [*layout.texts, layout.label]
    names = ", ".join(header)
    for column in columns:
        if column not in header:
            raise InputError(f"{path} has no column {column!r}; its columns are {names}; {layout.about_labels}")
    places = [header.index(column) for column in columns]
    first = 1 if layout.header else 2
    rows = []
    for number, line in enumerate(lines, first):
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(header):
            if not layout.forgiving:
                problem = f"found {len(cells)} columns, expected {len(header)} ({names})"
                raise InputError(f"{path}, line {number}: {problem}; {layout.about_files}")
            cells = [""] * len(header)
        rows.append([cells[place] for place in places])
    return pd.DataFrame(rows, range(first, first + len(rows)), columns, dtype=str)


def _parse(spec: TaskSpec, layout: _Layout, table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Columns id, text_a, text_b and label of the rows that have a text, from a table of text."""
    frame = pd.DataFrame({"id": range(len(table)), "text_a": "", "text_b": ""}, table.index)
    for name, column in zip(spec.text_columns, layout.texts, strict=True):
        frame[name] = table[column].str.strip()
    empty = frame[list(spec.text_columns)].map(is_empty).any(axis="columns")
    if empty.any() and not layout.forgiving:
        raise InputError(f"{where}, line {empty.idxmax()}: the text is empty; remove the row or restore its text")
    frame, labels = frame[~empty].copy(), table.loc[~empty, layout.label].str.strip()
    if frame.empty:
        raise InputError(f"{where} holds no sample; {layout.about_files}")
    if spec.kind == "classification":
        names = spec.class_names if layout.named else [str(number) for number in range(len(spec.class_names))]
        values = labels.map({name: number for number, name in enumerate(names)})
        expected = f"one of {', '.join(names)}"
    else:
        values = pd.to_numeric(labels, errors="coerce").astype("float32")
        expected = "a finite number"
    if (unlike := ~np.isfinite(values)).any():
        line = unlike.idxmax()
        problem = f"the label is {labels[line]!r}, expected {expected}"
        raise InputError(f"{where}, line {line}: {problem}; {layout.about_labels}")
    frame["label"] = values.astype("int64" if spec.kind == "classification" else "float32")
    return frame
