"""Profiles and parameters: unknown ones fail before anything runs."""

from pathlib import Path

import pytest

from eeutils.errors import InputError
from eeutils.training.settings import PARAMETERS, PROFILES, Setting, check, check_parameters


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_gives_a_setting_and_changes_override_it(profile: str) -> None:
    setting = Setting.from_profile(profile, "movie", "minilm-l6", 3)
    assert (setting.task, setting.backbone, setting.seed) == ("movie", "minilm-l6", 3)
    for name, value in PROFILES[profile].items():
        assert getattr(setting, name) == value
    assert setting.pool == "mean", "[CLS] says nothing in the lower layers of a sentence encoder"
    assert Setting.from_profile(profile, "movie", "minilm-l6", 3, epochs=7, pool="cls").epochs == 7
    assert Setting(**setting.to_dict()) == setting


def test_a_small_encoder_takes_a_rate_of_its_own_and_twice_that_on_tasks_that_it_learns_slowly(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    rates = [
        Setting.from_profile("quick", task, backbone, 0).learning_rate
        for task in ("sst2", "mrpc")
        for backbone in ("minilm-l6", str(tmp_path))
    ]
    assert rates == [1e-4, 2e-5, 2e-4, 2e-5]


def test_a_task_that_needs_more_data_gets_it_in_the_profile_that_has_too_little() -> None:
    for task, size in (("cola", 4000), ("sst2", 6000)):
        sizes = [Setting.from_profile(profile, task, "minilm-l6", 0).train_size for profile in PROFILES]
        assert sizes == [PROFILES["smoke"]["train_size"], size, None]


def test_profiles_grow_from_smoke_to_full() -> None:
    assert list(PROFILES) == ["smoke", "quick", "full"]
    lengths = [profile["max_length"] for profile in PROFILES.values()]
    assert lengths == sorted(lengths)
    assert PROFILES["full"]["train_size"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("quickk", "movie", "minilm-l6", 0),
            r"unknown profile 'quickk' \(did you mean 'quick'\?\).*full, quick, smoke",
        ),
        (("quick", "movies", "minilm-l6", 0), r"unknown task 'movies' \(did you mean 'movie'\?\).*amazon"),
        (("quick", "movie", "minilm", 0), "backbone 'minilm'.*minilm-l6"),
        (("quick", "movie", "minilm-l6", -1), "seed must be a whole number from 0; got -1"),
        (("quick", "movie", "minilm-l6", True), "seed must be"),
    ],
)
def test_unknown_values_are_refused_with_the_valid_ones(arguments: tuple, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Setting.from_profile(*arguments)


def test_an_unknown_field_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown setting 'epoch' \(did you mean 'epochs'\?\)"):
        Setting.from_profile("smoke", "movie", "minilm-l6", 0, epoch=2)


def test_a_check_passes_what_a_setting_takes() -> None:
    check("smoke", "movie", "minilm-l6")


def test_a_parameter_that_no_notebook_has_is_refused() -> None:
    check_parameters(PARAMETERS)
    with pytest.raises(InputError, match=r"unknown notebook parameter 'taskk' \(did you mean 'task'\?\)"):
        check_parameters(["seed", "taskk"])


@pytest.mark.parametrize("name", ["epochs", "batch_size", "max_length", "early_stopping"])
def test_a_count_below_one_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be 1 or more; got 0"):
        Setting(**{name: 0})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be above 0 and finite; got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0 and finite; got nan"),
        ({"head_rate": 0.0}, "head_rate must be above 0"),
        ({"warmup": 3.0}, "warmup is a share of the steps, 0 to 1; got 3.0"),
    ],
)
def test_a_rate_that_cannot_train_is_refused(changes: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Setting(**changes)
