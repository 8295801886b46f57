"""A task of one's own: which columns hold texts and label, which classes there are, and what was decided so.

What a file does not say stands in a card, `task.toml` in a folder or `NAME.toml` beside `NAME.csv`; each of its fields
may be left out. A card may also stand alone and name its data, a place or a dataset of the hub.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from eeutils.data.tables import Table, read_hub, read_tables
from eeutils.data.texts import is_empty
from eeutils.errors import InputError, unknown

CARD = "task.toml"
_FIELDS = {"title": str, "texts": list, "label": str, "classes": list, "metrics": list, "data": str, "config": str}

# What columns are called; the first that a table has is taken, and two texts before one.
_LABELS = (
    *("label", "labels", "gold_label", "class", "category", "target", "sentiment", "polarity", "intent", "topic"),
    *("emotion", "stars", "rating", "score", "y"),
)
_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2")),
    *(("text_a", "text_b"), ("question", "sentence"), ("question", "answer"), ("query", "passage")),
)
_TEXTS = ("text", "sentence", "review", "content", "body", "comment", "message", "tweet", "document", "description")

FEW = 20
"""So many different whole numbers are classes; of more, only those that count up from 0 without a gap."""

_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class Own:
    """A task of one's own, read.

    Attributes:
        title: for figures.
        texts: its one or two columns of text.
        classes: as they stand in the files, in the order of the label numbers; empty where the answer is a number.
        metrics: the first is the headline; empty leaves the choice.
        splits: "train", and "dev" and "test" where they are there and have labels -> columns id (the row, from 0),
            text_a, text_b, label.
        rows: of all splits, before any was left out.
        notes: what was decided here, in sentences.
        left_out: reason -> how many rows.
    """

    title: str
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: Mapping[str, pd.DataFrame]
    rows: int
    notes: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def is_own(name: str) -> bool:
    """Whether a task's name is a file, a folder, or has the form of a dataset's name on the hub."""
    return Path(name).exists() or _is_hub(name)


def read_own(name: str) -> Own:
    """Read a file, a folder, a card, or a dataset of the hub, once as long as none of its files changes.

    Raises:
        InputError: what `read_tables`, `read_hub` and `read_card` raise; columns or classes that cannot be told; a row
            with an empty text, or a label that is none. The sentence names file and row, and says what to do.
    """
    return _read(name, _stamp(name))


def read_card(name: str) -> dict[str, Any]:
    """The fields of the card of a file or folder, checked; without any where there is none.

    Raises:
        InputError: not TOML in UTF-8, or a field that is unknown or of the wrong kind.
    """
    path = _card_of(name)
    if path is None:
        return {}
    try:
        card = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML in UTF-8: {error}") from error
    for name, value in card.items():
        if name not in _FIELDS:
            raise unknown(f"field of {path}", name, _FIELDS)
        kind = _FIELDS[name]
        if not isinstance(value, kind):
            raise InputError(f"{path} needs {name} as a {'list' if kind is list else 'text'}; found {value!r}")
        if kind is list:
            if not all(isinstance(entry, str) for entry in value):
                raise InputError(f"{path} needs {name} as a list of texts, each in quotes; found {value!r}")
            card[name] = [entry.strip() for entry in value]
            if len(set(card[name]) - {""}) < len(value):
                raise InputError(f"{path} needs {name} that differ, none of them empty; found {value!r}")
    if card.get("label") in card.get("texts", ()):
        raise InputError(f"{path} names the column {card['label']!r} as text and as label; each needs one of its own")
    if not 1 <= len(card.get("texts", [""])) <= 2:
        raise InputError(f"{path} needs one or two texts; found {card['texts']!r}")
    if len(card.get("classes", ())) == 1 or card.get("metrics") == []:
        raise InputError(f"{path} needs no class or at least two, and at least one metric")
    return card


def _is_hub(name: str) -> bool:
    # A file that is not there is looked for nowhere else.
    return _HUB.fullmatch(name) is not None and not Path(name).suffix and not Path(name).parent.is_dir()


def _card_of(name: str) -> Path | None:
    path = Path(name)
    if path.suffix == ".toml":
        return path
    card = path / CARD if path.is_dir() else path.with_suffix(".toml")
    return card if card.is_file() else None


def _stamp(name: str) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file of the task does; a dataset of the hub is read once."""
    card = _card_of(name)
    data = _data_of(name, read_card(name))
    place = Path(data)
    files = [*([card] if card else []), *(place.rglob("*") if place.is_dir() else [place])]
    states = [(path, path.stat()) for path in sorted(files) if path.is_file()]
    return tuple((str(path), state.st_size, state.st_mtime_ns) for path, state in states)


