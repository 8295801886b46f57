"""Tasks from small files written here: splits, layouts, labels, metrics and bad input."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from tokenizers.normalizers import BertNormalizer

from eeutils.data import readers
from eeutils.data.metrics import headline, score
from eeutils.data.specs import TASKS
from eeutils.data.tasks import TEST_IDS_FROM, Task, describe, load_task
from eeutils.data.texts import normal_form
from eeutils.errors import InputError

OFFLINE = [name for name, spec in TASKS.items() if spec.source == "offline"]
RATED = [name for name in OFFLINE if name != "wiki"]
GLUE = [name for name, spec in TASKS.items() if spec.source == "glue"]
SPLITS = ("train", "dev", "test")

# Offline tasks


def valences(count: int) -> np.ndarray:
    """Like the real ones: two humps, some exact zeros."""
    random = np.random.default_rng(3)
    values = random.normal(1.7, 0.8, count) * random.choice([-1, 1], count, p=[0.3, 0.7])
    values[::50] = 0
    return values.round(4)


def write_offline(folder: Path, domain: str, rows: list[tuple[str, object, str]]) -> None:
    folder.mkdir(exist_ok=True)
    text = "\r\n".join("\t".join(str(cell) for cell in row) for row in rows)
    (folder / f"{domain}.tsv").write_bytes(text.encode())


@pytest.fixture(scope="module")
def vader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four offline files: 3,000 sentences of movies, 1,000 of each other domain; reviews have ten sentences."""
    folder = tmp_path_factory.mktemp("vader")
    for domain in ("movie", "amazon", "editorial", "tweet"):
        count = 3000 if domain == "movie" else 1000
        grouped = domain in ("amazon", "editorial")
        rows = [
            (f"{row // 10}_{row % 10}" if grouped else str(row + 1), value, f'l\'été "{domain}" {row}')
            for row, value in enumerate(valences(count))
        ]
        write_offline(folder, domain, rows)
    return folder


@pytest.fixture(autouse=True)
def offline(vader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "fetch", lambda _: vader)
    monkeypatch.delenv("GLUE_DIR", raising=False)


def use_rows(folder: Path, monkeypatch: pytest.MonkeyPatch, domain: str, rows: list[tuple[str, object, str]]) -> None:
    write_offline(folder, domain, rows)
    monkeypatch.setattr(readers, "fetch", lambda _: folder)


def ids(task: Task, split: str) -> set[int]:
    return set(getattr(task, split)["id"])


def texts(task: Task, split: str) -> set[tuple[str, str]]:
    data = getattr(task, split)
    return set(zip(data["text_a"], data["text_b"], strict=True))


def assert_disjoint(task: Task) -> None:
    for one, other in itertools.combinations(SPLITS, 2):
        assert ids(task, one).isdisjoint(ids(task, other))
        assert texts(task, one).isdisjoint(texts(task, other))
    for split in SPLITS:
        assert len(ids(task, split)) == len(getattr(task, split))


@pytest.mark.parametrize("name", RATED)
def test_offline_splits_are_disjoint_whole_and_stratified(name: str) -> None:
    task = load_task(name)
    assert_disjoint(task)
    total = 3000 if name.startswith("movie") else 1000
    zeros = total // 50 if task.spec.bins == (0.0,) else 0
    assert sum(len(getattr(task, split)) for split in SPLITS) == total - zeros
    if task.spec.kind == "classification":
        shares = [np.mean(getattr(task, split)["label"]) for split in SPLITS]
        # Whole reviews cannot be stratified to the sentence.
        apart = 0.12 if name in ("amazon", "editorial") else 0.05 if name == "movie-3" else 0.01
        assert max(shares) - min(shares) < apart
    else:
        medians = [np.median(getattr(task, split)["label"]) for split in SPLITS]
        assert max(medians) - min(medians) < 0.3


def test_three_classes_are_the_valence_cut_twice_on_its_splits() -> None:
    three, valence = load_task("movie-3"), load_task("movie-valence")
    for split in SPLITS:
        ours, theirs = getattr(three, split), getattr(valence, split)
        assert ours["id"] == theirs["id"]
        wanted = [0 if value <= -1.5 else 1 if value <= 1.5 else 2 for value in theirs["label"]]
        assert ours["label"] == wanted


TOPICS = TASKS["wiki"].class_names


@pytest.fixture
def articles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    """The task of 1,200 articles, topics in turn and every twelfth under none; some may have another text."""

    def load(**texts: str) -> Task:
        written = {
            f"title {row}": {
                "extract": texts.get(f"row_{row}", f" Paragraph {row}. "),
                "topic": (*TOPICS, "Uncategorized")[row % 12],
            }
            for row in range(1200)
        }
        (tmp_path / "summaries.json").write_text(json.dumps(written), encoding="utf-8")
        monkeypatch.setattr(readers, "fetch", lambda _: tmp_path)
        return load_task("wiki")

    return load


