"""Early exits beside what one would deploy instead, in one run: `python -m workflow.rivals`.

The plain model and a shallow one in PyTorch and in onnxruntime, in float32 and with weights of eight bits, and PABEE's
exits under entropy and HashEE at about twice the speed in FLOPs. All answer the same texts, batch by batch in turn; the
median over the rounds counts. Longer texts are test sentences of one label, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from eeutils import deploy
from eeutils.data.samples import Batch, Samples, batches, encode
from eeutils.data.tasks import task_of
from eeutils.deploy import Deployed
from eeutils.deploy.exporting import evidence_of, named_inputs
from eeutils.exiting.rules import NEVER, entropy, fixed
from eeutils.exiting.tradeoff import predict, threshold_for_speedup
from eeutils.files import repository_root
from eeutils.models.backbone import load_tokenizer
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.models.stages import MultiStageModel
from eeutils.models.timing import race
from eeutils.papers import finetuned, hashee, pabee
from eeutils.papers.budgets import budget_of
from eeutils.training.fingerprint import environment
from eeutils.training.loop import best_device
from eeutils.training.runs import load_or_train, metric_of
from eeutils.training.settings import Setting
from workflow.measured import Measurement

OUTPUT = repository_root() / "data" / "results" / "rivals.csv"
PAGE = repository_root() / "docs" / "rivals.md"
COLUMNS = (
    *("texts", "word_pieces", "batch_size", "what", "score", "milliseconds", "low", "high"),
    *("over_plain_torch", "over_plain_onnx", "threads", "commit"),
)
TORCH, ONNX, ONNX8 = "plain, PyTorch", "plain, onnxruntime", "plain, onnxruntime int8"
SPEEDUP = 2.0

Answer = Callable[[], torch.Tensor]
"""The answers (B,) to one batch."""


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds; texts of a sentence's length, and of longer ones, by batch size."""

    rounds: int
    sentences: Mapping[int, int]
    longer: Mapping[int, int]
    lengths: tuple[int, ...] = (128, 256)


FULL = Size(5, {1: 48, 8: 96, 32: 192}, {1: 16, 8: 32, 32: 32})
QUICK = Size(2, {1: 4, 8: 8}, {1: 2}, (64,))


