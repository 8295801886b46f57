"""Tasks: texts, labels and splits in one form, whatever they are loaded from.

Offline tasks come from a pinned archive on the Python package index (`eeutils.data.sources`), GLUE tasks from a folder
in GLUE's original layout (`CoLA/train.tsv`, ...) that `$GLUE_DIR` names, or without it from the hub, tasks of one's own
from files or the hub (`eeutils.data.own`). Every choice that is made while training (early stopping, a threshold) is
made on `dev`; `test` is only for the final numbers. For GLUE, `test` is the public dev split and `dev` is 10% of the
public train split, because the public test splits carry no labels.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import datasets
import numpy as np
import pandas as pd

from eeutils.data.own import read_own
from eeutils.data.readers import read_files, read_offline
from eeutils.data.specs import TaskSpec, spec_of
from eeutils.data.texts import normal_form
from eeutils.errors import InputError

# A task from files has two of them: the ids of the second, its test split, are the row numbers plus this.
TEST_IDS_FROM = 1_000_000
SMALLEST = 20  # the fewest samples that `train_size` and `test_size` may ask for


@dataclass(frozen=True)
class Task:
    """A task with its data.

    Attributes:
        train, dev, test: columns id (int64), text_a, text_b (text, "" where there is one text) and label (int64, or
            float32 for regression), in the order of the source file. `id` is the row number there (header not counted,
            from 0), unique over the three splits and the same in every split, size and seed.
        fingerprint: sha256 over the contents of the three splits.
        dropped: reason -> (how many rows of the source were left out for it, of how many), before any cut to a size.
        notes: of a task of one's own, what was decided for it: columns, classes, what was cut from train.
    """

    spec: TaskSpec
    train: datasets.Dataset
    dev: datasets.Dataset
    test: datasets.Dataset
    fingerprint: str
    dropped: dict[str, tuple[int, int]]
    notes: tuple[str, ...] = ()


def load_task(name: str, *, train_size: int | None = None, test_size: int | None = None, split_seed: int = 0) -> Task:
    """Load a task and split it: stratified, seeded, no text in two splits.

    `movie` has 1,600 test sentences, the other offline tasks 15% of theirs; of the rest, and of the train file of
    others, 10% are dev, but 500 samples where that is at most a fifth. A polarity task is its valence task without the
    exact zeros: the two share their splits. Reviews are never divided over splits.
    Rows of a train file whose text also stands in the test file are left out, with a warning if they are more than 1%.

    Args:
        name: one of `TASKS`, or one's own as `spec_of` describes it.
        train_size: how many samples train has; None, or more than there are, for all. dev then has a quarter of that,
            but 50 to 500, or all that it has. A smaller size is always a part of a larger one (same seed), and test
            does not change.
        test_size: how many samples test has, stratified; None, or more than there are, for all.
        split_seed: for the division into splits; the seed of a training run is another one.

    Raises:
        InputError: an unknown task or a size out of range; a folder, file or column that is missing; a malformed row,
            empty text or bad label (the sentence names file and line); a hub out of reach; a train file of which less
            than half is left without the texts of test, or a class with fewer than two training samples.
        SourceError: the offline data could not be downloaded.
    """
    spec = spec_of(name)
    for argument, size in (("train_size", train_size), ("test_size", test_size)):
        if size is not None and size < SMALLEST:
            raise InputError(f"{argument} is {size}; give at least {SMALLEST}, or None for all")
    if not 0 <= split_seed < 2**32:
        raise InputError(f"split_seed is {split_seed}; give a whole number from 0 to 2**32 - 1")
    # NumPy promises that the stream of RandomState never changes, so a seed means the same splits in later versions.
    random = np.random.RandomState(split_seed)
    notes: tuple[str, ...] = ()
    if spec.source == "own":
        splits, dropped, notes = _split_own(spec, random)
    else:
        splits, dropped = (_split_offline if spec.source == "offline" else _split_files)(spec, random)
    ordered = (split.iloc[_stratified_order(split["label"], spec.kind == "regression", random)] for split in splits)
    train, dev, test = ordered
    if train_size is not None and train_size < len(train):
        train, dev = train[:train_size], dev[: min(max(train_size // 4, 50), 500)]
    splits = tuple(split.sort_values("id") for split in (train, dev, test[:test_size]))
    dropped = {reason: (count, of) for reason, (count, of) in dropped.items() if count}
    return Task(spec, *(_to_dataset(spec, split) for split in splits), _fingerprint(splits), dropped, notes)


@lru_cache(maxsize=32)
def task_of(name: str, train_size: int | None, test_size: int | None) -> Task:
    """A task's splits, read once per process."""
    return load_task(name, train_size=train_size, test_size=test_size)


