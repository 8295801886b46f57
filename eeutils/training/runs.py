"""One directory per run: load it if it is there, else train it."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from eeutils.data import metrics
from eeutils.data.samples import Samples, encode_split
from eeutils.data.specs import spec_of
from eeutils.data.tasks import task_of
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.tradeoff import Metric
from eeutils.files import atomic_write, repository_root
from eeutils.models.record import record
from eeutils.models.stages import MultiStageModel
from eeutils.models.vocabularies import tokenizers_of
from eeutils.training import loop
from eeutils.training.checkpoints import remove_checkpoints
from eeutils.training.fingerprint import environment, key_of, run_config, run_key
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting

log = logging.getLogger(__name__)

SPLITS = ("dev", "test")
"""What evidence is recorded on once a model is trained."""

KEY_LETTERS = 10
"""Of a run's key, so many stand in the name of its folder."""


def runs_dir() -> Path:
    """Where runs are kept: `$EEUTILS_RUNS`, or `runs/` in the repository."""
    return Path(os.environ.get("EEUTILS_RUNS", repository_root() / "runs"))


@dataclass(frozen=True)
class Run:
    """A trained model and what it said, read from disk when asked for."""

    directory: Path
    method: Method
    setting: Setting
    options: Options

    @cached_property
    def dev(self) -> Evidence:
        """Evidence on dev: for choosing thresholds."""
        return self._evidence("dev")

    @cached_property
    def test(self) -> Evidence:
        """Evidence on test: for reporting."""
        return self._evidence("test")

    @cached_property
    def train(self) -> Evidence:
        """Evidence on the training samples, recorded when first asked for: what the model says of what it has seen."""
        return self._evidence("train")

    def _evidence(self, split: str) -> Evidence:
        path = self.directory / f"evidence-{split}.safetensors"
        with loop.processes().main_process_first():
            if not path.exists():
                record(self.model(), self.samples(split), progress=True).save(path)
        return Evidence.load(path)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per phase and epoch, as `loop.fit` returns it."""
        return pd.read_csv(self.directory / "history.csv")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What decided this run: method, options, setting, data and code fingerprints."""
        return json.loads((self.directory / "config.json").read_text())

    @property
    def metric(self) -> Metric:
        """The task's headline metric."""
        return metric_of(self.setting.task)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders that the model is made of."""
        return self.method.encoders(self.setting, self.options)

    def samples(self, split: str) -> Samples:
        """A split of this run's task, tokenised as the model saw it."""
        return samples_of(self.setting, split, self.encoders)

    def model(self) -> MultiStageModel:
        """The trained model, in evaluation mode, on the accelerator if there is one."""
        model = self.method.build(self.setting, classes_of(self.setting), self.options)
        _read_weights(model, self.directory / "model.safetensors")
        return model.to(loop.best_device()).eval()

    def evidence_on(self, task: str, split: str = "test") -> Evidence:
        """Evidence on a split of ANOTHER task with the same classes: does what was learned here hold there?

        Raises:
            InputError: a task with other classes.
        """
        if spec_of(task).class_names != spec_of(self.setting.task).class_names:
            raise InputError(
                f"this run answers {self.setting.task!r} and {task!r} has other classes; choose a task with the same"
            )
        other = task_of(task, None, None)
        path = self.directory / f"evidence-{Path(task).name}-{other.fingerprint[:KEY_LETTERS]}-{split}.safetensors"
        if not path.exists():
            elsewhere = encode_split(tokenizers_of(self.encoders), getattr(other, split), self.setting.max_length)
            record(self.model(), elsewhere, progress=True).save(path)
        return Evidence.load(path)


def load_or_train(method: Method, setting: Setting, *, progress: bool = True, **options: Any) -> Run:
    """The run of a method in a setting: loaded in milliseconds when it is there, else trained, resuming what was begun.

    Two processes that want the same run do the work once. Under `accelerate launch` all processes train together and
    the first one writes.

    Raises:
        InputError: an unknown option, and whatever data, backbone and training refuse.
    """
    chosen = method.with_options(**options)
    # Read once: by the end of a long training somebody may have edited the code.
    config = run_config(method, setting, chosen)
    key = key_of(config)
    run = Run(_directory(method, setting, chosen, key), method, setting, chosen)
    if run.directory.exists():
        return run
    parent = None
    if method.starts_from is not None:
        parent = load_or_train(method.starts_from, setting, progress=progress)
    with only_one(key[:KEY_LETTERS]):
        if not run.directory.exists():
            _train(run, config, parent, progress)
    return run


def find(method: Method, setting: Setting, **options: Any) -> Run | None:
    """The run of a method in a setting if it is there already, or None: nothing is trained."""
    chosen = method.with_options(**options)
    directory = _directory(method, setting, chosen, run_key(method, setting, chosen))
    return Run(directory, method, setting, chosen) if directory.exists() else None


