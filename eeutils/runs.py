"""One directory per run: load it if it is there, else train it.

A run is found again by everything that decides its result: method, options, setting, data, pre-trained weights, metric,
precision, the code that trains it (its docstrings and comments aside), and the run it started from. So a changed method
trains again, a changed plot does not, and notebooks that need the same model share it.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from eeutils import backbone, batching, checkpoints, cost, evidence, exits, metrics, readers, tasks, tradeoff, training
from eeutils.backbone import load_tokenizer
from eeutils.batching import Samples, encode_split
from eeutils.checkpoints import remove_checkpoints
from eeutils.errors import InputError
from eeutils.evidence import Evidence, record
from eeutils.exits import Exit, MultiStageModel
from eeutils.files import atomic_write, repository_root, sha256
from eeutils.method import Method
from eeutils.settings import Setting
from eeutils.specs import spec_of
from eeutils.tasks import Task, load_task
from eeutils.tradeoff import Metric

log = logging.getLogger(__name__)

_CODE = (readers, tasks, metrics, backbone, batching, checkpoints, cost, evidence, exits, tradeoff, training)
# What these say is in a run's configuration already, or is asked only after training. One exception: ConsistentEE's
# monitor asks `rules.policy`; who changes that deletes its runs.
_DECIDE_NOTHING = {
    f"eeutils.{name}" for name in ("errors", "files", "method", "rules", "runs", "settings", "sources", "specs")
}
SPLITS = ("dev", "test")


def runs_dir() -> Path:
    """Where runs are kept: `$EEUTILS_RUNS`, or `runs/` in the repository."""
    return Path(os.environ.get("EEUTILS_RUNS", repository_root() / "runs"))


@dataclass(frozen=True)
class Run:
    """A trained model and what it said, read from disk when asked for."""

    directory: Path
    method: Method
    setting: Setting
    options: dict[str, Any]

    @cached_property
    def dev(self) -> Evidence:
        """Evidence on dev: for choosing thresholds."""
        return Evidence.load(self.directory / "evidence-dev.safetensors")

    @cached_property
    def test(self) -> Evidence:
        """Evidence on test: for reporting."""
        return Evidence.load(self.directory / "evidence-test.safetensors")

    @cached_property
    def train(self) -> Evidence:
        """Evidence on the training samples, recorded when first asked for: what the model says of what it has seen."""
        path = self.directory / "evidence-train.safetensors"
        with first_process_first():
            if not path.exists():
                record(self.model(), self.samples("train"), progress=True).save(path)
        return Evidence.load(path)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per phase and epoch, as `training.fit` returns it."""
        return pd.read_csv(self.directory / "history.csv")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What decided this run: method, options, setting, data and code fingerprints."""
        return json.loads((self.directory / "config.json").read_text())

    @property
    def metric(self) -> Metric:
        """The task's headline metric."""
        return metric_of(self.setting.task)

    def samples(self, split: str) -> Samples:
        """A split of this run's task, tokenised as the model saw it."""
        return samples_of(self.setting, split, self.method.reads(self.setting, **self.options))

    def model(self) -> MultiStageModel:
        """The trained model, in evaluation mode, on the accelerator if there is one."""
        model = self.method.build(self.setting, classes_of(self.setting), **self.options)
        _read_weights(model, self.directory / "model.safetensors")
        return model.to(training.best_device()).eval()

    def evidence_on(self, task: str, split: str = "test") -> Evidence:
        """Evidence on a split of ANOTHER task with the same classes: does what was learned here hold there?

        Raises:
            InputError: a task with other classes.
        """
        if spec_of(task).class_names != spec_of(self.setting.task).class_names:
            raise InputError(
                f"this run answers {self.setting.task!r} and {task!r} has other classes; choose a task with the same"
            )
        name = f"evidence-{Path(task).name}-{task_of(task, None, None).fingerprint[:10]}-{split}.safetensors"
        if not (self.directory / name).exists():
            tokenizers = [load_tokenizer(name) for name in self.method.reads(self.setting, **self.options)]
            elsewhere = encode_split(tokenizers, _split(task, split), self.setting.max_length)
            record(self.model(), elsewhere, progress=True).save(self.directory / name)
        return Evidence.load(self.directory / name)