def describe(task: Task) -> pd.DataFrame:
    """One row a split: rows, the share of each class (or mean and standard deviation), mean words a sample.

    What was left out of the source stands in the first row, a column for each reason: how many rows, of how many; and
    what was decided for a task of one's own.
    """
    rows = []
    for name in ("train", "dev", "test"):
        frame = getattr(task, name).to_pandas()
        labels = frame["label"]
        if task.spec.kind == "classification":
            values = {label: (labels == index).mean() for index, label in enumerate(task.spec.class_names)}
        else:
            values = {"mean": labels.mean(), "sd": labels.std()}
        words = (frame["text_a"] + " " + frame["text_b"]).str.split().str.len().mean()
        rows.append({"split": name, "rows": len(frame), **values, "mean words": words})
    left_out = {f"left out: {reason}": [f"{count:,} of {of:,}", "", ""] for reason, (count, of) in task.dropped.items()}
    decided = {"decided": ["; ".join(task.notes), "", ""]} if task.notes else {}
    return pd.DataFrame(rows).assign(**left_out, **decided)


# train, dev and test; and what was dropped, as in `Task`.
_Splits = tuple[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame], dict[str, tuple[int, int]]]


def _split_offline(spec: TaskSpec, random: np.random.RandomState) -> _Splits:
    frame = read_offline(spec.corpus)
    rows, rated = len(frame), frame["label"].dtype.kind == "f"
    frame = frame[~_text_keys(frame).duplicated()]
    frame["weight"] = (frame["label"] != 0).astype(int) if rated else 1
    dropped = {"duplicate text": (rows - len(frame), rows)}

    # Split before the zeros are dropped, and count only the others: so polarity and valence share their splits.
    counted = int(frame["weight"].sum())
    rest, test = _split_off(frame, 1600 if spec.corpus == "movie" else round(0.15 * counted), rated, random)
    train, dev = _split_off(rest, _dev_size(int(rest["weight"].sum())), rated, random)
    splits = (train, dev, test)
    if spec.bins == (0.0,):
        dropped["valence exactly zero"] = (len(frame) - counted, rows)
        splits = tuple(split[split["label"] != 0] for split in splits)
    if spec.bins:
        splits = tuple(split.assign(label=np.searchsorted(spec.bins, split["label"])) for split in splits)
    return splits, dropped


def _split_files(spec: TaskSpec, random: np.random.RandomState) -> _Splits:
    pool, test, rows = read_files(spec)
    splits, dropped, _ = _split_off_dev(spec, pool, None, test, random)
    return splits, {"malformed row": (rows - len(pool) - len(test), rows)} | dropped


