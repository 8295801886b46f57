"""Runs: trained once, found again by all that decides their result, never half there."""

import importlib.util
import inspect
import json
import linecache
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from eeutils.data import tasks
from eeutils.data.metrics import headline
from eeutils.data.samples import Batch
from eeutils.data.specs import TASKS
from eeutils.data.tasks import Task
from eeutils.errors import InputError
from eeutils.models.record import record
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.papers import badge, de3bert, deebert, finetuned, hashee, pabee
from eeutils.papers.controls import prototypes_afterwards
from eeutils.training import fingerprint, loop, runs
from eeutils.training.checkpoints import Checkpoints
from eeutils.training.loop import Phase
from eeutils.training.method import Method, Notes, Options
from eeutils.training.runs import Run, load_or_train
from eeutils.training.settings import Setting
from tests.tiny import tiny_task

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.usefixtures("tiny_tasks")


def train(method: object = finetuned.METHOD, setting: Setting | None = None, **options: object) -> Run:
    return load_or_train(method, setting, progress=False, **options)


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("this run is there: nothing may be trained")


def names() -> list[str]:
    return sorted(path.name for path in runs.runs_dir().iterdir() if not path.name.startswith(".lock"))


def test_a_run_that_is_there_is_loaded_without_training(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(pabee.METHOD, setting)
    monkeypatch.setattr(loop, "fit", refuse)
    second = train(pabee.METHOD, setting)
    assert second.directory == first.directory
    assert torch.equal(first.test.logits, second.test.logits)
    assert second.history.phase.tolist() == ["joint", "joint"]
    assert names() == [first.directory.name], "checkpoints go once the run is safe"


def test_a_run_holds_what_it_was_made_with(setting: Setting) -> None:
    run = train(setting=setting)
    assert run.config["method"] == "finetuned"
    assert run.config["setting"] == setting.to_dict()
    assert run.config["data"] == tiny_task().fingerprint
    environment = json.loads((run.directory / "environment.json").read_text())
    assert {"python", "packages", "commit", "time", "device", "threads"} <= set(environment)
    assert run.dev.ids.tolist() == list(range(1000, 1020))
    assert run.test.ids.tolist() == list(range(2000, 2024))
    assert run.test.labels.tolist() == tiny_task().test["label"]
    assert run.metric(run.test.predictions[0].numpy(), run.test.labels.numpy()) == headline(
        TASKS["movie"], run.test.predictions[0].numpy(), run.test.labels.numpy()
    )


def test_the_model_of_a_run_says_again_what_its_evidence_says(setting: Setting) -> None:
    # Poolers copied anew while loading, or a head that is not saved, would say something else.
    for method in (finetuned.METHOD, deebert.METHOD, pabee.METHOD):
        run = train(method, setting)
        torch.manual_seed(123)
        model = run.model()
        assert not model.training
        torch.testing.assert_close(record(model, run.samples("test")).logits, run.test.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"epochs": 1}, {"learning_rate": 2e-3}, {"pool": "mean"}, {"train_size": 40}, {"task": "amazon"}],
    ids=str,
)
def test_another_setting_is_another_run(setting: Setting, changes: dict[str, object]) -> None:
    other = train(setting=replace(setting, **changes))
    assert other.directory != train(setting=setting).directory
    assert len(names()) == 2


def test_another_option_is_another_run_and_shows_in_its_name(setting: Setting) -> None:
    plain, shallow = train(setting=setting), train(setting=setting, layers=2)
    assert plain.directory != shallow.directory
    assert "-layers=2-" in shallow.directory.name
    assert "layers" not in plain.directory.name
    assert (shallow.test.layers, shallow.test.reference_layers) == ((2,), 4)
    with pytest.raises(InputError, match=r"unknown option of finetuned 'layer' \(did you mean 'layers'\?\)"):
        train(setting=setting, layer=2)


