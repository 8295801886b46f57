"""BERT Loses Patience: Fast and Robust Inference with Early Exit (Zhou, Xu, Ge, McAuley, Xu and Wei, NeurIPS 2020).

Every layer gets an internal classifier, and all of them are trained together with the encoder, deeper ones weighing
more. A sample leaves when its answer has not changed for t classifiers in a row: patience. That reads agreement rather
than confidence, so it works for regression too (numbers agree when they are close), and the paper claims that stopping
early even helps where the last layers "overthink".

    loss   L = sum_j j L_j / sum_j j, L_j cross entropy or squared error
    rule   cnt_i = cnt_{i-1} + 1 if classifier i agrees with i-1, else 0; leave when cnt_i = t

    symbol   variable               meaning
    n        model.stages           number of internal classifiers
    L_j      losses[j - 1]          loss of classifier j
    t        threshold              patience, 1 to n - 1; the earliest exit is t + 1
    tau      patience(tolerance)    how close two numbers must be to agree
"""

from dataclasses import dataclass

from torch import Tensor

from eeutils.data.samples import Batch
from eeutils.exiting.rules import patience
from eeutils.models.backbone import load_backbone
from eeutils.models.exits import MultiExitModel, Poolers, exits_on_all_layers
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.training.loop import Phase, answer_loss, over_exits
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting


@dataclass(frozen=True)
class PabeeOptions(Options):
    """`poolers` before the classifiers; one for all is that of the authors' code."""

    poolers: Poolers = "shared"


def build(setting: Setting, classes: int, options: PabeeOptions) -> MultiExitModel:
    """A classifier on every layer."""
    backbone = load_backbone(setting.backbone)
    return MultiExitModel(backbone, exits_on_all_layers(backbone, classes, setting.pool, options.poolers))


def weighted_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """L = sum_j j L_j / sum_j j: the weighted mean of the classifiers' losses, deeper ones weighing more."""
    return over_exits(answer_loss(answers.logits, batch.labels), "depth")


METHOD = Method(
    name="pabee",
    title="PABEE",
    citation="Zhou et al., BERT Loses Patience: Fast and Robust Inference with Early Exit, NeurIPS 2020",
    build=build,
    phases=lambda options: [Phase("joint", weighted_loss)],
    rules={"patience": patience()},
    options=PabeeOptions(),
)
