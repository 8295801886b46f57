"""SmartBERT on a tiny encoder: gates that really skip, their cost, what training mixes, and training to runtime."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from eeutils.data.samples import Samples
from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.models.backbone import Backbone
from eeutils.models.exits import ExitState
from eeutils.models.gates import AsTrained, BlindGate, Gate, GatedModel
from eeutils.models.record import record, record_features
from eeutils.models.runtime import Runtime
from eeutils.papers import smartbert
from eeutils.papers.smartbert import METHOD, SmartModel, SmartOptions
from eeutils.training import loop
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.helpers import answers_of
from tests.tiny import CONFIGS, flops_counted, of_length, tiny_encoder, tiny_samples

RULE = METHOD.rules["entropy"]
SAMPLES = tiny_samples(24)
DEPTH = 4


def model_of(
    name: str = "bert", pool: str = "mean", classes: int = 2, attention: str = "sdpa", soft_passes: int = 0
) -> SmartModel:
    """A tiny model whose gates let about half of `SAMPLES` pass, and whose exits differ in how sure they are."""
    backbone = Backbone(tiny_encoder(name, attention=attention))
    torch.manual_seed(1)
    gates = [Gate(backbone.width, pool, 2, 8) for _ in range(backbone.depth)]
    model = SmartModel(backbone, classes, pool, gates, soft_passes).eval()
    for head in model.exits.values():
        nn.init.normal_(head.classifier.weight, std=1.5)
    for layer, gate in enumerate(model.gates):
        nn.init.normal_(gate.score.weight, std=4.0)
        middle = record(model, SAMPLES).extras["gate"][layer].logit().median()
        with torch.no_grad():
            # Between two samples, so that no last digit decides.
            gate.score.bias -= middle + 0.01
    return model


def without_dropout(model: SmartModel) -> SmartModel:
    """In training mode, but deterministic: what is trained is then what is used."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "rate"):
            module.rate = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return model


def skipped_of(model: GatedModel, samples: Samples = SAMPLES) -> Tensor:
    return record(model, samples).extras["skipped"].bool()


@contextmanager
def counted(model: GatedModel) -> Iterator[dict[str, list[int]]]:
    """How many sentences each layer and each exit has worked on, by hooks."""
    counts = {"layers": [0] * model.backbone.depth, "exits": [0] * model.stages}

    def hook(kind: str, place: int, inputs: tuple[Tensor, ...]) -> None:
        counts[kind][place] += len(inputs[0])

    handles = [
        part.register_forward_pre_hook(lambda _, inputs, kind=kind, place=place: hook(kind, place, inputs))
        for kind, parts in (
            ("layers", model.backbone.layers),
            ("exits", [model.exit_at(stage).classifier for stage in range(model.stages)]),
        )
        for place, part in enumerate(parts)
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("albert", "albert, two groups")])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_layer_runs_for_those_who_do_not_skip_it_and_its_exit_is_asked_for_them_alone(
    name: str, batch_size: int
) -> None:
    model = model_of(name)
    with counted(model) as ran:
        evidence = record(model, SAMPLES, batch_size=batch_size)
    run = ~evidence.extras["skipped"].bool()
    assert 0 < run.sum() < run.numel()
    assert run.sum(dim=1).min() > 0
    assert ran["layers"] == run.sum(dim=1).tolist()
    assert torch.equal(evidence.cost["layers"], run.double().cumsum(dim=0))
    # The last exit answers everybody, the others those who have run their layer.
    assert ran["exits"] == [*run[:-1].sum(dim=1).tolist(), len(SAMPLES)]


def test_an_albert_whose_layers_share_weights_skips_them_as_well() -> None:
    model = model_of("albert")
    with counted(model) as ran:
        evidence = record(model, SAMPLES, batch_size=5)
    # All layers are one module, and each of its hooks sees all that it does.
    assert set(ran["layers"]) == {int(evidence.cost["layers"][-1].sum())}


