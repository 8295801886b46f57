"""PCEE-BERT: Accelerating BERT Inference via Patient and Confident Early Exiting (Zhang, Zhu, Zhang, Wang, Jin and
Chung, Findings of NAACL 2022).

Patience counts exits that agree, however unsure they are; entropy trusts a single exit, however lonely. PCEE asks for
both: a sample leaves once t exits in a row have been sure, whether they name the same class or not. The training is
PABEE's, so a trained model of the one is a trained model of the other. The answer is that of the exit where the sample
leaves, or the mean over the sure ones in a row, or over all exits so far; averaged are probabilities.

    H_i      = H(p_i) / ln C
    cnt_i    = cnt_{i-1} + 1 if H_i < tau, else 0; leave at the first i with cnt_i = t, else at n
    answer   p_i, or 1 / t sum_{i-t < j <= i} p_j, or 1 / i sum_{j <= i} p_j

    symbol   variable               meaning
    n        evidence.stages        number of exits
    t        patience               sure exits in a row; the earliest exit is t (PABEE's is t + 1)
    tau      1 - threshold          how unsure an exit may be: readiness is 1 - max_{i-t < j <= i} H_j

In the authors' code the exit that broke a run counts in the mean of the next one, and a sample that nobody was sure of
is answered by the mean of whatever run it ends with. Here the mean is over the last t exits, at the last exit too. For
numbers nothing of this is defined.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from eeutils.errors import unknown
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import Rule, entropy, sustained
from eeutils.exiting.tradeoff import Metric, area, sweep
from eeutils.papers import pabee
from eeutils.training.runs import Run

ANSWERS = ("current", "run", "all")
"""Who answers: the exit where a sample leaves, or the mean over the sure ones in a row, or over all so far."""


def patient_and_confident(patience: int = 2, answer: str = "current") -> Rule:
    """Leave once `patience` exits in a row are sure.

    Args:
        patience: t, 1 or more; 1 is plain entropy.
        answer: "current" exit, the mean of the "run" of sure exits, this one included, or of "all" so far.

    Raises:
        InputError: a patience below 1, or an unknown answer.
    """
    rule = sustained(entropy(), patience)
    if answer not in ANSWERS:
        raise unknown("answer", answer, ANSWERS)
    if answer == "current":
        return rule
    reads = patience if answer == "run" else None
    return replace(rule, name=f"{rule.name}, mean of {answer}", answers=partial(mean_probabilities, reads), reads=reads)


def mean_probabilities(last: int | None, evidence: Evidence) -> Float[Tensor, "stages units classes"]:
    """The mean of the probabilities of the `last` so many exits up to each, of all of them for None; of as many as have
    spoken where those are fewer."""
    p = evidence.log_probabilities.exp()
    starts = [0 if last is None else max(0, stage + 1 - last) for stage in range(evidence.stages)]
    return torch.stack([p[start : stage + 1].mean(dim=0) for stage, start in enumerate(starts)])


def areas(dev: Evidence, metric: Metric, answer: str = "current") -> dict[int, float]:
    """t -> the mean score on dev from 2x to 1x in FLOPs, for every t of 2 or more that can save half."""
    found = {t: area(sweep(dev, patient_and_confident(t, answer), metric)) for t in range(2, max(3, dev.stages))}
    return {t: value for t, value in found.items() if value == value}  # NaN where the curve does not reach 2x


def tuned(run: Run, answer: str = "current") -> Rule:
    """The rule with the t, 2 or more, that is best on a run's dev; the smaller of two that are alike."""
    on_dev = areas(run.dev, run.metric, answer)
    return patient_and_confident(max(on_dev, key=lambda t: (on_dev[t], -t)) if on_dev else 2, answer)


METHOD = replace(
    pabee.METHOD,
    title="PCEE-BERT",
    citation="Zhang et al., PCEE-BERT: Accelerating BERT Inference via Patient and Confident Early Exiting, Findings "
    "of NAACL 2022",
    rules={answer: patient_and_confident(2, answer) for answer in ANSWERS},
)
"""PABEE's model and training under its own name, so that a run of the one is a run of the other; the rules are new."""
