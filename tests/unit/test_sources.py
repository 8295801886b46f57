"""Pinned downloads, from a package index that runs on this machine: no test here needs a network."""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eeutils.data import sources
from eeutils.data.sources import SourceError, fetch
from eeutils.errors import InputError
from eeutils.files import repository_root

FILENAME = "toy-1.0.zip"
WEIGHTS = os.urandom(3_000_000)
SENTENCES = "1\t0.5\tein schöner Satz\n".encode()
SETUP = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"


def make_archive() -> bytes:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        member = tarfile.TarInfo("texts/sentences.txt")
        member.size = len(SENTENCES)
        tar.addfile(member, io.BytesIO(SENTENCES))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("toy-1.0/weights.bin", WEIGHTS)
        archive.writestr("toy-1.0/texts.tar.gz", inner.getvalue())
        archive.writestr("toy-1.0/setup.py", SETUP)
    return outer.getvalue()


ARCHIVE = make_archive()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Index:
    """A package index with one package; it can misbehave, and remembers what it was asked for."""

    address: str = ""
    content: bytes = ARCHIVE
    breaks: int = 0
    """How many of the next downloads break off half-way."""
    resumes: bool = True
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of each download."""

    def settings(self) -> dict[str, str]:
        return {"PIP_INDEX_URL": f"{self.address}/simple"}


@pytest.fixture
def index() -> Iterator[Index]:
    state = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/simple/toy/":
                self.answer(200, f'<a href="/files/{FILENAME}#sha256=0">{FILENAME}</a>'.encode(), "text/html")
            elif self.path == f"/files/{FILENAME}":
                self.send_archive()
            else:
                self.answer(404, b"no such page", "text/html")

        def send_archive(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and state.resumes else 0
            body = state.content[start:]
            if asked and not body:
                self.answer(416, b"", "text/plain")
            elif state.breaks:
                state.breaks -= 1
                self.answer(206 if start else 200, body, "application/zip", sent=len(body) // 2)
            else:
                self.answer(206 if start else 200, body, "application/zip")

        def answer(self, status: int, body: bytes, kind: str, sent: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:sent])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, one source named toy, and pip set to use the index and nothing else of this machine."""
    (tmp_path / "data").mkdir()
    write_table(tmp_path)
    monkeypatch.setattr(sources, "repository_root", lambda: tmp_path)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("EEUTILS_CACHE", str(tmp_path / "cache"))
    for name, value in index.settings().items():
        monkeypatch.setenv(name, value)
    return tmp_path / "cache"


def write_table(root: Path, **changes: str) -> None:
    values = {"weights": digest(WEIGHTS), "sentences": "toy-1.0/texts.tar.gz!texts/sentences.txt"} | changes
    (root / "data" / "sources.toml").write_text(
        f"""
        [toy]
        package = "toy"
        version = "1.0"
        filename = "{FILENAME}"
        sha256 = "{digest(ARCHIVE)}"
        licence = "MIT"
        holds = "a toy"
        members = [
            {{ name = "weights.bin", path = "toy-1.0/weights.bin", sha256 = "{values["weights"]}" }},
            {{ name = "sentences.tsv", path = "{values["sentences"]}", sha256 = "{digest(SENTENCES)}" }},
        ]
        """,
        encoding="utf-8",
    )


