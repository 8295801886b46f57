"""Whom a policy for words must beat, and the trained policies as one curve, for notebook 10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from eeutils.exiting import rules, token_rules
from eeutils.exiting.comparisons import Curve, at_equal_cost
from eeutils.exiting.intervals import Interval
from eeutils.exiting.rules import NEVER, policy
from eeutils.exiting.tradeoff import Metric, fixed_exits
from eeutils.papers import calm
from eeutils.papers.consistentee_tokens import PolicyRun
from eeutils.training.decoders import TARGET_TOKENS, ExitRun


def written_rivals(base: ExitRun, seed: int) -> dict[str, calm.Texts]:
    """What rules write on test: those of notebook 09 at its thresholds, placed on dev by depth, so that what it has
    written is found."""
    dev, longest = base.evidence("dev"), TARGET_TOKENS + 1
    plan = {name: (calm.rule_of(name), (0.85, 0.75, 0.65)) for name in ("classifier", "state similarity")} | {
        "classifier, constant": (token_rules.judged(), (0.85, 0.7)),
        "schedule": (token_rules.schedule(TARGET_TOKENS), (0.9, 0.8, 0.7)),
        "random exits": (rules.random(seed), (0.85, 0.7)),
        "margin on a shortlist": (token_rules.decaying(token_rules.short_margin(), longest), (0.85, 0.7)),
    }
    ways = {name: (rule, calm.thresholds_on(dev, rule, depths)) for name, (rule, depths) in plan.items()}
    stages = len(base.exits) + 1
    last = range(max(1, stages - 3), stages)
    ways["fixed exits"] = (rules.fixed(), [NEVER, *map(float, reversed(last))])
    return calm.write(base, ways, "test")


def written_policies(runs: Sequence[PolicyRun], rival: calm.Texts) -> calm.Texts:
    """What trained policies write on test, as one curve behind the full model's texts, those of any rival: slowest
    first."""
    outcomes = (rival.outcomes[0], *(run.texts("test") for run in runs))
    weights = tuple(run.options.speed_weight for run in runs)
    return calm.Texts(policy(), (NEVER, *weights), outcomes, rival.references)


def speeds(curve: Curve, axis: str) -> list[float]:
    """The speed-ups of the trained policies on such a curve, slowest first; the full model's is none."""
    table = fixed_exits(curve[0], lambda *_: 0.0)
    found = sorted(table["layer_speedup" if axis == "layers" else "flops_speedup"])
    return [speed for speed in found if speed > 1 + 1e-6]


def gaps(ours: Curve, theirs: Curve, metric: Metric, axis: str = "flops") -> dict[str, Interval | None]:
    """Ours minus theirs, of texts, where ours was trained; where theirs does not go that far, at their fastest, a share
    of our texts being the full model's there."""
    # A hair slower, for rounding must not put the fastest out of reach.
    far = max([1.0, *speeds(theirs, axis)])
    places = sorted({min(speed, far) * (1 - 1e-6) for speed in speeds(ours, axis)})
    return {f"at {speed:.2f}x": at_equal_cost(ours, theirs, speed, metric, axis) for speed in places}


def table(runs: Sequence[PolicyRun], texts: calm.Texts) -> pd.DataFrame:
    """A row a trained policy: speed weight, whether it tells words apart, exits not learned, and `Texts.table`."""
    rows = texts.table().iloc[1:].drop(columns="threshold").reset_index(drop=True)
    unfit = [", ".join(map(str, run.learned.layer[~run.learned.learned])) or "none" for run in runs]
    facts = {"alpha": [run.options.speed_weight for run in runs], "took": [run.check.took for run in runs]}
    return pd.DataFrame(facts | {"exits not learned": unfit}).join(rows)


def reached(gaps: Mapping[str, Interval | None]) -> list[Interval]:
    """Those that could be read."""
    return [gap for gap in gaps.values() if gap is not None and np.isfinite(gap.estimate)]
