"""Write requirements.lock: the version of every installed package that pyproject.toml leads to.

Run it through `make lock` after changing a range in pyproject.toml and installing what it asks for:

    .venv/bin/python -m pip install --upgrade --upgrade-strategy eager --editable ".[test,dev]" && make lock
"""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# The installer's own tools: a lock that pins them would have pip replace itself while it runs.
INSTALLERS = {"pip", "setuptools", "wheel"}

HEADER = """\
# The whole environment, pinned; written by `make lock`, not by hand. Python 3.11.
# torch carries no build tag, so that a machine gets the build (CPU or CUDA) that its own package index offers.
"""


def main() -> None:
    """Follow the requirements of pyproject.toml through the installed packages and write what was met."""
    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    waiting = [Requirement(line) for line in project["dependencies"] + [line for extra in extras for line in extra]]
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
            installed = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement} is not installed; requirements.lock was left alone") from None
        pins[name] = Version(installed.version).public
        # A marker such as `extra == "http"` holds for the extras asked for, and for none of them when there are none.
        for needed in map(Requirement, installed.requires or []):
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in requirement.extras or {""}):
                waiting.append(needed)
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    (root / "requirements.lock").write_text(HEADER + lines)
    print(f"requirements.lock: {len(pins)} packages")


if __name__ == "__main__":
    main()