def test_other_data_is_another_run(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(setting=setting)
    monkeypatch.setattr(tasks, "load_task", lambda name, **sizes: replace(tiny_task(), fingerprint="corrected"))
    tasks.task_of.cache_clear()
    assert train(setting=setting).directory != first.directory


METHOD_FILE = '''
"""A method."""
from eeutils.training.method import Method
from eeutils.papers import finetuned


def build(setting, classes, options):
    """Build it."""
    # A comment.
    return finetuned.build(setting, classes, finetuned.METHOD.options)


METHOD = Method("mine", "Mine", "nobody", build, finetuned.METHOD.phases, {}, finetuned.METHOD.options)
'''


def method_from(folder: Path, name: str, source: str) -> object:
    """The METHOD of a file, as a paper's file would be imported."""
    path = folder / f"{name}.py"
    path.write_text(source)
    specification = importlib.util.spec_from_file_location(name, path)
    module: ModuleType = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module.METHOD


@pytest.mark.parametrize(
    ("change", "new"),
    [
        (lambda source: source.replace("# A comment.", "# Another comment, longer than the first."), False),
        (lambda source: source.replace('"""Build it."""', '"""Build it with care.\n\n    And more.\n    """'), False),
        (lambda source: source.replace("\n\n\n", "\n\n\n\n"), False),
        (
            lambda source: source.replace(
                "from eeutils.papers import finetuned", "import eeutils.papers.finetuned as finetuned"
            ),
            False,
        ),
        (lambda source: source.replace("finetuned.METHOD.options)", "finetuned.METHOD.with_options(layers=1))"), True),
        (lambda source: source.replace('"Mine"', '"Yours"'), True),
    ],
    ids=["comment", "docstring", "empty line", "import", "code", "text in code"],
)
def test_changed_code_is_another_run_and_changed_prose_is_not(
    setting: Setting, tmp_path: Path, change: Callable[[str], str], new: bool
) -> None:
    assert change(METHOD_FILE) != METHOD_FILE
    first = train(method_from(tmp_path, "mine_before", METHOD_FILE), setting)
    second = train(method_from(tmp_path, "mine_after", change(METHOD_FILE)), setting)
    assert (first.directory != second.directory) == new


def key_of(method: Method, setting: Setting) -> str:
    return fingerprint.run_key(method, setting, method.options)


@pytest.fixture
def change_source(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[str], str]], None]:
    """Let a module of eeutils read as if its source had been edited."""
    getsource = inspect.getsource

    def change(module: str, edit: Callable[[str], str]) -> None:
        def source(what: ModuleType) -> str:
            return edit(getsource(what)) if what.__name__ == f"eeutils.{module}" else getsource(what)

        whole = getsource(importlib.import_module(f"eeutils.{module}"))
        assert edit(whole) != whole
        monkeypatch.setattr(fingerprint.inspect, "getsource", source)

    return change


@pytest.mark.parametrize(
    "module",
    [
        *("training.loop", "training.checkpoints", "models.exits", "models.stages", "models.backbone", "models.record"),
        *("models.cost", "data.samples", "exiting.evidence"),
    ],
)
def test_changed_shared_code_is_another_run(setting: Setting, change_source: Callable, module: str) -> None:
    before = fingerprint.run_config(deebert.METHOD, setting, deebert.METHOD.options)
    change_source(module, lambda source: source + "\nmore = 1\n")
    after = fingerprint.run_config(deebert.METHOD, setting, deebert.METHOD.options)
    assert before["code"] != after["code"]
    assert before["starts_from"] != after["starts_from"]


def test_a_new_family_a_moved_import_and_a_renamed_docstring_retrain_nothing(
    setting: Setting, change_source: Callable
) -> None:
    before = key_of(deebert.METHOD, setting)
    new = """
def _embed_new(model, input_ids, token_type_ids):
    return model.new(input_ids)

FAMILIES |= {"new": Family(_embed_new, _layers_encoder, _parts_bert, _cut_encoder)}
"""
    change_source("models.families", lambda source: source + new)
    assert key_of(deebert.METHOD, setting) == before
    entry = '"albert": Family('
    change_source("models.families", lambda source: source.replace(entry, f'"new": _BERT,\n    {entry}'))
    assert key_of(deebert.METHOD, setting) == before
    line = "from eeutils.errors import InputError\n"
    change_source(
        "training.loop", lambda source: source.replace(line, "").replace("import math\n", f"import math\n{line}")
    )
    assert key_of(deebert.METHOD, setting) == before
    change_source("training.loop", lambda source: source.replace("Train a model in place", "Teach a model"))
    assert key_of(deebert.METHOD, setting) == before


