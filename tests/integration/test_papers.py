"""The papers' own parts: DeeBERT's two stages, PABEE's loss, and what every METHOD has in common."""

import importlib
import math
import pkgutil
from dataclasses import fields, replace
from types import ModuleType
from typing import Literal, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from eeutils import papers
from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.exiting.rules import Rule
from eeutils.models.exits import Pooler
from eeutils.models.runtime import Runtime
from eeutils.papers import badge, cascadebert, consistentee, deebert, ensemble, finetuned, pabee
from eeutils.papers.baselines import LINEAR, load_baselines
from eeutils.training.loop import Phase
from eeutils.training.method import Method, Options
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.helpers import answers_of
from tests.tiny import tiny_model, tiny_samples

MODULES = [importlib.import_module(f"eeutils.papers.{module.name}") for module in pkgutil.iter_modules(papers.__path__)]
METHODS = [module.METHOD for module in MODULES if hasattr(module, "METHOD")]


MODEL = tiny_model()  # the losses below do not look at it


def batch_of(labels: list[float]) -> Batch:
    zeros = torch.zeros(len(labels), 2, dtype=torch.long)
    return Batch(zeros, zeros + 1, None, torch.tensor(labels), torch.arange(len(labels)))


def cross_entropy(logits: Tensor, label: int) -> float:
    return float(-(logits[label] - logits.exp().sum().log()))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_fills_the_same_fields(method: Method, setting: Setting) -> None:
    assert method.name.isidentifier()
    assert method.title
    assert any(year in method.citation for year in map(str, range(2015, 2030)))
    # No smaller model is known for a made-up encoder: a row of models takes it twice.
    options = method.with_options(**({"models": (setting.backbone,)} if hasattr(method.options, "models") else {}))
    model = method.build(setting, 3, options)
    assert set(method.encoders(setting, options)) == {setting.backbone}
    assert model.layers[-1] >= model.reference_layers == 4
    samples = tiny_samples(3)
    assert model(*samples.batch([0, 1, 2]).inputs).logits.shape == (model.stages, 3, 3)
    phases = method.phases(options)
    assert phases
    assert all(isinstance(phase, Phase) for phase in phases)
    assert len({phase.name for phase in phases}) == len(phases)
    assert all(isinstance(rule, Rule) for rule in method.rules.values())
    assert importlib.import_module(method.build.__module__).__doc__.count("symbol") == 1


def test_pabee_s_loss_is_the_mean_weighted_by_depth_worked_out_by_hand() -> None:
    logits = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = [1, 0]
    by_stage = [sum(cross_entropy(logits[stage, i], labels[i]) for i in range(2)) / 2 for stage in range(3)]
    wanted = (1 * by_stage[0] + 2 * by_stage[1] + 3 * by_stage[2]) / 6
    assert pabee.weighted_loss(MODEL, answers_of(logits), batch_of(labels)).item() == pytest.approx(wanted, rel=1e-5)


def test_pabee_s_loss_on_numbers_is_the_weighted_squared_error_by_hand() -> None:
    answers = answers_of(torch.tensor([[[1.0], [0.0]], [[2.0], [1.0]]]))
    # Stage 1 is off by 1 and 2, stage 2 by 0 and 1: (1 * 2.5 + 2 * 0.5) / 3.
    assert pabee.weighted_loss(MODEL, answers, batch_of([2.0, 2.0])).item() == pytest.approx(3.5 / 3)


def test_pabee_s_loss_leaves_what_it_is_given_as_it_is() -> None:
    # The authors' code adds into the first loss in place.
    logits = torch.randn(3, 2, 2)
    before = logits.clone()
    first = pabee.weighted_loss(MODEL, answers_of(logits), batch_of([0, 1]))
    assert torch.equal(first, pabee.weighted_loss(MODEL, answers_of(logits), batch_of([0, 1])))
    assert torch.equal(logits, before)


def test_deebert_s_second_stage_sums_the_first_n_minus_1_losses_unweighted() -> None:
    logits = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = [1, 0, 1]
    loss = deebert.off_ramp_loss(MODEL, answers_of(logits), batch_of(labels))
    wanted = sum(cross_entropy(logits[stage, i].detach(), labels[i]) / 3 for stage in range(3) for i in range(3))
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    assert (logits.grad[:3].abs().sum(dim=(1, 2)) > 0).all()
    assert logits.grad[3].abs().sum() == 0


