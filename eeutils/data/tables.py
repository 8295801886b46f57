"""Tables as people have them: csv, tsv, jsonl, parquet, folders of `save_to_disk`, and the hub, by split.

Nothing is guessed of what a column means: that is done in `own`. A row keeps the number under which its file shows it,
so that an error can name it. Files of text are read here and not through `datasets`, whose readers take a sentence
"None" for a missing one and do not say in which line they stumbled.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from eeutils.errors import InputError

SPLITS = {
    "train": {"train", "training"},
    "dev": {"dev", "valid", "validation", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
"""Split -> the words in a file's or a split's name that make it that one, as in `datasets`."""

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Table:
    """One split, as it lies in its file.

    Attributes:
        frame: the cells as they were read, by line (of text files) or row (of others), both from 1.
        where: the file, or the split of the hub.
        unit: what the index counts, "line" or "row".
        names: column -> the names of its classes, where the file says so (a `ClassLabel`).
    """

    frame: pd.DataFrame
    where: str
    unit: str = "row"
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def place(self, number: int) -> str:
        """How a message names a row."""
        return f"{self.where}, {self.unit} {number}"


def read_tables(place: Path) -> dict[str, Table]:
    """The splits of a file, of a folder of files, or of a folder that `save_to_disk` wrote: "train", "dev", "test".

    A file that is alone is "train". In a folder the words of a file's name say which split it is (`train.csv`,
    `data/test-00000-of-00002.parquet`); the parts of one split are joined.

    Raises:
        InputError: no such place, no table in it, files whose splits cannot be told, or one that cannot be read.
    """
    if place.is_file():
        return {"train": _read(place)}
    if not place.is_dir():
        raise InputError(f"there is no file or folder {place}; give a table ({_KNOWN}) or a folder of such files")
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return _from_disk(place)
    files = sorted(path for path in (*place.glob("*"), *place.glob("data/*")) if path.suffix.lower() in _READERS)
    if not files:
        raise InputError(f"{place} holds no table; give it train and test as {_KNOWN}, or name a single file")
    if len(files) == 1:
        return {"train": _read(files[0])}
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(split_of(path.stem), []).append(path)
    _check_splits(place, by_split)
    return {split: _joined([_read(path) for path in paths]) for split, paths in by_split.items() if split}


def read_hub(name: str, config: str = "") -> dict[str, Table]:
    """The splits of a dataset on the hub, of one of its configurations where it has several.

    Raises:
        InputError: not there, no such configuration, or no hub.
    """
    try:
        found = datasets.load_dataset(name, config or None)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}{f' ({config})' if config else ''} could not be loaded from the hub ({error}); name a "
            "configuration behind a colon (owner/name:configuration), or give a file or folder of this machine"
        ) from error
    return _of_datasets(found, f"{name}{f':{config}' if config else ''}")


def split_of(name: str) -> str:
    """The split that a file's or a split's name says it is; "" where it says none. The first such word counts."""
    for word in re.split(r"[^a-z]+", name.lower()):
        for split, words in SPLITS.items():
            if word in words:
                return split
    return ""


def _check_splits(place: Path, by_split: Mapping[str, list[Path]]) -> None:
    named = ", ".join(f"{path.name}" for paths in by_split.values() for path in paths)
    if "train" not in by_split:
        raise InputError(
            f"{place} holds {named}, and none of them is called train; name the files train, dev (or validation) and "
            "test, or give one file, of which test is cut"
        )
    for split, paths in by_split.items():
        kinds = {path.suffix.lower() for path in paths}
        if split and len(kinds) > 1:
            raise InputError(f"{place} holds {split} as {' and as '.join(sorted(kinds))}; leave one of them there")


def _joined(tables: list[Table]) -> Table:
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    if any(list(table.frame) != list(first.frame) for table in tables):
        raise InputError(f"{first.where} and the other parts of its split have different columns; make them alike")
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    frame.index += 1
    return Table(frame, f"{first.where} and {len(tables) - 1} more", "row", first.names)


def _read(path: Path) -> Table:
    if path.suffix.lower() not in _READERS:
        raise InputError(f"{path} is no table that is known here; give {_KNOWN}")
    return _READERS[path.suffix.lower()](path)


def _text_of(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); check its name and its rights") from error
    if raw.startswith(_UTF16) or b"\0" in raw[:1000]:
        raise InputError(f'{path} is UTF-16; save it as UTF-8 (in Excel: "CSV UTF-8", in pandas: encoding="utf-8")')
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path} is not UTF-8 text (line {line}: {error.reason}); save it as UTF-8, which keeps its letters"
        ) from error


def _read_csv(path: Path) -> Table:
    text = _text_of(path)
    header = text.partition("\n")[0]
    # Excel writes semicolons where the comma is the decimal sign.
    return _from_text(path, text, max(",;\t|", key=re.sub(r'"[^"]*"', "", header).count))


def _read_tsv(path: Path) -> Table:
    """GLUE's files hold lone quotes that mean themselves; those that a program writes quote whole fields."""
    text = _text_of(path)
    return _from_text(path, text, "\t", quoted=_quotes_fields(text))


