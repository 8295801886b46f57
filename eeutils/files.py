"""Where things lie, and how they are written: whole or not at all."""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def repository_root() -> Path:
    """The folder that holds `data/` and `notebooks/`: the parent of the package, which is installed in place."""
    return Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """Where downloads are kept: `$EEUTILS_CACHE`, or `~/.cache/eeutils`."""
    return Path(os.environ.get("EEUTILS_CACHE", Path.home() / ".cache" / "eeutils"))


@contextmanager
def explain_full_disk(path: Path | str) -> Iterator[None]:
    """Turn "no space left" into an OSError (errno ENOSPC) that says what was being written and what to do."""
    try:
        yield
    except Exception as error:
        # safetensors and torch report a full disk in words only.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or any(words in str(error) for words in ("No space left", "quota exceeded")):
            message = f"the disk is full: {path} was not written; free some space and run again, it goes on from there"
            raise OSError(errno.ENOSPC, message) from error
        raise


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place in one step, on failure it is removed.

    Works for a file and for a directory (the caller creates it). A reader never meets half a result: where the process
    is killed, only a `.partial-*` name is left, which nothing reads.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".partial-{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        with explain_full_disk(path):
            yield partial
        old = partial.with_name(f"{partial.name}-old")
        if partial.is_dir() and path.exists():
            # A directory cannot be replaced in one step: move the old one aside, so that a crash leaves one of the two.
            os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def sha256(path: Path | str) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