def test_deebert_s_second_stage_trains_the_early_off_ramps_alone(setting: Setting) -> None:
    model = deebert.build(setting, 2, deebert.METHOD.options)
    trained = deebert.early_off_ramps(model)
    assert [id(part) for part in trained] == [id(model.exits[layer]) for layer in ("1", "2", "3")]
    [phase] = deebert.phases(deebert.METHOD.options)
    assert phase.trains is deebert.early_off_ramps
    assert deebert.METHOD.starts_from is finetuned.METHOD


@pytest.mark.parametrize("paper", [deebert, pabee], ids=lambda paper: paper.METHOD.name)
@pytest.mark.parametrize(("poolers", "different"), [("own", 3), ("shared", 1), ("none", 0)])
def test_the_early_exits_have_a_pooler_each_one_for_all_or_none(
    setting: Setting, paper: ModuleType, poolers: str, different: int
) -> None:
    model = paper.build(setting, 2, paper.METHOD.with_options(poolers=poolers))
    early = [model.exits[layer].pooler for layer in ("1", "2", "3")]
    assert len({id(pooler) for pooler in early if isinstance(pooler, Pooler)}) == different
    last = model.exits["4"].pooler
    if paper is deebert:
        # The plain model's head, whatever the early ones are.
        assert isinstance(last, Pooler)
        assert last not in early
    else:
        assert isinstance(last, Pooler) == (poolers != "none")
        assert (last in early) == (poolers == "shared")


@pytest.mark.usefixtures("tiny_tasks")
def test_without_poolers_deebert_is_linear_exits_on_the_frozen_plain_model(setting: Setting) -> None:
    setting = replace(setting, pool="mean")
    run = load_or_train(deebert.METHOD, setting, progress=False, poolers="none")
    plain = load_or_train(finetuned.METHOD, setting, progress=False)
    model, samples = run.model(), run.samples("test")
    encoder = plain.model().backbone.model
    ids, mask, types = samples.batch(range(len(samples))).inputs
    with torch.inference_mode():
        # What Hugging Face's own model says of every layer, embeddings first.
        states = encoder(ids, mask, types, output_hidden_states=True).hidden_states[1:]
        means = [(state * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True) for state in states]
        for layer, mean in enumerate(means[:3], start=1):
            linear = model.exits[str(layer)].classifier(mean)
            torch.testing.assert_close(linear, run.test.logits[layer - 1], atol=1e-4, rtol=1e-4)
    assert torch.equal(run.test.logits[-1], plain.test.logits[-1])
    # Without a pooler an exit costs one linear map: two FLOPs a weight.
    own = load_or_train(deebert.METHOD, setting, progress=False)
    saved = own.test.cost["flops"] - run.test.cost["flops"]
    assert saved[:, 0].tolist() == [2 * 16 * 16 * stage for stage in (1, 2, 3, 3)]