_QUOTED_FIELD = re.compile(r'(?:^|(?<=[\t\n]))"((?:[^"]|"")*)"(?=\t|\r?\n|\r?\Z)')


def _quotes_fields(text: str) -> bool:
    """Whether quotes mean something: each stands in a field that is quoted as a whole, and somewhere that was needed,
    or is done to all fields of a column."""
    if '"' in _QUOTED_FIELD.sub("", text):
        return False
    fields = _QUOTED_FIELD.findall(text)
    return any(re.search(r'"|\t|\n', one) for one in fields) or len(fields) >= text.strip().count("\n") > 0


def _from_text(path: Path, text: str, delimiter: str, quoted: bool = True) -> Table:
    if quoted:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    else:
        # A line ends at a newline only: texts hold odd line separators.
        reader = _Lines(text, delimiter)
    header: list[str] = []
    rows, numbers, ends = [], [], 0
    try:
        for cells in reader:
            # The line on which a row begins: a quoted field may go over several.
            number, ends = ends + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{path}, line {number}: found {len(cells)} columns, expected {len(header)} "
                    f"({', '.join(header)}); a field that holds the separator {delimiter!r} belongs in quotes"
                )
            rows.append(cells)
            numbers.append(number)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {ends + 1}: {error}; a quote inside a quoted field is written twice, and each that opens "
            "is closed"
        ) from error
    if len(set(header)) < len(header):
        raise InputError(f"{path} has two columns of one name: {', '.join(header)}; is its header line missing?")
    return Table(pd.DataFrame(rows, numbers, header or None, dtype=str), str(path), "line")


class _Lines:
    """Rows of a file in which quotes mean themselves, with the interface of `csv.reader`."""

    def __init__(self, text: str, delimiter: str) -> None:
        self.lines, self.delimiter, self.line_num = text.removesuffix("\n").split("\n"), delimiter, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> list[str]:
        if self.line_num == len(self.lines):
            raise StopIteration
        self.line_num += 1
        return self.lines[self.line_num - 1].rstrip("\r").split(self.delimiter)


def _read_json(path: Path) -> Table:
    text = _text_of(path)
    if text.lstrip().startswith("["):
        rows, numbers, unit = _parsed(text, path), None, "row"
        if not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{path} is a list, but not of objects such as {_EXAMPLE}; write one object a line")
    else:
        rows, numbers, unit = [], [], "line"
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            row = _parsed(line, path, number)
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: not an object; each line is one, such as {_EXAMPLE}")
            rows.append(row)
            numbers.append(number)
    # Values as they are: pandas would turn whole numbers beside a gap into floats.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    frame = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns})
    frame.index = pd.RangeIndex(1, len(rows) + 1) if numbers is None else pd.Index(numbers)
    return Table(frame, str(path), unit)


_EXAMPLE = '{"text": "A triumph.", "label": "good"}'


def _parsed(text: str, path: Path, line: int = 1) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = line if text.count("\n") == 0 else error.lineno
        raise InputError(f"{path}, line {at}: not JSON ({error.msg}); each line is an object: {_EXAMPLE}") from error


def _read_parquet(path: Path) -> Table:
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path} as parquet ({error}); write it again, or as csv in UTF-8") from error
    return _of_dataset(datasets.Dataset(datasets.table.InMemoryTable(table)), str(path))


def _from_disk(place: Path) -> dict[str, Table]:
    try:
        found = datasets.load_from_disk(str(place))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{place} looks like a folder of save_to_disk and cannot be read ({error})") from error
    return _of_datasets(found, str(place))


def _of_datasets(found: datasets.Dataset | dict[str, datasets.Dataset], where: str) -> dict[str, Table]:
    if isinstance(found, datasets.Dataset):
        return {"train": _of_dataset(found, where)}
    by_split: dict[str, str] = {}
    for name in found:
        by_split.setdefault(split_of(name), name)
    if "train" not in by_split:
        names = ", ".join(found)
        raise InputError(f"{where} has the splits {names}, and none of them is train; give a dataset with train")
    return {split: _of_dataset(found[name], f"{where}, {name}") for split, name in by_split.items() if split}


def _of_dataset(data: datasets.Dataset, where: str) -> Table:
    names = {name: tuple(kind.names) for name, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    # As Python's own values: a whole number beside a gap stays whole.
    frame = pd.DataFrame({name: pd.Series(list(data[name]), dtype=object) for name in data.column_names})
    frame.index += 1
    return Table(frame, where, "row", names)


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
_KNOWN = "csv, tsv, jsonl or parquet"
