"""Generation tasks: files of one's own, splits, and what is left out."""

import json
from pathlib import Path

import pytest

from eeutils.data.pairs import check_pair_task, load_pairs
from eeutils.errors import InputError


@pytest.fixture(autouse=True)
def read_anew() -> None:
    load_pairs.cache_clear()


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def rows(count: int) -> list[dict[str, object]]:
    return [{"source": f"text number {number}", "target": f"answer {number}"} for number in range(count)]


def test_a_file_of_ones_own_is_split_once_and_for_all_sizes_alike(tmp_path: Path) -> None:
    name = write(tmp_path / "own.jsonl", rows(400))
    whole, part = load_pairs(name), load_pairs(name, train_size=50, test_size=20)
    assert (len(whole.train), len(whole.dev), len(whole.test)) == (306, 34, 60)
    assert set(part.train) <= set(whole.train)
    assert set(part.test) <= set(whole.test)
    assert len(part.dev) == 20
    sources = [pair.source for split in (whole.train, whole.dev, whole.test) for pair in split]
    assert len(set(sources)) == 400
    assert part.fingerprints["train"] != whole.fingerprints["train"]


def test_copies_repeats_and_empty_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    odd = [
        {"source": "Text number 3 ", "target": "again"},
        {"source": "An Opera by Verdi, first given in 1853", "target": "opera by Verdi"},
        {"source": "something", "target": " \u200b"},
    ]
    task = load_pairs(write(tmp_path / "odd.jsonl", rows(400) + odd))
    assert task.dropped == {
        "nothing to read or to write": 1,
        "source stands before": 1,
        "target stands in the source": 1,
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"source": "a"}', "line 2: KeyError('target')"),
        ("no json", "line 2: JSONDecodeError"),
        ('{"source": 1, "target": "b"}', "line 2: 'source' and 'target' must be texts"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"source": "a", "target": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_pairs(str(path))
    assert told in str(caught.value)


def test_what_is_no_task_and_what_is_too_small_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wiki-descriptions, xsum"):
        check_pair_task("wiki")
    with pytest.raises(InputError, match="too few to be split"):
        load_pairs(write(tmp_path / "few.jsonl", rows(30)))
    with pytest.raises(InputError, match="test_size is 3"):
        load_pairs(write(tmp_path / "own.jsonl", rows(400)), test_size=3)


def test_xsum_from_a_folder_is_for_evaluation_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = [
        {
            "article": f"###\nArticle: News {n}.\n\nSummarize the above article in 1 sentence.\n",
            "summary_gt": f"sum {n}",
        }
        for n in range(200)
    ]
    write(tmp_path / "xsum_0shot.jsonl", wrapped)
    monkeypatch.setenv("XSUM_DIR", str(tmp_path))
    task = load_pairs("xsum")
    assert (len(task.train), len(task.dev), len(task.test)) == (0, 40, 160)
    assert task.test[0].source.startswith("News ")
    assert "Summarize" not in task.test[0].source
