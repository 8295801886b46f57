"""A run's exits and its rule as ONNX graphs, one for each stage.

A graph takes the states of those who are still there and gives the states after its layers, the exit's answer and the
rule's readiness, computed by the rule that drives sweep and runtime: it is traced, not written again. What a rule reads
of earlier stages comes in as inputs.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from datasets import Dataset
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from tqdm import tqdm

from eeutils.data.samples import Samples, batches
from eeutils.data.specs import spec_of
from eeutils.data.tasks import task_of
from eeutils.deploy.card import card
from eeutils.deploy.served import CONFIG, TOKENIZER, VERSION, Deployed, load
from eeutils.deploy.weights import thresholds
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import NEVER, Rule
from eeutils.exiting.tradeoff import at_threshold, fixed_exits, threshold_for_speedup
from eeutils.files import atomic_write, sha256
from eeutils.models.backbone import Hidden, load_tokenizer
from eeutils.models.cost import Spent
from eeutils.models.exits import ExitState, MultiExitModel
from eeutils.models.runtime import Runtime
from eeutils.training.runs import Run

CHECKED = 64
"""Samples of dev on which an export is held against PyTorch's runtime."""

ALIKE = 0.95
"""Share of them that must leave at the same layer with the same answer: a readiness may lie on its threshold."""


class Stage(nn.Module):
    """One stage of a model with exits, and a rule, as a function of tensors.

    Inputs: token ids or states, attention mask, token types or what exits carried, then what was heard of earlier
    stages, by the names in `inputs`. Outputs in the order of `said`.
    """

    def __init__(self, model: MultiExitModel, stage: int, rule: Rule, example: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.stage, self.rule, self.inputs = model, stage, rule, tuple(example)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.said(dict(zip(self.inputs, tensors, strict=True))).values())

    def said(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Everything that a graph gives, by name."""
        model, mask = self.model, given["attention_mask"].bool()
        if self.stage == 0:
            state = model.begin(given["input_ids"], mask, given.get("token_type_ids"))
        else:
            carried = {name.removeprefix("carried."): t for name, t in given.items() if name.startswith("carried.")}
            state = self._arriving(given["states"], mask, carried)
        head = model.exit_at(self.stage)
        reached = model.reach(self.stage, state)
        vector, carried = head.read(reached)
        logits, extras = head.answer(vector)
        evidence = self._evidence(logits.float(), {name: each.float() for name, each in extras.items()}, given)
        said = {"readiness": self.rule.readiness(evidence)[-1].double(), "answer": self.rule.answers(evidence)[-1]}
        said |= {"logits": logits} | {f"extras.{name}": extra for name, extra in extras.items()}
        if self.stage < model.stages - 1:
            said |= {"next.states": reached.hidden.states}
            said |= {f"next.carried.{name}": tensor for name, tensor in carried.items()}
        return {name: tensor.clone() for name, tensor in said.items()}  # no two outputs are one tensor

    def _arriving(self, states: Tensor, mask: Tensor, carried: Mapping[str, Tensor]) -> ExitState:
        backbone, tokens = self.model.backbone, mask.sum(dim=1)
        nothing = Spent(tokens.double(), tokens.double())  # costs are counted elsewhere
        shared = backbone.family.shared(backbone.model, states, mask)
        hidden = Hidden(states, mask, shared, tokens, nothing, nothing)
        return ExitState(hidden, hidden, carried)

    def _evidence(self, logits: Tensor, extras: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Evidence:
        def with_earlier(name: str, now: Tensor) -> Tensor:
            heard = given.get(f"heard.{name}")
            return now[None] if heard is None else torch.cat([heard, now[None]])

        all_logits = with_earlier("logits", logits)
        spent = all_logits[..., 0].double() * 0
        first = self.stage + 1 - len(all_logits)
        return Evidence(
            all_logits,
            spent[0].long(),  # a graph does not know which sample it sees
            {"layers": spent, "flops": spent},
            {"layers": spent[0], "flops": spent[0]},
            self.model.layers[first : self.stage + 1],
            extras={name: with_earlier(f"extras.{name}", extra) for name, extra in extras.items()},
            first=first,
        )


def export(
    run: Run,
    folder: Path | str,
    rule: Rule | None = None,
    speedup: float = 2.0,
    *,
    threshold: float | None = None,
    int8: bool = False,
    progress: bool = True,
) -> Deployed:
    """Write a run as a folder that `deploy.load` opens without PyTorch, and open it.

    Args:
        run: of a method whose model is one encoder with exits.
        folder: made, or replaced where it holds an earlier export.
        rule: when to leave; the paper's own by default.
        speedup: in FLOPs; the threshold that reaches it on dev is chosen, on what the graphs say there.
        threshold: in the place of a speed-up.
        int8: weights of linear maps in eight bits, activations as they come (dynamic quantisation).
        progress: whether to show it.

    Raises:
        InputError: another kind of model, a rule without a meaning there or that cannot be a graph, a folder with
            something else in it.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG).exists():
        raise InputError(f"{folder} is there and is no exported model; name a new folder")
    model = run.model()
    if not isinstance(model, MultiExitModel):
        raise InputError(
            f"{run.method.title} is not one encoder with exits, and only those can be exported stage by stage; choose "
            "a run of another method"
        )
    rule = rule or run.method.own_rule
    rule.check(model.classes, NEVER if threshold is None else threshold)
    _knows_enough(rule, run.dev)
    dev, model = run.samples("dev"), model.cpu()
    with atomic_write(folder) as partial:
        partial.mkdir()
        deployed = Deployed(partial, config := _config(run, model, rule, dev, int8))
        _write_graphs(deployed, model, rule, dev, progress)
        load_tokenizer(run.setting.backbone).backend_tokenizer.save(str(partial / TOKENIZER))
        heard, early = evidence_of(deployed, run.dev, dev), model.stages > 1
        if threshold is None:
            threshold = threshold_for_speedup(heard, rule, speedup) if early else NEVER
        chosen = thresholds(heard, rule) if early else {}
        config["threshold"] = _written(threshold)
        config["thresholds"] = {f"{asked:g}": _written(each) for asked, each in chosen.items()}
        if not int8:
            _check(deployed, run, model, rule, dev)
        config["test"] = _measured(evidence_of(deployed, run.test, run.samples("test")), rule, threshold, run)
        (partial / "README.md").write_text(card(config), encoding="utf-8")
        files = [path.name for path in sorted(partial.iterdir())]
        config["sha256"] = {name: sha256(partial / name) for name in files if name != "README.md"}
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return load(folder)