def _data_of(name: str, card: Mapping[str, Any]) -> str:
    """Where the data of a task lie: where its name says, or where its card does."""
    if "data" not in card:
        if Path(name).suffix == ".toml":
            raise InputError(f"{name} is a card and needs data, a file, a folder or a name on the hub; found nothing")
        return name
    beside = Path(name).parent / card["data"] if Path(name).suffix == ".toml" else Path(card["data"])
    return str(beside) if beside.exists() else card["data"]


@lru_cache(maxsize=32)
def _read(name: str, stamp: tuple[tuple[str, int, int], ...]) -> Own:
    card = read_card(name)
    data = _data_of(name, card)
    if Path(data).exists() or not _is_hub(data):
        tables = read_tables(Path(data))
    else:
        repository, _, config = data.partition(":")
        tables = read_hub(repository, card.get("config", config))
    texts, label = _columns(tables["train"], card, name)
    notes = [] if {"texts", "label"} <= card.keys() else [f"text from {_listed(texts)}, label from {label!r}"]
    left_out: dict[str, int] = {}
    frames = {split: _frame(table, texts, label, name, left_out) for split, table in tables.items()}
    for split in [split for split, frame in frames.items() if split != "train" and (frame is None or len(frame) == 0)]:
        notes.append(f"{split} of {tables[split].where} carries no labels and is not used")
        del frames[split]
    if frames.get("train") is None or len(frames["train"]) == 0:
        raise InputError(f"{tables['train'].where} holds no sample; give it rows with a text and a label")
    classes = _classes(tables["train"], frames["train"]["label"], label, card, notes)
    for split, frame in frames.items():
        frame["label"] = _numbered(tables[split], frame["label"], classes, card, name)
    title = card.get("title", Path(data).stem if Path(data).exists() else data)
    rows = sum(len(table.frame) for table in tables.values())
    metrics = tuple(card.get("metrics", ()))
    return Own(title, texts, classes, metrics, frames, rows, tuple(notes), left_out)


def _columns(table: Table, card: Mapping[str, Any], name: str) -> tuple[tuple[str, ...], str]:
    """The columns of text and that of the label: as the card says, else by what they are called."""
    there = list(map(str, table.frame.columns))
    for column in (*card.get("texts", ()), *([card["label"]] if "label" in card else [])):
        _check_column(table, column, name)
    lower = {column.lower(): column for column in reversed(there)}
    texts = tuple(card.get("texts", ())) or next(
        (tuple(lower[each] for each in pair) for pair in _PAIRS if set(pair) <= lower.keys()), ()
    )
    found = [lower[each] for each in _TEXTS if each in lower]
    if not texts and len(found) == 1:
        texts = (found[0],)
    label = card.get("label") or next((lower[each] for each in _LABELS if each in lower), None)
    if len(there) == 2:  # one of two is known: the other one is what is left
        if texts and label is None:
            label = next((column for column in there if column not in texts), None)
        elif label and not texts:
            texts = tuple(column for column in there if column != label)
    if not texts or label is None or label in texts:
        what = "which column holds the text" if not texts else "which column holds the label"
        raise InputError(
            f"{table.where} does not say {what}; its columns are {', '.join(there) or 'none'}. Call them text and "
            f"label (if its header line is missing, add it), or write into {_card_to_write(name)}: "
            'texts = ["..."] and label = "..."'
        )
    return texts, label


def _check_column(table: Table, column: str, name: str) -> None:
    if column not in table.frame.columns:
        names = ", ".join(map(str, table.frame.columns))
        raise InputError(
            f"{table.where} has no column {column!r}; its columns are {names}; {Path(_card_to_write(name)).name} says "
            "which columns hold texts and label, and which classes there are (none: numbers)"
        )


def _card_to_write(name: str) -> str:
    path = Path(name)
    if not path.exists():
        return 'a file of your own such as task.toml, beside data = "..."'
    return str(path / CARD if path.is_dir() else path.with_suffix(".toml"))


def _frame(
    table: Table, texts: tuple[str, ...], label: str, name: str, left_out: dict[str, int]
) -> pd.DataFrame | None:
    """Columns id, text_a, text_b and label, all as text; None where the split has no column of labels."""
    if label not in table.frame.columns:
        return None
    for column in texts:
        _check_column(table, column, name)
    frame = pd.DataFrame({"id": range(len(table.frame)), "text_a": "", "text_b": ""}, table.frame.index)
    for place, column in zip(("text_a", "text_b"), texts, strict=False):
        frame[place] = table.frame[column].map(lambda cell, column=column: _text(cell, table, column)).astype(object)
    names = table.names.get(label, ())
    frame["label"] = table.frame[label].map(lambda cell: _word(cell, names)).astype(object)
    unlabelled = frame["label"].isna()
    if unlabelled.all():
        return None
    if count := int(unlabelled.sum()):
        left_out["no label (-1)"] = left_out.get("no label (-1)", 0) + count
    frame = frame[~unlabelled]
    for column in ("text_a", "text_b")[: len(texts)]:
        empty = frame[column].map(is_empty)
        if empty.any():
            place = table.place(int(empty.idxmax()))
            raise InputError(f"{place}: the text is empty; remove the row or restore its text")
    empty = frame["label"] == ""
    if empty.any():
        raise InputError(f"{table.place(int(empty.idxmax()))}: the label is empty; label the row or remove it")
    return frame


