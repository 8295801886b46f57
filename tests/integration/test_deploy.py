"""Exported runs: without PyTorch they answer what the runtime answers, and leave where it leaves."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eeutils import deploy
from eeutils.data import tasks
from eeutils.errors import InputError
from eeutils.exiting import rules
from eeutils.exiting.rules import Rule
from eeutils.exiting.tradeoff import threshold_for_speedup
from eeutils.models.backbone import load_tokenizer
from eeutils.models.runtime import Runtime
from eeutils.papers import badge, berxit, cascadebert, de3bert, ensemble, finetuned, pabee
from eeutils.training.method import Method
from eeutils.training.runs import Run, load_or_train
from eeutils.training.settings import Setting
from tests.helpers import untyped
from tests.tiny import sentences, tiny_encoder, tiny_task, tiny_tokenizer
from workflow.queues import Way, poisson, serve
from workflow.serving import Exported

TEXTS = sentences(40, seed=7)[0]
OTHERS = sentences(40, seed=8)[0]


def folder_of(layers: int, factory: pytest.TempPathFactory) -> str:
    folder = factory.mktemp(f"{layers}-layers")
    tiny_encoder(num_hidden_layers=layers).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two layers: to trace a graph takes seconds."""
    return folder_of(2, tmp_path_factory)


@pytest.fixture(scope="module")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> str:
    return folder_of(3, tmp_path_factory)


def trained(method: Method, backbone: str, task: str = "movie", **options: Any) -> Run:
    setting = Setting(task, backbone, epochs=1, batch_size=8, learning_rate=1e-3, max_length=24)
    return load_or_train(method, setting, progress=False, **options)


def export(run: Run, folder: Path, *choices: Any, **named: Any) -> deploy.Deployed:
    with untyped():
        return deploy.export(run, folder, *choices, progress=False, **named)


def in_torch(run: Run, rule: Rule, threshold: float) -> Runtime:
    return Runtime(run.model(), rule, threshold, load_tokenizer(run.setting.backbone), run.setting.max_length)


# What a rule reads of the past, what exits say beside their logits, and what they hand on to later ones.
@pytest.mark.parametrize(
    ("method", "rule", "task", "encoder"),
    [
        (ensemble.METHOD, rules.vote(0.5), "movie", "deeper"),
        (de3bert.METHOD, next(iter(de3bert.METHOD.rules.values())), "movie", "backbone"),
        (badge.METHOD, next(iter(badge.METHOD.rules.values())), "movie", "deeper"),
        (berxit.METHOD, rules.learned(), "movie-valence", "backbone"),
    ],
    ids=["votes", "distances", "divergence", "learned, numbers"],
)
def test_answers_and_layers_are_those_of_the_runtime(
    method: Method,
    rule: Rule,
    task: str,
    encoder: str,
    request: pytest.FixtureRequest,
    tiny_tasks: None,
    tmp_path: Path,
) -> None:
    run = trained(method, request.getfixturevalue(encoder), task)
    export(run, tmp_path / "out", rule)
    deployed, seen = deploy.load(tmp_path / "out"), set()
    for speedup in (1.2, 1.6, 2.5):
        threshold = threshold_for_speedup(run.test, rule, speedup)
        wanted = in_torch(run, rule, threshold)(TEXTS)
        for batch_size in (1, 16):
            got = deployed(TEXTS, batch_size=batch_size, threshold=threshold)
            assert got.layers.tolist() == (wanted.stages + 1).tolist()
            assert np.allclose(got.scores, wanted.logits.numpy(), atol=1e-5)
        seen |= set(got.layers.tolist())
    assert len(seen) > 1, "the thresholds must send texts to several layers, or nothing was compared"
    if task == "movie":
        names = deployed.config["class_names"]
        assert got.answers == [names[place] for place in wanted.predictions.tolist()]
    else:
        assert got.answers == pytest.approx(wanted.predictions.tolist(), abs=1e-5)


