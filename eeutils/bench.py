"""What the shared parts gain and cost, measured: `make bench`, or `python -m eeutils.bench`.

Every speed is a ratio within one run. What is compared takes turns, batch by batch, so that other load on the machine
hits all sides alike; a round goes through all batches once, and the median ratio over the rounds counts. The model is
all-MiniLM-L6-v2 in shape with an exit on every layer as PABEE has them, and weights at random: time and memory do not
depend on what was learned.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, BertConfig

from eeutils.backbone import Backbone, Hidden, default_pool, resolve
from eeutils.batching import Batch, LengthBuckets, Samples, batches
from eeutils.evidence import Evidence, record
from eeutils.exits import ExitState, MultiExitModel, shared_pooler_exits
from eeutils.files import atomic_write, repository_root
from eeutils.papers import pabee
from eeutils.rules import NEVER, Rule, confidence, entropy
from eeutils.runs import environment, metric_of, samples_of
from eeutils.runtime import Runtime
from eeutils.settings import Setting
from eeutils.tradeoff import sweep

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
        rounds: how often everything is gone through; the median counts.
        train_batches: of 32 sentences, spread over all lengths that an epoch has.
        padded_batches: of 32 sentences padded to 128, all of which cost the same.
        sweep_samples: sentences of the sweep and of its re-runs.
        runtime_samples: batch size of the runtime -> sentences.
    """

    rounds: int
    train_batches: int
    padded_batches: int
    sweep_samples: int
    runtime_samples: Mapping[int, int]


FULL = Size(5, 12, 3, 200, {1: 150, 8: 400, 32: 640, 64: 640})
QUICK = Size(2, 3, 1, 24, {1: 12, 8: 24, 32: 64, 64: 64})


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
    size, train, test = (QUICK, *_random_samples()) if quick else (FULL, *_movie_samples())
    # Memory first: its processes start from a parent that is still small.
    memory = peak_memory(train, test, quick)
    model = build(quick).to(_device())
    rows = [*training_speed(model, train, size), *sweep_speed(model, test, size), *runtime_speed(model, test, size)]
    machine = environment()
    where = {name: machine[name] for name in ("commit", "device", "threads")} | {"torch": machine["packages"]["torch"]}
    return pd.DataFrame([{**vars(row), "met": row.met, **where} for row in [*rows, *memory]])[list(COLUMNS)]


def build(quick: bool = False) -> MultiExitModel:
    """The model that is measured: PABEE's, in the shape of the default backbone (or tiny), with random weights."""
    name = Setting().backbone
    if quick:
        config = BertConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
        )
    else:
        config = AutoConfig.from_pretrained(resolve(name))
    backbone = Backbone(AutoModel.from_config(config))
    return MultiExitModel(backbone, shared_pooler_exits(backbone, 2, default_pool(name)))


def training_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """Sentences a second of a training step on batches of like length, against two other ways to pad."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tracks = {
        way: [partial(train_step, model, optimizer, batch) for batch in _train_batches(samples, way, size)]
        for way in ("buckets", "dynamic", "padded")
    }
    seconds = race(tracks, size.rounds, "training")
    speed = {way: Setting().batch_size * len(tracks[way]) / seconds[way] for way in tracks}
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
    batch = Batch(*(None if part is None else part.to(_device()) for part in batch))
    pabee.weighted_loss(model, model(*batch.inputs), batch).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def sweep_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """A trade-off curve from one recorded pass, recording included, against one run of the runtime per threshold."""
    samples = _first(samples, size.sweep_samples)
    rule, metric = entropy(), metric_of("movie")
    thresholds = _spread_thresholds(record(model, samples), rule)

    def curve() -> None:
        sweep(record(model, samples), rule, metric, thresholds)

    def rerun(threshold: float, batch_size: int) -> None:
        Runtime(model, rule, threshold)(samples, batch_size=batch_size)

    tracks = {
        "sweep": [curve],
        "one by one": [partial(rerun, threshold, 1) for threshold in thresholds],
        "batches": [partial(rerun, threshold, 64) for threshold in thresholds],
        "all layers": [partial(rerun, NEVER, 1)],
    }
    seconds = race(tracks, size.rounds, "sweep")
    what = f"sweep of {THRESHOLDS} thresholds, recording included, against {THRESHOLDS} runs"
    once = f"one sweep {np.median(seconds['sweep']):.2f} s, {len(samples)} sentences"
    return [
        _row(
            f"{what} that exit early, batch 1 as the papers' codes",
            seconds["one by one"] / seconds["sweep"],
            ">= 15",
            once,
        ),
        _row(f"{what} that exit early, batch 64", seconds["batches"] / seconds["sweep"], ">= 15", once),
        _row(f"{what} of all layers, batch 1", THRESHOLDS * seconds["all layers"] / seconds["sweep"], "", once),
    ]


def runtime_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """The runtime against the plain model: how much of the layers saved is time saved, and what it costs if none is."""
    realised, overhead = [], []
    for batch_size, count in size.runtime_samples.items():
        ready = [batch for _, batch in batches(_first(samples, count), batch_size)]
        early, never = Runtime(model, spread(), 1.0), Runtime(model, confidence(), NEVER)
        seconds = race(
            {
                "plain": [partial(plain, model, batch) for batch in ready],
                "early": [partial(early.run, batch) for batch in ready],
                "never": [partial(never.run, batch) for batch in ready],
            },
            size.rounds,
            f"runtime, batch {batch_size}",
        )
        stages = torch.cat([early.run(batch).stages for batch in ready])
        theory = model.reference_layers / (stages + 1).double().mean().item()
        speedup = seconds["plain"] / seconds["early"]
        realised.append(
            _row(
                f"runtime, realised over layer speed-up, batch {batch_size}",
                speedup / theory,
                {1: ">= 0.95", 32: ">= 0.85"}.get(batch_size, ""),
                f"{np.median(speedup):.2f} of {theory:.2f}",
            )
        )
        overhead.append(
            _row(
                f"runtime, overhead when nobody exits, batch {batch_size}",
                100 * (seconds["never"] / seconds["plain"] - 1),
                "<= 5" if batch_size in (1, 32) else "",
                f"plain model {1000 * np.median(seconds['plain']) / len(ready):.1f} ms a batch",
                unit="%",
            )
        )
    return realised + overhead


@torch.inference_mode()
def plain(model: MultiExitModel, batch: Batch) -> Float[Tensor, "batch classes"]:
    """The plain model: all layers, then the last exit's head alone."""
    inputs = [None if part is None else part.to(_device()) for part in batch.inputs]
    hidden = Hidden(model.backbone(*inputs), inputs[1].bool(), None)
    answer, _ = model.exits[str(model.layers[-1])](ExitState(hidden, hidden))
    return answer.logits.cpu()


