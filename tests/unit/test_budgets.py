"""What profiles afford: the speed-ups that are quoted are trained for, and all methods are searched alike."""

import pytest

from eeutils.papers import finetuned
from eeutils.papers.budgets import budget_of
from eeutils.papers.comparisons import PLAIN
from eeutils.study.entries import ENTRIES, METHOD, Trial, search_of
from eeutils.training.settings import PROFILES, Setting

DEPTHS = (1, 2, 3, 4, 6, 12, 24)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("depth", DEPTHS)
def test_whatever_an_encoder_s_depth_windows_and_shallow_models_lie_within_it(profile: str, depth: int) -> None:
    budget = budget_of(profile, depth)
    assert all(1 <= layers < depth for layers in budget.shallow_depths)
    assert len(set(budget.shallow_depths)) == len(budget.shallow_depths)
    assert all(1 <= first <= (depth if last is None else last) <= depth for first, last in budget.windows)
    assert budget.diversities
    assert budget.speed_weights


@pytest.mark.parametrize("depth", [6, 12, 24])
@pytest.mark.parametrize("profile", ["quick", "study"])
def test_shallow_models_stand_at_the_speed_ups_that_are_quoted(profile: str, depth: int) -> None:
    assert [depth / layers for layers in budget_of(profile, depth).shallow_depths] == [3, 2, 1.5]


@pytest.mark.parametrize("depth", [6, 12, 24])
def test_windows_are_near_one_and_a_half_two_and_three_times(depth: int) -> None:
    # In equal parts an ordinary token runs (first + last) / 2 layers.
    speeds = [depth / ((first + (last or depth)) / 2) for first, last in budget_of("study", depth).windows]
    assert speeds == pytest.approx([1.7, 2.1, 3.2], abs=0.55)
    assert speeds == sorted(speeds)


SEARCH = search_of(budget_of("quick", 6))


def is_default(trial: Trial) -> bool:
    usual = trial.wanted.method.options.to_dict()
    return all(by == 1 for by in trial.wanted.times.values()) and usual.get(trial.what, trial.value) == trial.value


def test_every_method_gets_as_many_trials() -> None:
    searched = {label: len(trials) for label, trials in SEARCH.items() if label != PLAIN}
    assert set(searched.values()) == {7}
    named = {entry.label for entry in ENTRIES if entry.kind == METHOD}
    # Each training of ConsistentEE is one point of its curve: it is searched by its weights of speed. PCEE-BERT trains
    # nothing of its own.
    assert named - set(searched) == {"ConsistentEE", "PCEE-BERT"}
    assert {trial.wanted.method.name for trial in SEARCH[PLAIN]} == {finetuned.METHOD.name}


@pytest.mark.parametrize("label", SEARCH)
def test_a_search_varies_one_thing_at_a_time_around_the_default(label: str) -> None:
    trials, setting = SEARCH[label], Setting()
    assert any(is_default(trial) for trial in trials)
    rates = [trial.value for trial in trials if trial.what == "learning rate, times"]
    assert rates == [0.5, 1.0, 2.0]
    for trial in trials:
        scaled = trial.wanted.setting(setting)
        if trial.what == "learning rate, times":
            assert scaled.learning_rate == pytest.approx(trial.value * setting.learning_rate)
        elif trial.what == "rate of heads, times":
            assert scaled.head_rate == pytest.approx(trial.value * setting.head_rate)
        else:
            assert scaled == setting
            chosen = trial.wanted.method.with_options(**trial.wanted.options).to_dict()
            assert chosen[trial.what] == trial.value
