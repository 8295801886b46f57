"""What reading by a schedule costs and keeps, beside other ways to read as cheaply, for notebook 10."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from eeutils.data.samples import Samples
from eeutils.data.text_metrics import rouge_l
from eeutils.exiting.intervals import Interval, mean_interval
from eeutils.exiting.token_evidence import TokenEvidence
from eeutils.models.generate import Generator, Outcome
from eeutils.models.reading import HashReader
from eeutils.models.schedule import TokenSchedule
from eeutils.models.timing import race, ratio
from eeutils.models.token_exits import TokenExitModel
from eeutils.papers.calm import alike
from eeutils.papers.hashee_tokens import HashRun


def words(
    ways: Mapping[str, HashRun],
    readers: Mapping[str, HashReader],
    full: TokenEvidence,
    prompts: Sequence[Sequence[int]],
    split: str = "test",
) -> pd.DataFrame:
    """A row a way of reading, in full first: speedup, of reading in FLOPs; right, the share of right words where those
    before them are given, with low and high of its interval over texts; and nats, the mean -log p of the right word.

    Args:
        ways: to read.
        readers: by hash function, whose schedules say what reading costs.
        full: what the full model says of the words, of whose stages the top counts.
        prompts: the split's.
    """
    rows = [_row("in full", 1.0, full)]
    for name, run in ways.items():
        reader = readers[run.function]
        depth = reader.decoder.depth
        whole, own = (reader.reading_under(window, prompts) for window in ((depth, depth), run.window))
        rows.append(_row(name, whole / own, run.evidence(split)))
    return pd.DataFrame(rows)


def _row(name: str, speedup: float, evidence: TokenEvidence) -> dict[str, float | str]:
    right = right_words(evidence)
    share = mean_interval(right, groups=evidence.groups.numpy())
    nats = -float(evidence.extras["label"][-1].double().mean())
    return {
        "read": name,
        "speedup": speedup,
        "right": share.estimate,
        "low": share.low,
        "high": share.high,
        "nats": nats,
    }


def texts(outcomes: Mapping[str, Outcome], references: Sequence[str]) -> pd.DataFrame:
    """A row a way of reading, the first one in full: FLOPs speed-up of reading and of everything, words included;
    ROUGE-L to the references and to the first one's texts; mean words."""
    full, rows = next(iter(outcomes.values())), []
    for name, outcome in outcomes.items():
        spent = [
            _reading(full),
            _reading(outcome),
            _reading(full) + _writing(full),
            _reading(outcome) + _writing(outcome),
        ]
        rows.append(
            {
                "read": name,
                "reading speed-up": spent[0] / spent[1],
                "speed-up of all": spent[2] / spent[3],
                "ROUGE-L": float(rouge_l(outcome.texts, references).mean()),
                "to the full text": float(alike(outcome.texts, full.texts).mean()),
                "words": float(np.mean([len(one.tokens) for one in outcome.written])),
            }
        )
    return pd.DataFrame(rows)


def _reading(outcome: Outcome) -> float:
    return sum(one.prompt_flops for one in outcome.written)


def _writing(outcome: Outcome) -> float:
    return sum(one.flops for one in outcome.written)


def right_words(evidence: TokenEvidence) -> np.ndarray:
    """(N,) whether the top says each word that stands there."""
    return (evidence.predictions[-1] == evidence.labels).double().numpy()


def more_right(ours: TokenEvidence, theirs: TokenEvidence) -> Interval:
    """Share of right words of one way to read minus that of another, paired, over texts."""
    gap = right_words(ours) - right_words(theirs)
    return mean_interval(gap, groups=ours.groups.numpy())


def better_texts(ours: Outcome, theirs: Outcome, references: Sequence[str]) -> Interval:
    """ROUGE-L to the references of one way to read minus that of another, paired, over texts."""
    gap = rouge_l(ours.texts, references) - rouge_l(theirs.texts, references)
    return mean_interval(gap)


def prefill(
    models: Mapping[str, TokenExitModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    batch: int,
    rounds: int,
    progress: str,
) -> dict[str, Interval]:
    """How many times faster prompts are read than by the first model, in turns: the median over rounds, and the
    smallest and the largest as interval."""
    groups = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
    tracks = {name: [partial(Generator(m, tokenizer).read, group, 1) for group in groups] for name, m in models.items()}
    device = next(iter(models.values())).decoder.head_weight.device
    seconds = race(tracks, rounds, device, progress=progress)
    plain, *others = models
    ratios = {name: ratio(seconds, plain, name) for name in others}
    return {name: Interval(float(np.median(each)), each.min(), each.max()) for name, each in ratios.items()}


def stopping(schedule: TokenSchedule, prompts: Samples, tokenizer: PreTrainedTokenizerBase, bands: int) -> pd.DataFrame:
    """Which words stop where: a row for each band of layers, with the share of all tokens that stop there, and the most
    frequent of them."""
    running = Counter(token for text in prompts.tokens for token in text)
    types = torch.tensor([list(running)])
    last = schedule.layers_of(types, torch.ones_like(types))[0].tolist()
    edges = np.unique(np.linspace(schedule.first, schedule.depth + 1, bands + 1).round().astype(int))
    rows = []
    for low, high in pairwise(edges):
        own = {token: running[token] for token, layer in zip(running, last, strict=True) if low <= layer < high}
        common = [tokenizer.decode([token]) for token, _ in Counter(own).most_common(12)]
        rows.append(
            {
                "layers": f"{low} to {high - 1}" if high - low > 1 else f"{low}",
                "share of tokens": sum(own.values()) / sum(running.values()),
                "the most frequent": " ".join(word.strip() or "·" for word in common),
            }
        )
    return pd.DataFrame(rows)
