"""What training for exits moves, for notebook 09: a decoder whose layers learned to be read early, beside exits that
were learned on a frozen one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from eeutils.exiting.intervals import Interval, bootstrap, mean_interval
from eeutils.exiting.token_evidence import TokenEvidence
from eeutils.models.token_exits import TokenExitModel
from eeutils.papers.controls.writing_clocks import MOST
from eeutils.papers.self_speculation import speculate


def beside(one: TokenEvidence, other: TokenEvidence) -> pd.DataFrame:
    """What two decoders' exits say of the same words: one row a layer; columns agrees and right, how often an exit says
    its own top's word and the right word, for each of them (first, second)."""
    rows: dict[str, object] = {"layer": one.layers}
    for name, evidence in (("first", one), ("second", other)):
        rows[f"agrees {name}"] = (evidence.predictions == evidence.predictions[-1]).double().mean(dim=1).tolist()
        rows[f"right {name}"] = (evidence.predictions == evidence.labels).double().mean(dim=1).tolist()
    return pd.DataFrame(rows)


def agreement_gained(one: TokenEvidence, other: TokenEvidence, layer: int) -> Interval:
    """How much oftener the first one's exit says its own top's word than the second one's, over texts."""
    stage = one.layers.index(layer)
    apart = [(each.predictions[stage] == each.predictions[-1]).double().numpy() for each in (one, other)]
    return mean_interval(apart[0] - apart[1], groups=one.groups.numpy())


def perplexity_raised(one: TokenEvidence, other: TokenEvidence) -> Interval:
    """The first one's perplexity at the top over the second one's, minus 1, over texts."""
    gap = (other.extras["label"][-1] - one.extras["label"][-1]).double().numpy()
    return bootstrap(lambda _, rows: float(np.exp(gap[rows].mean()) - 1), len(gap), groups=one.groups.numpy())


def acceptance_gained(
    one: TokenExitModel,
    other: TokenExitModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    layer: int,
    draft: int,
) -> tuple[tuple[float, float], Interval]:
    """The share of drafted words that are kept, of both, and the difference, over texts."""
    counts = np.array(
        [
            [
                (found.accepted, found.drafted)
                for found in (speculate(model, tokenizer, [prompt], MOST, layer, draft) for prompt in prompts)
            ]
            for model in (one, other)
        ],
        dtype=float,
    )

    def shares(rows: np.ndarray) -> np.ndarray:
        kept, drafted = counts[:, rows].sum(axis=1).T
        return kept / np.maximum(drafted, 1)

    whole = shares(np.arange(len(prompts)))
    gained = bootstrap(lambda _, rows: float(np.subtract(*shares(rows))), len(prompts))
    return (float(whole[0]), float(whole[1])), gained
