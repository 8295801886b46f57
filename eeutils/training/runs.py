"""One directory per run: load it if it is there, else train it."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor

from eeutils.data import metrics
from eeutils.data.samples import Samples, encode_split
from eeutils.data.specs import spec_of
from eeutils.data.tasks import task_of
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.tradeoff import Metric
from eeutils.files import atomic_write, repository_root
from eeutils.models.exits import MultiExitModel
from eeutils.models.record import record, record_features
from eeutils.models.stages import MultiStageModel
from eeutils.models.vocabularies import tokenizers_of
from eeutils.training import loop
from eeutils.training.checkpoints import remove_checkpoints
from eeutils.training.fingerprint import environment, key_of, run_config, run_key
from eeutils.training.method import Method, Options
from eeutils.training.probes import fit_probes, learned_exits, probe_evidence
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
        return self._kept("dev", self._record)

    @cached_property
    def test(self) -> Evidence:
        """Evidence on test: for reporting."""
        return self._kept("test", self._record)

    @cached_property
    def train(self) -> Evidence:
        """Evidence on the training samples, recorded when first asked for: what the model says of what it has seen."""
        return self._kept("train", self._record)

    def _record(self, split: str) -> None:
        record(self.model(), self.samples(split), progress=True).save(self._path(split))

    @cached_property
    def probe_dev(self) -> Evidence:
        """What linear probes on the vectors of the exits say of dev; an error for a model that is no encoder with
        exits."""
        return self._kept("probe-dev", self._record_probes)

    @cached_property
    def probe_test(self) -> Evidence:
        """The same on test: linear exits on the frozen encoder of this checkpoint, at the cost of its own exits."""
        return self._kept("probe-test", self._record_probes)

    def _record_probes(self, _: str) -> None:
        model = self.model()
        if not isinstance(model, MultiExitModel):
            raise InputError(f"probes read the vectors of exits on one encoder, and {self.method.title} has none")
        recorded = {name: record_features(model, self.samples(name)) for name in SPLITS}
        _save_probes(self.directory, model, self.samples("train"), recorded)

    def _path(self, name: str) -> Path:
        return self.directory / f"evidence-{name}.safetensors"

    def _kept(self, name: str, make: Callable[[str], None]) -> Evidence:
        """The evidence of that name, made first where it is not there: by one process of those that work together."""
        with loop.processes().main_process_first():
            if not self._path(name).exists():
                make(name)
        return Evidence.load(self._path(name))

    @property
    def has_probes(self) -> bool:
        """Whether probes stand beside its exits: they do wherever one encoder has several."""
        return self._path("probe-dev").exists()

    @cached_property
    def learned(self) -> pd.DataFrame:
        """Whether every exit has learned, on dev: see `probes.learned_exits`."""
        return learned_exits(self.dev, self.probe_dev, self.metric)

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


def fit_anew(
    method: Method,
    setting: Setting,
    options: Options,
    train: Samples,
    work: Path,
    *,
    parent: Run | None = None,
    progress: bool = True,
) -> tuple[MultiStageModel, pd.DataFrame]:
    """Build a model and train it.

    Args:
        train: what it learns from.
        work: folder for checkpoints; what was interrupted goes on from there.
        parent: the run whose weights it starts from, where the method has one.

    Returns:
        The trained model and the training history.
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
    ended = work / "trained"
    if not ended.exists():
        history = loop.fit(model, method.phases(options), train, setting, work, progress=progress)
        if loop.processes().is_main_process:
            with atomic_write(ended) as partial_directory:
                partial_directory.mkdir()
                save_model(model, str(partial_directory / "model.safetensors"))
                history.to_csv(partial_directory / "history.csv", index=False)
        loop.processes().wait_for_everyone()
    # What was trained is read back, also by a later call that finds it: then the recording alone had failed.
    _read_weights(model, ended / "model.safetensors")
    history = pd.read_csv(ended / "history.csv")
    # The caller of the main process takes the folder away, while another process may still be reading.
    loop.processes().wait_for_everyone()
    return model.to(loop.best_device()).eval(), history


def _train(run: Run, config: dict[str, Any], parent: Run | None, progress: bool) -> None:
    work, train = runs_dir() / f".work-{key_of(config)[:KEY_LETTERS]}", run.samples("train")
    model, history = fit_anew(run.method, run.setting, run.options, train, work, parent=parent, progress=progress)
    state = loop.processes()
    if state.is_main_process:
        with atomic_write(run.directory) as partial_directory:
            partial_directory.mkdir()
            save_model(model, str(partial_directory / "model.safetensors"))
            # A single exit needs no probe to be judged by: there is no other to leave at.
            if isinstance(model, MultiExitModel) and model.stages > 1:
                pass_of = partial(record_features, model, progress=progress)
                recorded = {split: pass_of(run.samples(split)) for split in SPLITS}
                _save_probes(partial_directory, model, train, recorded)
                evidence = {split: exits for split, (exits, _) in recorded.items()}
            else:
                evidence = {split: record(model, run.samples(split), progress=progress) for split in SPLITS}
            for split, exits in evidence.items():
                exits.save(partial_directory / f"evidence-{split}.safetensors")
            history.to_csv(partial_directory / "history.csv", index=False)
            for name, facts in (("config", config), ("environment", environment())):
                (partial_directory / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
        remove_checkpoints(work)
    state.wait_for_everyone()


def as_trained(device: torch.device) -> torch.autocast:
    """What is computed inside has training's precision: for vectors that something is fitted on. Evidence is recorded
    in the model's own."""
    return torch.autocast(device.type, torch.bfloat16, enabled=loop.precision() == "bf16")


def _save_probes(
    directory: Path, model: MultiExitModel, train: Samples, recorded: Mapping[str, tuple[Evidence, Tensor]]
) -> None:
    # In single precision a base-size encoder takes four times as long for so many samples.
    with as_trained(next(model.parameters()).device):
        features = record_features(model, train)[1]
    probes = fit_probes(features, train.labels)
    for split, (exits, features) in recorded.items():
        probe_evidence(probes, features, exits).save(directory / f"evidence-probe-{split}.safetensors")


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
    metric = partial(metrics.headline, spec_of(task))
    metric.averages = spec_of(task).metrics[0] == "accuracy"
    return metric


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
