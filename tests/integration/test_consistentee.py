"""ConsistentEE on a tiny encoder: what each phase trains, whose cross entropy counts, and training to runtime."""

from dataclasses import replace

import pytest
import torch

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.models.backbone import Backbone
from eeutils.models.exits import MultiExitModel, exits_on_all_layers
from eeutils.models.record import record, record_features
from eeutils.models.runtime import Runtime
from eeutils.papers import consistentee, pabee
from eeutils.papers.consistentee import METHOD, ConsistentOptions, Gradient, policy_loss
from eeutils.papers.controls.frozen_policies import with_policies
from eeutils.training import runs
from eeutils.training.loop import answer_loss
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.tiny import tiny_encoder, tiny_samples

OPTIONS = ConsistentOptions(speed_weight=0.1)


@pytest.fixture
def model() -> MultiExitModel:
    torch.manual_seed(0)
    backbone = Backbone(tiny_encoder())
    return MultiExitModel(backbone, consistentee.policy_exits(backbone, 2, "mean"))


@pytest.fixture
def batch() -> Batch:
    samples = tiny_samples(6)
    notes = {"memorized_layer": (samples.ids, torch.tensor([1, 2, 3, 4, 1, 4]))}
    return samples.with_notes(**notes).batch(range(6))


def test_a_sample_never_receives_cross_entropy_from_an_exit_that_it_did_not_take(model, batch) -> None:
    answers = model.eval()(*batch.inputs)
    answers.logits.retain_grad()
    torch.manual_seed(7)
    policy_loss(OPTIONS, True, model, answers, batch).backward()
    torch.manual_seed(7)
    drawn = consistentee.draw_exits(answers.extras["policy_logit"], consistentee.REPLICAS)
    received = answers.logits.grad.abs().sum(dim=-1)
    took = torch.stack([(drawn == stage).any(dim=0) for stage in range(4)])
    assert not took.all()
    assert torch.equal(received > 0, took)


def test_cross_entropy_counts_as_often_as_an_exit_was_taken(model, batch) -> None:
    answers = model.eval()(*batch.inputs)
    answers.logits.retain_grad()
    torch.manual_seed(7)
    policy_loss(OPTIONS, True, model, answers, batch).backward()
    torch.manual_seed(7)
    drawn = consistentee.draw_exits(answers.extras["policy_logit"], consistentee.REPLICAS)
    wanted = torch.zeros_like(answers.logits)
    for replica in drawn:
        for sample, stage in enumerate(replica.tolist()):
            error = answers.logits[stage, sample].softmax(dim=0).detach()
            error[batch.labels[sample]] -= 1
            wanted[stage, sample] += error / (len(drawn) * len(batch.ids))
    torch.testing.assert_close(answers.logits.grad, wanted)


def test_in_the_policy_s_own_phase_no_answer_is_trained(model, batch) -> None:
    answers = model.eval()(*batch.inputs)
    answers.logits.retain_grad()
    policy_loss(OPTIONS, False, model, answers, batch).backward()
    assert answers.logits.grad is None
    assert model.exits["1"].policy[0].weight.grad.abs().sum() > 0
    # Nobody asks the last exit whether to leave.
    assert model.exits["4"].policy[0].weight.grad.abs().sum() == 0


@pytest.mark.parametrize("gradient", ["sampled", "exact"])
def test_cross_entropy_has_no_say_in_which_exit_is_taken(model, batch, gradient: Gradient) -> None:
    policy = model.exits["2"].policy[2].weight
    gradients = []
    for with_model, consistent in ((False, "one exit"), (True, "one exit"), (True, "all exits")):
        options = replace(OPTIONS, gradient=gradient, consistent=consistent)
        model.zero_grad()
        torch.manual_seed(1)
        answers = model.eval()(*batch.inputs)
        policy_loss(options, with_model, model, answers, batch).backward()
        gradients.append(policy.grad.clone())
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_requiring_all_exits_adds_pabee_s_loss(model, batch) -> None:
    answers = model.eval()(*batch.inputs)
    torch.manual_seed(1)
    alone = policy_loss(OPTIONS, False, model, answers, batch)
    torch.manual_seed(1)
    both = policy_loss(replace(OPTIONS, consistent="all exits"), True, model, answers, batch)
    assert (both - alone).item() == pytest.approx(pabee.weighted_loss(model, answers, batch).item(), rel=1e-4)


def test_a_frozen_classifier_answers_without_dropout_while_its_policy_is_trained(model, batch) -> None:
    model.train()
    model.backbone.eval()
    for head in model.exits.values():
        head.classifier.eval()
    assert torch.equal(model(*batch.inputs).logits, model(*batch.inputs).logits)
    model.exits["1"].classifier.train()
    assert not torch.equal(model(*batch.inputs).logits[0], model(*batch.inputs).logits[0])


