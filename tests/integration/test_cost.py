"""The analytic FLOPs are those that torch itself counts."""

import pytest
import torch

from eeutils.exiting import rules, tradeoff
from eeutils.models.backbone import Backbone
from eeutils.models.cascade import Cascade
from eeutils.models.exits import MultiExitModel, exits_on_all_layers
from eeutils.models.record import record
from eeutils.papers import finetuned
from eeutils.training.settings import Setting
from tests.helpers import accuracy
from tests.tiny import CONFIGS, flops_counted, of_length, tiny_encoder, tiny_samples


# FlopCounterMode sees nothing of attention inside SDPA on a CPU; the eager form is the same work.
@pytest.mark.parametrize("tokens", [3, 17])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layers", [(1, 2, 3, 4), (2, 4), (3,)], ids=str)
def test_flops_of_every_stage_are_those_that_torch_counts(name: str, tokens: int, layers: tuple[int, ...]) -> None:
    backbone = Backbone(tiny_encoder(name, attention="eager"))
    exits = exits_on_all_layers(backbone, 3, "cls", "own")
    model = MultiExitModel(backbone, {layer: exits[layer] for layer in layers}).eval()
    evidence = record(model, of_length(tokens))
    assert evidence.cost["flops"][:, 0].tolist() == flops_counted(model, tokens)
    assert evidence.cost["layers"][:, 0].tolist() == list(layers)


def test_flops_of_a_cascade_are_those_that_torch_counts_model_after_model() -> None:
    backbones = [Backbone(tiny_encoder(attention="eager", num_hidden_layers=depth)) for depth in (1, 2, 4)]
    parts = [MultiExitModel(backbone, exits_on_all_layers(backbone, 2, "mean", "own")).eval() for backbone in backbones]
    model = Cascade(parts).eval()
    for tokens in (3, 17):
        evidence = record(model, of_length(tokens))
        assert evidence.cost["flops"][:, 0].tolist() == flops_counted(model, tokens)
        assert evidence.cost["layers"][:, 0].tolist() == [1, 3, 7]
        plain = MultiExitModel(backbones[-1], {4: parts[-1].exit_at(-1)}).eval()
        assert evidence.reference["flops"].tolist() == flops_counted(plain, tokens)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_is_the_plain_model_with_its_one_head(name: str) -> None:
    backbone = Backbone(tiny_encoder(name, attention="eager"))
    exits = exits_on_all_layers(backbone, 2, "cls", "shared")
    plain = MultiExitModel(backbone, {4: exits[4]}).eval()
    every = MultiExitModel(backbone, exits).eval()
    for tokens in (3, 17):
        counted = flops_counted(plain, tokens)
        for model in (plain, every):
            evidence = record(model, of_length(tokens))
            assert evidence.reference["flops"].tolist() == counted
            assert evidence.reference["layers"].tolist() == [4]
        assert record(plain, of_length(tokens)).cost["flops"].tolist() == [counted]


def test_a_truncated_model_is_measured_against_the_whole_encoder(encoder_folder: str) -> None:
    setting = Setting(backbone=encoder_folder)
    models = [finetuned.build(setting, 2, finetuned.METHOD.with_options(layers=layers)) for layers in (None, 2)]
    assert (models[1].layers, models[1].reference_layers) == ((2,), 4)
    whole, half = (record(model, of_length(5, 30)) for model in models)
    for kind in ("layers", "flops"):
        assert torch.equal(half.reference[kind], whole.reference[kind])
        assert (half.cost[kind] < 0.6 * whole.cost[kind]).all()


def test_each_sample_costs_what_its_own_length_does_without_padding() -> None:
    backbone = Backbone(tiny_encoder(attention="eager"))
    model = MultiExitModel(backbone, exits_on_all_layers(backbone, 2, "cls", "own")).eval()
    samples = tiny_samples(7)
    evidence = record(model, samples, batch_size=7)
    for row, length in enumerate(samples.lengths.tolist()):
        assert evidence.cost["flops"][:, row].tolist() == flops_counted(model, length)
    # With all heads on the way the last exit costs a little more than the plain model.
    last = tradeoff.at_threshold(evidence, rules.entropy(), accuracy, rules.NEVER)
    assert last["layer_speedup"] == 1
    assert 0.9 < last["flops_speedup"] < 1
