"""Profiles and parameters: unknown ones fail before anything runs."""

import math
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


def test_the_size_of_an_encoder_decides_its_rate_and_new_heads_take_ten_times_that_of_any(tmp_path: Path) -> None:
    small, base = tmp_path / "small", tmp_path / "base"
    for folder, width in ((small, 384), (base, 768)):
        folder.mkdir()
        (folder / "config.json").write_text(f'{{"model_type": "bert", "hidden_size": {width}}}')
    settings = [
        Setting.from_profile("quick", task, backbone, 0)
        for task in ("sst2", "mrpc")
        for backbone in ("minilm-l6", str(small), "mpnet-base", str(base))
    ]
    # A sentence encoder of base size learns at the rate that was found for it, another one at the papers'.
    assert [setting.learning_rate for setting in settings] == [1e-4, 1e-4, 1e-4, 3e-5] * 2
    assert [setting.pool for setting in settings] == ["mean", "cls", "mean", "cls"] * 2
    assert {setting.head_rate for setting in settings} == {10.0}
    assert {setting.batch_size for setting in settings} == {32}


@pytest.mark.parametrize("task", ["movie", "mrpc", "cola"])
def test_an_encoder_of_base_size_makes_two_passes(task: str) -> None:
    for profile in ("quick", "study"):
        small, base = (Setting.from_profile(profile, task, backbone, 0) for backbone in ("minilm-l6", "mpnet-base"))
        assert base.epochs == 2 <= small.epochs
        assert (base.train_size, base.max_length) == (small.train_size, small.max_length)
    for profile in ("smoke", "full"):
        assert Setting.from_profile(profile, task, "mpnet-base", 0).epochs == PROFILES[profile]["epochs"]


def test_another_encoder_in_the_same_setting_learns_as_fast_as_its_size_does(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 768}')
    setting = Setting.from_profile("quick", "mrpc", str(tmp_path), 0, learning_rate=6e-5)
    assert setting.on(str(tmp_path)) is setting
    small = setting.on("minilm-l6")
    # Twice the usual rate for one is twice the usual rate for the other.
    assert small.learning_rate == pytest.approx(2e-4)
    assert (small.backbone, small.epochs, small.head_rate) == ("minilm-l6", setting.epochs, setting.head_rate)
    other = Setting.from_profile("quick", "mrpc", "minilm-l6", 0, learning_rate=3e-4)
    assert other.on("minilm-l3").learning_rate == 3e-4, "to the last bit, or every run would be another"


def test_tasks_that_are_far_from_similarity_get_more_epochs_and_cola_more_samples() -> None:
    for profile in ("quick", "study"):
        movie, *far = (
            Setting.from_profile(profile, task, "minilm-l6", 0) for task in ("movie", "cola", "mrpc", "rte", "stsb")
        )
        assert {setting.epochs for setting in far} == {2 * movie.epochs}
        sizes = [math.inf if setting.train_size is None else setting.train_size for setting in (movie, far[0])]
        assert sizes[0] < sizes[1], profile
    assert Setting.from_profile("full", "mrpc", "minilm-l6", 0).epochs == PROFILES["full"]["epochs"]


def test_profiles_grow_from_smoke_to_full() -> None:
    assert list(PROFILES) == ["smoke", "quick", "study", "full"]
    lengths = [profile["max_length"] for profile in PROFILES.values()]
    assert lengths == sorted(lengths)
    sizes = [profile["train_size"] for profile in PROFILES.values()]
    assert sizes[-1] is None
    assert sizes[:-1] == sorted(sizes[:-1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("quickk", "movie", "minilm-l6", 0),
            r"unknown profile 'quickk' \(did you mean 'quick'\?\).*full, quick, smoke, study",
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


@pytest.mark.parametrize("name", ["epochs", "batch_size", "max_length"])
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
