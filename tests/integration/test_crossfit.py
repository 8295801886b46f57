"""Cross-fitting: every training sample is judged by a model that never saw it, once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eeutils.data.samples import Samples
from eeutils.errors import InputError
from eeutils.models.exits import MultiExitModel
from eeutils.papers import deebert, pabee
from eeutils.training import crossfit, loop, runs
from eeutils.training.crossfit import fold_of, out_of_fold
from eeutils.training.fingerprint import run_key
from eeutils.training.settings import Setting
from tests.tiny import tiny_task


@given(samples=st.integers(2, 60), folds=st.integers(2, 8), seed=st.integers(0, 20))
def test_folds_are_of_equal_size_and_depend_on_the_seed_alone(samples: int, folds: int, seed: int) -> None:
    ids = torch.arange(samples) * 7
    if folds > samples:
        with pytest.raises(InputError, match="at most one per sample"):
            fold_of(ids, folds)
        return
    fold = fold_of(ids, folds, seed)
    sizes = torch.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(fold, fold_of(ids, folds, seed))


def test_one_fold_is_no_cross_fitting() -> None:
    with pytest.raises(InputError, match="2 folds or more"):
        fold_of(torch.arange(5), 1)


@pytest.mark.usefixtures("tiny_tasks")
def test_no_sample_is_judged_by_a_model_that_saw_it(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(setting, epochs=1)
    seen: list[set[int]] = []
    judged: list[set[int]] = []
    fit, record = loop.fit, crossfit.record

    def spied_fit(model: object, phases: object, train: Samples, *rest: object, **options: object) -> object:
        seen.append(set(train.ids.tolist()))
        return fit(model, phases, train, *rest, **options)

    def spied_record(model: object, samples: Samples, **options: object) -> object:
        judged.append(set(samples.ids.tolist()))
        return record(model, samples, **options)

    monkeypatch.setattr(loop, "fit", spied_fit)
    monkeypatch.setattr(crossfit, "record", spied_record)
    evidence = out_of_fold(pabee.METHOD, setting, folds=3, seed=5, progress=False)
    everyone = set(tiny_task().train["id"])
    assert len(seen) == len(judged) == 3
    assert all(one | other == everyone and not one & other for one, other in zip(seen, judged, strict=True))
    assert set.union(*judged) == everyone
    assert evidence.ids.tolist() == tiny_task().train["id"]
    assert evidence.labels.tolist() == tiny_task().train["label"]

    again = out_of_fold(pabee.METHOD, setting, folds=3, seed=5, progress=False)
    assert len(seen) == 3, "folds that were trained before are read"
    assert torch.equal(again.logits, evidence.logits)
    assert sorted(path.name for path in runs.runs_dir().glob(".work*")) == []


@pytest.mark.usefixtures("tiny_tasks")
def test_a_method_whose_start_has_seen_everything_is_refused(setting: Setting) -> None:
    with pytest.raises(InputError, match="deebert starts from finetuned"):
        out_of_fold(deebert.METHOD, setting, folds=2)


@pytest.mark.usefixtures("tiny_tasks")
def test_a_regression_far_from_zero_begins_at_its_mean_in_every_fold(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []
    fit = loop.fit

    def spied(model: MultiExitModel, phases: object, train: Samples, *rest: object, **options: object) -> object:
        assert model.exit_at(0).classifier.bias.item() == pytest.approx(train.labels.double().mean().item())
        begun.append(model.exit_at(0).classifier.bias.item())
        return fit(model, phases, train, *rest, **options)

    monkeypatch.setattr(loop, "fit", spied)
    out_of_fold(pabee.METHOD, replace(setting, task="movie-valence", epochs=1), folds=2, progress=False)
    assert len(begun) == 2


@pytest.mark.usefixtures("tiny_tasks")
def test_folds_of_unrelated_trainings_do_not_wait_for_each_other(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    alone = crossfit.only_one

    def spied(name: str) -> object:
        names.append(name)
        return alone(name)

    monkeypatch.setattr(crossfit, "only_one", spied)
    out_of_fold(pabee.METHOD, replace(setting, epochs=1), folds=2, progress=False)
    key = run_key(pabee.METHOD, replace(setting, epochs=1), pabee.METHOD.options)
    assert names == [f"fold{number}of2-{key[:10]}" for number in range(2)]
