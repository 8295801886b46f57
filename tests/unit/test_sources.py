"""Pinned downloads, from a package index that runs on this machine: no test here needs a network."""

import errno
import hashlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
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
TEXTS = "toy-1.0/texts.tar.gz!texts/sentences.txt"
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
    parts: dict[str, bytes] = field(default_factory=dict)
    """Archives of further packages, by file name."""

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
                self.send_archive(state.content)
            elif (name := self.path.removeprefix("/files/")) in state.parts:
                self.send_archive(state.parts[name])
            elif self.path.startswith("/simple/many-part-"):
                package = self.path.split("/")[2].replace("-", "_")
                links = [f'<a href="/files/{name}">{name}</a>' for name in state.parts if name.startswith(package)]
                self.answer(200, "".join(links).encode(), "text/html")
            else:
                self.answer(404, b"no such page", "text/html")

        def send_archive(self, content: bytes) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and state.resumes else 0
            body = content[start:]
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
    values = {"weights": digest(WEIGHTS), "sentences": TEXTS} | changes
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


# An archive that lies on the index in parts, each inside an archive of its own.

CUTS = (0, 300_000, 700_000, len(ARCHIVE))
PARTS = [ARCHIVE[start:end] for start, end in itertools.pairwise(CUTS)]


def part_name(number: int, version: str = "1.0") -> str:
    return f"many_part_{number}-{version}-py3-none-any.whl"


