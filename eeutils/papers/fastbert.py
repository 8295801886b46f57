"""FastBERT: a Self-distilling BERT with Adaptive Inference Time (Liu, Zhou, Wang, Zhao, Deng and Ju, ACL 2020).

The model is fine-tuned as usual first. Then everything is frozen and each layer gets a student, a small self-attention
over the tokens with a classifier, that learns to say what the last classifier says: its whole distribution, not the
label. So no label is needed for the students, and texts without labels would do. A sample leaves at the first student
whose normalised entropy is small.

    stage 1   min over encoder and last classifier    CE(y, p_L)
    stage 2   min over students 1 .. L-1              sum_{i<L} KL(p_L || p_i), the mean over the batch
    rule      leave at the first i with H(p_i) / ln C <= Speed: readiness 1 - H(p_i) / ln C

    symbol   variable                      meaning
    L        model.stages                  number of layers
    p_i      answers.logits[i - 1]         student i (i < L) and teacher (i = L), after a softmax
    Speed    1 - threshold                 of the rule `entropy`: larger is faster

What differs from the authors' code. The teacher is the plain model with its own head; there it has the students' form.
It is frozen in evaluation mode; there its dropout stays on, so it contradicts itself. A student's last map goes up to
the encoder's width, there it stays at 128: all exits then have vectors of one width, which probes can read. Students
take as many epochs as stage 1 (there 10, of which those after the third had a learning rate of 0) and a dropout of 0.1
(there 0.5). Where the setting pools tokens by their mean, so do the students; there they read the first token.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting.rules import entropy
from eeutils.models.backbone import Backbone, load_backbone
from eeutils.models.exits import Exit, MultiExitModel, Pooler
from eeutils.models.small_attention import AttentionExit
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.papers import finetuned
from eeutils.papers.deebert import early_off_ramps
from eeutils.training.loop import Phase
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting

ATTENTION_HEADS = 2


@dataclass(frozen=True)
class FastbertOptions(Options):
    """`students`: with a small self-attention, the paper's, or with a pooler of their own as DeeBERT's off-ramps."""

    students: Literal["attention", "pooler"] = "attention"


class Student(AttentionExit):
    """A small self-attention at width 128, then Linear and tanh to the encoder's width, then one linear map."""

    def __init__(self, backbone: Backbone, classes: int, pool: str) -> None:
        super().__init__(backbone.width, classes, pool, ATTENTION_HEADS, projects=True)
        self.pooler = nn.Sequential(nn.Linear(self.attention.inner, backbone.width), nn.Tanh())
        self.classifier = nn.Linear(backbone.width, classes)


def build(setting: Setting, classes: int, options: FastbertOptions) -> MultiExitModel:
    """The plain model with a student on every layer but the last; an error for regression, where one number is no
    distribution to learn from."""
    if classes < 2:
        raise InputError(
            f"FastBERT's students learn distributions over classes and task {setting.task!r} is a regression; use "
            "berxit or pabee"
        )
    backbone, exits = load_backbone(setting.backbone), {}
    for layer in range(1, backbone.depth + 1):
        if options.students == "attention" and layer < backbone.depth:
            exits[layer] = Student(backbone, classes, setting.pool)
        else:
            exits[layer] = Exit(backbone.width, classes, setting.pool, Pooler(backbone))
    return MultiExitModel(backbone, exits)


def distillation_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """sum_{i<L} KL(p_L || p_i), the mean over the batch: no label is read, and nothing flows into the teacher."""
    log_p = answers.logits.log_softmax(dim=-1)
    teacher, students = log_p[-1].detach(), log_p[:-1]
    return (teacher.exp() * (teacher - students)).sum(dim=-1).mean(dim=-1).sum()


METHOD = Method(
    name="fastbert",
    title="FastBERT",
    citation="Liu et al., FastBERT: a Self-distilling BERT with Adaptive Inference Time, ACL 2020",
    build=build,
    phases=lambda options: [Phase("students", distillation_loss, trains=early_off_ramps)],
    rules={"entropy": entropy()},
    options=FastbertOptions(),
    starts_from=finetuned.METHOD,
)
