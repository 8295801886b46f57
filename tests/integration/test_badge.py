"""BADGE on a tiny encoder: what the bypass adds and where, what it costs, and the conflict of gradients."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.models.backbone import Backbone
from eeutils.models.exits import MultiExitModel, exits_on_all_layers
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.papers import badge, pabee
from eeutils.papers.badge import BadgeOptions
from eeutils.papers.controls.gradient_conflict import cosines, gradient_products
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.tiny import CONFIGS, flops_counted, of_length, tiny_encoder, tiny_samples

SAMPLES = tiny_samples(12)
BATCH = SAMPLES.batch(range(12))
BYPASSES = tuple(name for name in badge.WIRINGS if name not in ("wide-head", "none"))
CONTROLLED = (*BYPASSES, "wide-head")


def bypassed(wiring: str, pool: str = "mean", name: str = "bert", attention: str = "sdpa", rank: int = 3):
    """A tiny model whose bypasses have weights that matter, as after training."""
    backbone = Backbone(tiny_encoder(name, attention=attention))
    plain = exits_on_all_layers(backbone, 2, pool, "shared")
    options, kind = BadgeOptions(wiring, rank, scale=2.0), badge.WideExit if wiring == "wide-head" else badge.BypassExit
    exits = {layer: kind(head, options) for layer, head in plain.items()}
    torch.manual_seed(3)
    for head in exits.values():
        for part in head.modules():
            if isinstance(part, badge.Bottleneck):
                nn.init.normal_(part.up.weight)
                nn.init.normal_(part.up.bias)
        nn.init.normal_(head.classifier.weight)
    return MultiExitModel(backbone, exits).eval()


def states_of(model: MultiExitModel, batch: Batch = BATCH) -> list[Tensor]:
    """H_0 .. H_L of the encoder as Hugging Face computes them."""
    return model.backbone.model(*batch.inputs, output_hidden_states=True).hidden_states


def token_by_token(states: Tensor, head: badge.BypassExit) -> Tensor:
    """s W_up g(W_down x) on every token, nothing pooled yet."""
    bypass = head.bypass
    narrow = nn.functional.gelu(states @ bypass.down.weight.T + bypass.down.bias)
    return 2.0 * (narrow @ bypass.up.weight.T + bypass.up.bias)


def pooled(states: Tensor, pool: str, mask: Tensor) -> Tensor:
    if pool == "cls":
        return states[:, 0]
    return torch.stack([row[real.bool()].mean(dim=0) for row, real in zip(states, mask, strict=True)])


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("wiring", BYPASSES)
def test_each_wiring_answers_as_its_equation_worked_out_on_every_token(wiring: str, pool: str) -> None:
    model = bypassed(wiring, pool)
    with torch.inference_mode():
        answers, states = model(*BATCH.inputs).logits, states_of(model)
        stream = torch.zeros_like(states[0])
        for layer, head in enumerate(model.exits.values(), 1):
            source = states[layer - 1] if wiring == "parallel" else states[layer]
            beside = token_by_token(source, head)
            stream = stream + beside if wiring == "stream" else beside
            read = pooled(states[layer] + stream, pool, BATCH.attention_mask)
            wanted = head.classifier(torch.tanh(head.pooler.dense(read)))
            torch.testing.assert_close(answers[layer - 1], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wiring", CONTROLLED)
def test_the_trunk_never_sees_a_bypass(wiring: str) -> None:
    model = bypassed(wiring)
    state = model.begin(*BATCH.inputs)
    with torch.inference_mode():
        states = states_of(model)
        for stage in range(model.stages):
            state, _ = model.step(stage, state)
            real = state.hidden.attention_mask
            torch.testing.assert_close(state.hidden.states[real], states[stage + 1][real], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("wiring", badge.WIRINGS)
def test_before_training_every_wiring_answers_as_pabee_s_model(setting: Setting, wiring: str, pool: str) -> None:
    pooling = replace(setting, pool=pool)
    torch.manual_seed(0)
    plain = pabee.build(pooling, 2, pabee.METHOD.options).eval()
    torch.manual_seed(0)
    model = badge.build(pooling, 2, BadgeOptions(wiring)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(*BATCH.inputs).logits, plain(*BATCH.inputs).logits, atol=1e-6, rtol=1e-6)
    if wiring == "none":
        assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("wiring", CONTROLLED)
def test_every_wiring_adds_exactly_as_many_parameters(setting: Setting, wiring: str) -> None:
    def count(options: BadgeOptions) -> int:
        return sum(parameter.numel() for parameter in badge.build(setting, 2, options).parameters())

    added = count(BadgeOptions(wiring, rank=5)) - count(BadgeOptions("none"))
    # Four exits; W_down and W_up of 5 x 16 with their biases.
    assert added == 4 * (2 * 5 * 16 + 5 + 16)


def test_an_unknown_wiring_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"unknown wiring 'parallels' \(did you mean 'parallel'\?\); choose one of: none, "
    ):
        badge.METHOD.with_options(wiring="parallels")


# FlopCounterMode sees nothing of attention inside SDPA on a CPU; the eager form is the same work.
@pytest.mark.parametrize("tokens", [3, 17])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("wiring", CONTROLLED)
def test_flops_are_those_that_torch_counts(wiring: str, pool: str, tokens: int) -> None:
    model = bypassed(wiring, pool, attention="eager")
    assert record(model, of_length(tokens)).cost["flops"][:, 0].tolist() == flops_counted(model, tokens)


@pytest.mark.parametrize("wiring", CONTROLLED)
def test_the_plain_model_that_speed_ups_are_measured_against_has_no_bypass(wiring: str) -> None:
    backbone = Backbone(tiny_encoder())
    without = MultiExitModel(backbone, exits_on_all_layers(backbone, 2, "mean", "shared"))
    ours, theirs = (record(model, of_length(4, 30)).reference["flops"] for model in (bypassed(wiring), without))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("wiring", CONTROLLED)
def test_leaving_early_in_any_batch_answers_as_the_evidence_says(wiring: str, pool: str, batch_size: int) -> None:
    model, rule = bypassed(wiring, pool), rules.divergence()
    evidence = record(model, SAMPLES)
    threshold = tradeoff.threshold_for_speedup(evidence, rule, 1.4)
    simulated = tradeoff.decide(evidence, rule, threshold)
    assert len(set(simulated.stages.tolist())) > 1
    real = Runtime(model, rule, threshold)(SAMPLES, batch_size=batch_size)
    assert real.stages.tolist() == simulated.stages.tolist()
    torch.testing.assert_close(real.logits.float(), simulated.logits.float(), atol=1e-4, rtol=1e-4)


def by_hand(model: MultiExitModel, blocks: Sequence[nn.Module]) -> list[list[Tensor]]:
    """The gradient of each exit's loss on each block, by one backward pass an exit."""
    gradients = []
    for stage in range(model.stages):
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(*BATCH.inputs).logits[stage], BATCH.labels).backward()
        gradients.append(
            [
                torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in block.parameters()])
                for block in blocks
            ]
        )
    return gradients