def load_or_train(method: Method, setting: Setting, *, progress: bool = True, **options: Any) -> Run:
    """The run of a method in a setting: loaded in milliseconds when it is there, else trained, resuming what was begun.

    Two processes that want the same run do the work once. Under `accelerate launch` all processes train together and
    the first one writes.

    Raises:
        InputError: an unknown option, and whatever data, backbone and training refuse.
    """
    options = method.with_options(**options)
    config = _config(method, setting, options)
    key = _hash(config)
    # Every option that differs from the default shows in the name, so that a person finds the run, too.
    changed = "".join(f"-{name}={_word(options[name])}" for name in options if options[name] != method.options[name])
    directory = runs_dir() / f"{method.name}{changed}-{Path(setting.task).name}-seed{setting.seed}-{key[:10]}"
    run = Run(directory, method, setting, options)
    if directory.exists():
        return run
    parent = None
    if method.starts_from is not None:
        parent = load_or_train(method.starts_from, setting, progress=progress)
    with only_one(key):
        if not directory.exists():
            _train(run, config, parent, progress)
    return run


@contextmanager
def only_one(key: str) -> Iterator[None]:
    """Of several that want the same work one does it at a time; processes that train together count as one."""
    runs_dir().mkdir(parents=True, exist_ok=True)
    state = training.processes()
    # Of processes that train together the first one holds the lock for all.
    with FileLock(runs_dir() / f".lock-{key[:10]}") if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        yield


@contextmanager
def first_process_first() -> Iterator[None]:
    """Of processes that train together the first one runs the block before the others do."""
    state = training.processes()
    if not state.is_main_process:
        state.wait_for_everyone()
    yield
    if state.is_main_process:
        state.wait_for_everyone()


def run_key(method: Method, setting: Setting, options: dict[str, Any]) -> str:
    """What tells runs apart: a hash of all that decides their result."""
    return _hash(_config(method, setting, options))


