"""Confident Adaptive Language Modeling (CALM; Schuster et al., NeurIPS 2022).

Every token may leave on its own layer. Three measures say how sure a layer is: the gap between the two best words, the
cosine between successive states, a small classifier that was taught when an exit says what the top says. The threshold
falls along the text, for early words carry later ones. Which threshold is safe is not guessed but tested: with
Learn-then-Test calibration texts certify that, with probability 1 - epsilon, whole texts lose at most delta.

    threshold   lambda_t = lambda (0.9 + 0.1 exp(-4 t / N))
    textual     1 - ROUGE-L(early text, full model's text)
    risk        max(0, ROUGE-L(full text, reference) - ROUGE-L(early text, reference))

    symbol    variable      meaning
    c_i       readiness     how sure layer i is
    lambda    threshold     of the rule
    N         longest       the most words of a text
    delta     delta         the loss of a text that is tolerated
    epsilon   epsilon       how often the certificate may be wrong
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from eeutils.data.text_metrics import rouge_l
from eeutils.errors import InputError, unknown
from eeutils.exiting import tradeoff
from eeutils.exiting.comparisons import Curve
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.risk_control import certified, over_splits
from eeutils.exiting.rules import NEVER, Rule, fixed
from eeutils.exiting.token_evidence import TokenEvidence
from eeutils.exiting.token_rules import decaying, judged, similarity, softmax_margin
from eeutils.models.generate import Generator, Outcome, write_under
from eeutils.training.decoders import TARGET_TOKENS, ExitRun, tokenizer_of

MEASURES = ("softmax margin", "state similarity", "classifier")
LOSSES = ("textual", "risk")


def rule_of(measure: str, longest: int = TARGET_TOKENS + 1, decays: bool = True) -> Rule:
    """CALM's rule by one of its measures.

    Raises:
        InputError: an unknown measure.
    """
    rules = {"softmax margin": softmax_margin, "state similarity": similarity, "classifier": judged}
    if measure not in rules:
        raise unknown("measure", measure, rules)
    rule = rules[measure]()
    return decaying(rule, longest) if decays else rule


def thresholds_on(evidence: TokenEvidence, rule: Rule, depths: Sequence[float]) -> list[float]:
    """The strictest first, and before it NEVER: thresholds whose mean depth on this evidence (dev!) is nearest to some
    shares of all layers. Evidence with exact keys and values tells the depth roughly; what comes out is measured."""
    priced = evidence.priced(rule.look)
    found = {tradeoff.threshold_for_speedup(priced, rule, 1 / depth, "layers") for depth in depths}
    return [NEVER, *sorted(found - {NEVER}, reverse=True)]


@dataclass(frozen=True)
class Texts:
    """What one rule writes at several thresholds, the strictest first.

    Attributes:
        thresholds: the first is NEVER, whose text is the full model's.
        outcomes: of each threshold.
        references: what should have been written.
    """

    rule: Rule
    thresholds: tuple[float, ...]
    outcomes: tuple[Outcome, ...]
    references: tuple[str, ...]

    def losses(self, kind: str = "textual") -> np.ndarray:
        """(thresholds, texts): what each text lost, in [0, 1].

        Raises:
            InputError: an unknown loss.
        """
        if kind not in LOSSES:
            raise unknown("loss", kind, LOSSES)
        full = self.outcomes[0].texts
        if kind == "textual":
            return np.stack([1 - alike(outcome.texts, full) for outcome in self.outcomes])
        best = rouge_l(full, self.references)
        return np.stack([np.maximum(0, best - rouge_l(outcome.texts, self.references)) for outcome in self.outcomes])

    @property
    def costs(self) -> np.ndarray:
        """(thresholds, texts): FLOPs of all words but the first."""
        return np.array([[one.flops for one in outcome.written] for outcome in self.outcomes])

    def curve(self, scores: np.ndarray | None = None) -> Curve:
        """The texts as evidence whose stages are thresholds, cheapest first: texts are what is drawn and compared.

        A text costs what a word of it does on average, the first one left out, in layers and in FLOPs: longer texts are
        no dearer, and how long they are is told apart (`table`). Its answer is its score, ROUGE-L to the reference
        unless given as (thresholds, texts), and `mean_score` is the metric.
        """
        if scores is None:
            scores = np.stack([rouge_l(outcome.texts, self.references) for outcome in self.outcomes])
        layers = np.array([[sum(one.layers[1:]) for one in outcome.written] for outcome in self.outcomes])
        words = np.array([[len(one.tokens) - 1 for one in outcome.written] for outcome in self.outcomes])
        layers, flops = (_each_word(spent, words) for spent in (layers, self.costs))
        order = np.argsort(flops.mean(axis=1), kind="stable")
        cost = {"layers": torch.from_numpy(layers[order]), "flops": torch.from_numpy(flops[order])}
        full = {"layers": torch.from_numpy(layers[0]), "flops": torch.from_numpy(flops[0])}
        texts = torch.arange(scores.shape[1])
        stages = tuple(range(1, len(order) + 1))
        evidence = Evidence(torch.from_numpy(scores[order])[..., None], texts, cost, full, stages, 0.0 * texts)
        return evidence, fixed()

    def table(self) -> pd.DataFrame:
        """A row a threshold: mean layers, FLOPs speed-up for each word, ROUGE-L to the references and to the full
        model's text, share of texts that are the same, mean words, and words a second."""
        full, plain = self.outcomes[0], self.outcomes[0].mean_flops
        rows = []
        for threshold, outcome in zip(self.thresholds, self.outcomes, strict=True):
            same = np.mean([own == other for own, other in zip(outcome.texts, full.texts, strict=True)])
            rows.append(
                {
                    "threshold": threshold,
                    "layers": outcome.mean_layers,
                    "flops_speedup": plain / outcome.mean_flops,
                    "ROUGE-L": float(rouge_l(outcome.texts, self.references).mean()),
                    "to the full text": float(alike(outcome.texts, full.texts).mean()),
                    "same text": float(same),
                    "words": float(np.mean([len(one.tokens) for one in outcome.written])),
                    "words a second": outcome.tokens_per_second,
                }
            )
        return pd.DataFrame(rows)