def test_how_the_own_family_is_run_counts(setting: Setting, change_source: Callable) -> None:
    before = key_of(deebert.METHOD, setting)
    change_source("models.families", lambda source: source.replace("return layer(states, shared)", "return states"))
    assert key_of(deebert.METHOD, setting) != before
    change_source(
        "models.families", lambda source: source.replace("inner.q_lin, inner.k_lin", "inner.k_lin, inner.q_lin")
    )
    assert key_of(deebert.METHOD, setting) == before, "that is DistilBERT's"


def test_the_code_that_a_paper_borrows_counts_and_what_only_reads_evidence_or_data_does_not(
    setting: Setting, change_source: Callable
) -> None:
    methods = (badge.METHOD, pabee.METHOD)
    before = {method.name: key_of(method, setting) for method in methods}

    def after(changed: str) -> set[str]:
        change_source(changed, lambda source: source + "\nmore = 1\n")
        return {method.name for method in methods if key_of(method, setting) != before[method.name]}

    assert after("papers.pabee") == {"badge", "pabee"}, "badge trains with pabee's loss"
    assert after("papers.badge") == {"badge"}
    for module in (
        "exiting.rules",
        "exiting.tradeoff",
        "exiting.claims",
        "data.readers",
        "data.tasks",
        "training.fingerprint",
    ):
        assert after(module) == set(), module


def test_the_code_of_a_control_counts_for_the_method_that_trains_with_it(
    setting: Setting, change_source: Callable
) -> None:
    methods = (de3bert.METHOD, prototypes_afterwards.UNREGULARISED)
    before = [key_of(method, setting) for method in methods]
    change_source("papers.controls.prototypes_afterwards", lambda source: source + "\nmore = 1\n")
    after = [key_of(method, setting) for method in methods]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_code_that_is_edited_during_a_training_is_not_what_the_run_says_it_was_made_with(
    setting: Setting, change_source: Callable
) -> None:
    def objective(*arguments: object) -> torch.Tensor:
        change_source("training.loop", lambda source: source + "\nmore = 1\n")
        return finetuned.last_exit_loss(*arguments)

    run = train(finetuned_by(objective), setting)
    assert fingerprint.key_of(run.config)[:10] == run.directory.name.rsplit("-", 1)[1]


def test_find_gives_what_is_there_and_trains_nothing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.find(finetuned.METHOD, setting, layers=2) is None
    run = train(setting=setting, layers=2)
    monkeypatch.setattr(loop, "fit", refuse)
    assert runs.find(finetuned.METHOD, setting, layers=2).directory == run.directory
    assert runs.find(finetuned.METHOD, setting) is None


def finetuned_by(objective: Callable) -> Method:
    """The plain model's method with another objective."""
    return replace(finetuned.METHOD, phases=lambda options: [Phase("fine-tune", objective)])


