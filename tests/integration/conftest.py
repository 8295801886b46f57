"""Fixtures: folders with a tiny encoder and a tiny decoder, tiny tasks in the place of real ones, settings of both."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from eeutils.data import tasks
from eeutils.data.pairs import load_pairs
from eeutils.training import decoders, runs
from eeutils.training.settings import Setting
from tests.tiny import END, VOCABULARY, WORDS, tiny_encoder, tiny_task, tiny_tokenizer


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


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A decoder and its tokenizer, as `load_decoder` finds them."""
    folder, tokenizer = tmp_path_factory.mktemp("tiny-decoder"), tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def repeating(decoder_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """To say again what the text begins with, which a tiny decoder learns in a second."""
    monkeypatch.setenv("EEUTILS_RUNS", str(tmp_path / "runs"))
    random = torch.Generator().manual_seed(0)
    rows = []
    for number in range(260):
        a, b, c, d = (WORDS[place] for place in torch.randint(len(WORDS), (4,), generator=random))
        rows.append({"source": f"{a} {b} {c} {d} " + "good " * (number % 7) + f"{number}", "target": f"{b} {a} {b}"})
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    load_pairs.cache_clear()
    return decoders.decoder_setting("smoke", str(file), decoder_folder, 0, train_size=None, epochs=2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """That of decoders with `VOCABULARY` words, of which `END` ends a text."""
    made = tiny_tokenizer()
    made.eos_token = made.convert_ids_to_tokens(END)
    return made


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Of different lengths, for the same decoders."""
    random = torch.Generator().manual_seed(2)
    return [torch.randint(3, VOCABULARY, (count,), generator=random).tolist() for count in (5, 9, 3, 7, 6, 1, 8, 4)]
