"""One set of versions: what is declared, what is locked, what conda installs, what runs here."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"].values()
DECLARED = [Requirement(line) for group in (PROJECT["dependencies"], *EXTRAS) for line in group]


def lines_of(lock: str) -> list[str]:
    return [line for line in (ROOT / lock).read_text().splitlines() if line and not line.startswith("#")]


LOCKS = ("requirements.lock", "requirements-site.lock")
LOCKED, SITE = (dict(line.split("==") for line in lines_of(lock)) for lock in LOCKS)


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_is_plain_pins_in_order(lock: str) -> None:
    lines = lines_of(lock)
    pins = [line.split("==")[0] for line in lines]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert pins == sorted(set(pins))
    assert not {"pip", "setuptools", "wheel"} & set(pins)


def test_what_only_the_book_needs_is_pinned_once_and_apart() -> None:
    assert set(LOCKED) & set(SITE) == set()
    of_site = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["site"]}
    assert of_site <= set(SITE)


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_locked_version_is_in_the_declared_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains((LOCKED | SITE)[canonicalize_name(requirement.name)])


@pytest.mark.lock
def test_installed_versions_are_the_locked_ones() -> None:
    # A build tag such as +cpu names another build of the same version.
    assert {name: Version(version(name)).public for name in LOCKED} == LOCKED


def test_conda_installs_the_same_pins() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    [python] = [entry for entry in dependencies if isinstance(entry, str) and entry.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    # Everything but Python, pip and setuptools comes through pip, from the lock; nothing is pinned a second time.
    others = {re.split("[=<>]", entry)[0] for entry in dependencies if isinstance(entry, str)}
    assert others == {"python", "pip", "setuptools"}
    [through_pip] = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert through_pip == ["-r requirements.lock", "-e ."]