def names(folder: Path) -> set[str]:
    """What lies in a folder, apart from locks."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"} if folder.exists() else set()


def assert_whole(folder: Path) -> None:
    assert names(folder) == {"weights.bin", "sentences.tsv"}
    assert (folder / "weights.bin").read_bytes() == WEIGHTS
    assert (folder / "sentences.tsv").read_bytes() == SENTENCES


def test_members_come_out_of_the_archive_and_of_an_archive_inside_it(cache: Path) -> None:
    folder = fetch("toy")
    assert folder == cache / "toy"
    assert_whole(folder)
    assert names(cache) == {"toy"}, "the archive itself is not kept"


def test_nothing_of_the_archive_is_run(cache: Path, tmp_path: Path) -> None:
    fetch("toy")
    assert not list(tmp_path.rglob("ran"))


def test_what_is_in_the_cache_is_not_downloaded_again(cache: Path, index: Index) -> None:
    fetch("toy")
    fetch("toy")
    assert len(index.ranges) == 1


def test_a_changed_file_in_the_cache_is_noticed_and_replaced(cache: Path) -> None:
    fetch("toy")
    (cache / "toy" / "weights.bin").write_bytes(WEIGHTS[:-1] + b"x")
    assert_whole(fetch("toy"))


def test_a_broken_connection_is_resumed_where_it_broke(cache: Path, index: Index) -> None:
    index.breaks = 1
    assert_whole(fetch("toy"))
    first, second = index.ranges
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) < len(ARCHIVE)


def test_a_download_given_up_goes_on_at_the_next_call(cache: Path, index: Index) -> None:
    index.breaks = sources.ATTEMPTS
    with pytest.raises(SourceError, match="run again"):
        fetch("toy")
    assert names(cache) == {f"{FILENAME}.part"}
    kept = (cache / f"{FILENAME}.part").stat().st_size
    assert_whole(fetch("toy"))
    assert index.ranges[-1] == f"bytes={kept}-"
    assert names(cache) == {"toy"}


def test_a_server_that_cannot_resume_starts_over(cache: Path, index: Index) -> None:
    index.breaks, index.resumes = 1, False
    assert_whole(fetch("toy"))


def test_a_whole_download_that_was_not_unpacked_is_not_repeated(cache: Path, index: Index) -> None:
    cache.mkdir()
    (cache / f"{FILENAME}.part").write_bytes(ARCHIVE)
    assert_whole(fetch("toy"))


@pytest.mark.parametrize("content", [ARCHIVE[:-1], ARCHIVE[:-1] + b"x", ARCHIVE + b"x"], ids=["short", "wrong", "long"])
def test_a_corrupted_download_is_refused_and_removed(cache: Path, index: Index, content: bytes) -> None:
    index.content = content
    with pytest.raises(SourceError) as caught:
        fetch("toy")
    assert digest(content) in str(caught.value)
    assert digest(ARCHIVE) in str(caught.value)
    assert names(cache) == set()
    index.content = ARCHIVE
    assert_whole(fetch("toy"))


def test_a_wrong_leftover_is_removed_not_resumed_for_ever(cache: Path, index: Index) -> None:
    cache.mkdir()
    (cache / f"{FILENAME}.part").write_bytes(b"x" * (len(ARCHIVE) + 5))
    with pytest.raises(SourceError, match="sha256"):
        fetch("toy")
    assert_whole(fetch("toy"))


def test_no_network_says_what_was_wanted_and_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens on port 1. The credentials of an address must not show in a message.
    monkeypatch.setenv("PIP_INDEX_URL", "http://reader:secret@127.0.0.1:1/simple")
    with pytest.raises(SourceError) as caught:
        fetch("toy")
    for part in ("toy 1.0", FILENAME, "PIP_FIND_LINKS", "pip config list"):
        assert part in str(caught.value)
    assert "secret" not in str(caught.value)
    assert names(cache) == set()


def test_a_package_that_the_index_lacks(cache: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.address}/other")
    with pytest.raises(SourceError, match=r"toy 1\.0 could not be downloaded: .*/other does not have it"):
        fetch("toy")


def test_pips_files_are_followed(cache: Path, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        f"[global]\nindex-url = http://127.0.0.1:1/simple\n[download]\nindex-url = {index.address}/simple\n"
    )
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert_whole(fetch("toy"))


def test_an_index_that_is_down_does_not_hide_the_others(
    cache: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"no-address {index.address}/other {index.address}/simple")
    assert_whole(fetch("toy"))


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the archive, that pip is told of as `~/archives`, and told to use nothing else."""
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / FILENAME).write_bytes(ARCHIVE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_FIND_LINKS", "~/archives")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "archives"


@pytest.mark.parametrize("place", ["{}", "file://{}", "~/archives", "archives", "/no/such/folder {}"])
def test_a_folder_of_find_links_needs_no_network(
    cache: Path, index: Index, archives: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archives.parent)
    monkeypatch.setenv("PIP_FIND_LINKS", place.format(archives))
    assert_whole(fetch("toy"))
    assert names(archives) == {FILENAME}, "the user's own file is left alone"
    assert not index.ranges


def test_a_wrong_archive_in_a_folder_of_find_links_is_refused_and_left_alone(cache: Path, archives: Path) -> None:
    (archives / FILENAME).write_bytes(ARCHIVE[:-1])
    with pytest.raises(SourceError, match=rf"toy-1\.0\.zip from {archives} is not the file .* expected was"):
        fetch("toy")
    assert (archives / FILENAME).read_bytes() == ARCHIVE[:-1]
    (archives / FILENAME).write_bytes(ARCHIVE)
    assert_whole(fetch("toy"))


def test_what_the_folders_of_find_links_lack_comes_from_the_index(
    cache: Path, index: Index, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archives / FILENAME).unlink()
    with pytest.raises(SourceError, match=rf"{archives} does not have it\. .* set PIP_FIND_LINKS"):
        fetch("toy")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{archives} {archives}-typo")
    with pytest.raises(SourceError, match=rf"{archives}-typo failed \(.*non-existing path"):
        fetch("toy")
    monkeypatch.delenv("PIP_NO_INDEX")
    assert_whole(fetch("toy"))


def test_no_index_is_obeyed(cache: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceError, match="pip is set to use no index"):
        fetch("toy")
    assert not index.ranges


def test_pips_certificate_must_exist(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CERT", "/no/such/bundle.pem")
    with pytest.raises(SourceError, match=r"cert names /no/such/bundle\.pem"):
        fetch("toy")


def test_a_full_disk_while_downloading_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(sources.tqdm):
        def update(self, n: float | None = 1) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "tqdm", FullDisk)
    with pytest.raises(SourceError, match="the disk is full"):
        fetch("toy")
    assert names(cache) == set()


def test_a_full_disk_while_unpacking_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_some(content: io.BufferedIOBase, file: io.BufferedIOBase) -> None:
        file.write(content.read(1000))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources.shutil, "copyfileobj", write_some)
    with pytest.raises(SourceError, match="the disk is full"):
        fetch("toy")
    assert names(cache) == set()


