"""What a server sees: texts arrive at random, batches form, and early exits empty them: `python -m workflow.serving`.

One worker answers with exported stages, with and without queues between them (see `queues`). What each way gives is
simulated from measured stage times, and held against the same requests served for real: there, too, the clock jumps
over idle time, and what is computed takes the time that it takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from eeutils import deploy
from eeutils.data.tasks import task_of
from eeutils.deploy import Deployed
from eeutils.deploy.served import Arrays
from eeutils.errors import InputError
from eeutils.exiting.rules import NEVER, entropy
from eeutils.files import repository_root
from eeutils.papers import finetuned, pabee
from eeutils.training.fingerprint import environment
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from workflow.measured import Measurement
from workflow.queues import SATURATED, Measured, Way, poisson, serve

OUTPUT = repository_root() / "data" / "results" / "serving.csv"
PAGE = repository_root() / "docs" / "serving.md"
COLUMNS = ("way", "kind", "load", "requests", "per_second", "median_ms", "p95_ms", "batch", "threads", "commit")


@dataclass
class Exported:
    """An engine that computes: stages of an exported model, and between them every request's own state, so that those
    who meet in a queue can go on together, whatever their lengths.

    Attributes:
        graphs: the model.
        tokens: of each request, as `graphs.encode` gives them.
        left: (N,) where requests have left so far, -1 where not yet.
    """

    graphs: Deployed
    tokens: Sequence[dict[str, list[int]]]
    left: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if self.graphs.config["heard"]:
            raise InputError("a queue between stages is for rules that read one exit at a time, such as entropy")
        self.left = np.full(len(self.tokens), -1)
        self._states: dict[int, Arrays] = {}

    @property
    def stages(self) -> int:
        return len(self.graphs.layers)

    def step(self, stage: int, requests: Sequence[int]) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        if stage == 0:
            state = self.graphs.batch([self.tokens[request] for request in requests])
        else:
            state = _together([self._states.pop(request) for request in requests])
        state, said = self.graphs.step(stage, state)
        leave = np.full(len(requests), stage == self.stages - 1) | (said["readiness"] >= self.graphs.threshold)
        lengths = state["attention_mask"].sum(axis=1)
        for row in (~leave).nonzero()[0]:
            own = {name: array[row] for name, array in state.items()}
            self._states[requests[row]] = {
                name: array[: lengths[row]] if name in ("states", "attention_mask") else array
                for name, array in own.items()
            }
        self.left[np.asarray(requests)[leave]] = stage
        return time.perf_counter() - started, leave


def _together(states: Sequence[Arrays]) -> Arrays:
    width = max(len(state["attention_mask"]) for state in states)

    def padded(array: np.ndarray, name: str) -> np.ndarray:
        if name not in ("states", "attention_mask"):
            return array
        return np.pad(array, [(0, width - len(array)), *[(0, 0)] * (array.ndim - 1)])

    return {name: np.stack([padded(state[name], name) for state in states]) for name in states[0]}


def stage_times(
    graphs: Deployed, tokens: Sequence[dict[str, list[int]]], sizes: Sequence[int], rounds: int, seed: int = 0
) -> np.ndarray:
    """(S, K): the median seconds of each stage on batches of random texts of each size, none of whom leaves."""
    random, seconds = np.random.default_rng(seed), np.zeros((rounds, len(graphs.layers), len(sizes)))
    for turn in range(rounds):
        for column, size in enumerate(sizes):
            rows = random.choice(len(tokens), size, replace=False)
            engine = Exported(_at(graphs, NEVER), [tokens[row] for row in rows])
            for stage in range(engine.stages):
                seconds[turn, stage, column], _ = engine.step(stage, range(size))
    return np.median(seconds[1:] if rounds > 1 else seconds, axis=0)  # the first turn wakes the sessions up


def _at(graphs: Deployed, threshold: float) -> Deployed:
    return replace(graphs, config=graphs.config | {"threshold": None if threshold == NEVER else threshold})


@dataclass(frozen=True)
class Size:
    """How much is measured and simulated."""

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rounds: int = 15
    requests: int = 4000
    real: int = 600
    tries: int = 3
    loads: tuple[float, ...] = (0.3, 0.6, 0.9, 1.2, 1.5, SATURATED)
    real_loads: tuple[float, ...] = (0.9, SATURATED)


FULL = Size()
QUICK = Size((1, 4), 2, 60, 12, 1, (0.5, SATURATED), (0.5, SATURATED))


def measure(profile: str, task: str, backbone: str, size: Size) -> pd.DataFrame:
    """The whole table, of `COLUMNS`; `load` is in parts of what the plain model can answer."""
    setting = Setting.from_profile(profile, task, backbone, 0)
    rows = []
    with TemporaryDirectory() as folder:
        plain = deploy.export(load_or_train(finetuned.METHOD, setting), Path(folder) / "plain")
        exits = deploy.export(load_or_train(pabee.METHOD, setting), Path(folder) / "exits", entropy())
        texts = task_of(setting.task, setting.train_size, setting.test_size).test["text_a"]
        drawn = np.random.default_rng(0).integers(len(texts), size=size.requests)
        tokens = {name: graphs.encode(list(texts)) for name, graphs in (("plain", plain), ("exits", exits))}
        measured = {
            name: stage_times(graphs, tokens[name], size.sizes, size.rounds)
            for name, graphs in (("plain", plain), ("exits", exits))
        }
        real = Exported(exits, tokens["exits"])
        serve(real, np.zeros(len(texts)), Way(""))
        left = {"plain": np.zeros(len(texts), dtype=int), "exits": real.left}
        engines = {
            name: Measured(np.array(size.sizes), measured[name], left[name][drawn]) for name in ("plain", "exits")
        }
        capacity = size.requests / serve(engines["plain"], np.zeros(size.requests), Way("")).seconds
        longest = float(measured["exits"][:, -1].sum())
        every = tuple(range(1, exits.layers.size))
        middle = min(int(np.median(left["exits"])) + 1, len(every))
        ways = {
            "plain": ("plain", Way("plain model")),
            "exits": ("exits", Way("exits, a batch to its end")),
            "two": ("exits", Way(f"exits, two queues (after stage {middle})", (middle,), 2 * longest)),
            "all": ("exits", Way("exits, a queue at every stage", every, 2 * longest)),
        }
        for model, way in ways.values():
            graphs = plain if model == "plain" else exits
            for kind, count, loads in (("simulated", size.requests, size.loads), ("real", size.real, size.real_loads)):
                for load in loads:
                    arrivals = poisson(count, load * capacity)
                    if kind == "simulated":
                        tries = [serve(engines[model], arrivals, way)]
                    else:
                        asked = [tokens[model][row] for row in drawn[:count]]
                        tries = [serve(Exported(graphs, asked), arrivals, way) for _ in range(size.tries)]
                    # Of several tries the middle one: whatever else a machine does slows one of them down.
                    served = sorted(tries, key=lambda one: float(np.quantile(one.waits, 0.95)))[len(tries) // 2]
                    rows.append(
                        {
                            "way": way.name,
                            "kind": kind,
                            "load": load,
                            "requests": count,
                            "per_second": count / served.seconds,
                            "median_ms": 1000 * float(np.median(served.waits)),
                            "p95_ms": 1000 * float(np.quantile(served.waits, 0.95)),
                            "batch": served.batch,
                        }
                    )
    machine = environment()
    return pd.DataFrame(rows).assign(threads=machine["threads"], commit=machine["commit"])[list(COLUMNS)]


def page(table: pd.DataFrame) -> str:
    """What was found, in Markdown."""
    simulated, real = (table[table.kind == kind] for kind in ("simulated", "real"))
    full = simulated[simulated.load == SATURATED].set_index("way").per_second
    plain = full["plain model"]
    loads = [load for load in simulated.load.unique() if load != SATURATED]
    lines = [
        "# Under load",
        "",
        "One worker, batches of at most 32, texts arriving at random (Poisson); the movie sentences, PABEE's exits",
        "under entropy at 2x in FLOPs, exported to onnxruntime. A batch is formed of whoever waits; nobody waits for",
        "one to fill but in the queues between stages, and there not longer than two passes of a full batch.",
        "Simulated from measured stage times, and in part served for real. Load is in parts of what the plain model",
        "can answer.",
        f"{table.threads.iloc[0]} threads. Written by `make bench` from `data/results/serving.csv`.",
        "",
        "| 95% of answers within | " + " | ".join(f"load {load:g}" for load in loads) + " | texts a second at most |",
        "|---|" + "---|" * (len(loads) + 1),
    ]
    for way, rows in simulated.groupby("way", sort=False):
        at = rows.set_index("load")
        cells = [f"{at.p95_ms[load]:.0f} ms" if at.per_second[load] >= 0.9 * load * plain else "-" for load in loads]
        lines.append(f"| {way} | {' | '.join(cells)} | {full[way]:.0f} ({full[way] / plain:.2f}x) |")
    lines += ["", "-: more than it can answer, the queue grows.", ""]
    whole, *queued = (name for name in full.index if name != "plain model")
    best = max(queued, key=lambda name: full[name])
    lines += [
        f"- With exits one worker answers {full[whole] / plain:.2f} times as much without any queue between stages;",
        f"  with {best.removeprefix('exits, ')} {full[best] / plain:.2f} times. Batches hold "
        f"{_mean_batch(simulated, whole):.0f} and {_mean_batch(simulated, best):.0f} texts on average over the stages.",
        f"- Served for real, {_deviation(simulated, real)}",
    ]
    return "\n".join(lines) + "\n"


def _mean_batch(rows: pd.DataFrame, way: str) -> float:
    return float(rows[(rows.way == way) & (rows.load == SATURATED)].batch.iloc[0])


def _deviation(simulated: pd.DataFrame, real: pd.DataFrame) -> str:
    both = real.merge(simulated, on=["way", "load"], suffixes=("", "_simulated"))
    told = []
    for row in both[both.load != SATURATED].itertuples():
        most = both[(both.way == row.way) & (both.load == SATURATED)].iloc[0]
        told.append(
            f"{row.way} {row.p95_ms:.0f} ms ({row.p95_ms_simulated:.0f}) and {most.per_second:.0f} "
            f"({most.per_second_simulated:.0f})"
        )
    load = both.load.min()
    return (
        f"95% of answers at load {load:g} and texts a second at most, the middle of three tries, in brackets as "
        f"simulated: {'; '.join(told)}."
    )


MEASUREMENT = Measurement("serving", "Early exits under load.", measure, page, FULL, QUICK, OUTPUT, PAGE)

if __name__ == "__main__":
    MEASUREMENT.run()