def _text(cell: Any, table: Table, column: str) -> str:
    if isinstance(cell, list | tuple | dict):
        raise InputError(f"{table.where}: the column {column!r} holds {type(cell).__name__}s; texts are wanted")
    return "" if _is_missing(cell) else str(cell).strip()


def _word(cell: Any, names: tuple[str, ...]) -> str | None:
    """A label as text; None where a `ClassLabel` says that there is none."""
    if names and isinstance(cell, int):
        return names[cell] if cell >= 0 else None
    return "" if _is_missing(cell) else str(cell).strip()


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _classes(table: Table, labels: pd.Series, label: str, card: Mapping[str, Any], notes: list[str]) -> tuple[str, ...]:
    """The classes of a training split; empty where its labels are numbers."""
    if "classes" in card:
        return tuple(card["classes"])
    if names := table.names.get(label):
        there = set(labels)
        return _at_least_two(table, label, [name for name in names if name in there], notes)
    numbers = _numbers(labels)
    if numbers is None:
        number_like = pd.to_numeric(labels, errors="coerce")
        if number_like.notna().mean() > 0.9:
            odd = int(number_like.isna().idxmax())
            raise InputError(
                f"{table.place(odd)}: the label is {labels[odd]!r}, and nearly all others are numbers; correct it, or "
                "remove the row"
            )
        values = sorted(set(labels))
        if len(values) > max(FEW, len(labels) / 5):
            raise InputError(
                f"{table.where}: the column {label!r} holds {len(values)} different labels in {len(labels)} rows, such "
                f'as {values[0]!r}; is it the label? Name the one that is in a card: label = "..."'
            )
        return _at_least_two(table, label, values, notes)
    whole = sorted(set(numbers.astype(int))) if (numbers == numbers.round()).all() else []
    if whole and (len(whole) <= FEW or whole == list(range(len(whole)))):
        return _at_least_two(table, label, [str(number) for number in whole], notes)
    if whole:
        raise InputError(
            f"{table.where}: the column {label!r} holds {len(whole)} different whole numbers, which may be classes or "
            "amounts; say which in a card: classes = [] for amounts, or all classes in quotes"
        )
    notes.append(f"the answer is a number, from {numbers.min():g} to {numbers.max():g}")
    return ()


def _at_least_two(table: Table, label: str, classes: list[str], notes: list[str]) -> tuple[str, ...]:
    if len(classes) < 2:
        raise InputError(
            f"{table.where}: all labels in {label!r} are {classes[0]!r}; there is nothing to learn from one class: add "
            "samples of another"
        )
    notes.append(f"{len(classes)} classes: {_listed(classes[:FEW])}{', ...' if len(classes) > FEW else ''}")
    return tuple(classes)


def _numbers(labels: pd.Series) -> pd.Series | None:
    """The labels as finite numbers; None where one of them is none."""
    numbers = pd.to_numeric(labels, errors="coerce").astype(float)
    return numbers if numbers.map(math.isfinite).all() else None


def _numbered(
    table: Table, labels: pd.Series, classes: tuple[str, ...], card: Mapping[str, Any], name: str
) -> pd.Series:
    """The number of each label's class, or the label as a number."""
    if classes:
        places = {value: number for number, value in enumerate(classes)}
        # 0.0 and 0 are one class, "1" of one file and "1.0" of another; but a card's names are what they are.
        alike = _whole if "classes" not in card else str
        values = labels.map(lambda label: places.get(label, places.get(alike(label), math.nan)))
        expected = f"one of {', '.join(classes)}"
        if "classes" not in card:
            expected += ", the classes of train"
    else:
        values, expected = pd.to_numeric(labels, errors="coerce").astype("float32"), "a finite number"
    odd = ~values.astype(float).map(math.isfinite)
    if odd.any():
        place = int(odd.idxmax())
        raise InputError(
            f"{table.place(place)}: the label is {labels[place]!r}, expected {expected}; "
            f"{Path(_card_to_write(name)).name} says which columns hold texts and label, and which classes there are "
            "(none: numbers)"
        )
    return values.astype("int64" if classes else "float32")


def _whole(label: str) -> str:
    """A whole number without its point, as classes are named; any other label as it is."""
    try:
        number = float(label)
    except ValueError:
        return label
    return str(int(number)) if number.is_integer() else label


def _listed(words: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(repr, words))