def _train(run: Run, config: dict[str, Any], parent: Run | None, progress: bool) -> None:
    method, setting, state = run.method, run.setting, training.processes()
    work = runs_dir() / f".work-{_hash(config)[:10]}"
    training.set_seed(setting.seed)
    model = method.build(setting, classes_of(setting), **run.options)
    if spec_of(setting.task).kind == "regression":
        _start_at_mean(model, run.samples("train"))
    if parent is not None:
        _load_into(model, parent.directory / "model.safetensors")
    log.info("training %s on %s, seed %s", method.name, setting.task, setting.seed)
    history = training.fit(
        model,
        method.phases(**run.options),
        run.samples("train").with_notes(**method.annotate(setting, **run.options)),
        run.samples("dev"),
        run.metric,
        setting,
        work,
        progress=progress,
    )
    if state.is_main_process:
        with atomic_write(run.directory) as partial_directory:
            partial_directory.mkdir()
            save_model(model, str(partial_directory / "model.safetensors"))
            for split in SPLITS:
                recorded = record(model, run.samples(split), progress=progress)
                recorded.save(partial_directory / f"evidence-{split}.safetensors")
            history.to_csv(partial_directory / "history.csv", index=False)
            (partial_directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            (partial_directory / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
        remove_checkpoints(work)
    state.wait_for_everyone()


@lru_cache(maxsize=32)
def task_of(name: str, train_size: int | None, test_size: int | None) -> Task:
    """A task's splits, read once per process."""
    return load_task(name, train_size=train_size, test_size=test_size)


@lru_cache(maxsize=32)
def samples_of(setting: Setting, split: str, backbones: tuple[str, ...] = ()) -> Samples:
    """A split of a setting's task, tokenised for its backbone, or for each of `backbones`."""
    task = task_of(setting.task, setting.train_size, setting.test_size)
    tokenizers = [load_tokenizer(name) for name in backbones or (setting.backbone,)]
    return encode_split(tokenizers, getattr(task, split), setting.max_length)


def _split(name: str, split: str):
    return getattr(task_of(name, None, None), split)


def classes_of(setting: Setting) -> int:
    """C: the number of classes of a setting's task, 1 for regression."""
    return len(spec_of(setting.task).class_names) or 1


def metric_of(task: str) -> Metric:
    """The headline metric of a task, (predictions, labels) -> score."""
    return partial(metrics.headline, spec_of(task))


def environment() -> dict[str, Any]:
    """What a result was made with: versions, processor, threads, device, commit, time."""
    state = training.processes()
    packages = ("torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "scikit-learn", "eeutils")
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else training.best_device().type,
        "processes": state.num_processes,
        "precision": training.precision(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The git commit of the repository, with "+changes" when files differ from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository_root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD")[:12] + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _read_weights(
    model: MultiStageModel, weights: Path, strict: bool = True
) -> tuple[Collection[str], Collection[str]]:
    try:
        return load_model(model, weights, strict=strict)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights} cannot be read ({error}); delete its folder and run again") from error


def _start_at_mean(model: MultiStageModel, train: Samples) -> None:
    """Let every exit begin with the mean of the numbers that it is to learn.

    One step moves a bias by no more than the learning rate, so a mean far from zero is reached through the encoder
    instead: exits that learn together then bend it to one constant, and may learn nothing else in a short training.
    """
    mean = train.labels.double().mean().item()
    for module in model.modules():
        if isinstance(module, Exit):
            torch.nn.init.constant_(module.classifier.bias, mean)


def _load_into(model: MultiStageModel, weights: Path) -> None:
    """Load another method's weights where the names agree; all of them must find a place."""
    missing, unexpected = _read_weights(model, weights, strict=False)
    if unexpected:
        raise InputError(f"{weights} holds weights that this model has no place for, such as {sorted(unexpected)[0]}")
    log.debug("%d tensors are new", len(missing))


def _config(method: Method, setting: Setting, options: dict[str, Any]) -> dict[str, Any]:
    parent = method.starts_from
    return {
        "method": method.name,
        "options": options,
        "setting": setting.to_dict(),
        "weights": _weights_fingerprint(setting.backbone),
        "metrics": spec_of(setting.task).metrics,
        "data": task_of(setting.task, setting.train_size, setting.test_size).fingerprint,
        "code": _code_fingerprint(method),
        # Where the answers of a regression begin, see `_start_at_mean`.
        **({"begins": "mean"} if spec_of(setting.task).kind == "regression" else {}),
        "starts_from": _hash(_config(parent, setting, parent.with_options())) if parent else None,
        **({"precision": training.precision()} if training.precision() != "no" else {}),
        # Further encoders, where an option names them.
        **({"models": [_weights_fingerprint(name) for name in options["models"]]} if options.get("models") else {}),
    }


@lru_cache
def _weights_fingerprint(name: str) -> str:
    """What a backbone's name stands for: a folder may get other weights under the same name."""
    files = sorted(path for path in Path(name).glob("*") if path.is_file())
    return _hash([[path.name, sha256(path)] for path in files]) if files else name


def _code_fingerprint(method: Method) -> str:
    """The code of the paper, and of whatever it and training import of this package."""
    found: dict[str, ModuleType] = {}
    waiting = [*_CODE, sys.modules[method.build.__module__]]
    while waiting:
        module = waiting.pop()
        if module.__name__ not in found and module.__name__ not in _DECIDE_NOTHING:
            found[module.__name__] = module
            waiting += _imports_of(module)
    # The method's file counts by what it says, wherever it lies.
    return _hash(sorted(_without_prose(inspect.getsource(module)) for module in found.values()))


def _imports_of(module: ModuleType) -> list[ModuleType]:
    return [sys.modules[name] for name in _imported_names(inspect.getsource(module)) if name in sys.modules]


# The syntax of a module is read once for each text that it has had: a study asks for hundreds of runs.
@lru_cache
def _imported_names(source: str) -> list[str]:
    lines = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module]
    names = [name for line in lines for alias in line.names for name in (line.module, f"{line.module}.{alias.name}")]
    return [name for name in names if name.startswith("eeutils.")]


@lru_cache
def _without_prose(source: str) -> str:
    """A module's syntax tree without docstrings, those of constants included (comments are never in it)."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [line for line in node.body if not _is_prose(line)] or [ast.Pass()]
    return ast.dump(tree)


def _is_prose(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _word(value: Any) -> str:
    """A value in a folder's name: a path or a tuple of names would not do as it is."""
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")[-40:]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
