"""What the claims compare, wherever two curves at equal cost decide: the notebooks evaluate these values on one seed,
the study on all of its tasks and seeds. Names of curves are those of the methods, and `PLAIN`.
"""

from __future__ import annotations

from collections.abc import Mapping

from eeutils.exiting.claims import Verdict
from eeutils.exiting.comparisons import Comparison, Curve, Curves, Side, evaluate, verdict
from eeutils.exiting.rules import distance_ratio, entropy, fixed, patience
from eeutils.exiting.tradeoff import Metric
from eeutils.papers import badge, cascadebert, consistentee, de3bert, deebert, ensemble, hashee, pabee

PLAIN = "plain model"
ALL_EXITS, CONSTANT = "ConsistentEE, all exits right", "ConsistentEE, constant price"
UNREGULARISED = "DE3-BERT without its regulariser"
NO_TERM = "CascadeBERT without its difficulty term"
SUM = "plain sum"
"""Controls that only a notebook has."""

_DEEBERT, _PABEE, _BADGE = deebert.METHOD.title, pabee.METHOD.title, badge.METHOD.title
_CASCADE, _DE3, _CONSISTENT = cascadebert.METHOD.title, de3bert.METHOD.title, consistentee.METHOD.title
_HASHEE, _ENSEMBLE = hashee.METHOD.title, ensemble.METHOD.title

COMPARISONS = (
    Comparison("D1", Side(_DEEBERT), Side(_DEEBERT, fixed()), (1 / 0.86,), their_speedup=1.0, axis="layers"),
    Comparison("D2", Side(_DEEBERT), Side(_DEEBERT, fixed()), (1 / 0.6,), their_speedup=1.0, axis="layers"),
    Comparison("P1", Side(_PABEE), Side(PLAIN), (1.5,), their_speedup=1.0, axis="layers"),
    Comparison("P2", Side(_PABEE), Side(_PABEE, entropy()), (1.25, 1.5, 2.0), axis="layers"),
    Comparison("P4", Side(_PABEE), Side(PLAIN), (1.62,), their_speedup=1.0, axis="layers"),
    Comparison("B4", Side(_BADGE), Side(_BADGE, entropy()), (1.5, 2.0), axis="layers"),
    Comparison("B4", Side(_BADGE), Side(_BADGE, patience()), (1.5, 2.0), axis="layers"),
    Comparison("C1", Side(_CASCADE), Side(_DEEBERT), (3.0, 4.0), axis="layers"),
    Comparison("C1", Side(_CASCADE), Side(_PABEE), (3.0, 4.0), axis="layers"),
    Comparison("E1", Side(_DE3), Side(_DE3, entropy()), (2.0, 3.0), axis="layers"),
    Comparison("E1", Side(_DE3, entropy()), Side(_DE3, distance_ratio()), (2.0, 3.0), axis="layers"),
    Comparison("E2", Side(_DE3, entropy()), Side(_PABEE, entropy()), (2.0, 3.0), axis="layers"),
    Comparison("E3", Side(UNREGULARISED), Side(UNREGULARISED, entropy()), (2.0, 3.0), axis="layers"),
    Comparison("K1", Side(_CONSISTENT), Side(PLAIN), (1.8,), their_speedup=1.0, axis="layers"),
    Comparison("K2", Side(_CONSISTENT), Side(ALL_EXITS), (1.5, 2.0), axis="layers"),
    Comparison("K3", Side(_CONSISTENT), Side(CONSTANT), (1.5, 2.0), axis="layers"),
    Comparison("H2a", Side(_HASHEE), Side(_DEEBERT), (1.5, 2.0)),
    Comparison("H2a", Side(_HASHEE), Side(_PABEE), (1.5, 2.0)),
    Comparison("H2b", Side(_HASHEE), Side(_PABEE, patience(0.25)), (1.5, 2.0), regression=True),
    Comparison("V1", Side(_ENSEMBLE), Side(SUM), (1.5, 2.0), axis="layers"),
    Comparison("V1", Side(_ENSEMBLE, patience()), Side(SUM, patience()), (1.5, 2.0), axis="layers"),
    Comparison("V1", Side(_ENSEMBLE, entropy()), Side(SUM, entropy()), (1.5, 2.0), axis="layers"),
    Comparison("V2a", Side(_ENSEMBLE), Side(_ENSEMBLE, patience()), (1.5, 2.0), axis="layers"),
    Comparison("V2b", Side(_ENSEMBLE, patience()), Side(_ENSEMBLE, entropy()), (1.5, 2.0), axis="layers"),
)
"""In the order of the ledger's papers."""


def judged(claim: str, curves: Mapping[str, Curve | Curves], metric: Metric, note: str = "") -> Verdict:
    """The verdict on a claim by its comparisons, on the given curves."""
    return verdict(claim, evaluate([each for each in COMPARISONS if each.claim == claim], curves, metric), note)
