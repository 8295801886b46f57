"""Which words leave where, what each exit would have said, and what the missing keys and values matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from eeutils.data.prompts import encode_pairs
from eeutils.exiting import tradeoff
from eeutils.exiting.intervals import Interval, bootstrap, mean_interval
from eeutils.exiting.rules import Rule
from eeutils.exiting.token_evidence import TokenEvidence
from eeutils.models.generate import Outcome
from eeutils.models.token_record import record_tokens
from eeutils.training.decoders import TARGET_TOKENS, ExitRun, tokenizer_of

FUNCTION_WORDS = {
    *("a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "in", "into", "is", "it", "its", "not", "of"),
    *("on", "or", "that", "the", "their", "to", "was", "were", "which", "who", "with"),
}
KINDS = ("function word", "copied word", "new word", "rest of a word", "the end")
"""Of what is written: function words; words that stand in the text that was read, and such that do not; further pieces
of a word; the end token."""


def kind_of(token: int, source: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Which of `KINDS` a token is."""
    if token == tokenizer.eos_token_id:
        return KINDS[4]
    piece = tokenizer.convert_ids_to_tokens(token)
    begins = piece.startswith(("Ġ", "▁")) or not tokenizer.decode([token]).strip().isalnum()
    word = tokenizer.decode([token]).strip().lower()
    if word in FUNCTION_WORDS:
        return KINDS[0]
    if not begins:
        return KINDS[3]
    return KINDS[1] if word in source.lower() else KINDS[2]


def by_kind(outcome: Outcome, sources: list[str], tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """Where words of each kind left: columns kind, words, layer (mean), low, high (an interval over texts). First words
    come from the prompt and do not count."""
    rows = [
        {"text": number, "kind": kind_of(token, source, tokenizer), "layer": layer}
        for number, (one, source) in enumerate(zip(outcome.written, sources, strict=True))
        for token, layer in zip(one.tokens[1:], one.layers[1:], strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["text", "kind", "layer"])
    table = []
    for kind in KINDS:
        own = frame[frame.kind == kind]
        if len(own):
            layers, texts = own.layer.to_numpy(float), own.text.to_numpy()
            mean = mean_interval(layers, groups=texts)
            table.append({"kind": kind, "words": len(own), "layer": mean.estimate, "low": mean.low, "high": mean.high})
    return pd.DataFrame(table)


def said_by_exits(run: ExitRun, number: int, tokens: list[int]) -> pd.DataFrame:
    """What every exit says behind each word of one test text's own words but the last: a row an exit, from the top
    down, a column a word that was written."""
    tokenizer, pair = tokenizer_of(run.setting), run.task.test[number]
    samples = encode_pairs(tokenizer, [pair], run.setting.max_length, TARGET_TOKENS, [tokens])
    evidence = record_tokens(run.model, samples)
    words = [[tokenizer.decode([int(word)]).strip() or "·" for word in stage] for stage in evidence.predictions]
    columns = [f"{place + 2}: {tokenizer.decode([token]).strip()}" for place, token in enumerate(tokens[1:])]
    table = pd.DataFrame(words, columns=columns, index=pd.Index([f"layer {layer}" for layer in evidence.layers]))
    return table.iloc[::-1]


def agreement(evidence: TokenEvidence) -> pd.DataFrame:
    """How early the exits know: columns layer, right (share of words that are the target's), agrees (with the top), and
    agrees where sure (among the quarter of words at which this exit's margin is largest)."""
    top, rows = evidence.predictions[-1], []
    for stage, layer in enumerate(evidence.layers):
        agrees = evidence.predictions[stage] == top
        sure = evidence.margin[stage].argsort(descending=True)[: max(evidence.samples // 4, 1)]
        rows.append(
            {
                "layer": layer,
                "right": float((evidence.predictions[stage] == evidence.labels).double().mean()),
                "agrees": float(agrees.double().mean()),
                "agrees where sure": float(agrees[sure].double().mean()),
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Copied:
    """What copied states do to the same rule and threshold, teacher-forced: a row for exact and one for copied keys and
    values (layers, right, nats: the mean -log p of the right word), and how much less often copied ones are right."""

    table: pd.DataFrame
    change: Interval


def copying(exact: TokenEvidence, copied: TokenEvidence, rule: Rule, threshold: float) -> Copied:
    """Compare one pass in full with the pass for this rule and threshold, over texts."""
    rows, right, units = {}, {}, torch.arange(exact.samples)
    for name, evidence in (("exact", exact), ("copied", copied)):
        stages = tradeoff.decide(evidence, rule, threshold).stages
        right[name] = (evidence.predictions[stages, units] == evidence.labels).double().numpy()
        layers = torch.tensor(evidence.layers)[stages].double().mean()
        nats = -evidence.extras["label"][stages, units].double().mean()
        rows[name] = {"layers": float(layers), "right": float(right[name].mean()), "nats": float(nats)}
    gap = right["copied"] - right["exact"]
    change = bootstrap(lambda _, chosen: float(np.mean(gap[chosen])), len(gap), groups=exact.groups.numpy())
    return Copied(pd.DataFrame.from_dict(rows, orient="index"), change)
