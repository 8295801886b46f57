"""Clauses on comparisons at several places at once, for the sentences after figures and in summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from eeutils.exiting.comparisons import Curve, at_equal_cost, over_blind
from eeutils.exiting.intervals import Interval
from eeutils.exiting.tradeoff import Checkpoint, Metric
from eeutils.files import repository_root
from eeutils.reporting.wording import compared, listed

Gaps = Mapping[str, Interval | None]
"""Where two sides are compared, such as "at 2x" -> ours minus theirs; None where one of them cannot be read."""


def against(theirs: str, gaps: Gaps) -> str:
    """What follows the name of our side: "beats THEIRS at 2x (0.010 [0.004, 0.016])"; places with the same outcome
    stand together, and where two sides cannot be told apart, the number of samples."""
    places: dict[str, list[str]] = {}
    for where, gap in gaps.items():
        number = "out of reach" if gap is None else str(gap)
        places.setdefault(compared(gap), []).append(f"{where} ({number})".strip())
    units = {gap.units for gap in gaps.values() if gap is not None and gap.units}
    on = f" on {max(units):,} samples" if units else ""
    alike = compared(Interval(0.0, 0.0, 0.0))
    return listed([f"{word} {theirs}{on if word == alike else ''} {listed(at)}" for word, at in places.items()])


def gaps_at(ours: Curve, theirs: Curve, speedups: Sequence[float], metric: Metric) -> Gaps:
    """Ours minus theirs at FLOPs speed-ups."""
    return {f"at {speedup:g}x": at_equal_cost(ours, theirs, speedup, metric) for speedup in speedups}


def gaps_over_blind(ours: Curve, checkpoints: Sequence[Checkpoint], speedups: Sequence[float], metric: Metric) -> Gaps:
    """Ours minus the best blind policy of these checkpoints at FLOPs speed-ups."""
    return {f"at {speedup:g}x": over_blind(ours, [checkpoints], speedup, metric) for speedup in speedups}


def standing(ours: Curve, rivals: Mapping[str, Curve], speedups: Sequence[float], metric: Metric) -> str:
    """Where ours stands among rivals: "at 2x it beats A and cannot be told from B and C"; whoever does not reach a
    speed-up is left out there."""
    places = []
    for speedup in speedups:
        gaps = {name: at_equal_cost(ours, rival, speedup, metric) for name, rival in rivals.items()}
        by_word: dict[str, list[str]] = {}
        for name, gap in gaps.items():
            if gap is not None:
                by_word.setdefault(compared(gap), []).append(name)
        words = listed([f"{word} {listed(names)}" for word, names in by_word.items()]) if by_word else "meets no rival"
        places.append(f"at {speedup:g}x it {words}")
    return "; ".join(places)


def searched(method: str, what: str, symbol: str) -> str:
    """A sentence on the study's search for an option of a method on dev; empty where its table has none."""
    path = repository_root() / "data" / "results" / "study-search.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    if not {"task", "seed", "method", "what", "value", "dev_area", "in_use"} <= set(table):
        return ""
    rows = table[(table.method == method) & (table.what == what)]
    if len(rows) == 0:
        return ""
    rows = rows.assign(value=rows.value.astype(float), in_use=rows.in_use.astype(bool))
    areas, used = rows.groupby("value").dev_area.mean(), rows[rows.in_use].value.unique()
    tried = ", ".join(f"{area:.3f} at {value:g}" for value, area in areas.items())
    places = ", ".join(dict.fromkeys(f"{row.task}, seed {row.seed}" for row in rows.itertuples()))
    return (
        f"The study searched {symbol} on dev ({places}; area under the curve over FLOPs): {tried}; in use "
        f"is {listed([f'{value:g}' for value in used])}, highest is {areas.idxmax():g}."
    )