@pytest.mark.parametrize("tokens", [3, 17])
def test_flops_of_every_stage_are_those_that_torch_counts(tokens: int) -> None:
    model, samples = model_of(attention="eager"), of_length(tokens)
    for skips in ([], [1], [2, 3], [4], [1, 2, 3, 4]):
        for layer, gate in enumerate(model.gates, 1):
            nn.init.constant_(gate.score.bias, 1e4 if layer in skips else -1e4)
        evidence = record(model, samples)
        assert evidence.cost["layers"][-1].tolist() == [DEPTH - len(skips)]
        with sdpa_kernel(SDPBackend.MATH):
            assert evidence.cost["flops"][:, 0].tolist() == flops_counted(model, tokens)


def test_a_skipped_layer_costs_its_gate_only() -> None:
    model = model_of()
    evidence = record(model, SAMPLES)
    costs = evidence.cost["flops"].diff(dim=0, prepend=torch.zeros(1, len(SAMPLES)))
    gates = torch.stack([gate.flops(SAMPLES.lengths) for gate in model.gates])
    skipped = evidence.extras["skipped"].bool()
    assert torch.equal(costs[1:-1][skipped[1:-1]], gates[1:-1][skipped[1:-1]])
    assert (costs[1:][~skipped[1:]] > 5 * gates[1:][~skipped[1:]]).all()


def test_the_plain_model_that_speed_ups_refer_to_has_neither_gates_nor_small_exits() -> None:
    model = model_of()
    tokens = SAMPLES.lengths
    whole = model.backbone.whole_pass(torch.ones(1, 5, dtype=torch.long), DEPTH).flops
    reference = model.reference(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.long))
    assert (reference.flops - whole).tolist() == [2 * 16 * (16 + 2)]
    assert record(model, SAMPLES).reference["layers"].tolist() == [DEPTH] * len(tokens)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_batch_does_what_each_sentence_alone_does(pool: str) -> None:
    model = model_of(pool=pool)
    alone, together = (record(model, SAMPLES, batch_size=size) for size in (1, 8))
    assert torch.equal(alone.extras["skipped"], together.extras["skipped"])
    assert torch.equal(alone.cost["flops"], together.cost["flops"])
    torch.testing.assert_close(alone.logits, together.logits, atol=1e-5, rtol=1e-5)


def test_padding_may_stand_in_front() -> None:
    # Those who run a layer are a batch of their own without columns that are padding for all of them: what the layer
    # gave must go back to where each token stands.
    model, batch = model_of(), SAMPLES.batch(range(12))
    rolled = [
        torch.stack([row.roll(int((mask == 0).sum())) for row, mask in zip(part, batch.attention_mask, strict=True)])
        for part in (batch.input_ids, batch.attention_mask)
    ]
    with torch.no_grad():
        used, trained = model.all_stages(*rolled), AsTrained(model).all_stages(*rolled)
    assert torch.equal(used.extras["skipped"], trained.extras["skipped"])
    assert 0 < used.extras["skipped"].mean() < 1
    torch.testing.assert_close(used.logits[-1], trained.logits[-1], atol=1e-5, rtol=1e-5)


def test_each_sentence_passes_the_layers_that_its_gates_leave() -> None:
    model = model_of()
    evidence = record(model, SAMPLES)
    for row in range(0, len(SAMPLES), 3):
        hidden = model.backbone.embed(*SAMPLES.batch([row]).inputs)
        with torch.no_grad():
            for layer in range(DEPTH):
                if not model.gates[layer](hidden) >= 0.5:
                    hidden = model.backbone.run_layer(layer, hidden)
                    said = model.exit_at(layer)(ExitState(hidden, hidden))[1].logits
                    torch.testing.assert_close(evidence.logits[layer, row], said[0], atol=1e-5, rtol=1e-5)
            said = model.exit_at(-1)(ExitState(hidden, hidden))[1].logits
        torch.testing.assert_close(evidence.logits[-1, row], said[0], atol=1e-5, rtol=1e-5)


def test_where_a_layer_is_skipped_the_last_word_stands_and_nobody_leaves() -> None:
    evidence = record(model_of(), SAMPLES)
    skipped, before = evidence.extras["skipped"].bool(), torch.zeros_like(evidence.logits[0])
    for stage in range(DEPTH - 1):  # the last exit answers whatever the state is
        assert torch.equal(evidence.logits[stage][skipped[stage]], before[skipped[stage]])
        before = evidence.logits[stage]
    readiness = RULE.readiness(evidence)
    assert (readiness[skipped] == -math.inf).all()
    assert torch.equal(readiness[~skipped], rules.entropy().readiness(evidence)[~skipped])
    # The loosest threshold: everybody leaves at the first layer that runs.
    first = torch.where(skipped[:-1].all(dim=0), DEPTH - 1, (~skipped).int().argmax(dim=0))
    assert torch.equal(tradeoff.decide(evidence, RULE, 0.0).stages, first)