def test_wikipedia_s_topics_are_numbered_and_what_has_none_is_left_out(articles: Callable[..., Task]) -> None:
    task = articles()
    assert_disjoint(task)
    assert len(TOPICS) == 11
    assert [len(getattr(task, split)) for split in SPLITS] == [1100 - 165 - 187, 187, 165]
    for split in SPLITS:
        for row in getattr(task, split):
            assert row["text_a"] == f"Paragraph {row['id']}."
            assert row["label"] == row["id"] % 12
        counts = Counter(getattr(task, split)["label"])
        assert set(counts) == set(range(11))
        assert max(counts.values()) - min(counts.values()) <= 2, "stratified"
    assert task.dropped == {}


def test_empty_and_repeated_paragraphs_are_left_out(articles: Callable[..., Task]) -> None:
    task = articles(row_1=" \u200b", row_14="PARAGRAPH  13.", row_26="Ärtiçle", row_37="article")
    kept = set().union(*(ids(task, split) for split in SPLITS))
    assert kept.isdisjoint({1, 14, 37})
    assert {13, 26} <= kept
    assert task.dropped == {"duplicate text": (2, 1099)}


def test_columns_and_types() -> None:
    polarity, valence = load_task("movie").train, load_task("movie-valence").train
    expected = {"id": "int64", "text_a": "string", "text_b": "string"}
    assert {name: column.dtype for name, column in polarity.features.items()} == expected | {"label": "int64"}
    assert {name: column.dtype for name, column in valence.features.items()} == expected | {"label": "float32"}


def test_labels_texts_and_ids_are_those_of_the_file() -> None:
    values = valences(3000)
    for name in ("movie", "movie-valence"):
        for split in SPLITS:
            for row in getattr(load_task(name), split):
                value = values[row["id"]]
                assert row["text_a"] == f'l\'été "movie" {row["id"]}'
                assert row["text_b"] == ""
                assert row["label"] == (pytest.approx(value) if name == "movie-valence" else int(value > 0))
                assert value != 0 or name == "movie-valence"


def test_movie_has_1600_test_sentences_whatever_else_is_asked() -> None:
    test = load_task("movie").test
    assert len(test) == 1600
    assert load_task("movie", train_size=100).test.to_list() == test.to_list()
    assert ids(load_task("movie", split_seed=1), "test") != set(test["id"])


@pytest.mark.parametrize("domain", ["movie", "amazon", "editorial", "tweet"])
def test_polarity_is_valence_without_the_zeros_split_by_split(domain: str) -> None:
    polarity, valence = load_task(domain), load_task(f"{domain}-valence")
    for split in SPLITS:
        data = getattr(valence, split)
        polar = {row for row, value in zip(data["id"], data["label"], strict=True) if value != 0}
        assert ids(polarity, split) == polar
    assert polarity.dropped == {"valence exactly zero": (60, 3000) if domain == "movie" else (20, 1000)}
    assert valence.dropped == {}


