"""BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression (Xin et al., EACL 2021).

Every layer gets an off-ramp as in DeeBERT. Training all together costs the last classifier some of its quality, and
training the early ones afterwards leaves them poor: so steps alternate between the last one's loss and the others'.
Entropy says nothing of a number, so a second idea: one small linear map, shared by all layers, learns from the mistakes
of the off-ramps how far an answer is to be trusted (learning to exit, LTE). A sample leaves where that says so, classes
or numbers alike.

    even steps    L_n + LTE                                         (the first step is number 0)
    odd steps     sum_{i<n} L_i + LTE, and + L_n where nothing is learned about exiting
    LTE           1 / n sum_i mean (u_i - t_i)^2, u_i = sigmoid(w . h_i + b); no gradient into t_i
    target        t_i = 1[argmax f_i(x) != y], or |tanh(f_i(x) - y)| for regression
    rule          leave at the first i < n with u_i < theta, else at n: readiness 1 - u_i

    symbol   variable                    meaning
    n        model.stages                number of layers and off-ramps
    L_i      losses[i - 1]               cross entropy or squared error of off-ramp i
    h_i      dropped                     what classifier i reads: the pooled vector, after dropout
    w, b     LteExit.lte                 ONE linear map for all layers
    u_i      extras["uncertainty"]       how likely off-ramp i is wrong, or by how much it errs
    theta    1 - threshold               of the rule `learned`

As in the authors' code u_i is not cut off from what it reads, so LTE trains poolers and encoder, too, and the last
layer has a u_n that learns but never decides. There steps are counted within an epoch, here through the whole training.
The paper words u as certainty, which is 1 - u.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eeutils.data.samples import Batch
from eeutils.exiting.evidence import predict
from eeutils.exiting.rules import entropy, learned
from eeutils.models.backbone import load_backbone
from eeutils.models.cost import linear_flops
from eeutils.models.exits import Exit, MultiExitModel, Pooler
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting


@dataclass(frozen=True)
class BerxitOptions(Options):
    """What may be varied.

    Attributes:
        training: "alternating" steps are the paper's; "joint" sums all losses in every step; "two-stage" trains the
            last off-ramp with the encoder, then the others on both frozen, as DeeBERT does.
        lte: whether learning to exit is there; without it the rule `learned` has nothing to read.
    """

    training: Literal["alternating", "joint", "two-stage"] = "alternating"
    lte: bool = True


class LteExit(Exit):
    """An off-ramp that also says how likely it is wrong: the extra "uncertainty" (B,); none without `lte`."""

    def __init__(self, width: int, classes: int, pool: str, pooler: nn.Module, lte: nn.Linear | None) -> None:
        super().__init__(width, classes, pool, pooler)
        self.lte = lte

    def answer(self, vector: Float[Tensor, "batch width"]) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
        dropped = self.dropout(vector)
        extras = {} if self.lte is None else {"uncertainty": self.lte(dropped).sigmoid()[:, 0]}
        return self.classifier(dropped), extras

    def flops(self, tokens: Int[Tensor, " batch"]) -> int:
        return super().flops(tokens) + (0 if self.lte is None else linear_flops(self.lte))


def build(setting: Setting, classes: int, options: BerxitOptions) -> MultiExitModel:
    """DeeBERT's off-ramps, and one linear map for all of them that learns to exit."""
    backbone = load_backbone(setting.backbone)
    with torch.random.fork_rng(devices=[]):  # the off-ramps then start the same with it and without
        lte = nn.Linear(backbone.width, 1) if options.lte else None
    shape = (backbone.width, classes, setting.pool)
    model = MultiExitModel(backbone, {k: LteExit(*shape, Pooler(backbone), lte) for k in range(1, backbone.depth + 1)})
    # In the model's own state, so that a resumed training goes on with the right kind of step.
    model.register_buffer("steps_taken", torch.zeros((), dtype=torch.long))
    return model


def lte_targets(logits: Float[Tensor, "stages batch classes"], labels: Tensor) -> Float[Tensor, "stages batch"]:
    """t_i of each sample: 1 where off-ramp i is wrong and 0 where it is right; for regression |tanh| of its error."""
    answers = predict(logits.detach())
    if logits.shape[-1] == 1:
        return torch.tanh(answers - labels.to(answers.dtype)).abs()
    return (answers != labels).to(logits.dtype)


def lte_loss(answers: Answers, labels: Tensor) -> Float[Tensor, ""]:
    """LTE: the mean over layers and samples of (u_i - t_i)^2; 0 where nothing is learned about exiting."""
    if "uncertainty" not in answers.extras:
        return answers.logits.new_zeros(())
    return (answers.extras["uncertainty"].float() - lte_targets(answers.logits, labels)).square().mean()


def loss_of(exits: slice, model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """The unweighted sum of the losses of some off-ramps, plus LTE.

    The others' losses count 0 times rather than not at all: processes that train together then agree on which weights
    get a gradient.
    """
    losses = answer_loss(answers.logits, batch.labels).mean(dim=1)
    counts = torch.zeros_like(losses)
    counts[exits] = 1
    return (counts * losses).sum() + lte_loss(answers, batch.labels)


def alternating_loss(options: BerxitOptions, model: MultiExitModel, answers: Answers, batch: Batch) -> Tensor:
    """The last off-ramp's loss in even steps; that of all others in odd ones, the last again among them without LTE."""
    odd = int(model.steps_taken) % 2 == 1
    model.steps_taken += 1
    early = slice(-1) if options.lte else slice(None)
    return loss_of(early if odd else slice(-1, None), model, answers, batch)


def last_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """Stage 1 of two: the plain model's loss."""
    return answer_loss(answers.logits[-1:], batch.labels).mean()


def plain_model(model: MultiExitModel) -> list[nn.Module]:
    """What stage 1 of two trains: the encoder and its usual head."""
    return [model.backbone, model.exit_at(-1).pooler, model.exit_at(-1).classifier]


def early_off_ramps(model: MultiExitModel) -> list[nn.Module]:
    """What stage 2 of two trains: all other off-ramps, and with them what learns to exit."""
    return [model.exit_at(stage) for stage in range(model.stages - 1)]


def phases(options: BerxitOptions) -> list[Phase]:
    """One phase, or two for "two-stage"."""
    if options.training == "two-stage":
        off_ramps = Phase("off-ramps", partial(loss_of, slice(-1)), early_off_ramps)
        return [Phase("fine-tune", last_loss, plain_model), off_ramps]
    if options.training == "joint":
        return [Phase("joint", partial(loss_of, slice(None)))]
    return [Phase("alternating", partial(alternating_loss, options))]


METHOD = Method(
    name="berxit",
    title="BERxiT",
    citation="Xin, Tang, Yu and Lin, BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to "
    "Regression, EACL 2021",
    build=build,
    phases=phases,
    rules={"learned": learned(), "entropy": entropy()},
    options=BerxitOptions(),
)