def closed(model: SmartModel, *layers: int) -> GatedModel:
    return model.with_gates([BlindGate(float(layer in layers)) for layer in range(1, DEPTH + 1)])


def test_if_the_last_layer_is_skipped_the_last_exit_reads_an_earlier_state() -> None:
    model = model_of()
    evidence = record(closed(model, 4), SAMPLES)
    batch = SAMPLES.batch(range(len(SAMPLES)))
    with torch.no_grad():
        hidden = model.backbone.embed(*batch.inputs)
        for layer in range(3):
            hidden = model.backbone.run_layer(layer, hidden)
        said = model.exit_at(-1)(ExitState(hidden, hidden))[1].logits
    torch.testing.assert_close(evidence.logits[-1], said, atol=1e-5, rtol=1e-5)
    assert evidence.cost["layers"][-1].tolist() == [3] * len(SAMPLES)
    outcome = Runtime(closed(model, 4), RULE)(SAMPLES, batch_size=5)
    torch.testing.assert_close(outcome.logits.float(), evidence.logits[-1], atol=1e-5, rtol=1e-5)
    assert outcome.stages.tolist() == [3] * len(SAMPLES)


def test_if_all_layers_are_skipped_the_last_exit_reads_the_embeddings() -> None:
    model = model_of()
    everything = closed(model, 1, 2, 3, 4)
    with counted(everything) as ran:
        evidence = record(everything, SAMPLES)
    assert ran == {"layers": [0] * 4, "exits": [0, 0, 0, len(SAMPLES)]}
    hidden = model.backbone.embed(*SAMPLES.batch(range(len(SAMPLES))).inputs)
    with torch.no_grad():
        said = model.exit_at(-1)(ExitState(hidden, hidden))[1].logits
    torch.testing.assert_close(evidence.logits[-1], said, atol=1e-5, rtol=1e-5)
    assert torch.equal(evidence.cost["flops"][-1], model.exit_at(-1).flops(SAMPLES.lengths))
    assert tradeoff.decide(evidence, RULE, 0.0).stages.tolist() == [3] * len(SAMPLES)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_runtime_equals_the_sweep(classes: int, batch_size: int) -> None:
    model = model_of(classes=classes)
    evidence = record(model, SAMPLES)
    for threshold in (0.0, 0.02, 0.1, 0.3, rules.NEVER):
        simulated = tradeoff.decide(evidence, RULE, threshold)
        with counted(model) as ran:
            outcome = Runtime(model, RULE, threshold)(SAMPLES, batch_size=batch_size)
        assert torch.equal(outcome.stages, simulated.stages)
        torch.testing.assert_close(outcome.logits.float(), simulated.logits.float(), atol=1e-5, rtol=1e-5)
        spent = evidence.cost["layers"][simulated.stages, torch.arange(len(SAMPLES))]
        assert sum(ran["layers"]) == spent.sum()
    assert len(set(tradeoff.decide(evidence, RULE, 0.1).stages.tolist())) > 2


