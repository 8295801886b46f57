"""What the shared parts gain and cost, measured: `make bench`, or `python -m workflow.bench`.

Every speed is a ratio within one run: what is compared takes turns, and the median over the rounds counts. The models
are PABEE's and ConsistentEE's on all-MiniLM-L6-v2, their exits untrained: time and memory do not depend on what was
learned. What depends on the size of the encoder is measured on all-mpnet-base-v2 (microsoft/mpnet-base trained further
as a sentence encoder), too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm
from transformers import BertConfig, BertModel
from transformers.utils.logging import disable_progress_bar

from eeutils.data.samples import Batch, LengthBuckets, Samples, batches
from eeutils.exiting.rules import NEVER, confidence, entropy, random
from eeutils.exiting.tradeoff import sweep, threshold_for_speedup
from eeutils.files import atomic_write, repository_root
from eeutils.models.exits import MultiExitModel
from eeutils.models.record import record
from eeutils.models.runtime import Runtime
from eeutils.models.timing import Track, race, ratio
from eeutils.papers import consistentee, pabee
from eeutils.training.checkpoints import Checkpoints, Position
from eeutils.training.fingerprint import environment
from eeutils.training.loop import CHECKPOINT_SECONDS, best_device, fit, on_cpu, precision
from eeutils.training.method import Method
from eeutils.training.runs import metric_of, samples_of
from eeutils.training.settings import Setting
from workflow.bench_generation import generation
from workflow.rows import Row, in_fresh_process, peak_resident_bytes, row

OUTPUT = repository_root() / "data" / "results" / "bench.csv"
COLUMNS = ("what", "value", "unit", "target", "met", "note", "commit", "device", "threads", "torch")

BACKBONE, BASE, TASK = "minilm-l6", "mpnet-base", "movie"
TRAIN_BATCH = Setting().batch_size
BATCH_SIZES = (1, 8, 32, 64)
"""Of the runtime."""

SPEEDUP = 1.7
"""By layers, of the runtime: what exits give that spread evenly over six layers."""

THRESHOLDS = 20
"""Points of the trade-off curve that one sweep, or as many re-runs, is timed for."""

PADDED_TO = 128
"""What the reference codes pad every sentence to."""

BUCKETS, DYNAMIC, PADDED = (
    "length buckets",
    "random batches padded to their longest",
    f"every batch padded to {PADDED_TO}",
)


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, of which the median counts; training batches; sentences of sweep and runtime."""

    rounds: int
    batches: int
    sentences: int
    steps: int
    """Of the training loop at base size, in each of three rounds at most."""


FULL, QUICK = Size(5, 12, 192, 6), Size(2, 4, 64, 2)


def measure(quick: bool = False) -> pd.DataFrame:
    """The whole table, of `COLUMNS`. `quick` runs in seconds, on a tiny encoder and random token ids: its figures mean
    nothing."""
    size = QUICK if quick else FULL
    with TemporaryDirectory() as tiny:
        save_tiny_encoder(tiny)
        backbone = tiny if quick else BACKBONE
        train, test = (random_samples() if quick else samples_of(Setting(TASK), split) for split in ("train", "test"))
        base, pairs = (tiny, random_samples()) if quick else (BASE, pairs_like_mrpc(TRAIN_BATCH * size.steps))
        # Memory first: its processes start from a parent that is still small.
        memory = peak_memory(backbone, tiny, train, test)
        memory += peak_memory(base, tiny, pairs, pairs, at_base_size=True)
        writing = generation(size.rounds, quick)
        model, some = build(pabee.METHOD, backbone), first(test, size.sentences)
        rows = training_speed(model, train, size) + sweep_speed(model, some, size) + runtime_speed(model, some, size)
        rows += replica_speed(build(consistentee.METHOD, backbone), train, size)
        rows += loop_speed(build(pabee.METHOD, base), pairs, size)
    machine = environment()
    where = {name: machine[name] for name in ("commit", "device", "threads")} | {"torch": machine["packages"]["torch"]}
    return pd.DataFrame([{**vars(row), "met": row.met, **where} for row in [*rows, *writing, *memory]])[list(COLUMNS)]


