"""How texts are scored against others: ROUGE, by Google's package."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from eeutils.errors import InputError

KINDS = ("rouge1", "rouge2", "rougeL")


@lru_cache
def _scorer() -> RougeScorer:
    return RougeScorer(list(KINDS), use_stemmer=True)


def rouge(written: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of each text, (N,) each: F-measures, words stemmed. An empty text scores 0.

    Raises:
        InputError: not as many texts as references, or none.
    """
    if len(written) != len(references) or not written:
        raise InputError(f"ROUGE compares pairs of texts; got {len(written)} texts and {len(references)} references")
    scored = [_scorer().score(reference, text) for text, reference in zip(written, references, strict=True)]
    return {kind: np.array([one[kind].fmeasure for one in scored]) for kind in KINDS}


def rouge_l(written: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L of each text, (N,)."""
    return rouge(written, references)["rougeL"]
