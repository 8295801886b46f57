"""Ensemble exits from training to the runtime, and what the diversity term does to a model that learns."""

from dataclasses import replace

import pytest
import torch

from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.models.runtime import Runtime
from eeutils.papers import ensemble
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting

pytestmark = pytest.mark.usefixtures("tiny_tasks")


def test_ensemble_exits_from_training_to_the_runtime(setting: Setting) -> None:
    run = load_or_train(ensemble.METHOD, setting, progress=False)
    rule = ensemble.METHOD.rules["vote"]
    for votes in (2, 3):
        simulated = tradeoff.decide(run.test, rule, votes)
        outcome = Runtime(run.model(), rule, votes)(run.samples("test"), batch_size=7)
        assert outcome.stages.tolist() == simulated.stages.tolist()
        assert outcome.predictions.tolist() == simulated.predictions.tolist()


def test_every_option_is_a_run_of_its_own_and_the_default_is_the_bounded_loss(setting: Setting) -> None:
    quick = replace(setting, epochs=1)
    default = load_or_train(ensemble.METHOD, quick, progress=False)
    assert load_or_train(ensemble.METHOD, quick, bound=1.0, progress=False).directory == default.directory
    others = [
        load_or_train(ensemble.METHOD, quick, progress=False, **change)
        for change in ({"diversity": 0.0}, {"bound": None, "diversity": 2.0}, {"per": "batch", "last": False})
    ]
    assert len({run.directory for run in (default, *others)}) == 4


def test_without_the_bound_a_large_lambda_ruins_exits_that_the_bound_keeps(setting: Setting) -> None:
    longer = replace(setting, epochs=12, learning_rate=5e-3, pool="mean")
    scores = {
        bound: tradeoff.fixed_exits(run.test, run.metric).score.min()
        for bound in (1.0, None)
        for run in [load_or_train(ensemble.METHOD, longer, progress=False, diversity=0.9, bound=bound)]
    }
    assert scores[1.0] > 0.8
    assert scores[None] < 0.6


def test_a_regression_stops_before_training(setting: Setting) -> None:
    with pytest.raises(InputError, match="vote on classes"):
        load_or_train(ensemble.METHOD, replace(setting, task="movie-valence"), progress=False)


def test_the_majority_of_all_stages_is_what_a_vote_that_never_leaves_answers(setting: Setting) -> None:
    run = load_or_train(ensemble.METHOD, setting, progress=False)
    votes = run.test.predictions
    shares = votes.double().mean(dim=0)
    answers = tradeoff.decide(run.test, rules.vote(), rules.NEVER).predictions
    clear = shares != 0.5  # with two classes and an even number of stages there may be ties
    assert torch.equal(answers[clear], (shares[clear] > 0.5).long())
    assert torch.equal(answers[~clear], votes[-1][~clear])
