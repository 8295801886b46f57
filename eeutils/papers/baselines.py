"""What every method is drawn against: DeeBERT, PABEE, and k-layer models that were fine-tuned on their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from eeutils.exiting import tradeoff
from eeutils.exiting.rules import entropy, patience
from eeutils.papers import deebert, finetuned, pabee
from eeutils.papers.budgets import budget_of
from eeutils.training.runs import Run, load_or_train
from eeutils.training.settings import Setting


@dataclass(frozen=True)
class Baselines:
    """The runs of a setting that notebooks compare with; DeeBERT's last exit is the plain fine-tuned model."""

    deebert: Run
    pabee: Run
    separate: pd.DataFrame  # as `finetuned.baselines` gives it

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """Each as published, on test."""
        return {
            "DeeBERT (entropy)": tradeoff.sweep(self.deebert.test, entropy(), self.deebert.metric),
            "PABEE (patience)": tradeoff.sweep(self.pabee.test, patience(), self.pabee.metric),
        }

    @cached_property
    def fixed(self) -> dict[str, pd.DataFrame]:
        """The fixed exits of both checkpoints, on test."""
        return {run.method.title: tradeoff.fixed_exits(run.test, run.metric) for run in (self.deebert, self.pabee)}


def load_baselines(setting: Setting, profile: str) -> Baselines:
    """The baselines of a setting, with as many k-layer models as the profile affords; trains what is not there yet."""
    runs = [load_or_train(method, setting) for method in (deebert.METHOD, pabee.METHOD)]
    depths = budget_of(profile, runs[0].test.reference_layers).shallow_depths
    return Baselines(*runs, finetuned.baselines(setting, depths))