def test_gates_decide_in_training_as_they_do_in_use() -> None:
    model = model_of()
    used, batch = record(model, SAMPLES), SAMPLES.batch(range(len(SAMPLES)))
    with torch.no_grad():
        trained = without_dropout(model)(*batch.inputs)
    run = ~used.extras["skipped"].bool()
    assert torch.equal(trained.extras["weight"], (~run).float())
    torch.testing.assert_close(trained.extras["gate"], used.extras["gate"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trained.logits[run], used.logits[run], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trained.logits[-1], used.logits[-1], atol=1e-5, rtol=1e-5)


def test_exits_are_trained_on_what_their_layer_gives_even_where_its_gate_would_skip() -> None:
    model, batch = model_of(), SAMPLES.batch(range(len(SAMPLES)))
    with torch.no_grad():
        trained = without_dropout(model)(*batch.inputs)
        hidden = model.backbone.embed(*batch.inputs)
        for layer in range(DEPTH - 1):
            skips = model.gates[layer](hidden) >= 0.5
            output = model.backbone.run_layer(layer, hidden)
            said = model.exit_at(layer)(ExitState(output, output))[1].logits
            torch.testing.assert_close(trained.logits[layer], said)
            hidden = replace(output, states=torch.where(skips[:, None, None], hidden.states, output.states))


def test_soft_weights_mix_and_give_way_to_hard_ones_after_so_many_passes() -> None:
    model, batch = without_dropout(model_of(soft_passes=2)), SAMPLES.batch(range(8))
    with torch.no_grad():
        hidden = model.backbone.embed(*batch.inputs)
        for layer in range(DEPTH):
            gate = model.gates[layer](hidden)[:, None, None]
            output = model.backbone.run_layer(layer, hidden)
            hidden = replace(output, states=(1 - gate) * output.states + gate * hidden.states)
        said = model.exit_at(-1)(ExitState(hidden, hidden))[1].logits
    for _ in range(2):
        answers = model(*batch.inputs)
        assert torch.equal(answers.extras["weight"], answers.extras["gate"])
        torch.testing.assert_close(answers.logits[-1], said)
    hard = model(*batch.inputs)
    assert set(hard.extras["weight"].unique().tolist()) == {0.0, 1.0}
    # In the second stage the encoder is frozen, and weights are hard however soft they were before.
    softer = without_dropout(model_of(soft_passes=99))
    softer.backbone.requires_grad_(False)
    assert set(softer(*batch.inputs).extras["weight"].unique().tolist()) == {0.0, 1.0}
    assert int(softer.passes) == 0
    # In use a passing gate is a passing gate, whatever training counts.
    assert set(record(model_of(soft_passes=99), SAMPLES).extras["skipped"].unique().tolist()) == {0.0, 1.0}


def test_a_hard_skip_gives_its_layer_no_gradient_from_that_sample_while_its_gate_learns() -> None:
    # Trap 2 of the reference: only those who run a layer teach it.
    model, batch = without_dropout(model_of()), SAMPLES.batch(range(len(SAMPLES)))
    answers = model(*batch.inputs)
    layer, gate = model.backbone.layers[1], model.gates[1]
    skips = answers.extras["weight"][1].detach().bool()
    each = loop.answer_loss(answers.logits[-1:], batch.labels)[0]

    def length(loss: Tensor, module: nn.Module) -> float:
        grads = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
        return sum(float(grad.abs().sum()) for grad in grads if grad is not None)

    assert 0 < skips.sum() < len(skips)
    for row, skip in enumerate(skips.tolist()):
        assert (length(each[row], layer) == 0) == skip
        assert length(each[row], gate) > 0


def test_the_gradient_of_a_decision_is_that_of_its_probability() -> None:
    # Through the mixture written out: d loss / d g = d loss / d h . (h_before - f(h_before)) at the hard state.
    model, batch = without_dropout(model_of()), SAMPLES.batch(range(6))
    answers = model(*batch.inputs)
    loss = loop.answer_loss(answers.logits[-1:], batch.labels).mean()
    got = torch.autograd.grad(loss, model.gates[3].score.bias)[0]
    with torch.no_grad():
        hidden = model.backbone.embed(*batch.inputs)
        for layer in range(3):
            skips = model.gates[layer](hidden) >= 0.5
            output = model.backbone.run_layer(layer, hidden)
            hidden = replace(output, states=torch.where(skips[:, None, None], hidden.states, output.states))
        gate, output = model.gates[3](hidden), model.backbone.run_layer(3, hidden)
    weight = (gate >= 0.5).float().requires_grad_()
    mixed = (1 - weight)[:, None, None] * output.states + weight[:, None, None] * hidden.states
    mixture = replace(output, states=mixed)
    logits = model.exit_at(-1)(ExitState(mixture, mixture))[1].logits
    by_weight = torch.autograd.grad(loop.answer_loss(logits[None], batch.labels).mean(), weight)[0]
    torch.testing.assert_close(got[0], (by_weight * gate * (1 - gate)).sum())


def test_as_trained_every_exit_reads_for_everybody_and_charges_what_use_would_cost() -> None:
    model = model_of()
    used, trained = record(model, SAMPLES), record(AsTrained(model), SAMPLES)
    run = ~used.extras["skipped"].bool()
    assert torch.equal(used.cost["flops"], trained.cost["flops"])
    assert torch.equal(used.cost["layers"], trained.cost["layers"])
    torch.testing.assert_close(used.logits[run], trained.logits[run], atol=1e-5, rtol=1e-5)
    _, features = record_features(AsTrained(model), SAMPLES, batch_size=5)
    assert features.shape == (DEPTH, len(SAMPLES), smartbert.INNER)
    said = model.exit_at(1).classifier(features[1])
    torch.testing.assert_close(said, trained.logits[1], atol=1e-5, rtol=1e-5)


def test_other_gates_before_the_same_layers() -> None:
    model = model_of()
    off = record(closed(model), SAMPLES)
    assert off.cost["layers"][-1].tolist() == [DEPTH] * len(SAMPLES)
    # Nobody is asked whether to skip, so no gate is paid.
    gates = sum(gate.flops(SAMPLES.lengths) for gate in model.gates)
    assert (off.cost["flops"][-1] + gates >= record(model, SAMPLES).cost["flops"][-1]).all()
    alone = record(model.with_gates(list(model.gates), only_last_exit=True), SAMPLES)
    both = record(model, SAMPLES)
    assert alone.layers == (DEPTH,)
    torch.testing.assert_close(alone.logits[-1], both.logits[-1], atol=1e-5, rtol=1e-5)
    run = ~both.extras["skipped"].bool()[:-1]
    exits = (run * torch.stack([model.exit_at(stage).flops(SAMPLES.lengths) for stage in range(3)])).sum(dim=0)
    assert torch.equal(alone.cost["flops"][0] + exits, both.cost["flops"][-1])
    # The higher the threshold, the fewer skip.
    layers = [
        record(model.with_gates(list(model.gates), threshold=t), SAMPLES).cost["layers"][-1].mean() for t in (0.1, 0.9)
    ]
    assert layers[0] < layers[1]


def test_a_blind_gate_skips_as_often_as_it_says_and_knows_no_sample() -> None:
    hidden = Backbone(tiny_encoder()).embed(*SAMPLES.take([0] * 400).batch(range(400)).inputs)
    for probability in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        drawn = BlindGate(probability)(hidden)
        assert set(drawn.tolist()) <= {0.0, 1.0}
        assert drawn.mean().item() == pytest.approx(probability, abs=0.07)
    before = torch.get_rng_state()
    BlindGate(1.0)(hidden)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(InputError, match=r"skipped with a probability in \[0, 1\]; got 1.5"):
        BlindGate(1.5)


def test_a_model_needs_a_gate_for_each_layer_and_an_exit_on_the_last() -> None:
    model = model_of()
    with pytest.raises(InputError, match="4 layers needs as many gates and an exit on its last layer; got 3 gates"):
        GatedModel(model.backbone, {4: model.exit_at(-1)}, [BlindGate(0.0)] * 3)
    with pytest.raises(InputError, match=r"exits on layers \[2\]"):
        GatedModel(model.backbone, {2: model.exit_at(-1)}, [BlindGate(0.0)] * 4)


def unit(vector: Tensor) -> list[float]:
    return (vector / vector.norm()).tolist()


@pytest.mark.parametrize("positive_counts", [True, False])
def test_the_contrast_is_that_of_a_plain_loop(positive_counts: bool) -> None:
    torch.manual_seed(0)
    ours, theirs, temperature = torch.randn(3, 5, 4), torch.randn(3, 5, 4), 0.55
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [0, 1, 1, 0, 0]]).bool()  # padding may stand in front
    wanted = []
    for sentence in range(3):
        real = [token for token in range(5) if mask[sentence, token]]
        terms = []
        for token in real:
            alike = {
                other: sum(
                    a * b for a, b in zip(unit(ours[sentence, token]), unit(theirs[sentence, other]), strict=True)
                )
                / temperature
                for other in real
            }
            bottom = sum(math.exp(alike[other]) for other in real if positive_counts or other != token)
            terms.append(-math.log(math.exp(alike[token]) / bottom))
        wanted.append(sum(terms) / len(terms))
    got = smartbert.contrast(ours, theirs, mask, temperature, positive_counts)
    assert got.tolist() == pytest.approx(wanted, rel=1e-5)