def save_tiny_encoder(folder: str) -> None:
    """An encoder for a quick look, which `build` finds by its folder."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    disable_progress_bar()  # of the file that is written
    BertModel(BertConfig(vocab_size=100, **sizes)).save_pretrained(folder)


def pairs_like_mrpc(count: int) -> Samples:
    """Random token ids of BERT's vocabulary, as many a sample as MRPC's pairs have: 54 on average, 96 at most."""
    return random_samples(count, shortest=12, longest=96, vocabulary=30_000)


def random_samples(count: int = 128, shortest: int = 5, longest: int = 39, vocabulary: int = 100) -> Samples:
    """Random token ids, by default of the tiny encoder."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    # 0 and 1 are padding in one vocabulary or another.
    tokens = tuple(tuple(torch.randint(2, vocabulary, (length,), generator=generator).tolist()) for length in lengths)
    return Samples(tokens, None, torch.randint(2, (count,), generator=generator), torch.arange(count), padding=0)


def first(samples: Samples, count: int) -> Samples:
    """The first samples: the order of a split says nothing of the length."""
    return samples.take(range(min(count, len(samples))))


def build(method: Method, backbone: str) -> MultiExitModel:
    """A paper's model for two classes before any training."""
    return method.build(Setting(TASK, backbone, pool="mean"), 2, method.options).to(best_device()).eval()