def write(
    run: ExitRun,
    rules: Mapping[str, tuple[Rule, Sequence[float]]],
    split: str,
    *,
    exits: tuple[int, ...] | None = None,
    fills: bool = True,
    progress: bool = True,
) -> dict[str, Texts]:
    """What rules write on a split at their thresholds: each prompt is read once for all, and what was written is kept
    with the run.

    Args:
        rules: name -> rule and its thresholds, the first NEVER.
        exits: only these layers with exits.
        fills: see `Generator`.

    Raises:
        InputError: thresholds that do not begin with NEVER.
    """
    if any(thresholds[0] != NEVER for _, thresholds in rules.values()):
        raise InputError("the first threshold must be NEVER: the full model's text is what losses are measured from")
    ways = [(rule, threshold) for rule, thresholds in rules.values() for threshold in thresholds[1:]]

    def make() -> list[Outcome]:
        model = run.model if exits is None else run.model.only(exits)
        tokenizer, words = tokenizer_of(run.setting), run.shortlist
        writers = [Generator(model, tokenizer, *way, shortlist=words, fills=fills) for way in ways]
        plain = Generator(model, tokenizer, shortlist=words, fills=fills)
        prompts = run.prompts(split)
        return write_under([plain, *writers], prompts, TARGET_TOKENS + 1, batch_size=16, progress=progress)

    what = [[rule.name, threshold] for rule, threshold in ways]
    full, *written = run.written(split, {"ways": what, "exits": exits, "fills": fills}, make)
    references = tuple(pair.target for pair in getattr(run.task, split))
    texts, left = {}, iter(written)
    for name, (rule, thresholds) in rules.items():
        own = tuple(next(left) for _ in thresholds[1:])
        texts[name] = Texts(rule, tuple(thresholds), (full, *own), references)
    return texts


def _each_word(spent: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(thresholds, texts): what each word of a text spent; a text of one word costs what the average word does."""
    average = spent.sum(axis=1, keepdims=True) / np.maximum(words.sum(axis=1, keepdims=True), 1)
    return np.where(words > 0, spent / np.maximum(words, 1), average)


def mean_score(scores: np.ndarray, _: np.ndarray) -> float:
    """The metric of `Texts.curve`."""
    return float(np.mean(scores))


def calibrated(dev: Texts, kind: str, delta: float, epsilon: float = 0.05) -> float:
    """The loosest threshold that dev certifies; NEVER where it certifies none but the full model."""
    return dev.thresholds[max(certified(dev.losses(kind), delta, epsilon) - 1, 0)]


def guarantee(
    texts: Sequence[Texts], kind: str, delta: float, epsilon: float = 0.05, splits: int = 200
) -> pd.DataFrame:
    """`over_splits` on the texts of several splits together, all with the same thresholds."""
    losses, costs = (np.concatenate([f(each) for each in texts], axis=1) for f in (lambda t: t.losses(kind), _costs))
    return over_splits(losses, costs, delta, epsilon, splits)


def _costs(texts: Texts) -> np.ndarray:
    return texts.costs


def alike(written: Sequence[str], full: Sequence[str]) -> np.ndarray:
    """(N,): ROUGE-L to the full model's text; the same text has 1, also where it has no word that ROUGE counts."""
    same = np.array([own == other for own, other in zip(written, full, strict=True)])
    return np.where(same, 1.0, rouge_l(written, full))