def test_one_token_alone_has_nobody_to_be_told_from() -> None:
    ours = torch.randn(1, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    for positive_counts in (True, False):
        loss = smartbert.contrast(ours, torch.randn(1, 3, 4), mask, 0.5, positive_counts)
        assert loss.item() == pytest.approx(0.0, abs=1e-6)
        assert torch.autograd.grad(loss.sum(), ours)[0].isfinite().all()


def test_a_layer_that_is_skipped_is_contrasted_with_itself() -> None:
    # Trap 8: the inputs of two layers are the same state where the first is skipped, so one map of both gives NCE of
    # equal vectors, the least that it can be for that sentence.
    model = without_dropout(model_of())
    for gate in model.gates:
        nn.init.constant_(gate.score.bias, 1e4)
    for place in range(1, DEPTH):
        model.input_maps[place] = model.input_maps[0]
    batch = SAMPLES.batch([0])
    with torch.no_grad():
        extras = model(*batch.inputs).extras
        hidden = model.backbone.embed(*batch.inputs)
        same = model.input_maps[0](hidden.states)
        wanted = smartbert.contrast(same, same, hidden.attention_mask, smartbert.TEMPERATURES[0], True)
    assert extras["contrast"][0].tolist() == [0.0]
    torch.testing.assert_close(extras["contrast"][1:], wanted.expand(DEPTH - 1, 1))


def losses(options: SmartOptions, gate: Tensor, weight: Tensor, contrast: Tensor | None = None) -> Tensor:
    logits = torch.zeros(len(gate), gate.shape[1], 2)
    extras = {"gate": gate, "weight": weight, "contrast": torch.zeros_like(gate) if contrast is None else contrast}
    batch = SAMPLES.batch(range(gate.shape[1]))
    return smartbert.shaping_loss(options, model_of(), answers_of(logits, **extras), batch)


def test_the_published_skip_term_hardly_tells_a_skip_from_none_and_a_price_does() -> None:
    # Trap 1, for six layers: at g = .5 its slope in the mean gate of a layer is -lamada / 9.
    gate = torch.full((6, 2), 0.5, requires_grad=True)
    none = SmartOptions(lamada=0.04, skip_term="published", contrast_layers=0.0)
    losses(none, gate, gate.detach()).backward()
    assert gate.grad.sum(dim=1).tolist() == pytest.approx([-0.04 / 9] * 6, rel=1e-5)
    nobody, everybody = torch.full((6, 2), 0.49), torch.full((6, 2), 0.51)
    for term, gained in (("published", 0.04 * (1 / 2.94 - 1 / 3.06)), ("price", 0.04)):
        options = replace(none, skip_term=term)
        first, second = (losses(options, g, (g >= 0.5).float()) for g in (nobody, everybody))
        assert (first - second).item() == pytest.approx(gained, rel=1e-3)


def test_the_losses_of_both_stages_are_as_they_are_written() -> None:
    torch.manual_seed(0)
    gate, contrast, logits = torch.rand(4, 6), torch.rand(4, 6), torch.randn(4, 6, 2)
    weight, batch = (gate >= 0.5).float(), SAMPLES.batch(range(6))
    answers = answers_of(logits, gate=gate, weight=weight, contrast=contrast)
    each = torch.stack([nn.functional.cross_entropy(stage, batch.labels) for stage in logits])
    for term, skip in (("published", 1 / gate.mean(dim=1).sum()), ("price", (1 - weight).mean())):
        options = SmartOptions(lamada=0.3, skip_term=term, contrast_layers=0.2, contrast_exits=0.1)
        wanted = 0.8 * (each[-1] + 0.3 * skip) + 0.2 * contrast[1:].mean(dim=1).sum()
        got = smartbert.shaping_loss(options, model_of(), answers, batch)
        assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    # Exits 1 .. L-1, and all pairs of neighbours among them.
    wanted = 0.9 * each[:-1].sum() + 0.1 / 2 * (contrast[1].mean() + contrast[2].mean())
    got = smartbert.exits_loss(options, model_of(), answers, batch)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_options_say_what_they_cannot_be(encoder_folder: str) -> None:
    for option, value, sentence in (
        ("lamada", -1.0, "0 or more; got -1.0"),
        ("contrast_layers", 1.0, "from 0 to below 1; got 1.0"),
        ("contrast_exits", math.nan, "contrast_exits is the contrast's share"),
    ):
        with pytest.raises(InputError, match=sentence):
            METHOD.with_options(**{option: value})
    with pytest.raises(InputError, match=r"layers 1 to 4; it cannot drop \[0, 5\]"):
        smartbert.build(Setting(backbone=encoder_folder), 2, METHOD.with_options(dropped=(0, 3, 5)))
    with pytest.raises(InputError, match="is a regression"):
        smartbert.build(Setting(task="movie-valence", backbone=encoder_folder), 1, METHOD.options)


@pytest.fixture
def short(setting: Setting) -> Setting:
    return replace(setting, pool="mean", train_size=40)


@pytest.mark.usefixtures("tiny_tasks")
def test_from_two_stages_to_the_runtime(short: Setting) -> None:
    run = load_or_train(METHOD, short, progress=False, lamada=0.02, skip_term="price")
    assert run.history.phase.tolist() == ["gates and encoder"] * 2 + ["exits"] * 2
    assert run.history.steps.tolist() == [5] * 4
    model = run.model()
    # Six of ten steps were soft, and the second stage does not count.
    assert (model.soft_passes, int(model.passes)) == (6, 10)
    for threshold in (0.0, 0.01, rules.NEVER):
        simulated = tradeoff.decide(run.test, RULE, threshold)
        outcome = Runtime(model, RULE, threshold)(run.samples("test"), batch_size=7)
        assert outcome.stages.tolist() == simulated.stages.tolist()
        torch.testing.assert_close(outcome.logits.float(), simulated.logits.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("tiny_tasks")
def test_the_second_stage_trains_all_exits_but_the_last_and_nothing_else(short: Setting) -> None:
    first = replace(METHOD, name="first", phases=lambda options: smartbert.phases(options)[:1])
    before, after = (load_or_train(method, short, progress=False).model() for method in (first, METHOD))
    moved = {
        name
        for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True)
        if not torch.equal(old, new)
    }
    assert {name.split(".")[0] for name in moved} == {"exits", "exit_maps"}
    assert {name.split(".")[1] for name in moved if name.startswith("exits.")} == {"1", "2", "3"}


@pytest.mark.usefixtures("tiny_tasks")
def test_a_training_that_was_interrupted_hardens_its_gates_at_the_same_step(short: Setting, tmp_path: Path) -> None:
    samples, options = tiny_samples(40), METHOD.options

    def trained(folder: str, break_at: int) -> SmartModel:
        loop.set_seed(0)
        model, calls = smartbert.build(short, 2, options), 0
        phases = smartbert.phases(options)

        def objective(*seen: object) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == break_at:
                raise KeyboardInterrupt
            return smartbert.shaping_loss(options, *seen)

        phases[0] = replace(phases[0], objective=objective)
        loop.fit(model, phases, samples, short, tmp_path / folder, progress=False, checkpoint_seconds=0.0)
        return model

    whole = trained("whole", 0)
    with pytest.raises(KeyboardInterrupt):
        trained("broken", 9)
    again = trained("broken", 0)
    assert int(again.passes) == 10
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name


@pytest.mark.usefixtures("tiny_tasks")
def test_the_control_drops_the_same_layers_for_everybody_and_pays_for_no_gate(short: Setting) -> None:
    run = load_or_train(METHOD, short, progress=False, dropped=(2, 4))
    assert run.test.extras["skipped"].tolist() == [[stage in (1, 3)] * 24 for stage in range(4)]
    exits = [run.model().exit_at(stage).flops(run.samples("test").lengths) for stage in (0, 2, 3)]
    layers = run.test.reference["flops"] - 2 * 16 * 18  # of four whole layers
    assert torch.equal(run.test.cost["flops"][-1], layers / 2 + sum(exits))
