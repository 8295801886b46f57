"""Exits of a decoder learn from one recorded pass, and a run is found again."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eeutils.data.pairs import load_pairs
from eeutils.errors import InputError
from eeutils.exiting import tradeoff
from eeutils.exiting.rules import NEVER
from eeutils.models.decoder import Decoder
from eeutils.models.token_exits import TokenExitModel
from eeutils.papers import calm
from eeutils.training import decoders
from eeutils.training.recorded_exits import fit_judge, linear_maps, start_from, words_of, words_of_linear
from eeutils.training.settings import Setting
from tests.tiny import WORDS, tiny_tokenizer


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
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
def setting(decoder_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
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


def test_what_is_trained_is_found_again_and_the_same(setting: Setting) -> None:
    run = decoders.with_exits(setting)
    assert run.exits == (1, 2, 3)  # every layer of a shallow decoder
    gate = run.learned
    assert list(gate.layer) == [1, 2, 3]
    assert gate.agrees.between(0, 1).all()
    losses = pd.read_csv(decoders.finetuned(setting) / "history.csv").loss
    assert losses.iloc[-1] < losses.iloc[0]
    again = decoders.with_exits(setting)
    assert again.directory == run.directory
    weights = [each.model.state_dict() for each in (run, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    evidence = run.evidence("test")
    assert evidence.samples == sum(sum(types) - 1 for types in decoders.prompts_of(setting, "test").types)
    assert torch.equal(run.evidence("test").logits, evidence.logits)  # read back
    rule = calm.rule_of("classifier")
    thresholds = calm.thresholds_on(run.evidence("dev"), rule, (0.75, 0.5))
    assert thresholds[0] == NEVER
    assert thresholds == sorted(thresholds, reverse=True)
    texts = calm.write(run, {"classifier": (rule, thresholds)}, "test")["classifier"]
    kept = calm.write(run, {"classifier": (rule, thresholds)}, "test")["classifier"]
    assert texts == kept
    table = texts.table()
    assert table["same text"].iloc[0] == 1
    assert table.layers.is_monotonic_decreasing
    curve, fixed = texts.curve()
    whole = tradeoff.at_threshold(curve, fixed, calm.mean_score, curve.stages)
    assert whole["score"] == pytest.approx(table["ROUGE-L"].iloc[0])
    assert (texts.losses("textual")[0] == 0).all()
    assert (texts.losses("risk")[0] == 0).all()


def test_a_map_of_full_rank_begins_as_the_linear_map_and_the_judge_learns() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    decoder = Decoder(LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))).eval()
    model = TokenExitModel(decoder, (1, 2), rank=16).eval()
    top = torch.randn(400, 16)
    mixed = torch.randn(16, 16)
    states = torch.stack([top @ mixed + torch.randn(400, 16), top + 0.1 * torch.randn(400, 16), top])
    maps = linear_maps(states)
    start_from(model, maps)
    assert torch.equal(words_of(model, states)[:-1], words_of_linear(model, maps, states))
    words = words_of(model, states)
    assert (words[1] == words[2]).double().mean() > (words[0] == words[2]).double().mean()
    judge = fit_judge(states, words)
    sure = judge(states[:-1]).detach()[..., 0]
    right = words[:-1] == words[-1]
    assert sure[right].mean() > sure[~right].mean()


def test_what_cannot_be_trained_on_is_told(setting: Setting, decoder_folder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="profile"):
        decoders.decoder_setting("huge", setting.task, decoder_folder, 0)
    with pytest.raises(InputError, match="measure"):
        calm.rule_of("entropy")
