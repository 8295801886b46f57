"""What every test stands on: offline, checked shapes, and tiers by folder."""

import os

# Before anything imports a library that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Every tensor that passes a function of eeutils is held to the shape and type that its signature states. The tower of
# PEP 484: where a float is wanted, an int will do.
install_import_hook("eeutils", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Two busy cores make single examples slow now and then, which says nothing about the code.
settings.register_profile("eeutils", deadline=None)
settings.load_profile("eeutils")

TESTS = Path(__file__).parent
TIERS = {"unit": "unit", "integration": "integration", "notebooks": "notebooks", "test_readme.py": "readme"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the tier of its folder, and run the quick tiers first; where several processes share them,
    the notebooks, which take longest and are one file."""
    order = list(TIERS.values())
    if os.environ.get("PYTEST_XDIST_WORKER"):
        order.sort(key=lambda tier: tier != "notebooks")
    tiers = {}
    for item in items:
        tiers[item] = TIERS[item.path.relative_to(TESTS).parts[0]]
        item.add_marker(tiers[item])
    items.sort(key=lambda item: order.index(tiers[item]))


@pytest.fixture(scope="session", autouse=True)
def runs_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trained models go to a folder of this session: none is left behind, none from before is taken for a new one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EEUTILS_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield
