"""What the shared parts gain and cost, measured: `make bench`, or `python -m eeutils.bench`.

Every speed is a ratio within one run. What is compared takes turns, batch by batch, so that other load on the machine
hits all sides alike; a round goes through all batches once, and the median ratio over the rounds counts. The model has
the shape of all-MiniLM-L6-v2, an exit on every layer as in PABEE, and random weights: time and memory do not depend on
what was learned.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, BertConfig, PreTrainedConfig

from eeutils.backbone import Backbone, Hidden, resolve
from eeutils.batching import Batch, LengthBuckets, Samples, batches
from eeutils.evidence import Evidence, record
from eeutils.exits import ExitState, MultiExitModel, shared_pooler_exits
from eeutils.files import atomic_write, repository_root
from eeutils.papers import consistentee, pabee
from eeutils.rules import NEVER, Rule, confidence, entropy
from eeutils.runs import environment, metric_of, samples_of
from eeutils.runtime import Runtime, wait_for
from eeutils.settings import Setting
from eeutils.tradeoff import sweep
from eeutils.training import best_device

OUTPUT = repository_root() / "data" / "results" / "bench.csv"
COLUMNS = ("what", "value", "unit", "target", "met", "note", "commit", "device", "threads", "torch")

PADDED_TO = 128
"""What the reference codes pad every sentence to."""

THRESHOLDS = 20
"""Points of the trade-off curve that one sweep, or as many re-runs, is timed for."""

Track = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: how often training and the sweep are gone through; the median counts.
        runtime_rounds: the same for the runtime, whose differences are smaller.
        train_batches: of 32 sentences, spread over all lengths that an epoch has.
        padded_batches: of 32 sentences padded to 128, all of which cost the same.
        sweep_samples: sentences of the sweep and of its re-runs.
        runtime_samples: batch size of the runtime -> sentences.
    """

    rounds: int
    runtime_rounds: int
    train_batches: int
    padded_batches: int
    sweep_samples: int
    runtime_samples: Mapping[int, int]


FULL = Size(3, 5, 12, 3, 160, {1: 150, 8: 256, 32: 320, 64: 320})
QUICK = Size(2, 2, 3, 1, 24, {1: 12, 8: 24, 32: 64, 64: 64})

SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "minilm-l6": lambda: AutoConfig.from_pretrained(resolve("minilm-l6")),
    "tiny": lambda: BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
    ),
}
"""The encoders that are measured: the default one, and one for a quick look."""


@dataclass(frozen=True)
class Row:
    """One line of the table; `target` is "", or a comparison such as ">= 3.5" that `value` is held to."""

    what: str
    value: float
    unit: str
    note: str
    target: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if not self.target:
            return None
        comparison, bar = self.target.split()
        return self.value >= float(bar) if comparison == ">=" else self.value <= float(bar)


def measure(quick: bool = False) -> pd.DataFrame:
    """The whole table, of `COLUMNS`. `quick` runs in seconds, on a tiny encoder and random token ids: its figures mean
    nothing."""
    shape, size = ("tiny", QUICK) if quick else ("minilm-l6", FULL)
    train, test = _random_samples() if quick else _movie_samples()
    # Memory first: its processes start from a parent that is still small.
    memory = peak_memory(shape, train, test)
    model = build(shape)
    rows = [*training_speed(model, train, size), *sweep_speed(model, test, size), *runtime_speed(model, test, size)]
    rows += replica_speed(shape, train, size)
    machine = environment()
    where = {name: machine[name] for name in ("commit", "device", "threads")} | {"torch": machine["packages"]["torch"]}
    return pd.DataFrame([{**vars(row), "met": row.met, **where} for row in [*rows, *memory]])[list(COLUMNS)]


def build(shape: str) -> MultiExitModel:
    """The model that is measured, of one of `SHAPES`: PABEE's exits on all layers, random weights."""
    backbone = Backbone(AutoModel.from_config(SHAPES[shape]()))
    return MultiExitModel(backbone, shared_pooler_exits(backbone, 2, "mean")).to(best_device()).eval()


def training_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """Sentences a second of a training step on batches of like length, against two other ways to pad."""
    optimizer = _optimizer(model)
    counts = {"buckets": size.train_batches, "dynamic": size.train_batches, "padded": size.padded_batches}
    tracks = {
        way: [partial(train_step, model, optimizer, batch) for batch in _train_batches(samples, way, count)]
        for way, count in counts.items()
    }
    seconds = race(tracks, size.rounds, "training")
    speed = {way: Setting().batch_size / seconds[way] for way in tracks}
    model.zero_grad()
    model.eval()
    return [
        _row(f"training, length buckets against {against}", speed["buckets"] / speed[way], target, absolute)
        for way, against, target in (
            ("padded", f"every batch padded to {PADDED_TO}", ">= 3.5"),
            ("dynamic", "random batches padded to their longest", ">= 1.5"),
        )
        for absolute in [f"{np.median(speed['buckets']):.0f} and {np.median(speed[way]):.0f} sentences/s"]
    ]


