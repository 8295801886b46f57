"""Signals: what a causal rule may know at an exit, as so many numbers at every exit."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import DIVERGENCES, patience

FARTHEST = 8.0
"""Log-odds are cut there: exits that are surer than that are alike."""


def signals(evidence: Evidence) -> dict[str, Float[Tensor, "stages units"]]:
    """What each exit tells: by itself, beside the exit before, and beside all so far. Where nothing was said before, an
    exit is its own predecessor.

    Log-odds are those of THIS exit's answer, at this exit and at earlier ones: so the names of classes do not matter.
    Extras of shape (S, N), such as a policy, count with their value and its mean so far; those of shape (S, N, C), such
    as distances, with the value of the answer and the smallest of the others; other shapes do not count.

    Raises:
        InputError: evidence whose first stages are gone.
    """
    if evidence.first != 0:
        raise InputError(f"signals are those of all stages so far, and this evidence begins at {evidence.first + 1}")
    found = _of_numbers(evidence) if evidence.regression else _of_classes(evidence)
    for name, extra in evidence.extras.items():
        extra = extra.double()
        if extra.ndim == 2:
            found |= {name: extra, f"{name}, mean so far": _mean_so_far(extra)}
        elif not evidence.regression and extra.shape[2:] == (evidence.classes,):
            chosen = one_hot(evidence.predictions, evidence.classes).bool()
            found[f"{name}, own"] = extra.masked_fill(~chosen, math.inf).amin(dim=-1)
            found[f"{name}, others"] = extra.masked_fill(chosen, math.inf).amin(dim=-1)
    return found


def all_at_once(evidence: Evidence) -> Float[Tensor, "units numbers"]:
    """All that all exits say, for who may look at everything: log-probabilities without their mean, or the numbers, and
    the extras; one of shape (S, N) speaks for its exit's answer and against the other classes."""
    if evidence.regression:
        parts = [evidence.logits.double(), *(extra.double() for extra in evidence.extras.values())]
    else:
        log_p = evidence.log_probabilities
        parts = [(log_p - log_p.mean(dim=-1, keepdim=True)).clamp(-FARTHEST, FARTHEST)]
        answers = one_hot(evidence.predictions, evidence.classes) - 1 / evidence.classes
        for extra in evidence.extras.values():
            extra = extra.double()
            parts.append((extra - extra.mean(dim=1, keepdim=True))[..., None] * answers if extra.ndim == 2 else extra)
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)


def _of_classes(evidence: Evidence) -> dict[str, Tensor]:
    log_p, answers, entropy = evidence.log_probabilities, evidence.predictions, evidence.entropy
    rows = []
    for stage, answer in enumerate(answers):
        heard = log_p[: stage + 1]
        of_answer = heard.gather(-1, answer.expand(len(heard), -1)[..., None])[..., 0]
        odds = (of_answer - torch.log(-torch.expm1(of_answer.clamp(max=-1e-9)))).clamp(-FARTHEST, FARTHEST)
        earlier = slice(0, max(stage, 1))  # of the first exit: itself
        apart = torch.stack([DIVERGENCES["jsd"](before, heard[-1]) for before in heard[earlier]])
        rows.append(
            {
                "log-odds": odds[-1],
                "log-odds before": odds[earlier][-1],
                "log-odds, mean so far": odds.mean(dim=0),
                "log-odds, least so far": odds.amin(dim=0),
                "agreeing exits": (answers[earlier] == answer).double().mean(dim=0),
                "divergence": apart[-1],
                "divergence, largest so far": apart.amax(dim=0),
            }
        )
    return {
        "entropy": entropy,
        "entropy before": torch.cat([entropy[:1], entropy[:-1]]),
        "margin": evidence.margin,
        "agreeing in a row": torch.log1p(patience().readiness(evidence)),
    } | {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _of_numbers(evidence: Evidence) -> dict[str, Tensor]:
    numbers = evidence.predictions.double()
    step = torch.cat([torch.zeros_like(numbers[:1]), numbers.diff(dim=0)])
    apart = [(numbers[: max(stage, 1)] - number).abs() for stage, number in enumerate(numbers)]
    return {
        "number": numbers,
        "number squared": numbers.square(),
        "step": step,
        "size of the step": step.abs(),
        "distance, mean so far": torch.stack([each.mean(dim=0) for each in apart]),
        "distance, largest so far": torch.stack([each.amax(dim=0) for each in apart]),
        "mean so far minus number": _mean_so_far(numbers) - numbers,
    }


def _mean_so_far(values: Tensor) -> Tensor:
    return values.cumsum(dim=0) / torch.arange(1, len(values) + 1, dtype=torch.float64)[:, None]
