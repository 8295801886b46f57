"""Tasks of one's own from files as people have them, written by pandas, `datasets`, csv and by hand."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pytest

from eeutils.data import tables
from eeutils.data.specs import spec_of
from eeutils.data.tasks import Task, describe, load_task
from eeutils.errors import InputError

ROWS = 120


def frame(rows: int = ROWS, **columns: list) -> pd.DataFrame:
    """Texts with what a table must keep: commas, tabs, quotes and newlines; two classes in turn."""
    texts = [f'text {row}, "quoted"\tand a tab\nand a line; "{row}"' for row in range(rows)]
    return pd.DataFrame({"text": texts, "label": [("good", "bad")[row % 2] for row in range(rows)], **columns})


def all_rows(task: Task) -> dict[int, tuple[str, str, object]]:
    """Id -> both texts and the label as it is called, over all splits."""
    names = task.spec.class_names
    return {
        row["id"]: (row["text_a"], row["text_b"], names[row["label"]] if names else row["label"])
        for split in (task.train, task.dev, task.test)
        for row in split
    }


def by_datasets(data: pd.DataFrame, path: Path) -> None:
    datasets.Dataset.from_pandas(data).to_parquet(path)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "pandas.csv": lambda data, path: data.to_csv(path, index=False),
    "with an index.csv": lambda data, path: data.to_csv(path),
    "windows.csv": lambda data, path: data.to_csv(path, index=False, lineterminator="\r\n"),
    "excel.csv": lambda data, path: data.to_csv(
        path, index=False, sep=";", encoding="utf-8-sig", lineterminator="\r\n"
    ),
    "all in quotes.csv": lambda data, path: data.to_csv(path, index=False, quoting=csv.QUOTE_ALL),
    "pandas.tsv": lambda data, path: data.to_csv(path, index=False, sep="\t"),
    "windows.tsv": lambda data, path: data.to_csv(path, index=False, sep="\t", lineterminator="\r\n"),
    "lines.jsonl": lambda data, path: data.to_json(path, orient="records", lines=True),
    "list.json": lambda data, path: data.to_json(path, orient="records"),
    "pandas.parquet": lambda data, path: data.to_parquet(path),
    "datasets.parquet": by_datasets,
}


@pytest.mark.parametrize("name", WRITERS)
def test_one_file_in_any_form_gives_the_same_task(name: str, tmp_path: Path) -> None:
    WRITERS[name](frame(), tmp_path / name)
    task = load_task(str(tmp_path / name))
    assert task.spec.class_names == ("bad", "good")
    assert task.spec.metrics == ("accuracy",)
    assert [len(split) for split in (task.train, task.dev, task.test)] == [45, 45, 30]
    expected = frame()
    found = all_rows(task)
    assert sorted(found) == list(range(ROWS))
    assert all(found[row] == (text, "", label) for row, (text, label) in enumerate(expected.itertuples(index=False)))
    assert any("30 rows were cut from train as test" in note for note in task.notes)
    assert "2 classes: 'bad', 'good'" in task.notes


def test_a_lone_quote_in_a_tsv_means_itself(tmp_path: Path) -> None:
    lines = ['"unclosed\tgood', 'a "word" inside\tbad', '"all of it"\tgood']
    rows = [f"{line.split(chr(9))[0]} {number}\t{line.split(chr(9))[1]}" for number in range(10) for line in lines]
    (tmp_path / "raw.tsv").write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
    found = all_rows(load_task(str(tmp_path / "raw.tsv")))
    assert [found[number][0] for number in range(3)] == ['"unclosed 0', 'a "word" inside 0', '"all of it" 0']


def test_a_folder_of_save_to_disk_has_the_names_of_its_classlabel(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["entailment", "never", "contradiction"])
    features = datasets.Features({"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")})
    features["label"] = names

    def split(word: str, count: int, first: int = 0) -> datasets.Dataset:
        rows = {
            "premise": [f"{word} {row}" for row in range(count)],
            "hypothesis": [f"so {row}" for row in range(count)],
        }
        labels = [-1] * first + [(0, 2)[row % 2] for row in range(count - first)]
        return datasets.Dataset.from_dict(rows | {"label": labels}, features)

    parts = {"train": split("a", 100, 3), "validation": split("b", 40), "test": split("c", 30, 30)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "nli")
    task = load_task(str(tmp_path / "nli"))
    assert task.spec.class_names == ("entailment", "contradiction")
    assert task.spec.text_columns == ("text_a", "text_b")
    # 97 with a label; test carries none, so a quarter is cut; dev is the validation split.
    assert [len(part) for part in (task.train, task.dev, task.test)] == [97 - 24, 40, 24]
    assert task.dropped == {"no label (-1)": (3, 170)}
    assert any(re.search("test of .*carries no labels and is not used", note) for note in task.notes)
    assert all_rows(task)[3][2] == "entailment"
    assert describe(task)["left out: no label (-1)"][0] == "3 of 170"


def test_splits_go_by_the_names_of_files_and_parts_are_joined(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in (0, 1):
        part = frame(60).assign(text=lambda data, number=number: data.text + f" part {number}")
        part.to_parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet")
    for split in ("validation", "test"):
        frame(30).assign(text=lambda data, split=split: split + data.text).to_parquet(tmp_path / f"{split}.parquet")
    task = load_task(str(tmp_path))
    assert [len(part) for part in (task.train, task.dev, task.test)] == [120, 30, 30]
    assert len(all_rows(task)) == 180
    assert not any("cut" in note for note in task.notes)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0.0, 1.0], ("0", "1")),
        ([1, 5], ("1", "5")),
        (["-1", "1.0"], ("-1", "1")),
        ([True, False], ("False", "True")),
        (["10", "9", "ten"], ("10", "9", "ten")),
        ([2, 10, 1], ("1", "2", "10")),
        ([0.5, 1.0], ()),
        (["None", "NA"], ("NA", "None")),
    ],
)
def test_what_labels_mean(labels: list, classes: tuple[str, ...], tmp_path: Path) -> None:
    form = {"float": ".parquet", "bool": ".parquet", "int": ".jsonl", "str": ".csv"}[type(labels[0]).__name__]
    path = tmp_path / f"table{form}"
    WRITERS[{".csv": "pandas.csv", ".jsonl": "lines.jsonl", ".parquet": "pandas.parquet"}[form]](
        frame(label=[labels[row % len(labels)] for row in range(ROWS)]), path
    )
    task = load_task(str(path))
    assert task.spec.class_names == classes
    if not classes:
        assert task.spec.metrics == ("pearson", "spearman")
        assert {row[2] for row in all_rows(task).values()} == set(labels)


def test_train_and_test_may_write_the_same_class_as_0_and_as_0_point_0(tmp_path: Path) -> None:
    frame(label=[row % 2 for row in range(ROWS)]).to_csv(tmp_path / "train.csv", index=False)
    other = frame(label=[float(row % 2) for row in range(ROWS)])
    other.assign(text="other " + other.text).to_csv(tmp_path / "test.csv", index=False)
    assert sorted(set(load_task(str(tmp_path)).test["label"])) == [0, 1]


def test_a_table_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    frame().to_csv(path, index=False)
    assert spec_of(str(path)).class_names == ("bad", "good")
    frame(label=[str(row % 3) for row in range(ROWS)]).to_csv(path, index=False)
    assert spec_of(str(path)).class_names == ("0", "1", "2")


def test_a_card_beside_a_file_names_its_columns(tmp_path: Path) -> None:
    frame().rename(columns={"text": "what was said", "label": "verdict"}).assign(day=3).to_csv(
        tmp_path / "talk.csv", index=False
    )
    with pytest.raises(
        InputError, match=r"which column holds the text; .*what was said, verdict, day.*talk\.toml: texts"
    ):
        load_task(str(tmp_path / "talk.csv"))
    (tmp_path / "talk.toml").write_text('texts = ["what was said"]\nlabel = "verdict"\n', encoding="utf-8")
    task = load_task(str(tmp_path / "talk.csv"))
    assert task.spec.class_names == ("bad", "good")
    assert task.spec.title == "talk"


def test_a_label_column_called_otherwise_is_the_other_one_of_two(tmp_path: Path) -> None:
    frame().rename(columns={"label": "verdict"}).to_csv(tmp_path / "talk.csv", index=False)
    assert "text from 'text', label from 'verdict'" in load_task(str(tmp_path / "talk.csv")).notes


def test_a_dataset_of_the_hub_with_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None) -> datasets.DatasetDict:
        if config != "polite":
            raise ValueError("BuilderConfig 'rude' not found. Available: ['polite']")
        assert name == "some-one/letters"
        return datasets.DatasetDict({"train": datasets.Dataset.from_pandas(frame())})

    monkeypatch.setattr(tables.datasets, "load_dataset", load_dataset)
    task = load_task("some-one/letters:polite")
    card = tmp_path / "letters.toml"
    card.write_text('data = "some-one/letters"\nconfig = "polite"\ntitle = "Letters"', encoding="utf-8")
    assert load_task(str(card)).fingerprint == task.fingerprint
    assert spec_of(str(card)).title == "Letters"
    with pytest.raises(InputError, match=r"some-one/letters \(rude\) could not be loaded .*Available: \['polite'\]"):
        load_task("some-one/letters:rude")


GOOD = [f"{number} fine,good\n{number} poor,bad\n" for number in range(20)]
WRONG: dict[str, tuple[str, bytes | str, str]] = {
    "utf-16": ("t.csv", "text,label\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "latin-1": ("t.csv", b"text,label\nfine,good\ncaf\xe9,bad\n", r"is not UTF-8 text \(line 3"),
    "ragged": ("t.csv", "text,label\nfine,good\n\nyes, but,bad\n", r"t\.csv, line 4: found 3 columns, expected 2"),
    "ragged after a long field": ("t.csv", 'text,label\n"a\nb",good\n"c\nd",b,c\n', r"line 4: found 3 columns"),
    "ragged tsv": ("t.tsv", "text\tlabel\nfine\n", r"line 2: found 1 columns, expected 2"),
    "open quote": ("t.csv", 'text,label\nfine,good\n"open,bad\n', r"line 3: unexpected end of data; a quote"),
    "no header": ("t.csv", "I liked it,good\n" + "".join(GOOD), "does not say which column holds the text; .*header"),
    "no header, alike": ("t.csv", "good,good\n", "two columns of one name"),
    "empty": ("t.csv", "", "does not say which column"),
    "header alone": ("t.csv", "text,label\n", "holds no sample"),
    "empty text": ("t.csv", "text,label\nfine,good\n , bad\n", r"line 3: the text is empty; remove"),
    "empty label": ("t.csv", "text,label\nfine,good\nfair,\n", r"line 3: the label is empty"),
    "one class": ("t.csv", "text,label\n" + "fine,good\n" * 30, "all labels in 'label' are 'good'"),
    "three rows": ("t.csv", "text,label\na,x\nb,y\nc,x\n", r"holds 3 row\(s\) with a label; give at least 20"),
    "a rare class": ("t.csv", "text,label\nodd,rare\n" + "".join(GOOD), "[01] training samples of class 'rare'"),
    "mostly numbers": (
        *("t.csv", "text,label\n" + "".join(f"t {n},{n / 7}\n" for n in range(30)) + "last,n/a\n"),
        r"line 32: the label is 'n/a', and nearly all others are numbers",
    ),
    "a label for each": ("t.csv", "text,label\n" + "".join(f"t {n},L{n}\n" for n in range(40)), "40 different labels"),
    "amounts": ("t.csv", "text,label\n" + "".join(f"t {n},{n * 3}\n" for n in range(40)), "classes or amounts; say"),
    "json": ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b",\n', r"line 2: not JSON .*each line is an object"),
    "json, no object": ("t.jsonl", "[1]\n2\n", "not JSON"),
    "json, numbers": ("t.jsonl", "1\n2\n", "line 1: not an object"),
    "json, a gap": ("t.jsonl", '{"text": "a", "label": "x"}\n\n{"label": "y"}\n', "line 3: the text is empty"),
    "json, lists": ("t.jsonl", '{"text": ["a"], "label": "x"}\n', "holds lists; texts are wanted"),
    "no parquet": ("t.parquet", "text", "cannot read .* as parquet"),
    "a page": ("t.xlsx", "PK", "is no table that is known here; give csv, tsv, jsonl or parquet"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_told_in_a_sentence_with_its_row(case: str, tmp_path: Path) -> None:
    name, content, sentence = WRONG[case]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence):
        load_task(str(path))


def test_a_class_that_only_test_has_is_named_with_its_row(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"text": ["a", "b", "c"], "label": ["good", "ugly", "bad"]}).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(
        InputError, match=r"test\.csv, line 3: the label is 'ugly', expected one of bad, good, the classes of"
    ):
        load_task(str(tmp_path))


def test_folders_that_do_not_say_what_is_what(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no table"):
        load_task(str(tmp_path))
    for name in ("first", "second"):
        frame().to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(InputError, match=r"holds first\.csv, second\.csv, and none of them is called train"):
        load_task(str(tmp_path))
    with pytest.raises(
        InputError, match=r"no file or folder '.*fist\.csv' \(did you mean 'first\.csv'\?\); give a table"
    ):
        load_task(str(tmp_path / "fist.csv"))
    with pytest.raises(InputError, match=r"unknown task 'table'.*or give a table of your own"):
        load_task("table")
    frame().to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "a", "label": "b"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"holds train as \.csv and as \.jsonl"):
        load_task(str(tmp_path))


def test_texts_of_test_and_dev_are_taken_out_of_train(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "train.csv", index=False)
    frame()[:1].to_csv(tmp_path / "test.csv", index=False)
    frame()[:4].to_csv(tmp_path / "dev.csv", index=False)
    task = load_task(str(tmp_path))
    assert [len(part) for part in (task.train, task.dev, task.test)] == [116, 3, 1]
    assert task.dropped == {
        "train text also in test": (1, 120),
        "dev text also in test": (1, 4),
        "train text also in dev": (3, 120),
    }
