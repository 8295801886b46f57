"""What models say of training samples that they have not seen: cross-fitting.

A model is sure of what it was trained on. Whoever wants to know how difficult a training sample is must ask a model
that never saw it: the samples are dealt into folds, and each fold is judged by a model trained on all the others.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from eeutils import training
from eeutils.checkpoints import remove_checkpoints
from eeutils.errors import InputError
from eeutils.evidence import Evidence, concatenate, record
from eeutils.method import Method
from eeutils.runs import classes_of, first_process_first, metric_of, only_one, run_key, runs_dir, samples_of
from eeutils.settings import Setting

log = logging.getLogger(__name__)


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
        method: trained once per fold on the other folds; dev chooses its epoch, as always.
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
    setting, options = replace(setting, seed=seed), method.with_options(**options)
    key = run_key(method, setting, options)
    directory = runs_dir() / f"folds={folds}-{method.name}-seed{seed}-{key[:10]}"
    reads = method.reads(setting, **options)
    train = samples_of(setting, "train", reads)
    fold = fold_of(train.ids, folds, seed)
    parts = []
    for number in range(folds):
        path = directory / f"fold-{number}.safetensors"
        rest, held_out = ((fold == number) == wanted for wanted in (False, True))
        with only_one(f"fold{number}-{key}"):
            if not path.exists():
                work = runs_dir() / f".work-fold{number}of{folds}-{key[:10]}"
                training.set_seed(seed)
                model = method.build(setting, classes_of(setting), **options)
                log.info("training %s without fold %d of %d, seed %d", method.name, number + 1, folds, seed)
                training.fit(
                    model,
                    method.phases(**options),
                    train.take(rest.nonzero().flatten().tolist()),
                    samples_of(setting, "dev", reads),
                    metric_of(setting.task),
                    setting,
                    work,
                    progress=progress,
                )
                with first_process_first():
                    if not path.exists():
                        record(model, train.take(held_out.nonzero().flatten().tolist())).save(path)
                        remove_checkpoints(work)
        parts.append(Evidence.load(path))
    return concatenate(parts, train.ids)
