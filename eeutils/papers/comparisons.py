"""What the claims compare, wherever two curves at equal cost decide: the notebooks evaluate these values on one seed,
the study on all of its tasks and seeds. Names of curves are those of the methods, and `PLAIN`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from eeutils.exiting.claims import Verdict, not_testable
from eeutils.exiting.comparisons import Comparison, Curve, Curves, Side, evaluate, verdict
from eeutils.exiting.rules import distance_ratio, entropy, fixed, patience
from eeutils.exiting.tradeoff import Metric
from eeutils.papers import (
    badge,
    berxit,
    cascadebert,
    consistentee,
    de3bert,
    deebert,
    ensemble,
    fastbert,
    hashee,
    l2w,
    pabee,
    pceebert,
    smartbert,
)

PLAIN, FIXED = "plain model", "fixed exits"
ALL_EXITS, CONSTANT = "ConsistentEE, all exits right", "ConsistentEE, constant price"
UNREGULARISED = "DE3-BERT without its regulariser"
NO_TERM = "CascadeBERT without its difficulty term"
SUM = "plain sum"
PROTOTYPES = "DE3-BERT, prototypes answer"
EXITING, SKIPPING = "SmartBERT, exits alone", "SmartBERT, skipping alone"
SOFT, SAME_LAYERS, COINS = "SmartBERT, soft weights", "SmartBERT, same layers for all", "SmartBERT, coins for gates"
ALIKE, BY_DEPTH = "joint training, all exits alike", "joint training, deeper exits more"
POOLER_STUDENTS = "FastBERT, students with poolers"
LEARNED = "PABEE's exits, best learned rule"
CALIBRATED = "PCEE-BERT, calibrated exits"
"""Controls that only a notebook has."""

_DEEBERT, _PABEE, _BADGE = deebert.METHOD.title, pabee.METHOD.title, badge.METHOD.title
_CASCADE, _DE3, _CONSISTENT = cascadebert.METHOD.title, de3bert.METHOD.title, consistentee.METHOD.title
_HASHEE, _ENSEMBLE = hashee.METHOD.title, ensemble.METHOD.title
_SMART = smartbert.METHOD.title

_L2W, _FASTBERT = l2w.METHOD.title, fastbert.METHOD.title
_BERXIT, _PCEE = berxit.METHOD.title, pceebert.METHOD.title

COMPARISONS = (
    Comparison("D1", Side(_DEEBERT), Side(_DEEBERT, fixed()), (1 / 0.86,), their_speedup=1.0, axis="layers"),
    Comparison("D2", Side(_DEEBERT), Side(_DEEBERT, fixed()), (1 / 0.6,), their_speedup=1.0, axis="layers"),
    Comparison("P1", Side(_PABEE), Side(PLAIN), (1.5,), their_speedup=1.0),
    Comparison("P2", Side(_PABEE), Side(_PABEE, entropy()), (1.25, 1.5, 2.0)),
    Comparison("B4a", Side(_BADGE), Side(_BADGE, entropy()), (1.5, 2.0)),
    Comparison("B4b", Side(_BADGE), Side(_BADGE, patience()), (1.5, 2.0)),
    Comparison("C1a", Side(_CASCADE), Side(_DEEBERT), (3.0, 4.0)),
    Comparison("C1a", Side(_CASCADE), Side(_PABEE), (3.0, 4.0)),
    Comparison("C1b", Side(_CASCADE), Side(_DEEBERT), (1.5, 1.9)),
    Comparison("C1b", Side(_CASCADE), Side(_PABEE), (1.5, 1.9)),
    Comparison("C4b", Side(_CASCADE), Side(NO_TERM), (1.5,)),
    Comparison("E1a", Side(_DE3), Side(_DE3, entropy()), (2.0, 3.0)),
    Comparison("E1b", Side(_DE3, entropy()), Side(_DE3, distance_ratio()), (2.0, 3.0)),
    Comparison("E2", Side(_DE3, entropy()), Side(_PABEE, entropy()), (2.0, 3.0)),
    Comparison("E3", Side(UNREGULARISED), Side(UNREGULARISED, entropy()), (2.0, 3.0)),
    Comparison("E6", Side(_DE3), Side(PROTOTYPES), (2.0, 3.0)),
    Comparison("K1", Side(_CONSISTENT), Side(PLAIN), (1.8,), their_speedup=1.0),
    Comparison("K2", Side(_CONSISTENT), Side(ALL_EXITS), (1.5, 2.0)),
    Comparison("K3", Side(_CONSISTENT), Side(CONSTANT), (1.5, 2.0)),
    Comparison("H2a", Side(_HASHEE), Side(_DEEBERT), (1.5, 2.0)),
    Comparison("H2a", Side(_HASHEE), Side(_PABEE), (1.5, 2.0)),
    Comparison("H2b", Side(_HASHEE), Side(_PABEE, patience(0.5)), (1.5, 2.0), regression=True),
    Comparison("V1", Side(_ENSEMBLE), Side(SUM), (1.5, 2.0)),
    Comparison("V1", Side(_ENSEMBLE, patience()), Side(SUM, patience()), (1.5, 2.0)),
    Comparison("V1", Side(_ENSEMBLE, entropy()), Side(SUM, entropy()), (1.5, 2.0)),
    Comparison("V2a", Side(_ENSEMBLE), Side(_ENSEMBLE, patience()), (1.5, 2.0)),
    Comparison("V2b", Side(_ENSEMBLE, patience()), Side(_ENSEMBLE, entropy()), (1.5, 2.0)),
    Comparison("SM1", Side(_SMART), Side(PLAIN), (2.0, 3.0), their_speedup=1.0),
    Comparison("SM2a", Side(SKIPPING), Side(EXITING), (1.25, 1.5)),
    Comparison("SM2b", Side(_SMART), Side(EXITING), (1.5, 2.0)),
    Comparison("SM2c", Side(_SMART), Side(SKIPPING), (1.5, 2.0)),
    Comparison("SM3", Side(_SMART), Side(SOFT), (1.5, 2.0)),
    Comparison("SM5a", Side(_SMART), Side(SAME_LAYERS), (1.5, 2.0)),
    Comparison("SM5b", Side(_SMART), Side(COINS), (1.5, 2.0)),
    Comparison("F1", Side(_FASTBERT), Side(PLAIN), (2.0,), their_speedup=1.0),
    Comparison("F2", Side(_FASTBERT), Side(PLAIN), (7.0,), their_speedup=1.0),
    Comparison("F4", Side(_FASTBERT), Side(POOLER_STUDENTS), (1.5, 2.0)),
    Comparison("W1", Side(_L2W), Side(ALIKE), (1.5, 2.0, 3.0)),
    Comparison("W2", Side(_L2W), Side(BY_DEPTH), (1.5, 2.0, 3.0)),
    Comparison("X2a", Side(_BERXIT), Side(_BERXIT, entropy()), (1.5, 2.0)),
    Comparison("X2b", Side(_BERXIT), Side(_BERXIT, fixed()), (1.5, 2.0), regression=True),
    Comparison("PC1a", Side(_PCEE), Side(_PCEE, patience()), (1.5, 2.0)),
    Comparison("PC1b", Side(_PCEE), Side(_PCEE, entropy()), (1.5, 2.0)),
    Comparison(
        "PC2", Side(_PCEE, pceebert.METHOD.rules["run"]), Side(_PCEE, pceebert.METHOD.rules["current"]), (1.5, 2.0)
    ),
    Comparison("PC3", Side(CALIBRATED), Side(CALIBRATED, entropy()), (1.5, 2.0)),
    Comparison("R1", Side(LEARNED), Side(_PABEE, entropy()), (1.5, 2.0, 3.0)),
)
"""In the order of the ledger's papers."""


