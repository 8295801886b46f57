"""Write requirements.lock: the version of every installed package that pyproject.toml leads to. What only the book
needs, the extra `site`, goes to requirements-site.lock.

Run it through `make lock` after changing a range in pyproject.toml and installing what it asks for:

    .venv/bin/python -m pip install --upgrade --upgrade-strategy eager --editable ".[test,dev,site]" && make lock
"""

import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# The installer's own tools: a lock that pins them would have pip replace itself while it runs.
INSTALLERS = {"pip", "setuptools", "wheel"}

SITE = "site"
"""The extra with a lock of its own."""

HEADER = """\
# The whole environment, pinned; written by `make lock`, not by hand. Python 3.11.
# torch carries no build tag, so that a machine gets the build (CPU or CUDA) that its own package index offers.
"""
SITE_HEADER = """\
# What the book needs beside requirements.lock, pinned; written by `make lock`, not by hand. `make site` installs it.
"""


def main() -> None:
    """Follow the requirements of pyproject.toml through the installed packages and write what was met."""
    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    usual = [line for name, lines in extras.items() if name != SITE for line in lines]
    pins = installed(project["dependencies"] + usual)
    more = {name: version for name, version in installed(extras[SITE]).items() if name not in pins}
    for file, header, of_file in (("requirements", HEADER, pins), ("requirements-site", SITE_HEADER, more)):
        lines = "".join(f"{name}=={version}\n" for name, version in sorted(of_file.items()))
        (root / f"{file}.lock").write_text(header + lines)
        print(f"{file}.lock: {len(of_file)} packages")


def installed(requirements: Iterable[str]) -> dict[str, str]:
    """Name -> version of every installed package that requirements lead to."""
    waiting = list(map(Requirement, requirements))
    visited: set[tuple[str, frozenset[str]]] = set()
    pins: dict[str, str] = {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        visit = (name, frozenset(requirement.extras))
        if name in INSTALLERS or visit in visited:
            continue
        visited.add(visit)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement} is not installed; the locks were left alone") from None
        pins[name] = Version(found.version).public
        # A marker such as `extra == "http"` holds for the extras asked for, and for none of them when there are none.
        for needed in map(Requirement, found.requires or []):
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in requirement.extras or {""}):
                waiting.append(needed)
    return pins


if __name__ == "__main__":
    main()
