"""The analytic FLOPs are those that torch itself counts."""

import pytest
import torch

from eeutils.exiting import rules, tradeoff
from eeutils.models.backbone import Backbone
from eeutils.exiting.evidence import record
from eeutils.models.exits import MultiExitModel, own_pooler_exits, shared_pooler_exits
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
    exits = own_pooler_exits(backbone, 3, "cls")
    model = MultiExitModel(backbone, {layer: exits[layer] for layer in layers}).eval()
    assert model.cost(of_length(tokens))[:, 0].tolist() == flops_counted(model, tokens)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_is_the_plain_model_with_its_one_head(name: str) -> None:
    backbone = Backbone(tiny_encoder(name, attention="eager"))
    exits = shared_pooler_exits(backbone, 2, "cls")
    plain = MultiExitModel(backbone, {4: exits[4]}).eval()
    every = MultiExitModel(backbone, exits).eval()
    for tokens in (3, 17):
        length = of_length(tokens)
        assert plain.reference_cost(length).tolist() == flops_counted(plain, tokens)
        assert every.reference_cost(length).tolist() == flops_counted(plain, tokens)
        assert plain.cost(length)[-1].tolist() == plain.reference_cost(length).tolist()


def test_a_truncated_model_is_measured_against_the_whole_encoder(encoder_folder: str) -> None:
    setting = Setting(backbone=encoder_folder)
    whole, half = finetuned.build(setting, 2), finetuned.build(setting, 2, layers=2)
    tokens = of_length(5, 30)
    assert (half.layers, half.reference_layers) == ((2,), 4)
    assert torch.equal(half.reference_cost(tokens), whole.reference_cost(tokens))
    assert (half.cost(tokens) < 0.6 * whole.cost(tokens)).all()


def test_each_sample_costs_what_its_own_length_does_without_padding() -> None:
    backbone = Backbone(tiny_encoder(attention="eager"))
    model = MultiExitModel(backbone, own_pooler_exits(backbone, 2, "cls")).eval()
    samples = tiny_samples(7)
    evidence = record(model, samples, batch_size=7)
    for row, length in enumerate(samples.lengths.tolist()):
        assert evidence.cost[:, row].tolist() == flops_counted(model, length)
    # With all heads on the way the last exit costs a little more than the plain model.
    last = tradeoff.operate(evidence, rules.entropy(), accuracy, rules.NEVER)
    assert last["layer_speedup"] == 1
    assert 0.9 < last["flops_speedup"] < 1
