"""DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference (Xin, Tang, Lee, Yu and Lin, ACL 2020).

Every layer gets an off-ramp: a pooler and a linear classifier of its own. The model is fine-tuned as usual first; then
everything that was fine-tuned is frozen and the off-ramps learn to answer from what the layers happen to say. A sample
leaves at the first off-ramp that is sure of itself, measured by the entropy of its distribution. So the last classifier
is exactly the plain model's, and the early ones are as good as frozen layers allow.

    stage 1   min over encoder and last off-ramp    L_n = CE(y, f_n(x))                        (section 3.1)
    stage 2   min over off-ramps 1 .. n-1           sum_{i<n} L_i = sum_{i<n} CE(y, f_i(x))    (section 3.1)
    rule      leave at the first i with H(p_i) < S, else at n; H in natural log                (section 3.2)

    symbol   variable             meaning
    n        model.stages         number of layers and off-ramps
    f_i      answers.logits[i]    off-ramp i (here from 0)
    S        threshold            entropy() takes 1 - S / ln C: see rules.from_entropy
"""

from dataclasses import dataclass

from torch import Tensor, nn

from eeutils.data.samples import Batch
from eeutils.exiting.rules import entropy
from eeutils.models.backbone import load_backbone
from eeutils.models.exits import Exit, MultiExitModel, Pooler, Poolers, exits_on_all_layers
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.papers import finetuned
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting


@dataclass(frozen=True)
class DeebertOptions(Options):
    """`poolers` of off-ramps 1 .. n-1; with "none" they are linear exits on a frozen fine-tuned encoder."""

    poolers: Poolers = "own"


def build(setting: Setting, classes: int, options: DeebertOptions) -> MultiExitModel:
    """An off-ramp on every layer; the last one is the plain model's head, with a pooler of its own."""
    backbone = load_backbone(setting.backbone)
    exits = exits_on_all_layers(backbone, classes, setting.pool, options.poolers)
    exits[backbone.depth] = Exit(backbone.width, classes, setting.pool, Pooler(backbone))
    return MultiExitModel(backbone, exits)


def off_ramp_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """Stage 2: the unweighted sum of the losses of all off-ramps but the last, which stage 1 has trained."""
    return answer_loss(answers.logits[:-1], batch.labels).mean(dim=1).sum()


def early_off_ramps(model: MultiExitModel) -> list[nn.Module]:
    """Off-ramps 1 .. n-1: all that stage 2 trains."""
    return [model.exit_at(stage) for stage in range(model.stages - 1)]


def phases(options: DeebertOptions) -> list[Phase]:
    """Stage 2 alone: stage 1 is the plain model, which this method starts from."""
    return [Phase("off-ramps", off_ramp_loss, trains=early_off_ramps)]


METHOD = Method(
    name="deebert",
    title="DeeBERT",
    citation="Xin et al., DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference, ACL 2020",
    build=build,
    phases=phases,
    rules={"entropy": entropy()},
    options=DeebertOptions(),
    starts_from=finetuned.METHOD,
)