def test_pairs_threshold_card_and_eight_bits(
    backbone: str, tiny_tasks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_pairs(name: str, **sizes: Any) -> tasks.Task:
        task, splits = tiny_task(name, 48), {}
        for split in ("train", "dev", "test"):
            rows = getattr(task, split)
            splits[split] = rows.remove_columns("text_b").add_column("text_b", rows["text_a"])
        return replace(task, **splits)

    monkeypatch.setattr(tasks, "load_task", with_pairs)
    run = trained(pabee.METHOD, backbone, "mrpc")
    deployed = export(run, tmp_path / "pairs", rules.entropy(), speedup=1.5)
    assert deployed.threshold == pytest.approx(threshold_for_speedup(run.dev, rules.entropy(), 1.5), abs=1e-6)
    wanted = in_torch(run, rules.entropy(), deployed.threshold)(TEXTS, OTHERS)
    got = deployed(TEXTS, OTHERS)
    assert (got.layers == wanted.stages.numpy() + 1).mean() > 0.95
    assert np.allclose(
        got.scores[got.layers == wanted.stages.numpy() + 1].argmax(1),
        wanted.predictions.numpy()[got.layers == wanted.stages.numpy() + 1],
    )
    slow, fast = (deploy.load(tmp_path / "pairs", speedup) for speedup in (1.5, 3.0))
    assert slow.threshold == deployed.threshold
    assert fast.threshold == pytest.approx(threshold_for_speedup(run.dev, rules.entropy(), 3.0), abs=1e-6)
    with pytest.raises(InputError, match=r"choose one of: 1\.5, 2, 3"):
        deploy.load(tmp_path / "pairs", 2.2)
    said = deployed.config["test"]
    measured = in_torch(run, rules.entropy(), deployed.threshold)(run.samples("test"))
    assert said["mean_layers"] == pytest.approx(float(measured.stages.double().mean()) + 1, abs=0.1)
    card = (tmp_path / "pairs" / "README.md").read_text()
    assert f"{said['score']:.3f}" in card
    assert "PABEE" in card
    with pytest.raises(InputError, match="pairs of texts"):
        deployed(TEXTS)
    small = export(run, tmp_path / "small", rules.entropy(), speedup=1.5, int8=True)
    size = [sum(file.stat().st_size for file in (tmp_path / name).glob("*.onnx")) for name in ("pairs", "small")]
    assert small.config["precision"] == "int8"
    assert size[1] < size[0]
    apart = np.abs(small(TEXTS, OTHERS, threshold=math.inf).scores - deployed(TEXTS, OTHERS, threshold=math.inf).scores)
    assert 0 < apart.max() < 0.5


def test_a_plain_model_is_one_graph_that_nobody_leaves(backbone: str, tiny_tasks: None, tmp_path: Path) -> None:
    run = trained(finetuned.METHOD, backbone)
    deployed = export(run, tmp_path / "plain")
    assert deployed.layers.tolist() == [2]
    assert deployed.threshold == math.inf
    got = deployed(TEXTS)
    assert np.allclose(got.scores, in_torch(run, rules.fixed(), rules.NEVER)(TEXTS).logits.numpy(), atol=1e-5)

    for texts, words in (("a text", "list of texts"), ([], "at least one"), (["good", " "], "place 1 is empty")):
        with pytest.raises(InputError, match=words):
            deployed(texts)
    with pytest.raises(InputError, match="leave pairs out"):
        deployed(TEXTS, OTHERS)
    with pytest.raises(InputError, match="not an exported model"):
        deploy.load(tmp_path)
    broken = shutil.copytree(tmp_path / "plain", tmp_path / "broken")
    graph = broken / "stage-1.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(InputError, match="not what was exported"):
        deploy.load(broken)
    config = json.loads((tmp_path / "plain" / "deployment.json").read_text())
    (broken / "deployment.json").write_text(json.dumps(config | {"version": 0}))
    with pytest.raises(InputError, match="another version"):
        deploy.load(broken)


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    backbone: str, tiny_tasks: None, tmp_path: Path
) -> None:
    run = trained(cascadebert.METHOD, backbone, models=(backbone,), weight=0.0)
    with pytest.raises(InputError, match="CascadeBERT is not one encoder with exits"):
        export(run, tmp_path / "row")
    run = trained(pabee.METHOD, backbone)
    for rule in (rules.random(), rules.oracle()):
        with pytest.raises(InputError, match="a sample's number or its label"):
            export(run, tmp_path / "coins", rule, speedup=1.5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="name a new folder"):
        export(run, tmp_path / "mine", rules.entropy())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "runs") == ["mine"]


def test_answering_imports_neither_pytorch_nor_transformers() -> None:
    code = "import sys; from eeutils import deploy; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_texts_that_meet_in_queues_get_the_answers_that_they_get_alone(deeper: str, tmp_path: Path) -> None:
    graphs = export(trained(pabee.METHOD, deeper), tmp_path / "out", rules.entropy(), 1.3)
    alone = graphs(TEXTS, batch_size=1)
    engine = Exported(graphs, graphs.encode(TEXTS))
    served = serve(engine, poisson(len(TEXTS), 1000.0), Way("a queue at every stage", (1, 2), patience=1e9), largest=8)
    assert len(set(alone.layers.tolist())) > 1
    assert graphs.layers[engine.left].tolist() == alone.layers.tolist()
    assert (served.waits > 0).all()
