"""DE3-BERT: the metric space, its loss by hand, its ablations, and the rule from training to the runtime."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting import tradeoff
from eeutils.models.exits import MultiExitModel, pool_tokens
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.papers import de3bert, pabee
from eeutils.papers.controls import prototypes_afterwards
from eeutils.papers.de3bert import De3Options, Regulariser, distance_regulariser, joint_loss
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.helpers import answers_of
from tests.tiny import tiny_model, tiny_samples

DISTANCES = torch.tensor([[[1.0, 2.0], [3.0, 2.0]], [[0.5, 0.0], [1.0, 4.0]]])  # 2 exits, 2 samples, 2 classes
LABELS = torch.tensor([0, 1])
LOGITS = torch.tensor([[[1.0, -1.0], [0.0, 2.0]], [[0.5, 0.0], [0.0, 0.0]]])


def batch_of(labels: torch.Tensor) -> Batch:
    zeros = torch.zeros(len(labels), 2, dtype=torch.long)
    return Batch(zeros, zeros + 1, None, labels, torch.arange(len(labels)))


def build(setting: Setting, classes: int = 3, seed: int = 0) -> MultiExitModel:
    torch.manual_seed(seed)
    return de3bert.build(setting, classes, De3Options(dimension=5)).eval()


def test_distances_are_those_to_each_prototype_in_the_space_of_the_pooled_vector(setting: Setting) -> None:
    model, batch = build(setting), tiny_samples(6).batch(range(6))
    with torch.inference_mode():
        state = model.begin(*batch.inputs)
        for stage, layer in enumerate(model.layers):
            state, answer = model.step(stage, state)
            head = model.exits[str(layer)]
            pooled = torch.tanh(head.pooler.dense(pool_tokens(state.hidden, setting.pool))).numpy()
            weight, prototypes = head.space.metric.weight.numpy(), head.space.prototypes.numpy()
            wanted = [[math.dist(weight @ vector, prototype) for prototype in prototypes] for vector in pooled]
            np.testing.assert_allclose(answer.extras["distances"].numpy(), wanted, atol=1e-5)


def test_exits_share_the_pooler_and_nothing_of_the_space(setting: Setting) -> None:
    exits = list(build(setting).exits.values())
    assert len({id(head.pooler) for head in exits}) == 1
    assert len({id(head.space.metric.weight) for head in exits}) == len(exits)
    assert not torch.equal(exits[0].space.prototypes, exits[1].space.prototypes)


def test_prototypes_start_equally_far_from_each_other(setting: Setting) -> None:
    prototypes = build(setting).exits["2"].space.prototypes.detach()
    apart = torch.pdist(prototypes)
    torch.testing.assert_close(apart, torch.full_like(apart, math.sqrt(2)))


# Squared distances: exit 1 [1, 4] label 0 and [9, 4] label 1; exit 2 [0.25, 0] label 0 and [1, 16] label 1.
CROSS_ENTROPIES = [
    [math.log(1 + math.exp(-3)), math.log(1 + math.exp(-5))],
    [math.log(1 + math.exp(0.25)), math.log(1 + math.exp(15))],
]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("prototypical", CROSS_ENTROPIES),
        (
            "pull",
            [
                [CROSS_ENTROPIES[0][0] + 1, CROSS_ENTROPIES[0][1] + 4],
                [CROSS_ENTROPIES[1][0] + 0.25, CROSS_ENTROPIES[1][1] + 16],
            ],
        ),
        ("hinge", [[0.0, 0.0], [1.25, 16.0]]),
        ("ratio", [[1 / 4, 4 / 9], [0.25 / 1e-6, 16.0]]),
    ],
)
def test_each_form_of_the_regulariser_by_hand(kind: Regulariser, wanted: list[list[float]]) -> None:
    torch.testing.assert_close(distance_regulariser(DISTANCES, LABELS, kind), torch.tensor(wanted))


@pytest.mark.parametrize(("layer_weights", "weights"), [("depth", [1 / 3, 2 / 3]), ("uniform", [1 / 2, 1 / 2])])
def test_the_loss_is_the_weighted_mean_of_both_terms_over_exits(layer_weights: str, weights: list[float]) -> None:
    classifiers = [
        (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-2))) / 2,
        (math.log(1 + math.exp(-0.5)) + math.log(2)) / 2,
    ]
    pulls = [sum(row) / 2 for row in CROSS_ENTROPIES]
    options = De3Options(weight=0.3, regulariser="prototypical", layer_weights=layer_weights)
    loss = joint_loss(options, tiny_model(), answers_of(LOGITS, distances=DISTANCES), batch_of(LABELS)).item()
    wanted = sum(w * (ce + 0.3 * pull) for w, ce, pull in zip(weights, classifiers, pulls, strict=True))
    assert loss == pytest.approx(wanted, rel=1e-5)


def test_unknown_choices_are_named() -> None:
    with pytest.raises(
        InputError, match="unknown regulariser 'cosine'; choose one of: hinge, prototypical, pull, ratio"
    ):
        de3bert.METHOD.with_options(regulariser="cosine")
    with pytest.raises(InputError, match="unknown layer_weights 'late'; choose one of: depth, uniform"):
        de3bert.METHOD.with_options(layer_weights="late")


def test_a_regression_has_no_prototypes(setting: Setting) -> None:
    with pytest.raises(InputError, match=r"needs classes.*'movie-valence' is a regression"):
        de3bert.build(replace(setting, task="movie-valence"), 1, De3Options())


@pytest.mark.parametrize("kind", ["prototypical", "pull", "hinge", "ratio"])
def test_the_regulariser_reaches_the_encoder_and_is_finite_on_top_of_a_prototype(
    setting: Setting, kind: Regulariser
) -> None:
    model, batch = build(setting, classes=2), tiny_samples(6).batch(range(6))
    with torch.no_grad():  # one exit puts every sample exactly on a prototype, where a square root has no slope
        model.exits["1"].space.metric.weight.zero_()
        model.exits["1"].space.prototypes[0].zero_()
    answers = model(*batch.inputs)
    distance_regulariser(answers.extras["distances"], batch.labels, kind).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    moved = {name for name, gradient in gradients.items() if gradient.abs().sum() > 0}
    assert {"exits.3.space.metric.weight", "exits.3.space.prototypes", "exits.1.pooler.dense.weight"} <= moved
    assert any(name.startswith("backbone") for name in moved)
    assert not any("classifier" in name for name in moved)


@pytest.mark.usefixtures("tiny_tasks")
def test_without_weight_training_is_pabee_s_to_the_last_digit(setting: Setting) -> None:
    # The comparison of training with and without the regulariser rests on this.
    without = load_or_train(de3bert.METHOD, setting, progress=False, weight=0.0)
    pabee_run = load_or_train(pabee.METHOD, setting, progress=False)
    torch.testing.assert_close(without.test.logits, pabee_run.test.logits, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("tiny_tasks")
def test_the_ablation_leaves_pabee_s_model_as_it_is_and_learns_the_space(setting: Setting) -> None:
    run = load_or_train(prototypes_afterwards.UNREGULARISED, replace(setting, epochs=4), progress=False)
    parent = load_or_train(pabee.METHOD, replace(setting, epochs=4), progress=False)
    torch.testing.assert_close(run.test.logits, parent.test.logits, atol=1e-6, rtol=1e-6)
    assert run.history.loss.iloc[-1] < run.history.loss.iloc[0]


@pytest.mark.usefixtures("tiny_tasks")
def test_from_training_to_the_runtime(setting: Setting) -> None:
    run = load_or_train(de3bert.METHOD, replace(setting, epochs=4), progress=False)
    assert run.history.loss.iloc[-1] < run.history.loss.iloc[0]
    for name, rule in de3bert.METHOD.rules.items():
        threshold = tradeoff.threshold_for_speedup(run.dev, rule, 1.6)
        simulated = tradeoff.decide(run.test, rule, threshold)
        assert len(simulated.stages.unique()) > 1, name
        outcome = Runtime(run.model(), rule, threshold)(run.samples("test"), batch_size=7)
        assert outcome.stages.tolist() == simulated.stages.tolist(), name


def test_the_hybrid_is_the_paper_s_formula_on_recorded_evidence(setting: Setting) -> None:
    evidence = record(build(setting), tiny_samples(9))
    hybrid = de3bert.METHOD.rules["hybrid"].readiness(evidence)
    for stage in range(evidence.stages):
        for sample in range(evidence.samples):
            p = torch.softmax(evidence.logits[stage, sample].double(), dim=-1).numpy()
            entropy = -(p * np.log(p)).sum() / math.log(len(p))
            distances = evidence.extras["distances"][stage, sample].tolist()
            r1 = distances.pop(int(p.argmax()))
            ratio = (1 + (r1 - min(distances)) / max(r1, min(distances))) / 2
            assert 1 - hybrid[stage, sample].item() == pytest.approx(2 / (1 / ratio + 1 / entropy), rel=1e-9)


def test_embedding_gives_the_distances_that_the_evidence_holds(setting: Setting) -> None:
    model, samples = build(setting), tiny_samples(23)
    evidence, embedded = record(model, samples), prototypes_afterwards.embed(model, samples, batch_size=5)
    own = torch.stack([head.space.prototypes for head in model.exits.values()]).detach()
    again = prototypes_afterwards.with_prototypes(evidence, embedded, own)
    torch.testing.assert_close(again.extras["distances"], evidence.extras["distances"], atol=1e-5, rtol=1e-5)


def test_post_hoc_prototypes_are_the_class_means_and_judge_as_sklearn_s_nearest_centroid() -> None:
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(4, 30, 3, generator=generator), torch.arange(30) % 3
    test = torch.randn(4, 12, 3, generator=generator)
    means = prototypes_afterwards.class_means(train, labels, 3)
    evidence = record(tiny_model(classes=3), tiny_samples(12))
    distances = prototypes_afterwards.with_prototypes(evidence, test, means).extras["distances"]
    for stage in range(4):
        reference = NearestCentroid().fit(train[stage].numpy(), labels.numpy())
        np.testing.assert_allclose(means[stage].numpy(), reference.centroids_, atol=1e-6)
        assert distances[stage].argmin(dim=-1).tolist() == reference.predict(test[stage].numpy()).tolist()
    assert distances[2, 7, 1].item() == pytest.approx(math.dist(test[2, 7].tolist(), means[2, 1].tolist()), rel=1e-5)


def test_a_class_without_a_sample_has_no_mean() -> None:
    with pytest.raises(InputError, match="class 1 has no sample"):
        prototypes_afterwards.class_means(torch.randn(2, 4, 3), torch.tensor([0, 2, 0, 2]), 3)


def test_the_space_costs_what_it_computes(setting: Setting) -> None:
    samples, plain = tiny_samples(4), pabee.build(setting, 3, pabee.METHOD.options)
    ours, without = record(build(setting), samples), record(plain, samples)
    extra = ours.cost["flops"] - without.cost["flops"]
    # 16 wide, 5 dimensions, 3 classes: 2 * 16 * 5 for the map, 3 * 3 * 5 for the distances, at each exit so far.
    wanted = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None] * (160 + 45)
    torch.testing.assert_close(extra, wanted.expand(4, 4))
    assert torch.equal(ours.reference["flops"], without.reference["flops"])