def measure(profile: str, task: str, backbone: str, size: Size) -> pd.DataFrame:
    """The whole table, of `COLUMNS`; trains what is not there yet."""
    setting = Setting.from_profile(profile, task, backbone, 0)
    plain, exits = load_or_train(finetuned.METHOD, setting), load_or_train(pabee.METHOD, setting)
    depth = plain.model().reference_layers
    first, last = budget_of("quick", depth).windows[1]
    words = load_or_train(hashee.METHOD, setting, first=first, last=last)
    shallow = load_or_train(finetuned.METHOD, setting, layers=max(1, depth // 2))
    rows, layers = [], shallow.model().layers[-1]
    with TemporaryDirectory() as folder:
        graphs = {
            "plain": deploy.export(plain, Path(folder) / "plain"),
            "plain int8": deploy.export(plain, Path(folder) / "plain8", int8=True),
            "shallow": deploy.export(shallow, Path(folder) / "shallow"),
            "shallow int8": deploy.export(shallow, Path(folder) / "shallow8", int8=True),
            "exits": deploy.export(exits, Path(folder) / "exits", entropy(), speedup=SPEEDUP),
            "exits int8": deploy.export(exits, Path(folder) / "exits8", entropy(), speedup=SPEEDUP, int8=True),
        }
        models = {name: run.model() for name, run in (("plain", plain), ("exits", exits), ("words", words))}
        half = plain.model().bfloat16()
        for kind, length, counts in [
            ("sentences", setting.max_length, size.sentences),
            *((f"{length} word pieces", length, size.longer) for length in size.lengths),
        ]:
            dev, test = (_texts(setting, split, None if kind == "sentences" else length) for split in ("dev", "test"))
            at = _thresholds(models["exits"], graphs, dev)
            for batch_size, count in counts.items():
                # Spread over the split: its beginning may be one class.
                some = test.take(np.linspace(0, len(test) - 1, min(count, len(test))).astype(int).tolist())
                sides: dict[str, Callable[[Batch], Answer]] = {
                    TORCH: partial(_whole, models["plain"]),
                    "plain, PyTorch bfloat16": partial(_whole, half),
                    ONNX: partial(_exported, graphs["plain"], NEVER),
                    ONNX8: partial(_exported, graphs["plain int8"], NEVER),
                    f"{layers} layers, onnxruntime": partial(_exported, graphs["shallow"], NEVER),
                    f"{layers} layers, onnxruntime int8": partial(_exported, graphs["shallow int8"], NEVER),
                    "exits, PyTorch": partial(_leaving, Runtime(models["exits"], entropy(), at["torch"])),
                    "exits, onnxruntime": partial(_exported, graphs["exits"], at["exits"]),
                    "exits, onnxruntime int8": partial(_exported, graphs["exits int8"], at["exits int8"]),
                    "HashEE, PyTorch": partial(_leaving, Runtime(models["words"], fixed())),
                }
                where = {"texts": kind, "word_pieces": float(some.lengths.double().mean()), "batch_size": batch_size}
                rows += [where | row for row in _raced(sides, some, batch_size, size.rounds, task)]
    machine = environment()
    return pd.DataFrame(rows).assign(threads=machine["threads"], commit=machine["commit"])[list(COLUMNS)]


def page(table: pd.DataFrame) -> str:
    """What was measured, in Markdown: a table of each kind of texts, and what follows from it."""
    one = table.iloc[0]
    lines = [
        "# Faster than what one would use instead?",
        "",
        "The same texts, batch by batch in turns, in one run on a CPU: the plain model and one of half its layers, in",
        "PyTorch and in onnxruntime, float32 and with weights of eight bits; PABEE's exits under entropy, and HashEE's",
        f"schedule, at about twice the speed in FLOPs. Milliseconds a text, the median of the rounds; {one.threads}",
        "threads. Longer texts are test sentences of one label, one after the other. Written by `make bench` from",
        "`data/results/rivals.csv`; ratios are safer to carry elsewhere than milliseconds.",
        "",
    ]
    for kind, of_kind in table.groupby("texts", sort=False):
        sizes = of_kind.batch_size.unique()
        about = f", {of_kind.word_pieces.mean():.0f} word pieces on average" if kind == "sentences" else ""
        lines += [f"## {kind[0].upper()}{kind[1:]}{about}", ""]
        lines += [f"| | score | {' | '.join(f'batch {size}' for size in sizes)} |", "|---|---|" + "---|" * len(sizes)]
        for what, rows in of_kind.groupby("what", sort=False):
            cells = [f"{row.milliseconds:.1f} ms, {row.over_plain_onnx:.2f}x" for row in rows.itertuples()]
            lines.append(f"| {what} | {rows.score.iloc[-1]:.3f} | {' | '.join(cells)} |")
        lines += ["", *(f"- {sentence}" for sentence in _sentences(of_kind)), ""]
    lines.append(
        "x: times as fast as the plain model in onnxruntime, float32. Scores are of the largest batch's texts, a few\n"
        "hundred at most: notebook 08 compares scores."
    )
    return "\n".join(lines) + "\n"


def _sentences(rows: pd.DataFrame) -> list[str]:
    """For each batch size: exits against the plain model in onnxruntime, and the fastest without exits."""
    sentences = []
    for size, here in rows.groupby("batch_size"):
        speed = here.set_index("what").over_plain_onnx
        full, fewer = (speed[speed.index.str.contains(kind)] for kind in ("^plain", "^[0-9]+ layers"))
        exits = [speed[f"exits, {way}"] for way in ("PyTorch", "onnxruntime", "onnxruntime int8")]
        sentences.append(
            f"Batch {size}: against the plain model in onnxruntime exits in PyTorch are at {exits[0]:.2f}x, in "
            f"onnxruntime at {exits[1]:.2f}x, with eight bits at {exits[2]:.2f}x; the fastest model of all layers: "
            f"{full.idxmax()} ({full.max():.2f}x); of fewer: {fewer.idxmax()} ({fewer.max():.2f}x)."
        )
    return sentences


def _texts(setting: Setting, split: str, length: int | None) -> Samples:
    """A split as it is, or its sentences of one label glued together until they have that many word pieces."""
    rows = getattr(task_of(setting.task, setting.train_size, setting.test_size), split).to_dict()
    tokenizer = load_tokenizer(setting.backbone)
    if length is None:
        return encode(tokenizer, rows["text_a"], max_length=setting.max_length, labels=rows["label"])
    glued, labels, begun = [], [], dict.fromkeys(rows["label"], "")
    for text, label in zip(rows["text_a"], rows["label"], strict=True):
        begun[label] = f"{begun[label]} {text}".strip()
        if len(tokenizer(begun[label])["input_ids"]) >= length:
            glued, labels, begun[label] = [*glued, begun[label]], [*labels, label], ""
    return encode(tokenizer, glued, max_length=length, labels=labels)


def _thresholds(model: MultiStageModel, graphs: Mapping[str, Deployed], dev: Samples) -> dict[str, float]:
    """For twice the speed on dev texts of that length, of each form of the exits."""
    recorded = record(model, dev)
    said = {name: evidence_of(graphs[name], recorded, dev) for name in ("exits", "exits int8")}
    return {
        name: threshold_for_speedup(each, entropy(), SPEEDUP) for name, each in ({"torch": recorded} | said).items()
    }


def _whole(model: MultiStageModel, batch: Batch) -> Answer:
    def answer() -> torch.Tensor:
        with torch.inference_mode():
            return predict(model.all_stages(*batch.inputs).logits[-1])

    return answer


def _leaving(runtime: Runtime, batch: Batch) -> Answer:
    return lambda: runtime.run(batch).predictions


def _exported(graphs: Deployed, threshold: float, batch: Batch) -> Answer:
    inputs = named_inputs(batch.inputs)
    return lambda: predict(torch.from_numpy(graphs.run(inputs, threshold)[1]))


def _raced(
    sides: Mapping[str, Callable[[Batch], Answer]], samples: Samples, batch_size: int, rounds: int, task: str
) -> list[dict[str, object]]:
    chosen = [batch for _, batch in batches(samples, batch_size)]
    tracks = {name: [side(batch) for batch in chosen] for name, side in sides.items()}
    seconds = race(tracks, rounds, best_device(), progress=f"batches of {batch_size}")
    labels, metric = torch.cat([batch.labels for batch in chosen]).numpy(), metric_of(task)
    each = {name: 1000 * found.sum(axis=1) / len(samples) for name, found in seconds.items()}
    return [
        {
            "what": name,
            "score": float(metric(torch.cat([answer() for answer in tracks[name]]).numpy(), labels)),
            "milliseconds": float(np.median(took)),
            "low": float(took.min()),
            "high": float(took.max()),
            "over_plain_torch": float(np.median(each[TORCH] / took)),
            "over_plain_onnx": float(np.median(each[ONNX] / took)),
        }
        for name, took in each.items()
    ]


MEASUREMENT = Measurement("rivals", "Early exits beside their rivals.", measure, page, FULL, QUICK, OUTPUT, PAGE)

if __name__ == "__main__":
    MEASUREMENT.run()
