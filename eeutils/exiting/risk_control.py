"""Learn-then-Test: the fastest threshold whose risk is certified (Angelopoulos et al.; CALM section 3.2).

Each threshold is a hypothesis "its risk is above delta", rejected by a p-value from losses in [0, 1] on calibration
texts. Thresholds are tested from the strictest on, in an order that was fixed before, and testing stops at the first
that is not rejected: so no correction for many tests is needed, and nothing is assumed of how risk grows.
"""

import math

import numpy as np
import pandas as pd
from scipy.stats import binom

from eeutils.errors import InputError


def hoeffding_bentkus(mean: float, samples: int, delta: float) -> float:
    """The p-value of "the risk is above delta" from the mean of n losses in [0, 1]: the smaller of exp(-n kl(m, d)) and
    e P[Bin(n, d) <= ceil(n m)]."""
    below = min(mean, delta)
    parts = ((below, delta), (1 - below, 1 - delta))
    divergence = sum(p * math.log(p / q) for p, q in parts if p > 0)
    tail = math.e * float(binom.cdf(math.ceil(samples * mean - 1e-9), samples, delta))
    return min(1.0, math.exp(-samples * divergence), tail)


def certified(losses: np.ndarray, delta: float, epsilon: float = 0.05) -> int:
    """How many of the thresholds are certified: with probability 1 - epsilon over the calibration texts, the risk of
    each of them is at most delta. 0 where none is.

    Args:
        losses: (thresholds, texts) in [0, 1], the strictest threshold first.
        delta: the risk that is tolerated.
        epsilon: how often the certificate may be wrong.

    Raises:
        InputError: losses outside [0, 1], or a level outside (0, 1).
    """
    if losses.ndim != 2 or losses.size == 0 or losses.min() < 0 or losses.max() > 1:
        raise InputError("losses must be (thresholds, texts) with values from 0 to 1; 1 - ROUGE-L is one")
    if not (0 < delta < 1 and 0 < epsilon < 1):
        raise InputError(f"delta and epsilon lie between 0 and 1; got {delta} and {epsilon}")
    for number, row in enumerate(losses):
        if hoeffding_bentkus(float(row.mean()), len(row), delta) > epsilon:
            return number
    return len(losses)


def over_splits(
    losses: np.ndarray, costs: np.ndarray, delta: float, epsilon: float = 0.05, splits: int = 200, seed: int = 0
) -> pd.DataFrame:
    """The guarantee, tried: on each of many random halves of the texts a threshold is certified, and its risk measured
    on the other half.

    Args:
        losses, costs: (thresholds, texts), the strictest first, which must cost what the full model does.

    Returns:
        One row a split: certified (how many thresholds), risk and cost (means on the other half at the last of them;
        those of the full model where there is none), broken (whether that risk is above delta).
    """
    random, texts, rows = np.random.RandomState(seed), losses.shape[1], []
    for _ in range(splits):
        order = random.permutation(texts)
        calibration, test = order[: texts // 2], order[texts // 2 :]
        number = certified(losses[:, calibration], delta, epsilon)
        risk = float(losses[number - 1, test].mean()) if number else 0.0
        cost = float(costs[max(number - 1, 0), test].mean())
        rows.append({"certified": number, "risk": risk, "cost": cost, "broken": risk > delta})
    return pd.DataFrame(rows)