@pytest.mark.parametrize("name", ["amazon", "editorial-valence"])
def test_no_review_stands_in_two_splits(name: str) -> None:
    task = load_task(name)
    reviews = [{row // 10 for row in ids(task, split)} for split in SPLITS]
    for one, other in itertools.combinations(reviews, 2):
        assert one.isdisjoint(other)


def test_loading_is_deterministic_and_the_fingerprint_tells_what_was_loaded() -> None:
    task = load_task("movie", train_size=300)
    again = load_task("movie", train_size=300)
    assert task.fingerprint == again.fingerprint
    assert task.train.to_list() == again.train.to_list()
    others = [load_task("movie"), load_task("movie", train_size=300, split_seed=1), load_task("movie-valence")]
    others.append(load_task("movie", train_size=300, test_size=100))
    assert len({task.fingerprint, *(other.fingerprint for other in others)}) == 5


@settings(max_examples=25)
@given(
    name=st.sampled_from(["movie", "amazon", "tweet-valence"]),
    sizes=st.tuples(st.integers(20, 900), st.integers(20, 900)),
    seed=st.integers(0, 3),
)
def test_smaller_sizes_are_part_of_larger_ones(name: str, sizes: tuple[int, int], seed: int) -> None:
    small, large = (load_task(name, train_size=size, test_size=size, split_seed=seed) for size in sorted(sizes))
    whole = load_task(name, split_seed=seed)
    for split in SPLITS:
        assert ids(small, split) <= ids(large, split) <= ids(whole, split)
    assert len(small.train) <= min(sizes)
    assert len(small.dev) >= 50


@pytest.mark.parametrize(("size", "dev"), [(20, 50), (200, 50), (400, 100), (1000, 250)])
def test_train_size_is_that_of_train_and_dev_has_a_quarter_of_it(size: int, dev: int) -> None:
    task = load_task("movie", train_size=size)
    assert (len(task.train), len(task.dev)) == (size, dev)


def test_dev_has_a_tenth_or_500_where_that_is_a_fifth_at_most() -> None:
    # 2,940 polar sentences, 1,600 of them for test: a tenth would be 134, a fifth is 268.
    movie = load_task("movie")
    assert (len(movie.train), len(movie.dev)) == (1340 - 268, 268)
    # A size just below all that there is cuts, at or above it takes the whole.
    cut, whole = (load_task("movie", train_size=size) for size in (1071, 1072))
    assert [len(task.dev) for task in (cut, whole)] == [267, 268]


@pytest.mark.parametrize(
    ("rows", "dev"),
    # Half of what is next to nothing, a fifth, 500, a tenth.
    [(60, 30), (200, 50), (1000, 200), (2500, 500), (4000, 500), (5200, 520)],
)
def test_dev_of_a_file_is_as_large_as_decisions_need_and_no_larger(rows: int, dev: int, tmp_path: Path) -> None:
    name = own_task(tmp_path / "tickets", tickets("train", rows))
    task = load_task(name)
    assert (len(task.train), len(task.dev)) == (rows - dev, dev)
    if rows == 5200:
        assert [len(load_task(name, train_size=size).dev) for size in (1996, 2004, 4000)] == [499, 500, 500]


def test_cut_splits_stay_stratified() -> None:
    whole, cut = load_task("movie"), load_task("movie", train_size=200, test_size=100)
    for split in SPLITS:
        part = getattr(cut, split)["label"]
        assert np.mean(part) == pytest.approx(np.mean(getattr(whole, split)["label"]), abs=1 / len(part))


def test_sizes_beyond_the_data_take_all_and_tiny_ones_are_refused() -> None:
    assert load_task("tweet", train_size=10**6, test_size=10**6).fingerprint == load_task("tweet").fingerprint
    for sizes in ({"train_size": 19}, {"test_size": 0}, {"train_size": -1}):
        with pytest.raises(InputError, match="give at least 20, or None for all"):
            load_task("tweet", **sizes)
    with pytest.raises(InputError, match="split_seed is -1"):
        load_task("tweet", split_seed=-1)


def test_duplicates_are_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(str(row), 1 if row % 2 else -1, f"sentence {row}") for row in range(200)]
    rows += [("200", 1, "Sentence   7 "), ("201", -1, "sentence 8")]
    use_rows(tmp_path / "vader", monkeypatch, "tweet", rows)
    task = load_task("tweet")
    assert task.dropped == {"duplicate text": (2, 202)}
    assert {7, 8} <= set().union(*(ids(task, split) for split in SPLITS)) == set(range(200))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("5", "nan", "text"), r"movie\.tsv, line 2: the label is 'nan', expected a finite number"),
        (("5", "good", "text"), "line 2: the label is 'good', expected a finite number"),
        (("5", "1.0", " "), "line 2: the text is empty"),
        (("5", "1.0", "\u200b\u00ad"), "line 2: the text is empty"),
        (("5", "1.0"), r"line 2: found 2 columns, expected 3 \(id, valence, text\); delete the file"),
    ],
)
def test_bad_offline_rows_are_named(
    row: tuple[str, ...], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_rows(tmp_path / "vader", monkeypatch, "movie", [("1", 1.0, "fine"), row])
    with pytest.raises(InputError, match=problem):
        load_task("movie")


def test_an_unknown_task_gets_the_valid_names() -> None:
    with pytest.raises(InputError, match=r"unknown task 'movies'.*did you mean 'movie'.*tweet-valence"):
        load_task("movies")


def load_glue(name: str, folder: Path, **arguments: int) -> Task:
    """A GLUE task from a folder that `$GLUE_DIR` names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLUE_DIR", str(folder))
        return load_task(name, **arguments)


# GLUE: each layout as the original files have it. A maker gives the header (or "") and one line for a text and a label.

Maker = Callable[[int, str], str]
LAYOUTS: dict[str, tuple[str, str, str, Maker, tuple[str, ...]]] = {
    # name: (folder, dev file, header, line, labels as the file writes them, in the order of the label numbers)
    "sst2": ("SST-2", "dev.tsv", "sentence\tlabel", lambda n, y: f"text {n} \t{y}", ("0", "1")),
    "mrpc": (
        "MRPC",
        "dev.tsv",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        lambda n, y: f"{y}\t1\t2\ttext {n}\tother {n}",
        ("0", "1"),
    ),
    "rte": (
        "RTE",
        "dev.tsv",
        "index\tsentence1\tsentence2\tlabel",
        lambda n, y: f"{n}\ttext {n}\tother {n}\t{y}",
        ("entailment", "not_entailment"),
    ),
    "cola": ("CoLA", "dev.tsv", "", lambda n, y: f"gj04\t{y}\t{'' if y == '1' else '*'}\ttext {n}", ("0", "1")),
    "stsb": (
        "STS-B",
        "dev.tsv",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        lambda n, y: f"{n}\tmain\tMSRvid\t2012\t1\tnone\tnone\ttext {n}\tother {n}\t{y}",
        (),
    ),
    "qnli": (
        "QNLI",
        "dev.tsv",
        "index\tquestion\tsentence\tlabel",
        lambda n, y: f"{n}\ttext {n}\tother {n}\t{y}",
        ("entailment", "not_entailment"),
    ),
    "qqp": (
        "QQP",
        "dev.tsv",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        lambda n, y: f"{n}\t1\t2\ttext {n}\tother {n}\t{y}",
        ("0", "1"),
    ),
    "mnli": (
        "MNLI",
        "dev_matched.tsv",
        "index\tpromptID\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        lambda n, y: f"{n}\t1\t(x)\ttext {n}\tother {n}\tneutral\t{y}",
        ("entailment", "neutral", "contradiction"),
    ),
    "wnli": (
        "WNLI",
        "dev.tsv",
        "index\tsentence1\tsentence2\tlabel",
        lambda n, y: f"{n}\ttext {n}\tother {n}\t{y}",
        ("0", "1"),
    ),
}
LAYOUTS["mnli-mm"] = ("MNLI", "dev_mismatched.tsv", *LAYOUTS["mnli"][2:])


def written_label(name: str, number: int) -> str:
    labels = LAYOUTS[name][4]
    return labels[number % len(labels)] if labels else f"{number % 11 / 2:.3f}"


def write_glue(root: Path, name: str, extra_train: tuple[str, ...] = (), extra_dev: tuple[str, ...] = ()) -> Path:
    """A GLUE folder with 200 train rows and 40 dev rows of a task; label numbers go round."""
    folder, dev_file, header, line, _ = LAYOUTS[name]
    (root / folder).mkdir(parents=True)
    for file, numbers, extra in (("train.tsv", range(200), extra_train), (dev_file, range(1000, 1040), extra_dev)):
        lines = [header] * bool(header) + [line(number, written_label(name, number)) for number in numbers]
        (root / folder / file).write_text("\n".join([*lines, *extra]) + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("name", GLUE)
def test_every_layout_is_read_and_split(name: str, tmp_path: Path) -> None:
    task = load_glue(name, write_glue(tmp_path, name))
    assert (len(task.train), len(task.dev), len(task.test)) == (150, 50, 40)
    assert_disjoint(task)
    assert task.dropped == {}
    assert task.test["id"] == list(range(TEST_IDS_FROM, TEST_IDS_FROM + 40))
    pair = len(task.spec.text_columns) == 2
    for split in SPLITS:
        for row in getattr(task, split):
            number = row["id"] - TEST_IDS_FROM + 1000 if split == "test" else row["id"]
            assert row["text_a"] == f"text {number}"
            assert row["text_b"] == (f"other {number}" if pair else "")
            expected = number % len(LAYOUTS[name][4]) if LAYOUTS[name][4] else number % 11 / 2
            assert row["label"] == expected


@pytest.mark.parametrize("name", GLUE)
def test_class_names_stand_in_the_order_of_the_hub(name: str) -> None:
    # The names that the hub's data set card of GLUE gives, in its order.
    hub = {
        "sst2": "negative positive",
        "mrpc": "not_equivalent equivalent",
        "rte": "entailment not_entailment",
        "cola": "unacceptable acceptable",
        "stsb": "",
        "qnli": "entailment not_entailment",
        "qqp": "not_duplicate duplicate",
        "mnli": "entailment neutral contradiction",
        "mnli-mm": "entailment neutral contradiction",
        "wnli": "not_entailment entailment",
    }
    assert " ".join(TASKS[name].class_names) == hub[name]


def test_glue_dir_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUE_DIR", str(write_glue(tmp_path, "rte")))
    assert len(load_task("rte").test) == 40


def test_quotes_and_odd_line_separators_are_literal(tmp_path: Path) -> None:
    odd = ('he said "no\t1', "and \" left\u2028at \x85 once, l'été\t0")
    task = load_glue("sst2", write_glue(tmp_path, "sst2", extra_dev=odd))
    assert task.test["text_a"][-2:] == ['he said "no', "and \" left\u2028at \x85 once, l'été"]


def test_texts_of_test_leave_train_and_repeated_texts_stay_in_one_split(tmp_path: Path) -> None:
    repeated = [f"text {number} \t{number % 2}" for number in range(100)]
    leaked = ["Text 1003\t1", "text  1004\t0"]
    glue = write_glue(tmp_path, "sst2", extra_train=(*repeated, *leaked))
    for seed in range(5):
        task = load_glue("sst2", glue, split_seed=seed)
        assert task.dropped == {"train text also in test": (2, 302)}
        assert len(task.test) == 40
        assert len(task.train) + len(task.dev) == 300
        assert_disjoint_texts(task)


def assert_disjoint_texts(task: Task) -> None:
    for one, other in itertools.combinations(SPLITS, 2):
        assert texts(task, one).isdisjoint(texts(task, other))


@pytest.mark.parametrize("name", GLUE)
def test_a_malformed_row_is_named_but_skipped_where_the_published_file_has_some(name: str, tmp_path: Path) -> None:
    glue = write_glue(tmp_path, name, extra_train=("only one column",))
    if name == "qqp":
        assert load_glue(name, glue).dropped == {"malformed row": (1, 241)}
        return
    line = 201 if name == "cola" else 202
    with pytest.raises(InputError, match=rf"train\.tsv, line {line}: found 1 columns, expected \d+ \("):
        load_glue(name, glue)


def test_empty_questions_of_qqp_are_skipped_and_ids_stay_row_numbers(tmp_path: Path) -> None:
    extra = ("200\t1\t2\t\tother 200\t0", "short", LAYOUTS["qqp"][3](202, "1"))
    task = load_glue("qqp", write_glue(tmp_path, "qqp", extra_train=extra))
    assert task.dropped == {"malformed row": (2, 243)}
    rows = {row["id"]: row["text_a"] for split in ("train", "dev") for row in getattr(task, split)}
    assert rows == {number: f"text {number}" for number in (*range(200), 202)}


@pytest.mark.parametrize("name", [name for name in GLUE if LAYOUTS[name][4]])
@pytest.mark.parametrize("label", ["-1", "3", "hidden"])
def test_a_label_outside_the_classes_is_named(name: str, label: str, tmp_path: Path) -> None:
    glue = write_glue(tmp_path, name, extra_dev=(LAYOUTS[name][3](7000, label),))
    with pytest.raises(InputError, match=rf"line 4[12]: the label is '{label}', expected one of .*GLUE's test files"):
        load_glue(name, glue)


def test_an_unlabelled_test_file_is_recognised(tmp_path: Path) -> None:
    glue = write_glue(tmp_path, "rte")
    (glue / "RTE" / "dev.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"no column 'label'.*index, sentence1, sentence2.*carry no labels"):
        load_glue("rte", glue)


@pytest.mark.parametrize("number", ["nan", "inf", "five", ""])
def test_a_score_must_be_a_finite_number(number: str, tmp_path: Path) -> None:
    glue = write_glue(tmp_path, "stsb", extra_train=(LAYOUTS["stsb"][3](7000, number),))
    with pytest.raises(InputError, match=r"line 202: the label is .* expected a finite number"):
        load_glue("stsb", glue)


@pytest.mark.parametrize("text", ["", " ", "\u00a0\u3000", "\u200b\u2060\ufeff", "\u00ad", "\u3164\ufe0f"])
def test_an_empty_text_is_named_also_if_it_is_only_invisible(text: str, tmp_path: Path) -> None:
    glue = write_glue(tmp_path, "rte", extra_dev=(f"40\ttext\t{text}\tentailment",))
    with pytest.raises(InputError, match=r"dev\.tsv, line 42: the text is empty"):
        load_glue("rte", glue)


def test_what_is_short_but_visible_is_a_text(tmp_path: Path) -> None:
    shown = ("?", "\U0001f642", "\u200bé", "中", "\U0001fae8")  # the last is younger than some Pythons' Unicode
    glue = write_glue(tmp_path, "rte", extra_dev=tuple(f"40\ttext\t{text}\tentailment" for text in shown))
    assert tuple(load_glue("rte", glue).test["text_b"][-5:]) == shown


def test_missing_folders_and_files_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist; set GLUE_DIR to the one that holds RTE/train\.tsv"):
        load_glue("rte", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot read .*RTE/train\.tsv"):
        load_glue("rte", tmp_path)
    glue = write_glue(tmp_path, "mnli")
    with pytest.raises(InputError, match=r"cannot read .*MNLI/dev_mismatched\.tsv"):
        load_glue("mnli-mm", glue)


@pytest.mark.parametrize(("content", "problem"), [(b"", "no column"), (b"sentence\tlabel\ncaf\xe9\t1\n", "not UTF-8")])
def test_files_that_hold_something_else(content: bytes, problem: str, tmp_path: Path) -> None:
    glue = write_glue(tmp_path, "sst2")
    (glue / "SST-2" / "train.tsv").write_bytes(content)
    with pytest.raises(InputError, match=rf"train\.tsv.*{problem}"):
        load_glue("sst2", glue)


@pytest.mark.parametrize("name", GLUE)
def test_the_hub_gives_what_the_folder_gives(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single = {"sst2": ("sentence",), "cola": ("sentence",)}
    pairs = {"qnli": ("question", "sentence"), "qqp": ("question1", "question2")}
    mnli = ("premise", "hypothesis")
    columns = single.get(name) or pairs.get(name) or (mnli if "mnli" in name else ("sentence1", "sentence2"))
    test_split = {"mnli": "validation_matched", "mnli-mm": "validation_mismatched"}.get(name, "validation")

    def load_dataset(path: str, configuration: str, split: str) -> datasets.Dataset:
        assert (path, configuration) == ("nyu-mll/glue", name.removesuffix("-mm"))
        numbers = {"train": range(200), test_split: range(1000, 1040)}[split]
        rows = {column: [f"{word} {n}" for n in numbers] for column, word in zip(columns, ("text", "other"))}  # noqa: B905
        classes = len(LAYOUTS[name][4])
        rows["label"] = [n % classes if classes else n % 11 / 2 for n in numbers]
        return datasets.Dataset.from_dict(rows | {"idx": list(numbers)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_task(name).fingerprint == load_glue(name, write_glue(tmp_path, name)).fingerprint


def test_a_hub_out_of_reach_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"Couldn't reach the Hub.*set GLUE_DIR.*RTE/train\.tsv.*movie, "):
        load_task("rte")


# Metrics

BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)
NUMBERS = st.lists(st.tuples(st.integers(-8, 8), st.integers(-8, 8)), min_size=2, max_size=30)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("movie", ["accuracy"]),
        ("movie-valence", ["pearson", "spearman"]),
        ("mrpc", ["accuracy", "f1"]),
        ("qqp", ["accuracy", "f1"]),
        ("cola", ["matthews", "accuracy"]),
        ("stsb", ["pearson", "spearman"]),
        ("mnli", ["accuracy"]),
    ],
)
def test_metrics_are_those_of_glue_with_the_headline_first(name: str, names: list[str]) -> None:
    predictions, labels = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    values = score(TASKS[name], predictions, labels)
    assert list(values) == names
    assert headline(TASKS[name], predictions, labels) == values[names[0]]


@given(BINARY)
def test_class_metrics_by_hand(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = np.array(pairs).T
    count = Counter(pairs)
    tp, tn, fp, fn = count[1, 1], count[0, 0], count[1, 0], count[0, 1]
    assert score(TASKS["mrpc"], predictions, labels) == pytest.approx(
        {"accuracy": (tp + tn) / len(pairs), "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0}
    )
    under = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert headline(TASKS["cola"], predictions, labels) == pytest.approx(
        (tp * tn - fp * fn) / under**0.5 if under else 0.0
    )


@given(NUMBERS)
def test_correlations_by_hand(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = np.array(pairs, dtype=float).T
    values = score(TASKS["stsb"], predictions, labels)
    constant = np.ptp(predictions) == 0 or np.ptp(labels) == 0
    ranks = stats.rankdata(predictions), stats.rankdata(labels)
    expected = {
        "pearson": 0.0 if constant else np.corrcoef(predictions, labels)[0, 1],
        "spearman": 0.0 if constant else np.corrcoef(*ranks)[0, 1],
    }
    assert values == pytest.approx(expected, abs=1e-9)


def test_nearly_constant_predictions_do_not_warn() -> None:
    values = score(TASKS["stsb"], 3 + 1e-15 * np.arange(4), np.arange(4))
    assert np.isfinite(list(values.values())).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_correlations_are_scipys(kind: type) -> None:
    random = np.random.default_rng(0)
    labels = random.normal(size=60).round(1)
    predictions = (labels + random.normal(size=60)).astype(kind)
    expected = {name: getattr(stats, f"{name}r")(predictions, labels).statistic for name in ("pearson", "spearman")}
    assert score(TASKS["stsb"], predictions, labels) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("number", [0.0, 0.1, 3.0])
def test_nothing_goes_with_a_constant(number: float) -> None:
    constant, numbers = np.full(11, number), np.arange(11)
    assert headline(TASKS["stsb"], constant, numbers) == headline(TASKS["stsb"], numbers, constant) == 0


def test_matthews_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    predictions, labels = random.integers(0, 2, 50), random.integers(0, 2, 50)
    assert headline(TASKS["cola"], predictions, labels) == metrics.matthews_corrcoef(labels, predictions)


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "problem"),
    [
        ("movie", [[0.1, 0.9]], [1], "not logits"),
        ("movie", [0, 1], [1], "not logits"),
        ("movie", [], [], "at least 1 samples"),
        ("stsb", [1.0], [1.0], "at least 2 samples"),
        ("stsb", [1.0, float("nan")], [1.0, 2.0], "1 of 2 predictions are not finite"),
        ("movie", [0, 2], [0, 1], "classes from 0 to 1"),
        ("movie", [0.3, 1], [0, 1], "classes from 0 to 1"),
    ],
)
def test_what_cannot_be_scored(name: str, predictions: list, labels: list, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        score(TASKS[name], np.array(predictions), np.array(labels))


# Names and tables


def test_specs_are_complete() -> None:
    assert len(OFFLINE) == 10
    assert len(GLUE) == 10
    assert len({spec.title for spec in TASKS.values()}) == len(TASKS)
    for name, spec in TASKS.items():
        assert spec.name == name
        assert bool(spec.class_names) == (spec.kind == "classification")
        assert spec.note


def test_describe_gives_one_row_a_split() -> None:
    table = describe(load_task("movie"))
    assert list(table.columns)[:-1] == ["split", "rows", "negative", "positive", "mean words"]
    assert list(table["split"]) == ["train", "dev", "test"]
    assert list(table["rows"])[2] == 1600
    assert table[["negative", "positive"]].sum(axis="columns").tolist() == pytest.approx([1, 1, 1])
    assert table["mean words"].tolist() == pytest.approx([3, 3, 3])
    assert table["left out: valence exactly zero"].tolist() == ["60 of 3,000", "", ""]
    assert list(describe(load_task("movie-valence")).columns) == ["split", "rows", "mean", "sd", "mean words"]


def own_task(folder: Path, train: list[str] | None = None, test: list[str] | None = None, **fields: object) -> str:
    """A folder with 60 sentences in each file, or other rows; `fields` replace lines of task.toml, None drops one."""
    card = {"title": "Tickets", "texts": ["text"], "label": "kind", "classes": ["routine", "urgent"], "metrics": ["f1"]}
    lines = [f"{name} = {value!r}" for name, value in {**card, **fields}.items() if value is not None]
    folder.mkdir()
    (folder / "task.toml").write_text("\n".join(lines), encoding="utf-8")
    for split, rows in (("train", train), ("test", test)):
        rows = tickets(split, 60) if rows is None else rows
        (folder / f"{split}.tsv").write_text("\n".join(["kind\ttext", *rows]), encoding="utf-8")
    return str(folder)


def tickets(words: str, count: int) -> list[str]:
    return [f"{('routine', 'urgent')[row % 2]}\t{words} {row}" for row in range(count)]


def test_a_folder_of_ones_own_is_a_task(tmp_path: Path) -> None:
    task = load_task(own_task(tmp_path / "tickets"))
    assert (task.spec.title, task.spec.class_names, task.spec.metrics) == ("Tickets", ("routine", "urgent"), ("f1",))
    assert (len(task.train), len(task.dev), len(task.test)) == (30, 30, 60)
    assert [row["label"] for row in task.test] == [number % 2 for number in range(60)]
    assert all(row["text_a"].startswith("test ") for row in task.test)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"label": 3}, r"task.toml needs label as a text; found 3"),
        ({"texts": "text"}, r"needs texts as a list; found 'text'"),
        ({"colour": "red"}, r"unknown field of .*task.toml 'colour'; choose one of: classes"),
        ({"metrics": ["pearson"]}, r"unknown metric of a classification .*'pearson'; choose one of: accuracy"),
        ({"classes": ["routine"]}, r"no class or at least two"),
        ({"classes": ["routine", "late"]}, r"line 3: the label is 'urgent', expected one of routine, late; task.toml"),
        ({"classes": [], "metrics": ["pearson"]}, r"label is 'routine', expected a finite number; task.toml"),
        ({"texts": ["text", "text"]}, r"needs texts that differ, none of them empty"),
        ({"classes": ["routine", "urgent", "urgent "]}, r"needs classes that differ, none of them empty"),
        ({"label": "text"}, r"names the column 'text' as text and as label"),
        ({"label": "class"}, r"train.tsv has no column 'class'; its columns are kind, text; task.toml"),
    ],
)
def test_a_wrong_card_of_ones_own_task_is_told(tmp_path: Path, fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_task(own_task(tmp_path / "tickets", **fields))


def test_a_card_may_begin_with_a_mark_but_must_be_utf8(tmp_path: Path) -> None:
    folder = Path(own_task(tmp_path / "tickets", title="Café"))
    card = (folder / "task.toml").read_text(encoding="utf-8")
    (folder / "task.toml").write_text(card, encoding="utf-8-sig")
    assert load_task(str(folder)).spec.title == "Café"
    (folder / "task.toml").write_text(card, encoding="latin-1")
    with pytest.raises(InputError, match=r"task.toml is not TOML in UTF-8"):
        load_task(str(folder))


def test_a_copy_with_an_invisible_character_inside_is_still_a_copy(tmp_path: Path) -> None:
    copies = [row.replace("test", "te\u200bst") for row in tickets("test", 20)]
    folder = own_task(tmp_path / "tickets", train=tickets("train", 60) + copies)
    with pytest.warns(UserWarning, match="20 of the 80 training rows"):
        task = load_task(folder)
    assert len(task.train) + len(task.dev) == 60


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Café Olé", "cafe ole", True),
        ("caf\u00e9", "cafe\u0301", True),  # one letter, or a letter and an accent
        ("nai\u0308ve", "NAÏVE", True),
        ("a b", "a\u00a0\t b ", True),
        ("te\u200bst", "test", True),
        ("cafe", "caffe", False),
        ("rose", "røse", False),  # no accent: another letter
        ("a b", "ab", False),
        ("it 's", "it's", False),
    ],
)
def test_texts_that_an_uncased_tokenizer_cannot_tell_apart_are_one(one: str, other: str, same: bool) -> None:
    assert (normal_form(one) == normal_form(other)) == same


@given(st.text(alphabet="aâàäåbcçeéèêiïîoôöuùûüyÿzAÂÇÉÏÔÜŸ \u0301\u0308\u0327", max_size=12))
def test_case_and_accents_go_as_hugging_face_s_uncased_normalizer_has_them_go(text: str) -> None:
    theirs = BertNormalizer(lowercase=True, strip_accents=True).normalize_str(text)
    assert " ".join(normal_form(text).split()) == " ".join(theirs.split())


def test_a_copy_with_other_accents_is_left_out_of_train(tmp_path: Path) -> None:
    copies = ["routine\ttést 3", "urgent\tTEST\u0301 5"]
    with pytest.warns(UserWarning, match="2 of the 62 training rows"):
        task = load_task(own_task(tmp_path / "tickets", train=tickets("train", 60) + copies))
    assert len(task.train) + len(task.dev) == 60


def test_training_rows_that_test_repeats_are_counted_with_a_warning(tmp_path: Path) -> None:
    name = own_task(tmp_path / "tickets", tickets("train", 200), tickets("train", 3) + tickets("test", 60))
    with pytest.warns(UserWarning, match=r"3 of the 200 training rows of .*tickets were left out: their texts"):
        task = load_task(name)
    assert len(task.train) + len(task.dev) == 197
    assert describe(task)["left out: train text also in test"].tolist() == ["3 of 200", "", ""]


def test_one_in_a_hundred_is_left_out_without_a_warning(tmp_path: Path) -> None:
    task = load_task(own_task(tmp_path / "tickets", tickets("train", 200), tickets("train", 2) + tickets("test", 60)))
    assert task.dropped == {"train text also in test": (2, 200)}


def test_a_test_file_that_repeats_most_of_train_is_refused(tmp_path: Path) -> None:
    rows = tickets("train", 62)
    with pytest.raises(InputError, match=r"61 of the 62 training rows of .* were left out: .*Less than half is left"):
        load_task(own_task(tmp_path / "most", rows, rows[1:]))
    with pytest.raises(InputError, match=r"62 of the 62 training rows"):
        load_task(own_task(tmp_path / "all", rows, rows))


def test_a_class_needs_two_samples_to_train_on(tmp_path: Path) -> None:
    rows = [*(f"routine\ttrain {row}" for row in range(60)), "urgent\tcome at once", "urgent\tcome quickly"]
    with pytest.raises(InputError, match=r"[01] training samples of class 'urgent', and needs at least 2; .* became"):
        load_task(own_task(tmp_path / "rare", rows))
    numbers = {"classes": [], "metrics": ["pearson"]}
    with pytest.raises(InputError, match=r"has 1 training samples, and needs at least 2"):
        load_task(own_task(tmp_path / "two", ["1\tone", "2\ttwo"], ["3\tthree", "4\tfour"], **numbers))
