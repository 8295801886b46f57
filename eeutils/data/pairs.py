"""Generation tasks: a text to read and a text to write, in splits, whatever they are loaded from.

`wiki-descriptions` comes from the pinned archive of Wikipedia's first paragraphs, XSum from a folder that `$XSUM_DIR`
names or from the hub, a task of one's own from one file of JSON lines with `source` and `target`. What is chosen is
chosen on `dev`; `test` is for the final numbers.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np

from eeutils.data.sources import fetch
from eeutils.data.texts import is_empty, normal_form
from eeutils.errors import InputError, unknown

PAIR_TASKS = {
    "wiki-descriptions": "Wikipedia's first paragraphs, each with a description in a few words (CC BY-SA 4.0)",
    "xsum": "news of the BBC, each with one sentence that sums it up (the BBC's texts: for evaluation only)",
}
"""Generation tasks by name, and what they are."""

DEFAULT_TASK = "wiki-descriptions"
SMALLEST = 20
"""The fewest pairs that a split needs."""
_XSUM_FILE, _XSUM_HUB = "xsum_0shot.jsonl", "EdinburghNLP/xsum"
_OWN = "a task of your own is one file *.jsonl in UTF-8, each line an object with the texts 'source' and 'target'"


@dataclass(frozen=True)
class Pair:
    """A text to read and a text to write; `id` is its place in the source, from 0."""

    id: int
    source: str
    target: str


@dataclass(frozen=True)
class PairTask:
    """A generation task with its data; no source text stands in two splits.

    Attributes:
        about: what the texts are.
        train, dev, test: in the order of the source. `train` may be empty: then the task is for evaluation only.
        fingerprints: split -> sha256 over its contents.
        dropped: reason -> how many pairs were left out for it.
    """

    name: str
    about: str
    train: tuple[Pair, ...]
    dev: tuple[Pair, ...]
    test: tuple[Pair, ...]
    fingerprints: Mapping[str, str]
    dropped: Mapping[str, int]


def check_pair_task(name: str) -> None:
    """Refuse a name that is neither a generation task nor a file of one's own.

    Raises:
        InputError: lists the tasks, and says how a file must look.
    """
    if name not in PAIR_TASKS and not (name.endswith(".jsonl") and Path(name).is_file()):
        raise InputError(f"{unknown('generation task', name, PAIR_TASKS)}; {_OWN}")


@lru_cache(maxsize=8)
def load_pairs(name: str, train_size: int | None = None, test_size: int | None = None) -> PairTask:
    """Load a generation task and split it with a fixed seed: 15% are test, then 500 or a tenth of the rest dev.

    Pairs whose source stands before, and pairs whose target stands word for word in the source, are left out: copying
    is no description. A smaller size is always a part of a larger one.

    Args:
        name: one of `PAIR_TASKS`, or a file of JSON lines.
        train_size, test_size: how many pairs these splits have at most; None for all. dev has at most `test_size`.

    Raises:
        InputError: an unknown task, a file that is missing or malformed (the sentence names the line), a size below
            `SMALLEST`, or too few pairs.
        SourceError: the offline data could not be downloaded.
    """
    check_pair_task(name)
    for argument, size in (("train_size", train_size), ("test_size", test_size)):
        if size is not None and size < SMALLEST:
            raise InputError(f"{argument} is {size}; give at least {SMALLEST}, or None for all")
    rows = {"wiki-descriptions": _read_wiki, "xsum": _read_xsum}.get(name, lambda: _read_own(Path(name)))()
    pairs, dropped = _cleaned(rows)
    order = [pairs[place] for place in np.random.RandomState(0).permutation(len(pairs))]
    if name == "xsum":  # nobody trains on it
        tests = round(0.8 * len(order))
        test, dev, train = order[:tests], order[tests:], []
    else:
        tests = round(0.15 * len(order))
        devs = min(500, (len(order) - tests) // 10)
        test, dev, train = order[:tests], order[tests : tests + devs], order[tests + devs :]
    if len(dev) < SMALLEST:
        raise InputError(f"{name} has {len(pairs)} pairs after cleaning, too few to be split; give some hundreds")
    cut = (train[:train_size], dev[:test_size], test[:test_size])
    splits = [tuple(sorted(split, key=lambda pair: pair.id)) for split in cut]
    prints = dict(zip(("train", "dev", "test"), map(_fingerprint, splits), strict=True))
    return PairTask(name, PAIR_TASKS.get(name, f"own task {name}"), *splits, prints, dropped)


def _cleaned(rows: Iterable[tuple[str, str]]) -> tuple[list[Pair], dict[str, int]]:
    pairs, seen = [], set()
    dropped = {"nothing to read or to write": 0, "source stands before": 0, "target stands in the source": 0}
    for number, (source, target) in enumerate(rows):
        source, target = " ".join(source.split()), " ".join(target.split())
        key = normal_form(source)
        if is_empty(source) or is_empty(target):
            dropped["nothing to read or to write"] += 1
        elif key in seen:
            dropped["source stands before"] += 1
        elif normal_form(target).rstrip(".") in key:
            dropped["target stands in the source"] += 1
        else:
            pairs.append(Pair(number, source, target))
        seen.add(key)
    return pairs, {reason: count for reason, count in dropped.items() if count}


def _read_wiki() -> Iterator[tuple[str, str]]:
    articles = json.loads((fetch("wiki") / "summaries.json").read_text(encoding="utf-8"))
    for article in articles.values():
        yield article["extract"], article.get("description") or ""


def _read_xsum() -> Iterator[tuple[str, str]]:
    folder = os.environ.get("XSUM_DIR")
    if folder:
        yield from _json_lines(Path(folder) / _XSUM_FILE, "article", "summary_gt", f"XSUM_DIR must hold {_XSUM_FILE}")
        return
    try:
        data = datasets.load_dataset(_XSUM_HUB, split="validation[:1000]")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{_XSUM_HUB} could not be loaded from the hub ({error}); set XSUM_DIR to a folder that holds "
            f"{_XSUM_FILE}, or take the task that needs no hub: {DEFAULT_TASK}"
        ) from error
    yield from zip(data["document"], data["summary"], strict=True)


def _read_own(path: Path) -> Iterator[tuple[str, str]]:
    return _json_lines(path, "source", "target", _OWN)


def _json_lines(path: Path, source: str, target: str, advice: str) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); {advice}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            texts = row[source], row[target]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: {error!r}; expected texts {source!r} and {target!r}") from error
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path}, line {number}: {source!r} and {target!r} must be texts; {advice}")
        # ConsistentEE's file wraps its articles in a prompt of its own.
        yield texts[0].removeprefix("###\nArticle: ").split("\n\nSummarize", 1)[0], texts[1]


def _fingerprint(split: Iterable[Pair]) -> str:
    texts = [(pair.id, pair.source, pair.target) for pair in split]
    return hashlib.sha256(repr(texts).encode()).hexdigest()