def _directory(method: Method, setting: Setting, options: Options, key: str) -> Path:
    # Every option that differs from the default shows in the name, so that a person finds the run, too.
    changed = "".join(f"-{name}={_word(value)}" for name, value in options.changed().items())
    name = f"{method.name}{changed}-{Path(setting.task).name}-seed{setting.seed}-{key[:KEY_LETTERS]}"
    return runs_dir() / name


def _word(value: Any) -> str:
    """A value in a folder's name: a path or a tuple of names would not do as it is."""
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")[-40:]


@contextmanager
def only_one(work: str) -> Iterator[None]:
    """Of several that want the same work one does it at a time; processes that train together count as one."""
    runs_dir().mkdir(parents=True, exist_ok=True)
    state = loop.processes()
    # Of processes that train together the first one holds the lock for all.
    with FileLock(runs_dir() / f".lock-{work}") if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        yield


def fit_and_record(
    method: Method,
    setting: Setting,
    options: Options,
    train: Samples,
    dev: Samples,
    splits: Mapping[str, Samples],
    work: Path,
    *,
    parent: Run | None = None,
    progress: bool = True,
) -> tuple[MultiStageModel, pd.DataFrame, dict[str, Evidence]]:
    """Build a model, train it, and record what it says of each of `splits`.

    Args:
        train, dev: what it learns from, and what chooses its epochs.
        work: folder for checkpoints; what was interrupted goes on from there.
        parent: the run whose weights it starts from, where the method has one.

    Returns:
        The trained model, the training history, and evidence by split (of the first process alone, where several train
        together; empty in the others).
    """
    loop.set_seed(setting.seed)
    model = method.build(setting, classes_of(setting), options)
    if spec_of(setting.task).kind == "regression":
        loop.start_at_mean(model, train)
    if parent is not None:
        _load_into(model, parent.directory / "model.safetensors")
    # Once the model stands: what it refuses is told before notes are made, which may take many trainings.
    train = train.with_notes(**method.annotate(setting, options))
    log.info("training %s on %s, seed %s", method.name, setting.task, setting.seed)
    history = loop.fit(
        model, method.phases(options), train, dev, metric_of(setting.task), setting, work, progress=progress
    )
    if not loop.processes().is_main_process:
        return model, history, {}
    return model, history, {name: record(model, samples, progress=progress) for name, samples in splits.items()}


def _train(run: Run, config: dict[str, Any], parent: Run | None, progress: bool) -> None:
    method, setting, options = run.method, run.setting, run.options
    work = runs_dir() / f".work-{key_of(config)[:KEY_LETTERS]}"
    train = run.samples("train")
    splits = {split: run.samples(split) for split in SPLITS}
    model, history, evidence = fit_and_record(
        method, setting, options, train, splits["dev"], splits, work, parent=parent, progress=progress
    )
    state = loop.processes()
    if state.is_main_process:
        with atomic_write(run.directory) as partial_directory:
            partial_directory.mkdir()
            save_model(model, str(partial_directory / "model.safetensors"))
            for split, recorded in evidence.items():
                recorded.save(partial_directory / f"evidence-{split}.safetensors")
            history.to_csv(partial_directory / "history.csv", index=False)
            for name, facts in (("config", config), ("environment", environment())):
                (partial_directory / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
        remove_checkpoints(work)
    state.wait_for_everyone()


@lru_cache(maxsize=32)
def samples_of(setting: Setting, split: str, encoders: tuple[str, ...] = ()) -> Samples:
    """A split of a setting's task, tokenised for its backbone, or once for each vocabulary of `encoders`."""
    task = task_of(setting.task, setting.train_size, setting.test_size)
    return encode_split(tokenizers_of(encoders or (setting.backbone,)), getattr(task, split), setting.max_length)


def classes_of(setting: Setting) -> int:
    """C: the number of classes of a setting's task, 1 for regression."""
    return len(spec_of(setting.task).class_names) or 1


def metric_of(task: str) -> Metric:
    """The headline metric of a task, (predictions, labels) -> score."""
    return partial(metrics.headline, spec_of(task))


def _read_weights(
    model: MultiStageModel, weights: Path, strict: bool = True
) -> tuple[Collection[str], Collection[str]]:
    try:
        return load_model(model, weights, strict=strict)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights} cannot be read ({error}); delete its folder and run again") from error


def _load_into(model: MultiStageModel, weights: Path) -> None:
    """Load another method's weights where the names agree; all of them must find a place."""
    missing, unexpected = _read_weights(model, weights, strict=False)
    if unexpected:
        raise InputError(f"{weights} holds weights that this model has no place for, such as {sorted(unexpected)[0]}")
    log.debug("%d tensors are new", len(missing))