def _written(threshold: float) -> float | None:
    """As JSON has it, which knows no infinity."""
    return None if math.isinf(threshold) else threshold


def _knows_enough(rule: Rule, dev: Evidence) -> None:
    """Refuse a rule that reads what nobody knows of a new text."""
    unknown = replace(dev, ids=dev.ids.flip(0), labels=None)
    if rule.needs_labels or not torch.equal(rule.readiness(dev), rule.readiness(unknown)):
        raise InputError(
            f"rule {rule.name!r} reads a sample's number or its label, which a new text does not have; choose another "
            "rule"
        )


def _write_graphs(deployed: Deployed, model: MultiExitModel, rule: Rule, dev: Samples, progress: bool) -> None:
    """Each stage is traced on what the graphs before it give of two texts."""
    lengths = dev.lengths.argsort()
    # Of different lengths: neither dimension is one, and there is padding.
    state = named_inputs(dev.batch([int(lengths[-1]), int(lengths[0])]).inputs)
    for number in tqdm(range(model.stages), desc="exporting stages", disable=not progress, leave=False):
        example = {name: torch.from_numpy(array) for name, array in state.items()}
        file = deployed.folder / deployed.config["stages"][number]["file"]
        _export(Stage(model, number, rule, example).eval(), example, file)
        if deployed.config["precision"] == "int8":
            _to_int8(file)
        state, _ = deployed.step(number, state)


