"""What every method is drawn against: DeeBERT, PABEE, linear exits on the frozen plain model, and k-layer models that
were fine-tuned on their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from eeutils.exiting import tradeoff
from eeutils.exiting.intervals import with_band
from eeutils.exiting.rules import Rule, entropy, patience
from eeutils.papers import deebert, finetuned, pabee
from eeutils.papers.budgets import budget_of
from eeutils.training.runs import Run, load_or_train
from eeutils.training.settings import Setting

LINEAR = "linear exits, frozen encoder"


@dataclass(frozen=True)
class Baselines:
    """The runs of a setting that notebooks compare with; DeeBERT's last exit is the plain fine-tuned model."""

    deebert: Run
    pabee: Run
    linear: Run  # exits without poolers on the frozen plain model: the least that one can learn
    separate: pd.DataFrame  # as `finetuned.baselines` gives it

    @property
    def rules(self) -> dict[str, tuple[Run, Rule]]:
        """Name -> run and rule of each curve."""
        return {
            "DeeBERT (entropy)": (self.deebert, entropy()),
            "PABEE (patience)": (self.pabee, patience()),
            LINEAR: (self.linear, entropy()),
        }

    @cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        """Each on test, in its band."""
        return {name: with_band(run.test, rule, run.metric) for name, (run, rule) in self.rules.items()}

    @cached_property
    def blind(self) -> pd.DataFrame:
        """The best blind policy of all three checkpoints and the k-layer models, on test."""
        setting, depths = self.pabee.setting, self.separate.layers
        shallow = [load_or_train(finetuned.METHOD, setting, layers=int(layers)) for layers in depths]
        runs = (self.deebert, self.pabee, self.linear, *shallow)
        return tradeoff.blind_curve([(run.dev, run.test) for run in runs], self.pabee.metric)

    @cached_property
    def fixed(self) -> dict[str, pd.DataFrame]:
        """The fixed exits of the two published checkpoints, on test."""
        return {run.method.title: tradeoff.fixed_exits(run.test, run.metric) for run in (self.deebert, self.pabee)}


def load_baselines(setting: Setting, profile: str) -> Baselines:
    """The baselines of a setting, with as many k-layer models as the profile affords; trains what is not there yet."""
    runs = [load_or_train(method, setting) for method in (deebert.METHOD, pabee.METHOD)]
    linear = load_or_train(deebert.METHOD, setting, poolers="none")
    depths = budget_of(profile, runs[0].test.reference_layers).shallow_depths
    return Baselines(*runs, linear, finetuned.baselines(setting, list(depths)))