def training_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """A training step of PABEE on batches of like length, against two other ways to pad."""
    tracks = {
        way: train_steps(model, pabee.METHOD, train_batches(samples, way, count))
        for way, count in ((BUCKETS, size.batches), (DYNAMIC, size.batches), (PADDED, size.batches // 4))
    }
    seconds = race(tracks, size.rounds, best_device(), "training")
    speed = {way: f"{TRAIN_BATCH / np.median(times.mean(axis=1)):.0f}" for way, times in seconds.items()}
    model.zero_grad()
    model.eval()
    return [
        row(
            f"training, {BUCKETS} against {way}",
            ratio(seconds, way, BUCKETS),
            target,
            f"{speed[BUCKETS]} and {speed[way]} sentences/s",
        )
        for way, target in ((PADDED, ">= 3.5"), (DYNAMIC, ">= 1.5"))
    ]


def replica_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """ConsistentEE's last phase: all replicas drawn on one pass of the encoder, against a pass for each of them."""
    noted = samples.with_notes(memorized_layer=(samples.ids, torch.ones(len(samples), dtype=torch.long)))
    # A few will do: the naive steps take long.
    chosen, replicas = train_batches(noted, BUCKETS, size.batches // 4), consistentee.REPLICAS
    tracks = {
        "shared": train_steps(model, consistentee.METHOD, chosen),
        "naive": train_steps(model, consistentee.METHOD, chosen, passes=replicas),
    }
    seconds = race(tracks, size.rounds, best_device(), "replicas")
    about = f"{1000 * np.median(seconds['shared']):.0f} and {1000 * np.median(seconds['naive']):.0f} ms a step"
    what = f"ConsistentEE, {replicas} replicas on one pass of the encoder against as many passes"
    return [row(what, ratio(seconds, "naive", "shared"), ">= 4", about)]


def loop_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """The training loop at base size against bare steps on the same batches: what the loop itself, and its checkpoints
    on this disk, add to a step."""
    setting, [phase] = Setting(TASK, epochs=1), pabee.METHOD.phases(pabee.METHOD.options)
    order = LengthBuckets(samples.lengths, setting.batch_size, seed=0)

    def adamw() -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, fused=True)

    def bare() -> None:
        optimizer, device, kind = adamw(), best_device(), {"bf16": torch.bfloat16, "fp16": torch.float16}
        model.train()
        for rows in order:
            batch = samples.batch(rows).to(device)
            with torch.autocast(device.type, kind.get(precision()), enabled=precision() in kind):
                answers = model(*batch.inputs)
                loss = phase.objective(model, answers._replace(logits=answers.logits.float()), batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), setting.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()

    def loop() -> None:
        with TemporaryDirectory() as folder:
            fit(model, [phase], samples, setting, Path(folder), progress=False)

    seconds = race({"bare": [bare], "loop": [loop]}, min(size.rounds, 3), best_device(), "training loop")
    with TemporaryDirectory() as folder:
        accelerator = Accelerator(cpu=on_cpu())
        prepared, optimizer = accelerator.prepare(model, adamw())
        [whole] = [samples.batch(range(2)).to(best_device())]
        phase.objective(model, prepared(*whole.inputs), whole).backward()
        optimizer.step()
        checkpoints = Checkpoints(Path(folder), accelerator, CHECKPOINT_SECONDS)
        checkpoints.save(Position(history=[]))
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    share = checkpoints.took / checkpoints.wait
    each = {name: np.median(times.mean(axis=1)) / len(order) for name, times in seconds.items()}
    about = f"{each['bare']:.2f} and {each['loop']:.2f} s for {TRAIN_BATCH} pairs as long as MRPC's, {precision()}; a "
    about += f"checkpoint takes {checkpoints.took:.1f} s, one every {checkpoints.wait:.0f} s"
    model.zero_grad()
    what = "training loop at base size, its speed over that of bare steps"
    return [row(what, ratio(seconds, "bare", "loop") / (1 + share), ">= 0.9", about)]


def train_steps(model: MultiExitModel, method: Method, chosen: list[Batch], passes: int = 1) -> Track:
    """Steps of a method's last phase, one a batch, the loss of each taken on so many passes of the encoder."""
    objective = method.phases(method.options)[-1].objective
    # Fused, as in training: it takes less of each step, so that more of it is what is compared.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(batch: Batch) -> None:
        model.train()
        batch = batch.to(best_device())
        for _ in range(passes):
            (objective(model, model(*batch.inputs), batch) / passes).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return [partial(step, batch) for batch in chosen]


def train_batches(samples: Samples, way: str, count: int) -> list[Batch]:
    """Some batches that stand for an epoch: from all of its batches, ordered by width, the middle of each n-th."""
    # Pools of one batch are what a plain random sampler gives.
    epoch = LengthBuckets(samples.lengths, TRAIN_BATCH, seed=0, **({} if way == BUCKETS else {"pool": 1}))
    whole = [rows for rows in epoch if len(rows) == TRAIN_BATCH]
    whole.sort(key=lambda rows: max(len(samples.tokens[row]) for row in rows))
    places = ((np.arange(count) + 0.5) / count * len(whole)).astype(int)
    return [samples.batch(whole[place], PADDED_TO if way == PADDED else None) for place in places]


def sweep_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """A trade-off curve from one recorded pass, recording included, against one run of the runtime per threshold."""
    rule, metric, depth = entropy(), metric_of(TASK), model.reference_layers
    # NEVER is the last of them.
    curve = sweep(record(model, samples), rule, metric, points=THRESHOLDS - 1)
    thresholds, layers = curve.threshold.tolist(), curve.layers.mean()

    def runs(batch_size: int) -> Track:
        return [partial(Runtime(model, rule, threshold), samples, batch_size=batch_size) for threshold in thresholds]

    as_papers, as_recording = "batch 1 as the papers' codes", "batch 64 as the recording"
    tracks = {
        "sweep": [lambda: sweep(record(model, samples), rule, metric, thresholds)] * 4,
        as_papers: runs(1),
        as_recording: runs(64),
    }
    seconds = race(tracks, size.rounds, best_device(), "sweep")
    count = len(thresholds)
    about = f"{len(samples)} sentences, one sweep {np.median(seconds['sweep']):.2f} s; "
    about += f"the runs stop after {layers:.1f} of {depth} layers"
    # Even if sweeping took no time at all, recording runs all layers once.
    bound = f"{about}, so that at equal speed {count * layers / depth:.1f} is the most there is"
    what = f"sweep of {count} thresholds, recording included, against {count} runs that exit early,"
    return [
        row(f"{what} {how}", count * ratio(seconds, how, "sweep"), ">= 15", note)
        for how, note in ((as_papers, about), (as_recording, bound))
    ]


def runtime_speed(model: MultiExitModel, samples: Samples, size: Size) -> list[Row]:
    """The runtime against the plain model: how much of the layers saved is time saved, and what it costs if none is."""
    coin = random()
    threshold = threshold_for_speedup(record(model, samples), coin, SPEEDUP, axis="layers")
    early, never = Runtime(model, coin, threshold), Runtime(model, confidence(), NEVER)
    left = early(samples).stages
    theory = model.reference_layers / (1 + left.double().mean().item())
    rows = []
    for batch_size in BATCH_SIZES:
        tracks = {
            "plain": passes(plain(model), samples, batch_size),
            "early": early.calls(samples, batch_size),
            "never": never.calls(samples, batch_size),
            "all exits": passes(model, samples, batch_size),
            "layers": layers_alone(model, samples, batch_size, left),
        }
        seconds = race(tracks, size.rounds, best_device(), f"runtime, batch {batch_size}")
        most = np.median(ratio(seconds, "plain", "layers"))
        speedup, heads = ratio(seconds, "plain", "early"), 100 * np.median(ratio(seconds, "all exits", "plain") - 1)
        rows += [
            row(
                f"runtime, realised over layer speed-up, batch {batch_size}",
                speedup / theory,
                {1: ">= 0.95", 8: ">= 0.9", 32: ">= 0.9"}.get(batch_size, ""),
                f"{np.median(speedup):.2f} of {theory:.2f}; the same layers alone on the rows that stay: {most:.2f}",
            ),
            row(
                f"runtime, overhead when nobody exits, batch {batch_size}",
                100 * (ratio(seconds, "never", "plain") - 1),
                {1: "<= 4", 32: "<= 2"}.get(batch_size, ""),
                f"plain model {1000 * np.median(seconds['plain']):.1f} ms a batch; exits alone, no rule: {heads:.1f}",
                unit="%",
            ),
        ]
    return rows


def plain(model: MultiExitModel) -> MultiExitModel:
    """The plain model: all layers, and the last exit's head alone."""
    return MultiExitModel(model.backbone, {model.layers[-1]: model.exit_at(-1)}).eval()


def passes(model: MultiExitModel, samples: Samples, batch_size: int) -> Track:
    """All layers and all exits over the samples, batch by batch, without a rule."""

    @torch.inference_mode()
    def answer(batch: Batch) -> Float[Tensor, "stages batch classes"]:
        return model.all_stages(*batch.to(best_device()).inputs).logits.cpu()

    return [partial(answer, batch) for _, batch in batches(samples, batch_size)]


def layers_alone(
    model: MultiExitModel, samples: Samples, batch_size: int, left: Int[Tensor, " samples"]
) -> list[Callable[[], None]]:
    """Embeddings, and every layer on as many rows as a runtime has there whose samples left at stage `left`; no exit,
    no rule, and packing again costs nothing. No runtime that asks after every layer is faster."""

    def through(rows: list[int]) -> Callable[[], None]:
        still = [[row for row in rows if left[row] >= stage] for stage in range(model.stages)]
        inputs = [samples.batch(some).to(best_device()).inputs for some in still if some]
        with torch.inference_mode():
            states = [model.begin(*given) for given in inputs]

        @torch.inference_mode()
        def run() -> None:
            model.begin(*inputs[0])
            for stage, state in enumerate(states):
                model.reach(stage, state)

        return run

    return [through(rows.tolist()) for rows, _ in batches(samples, batch_size)]


def _train_twice(way: str, model: MultiExitModel, train: Samples, test: Samples) -> None:
    widest = train_batches(train, way, 12)[-1]
    for step in train_steps(model, pabee.METHOD, [widest, widest]):
        step()


WORK: dict[str, Callable[[MultiExitModel, Samples, Samples], object]] = {
    **{f"training, {way}": partial(_train_twice, way) for way in (BUCKETS, DYNAMIC, PADDED)},
    "recording and sweep, batch 64": lambda model, _, test: sweep(record(model, test), entropy(), metric_of(TASK)),
    "runtime with early exits, batch 32": lambda model, _, test: Runtime(model, random(), 0.7)(first(test, 320)),
    "plain model, batch 32": lambda model, _, test: [answer() for answer in passes(plain(model), first(test, 320), 32)],
}
"""What has its memory measured: (model, train, test) -> the work."""


def peak_memory(backbone: str, tiny: str, train: Samples, test: Samples, at_base_size: bool = False) -> list[Row]:
    """Peak memory of each of `WORK`, model included, in a fresh process: on a CPU the resident set above that of the
    imported libraries, on a GPU what torch allocated. At base size of training alone, which has a bar."""
    rows = []
    for what in tqdm([f"training, {BUCKETS}"] if at_base_size else WORK, desc="memory", leave=False):
        peak = round(in_fresh_process(_peak_bytes, what, backbone, tiny, train, test) / 1e6, 1)
        name, target = (f"at base size, {what}", "<= 6000") if at_base_size else (what, "")
        rows.append(Row(f"peak memory, {name}", peak, "MB", "model included", target))
    return rows


def _peak_bytes(what: str, backbone: str, tiny: str, train: Samples, test: Samples) -> int:
    # Small first, so that what torch imports on first use is not counted.
    WORK[what](build(pabee.METHOD, tiny), random_samples(), random_samples())
    before = peak_resident_bytes()
    WORK[what](build(pabee.METHOD, backbone), train, test)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes() - before


def main(arguments: list[str] | None = None) -> None:
    """The command line: print the table and write it, whole or not at all."""
    parser = argparse.ArgumentParser(prog="python -m workflow.bench", description="Measure what the shared parts gain.")
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


if __name__ == "__main__":
    main()
