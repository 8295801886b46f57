"""Mixed training, for notebook 12: the plain model first, then all exits together, the encoder with them.

Joint training from the start asks an encoder that knows nothing of the task to serve all exits at once; two-stage
training asks the exits to live with an encoder that never heard of them. Kubaty et al. (ICML 2025) report that the
plain model first and all together afterwards keeps most of the last exit, and call it a fair default.

    phase 1   min over encoder and last exit   CE(y, p_L): the plain model, which this method starts from
    phase 2   min over everything              1 / L sum_l CE(y, p_l)

    symbol   variable       meaning
    L        model.stages   number of layers and exits
"""

from torch import Tensor

from eeutils.data.samples import Batch
from eeutils.exiting.rules import entropy
from eeutils.models.exits import MultiExitModel
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.papers import finetuned, pabee
from eeutils.training.loop import Phase, answer_loss, over_exits
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting


def build(setting: Setting, classes: int, options: Options) -> MultiExitModel:
    """PABEE's model, with a pooler for each exit: the last one finds the plain model's."""
    return pabee.build(setting, classes, pabee.PabeeOptions("own"))


def mean_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """The mean of the losses of all exits."""
    return over_exits(answer_loss(answers.logits, batch.labels), "uniform")


METHOD = Method(
    name="mixed",
    title="mixed training",
    citation="Kubaty et al., How to Train Your Multi-Exit Model?, ICML 2025",
    build=build,
    phases=lambda options: [Phase("joint", mean_loss)],
    rules={"entropy": entropy()},
    starts_from=finetuned.METHOD,
)
