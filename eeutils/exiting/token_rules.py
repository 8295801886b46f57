"""Rules for tokens: when may a word be said before the top has been reached?

As all rules (see `rules`), each is one causal function from evidence to readiness. What they differ in most is what a
look costs: the margin asks the whole head at every exit, the others do not.
"""

from dataclasses import replace

import torch
from torch import Tensor

from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import Rule, margin


def _extra(evidence: Evidence, name: str, rule: str) -> Tensor:
    if name not in evidence.extras:
        raise InputError(f"rule {rule!r} needs evidence of tokens with the extra {name!r}, and this has none")
    return evidence.extras[name].double()


def softmax_margin() -> Rule:
    """Probability of the best word minus that of the second best (CALM's softmax measure)."""
    return replace(margin(), name="softmax margin")


def short_margin() -> Rule:
    """The same over a shortlist of words: a look costs what the shortlist's share of the head does."""
    return Rule(
        "shortlist margin",
        lambda evidence: _extra(evidence, "short margin", "shortlist margin"),
        reads=1,
        look="shortlist",
    )


def similarity() -> Rule:
    """The cosine of a token's states at this exit and at the one before (CALM's state measure). The first exit has no
    other before it, and is never ready."""

    def readiness(evidence: Evidence) -> Tensor:
        alike = _extra(evidence, "similarity", "state similarity").clone()
        if evidence.first == 0:
            alike[0] = -torch.inf
        return alike

    return Rule("state similarity", readiness, low=-1.0, reads=1, look="state")


def judged() -> Rule:
    """A classifier's probability, read from the state, that this exit says what the top would say (CALM)."""
    return Rule("classifier", lambda evidence: _extra(evidence, "sure", "classifier"), reads=1, look="state")


def decaying(rule: Rule, longest: int, rate: float = 4.0) -> Rule:
    """A threshold that falls along the text, lambda_t = lambda (0.9 + 0.1 exp(-rate t / N)) (CALM section 3.3): early
    words, on which all later ones build, must be surer.

    Args:
        rule: whose readiness is held against the threshold; for values from 0 on.
        longest: N, the most words that a text may have.
        rate: of the decay.

    Raises:
        InputError: a length below 1.
    """
    if longest < 1:
        raise InputError(f"the longest text has 1 word or more; got {longest}")

    def readiness(evidence: Evidence) -> Tensor:
        falls = 0.9 + 0.1 * torch.exp(-rate * _extra(evidence, "position", rule.name) / longest)
        return rule.readiness(evidence).double() / falls

    return replace(rule, name=f"{rule.name}, decaying", readiness=readiness, high=rule.high / 0.9)


def schedule(longest: int) -> Rule:
    """Depth by position alone, falling linearly from all layers at the first word to n_min at the last (SkipDecode's
    schedule, here for leaving): the blind rule that others must beat.

    At position t a token leaves at the first exit not below n(t) = L - (L - n_min) t / N. The threshold is n_min / L;
    a negative one falls faster.

    Args:
        longest: N.
    """
    if longest < 1:
        raise InputError(f"the longest text has 1 word or more; got {longest}")

    def readiness(evidence: Evidence) -> Tensor:
        position = _extra(evidence, "position", "schedule")
        depth = torch.tensor(evidence.layers, dtype=torch.float64)[:, None] / evidence.reference_layers
        return 1 - (1 - depth) * longest / position.clamp(min=1)

    return Rule("schedule by position", readiness, low=-torch.inf, reads=1, look="state")