def test_the_plain_model_s_loss_is_that_of_the_last_answer(setting: Setting) -> None:
    logits = torch.randn(3, 2, 2)
    loss = finetuned.last_exit_loss(MODEL, answers_of(logits), batch_of([1, 0]))
    wanted = (cross_entropy(logits[-1, 0], 1) + cross_entropy(logits[-1, 1], 0)) / 2
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.usefixtures("tiny_tasks")
def test_pabee_on_regression_from_training_to_the_runtime(setting: Setting) -> None:
    regression = replace(setting, task="movie-valence", epochs=6, learning_rate=5e-3, pool="mean")
    run = load_or_train(pabee.METHOD, regression, progress=False)
    rule = rules.patience(tolerance=0.3)
    curve = tradeoff.sweep(run.test, rule, run.metric)
    assert rules.NEVER in set(curve.threshold)
    assert curve.layers.min() < 4
    assert curve.layers.max() == 4
    assert run.history.loss.iloc[-1] < run.history.loss.iloc[0]
    simulated = tradeoff.decide(run.test, rule, 1)
    outcome = Runtime(run.model(), rule, 1)(run.samples("test"), batch_size=7)
    assert outcome.stages.tolist() == simulated.stages.tolist()
    torch.testing.assert_close(outcome.logits.float(), simulated.logits.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("tiny_tasks")
def test_deebert_from_training_to_the_runtime(setting: Setting) -> None:
    run = load_or_train(deebert.METHOD, setting, progress=False)
    rule = deebert.METHOD.rules["entropy"]
    threshold = tradeoff.threshold_for_speedup(run.dev, rule, 1.5)
    simulated = tradeoff.decide(run.test, rule, threshold)
    outcome = Runtime(run.model(), rule, threshold)(run.samples("test"), batch_size=7)
    assert outcome.stages.tolist() == simulated.stages.tolist()
    # Where everybody goes to the end, the plain model answers.
    plain = load_or_train(finetuned.METHOD, setting, progress=False)
    never = Runtime(run.model(), rule)(run.samples("test"))
    torch.testing.assert_close(never.logits.float(), plain.test.logits[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_word_that_an_option_cannot_take_is_refused_with_the_valid_ones(method: Method) -> None:
    for field in fields(method.options):
        if get_origin(get_type_hints(type(method.options))[field.name]) is Literal:
            with pytest.raises(InputError, match=rf"unknown {field.name} 'nonsense'.*; choose one of: "):
                method.with_options(**{field.name: "nonsense"})


def test_options_say_what_they_cannot_be() -> None:
    for method, option, value, sentence in (
        (badge.METHOD, "rank", 0, "a bypass has a rank of 1 or more; got 0"),
        (cascadebert.METHOD, "margin", 0.0, "margin above 0 and at most 1; got 0.5 and 0.0"),
        (cascadebert.METHOD, "repeats", 0, "repeats must be 1 or more; got 0"),
        (consistentee.METHOD, "speed_weight", -1.0, "0 or more; got -1.0"),
        (consistentee.METHOD, "speed_weight", math.nan, "0 or more; got nan"),
        (ensemble.METHOD, "diversity", -0.1, "0 or more; got -0.1"),
        (ensemble.METHOD, "bound", 0.0, "a positive number"),
    ):
        with pytest.raises(InputError, match=sentence):
            method.with_options(**{option: value})
    with pytest.raises(InputError, match=r"unknown option of badge 'ranks' \(did you mean 'rank'\?\)"):
        badge.METHOD.with_options(ranks=3)
    assert badge.METHOD.with_options(rank=3).changed() == {"rank": 3}
    assert badge.METHOD.with_options().changed() == {}


def test_an_option_of_another_paper_is_refused_with_one_s_own_or_told_that_there_is_none() -> None:
    with pytest.raises(InputError, match="unknown option of pabee 'wiring'; choose one of: poolers"):
        pabee.METHOD.with_options(wiring="parallel")
    with pytest.raises(InputError, match="pabee has no options; got 'wiring'"):
        replace(pabee.METHOD, options=Options()).with_options(wiring="parallel")


@pytest.mark.usefixtures("tiny_tasks")
def test_baselines_are_three_checkpoints_in_their_bands_and_the_best_blind_policy_of_all(setting: Setting) -> None:
    base = load_baselines(setting, "smoke")
    assert (base.linear.options.poolers, base.deebert.options.poolers) == ("none", "own")
    assert list(base.curves) == list(base.rules) == ["DeeBERT (entropy)", "PABEE (patience)", LINEAR]
    for name, curve in base.curves.items():
        run, rule = base.rules[name]
        assert curve.score.tolist() == tradeoff.sweep(run.test, rule, run.metric, points=24).score.tolist()
        assert ((curve.low <= curve.score) & (curve.score <= curve.high)).all()
    assert list(base.fixed) == ["DeeBERT", "PABEE"]
    assert base.separate.layers.tolist() == [2], "half of four layers"
    # As fast as the cheapest exit of all, the one without a pooler, and at each speed what dev prefers.
    fastest = tradeoff.fixed_exits(base.linear.test, base.linear.metric).flops_speedup.iloc[0]
    assert base.blind.flops_speedup.iloc[0] == pytest.approx(fastest)
    shallow = load_or_train(finetuned.METHOD, setting, progress=False, layers=2)
    runs = (base.deebert, base.pabee, base.linear, shallow)
    for row in (base.blind.iloc[0], base.blind.iloc[12]):
        reading = tradeoff.blind_policy([(run.dev, run.test) for run in runs], row.flops_speedup, base.pabee.metric)
        assert row.score == reading.score(base.pabee.metric, base.pabee.test.labels.numpy())