ABOUT_TREATMENTS = frozenset(
    [
        *("B1a", "B1b", "B2", "B3", "C3b", "C4a", "C4b", "E1a", "E2", "E3", "E6", "K1", "K2", "K3", "V1", "V3"),
        *("SM2a", "SM2b", "SM2c", "SM3", "SM5a", "SM5b"),
        *("W1", "W2", "W3a", "W3b", "W3c", "W4"),
    ]
)
"""Claims that say what an idea does to a model: not testable where it did nothing. The others are about rules, or about
models whatever became of the idea."""


def judged(
    claim: str,
    curves: Mapping[str, Curve | Curves],
    metric: Metric,
    note: str = "",
    unfit: Mapping[str, str] = MappingProxyType({}),
) -> Verdict:
    """The verdict on a claim by its comparisons, on the given curves.

    `unfit` names curves that no verdict may count, and why: their exits have not learned, or their treatment did not
    take. A claim about one of them is not testable.
    """
    own = [each for each in COMPARISONS if each.claim == claim]
    reasons = [unfit[side.name] for each in own for side in (each.ours, each.theirs) if side.name in unfit]
    if reasons:
        return not_testable(claim, "; ".join(dict.fromkeys(reasons)))
    return verdict(claim, evaluate(own, curves, metric), note)
