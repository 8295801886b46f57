"""Strategies of training on a tiny encoder: one start, as many steps, the same architecture; and what they cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from eeutils.data.samples import LengthBuckets
from eeutils.exiting import tradeoff
from eeutils.papers import finetuned, l2w
from eeutils.papers.controls import learned_weights, mixed, step_costs, strategies
from eeutils.papers.controls.strategies import LEARNED, UNIFORM, Strategies
from eeutils.papers.l2w import L2wOptions, weights_of
from eeutils.training.loop import answer_loss
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.tiny import tiny_samples

pytestmark = pytest.mark.usefixtures("tiny_tasks")


def test_seven_strategies_on_one_architecture_in_as_many_steps(setting: Setting) -> None:
    ways = Strategies(replace(setting, pool="mean"))
    runs = ways.runs
    assert len(runs) == 7
    assert {strategies.steps_of(run) for run in runs.values()} == {12}
    assert strategies.steps_of(ways.attention) == 12
    costs = [run.test.cost["flops"] for run in runs.values()]
    assert all(torch.equal(cost, costs[0]) for cost in costs), "the same exits cost the same"
    gaps = strategies.differences(runs, UNIFORM, runs[UNIFORM].metric, resamples=20)
    assert UNIFORM not in gaps
    table = strategies.by_exit(runs, runs[UNIFORM].metric, resamples=20).set_index(["strategy", "layer"]).score
    for name, by_layer in gaps.items():
        fixed = tradeoff.fixed_exits(runs[name].test, runs[name].metric).score
        for stage, (layer, gap) in enumerate(by_layer.items()):
            assert table[name, layer] == fixed[stage]
            assert gap.estimate == pytest.approx(fixed[stage] - table[UNIFORM, layer])
            assert gap.low <= gap.estimate <= gap.high
    assert len(strategies.as_frame(gaps)) == 6 * 4
    # What the network says of the training samples is what it was asked in training, without dropout.
    run = runs[LEARNED]
    weighed = learned_weights.weighed(run, run.train)
    losses = answer_loss(run.train.logits, run.train.labels)
    torch.testing.assert_close(weighed.hardness, losses.mean(dim=0))
    torch.testing.assert_close(weighed.weights, weights_of(run.model(), run.train))
    way = learned_weights.weights_over_training(run)
    assert way.step.max() == 12
    assert set(way.samples) == {"easier half", "harder half"}


def test_one_epoch_is_not_halved(setting: Setting) -> None:
    assert Strategies(replace(setting, epochs=1)).half.epochs == 1
    assert Strategies(replace(setting, epochs=5)).half.epochs == 2


def test_mixed_training_starts_from_the_plain_model_and_trains_all_of_it(setting: Setting) -> None:
    run, plain = load_or_train(mixed.METHOD, setting, progress=False), load_or_train(finetuned.METHOD, setting)
    before, after = plain.model().state_dict(), run.model().state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("backbone") for name in moved)
    assert "exits.4.pooler.dense.weight" in moved
    barely = load_or_train(mixed.METHOD, replace(setting, epochs=1, learning_rate=1e-9), progress=False)
    parent = load_or_train(finetuned.METHOD, replace(setting, epochs=1, learning_rate=1e-9))
    torch.testing.assert_close(barely.test.logits[-1], parent.test.logits[-1], atol=1e-5, rtol=1e-5)


def test_a_step_s_cost_is_a_ratio_of_times(setting: Setting) -> None:
    costs = step_costs.step_costs(setting, tiny_samples(24), batches=3, rounds=2, progress="timing")
    assert LEARNED in costs
    for each in costs.values():
        assert 0 < each.low <= each.estimate <= each.high < np.inf
    assert costs[LEARNED].estimate > 1, "the network's own passes take time"


def test_weights_are_worth_what_the_meta_loss_falls_by(setting: Setting) -> None:
    options, samples = L2wOptions(rate=5e-4), tiny_samples(32)
    torch.manual_seed(0)
    model = l2w.build(setting, 2, options).eval()
    untrained = learned_weights.worth(model, samples, 1, options)
    assert all(each.estimate == 0 for each in untrained.values()), "all weights are 1"
    for parameter in model.weight_network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    found = {name: each.estimate / 1000 for name, each in learned_weights.worth(model, samples, 1, options).items()}
    learned, mean, apart = found.values()
    assert apart == pytest.approx(learned - mean, rel=1e-4, abs=1e-9)
    assert abs(apart) > 1e-6
    # The long way, without any derivative by a weight: two pseudo-updates, and M after each.
    theta = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("weight_network")}
    sampler = LengthBuckets(samples.lengths, 32, seed=0)
    sampler.start(0)
    batch = samples.batch(next(iter(sampler)))

    def heard(rows: slice, parameters: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = tuple(None if part is None else part[rows] for part in batch.inputs)
        logits = functional_call(model, parameters, inputs).logits
        return answer_loss(logits, batch.labels[rows]), logits.softmax(dim=-1).amax(dim=-1)

    def judged(weighs: bool, rows: slice, others: slice) -> float:
        leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
        losses, sure = heard(rows, leaves)
        weights = model.weight_network(losses, sure).detach() if weighs else torch.ones_like(losses)
        (weights * losses).mean().backward()
        moved = {n: theta[n] - options.rate * (0 if leaf.grad is None else leaf.grad) for n, leaf in leaves.items()}
        with torch.no_grad():
            return l2w.meta_loss(*heard(others, moved), options.q).item()

    halves = (slice(0, None, 2), slice(1, None, 2))
    falls = [judged(False, *each) - judged(True, *each) for each in (halves, halves[::-1])]
    # To first order around the pseudo-update that uniform weights make.
    assert learned == pytest.approx(sum(falls) / 2, rel=0.1)
