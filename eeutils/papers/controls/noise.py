"""PABEE's title promises robustness: what a model keeps of its own score when the test sentences are spoilt, for
notebook 01.

The noise asks no model: it is a function of the text, a share and a seed, so every model reads the same spoilt
sentences, and those of a larger share are spoilt in the same places and more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase

import numpy as np

from eeutils.data.samples import encode
from eeutils.data.tasks import task_of
from eeutils.data.texts import is_empty
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval, bootstrap, paired_difference
from eeutils.exiting.rules import Rule
from eeutils.exiting.tradeoff import Metric, Reading, at_speedup, can_reach
from eeutils.models.record import record
from eeutils.models.vocabularies import tokenizers_of
from eeutils.training.runs import KEY_LETTERS, Run


def characters(text: str, share: float, seed: int = 0) -> str:
    """A share of the letters, each swapped with the next one of its word, deleted, or followed by a random letter."""
    random = Random(f"characters {seed} {text}")
    draws = [(random.random(), random.choice("sdi"), random.choice(ascii_lowercase)) for _ in text]
    noisy, place = [], 0
    while place < len(text):
        (chance, edit, letter), here, after = draws[place], text[place], text[place + 1 : place + 2]
        if not here.isalpha() or chance >= share:
            noisy.append(here)
        elif edit == "s" and after.isalpha():
            noisy.append(after + here)
            place += 1
        elif edit != "d":  # a last letter has none to be swapped with
            noisy.append(here + letter)
        place += 1
    return _unless_empty("".join(noisy), text)


def words(text: str, share: float, seed: int = 0) -> str:
    """A share of the words, each dropped, or swapped with the next one."""
    random, split = Random(f"words {seed} {text}"), text.split()
    draws = [(random.random(), random.choice("ds")) for _ in split]
    noisy, place = [], 0
    while place < len(split):
        (chance, edit), here, after = draws[place], split[place], split[place + 1 : place + 2]
        if chance >= share:
            noisy.append(here)
        elif edit == "s":
            noisy += [*after, here]
            place += 1
        place += 1
    return _unless_empty(" ".join(noisy), text)


NOISES: dict[str, Callable[[str, float, int], str]] = {"characters": characters, "words": words}


def noisy_evidence(run: Run, kind: str, share: float, seed: int = 0) -> Evidence:
    """What a run says of its test sentences under a noise; kept beside the run, under a hash of the spoilt texts."""
    setting = run.setting
    split = task_of(setting.task, setting.train_size, setting.test_size).test.to_dict()
    texts = [[NOISES[kind](text, share, seed) for text in split[name]] for name in ("text_a", "text_b")]
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()[:KEY_LETTERS]
    path = run.directory / f"evidence-{kind}-{digest}-test.safetensors"
    if not path.exists():
        about = {"max_length": setting.max_length, "labels": split["label"], "ids": split["id"]}
        record(run.model(), encode(tokenizers_of(run.encoders), *texts, **about), progress=True).save(path)
    return Evidence.load(path)


@dataclass(frozen=True)
class Side:
    """A model and how it leaves: by a rule at exactly a FLOPs speed-up, or never, which is its last exit."""

    run: Run
    rule: Rule | None = None
    speedup: float = 1.0

    def read(self, evidence: Evidence) -> Reading | None:
        """Its answers; None where the rule does not reach the speed-up on this evidence."""
        if self.rule is None:
            return Reading(1.0, (evidence.predictions[-1], evidence.predictions[-1]))
        if not can_reach(evidence, self.rule, self.speedup):
            return None
        return at_speedup(evidence, self.rule, self.speedup)


@dataclass(frozen=True)
class Kept:
    """What a side keeps under one noise: its scores on clean and on spoilt sentences, the share of the former that is
    left, and by how much that is more than the reference's share."""

    noise: str
    side: str
    clean: float
    noisy: float
    kept: Interval
    more: Interval


def robustness(
    sides: Mapping[str, Side], noises: Sequence[tuple[str, float]], metric: Metric, resamples: int = 1000
) -> list[Kept]:
    """Every side under every noise, (kind, share), against the first side; without those whose rule is out of reach.

    All sides are drawn on the same sentences. A side that scores nothing on clean sentences has no share to keep.
    """
    labels = next(iter(sides.values())).run.test.labels.numpy()

    def kept(pair: tuple[Reading, Reading], rows: np.ndarray) -> float:
        clean, noisy = (reading.score(metric, labels, rows) for reading in pair)
        return noisy / clean if clean > 0 else np.nan

    found = []
    for kind, share in noises:
        pairs = {}
        for name, side in sides.items():
            clean, noisy = side.read(side.run.test), side.read(noisy_evidence(side.run, kind, share))
            if clean is not None and noisy is not None:
                pairs[name] = (clean, noisy)
        reference = next(iter(pairs.values()))
        for name, pair in pairs.items():
            found.append(
                Kept(
                    f"{share:.0%} of the {kind}",
                    name,
                    *(reading.score(metric, labels) for reading in pair),
                    bootstrap(lambda _, rows, pair=pair: kept(pair, rows), len(labels), resamples=resamples),
                    paired_difference(kept, [pair], [reference], len(labels), resamples=resamples),
                )
            )
    return found


def _unless_empty(noisy: str, text: str) -> str:
    return text if is_empty(noisy) else noisy