def test_the_policy_is_counted_in_the_cost(model) -> None:
    samples, plain = tiny_samples(3), exits_on_all_layers(model.backbone, 2, "mean", "shared")
    ours, without = record(model, samples), record(MultiExitModel(model.backbone, plain), samples)
    one = 2 * (16 * consistentee.HIDDEN + consistentee.HIDDEN)
    more = ours.cost["flops"] - without.cost["flops"]
    assert more.tolist() == [[one * stage] * 3 for stage in (1, 2, 3, 4)]
    # The plain model that speed-ups refer to has no policy.
    assert torch.equal(ours.reference["flops"], without.reference["flops"])


def test_probability_and_logit_of_a_policy_agree(model) -> None:
    extras = record(model, tiny_samples(5)).extras
    torch.testing.assert_close(extras["policy"], extras["policy_logit"].sigmoid())


@pytest.mark.usefixtures("tiny_tasks")
def test_from_memorized_layers_to_the_runtime(setting: Setting) -> None:
    run = load_or_train(METHOD, setting, progress=False, speed_weight=0.02)
    assert run.history.phase.tolist() == ["policy"] * setting.epochs + ["policy and model"]
    first = load_or_train(pabee.METHOD, setting, progress=False)
    assert run.history[run.history.phase == "policy"].steps.sum() == first.history.steps.sum()
    rule = METHOD.rules["policy"]
    for threshold in (consistentee.OPERATING_POINT, tradeoff.threshold_for_speedup(run.dev, rule, 1.5)):
        simulated = tradeoff.decide(run.test, rule, threshold)
        outcome = Runtime(run.model(), rule, threshold)(run.samples("test"), batch_size=7)
        assert outcome.stages.tolist() == simulated.stages.tolist()
        assert outcome.predictions.tolist() == simulated.predictions.tolist()


@pytest.mark.usefixtures("tiny_tasks")
def test_memorized_layers_are_those_of_phase_1_and_go_with_the_samples_ids(setting: Setting) -> None:
    ids, layers = METHOD.annotate(setting, METHOD.options)["memorized_layer"]
    evidence = load_or_train(pabee.METHOD, setting, progress=False).train
    assert torch.equal(ids, runs.samples_of(setting, "train").ids)
    right = evidence.predictions == evidence.labels
    for row, layer in enumerate(layers.tolist()):
        assert right[layer:, row].all()
        assert layer == 4 or right[layer - 1, row]
        assert layer == 1 or layer == 4 or not right[layer - 2, row]


@pytest.mark.usefixtures("tiny_tasks")
def test_cross_fitted_memorized_layers_come_from_models_that_did_not_see_the_sample(setting: Setting) -> None:
    options = METHOD.with_options(memorized="cross-fitted")
    ids, layers = METHOD.annotate(setting, options)["memorized_layer"]
    assert torch.equal(ids, runs.samples_of(setting, "train").ids)
    assert set(layers.tolist()) <= {1, 2, 3, 4}
    folders = [path.name for path in runs.runs_dir().glob("folds=*")]
    assert [name.split("-")[:2] for name in folders] == [[f"folds={consistentee.FOLDS}", "pabee"]]


@pytest.mark.usefixtures("tiny_tasks")
def test_in_phase_2_nothing_but_the_policies_changes(setting: Setting) -> None:
    alone = replace(METHOD, name="alone", phases=lambda options: consistentee.phases(options)[:1])
    run = load_or_train(alone, setting, progress=False)
    before = load_or_train(pabee.METHOD, setting, progress=False)
    torch.testing.assert_close(run.dev.logits, before.dev.logits, atol=1e-6, rtol=1e-6)
    first = consistentee.build(setting, 2, METHOD.options).exits["1"].policy[0].weight
    assert not torch.equal(run.model().exits["1"].policy[0].weight, first)


def test_training_on_a_regression_is_refused_in_a_sentence(setting: Setting) -> None:
    with pytest.raises(InputError, match="is a regression"):
        load_or_train(METHOD, replace(setting, task="movie-valence"), progress=False)


@pytest.mark.usefixtures("tiny_tasks")
def test_policies_on_frozen_features_are_those_of_the_model_itself(setting: Setting) -> None:
    run = load_or_train(METHOD, setting, progress=False)
    model, samples = run.model(), run.samples("test")
    _, features = record_features(model, samples, batch_size=5)
    networks = torch.nn.ModuleList(consistentee.policies(model))
    again = with_policies(run.test, networks, features)
    torch.testing.assert_close(again.extras["policy"], run.test.extras["policy"], atol=1e-5, rtol=1e-4)
    heads = [model.exits[str(layer)].classifier for layer in model.layers]
    logits = torch.stack([head(vectors) for head, vectors in zip(heads, features, strict=True)])
    torch.testing.assert_close(logits, run.test.logits, atol=1e-5, rtol=1e-4)
    assert answer_loss(logits, samples.labels).isfinite().all()
    assert rules.policy().readiness(again).shape == (4, 24)