def test_processes_that_ask_at_once_share_one_download(cache: Path, index: Index, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from eeutils.data import sources;"
        "sources.repository_root = lambda: Path(sys.argv[1]); print(sources.fetch('toy'))"
    )
    environment = os.environ | {"PYTHONPATH": str(repository_root())}
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == [str(cache / "toy")] * 3
    assert_whole(cache / "toy")
    assert len(index.ranges) == 1


def test_a_member_that_differs_from_its_pin_or_is_absent(cache: Path, tmp_path: Path) -> None:
    write_table(tmp_path, weights="0" * 64)
    with pytest.raises(SourceError, match=r"toy-1\.0/weights\.bin in toy-1\.0\.zip has the sha256"):
        fetch("toy")
    write_table(tmp_path, sentences="toy-1.0/texts.tar.gz!texts/other.txt")
    with pytest.raises(SourceError, match=r"no file texts/other\.txt"):
        fetch("toy")
    assert not (cache / "toy").exists()


def test_an_unknown_source_lists_the_valid_ones(cache: Path) -> None:
    with pytest.raises(InputError, match=r"unknown source 'tou'.*toy"):
        fetch("tou")


def test_every_pinned_source_is_complete() -> None:
    text = (repository_root() / "data" / "sources.toml").read_text(encoding="utf-8")
    assert "://" not in text, "packages are found by name on the reader's own index"
    table = sources.sources()
    assert set(table) >= {"minilm-l6", "vader"}
    for source in table.values():
        assert source.licence
        assert source.version in source.filename
        assert len({member.name for member in source.members}) == len(source.members) > 0
        for pin in (source.sha256, *(member.sha256 for member in source.members)):
            assert re.fullmatch("[0-9a-f]{64}", pin)