def spread() -> Rule:
    """At threshold 1, exits spread evenly over all stages: the stage is a function of the sample's id alone."""

    def readiness(evidence: Evidence) -> Tensor:
        # Only the stages so far are known here, and the hash must not depend on how many that is.
        stage = evidence.ids % evidence.reference_layers
        return (torch.arange(evidence.stages)[:, None] >= stage).double()

    return Rule("spread", readiness, low=1, high=1)


def peak_memory(train: Samples, test: Samples, quick: bool = False) -> list[Row]:
    """Peak memory of each, model included, in a fresh process: on a CPU the resident set above that of the imported
    libraries, on a GPU what torch allocated."""
    context = get_context("forkserver")
    # Not this module itself: as the one that was started it is imported again under another name.
    context.set_forkserver_preload(["eeutils.runs"])
    rows = []
    with ProcessPoolExecutor(max_workers=1, mp_context=context, max_tasks_per_child=1) as pool:
        for what in tqdm(WORK, desc="memory", leave=False):
            peak = pool.submit(_peak_bytes, what, train, test, quick).result()
            rows.append(Row(f"peak memory, {what}", round(peak / 1e6, 1), "MB", "model included"))
    return rows


def race(tracks: Mapping[str, Track], rounds: int, description: str) -> dict[str, np.ndarray]:
    """Seconds that each track takes in each round, (rounds,); within a round the tracks take turns, call by call."""
    seconds = {name: np.zeros(rounds) for name in tracks}
    for calls in tracks.values():
        calls[0]()
    total = rounds * sum(map(len, tracks.values()))
    with tqdm(total=total, desc=description, leave=False) as bar:
        for number in range(rounds):
            for turn in zip_longest(*tracks.values()):
                for name, call in zip(tracks, turn, strict=True):
                    if call is None:
                        continue
                    _wait()
                    start = time.perf_counter()
                    call()
                    _wait()
                    seconds[name][number] += time.perf_counter() - start
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


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
    """The first samples of a split, whose order says nothing of their length."""
    return Samples(
        samples.tokens[:count],
        None if samples.types is None else samples.types[:count],
        None if samples.labels is None else samples.labels[:count],
        samples.ids[:count],
        samples.padding,
    )


def _train_batches(samples: Samples, way: str, size: Size) -> list[Batch]:
    """Some batches that stand for an epoch: from all of its batches, ordered by width, the middle of each n-th."""
    # Pools of one batch are what a plain random sampler gives.
    pool = {"buckets": {}, "dynamic": {"pool": 1}, "padded": {"pool": 1}}[way]
    epoch = list(LengthBuckets(samples.lengths, Setting().batch_size, seed=0, **pool))
    whole = [rows for rows in epoch if len(rows) == Setting().batch_size]
    whole.sort(key=lambda rows: max(len(samples.tokens[row]) for row in rows))
    wanted = size.padded_batches if way == "padded" else size.train_batches
    places = ((np.arange(wanted) + 0.5) / wanted * len(whole)).astype(int)
    return [samples.batch(whole[place], PADDED_TO if way == "padded" else None) for place in places]


def _spread_thresholds(evidence: Evidence, rule: Rule) -> list[float]:
    """Thresholds whose mean layers are spread evenly between the first exit and the last."""
    curve = sweep(evidence, rule, metric_of("movie"), points=1001)
    wanted = np.linspace(curve.layers.min(), curve.layers.max(), THRESHOLDS)
    return [curve.threshold[(curve.layers - layers).abs().argmin()] for layers in wanted]


def _train_memory(way: str, model: MultiExitModel, train: Samples, test: Samples) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    widest = _train_batches(train, way, Size(1, 12, 1, 0, {}))[-1]
    for _ in range(2):
        train_step(model, optimizer, widest)


def _sweep_memory(model: MultiExitModel, train: Samples, test: Samples) -> None:
    sweep(record(model, test), entropy(), metric_of("movie"), points=THRESHOLDS)


def _runtime_memory(model: MultiExitModel, train: Samples, test: Samples) -> None:
    Runtime(model, spread(), 1.0)(_first(test, 320), batch_size=32)


def _plain_memory(model: MultiExitModel, train: Samples, test: Samples) -> None:
    model.eval()
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


def _peak_bytes(what: str, train: Samples, test: Samples, quick: bool) -> int:
    # Small first, so that what torch imports on first use is not counted.
    WORK[what](build(quick=True).to(_device()), *_random_samples())
    before = _peak_resident_bytes()
    WORK[what](build(quick).to(_device()), train, test)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    import resource  # not on Windows

    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
