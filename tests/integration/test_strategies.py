"""Strategies of training on a tiny encoder: one start, as many steps, the same architecture; and what they cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eeutils.exiting import tradeoff
from eeutils.papers import finetuned
from eeutils.papers.controls import learned_weights, mixed, step_costs, strategies
from eeutils.papers.controls.strategies import LEARNED, UNIFORM, Strategies
from eeutils.papers.l2w import weights_of
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
