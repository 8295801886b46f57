"""Rules: from what the stages have said so far, how ready is a sample to leave?

A rule is one causal function, `readiness(evidence) -> (S, N)`: its value at stage s may look only at stages up to s. A
sample leaves at the first stage whose readiness reaches the threshold; the last stage always answers. The same function
drives the offline sweep (`tradeoff`) and the real runtime (`runtime`), so the two cannot disagree.

Higher readiness always means "leave". Papers that leave below a threshold appear with the sign turned:
entropy at most S is `entropy()` from 1 - S / ln C on (see `from_entropy`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eeutils.errors import InputError, unknown
from eeutils.exiting.evidence import Evidence, entropy_of

NEVER = math.inf
"""The threshold that no readiness reaches: every sample goes to the last stage."""

AGAINST = ("previous", "mean", "max")
"""What a divergence compares with: the stage before, or the mean or the largest over all earlier ones."""


def own_logits(evidence: Evidence) -> Float[Tensor, "stages units classes"]:
    """The usual answer: each stage's own logits."""
    return evidence.logits


@dataclass(frozen=True)
class Rule:
    """How ready a sample is, and what it answers when it leaves.

    Attributes:
        name: as it stands in figures and tables.
        readiness: evidence -> (S, N), causal in the stages.
        low, high: the range in which thresholds make sense.
        answers: evidence -> (S, N, C), whose largest entry is the answer; the stage's own logits by default.
        regression: whether the rule means anything when the answer is one number.
        discrete: whether readiness counts something, so that only whole thresholds differ.
        reads: how many stages back it looks, its own included: 1 for entropy, 2 for the divergence from the stage
            before, None for all of them. A runtime keeps and rates no more than that.
        needs_labels: whether it knows what is right, which no runtime does.
        look: of tokens, what it looks at before it decides, which is what deciding costs: "head" for all words,
            "shortlist" for some, "state" where no word has to be known.
    """

    name: str
    readiness: Callable[[Evidence], Float[Tensor, "stages units"]]
    low: float = 0.0
    high: float = 1.0
    answers: Callable[[Evidence], Float[Tensor, "stages units classes"]] = own_logits
    regression: bool = False
    discrete: bool = False
    reads: int | None = None
    needs_labels: bool = False
    look: Literal["head", "shortlist", "state"] = "head"

    def check(self, classes: int, threshold: float = NEVER) -> None:
        """Refuse a task or a threshold that this rule has no meaning for, before anything runs.

        Args:
            classes: C, 1 for regression.
            threshold: the one to be used.

        Raises:
            InputError: a regression for a rule on distributions, or a threshold outside [low, high] (NEVER, infinity,
                is always allowed).
        """
        if classes == 1 and not self.regression:
            raise InputError(
                f"rule {self.name!r} reads class probabilities and the task is a regression, where one logit is no "
                "distribution; use patience, divergence, fixed or random"
            )
        if threshold != NEVER and not self.low <= threshold <= self.high:
            raise InputError(
                f"threshold {threshold} is outside the range of rule {self.name!r}, [{self.low:g}, {self.high:g}]; use "
                "rules.NEVER for a sample that should never leave early"
            )


def entropy() -> Rule:
    """1 - H(p_s) / ln C (DeeBERT section 3.2 with the threshold turned; FastBERT)."""
    return Rule("entropy", lambda evidence: 1 - evidence.entropy, reads=1)


def from_entropy(threshold: float, classes: int) -> float:
    """DeeBERT's threshold S on the natural-log entropy, as a threshold of `entropy()`: 1 - S / ln C.

    Raises:
        InputError: S outside [0, ln C], beyond which nothing changes.
    """
    if not 0 <= threshold <= math.log(classes) + 1e-9:
        raise InputError(f"an entropy of {classes} classes lies in [0, {math.log(classes):.4f}]; got {threshold}")
    return max(0.0, 1 - threshold / math.log(classes))


def confidence() -> Rule:
    """max_c p_s(c) (CascadeBERT; RightTool)."""
    return Rule("confidence", lambda evidence: evidence.confidence, reads=1)


