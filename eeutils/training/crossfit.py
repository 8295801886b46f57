"""What models say of training samples that they have not seen: cross-fitting.

A model is sure of what it was trained on. Whoever wants to know how difficult a training sample is must ask a model
that never saw it: the samples are dealt into folds, and each fold is judged by a model trained on all the others.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence, concatenate
from eeutils.models.record import record
from eeutils.training import loop
from eeutils.training.checkpoints import remove_checkpoints
from eeutils.training.fingerprint import run_key
from eeutils.training.method import Method
from eeutils.training.runs import KEY_LETTERS, fit_anew, only_one, runs_dir, samples_of
from eeutils.training.settings import Setting


def fold_of(ids: Int[Tensor, " samples"], folds: int, seed: int = 0) -> Int[Tensor, " samples"]:
    """The fold of each sample, 0 to `folds` - 1: equal shares, dealt at random.

    Raises:
        InputError: fewer than two folds, or more folds than samples.
    """
    if not 2 <= folds <= len(ids):
        raise InputError(f"cross-fitting needs 2 folds or more, and at most one per sample ({len(ids)}); got {folds}")
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(len(ids), dtype=torch.long)
    fold[order] = torch.arange(len(ids)) % folds
    return fold


def out_of_fold(
    method: Method, setting: Setting, folds: int, seed: int = 0, *, progress: bool = True, **options: Any
) -> Evidence:
    """Evidence on the training samples, each one judged by a model that was trained without it.

    Args:
        method: trained once per fold on the other folds.
        setting: as for `load_or_train`.
        folds: number of models.
        seed: of the folds and of the models; several seeds give several opinions.
        progress: show bars while training.
        options: of the method.

    Returns:
        Evidence of all training samples, in the order of the training split. Folds that were trained before are read
        from the runs directory.

    Raises:
        InputError: a method that starts from another one, whose weights have seen every sample.
    """
    if method.starts_from is not None:
        raise InputError(
            f"{method.name} starts from {method.starts_from.name}, which was trained on every sample; cross-fit a "
            "method that starts from pre-trained weights"
        )
    setting, chosen = replace(setting, seed=seed), method.with_options(**options)
    key = run_key(method, setting, chosen)[:KEY_LETTERS]
    directory = runs_dir() / f"folds={folds}-{method.name}-seed{seed}-{key}"
    train = samples_of(setting, "train", method.encoders(setting, chosen))
    fold = fold_of(train.ids, folds, seed)
    parts = []
    for number in range(folds):
        path = directory / f"fold-{number}.safetensors"
        rest, held_out = (train.take(((fold == number) == out).nonzero().flatten().tolist()) for out in (False, True))
        name = f"fold{number}of{folds}-{key}"
        with only_one(name):
            if not path.exists():
                work = runs_dir() / f".work-{name}"
                model, _ = fit_anew(method, setting, chosen, rest, work, progress=progress)
                if loop.processes().is_main_process:
                    record(model, held_out, progress=progress).save(path)
                    remove_checkpoints(work)
                loop.processes().wait_for_everyone()
        parts.append(Evidence.load(path))
    return concatenate(parts, train.ids)
