"""Fixtures: a folder with a tiny encoder and tokenizer, the tiny task in the place of real ones, a setting of both."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eeutils.data import tasks
from eeutils.training import runs
from eeutils.training.settings import Setting
from tests.tiny import tiny_encoder, tiny_task, tiny_tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors run faster on one thread, and always in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone as `load_backbone` and `load_tokenizer` find it: configuration, weights, tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-encoder")
    tiny_encoder().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def setting(encoder_folder: str) -> Setting:
    """A setting in which a tiny model learns its task in a second."""
    return Setting(backbone=encoder_folder, epochs=2, batch_size=8, learning_rate=1e-3, max_length=40)


@pytest.fixture
def tiny_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every task is the tiny one, and runs go to a folder of this test."""
    monkeypatch.setenv("EEUTILS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(tasks, "load_task", lambda name, **sizes: tiny_task(name, sizes.get("train_size") or 48))
    caches = (tasks.task_of, runs.samples_of)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()