def train_step(model: MultiExitModel, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One optimizer step of PABEE's training, all exits."""
    model.train()
    batch = batch.to(best_device())
    pabee.weighted_loss(model, model(*batch.inputs), batch).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def replica_speed(shape: str, samples: Samples, size: Size) -> list[Row]:
    """ConsistentEE's last phase: all replicas drawn on one pass of the encoder, against a pass for each of them."""
    model = build_consistentee(shape)
    optimizer = _optimizer(model)
    hardness = torch.ones(len(samples), dtype=torch.long)
    noted = samples.with_notes(memorized_layer=(samples.ids, hardness))
    # A few will do: the naive steps take long.
    chosen = _train_batches(noted, "buckets", max(1, size.train_batches // 4))
    tracks = {
        name: [partial(replica_step, model, optimizer, batch, passes) for batch in chosen]
        for name, passes in (("shared", 1), ("naive", consistentee.REPLICAS))
    }
    seconds = race(tracks, size.rounds, "replicas")
    about = f"{1000 * np.median(seconds['shared']):.0f} and {1000 * np.median(seconds['naive']):.0f} ms a step"
    what = f"ConsistentEE, {consistentee.REPLICAS} replicas on one pass of the encoder against as many passes"
    return [_row(what, seconds["naive"] / seconds["shared"], ">= 4", about)]


def build_consistentee(shape: str) -> MultiExitModel:
    """The model of `build` with ConsistentEE's policies."""
    backbone = Backbone(AutoModel.from_config(SHAPES[shape]()))
    return MultiExitModel(backbone, consistentee.policy_exits(backbone, 2, "mean")).to(best_device()).eval()


def replica_step(model: MultiExitModel, optimizer: torch.optim.Optimizer, batch: Batch, passes: int) -> None:
    """One optimizer step of ConsistentEE's last phase whose replicas are drawn on so many passes of the encoder."""
    model.train()
    batch = batch.to(best_device())
    for _ in range(passes):
        loss = consistentee.policy_loss(
            model,
            model(*batch.inputs),
            batch,
            speed_weight=0.1,
            hardness="memorized",
            gradient="sampled",
            consistent="one exit",
        )
        (loss / passes).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def sweep_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """A trade-off curve from one recorded pass, recording included, against one run of the runtime per threshold."""
    samples = _first(samples, size.sweep_samples)
    rule, metric = entropy(), metric_of("movie")
    evidence = record(model, samples)
    thresholds = _spread_thresholds(evidence, rule)

    def curve() -> None:
        sweep(record(model, samples), rule, metric, thresholds)

    def rerun(threshold: float, batch_size: int) -> None:
        Runtime(model, rule, threshold)(samples, batch_size=batch_size)

    tracks = {
        "sweep": [curve] * 4,
        "early, batch 1": [partial(rerun, threshold, 1) for threshold in thresholds],
        "early, batch 64": [partial(rerun, threshold, 64) for threshold in thresholds],
        "all layers, batch 1": [partial(rerun, NEVER, 1)] * 2,
    }
    seconds = race(tracks, size.rounds, "sweep")
    mean_layers = sweep(evidence, rule, metric, thresholds).layers.mean()
    depth = model.reference_layers
    about = f"{len(samples)} sentences, one sweep {np.median(seconds['sweep']):.2f} s"
    stops = f"{about}; the runs stop after {mean_layers:.1f} of {depth} layers"
    # Even if sweeping took no time at all, recording runs all layers once.
    bound = f"{stops}, so that at equal speed {THRESHOLDS * mean_layers / depth:.1f} is the most there is"
    what = f"sweep of {THRESHOLDS} thresholds, recording included, against {THRESHOLDS} runs"
    return [
        _row(f"{what} {how}", THRESHOLDS * seconds[track] / seconds["sweep"], target, note)
        for how, track, target, note in (
            ("that exit early, batch 1 as the papers' codes", "early, batch 1", ">= 15", stops),
            ("that exit early, batch 64 as the recording", "early, batch 64", ">= 15", bound),
            ("of all layers, batch 1", "all layers, batch 1", "", about),
        )
    ]


def runtime_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """The runtime against the plain model: how much of the layers saved is time saved, and what it costs if none is."""
    realised, overhead = [], []
    early, never = Runtime(model, spread(), 1.0), Runtime(model, confidence(), NEVER)
    for batch_size, count in size.runtime_samples.items():
        ready = [batch for _, batch in batches(_first(samples, count), batch_size)]
        tracks = {
            "plain": [partial(plain, model, batch) for batch in ready],
            "early": [partial(early.run, batch) for batch in ready],
            "never": [partial(never.run, batch) for batch in ready],
            "all exits": [partial(all_exits, model, batch) for batch in ready],
        }
        seconds = race(tracks, size.runtime_rounds, f"runtime, batch {batch_size}")
        layers = torch.cat([early.run(batch).stages for batch in ready]).double().mean().item() + 1
        theory, speedup = model.reference_layers / layers, seconds["plain"] / seconds["early"]
        realised.append(
            _row(
                f"runtime, realised over layer speed-up, batch {batch_size}",
                speedup / theory,
                {1: ">= 0.95", 32: ">= 0.85"}.get(batch_size, ""),
                f"{np.median(speedup):.2f} of {theory:.2f}",
            )
        )
        heads = 100 * np.median(seconds["all exits"] / seconds["plain"] - 1)
        overhead.append(
            _row(
                f"runtime, overhead when nobody exits, batch {batch_size}",
                100 * (seconds["never"] / seconds["plain"] - 1),
                {1: "<= 5", 32: "<= 5"}.get(batch_size, ""),
                f"plain model {1000 * np.median(seconds['plain']):.1f} ms a batch; exits alone, no rule: {heads:.1f}",
                unit="%",
            )
        )
    return realised + overhead


@torch.inference_mode()
def plain(model: MultiExitModel, batch: Batch) -> Float[Tensor, "batch classes"]:
    """The plain model: all layers, then the last exit's head alone."""
    inputs = batch.to(best_device()).inputs
    hidden = Hidden(model.backbone(*inputs), inputs[1].bool(), None)
    answer, _ = model.exits[str(model.layers[-1])](ExitState(hidden, hidden))
    return answer.logits.cpu()


@torch.inference_mode()
def all_exits(model: MultiExitModel, batch: Batch) -> Float[Tensor, "stages batch classes"]:
    """All layers and all exits, without a rule: what the exits cost by themselves."""
    return model(*batch.to(best_device()).inputs).logits.cpu()


def spread() -> Rule:
    """At threshold 1, exits spread evenly over all stages: the stage is a function of the sample's id alone."""

    def readiness(evidence: Evidence) -> Tensor:
        # Only the stages so far are known here, and the hash must not depend on how many that is.
        stage = evidence.ids % evidence.reference_layers
        return (torch.arange(evidence.stages)[:, None] >= stage).double()

    return Rule("spread", readiness, low=1, high=1)


def peak_memory(shape: str, train: Samples, test: Samples) -> list[Row]:
    """Peak memory of each, model included, in a fresh process: on a CPU the resident set above that of the imported
    libraries, on a GPU what torch allocated."""
    context = get_context("forkserver")
    # Not this module itself: as the one that was started it is imported again under another name.
    context.set_forkserver_preload(["eeutils.runs"])
    rows = []
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        for what in tqdm(WORK, desc="memory", leave=False):
            peak = pool.submit(_peak_bytes, what, shape, train, test).result()
            rows.append(Row(f"peak memory, {what}", round(peak / 1e6, 1), "MB", "model included"))
    return rows


def race(tracks: Mapping[str, Track], rounds: int, description: str) -> dict[str, np.ndarray]:
    """Mean seconds of a call of each track in each round, (rounds,).

    Within a round the tracks take turns, call by call; the calls of a shorter track are spread evenly over the round.
    """
    turns = [
        ((place + 0.5) / len(calls), name, call) for name, calls in tracks.items() for place, call in enumerate(calls)
    ]
    turns.sort(key=lambda turn: turn[0])
    seconds = {name: np.zeros(rounds) for name in tracks}
    for calls in tracks.values():
        calls[0]()
    with tqdm(total=rounds * len(turns), desc=description, leave=False) as bar:
        for number in range(rounds):
            for _, name, call in turns:
                wait_for(best_device())
                start = time.perf_counter()
                call()
                wait_for(best_device())
                seconds[name][number] += (time.perf_counter() - start) / len(tracks[name])
                bar.update()
    return seconds


def main(arguments: list[str] | None = None) -> None:
    """The command line: print the table and write it, whole or not at all."""
    parser = argparse.ArgumentParser(prog="python -m eeutils.bench", description="Measure what the shared parts gain.")
    parser.add_argument("--quick", action="store_true", help="in seconds, on a tiny encoder: the figures mean nothing")
    parser.add_argument("--output", type=Path, help=f"the table as CSV (default: {OUTPUT.name} in data/results/)")
    options = parser.parse_args(arguments)
    table = measure(options.quick)
    output = options.output or (None if options.quick else OUTPUT)
    if output is not None:
        with atomic_write(output) as partial_file:
            table.to_csv(partial_file, index=False)
    with pd.option_context("display.width", None, "display.max_colwidth", None):
        shown = table[["what", "value", "unit", "target", "met", "note"]].fillna("")
        sys.stdout.write(shown.to_string(index=False) + "\n")


def _row(what: str, ratios: np.ndarray, target: str, note: str, unit: str = "x") -> Row:
    spread_over_rounds = f"{ratios.min():.2f} to {ratios.max():.2f} over {len(ratios)} rounds"
    return Row(what, round(float(np.median(ratios)), 3), unit, f"{note}; {spread_over_rounds}", target)


def _movie_samples() -> tuple[Samples, Samples]:
    setting = Setting()
    return samples_of(setting, "train"), samples_of(setting, "test")


def _random_samples(count: int = 128) -> tuple[Samples, Samples]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 40, (count,), generator=generator).tolist()
    tokens = tuple(tuple(torch.randint(1, 100, (length,), generator=generator).tolist()) for length in lengths)
    labels = torch.randint(0, 2, (count,), generator=generator)
    samples = Samples(tokens, None, labels, torch.arange(count), padding=0)
    return samples, samples


def _first(samples: Samples, count: int) -> Samples:
    # The order of a split says nothing of the length.
    return samples.take(range(min(count, len(samples))))


def _optimizer(model: MultiExitModel) -> torch.optim.Optimizer:
    # Fused, as in training: it takes less of each step, so that more of it is what is compared.
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def _train_batches(samples: Samples, way: str, count: int) -> list[Batch]:
    """Some batches that stand for an epoch: from all of its batches, ordered by width, the middle of each n-th."""
    # Pools of one batch are what a plain random sampler gives.
    pool = {"buckets": {}, "dynamic": {"pool": 1}, "padded": {"pool": 1}}[way]
    epoch = list(LengthBuckets(samples.lengths, Setting().batch_size, seed=0, **pool))
    whole = [rows for rows in epoch if len(rows) == Setting().batch_size]
    whole.sort(key=lambda rows: max(len(samples.tokens[row]) for row in rows))
    places = ((np.arange(count) + 0.5) / count * len(whole)).astype(int)
    return [samples.batch(whole[place], PADDED_TO if way == "padded" else None) for place in places]


def _spread_thresholds(evidence: Evidence, rule: Rule) -> list[float]:
    """Thresholds whose mean layers are spread evenly between the first exit and the last."""
    curve = sweep(evidence, rule, metric_of("movie"), points=1001)
    wanted = np.linspace(curve.layers.min(), curve.layers.max(), THRESHOLDS)
    return [curve.threshold[(curve.layers - layers).abs().argmin()] for layers in wanted]


def _train_memory(way: str, model: MultiExitModel, train: Samples, test: Samples) -> None:
    optimizer = _optimizer(model)
    widest = _train_batches(train, way, 12)[-1]
    for _ in range(2):
        train_step(model, optimizer, widest)


def _sweep_memory(model: MultiExitModel, train: Samples, test: Samples) -> None:
    sweep(record(model, test), entropy(), metric_of("movie"), points=THRESHOLDS)


def _runtime_memory(model: MultiExitModel, train: Samples, test: Samples) -> None:
    Runtime(model, spread(), 1.0)(_first(test, 320), batch_size=32)


def _plain_memory(model: MultiExitModel, train: Samples, test: Samples) -> None:
    for _, batch in batches(_first(test, 320), 32):
        plain(model, batch)


WORK: dict[str, Callable[[MultiExitModel, Samples, Samples], None]] = {
    "training, length buckets": partial(_train_memory, "buckets"),
    "training, random batches padded to their longest": partial(_train_memory, "dynamic"),
    f"training, every batch padded to {PADDED_TO}": partial(_train_memory, "padded"),
    "recording and sweep, batch 64": _sweep_memory,
    "runtime with early exits, batch 32": _runtime_memory,
    "plain model, batch 32": _plain_memory,
}
"""What has its memory measured: (model, train, test) -> the work."""


def _peak_bytes(what: str, shape: str, train: Samples, test: Samples) -> int:
    # Small first, so that what torch imports on first use is not counted.
    WORK[what](build("tiny"), *_random_samples())
    before = _peak_resident_bytes()
    WORK[what](build(shape), train, test)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    import resource  # not on Windows

    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