def make_part(number: int, content: bytes, name: str | None = None) -> bytes:
    """A wheel with a part of the archive in it."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name or f"many-part_{number}/input/toy.zip.{number}", content)
        archive.writestr("setup.py", SETUP)
    return wheel.getvalue()


WHEELS = [make_part(number, content) for number, content in enumerate(PARTS, 1)]


def write_parts(root: Path, wheels: list[bytes] = WHEELS, order: Sequence[int] = (1, 2, 3), **changes: object) -> None:
    """The source `many`: the toy archive in three parts, whose wheels have these bytes."""
    parts = [
        f'{{ package = "many-part-{number}", version = "1.0", filename = "{part_name(number)}", '
        f'sha256 = "{digest(wheels[number - 1])}", part = "many-part_{number}/input/toy.zip.{number}" }},'
        for number in order
    ]
    values = {"joined": digest(ARCHIVE), "weights": "toy-1.0/weights.bin", "megabytes": 10} | changes
    (root / "data" / "sources.toml").write_text(
        f"""
        [many]
        licence = "MIT"
        holds = "a toy"
        megabytes = {values["megabytes"]}
        joined = "{values["joined"]}"
        parts = [{"".join(parts)}]
        members = [
            {{ name = "weights.bin", path = "{values["weights"]}", sha256 = "{digest(WEIGHTS)}" }},
            {{ name = "sentences.tsv", path = "{TEXTS}", sha256 = "{digest(SENTENCES)}" }},
        ]
        """,
        encoding="utf-8",
    )


@pytest.fixture
def many(cache: Path, archives: Path, tmp_path: Path) -> Path:
    """The folder of find-links with the three wheels of `many`; no index is used."""
    write_parts(tmp_path)
    put(archives)
    return archives


def put(folder: Path, wheels: list[bytes] = WHEELS) -> None:
    for number, content in enumerate(wheels, 1):
        (folder / part_name(number)).write_bytes(content)


@pytest.fixture
def parts_online(cache: Path, index: Index, tmp_path: Path) -> Index:
    """The index, with the three wheels of `many`."""
    write_parts(tmp_path)
    index.parts = {part_name(number): content for number, content in enumerate(WHEELS, 1)}
    return index


def test_parts_are_joined_in_order_and_removed(cache: Path, many: Path, tmp_path: Path) -> None:
    folder = fetch("many")
    assert folder == cache / "many"
    assert_whole(folder)
    assert names(cache) == {"many"}, "neither the parts nor what they make are kept"
    assert names(many) == {FILENAME, *map(part_name, (1, 2, 3))}, "the user's own files are left alone"
    assert not list(tmp_path.rglob("ran"))


def test_parts_come_from_the_index_each_as_its_own_package(cache: Path, parts_online: Index) -> None:
    assert_whole(fetch("many"))
    fetch("many")
    assert parts_online.ranges == [None, None, None]
    assert names(cache) == {"many"}


def test_parts_that_are_there_are_kept_when_the_connection_is_lost_and_the_next_call_goes_on(
    cache: Path, parts_online: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ATTEMPTS", 1)
    whole = sources._stream

    def break_off_the_third(client, url: str, part: Path, name: str) -> None:
        parts_online.breaks = int(part_name(3) in url)
        whole(client, url, part, name)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "_stream", break_off_the_third)
        with pytest.raises(SourceError, match=r"many_part_3-1\.0.* could not be downloaded"):
            fetch("many")
    kept = {path.name: path.stat().st_size for path in sorted(cache.glob("*.part"))}
    # Of the third what came whole, a chunk of one MiB.
    assert list(kept.values()) == [len(WHEELS[0]), len(WHEELS[1]), 1 << 20]
    assert_whole(fetch("many"))
    assert parts_online.ranges == [None, None, None, f"bytes={1 << 20}-"]
    assert names(cache) == {"many"}


@pytest.mark.parametrize("number", [1, 3])
def test_a_truncated_part_is_refused_by_its_name(cache: Path, many: Path, number: int) -> None:
    (many / part_name(number)).write_bytes(WHEELS[number - 1][:-1])
    with pytest.raises(SourceError, match=rf"many_part_{number}-1\.0.*is not the file that .* names"):
        fetch("many")
    assert names(cache) == set()
    put(many)
    assert_whole(fetch("many"))


def test_parts_under_each_other_s_names_are_refused(cache: Path, many: Path) -> None:
    put(many, [WHEELS[1], WHEELS[0], WHEELS[2]])
    with pytest.raises(SourceError, match=r"many_part_1-1\.0.*is not the file that .* names"):
        fetch("many")
    assert names(cache) == set()


def test_parts_that_are_named_in_the_wrong_order_make_another_file(cache: Path, many: Path, tmp_path: Path) -> None:
    write_parts(tmp_path, order=(1, 3, 2))
    with pytest.raises(SourceError, match=rf"3 parts of many do not make the file .* expected was {digest(ARCHIVE)}"):
        fetch("many")
    assert names(cache) == set()


def test_a_part_of_another_version_is_not_taken_for_it(cache: Path, many: Path) -> None:
    (many / part_name(2)).rename(many / part_name(2, "1.1"))
    with pytest.raises(SourceError, match=r"many_part_2-1\.0.* could not be downloaded: .* does not have it"):
        fetch("many")
    assert names(cache) == set()


def test_a_part_of_another_version_under_its_name_does_not_join(cache: Path, many: Path, tmp_path: Path) -> None:
    # Pinned as it is, so that only what the parts make tells.
    wheels = [WHEELS[0], make_part(2, os.urandom(len(PARTS[1]))), WHEELS[2]]
    put(many, wheels)
    write_parts(tmp_path, wheels)
    with pytest.raises(SourceError, match=r"the 3 parts of many do not make the file .* of another version"):
        fetch("many")
    assert names(cache) == set()


def test_an_archive_without_its_part_is_named(cache: Path, many: Path, tmp_path: Path) -> None:
    wheels = [WHEELS[0], make_part(2, PARTS[1], "elsewhere/toy.zip.2"), WHEELS[2]]
    put(many, wheels)
    write_parts(tmp_path, wheels)
    with pytest.raises(SourceError, match=r"many_part_2-1\.0\S* holds no file many-part_2/input/toy\.zip\.2"):
        fetch("many")
    assert names(cache) == set()


def test_joined_parts_without_a_member_are_refused(cache: Path, many: Path, tmp_path: Path) -> None:
    write_parts(tmp_path, weights="toy-1.0/other.bin")
    with pytest.raises(SourceError, match=r"the joined parts of many holds no file toy-1\.0/other\.bin"):
        fetch("many")
    assert names(cache) == set()


@pytest.mark.parametrize("copies", [1, 2, 4], ids=["first part", "second part", "unpacking"])
def test_a_full_disk_while_joining_leaves_nothing(
    cache: Path, many: Path, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    count, copy = itertools.count(1), shutil.copyfileobj

    def write_some(content: io.BufferedIOBase, file: io.BufferedIOBase) -> None:
        if next(count) < copies:
            return copy(content, file)
        file.write(content.read(1000))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sources.shutil, "copyfileobj", write_some)
        with pytest.raises(SourceError, match=r"the disk is full: the joined parts of many.*EEUTILS_CACHE"):
            fetch("many")
    assert names(cache) == set()
    assert_whole(fetch("many"))


def test_too_little_disk_is_told_before_anything_is_downloaded(
    cache: Path, parts_online: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parts(tmp_path, megabytes=1000)
    usage = shutil.disk_usage(tmp_path)._replace(free=400_000_000)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SourceError, match=r"1000 MB in .* 400 MB are free, so that 600 MB are missing; free some"):
        fetch("many")
    assert parts_online.ranges == []
    # What is there already need not be written again.
    cache.mkdir(exist_ok=True)
    (cache / f"{part_name(3)}.part").write_bytes(WHEELS[2])
    with pytest.raises(SourceError, match=rf"takes {1000 - len(WHEELS[2]) / 1e6:.0f} MB"):
        fetch("many")
    assert names(cache) == {f"{part_name(3)}.part"}


def test_what_was_joined_by_a_killed_process_is_used_or_written_over(cache: Path, many: Path) -> None:
    cache.mkdir()
    (cache / "many.joined").write_bytes(ARCHIVE[:1000])
    assert_whole(fetch("many"))
    shutil.rmtree(cache / "many")
    (cache / "many.joined").write_bytes(ARCHIVE)
    for number in (1, 2, 3):
        (many / part_name(number)).unlink()
    assert_whole(fetch("many"))
    assert names(cache) == {"many"}


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
        assert all(archive.version in archive.filename for archive in source.archives)
        assert len({member.name for member in source.members}) == len(source.members) > 0
        in_parts = len(source.archives) > 1
        assert bool(source.joined) == in_parts == all(archive.part for archive in source.archives)
        joined = [source.joined] if in_parts else []
        pinned = [*source.archives, *source.members]
        for pin in (*joined, *(part.sha256 for part in pinned)):
            assert re.fullmatch("[0-9a-f]{64}", pin)