def _split_own(
    spec: TaskSpec, random: np.random.RandomState
) -> tuple[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame], dict[str, tuple[int, int]], tuple[str, ...]]:
    """The splits, what was dropped, and what was decided: what was cut here, beside the notes of `own`."""
    own = read_own(spec.name)
    pool, dev, test = (own.splits[name].copy() if name in own.splits else None for name in ("train", "dev", "test"))
    notes = list(own.notes)
    if test is None:
        if len(pool) < SMALLEST:
            raise InputError(
                f"{spec.name} holds {len(pool)} row(s) with a label; give at least {SMALLEST}, of which dev and test "
                "are cut"
            )
        pool["group"], pool["weight"] = _text_keys(pool), 1
        size = max(round(0.15 * len(pool)), min(100, len(pool) // 4))
        pool, test = _split_off(pool, size, spec.kind == "regression", random)
        notes.append(f"there is no test split with labels: {len(test):,} rows were cut from train as test")
    else:
        # More rows than usual: ids go on behind the last of them.
        test["id"] += TEST_IDS_FROM * (1 + len(pool) // TEST_IDS_FROM)
    splits, dropped, told = _split_off_dev(spec, pool, dev, test, random)
    dropped |= {reason: (count, own.rows) for reason, count in own.left_out.items()}
    return splits, dropped, (*notes, *told)


def _split_off_dev(
    spec: TaskSpec,
    pool: pd.DataFrame,
    dev: pd.DataFrame | None,
    test: pd.DataFrame,
    random: np.random.RandomState,
) -> tuple[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame], dict[str, tuple[int, int]], tuple[str, ...]]:
    """Train without the texts of test, and dev: cut from train where none is given."""
    if spec.source != "own":
        test["id"] += TEST_IDS_FROM
    pool["group"] = _text_keys(pool)  # the same text twice in train: both in train, or both in dev
    pool["weight"] = 1
    left = pool[~pool["group"].isin(_text_keys(test))]
    repeated = len(pool) - len(left)
    told = f"{repeated:,} of the {len(pool):,} training rows of {spec.name} were left out: their texts stand in test"
    if repeated > len(pool) / 2:
        raise InputError(f"{told}. Less than half is left; give test other texts than train")
    dropped = {"train text also in test": (repeated, len(pool))}
    if dev is None:
        train, dev = _split_off(left, _dev_size(len(left)), spec.kind == "regression", random)
        notes = (f"{len(dev):,} rows were cut from train as dev, on which thresholds are chosen",)
    else:
        keys, given = _text_keys(dev), len(dev)
        # Ids of test begin there or behind; those of dev stand before all others.
        dev = dev[~keys.isin(_text_keys(test))].assign(id=lambda frame: -1 - frame["id"])
        train, notes = left[~left["group"].isin(keys)], ()
        dropped |= {"dev text also in test": (given - len(dev), given)}
        dropped |= {"train text also in dev": (len(left) - len(train), len(pool))}
    held = {f" of class {name!r}": int((train["label"] == label).sum()) for label, name in enumerate(spec.class_names)}
    fewest, count = min((held or {"": len(train)}).items(), key=lambda item: item[1])
    if count < 2:
        raise InputError(
            f"{spec.name} has {count} training samples{fewest}, and needs at least 2; add some to the file. "
            f"{len(dev)} rows became dev; {told}"
        )
    if repeated > len(pool) / 100:
        warnings.warn(f"{told}. If that is not meant, give test other texts than train", stacklevel=4)
    return (train, dev, test), dropped, notes


def _text_keys(frame: pd.DataFrame) -> pd.Series:
    pairs = zip(frame["text_a"], frame["text_b"], strict=True)
    return pd.Series(["\t".join(map(normal_form, pair)) for pair in pairs], frame.index)


def _dev_size(samples: int) -> int:
    """How many of train's and dev's samples together are dev's: what it decides needs hundreds, train needs more."""
    return max(samples // 10, min(500, samples // 5), min(50, samples // 2))


def _split_off(
    frame: pd.DataFrame, size: int, continuous: bool, random: np.random.RandomState
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rest, and a stratified sample of whole groups that together weigh `size` or just above."""
    groups = frame.groupby("group", sort=False).agg(label=("label", "mean"), weight=("weight", "sum"))
    groups = groups.iloc[_stratified_order(groups["label"], continuous, random)]
    before = groups["weight"].cumsum() - groups["weight"]
    taken = frame["group"].isin(groups.index[before < size])
    return frame[~taken], frame[taken]


def _stratified_order(labels: pd.Series, continuous: bool, random: np.random.RandomState) -> np.ndarray:
    """An order in which every beginning holds each stratum in proportion: whatever is cut is nested and stratified.

    A stratum is a class; of continuous labels the tenth of the samples they fall into, and their sign.
    """
    tenth = (labels.rank(method="first") - 1) * 10 // len(labels)
    strata = (tenth * 3 + np.sign(labels) if continuous else labels.round()).to_numpy()
    shuffled = random.permutation(len(strata))
    within = pd.Series(strata[shuffled]).groupby(strata[shuffled])
    share = (within.cumcount() + 0.5) / within.transform("size")
    return shuffled[np.argsort(share.to_numpy(), kind="stable")]


def _to_dataset(spec: TaskSpec, frame: pd.DataFrame) -> datasets.Dataset:
    label = "int64" if spec.kind == "classification" else "float32"
    types = {"id": "int64", "text_a": "string", "text_b": "string", "label": label}
    features = datasets.Features({name: datasets.Value(kind) for name, kind in types.items()})
    return datasets.Dataset.from_dict({name: frame[name].to_list() for name in types}, features)


def _fingerprint(splits: Sequence[pd.DataFrame]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for row in zip(*(split[name].to_list() for name in ("id", "text_a", "text_b", "label")), strict=True):
            digest.update(repr(row).encode())
        digest.update(b"end of split")
    return digest.hexdigest()
