"""Did the treatment take? Both answers of every check, against numbers worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from eeutils.data.samples import Samples
from eeutils.exiting.evidence import Evidence
from eeutils.models.backbone import Backbone
from eeutils.models.exits import MultiExitModel, exits_on_all_layers, pool_tokens
from eeutils.papers import badge, cascadebert, consistentee, de3bert, ensemble, l2w, treatments
from eeutils.training.method import Method
from eeutils.training.runs import Run
from eeutils.training.settings import Setting
from tests.helpers import make_evidence
from tests.tiny import tiny_encoder, tiny_samples


def run_of(method: Method, **said: Any) -> Run:
    """A run that need not have been trained: what it says is given."""
    run = Run(Path("nowhere"), method, Setting(), method.options)
    run.__dict__.update(said)
    return run


def answers(*stages: list[int]) -> Evidence:
    """Evidence of two classes from the answers of each stage; all labels are 1."""
    said = torch.tensor(stages)
    return make_evidence(nn.functional.one_hot(said, 2).float(), [1] * said.shape[1])


def test_what_did_not_take_is_unfit_and_says_what_was_found() -> None:
    assert treatments.Treatment("BADGE", "it adds 7%", True).unfit == {}
    assert treatments.Treatment("BADGE", "it adds 1%", False).unfit == {
        "BADGE": "the treatment did not take: it adds 1%"
    }


def bypassed(wiring: str, size: float, pool: str = "mean") -> MultiExitModel:
    backbone = Backbone(tiny_encoder())
    exits = exits_on_all_layers(backbone, 2, pool, "shared")
    if wiring != "none":
        options = badge.BadgeOptions(wiring=wiring, rank=3, scale=2.0)
        kind = badge.WideExit if wiring == "wide-head" else badge.BypassExit
        exits = {layer: kind(plain, options) for layer, plain in exits.items()}
        torch.manual_seed(1)
        for head in exits.values():
            nn.init.normal_((head.wide if wiring == "wide-head" else head.bypass).up.weight, std=size)
    return MultiExitModel(backbone, exits).eval()


def lengths_beside(model: MultiExitModel, wiring: str, samples: Samples, pool: str) -> list[Tensor]:
    """For each exit, the length of what is added over that of what the block gives, sample by sample."""
    state, stream, shares = model.begin(*samples.batch(range(len(samples))).inputs), 0, []
    for stage in range(model.stages):
        state, bypass = model.reach(stage, state), model.exit_at(stage).bypass
        read = state.before if wiring == "parallel" else state.hidden
        each = nn.functional.gelu(read.states @ bypass.down.weight.T + bypass.down.bias)
        tokens = 2.0 * (each @ bypass.up.weight.T + bypass.up.bias)
        added = pool_tokens(replace(read, states=tokens), pool)
        stream = added + stream if wiring == "stream" else added
        shares.append(stream.norm(dim=-1) / pool_tokens(state.hidden, pool).norm(dim=-1))
    return shares


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("wiring", ["parallel", "serial", "stream"])
@pytest.mark.parametrize(("size", "took"), [(0.3, True), (0.003, False)])
def test_a_bypass_takes_if_it_adds_enough_to_what_its_block_gives(
    wiring: str, pool: str, size: float, took: bool
) -> None:
    model, samples = bypassed(wiring, size, pool), tiny_samples(10)
    found = treatments.bypass(run_of(badge.METHOD, model=lambda: model, samples=lambda split: samples))
    with torch.no_grad():
        share = torch.stack(lengths_beside(model, wiring, samples, pool)).mean().item()
    assert found.found.startswith(f"the bypass adds {share:.1%} of the length")
    assert found.took == took == (share >= 0.05)
    assert found.name == "BADGE"


@pytest.mark.parametrize("wiring", ["wide-head", "none"])
def test_a_model_without_a_bypass_has_none_that_took(wiring: str) -> None:
    model, samples = bypassed(wiring, 1.0), tiny_samples(4)
    found = treatments.bypass(run_of(badge.METHOD, model=lambda: model, samples=lambda split: samples))
    assert not found.took
    assert "adds 0.0%" in found.found


def test_a_bypass_is_measured_on_the_first_dev_samples_alone() -> None:
    model, samples = bypassed("parallel", 0.3), tiny_samples(12)
    asked: list[str] = []

    def of(split: str) -> Samples:
        asked.append(split)
        return samples

    few = treatments.bypass(run_of(badge.METHOD, model=lambda: model, samples=of), samples=5)
    alone = run_of(badge.METHOD, model=lambda: model, samples=lambda split: samples.take(range(5)))
    assert few == treatments.bypass(alone)
    assert set(asked) == {"dev"}, "what is judged on test is not chosen there"


def test_diversity_takes_if_exits_disagree_more_than_without_it() -> None:
    alike, mixed = answers([1] * 40, [1] * 40, [1] * 40), answers([1] * 40, [1] * 40, [0, 1] * 20)
    apart = run_of(ensemble.METHOD, dev=mixed)
    together = run_of(ensemble.METHOD, dev=alike)
    took = treatments.diversity(apart, together)
    # Two of the three pairs disagree on half of the samples.
    assert took.found.startswith("two exits disagree on 0.333 [")
    assert took.took
    assert not treatments.diversity(together, apart).took
    same = treatments.diversity(apart, apart)
    assert "0.000 [0.000, 0.000]" in same.found
    assert not same.took
    # One sample of forty: more, but it may be chance.
    once = answers([1] * 40, [1] * 40, [0] + [1] * 39)
    assert not treatments.diversity(run_of(ensemble.METHOD, dev=once), together).took


def with_confidence(*confidence: float, ids: list[int]) -> Evidence:
    odds = torch.tensor(confidence).logit()
    return make_evidence(torch.stack([odds, torch.zeros_like(odds)], dim=-1)[None], [0] * len(ids), ids=ids)


@pytest.mark.parametrize(
    ("learned", "term", "took"),
    [
        # Pairs of an easy and a hard one: 0.5 - (0.9 - 0.7) = 0.3 and 0.5 - (0.9 - 0.6) = 0.2.
        ((0.6, 0.9, 0.7), 0.25, True),
        # 0.5 - (0.8 - 0.74) = 0.44 twice: a tenth less than 0.5, and more.
        ((0.74, 0.8, 0.74), 0.44, True),
        ((0.76, 0.8, 0.76), 0.46, False),
        ((0.9, 0.7, 0.9), 0.7, False),
    ],
)
def test_the_difficulty_term_takes_if_it_ends_a_tenth_lower_where_it_is_learned(
    monkeypatch: pytest.MonkeyPatch, learned: tuple[float, ...], term: float, took: bool
) -> None:
    # Samples 7 and 5 are hard; the notes stand in another order than the evidence.
    notes = {"difficulty": (torch.tensor([3, 5, 7]), torch.tensor([0, 1, 1]))}
    monkeypatch.setattr(treatments, "annotate", lambda setting, options: notes)
    ours, flat = (
        run_of(cascadebert.METHOD, train=with_confidence(*values, ids=[7, 3, 5]))
        for values in (learned, (0.8, 0.8, 0.8))
    )
    found = treatments.difficulty(ours, flat)
    assert found.found.startswith(f"the difficulty term ends at {term:.3f} where it is learned and at 0.500 where")
    assert found.took == took


def policy_evidence(logits: list[list[float]]) -> Evidence:
    """Samples of two exits by the logit of leaving at the first."""
    logit = torch.tensor(logits)
    said = torch.zeros(*logit.shape, 2)
    return make_evidence(said, [0] * logit.shape[1], policy=logit.sigmoid(), policy_logit=logit)


@pytest.mark.parametrize(
    ("first", "commonest", "information", "took"),
    [
        # Half of them surely here, the others surely there.
        ([20.0] * 10 + [-20.0] * 10, 0.5, math.log(2), True),
        # One exit for everybody.
        ([20.0] * 20, 1.0, 0.0, False),
        # One of twenty stays: 95% are too many for one exit.
        ([20.0] * 19 + [-20.0], 0.95, mutual_info_score(range(20), [0] * 19 + [1]), False),
        # As many leave here as there, but by a hair: the exit says nothing of the sample.
        ([0.01] * 10 + [-0.01] * 10, 0.5, 0.0, False),
    ],
)
def test_a_policy_has_not_collapsed_if_its_exits_tell_samples_apart(
    first: list[float], commonest: float, information: float, took: bool
) -> None:
    found = treatments.collapse(run_of(consistentee.METHOD, dev=policy_evidence([first, [0.0] * 20])))
    assert found.found == (
        f"{commonest:.0%} leave at the commonest exit (at most 90%) and exits tell {information:.2f} nats of the "
        "sample (at least 0.1)"
    )
    assert found.took == took


@pytest.mark.parametrize(("near", "score", "took"), [(95, 0.95, True), (93, 0.93, False)])
def test_prototypes_take_if_the_nearest_answers_nearly_as_well_as_the_classifiers(
    near: int, score: float, took: bool
) -> None:
    # All labels are 1. The classifiers are right on 100 and 92 of 100 samples, the nearest prototype on `near` at both.
    said = answers([1] * 100, [1] * 92 + [0] * 8)
    distances = torch.tensor([[2.0, 1.0]] * near + [[1.0, 2.0]] * (100 - near)).expand(2, -1, -1)
    found = treatments.prototypes(run_of(de3bert.METHOD, dev=replace(said, extras={"distances": distances})))
    assert found.found == f"the nearest prototype scores {score:.3f} and the classifiers 0.960 (at most 0.02 less)"
    assert found.took == took


@pytest.mark.parametrize(("away", "took"), [(0.06, True), (0.04, False)])
def test_weights_take_if_they_have_left_one(monkeypatch: pytest.MonkeyPatch, away: float, took: bool) -> None:
    weights = 1 + torch.tensor([[away, -away], [-2 * away, 0.0]])
    monkeypatch.setattr(treatments, "weights_of", lambda model, evidence: weights)
    found = treatments.sample_weights(run_of(l2w.METHOD, model=lambda: None, train=answers([0, 1], [0, 1])))
    assert found.found == f"weights are {away:.2f} away from 1 on average (0.05 needed)"
    assert found.took == took
