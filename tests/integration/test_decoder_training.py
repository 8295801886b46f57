"""Exits of a decoder learn from one recorded pass, and a run is found again."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eeutils.errors import InputError
from eeutils.exiting import tradeoff
from eeutils.exiting.rules import NEVER
from eeutils.models.decoder import Decoder
from eeutils.models.token_exits import TokenExitModel
from eeutils.papers import calm
from eeutils.training import decoders
from eeutils.training.recorded_exits import fit_judge, linear_maps, start_from, words_of, words_of_linear
from eeutils.training.settings import Setting


def test_what_is_trained_is_found_again_and_the_same(repeating: Setting) -> None:
    run = decoders.with_exits(repeating)
    assert run.exits == (1, 2, 3)  # every layer of a shallow decoder
    gate = run.learned
    assert list(gate.layer) == [1, 2, 3]
    assert gate.agrees.between(0, 1).all()
    losses = pd.read_csv(decoders.finetuned(repeating) / "history.csv").loss
    assert losses.iloc[-1] < losses.iloc[0]
    again = decoders.with_exits(repeating)
    assert again.directory == run.directory
    weights = [each.model.state_dict() for each in (run, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    evidence = run.evidence("test")
    assert evidence.samples == sum(sum(types) - 1 for types in decoders.prompts_of(repeating, "test").types)
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


def test_what_cannot_be_trained_on_is_told(repeating: Setting, decoder_folder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="profile"):
        decoders.decoder_setting("huge", repeating.task, decoder_folder, 0)
    with pytest.raises(InputError, match="measure"):
        calm.rule_of("entropy")
