"""Which speed weight gives which speed, and what words the policies of tokens tell apart, for notebook 10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from eeutils.exiting import tradeoff
from eeutils.exiting.rules import policy
from eeutils.exiting.token_evidence import TokenEvidence
from eeutils.papers.consistentee import OPERATING_POINT, ConsistentOptions
from eeutils.papers.consistentee_tokens import Shape, facts_of, learn, with_policy
from eeutils.papers.treatments import collapse_in
from eeutils.training.decoders import ExitRun, load_or_make
from eeutils.training.recorded_policies import recorded_words

WEIGHTS = (0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5)
"""Speed weights that are searched."""


def search(
    base: ExitRun, options: ConsistentOptions, shape: Shape = "linear", *, progress: bool = True
) -> pd.DataFrame:
    """Mode 2 alone at every speed weight of `WEIGHTS`, seen on dev with exact keys and values: a row a weight with
    columns weight, layers, flops_speedup, right (share of right words), commonest (share of the commonest exit),
    found and took (`treatments.collapse`). Searched once."""

    def look(work: Path) -> tuple[nn.Module, dict[str, pd.DataFrame]]:
        dev, rows, tried = recorded_words(base, "dev", progress=progress), [], []
        for weight in WEIGHTS:
            priced = replace(options, speed_weight=weight)
            model, _ = learn(base, priced, shape, False, work / f"{weight:g}", progress)
            evidence = with_policy(model, dev.states, dev.evidence)
            rows.append({"weight": weight, **point(evidence)})
            tried.append(model.policies)
        return nn.ModuleList(tried), {"search": pd.DataFrame(rows)}

    facts = facts_of(base, shape) | {"options": asdict(replace(options, speed_weight=0.0)), "weights": WEIGHTS}
    return pd.read_csv(load_or_make("decoder-policy-search", base.setting, facts, look) / "search.csv")


def point(evidence: TokenEvidence) -> dict[str, float | str | bool]:
    """What a policy does to words at its threshold: see `search`."""
    stages, units = tradeoff.decide(evidence, policy(), OPERATING_POINT).stages, torch.arange(evidence.samples)
    spent = evidence.cost["flops"][stages, units].mean()
    check = collapse_in("policy", evidence)
    return {
        "layers": float(torch.tensor(evidence.layers)[stages].double().mean()),
        "flops_speedup": float(evidence.reference["flops"].mean() / spent),
        "right": float((evidence.predictions[stages, units] == evidence.labels).double().mean()),
        "commonest": float(stages.bincount().max() / evidence.samples),
        "found": check.found,
        "took": check.took,
    }


def nearest(searched: pd.DataFrame, speedups: Sequence[float]) -> list[float]:
    """The speed weights whose FLOPs speed-ups came nearest to these, each once, the slowest first."""
    found = {float(searched.weight[(searched.flops_speedup - speedup).abs().idxmin()]) for speedup in speedups}
    return sorted(found)