def _to_int8(file: Path) -> None:
    graph = onnx.load(file)
    # Shapes on the way, which the quantiser would hold against those of the matrices that it has turned round.
    del graph.graph.value_info[:]
    onnx.save(graph, file)
    with _quiet():
        quantize_dynamic(file, file, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def _export(stage: Stage, example: Mapping[str, Tensor], file: Path) -> None:
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")

    def dimensions(name: str) -> dict[int, Any]:
        if name.startswith("heard."):
            return {1: batch}
        return {0: batch} if name.startswith("carried.") else {0: batch, 1: tokens}

    with torch.no_grad(), _quiet():
        torch.onnx.export(
            stage,
            tuple(example.values()),
            file,
            input_names=list(example),
            output_names=list(stage.said(example)),
            dynamic_shapes={"tensors": tuple(map(dimensions, example))},
            external_data=False,
            verbose=False,
        )


@contextmanager
def _quiet() -> Any:
    # What the exporter says of vision models that are not installed, and of its own past, helps nobody here.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _config(run: Run, model: MultiExitModel, rule: Rule, dev: Samples, int8: bool) -> dict[str, Any]:
    spec, setting = spec_of(run.setting.task), run.setting
    extras = [f"extras.{name}" for name in run.dev.extras]
    earlier = None if rule.reads is None else rule.reads - 1
    return {
        "version": VERSION,
        "method": run.method.title,
        "citation": run.method.citation,
        "task": spec.title,
        "class_names": list(spec.class_names),
        "pairs": any(_dev_of(run)["text_b"]),
        "backbone": setting.backbone if not Path(setting.backbone).exists() else Path(setting.backbone).name,
        "precision": "int8" if int8 else "float32",
        "rule": rule.name,
        "heard": {} if rule.reads == 1 else dict.fromkeys(["logits", *extras], earlier),
        "max_length": setting.max_length,
        "padding": dev.padding,
        "token_types": dev.types is not None,
        "metric": spec.metrics[0],
        "stages": [{"file": f"stage-{n}.onnx", "layer": layer} for n, layer in enumerate(model.layers, start=1)],
        "threshold": None,
    }


def _dev_of(run: Run) -> Dataset:
    return task_of(run.setting.task, run.setting.train_size, run.setting.test_size).dev


def evidence_of(deployed: Deployed, recorded: Evidence, samples: Samples) -> Evidence:
    """What the graphs say of samples at every stage, (S, N, C); costs and labels are those that were recorded of the
    same samples in the same order."""
    parts: list[list[dict[str, np.ndarray]]] = []
    rows_of = []
    for rows, batch in batches(samples, 64):
        state = named_inputs(batch.inputs)
        stages = []
        for stage in range(len(deployed.layers)):
            state, said = deployed.step(stage, state)
            stages.append(said)
        parts.append(stages)
        rows_of.append(rows)
    back = torch.cat(rows_of).argsort()

    def joined(name: str) -> Tensor:
        stages = range(len(deployed.layers))
        by_stage = [torch.cat([torch.from_numpy(part[stage][name]) for part in parts]) for stage in stages]
        return torch.stack(by_stage)[:, back].float()

    extras = {name: joined(f"extras.{name}") for name in recorded.extras}
    return replace(recorded, logits=joined("logits"), extras=extras)


def named_inputs(inputs: tuple[Tensor | None, ...]) -> dict[str, np.ndarray]:
    """`Batch.inputs` as the first graph takes them."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True) if tensor is not None}


def _check(deployed: Deployed, run: Run, model: MultiExitModel, rule: Rule, dev: Samples) -> None:
    texts, rows = _dev_of(run)[:CHECKED], range(min(CHECKED, len(dev)))
    ours = deployed(texts["text_a"], texts["text_b"] if deployed.config["pairs"] else None)
    theirs = Runtime(model, rule, deployed.threshold)(dev.take(rows))
    same = torch.from_numpy(ours.layers == deployed.layers[theirs.stages])
    close = torch.isclose(torch.from_numpy(ours.scores), theirs.logits, atol=1e-3, rtol=1e-3).all(dim=1)
    if float((same & close).double().mean()) < ALIKE:
        raise InputError(
            f"as graphs model and rule {rule.name!r} say other things than in PyTorch, so nothing was written; choose "
            "another rule, or another version of onnxscript"
        )


def _measured(test: Evidence, rule: Rule, threshold: float, run: Run) -> dict[str, float]:
    """On test: the score where samples leave, that of the last exit, and what is saved."""
    point, last = at_threshold(test, rule, run.metric, threshold), fixed_exits(test, run.metric).iloc[-1]
    return {
        "samples": test.samples,
        "score": point["score"],
        "score_of_last_exit": float(last.score),
        "flops_speedup": point["flops_speedup"],
        "mean_layers": point["layers"],
    }