def test_gradient_cosines_are_those_of_one_backward_pass_an_exit() -> None:
    model = bypassed("parallel")
    blocks = list(model.backbone.model.encoder.layer)
    gradients = by_hand(model, blocks)
    products, overall = gradient_products(model, BATCH), cosines(gradient_products(model, BATCH))
    for i in range(4):
        for j in range(4):
            shared = min(i, j) + 1  # both exits are moved by the blocks up to the shallower one
            ours, theirs = (torch.cat(gradients[exit][:shared]) for exit in (i, j))
            wanted = torch.nn.functional.cosine_similarity(ours, theirs, dim=0).item()
            assert overall[i, j].item() == pytest.approx(wanted, abs=1e-4)
            for block in range(4):
                wanted = (gradients[i][block] @ gradients[j][block]).item()
                assert products[block, i, j].item() == pytest.approx(wanted, rel=1e-3, abs=1e-7)
    assert products[3, 0, 0] == 0


def test_measuring_gradients_leaves_the_model_as_it_was() -> None:
    model = bypassed("stream").train()
    model.zero_grad(set_to_none=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = cosines(gradient_products(model, BATCH))
    assert torch.equal(first, cosines(gradient_products(model, BATCH)))  # without dropout
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_exits_that_want_the_opposite_have_a_cosine_of_minus_1() -> None:
    model = bypassed("parallel")
    # Two exits on one layer's state that read it alike, and whose classifiers are each other's negative.
    deep, shallow = model.exits["2"], model.exits["1"]
    model = MultiExitModel(model.backbone, {1: shallow, 2: deep})
    with torch.no_grad():
        for head in (shallow, deep):
            head.classifier.bias.zero_()
        model.backbone.layers[1].forward = lambda hidden, mask: hidden
        for part in (deep, shallow):
            nn.init.zeros_(part.bypass.up.weight)
            nn.init.zeros_(part.bypass.up.bias)
        shallow.classifier.weight.mul_(1e-3)
        deep.classifier.weight.copy_(-shallow.classifier.weight)
    # Near p = 1/2 the gradient of the logits is nearly the same for both, so that of the state is nearly opposite.
    assert cosines(gradient_products(model, BATCH))[0, 1].item() == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("albert")])
def test_layers_that_share_weights_are_one_block(name: str) -> None:
    groups = 2 if "two" in name else 1
    products = gradient_products(bypassed("parallel", name=name), BATCH)
    assert products.shape == (groups, 4, 4)


@pytest.mark.usefixtures("tiny_tasks")
@pytest.mark.parametrize("wiring", ["parallel", "stream"])
def test_badge_from_training_to_the_runtime(setting: Setting, wiring: str) -> None:
    run = load_or_train(badge.METHOD, setting, progress=False, wiring=wiring)
    model = run.model()
    assert any(head.bypass.up.weight.abs().max() > 0 for head in model.exits.values())
    rule = badge.METHOD.rules["divergence (jsd)"]
    threshold = tradeoff.threshold_for_speedup(run.dev, rule, 1.5)
    simulated = tradeoff.decide(run.test, rule, threshold)
    outcome = Runtime(model, rule, threshold)(run.samples("test"), batch_size=7)
    assert outcome.stages.tolist() == simulated.stages.tolist()


@pytest.mark.usefixtures("tiny_tasks")
def test_without_bypasses_training_gives_pabee_s_model(setting: Setting) -> None:
    ours = load_or_train(badge.METHOD, setting, progress=False, wiring="none")
    theirs = load_or_train(pabee.METHOD, setting, progress=False)
    assert torch.equal(ours.test.logits, theirs.test.logits)


@pytest.mark.usefixtures("tiny_tasks")
def test_badge_on_numbers(setting: Setting) -> None:
    run = load_or_train(badge.METHOD, replace(setting, task="movie-valence", pool="mean"), progress=False)
    curve = tradeoff.sweep(run.test, badge.METHOD.rules["divergence (jsd)"], run.metric)
    assert curve.layers.min() == 2  # the first exit has nothing to compare with
    assert curve.layers.max() == 4