def margin() -> Rule:
    """Probability of the best class minus that of the second best."""
    return Rule("margin", lambda evidence: evidence.margin, reads=1)


def patience(tolerance: float = 0.1) -> Rule:
    """How many consecutive agreements with the stage before end here (PABEE, counted per sample).

    Classes agree when they are the same; numbers when they differ by less than `tolerance`, in units of the label
    (PABEE's README uses 0.1 on STS-B). Patience t leaves at stage t + 1 at the earliest.
    """
    if not tolerance > 0:
        raise InputError(f"tolerance must be above 0, or a regression never leaves early; got {tolerance}")

    def readiness(evidence: Evidence) -> Tensor:
        said = evidence.predictions
        agrees = (said[1:] - said[:-1]).abs() < tolerance if evidence.regression else said[1:] == said[:-1]
        runs = [torch.zeros_like(said[0], dtype=torch.double)]
        for agreeing in agrees:
            runs.append((runs[-1] + 1) * agreeing)
        return torch.stack(runs)

    return Rule("patience", readiness, low=1, high=math.inf, regression=True, discrete=True)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0)


def _middle(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The logarithm of the mean of two distributions."""
    return torch.logaddexp(log_p, log_q) - math.log(2)


def _jsd(before: Tensor, now: Tensor) -> Tensor:
    middle = _middle(before, now)
    return (_kl(before, middle) + _kl(now, middle)) / 2


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": _kl,
    "reverse-kl": lambda before, now: _kl(now, before),
    "symmetric-kl": lambda before, now: (_kl(before, now) + _kl(now, before)) / 2,
    "jsd": _jsd,
    "mean-entropy": lambda before, now: entropy_of(_middle(before, now)),
}
"""Kind -> (log-probabilities (N, C) of a stage before, of this stage) -> how far they are apart (N,)."""


def divergence(kind: str = "jsd", against: str = "previous") -> Rule:
    """Minus the divergence between this stage's distribution and earlier ones (BADGE's divergence-based exiting).

    Args:
        kind: "kl" is KL(p_{s-1} || p_s), "reverse-kl" KL(p_s || p_{s-1}), "symmetric-kl" their mean, "jsd"
            Jensen-Shannon; "mean-entropy" is the entropy of the mean distribution, which F-PABEE's code computes in the
            place of JSD and which also rewards confidence.
        against: "previous" stage, or the "mean" or "max" over all earlier stages.

    The first stage has nothing to compare with and is never ready. For regression, |y_s - y_j| stands in.
    """
    if kind not in DIVERGENCES:
        raise unknown("divergence", kind, DIVERGENCES)
    if against not in AGAINST:
        raise unknown("comparison", against, AGAINST)

    def between(before: Tensor, now: Tensor) -> Tensor:
        return (now - before).abs()[..., 0] if now.shape[-1] == 1 else DIVERGENCES[kind](before, now)

    def readiness(evidence: Evidence) -> Tensor:
        answers = evidence.logits.double() if evidence.regression else evidence.log_probabilities
        rows = [answers.new_full((evidence.samples,), -math.inf)]
        for stage in range(1, evidence.stages):
            earlier = range(stage) if against != "previous" else [stage - 1]
            distances = torch.stack([between(answers[j], answers[stage]) for j in earlier])
            rows.append(-(distances.amax(dim=0) if against == "max" else distances.mean(dim=0)))
        return torch.stack(rows)

    suffix = "" if against == "previous" else f", {against} of earlier"
    reads = 2 if against == "previous" else None
    return Rule(f"divergence ({kind}{suffix})", readiness, low=-math.inf, high=0.0, regression=True, reads=reads)


def sustained(rule: Rule, stages: int) -> Rule:
    """The least readiness of the last `stages` stages: ready only when it was ready that many times in a row.

    With `entropy()` it is PCEE-BERT's rule, with `divergence()` F-PABEE's and BADGE's with patience. Before that many
    stages have spoken a sample is never ready.
    """
    if stages < 1:
        raise InputError(f"a rule can be sustained over 1 stage or more; got {stages}")

    def readiness(evidence: Evidence) -> Tensor:
        inner = rule.readiness(evidence)
        too_early = torch.full_like(inner[: stages - 1], -math.inf)
        windows = inner.unfold(0, stages, 1).amin(dim=-1) if evidence.stages >= stages else inner[:0]
        return torch.cat([too_early, windows])[: evidence.stages]

    reads = None if rule.reads is None else rule.reads + stages - 1
    return replace(rule, name=f"{rule.name}, {stages} in a row", readiness=readiness, reads=reads)


def _votes(evidence: Evidence) -> Float[Tensor, "stages units classes"]:
    chosen = torch.nn.functional.one_hot(evidence.predictions, evidence.classes)
    return chosen.cumsum(dim=0).double()


def vote(gamma: float = 0.0) -> Rule:
    """The most votes that any class has so far; the answer is the majority (ensemble internal classifiers).

    A tie goes to the current stage's class if it is among the leaders, else to the leader with the largest current
    probability. v votes leave at stage v at the earliest; patience t never leaves before t + 1 votes do.

    Args:
        gamma: the votes at stage s (from 1) are divided by s^gamma, which gives thresholds between whole votes. At 1,
            the share of the votes, nobody would stay: one stage is always unanimous.
    """
    if not 0 <= gamma < 1:
        raise InputError(f"gamma of a vote lies from 0 to below 1; got {gamma}")

    def readiness(evidence: Evidence) -> Tensor:
        most = _votes(evidence).amax(dim=-1)
        numbers = torch.arange(1, evidence.stages + 1, dtype=torch.float64, device=most.device)
        return most / numbers[:, None] ** gamma

    def answers(evidence: Evidence) -> Tensor:
        # The current probability is below 1, so it orders ties only.
        return _votes(evidence) + 0.5 * evidence.log_probabilities.exp()

    counts = gamma == 0
    name, low = ("vote", 1.0) if counts else (f"vote, s^{gamma:g}", 0.0)
    return Rule(name, readiness, low, math.inf, answers, discrete=counts)


def harmonic(rule_a: Rule, rule_b: Rule, weight: float = 1.0) -> Rule:
    """Weighted harmonic mean of two indicators of doubt, (w + 1) / (w / a + 1 / b) (DE3-BERT's hybrid indicator).

    a and b are 1 minus the readiness of the two rules, which must lie in [0, 1]. One small doubt is enough to leave;
    weight 0 leaves `rule_b` alone, a large weight `rule_a`.
    """
    for rule in (rule_a, rule_b):
        if (rule.low, rule.high) != (0.0, 1.0):
            raise InputError(f"harmonic() needs rules whose readiness lies in [0, 1]; {rule.name!r} does not")
    if not 0 <= weight < math.inf:
        raise InputError(f"weight must be a finite number of 0 or more; got {weight}")

    def readiness(evidence: Evidence) -> Tensor:
        # Who is not ready at all, as before `sustained` has heard enough, is in full doubt.
        a, b = (1 - rule.readiness(evidence).double().clamp(min=0) for rule in (rule_a, rule_b))
        if weight == 0:  # then a does not count, not even where it is 0
            return 1 - b
        # (w + 1) a b / (w b + a) is the same mean without dividing by a doubt of 0; both 0 means no doubt.
        bottom = weight * b + a
        return 1 - torch.where(bottom > 0, (weight + 1) * a * b / bottom.clamp(min=1e-300), torch.zeros_like(a))

    reads = None if None in (rule_a.reads, rule_b.reads) else max(rule_a.reads, rule_b.reads)
    return Rule(f"harmonic({rule_a.name}, {rule_b.name})", readiness, reads=reads)


def distance_ratio() -> Rule:
    """1 - DR, DR = (1 + (r1 - r2) / max(r1, r2)) / 2, from the extra "distances" (S, N, C) to prototypes (DE3-BERT).

    r1 is the distance to the prototype of the class that the classifier predicts, r2 to the nearest other prototype: a
    readiness below 1/2 means that the classifier and the nearest prototype disagree. Where both are 0 nothing is known,
    and DR is 1/2.
    """

    def readiness(evidence: Evidence) -> Tensor:
        distances = _extra(evidence, "distances", "distance ratio", "DE3-BERT")
        predicted = torch.nn.functional.one_hot(evidence.predictions, evidence.classes).bool()
        own = distances.masked_fill(~predicted, math.inf).amin(dim=-1)
        other = distances.masked_fill(predicted, math.inf).amin(dim=-1)
        larger = torch.maximum(own, other)
        apart = torch.where(larger > 0, (own - other) / larger.clamp(min=1e-300), torch.zeros_like(own))
        return (1 - apart) / 2

    return Rule("distance ratio", readiness, reads=1)


def policy() -> Rule:
    """The policy network's probability to leave, from the extra "policy" (S, N) (ConsistentEE)."""

    def readiness(evidence: Evidence) -> Tensor:
        return _extra(evidence, "policy", "policy", "ConsistentEE")

    return Rule("policy", readiness, regression=True, reads=1, look="state")


def learned() -> Rule:
    """1 - u, u the learned probability that this stage is wrong, from the extra "uncertainty" (S, N) (BERxiT's learning
    to exit). For regression u stands for an error, |tanh(y_s - y)|."""

    def readiness(evidence: Evidence) -> Tensor:
        return 1 - _extra(evidence, "uncertainty", "learned", "BERxiT")

    return Rule("learned", readiness, regression=True, reads=1)


def unless_skipped(rule: Rule) -> Rule:
    """A rule on a model that skips layers: never ready where a layer was skipped, for its exit was not looked at, from
    the extra "skipped" (S, N) (SmartBERT)."""

    def readiness(evidence: Evidence) -> Tensor:
        skipped = _extra(evidence, "skipped", rule.name, "SmartBERT") > 0
        return rule.readiness(evidence).double().masked_fill(skipped, -math.inf)

    return replace(rule, readiness=readiness)


def _extra(evidence: Evidence, name: str, rule: str, method: str) -> Tensor:
    if name not in evidence.extras:
        raise InputError(f"rule {rule!r} needs evidence with the extra {name!r}; record it from a {method} model")
    return evidence.extras[name].double()


def _stage_numbers(evidence: Evidence) -> Int[Tensor, " stages"]:
    """The stages that are held, counted from 1."""
    return torch.arange(evidence.first + 1, evidence.first + evidence.stages + 1, device=evidence.logits.device)


def fixed() -> Rule:
    """The stage's number: threshold k sends everybody out at stage k, the baseline of every dynamic rule."""

    def readiness(evidence: Evidence) -> Tensor:
        return _stage_numbers(evidence).double()[:, None].expand(evidence.stages, evidence.samples)

    return Rule("fixed exits", readiness, 1, math.inf, regression=True, discrete=True, reads=1, look="state")


def random(seed: int = 0) -> Rule:
    """A coin that knows nothing: uniform in [0, 1), a function of seed, sample id and stage alone."""

    def readiness(evidence: Evidence) -> Tensor:
        stage = _stage_numbers(evidence)[:, None] - 1
        mixed = evidence.ids[None, :] * 1_000_003 + stage * 7_919 + seed * 104_729 + 1
        # A multiplicative hash (xorshift-multiply) in 64-bit integers, which wrap around by definition.
        for shift, factor in ((33, -49_064_778_989_728_563), (29, -4_265_267_296_055_464_877), (32, 1)):
            mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
        return (mixed & ((1 << 53) - 1)).double() / (1 << 53)

    return Rule("random", readiness, regression=True, reads=1, look="state")


def oracle() -> Rule:
    """Leave at the first stage that is right: headroom that needs the labels, never a bound for a real rule.

    A sample that no stage gets right goes to the last stage.
    """

    def readiness(evidence: Evidence) -> Tensor:
        if evidence.labels is None:
            raise InputError("rule 'oracle' needs labels, and this evidence has none")
        return (evidence.predictions == evidence.labels).double()

    return Rule("oracle", readiness, low=1, high=1, reads=1, needs_labels=True)
