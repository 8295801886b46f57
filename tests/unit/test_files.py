"""Whole or not at all: what is written, and what remains when writing fails."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from eeutils.files import atomic_write, cache_dir, explain_full_disk, repository_root, sha256


def write_half(target: Path, error: BaseException, directory: bool = False) -> None:
    """Fail when half is written."""
    with atomic_write(target) as partial:
        if directory:
            partial.mkdir()
        (partial / "half.txt" if directory else partial).write_text("half")
        raise error


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "table.csv"
    with atomic_write(target) as partial:
        partial.write_text("half")
        assert not target.exists()
        assert partial.parent == target.parent, "only within one file system is a rename one step"
    assert target.read_text() == "half"
    assert [path.name for path in target.parent.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["error", "interrupted"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(type(error)):
        write_half(target, error)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_takes_the_place_of_an_old_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "run"
    for content in ("old", "new"):
        with atomic_write(target) as partial:
            partial.mkdir()
            (partial / f"{content}.txt").write_text(content)
    assert [path.name for path in target.iterdir()] == ["new.txt"]
    with pytest.raises(ValueError, match="stop"):
        write_half(target, ValueError("stop"), directory=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "new.txt"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["by number", "in words"],
)
def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match=r"the disk is full: .*weights was not written; free some space") as caught:
        write_half(tmp_path / "weights", error)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(PermissionError, match="mine"), explain_full_disk("x"):
        raise PermissionError("mine")


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    with atomic_write(target) as one, atomic_write(target) as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert target.read_text() == "1"


def test_the_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = b"early exit" * 1000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_folders_are_where_they_are_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (repository_root() / "pyproject.toml").exists()
    monkeypatch.setenv("EEUTILS_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("EEUTILS_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "eeutils"