def test_a_run_that_was_interrupted_is_never_taken_for_one_and_goes_on(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(setting=setting)
    whole.directory.rename(whole.directory.with_name("kept"))
    steps = []

    def objective(*arguments: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 9:  # in the second epoch
            raise KeyboardInterrupt
        return finetuned.last_exit_loss(*arguments)

    broken = finetuned_by(objective)
    monkeypatch.setattr(Checkpoints, "due", True)
    with pytest.raises(KeyboardInterrupt):
        train(broken, setting)
    assert names() == [next(name for name in names() if name.startswith(".work-")), "kept"]
    again = train(broken, setting)
    assert len(steps) == 9 + 4, "the eight steps that were saved must not be trained again"
    kept = replace(whole, directory=whole.directory.with_name("kept"))
    assert torch.equal(again.test.logits, kept.test.logits)
    assert again.directory.exists()


@pytest.mark.parametrize("what", ["Evidence.save", "environment"])
def test_a_full_disk_leaves_no_half_run_and_the_next_call_does_not_train_again(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    steps = []

    def objective(*arguments: object) -> torch.Tensor:
        steps.append(1)
        return finetuned.last_exit_loss(*arguments)

    counted = finetuned_by(objective)
    with monkeypatch.context() as patch:
        patch.setattr(f"eeutils.training.runs.{what}", full)
        with pytest.raises(OSError, match="the disk is full"):
            train(counted, setting)
    assert all(name.startswith(".work-") for name in names())
    assert len(steps) == 12
    steps.clear()
    run = train(counted, setting)
    assert run.test.samples == 24
    assert not steps, "what was trained must not be trained again"


def test_evidence_that_was_cut_off_is_told_with_what_to_do(setting: Setting) -> None:
    run = train(setting=setting)
    path = run.directory / "evidence-test.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"evidence-test.safetensors is not readable evidence .*delete it"):
        _ = train(setting=setting).test


def test_evidence_that_was_deleted_is_recorded_again(setting: Setting) -> None:
    run = train(setting=setting)
    before = run.test.logits
    (run.directory / "evidence-test.safetensors").unlink()
    torch.testing.assert_close(train(setting=setting).test.logits, before)


def test_a_deleted_or_cut_off_file_of_a_run_is_told_with_what_to_do(setting: Setting) -> None:
    run = train(setting=setting)
    weights = run.directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"model.safetensors .*delete"):
        train(setting=setting).model()


_WORKER = """
    import sys, time
    from pathlib import Path
    from eeutils.data import tasks
    from eeutils.training import loop, runs
    from eeutils.papers import finetuned
    from eeutils.training.settings import Setting
    from tests.tiny import tiny_task
    import torch

    torch.set_num_threads(1)
    tasks.load_task = lambda name, **sizes: tiny_task()
    fit = loop.fit

    def counted(*arguments, **options):
        Path(sys.argv[2], f"trained-{sys.argv[3]}").touch()
        time.sleep(1)
        return fit(*arguments, **options)

    loop.fit = counted
    Path(sys.argv[2], f"ready-{sys.argv[3]}").touch()
    while len(list(Path(sys.argv[2]).glob("ready-*"))) < 2:
        time.sleep(0.01)
    setting = Setting(backbone=sys.argv[1], epochs=1, batch_size=8, max_length=40)
    print(runs.load_or_train(finetuned.METHOD, setting, progress=False).test.samples)
"""


def test_two_processes_that_want_the_same_run_train_it_once(encoder_folder: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EEUTILS_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", textwrap.dedent(_WORKER), encoder_folder, str(tmp_path)]
    processes = [
        subprocess.Popen([*arguments, str(number)], env=environment, stdout=subprocess.PIPE, text=True)
        for number in (1, 2)
    ]
    assert [process.communicate(timeout=120)[0].split() for process in processes] == [["24"], ["24"]]
    assert len(list(tmp_path.glob("trained-*"))) == 1


def test_deebert_s_last_exit_answers_exactly_as_the_plain_model_it_starts_from(setting: Setting) -> None:
    early, plain = train(deebert.METHOD, setting), train(finetuned.METHOD, setting)
    assert torch.equal(early.test.logits[-1], plain.test.logits[-1])
    assert torch.equal(early.dev.logits[-1], plain.dev.logits[-1])
    assert early.config["starts_from"] is not None
    assert len(names()) == 2


def test_all_deebert_off_ramps_but_the_last_start_from_the_pre_trained_pooler_and_learn(setting: Setting) -> None:
    untrained = deebert.build(setting, 2, deebert.METHOD.options)
    trained = train(deebert.METHOD, setting).model()
    plain = train(finetuned.METHOD, setting).model()
    for layer in ("1", "2", "3"):
        assert not torch.equal(trained.exits[layer].pooler.dense.weight, untrained.exits[layer].pooler.dense.weight)
    for name, tensor in plain.exits["4"].state_dict().items():
        assert torch.equal(tensor, trained.exits["4"].state_dict()[name])
    for name, tensor in plain.backbone.state_dict().items():
        assert torch.equal(tensor, trained.backbone.state_dict()[name]), name


def test_a_run_tells_what_it_says_of_another_task(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(setting=setting)
    elsewhere = run.evidence_on("amazon")
    assert elsewhere.samples == 24
    torch.testing.assert_close(elsewhere.logits, run.test.logits)
    monkeypatch.setattr(runs, "record", refuse)
    assert torch.equal(run.evidence_on("amazon").logits, elsewhere.logits)


def test_a_regression_has_one_output(setting: Setting) -> None:
    run = train(pabee.METHOD, replace(setting, task="movie-valence"))
    assert run.test.classes == 1
    assert run.test.regression


@pytest.mark.parametrize("method", [finetuned.METHOD, pabee.METHOD, hashee.METHOD], ids=lambda method: method.name)
def test_a_regression_far_from_zero_is_within_reach_of_the_first_steps(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    def far(name: str, **sizes: object) -> Task:
        task = tiny_task(name)
        moved = {
            split: getattr(task, split).map(lambda row: {"label": row["label"] + 50})
            for split in ("train", "dev", "test")
        }
        return replace(task, **moved)

    monkeypatch.setattr(tasks, "load_task", far)
    run = train(method, replace(setting, task="movie-valence", learning_rate=1e-4))
    distance = (run.test.predictions.double() - run.test.labels.double()).abs().mean(dim=-1)
    assert (distance < 5).all(), "answers that begin at 0 are 50 away"


def test_runs_of_different_keys_do_not_wait_for_each_other(setting: Setting) -> None:
    begun = time.monotonic()
    first = train(setting=setting)
    key = first.directory.name.rsplit("-", 1)[1]
    with runs.FileLock(runs.runs_dir() / f".lock-{key}"):
        train(setting=setting)
        train(setting=replace(setting, seed=5))
    assert time.monotonic() - begun < 60


def test_evidence_on_the_training_samples_is_recorded_once_when_it_is_asked_for(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(setting=setting)
    expected = record(run.model(), run.samples("train"))
    torch.testing.assert_close(run.train.logits, expected.logits)
    assert run.train.ids.tolist() == tiny_task().train["id"]
    monkeypatch.setattr(runs, "record", refuse)
    assert torch.equal(train(setting=setting).train.logits, run.train.logits)


def test_an_objective_finds_the_notes_of_its_own_samples(setting: Setting) -> None:
    seen: dict[int, float] = {}

    def annotate(setting: Setting, options: Options) -> Notes:
        ids = torch.tensor(tiny_task().train["id"]).flip(0)
        return {"twice": (ids, 2.0 * ids)}

    def objective(model: MultiStageModel, answers: Answers, batch: Batch) -> torch.Tensor:
        seen.update(zip(batch.ids.tolist(), batch.notes["twice"].tolist(), strict=True))
        return answers.logits.square().mean()

    train(
        replace(pabee.METHOD, name="noted", annotate=annotate, phases=lambda options: [Phase("noted", objective)]),
        setting,
    )
    assert seen == {number: 2.0 * number for number in tiny_task().train["id"]}


def test_the_key_of_a_method_that_was_written_in_a_notebook_follows_its_functions(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_with(factor: int) -> str:
        # As IPython runs a cell: a module without a file, whose lines are known to `linecache` alone.
        source = (
            f"def scaled(loss):\n    return {factor} * loss\n"
            "def objective(model, answers, batch):\n    return scaled(answers.logits.mean())\n"
            "def phases(options):\n    return [Phase('joint', lambda *given: objective(*given))]\n"
        )
        notebook, name = ModuleType("cells"), f"<cell {factor}>"
        monkeypatch.setitem(sys.modules, "cells", notebook)
        monkeypatch.setitem(linecache.cache, name, (len(source), None, source.splitlines(keepends=True), name))
        exec(compile(source, name, "exec"), vars(notebook))
        return key_of(replace(pabee.METHOD, name="written", phases=notebook.phases), setting)

    assert key_with(2) == key_with(2)
    assert key_with(2) != key_with(3)
