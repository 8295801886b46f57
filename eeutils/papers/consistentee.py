"""ConsistentEE: A Consistent and Hardness-Guided Early Exiting Method (Zeng et al., AAAI 2024, arXiv 2312.11882).

At inference one exit answers, so in training only that one exit has to be right: each sample's cross entropy comes from
the exit that it takes. A small policy network on every exit decides which one that is, and learns by REINFORCE. The
reward is quality minus depth, and depth counts the more the earlier a sample was memorized, so that easy samples are
pushed to be fast and hard ones to be right. One trained model is one operating point; its speed is chosen before
training, by the weight of the depth.

    phase 1   all exits together: PABEE's training, which this method starts from                     (mode 1)
    ML(x)     the smallest l such that exits l .. L are all right on x; L if the last one is wrong
    policy    pi_l(x) = sigmoid(W2 gelu(W1 h_l)) leaves at l, so P(l) = pi_l prod_{k<l} (1 - pi_k)
    reward    R(l) = -CE(y, p_l) - alpha (1 - ML / L) l, l counted in layers
    phase 2   policies alone: min -1/K sum_k (R_k - mean R) log P(l_k), exits l_1 .. l_K drawn from P  (mode 2)
    phase 3   everything: that plus 1/K sum_k CE(y, p_{l_k})                                           (mode 3)
    rule      leave at the first l with pi_l > 1/2, else at L

    symbol    variable                      meaning
    pi_l      extras["policy"]              probability to leave at exit l when it is reached
    h_l       features                      what exit l's classifier reads, behind the pooler that all exits share
    ML(x)     notes["memorized_layer"]      layer from which on the phase 1 model is right
    alpha     speed_weight                  what a layer costs, in nats of cross entropy
    K         REPLICAS                      exits drawn for each sample; all of them share one pass of the encoder
    P(l)      exp(log_leaving)              the last exit answers whatever its own policy says
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import policy
from eeutils.models.backbone import Backbone, load_backbone
from eeutils.models.cost import linear_flops
from eeutils.models.exits import Exit, MultiExitModel, Pooler
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.papers import pabee
from eeutils.training.crossfit import out_of_fold
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.method import Method, Notes, Options
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting

REPLICAS = 8
HIDDEN = 32  # width of a policy network
OPERATING_POINT = 0.5  # the threshold on the policy that the method is trained for
FOLDS = 3  # models of phase 1 that judge the training samples when memorized layers are cross-fitted
POLICY_RATE = 3.0  # of phase 2, times that of heads: the authors' 3e-4 is for thousands of steps

Hardness = Literal["memorized", "constant"]
Gradient = Literal["sampled", "exact"]


@dataclass(frozen=True)
class ConsistentOptions(Options):
    """What may be varied.

    Attributes:
        speed_weight: alpha, what a layer costs.
        hardness: "memorized" charges a sample for depth the less, the later it was memorized; "constant" all alike.
        gradient: "sampled" is REINFORCE, "exact" the expectation that it estimates.
        consistent: whose cross entropy counts in phase 3; "one exit" is the paper's, "all exits" keeps phase 1's.
        memorized: by the model that was trained on a sample ("in-sample", the paper's) or by models that were not.
    """

    speed_weight: float = 0.15
    hardness: Hardness = "memorized"
    gradient: Gradient = "sampled"
    consistent: Literal["one exit", "all exits"] = "one exit"
    memorized: Literal["in-sample", "cross-fitted"] = "in-sample"

    def __post_init__(self) -> None:
        if not self.speed_weight >= 0:
            raise InputError(f"speed_weight is what a layer costs, 0 or more; got {self.speed_weight}")


def policy_network(width: int, exits_left: int) -> nn.Sequential:
    """W2 gelu(W1 h): the logit of leaving here, where `exits_left` more exits follow.

    It starts near a probability of 1 / (exits_left + 1), so that all exits are tried equally often. At one half each,
    the twelfth exit would be tried once in 2,048 draws, and what is never tried is never learned.
    """
    network = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
    nn.init.constant_(network[-1].bias, -math.log(max(exits_left, 1)))
    return network


class PolicyExit(Exit):
    """An exit with a policy network beside its classifier.

    Extras: "policy" (B,), the probability to leave here, and "policy_logit" (B,), from which log-probabilities stay
    finite where the probability is 0 or 1 in floating point.
    """

    def __init__(self, width: int, classes: int, pool: str, pooler: nn.Module, exits_left: int) -> None:
        super().__init__(width, classes, pool, pooler)
        self.policy = policy_network(width, exits_left)

    def answer(self, vector: Float[Tensor, "batch width"]) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
        logit = self.policy(vector)[:, 0]
        # While the policy alone is trained, the reward is what the frozen classifier would earn in use: no dropout.
        read = self.dropout(vector) if self.classifier.training else vector
        return self.classifier(read), {"policy": logit.sigmoid(), "policy_logit": logit}

    def flops(self, tokens: Int[Tensor, " batch"]) -> int:
        return super().flops(tokens) + linear_flops(self.policy)


def build(setting: Setting, classes: int, options: ConsistentOptions) -> MultiExitModel:
    """PABEE's model with a policy network on every exit; an error for regression, where no exit is right or wrong."""
    if classes < 2:
        raise InputError(f"ConsistentEE asks which exits are right and task {setting.task!r} is a regression")
    backbone = load_backbone(setting.backbone)
    return MultiExitModel(backbone, policy_exits(backbone, classes, setting.pool))


def policy_exits(backbone: Backbone, classes: int, pool: str) -> dict[int, PolicyExit]:
    """PABEE's exits, named as PABEE's so that its weights find their places, each with a policy network.

    The last exit has one, too, as in the authors' code. Nobody asks it: the last exit always answers.
    """
    pooler, depth = Pooler(backbone), backbone.depth
    return {k: PolicyExit(backbone.width, classes, pool, pooler, depth - k) for k in range(1, depth + 1)}


def memorized_layers(evidence: Evidence) -> Int[Tensor, " samples"]:
    """ML(x): the layer of the first exit from which on all are right; the last layer if the last exit is wrong."""
    if evidence.labels is None:
        raise InputError("memorized layers need labels, and this evidence has none")
    right = evidence.predictions == evidence.labels
    right_to_the_end = right.flip(0).cumprod(dim=0).sum(dim=0)
    first = (evidence.stages - right_to_the_end).clamp(max=evidence.stages - 1)
    return torch.tensor(evidence.layers, device=first.device)[first]


def annotate(setting: Setting, options: ConsistentOptions) -> Notes:
    """The memorized layer of every training sample, as phase 1's model has it."""
    if options.memorized == "cross-fitted":
        evidence = out_of_fold(pabee.METHOD, setting, FOLDS, seed=setting.seed)
    else:
        evidence = load_or_train(pabee.METHOD, setting).train
    return {"memorized_layer": (evidence.ids, memorized_layers(evidence))}


def log_leaving(policy_logits: Float[Tensor, "stages batch"]) -> Float[Tensor, "stages batch"]:
    """log P(l), the log-probability to leave at each exit; over the exits the probabilities sum to 1."""
    before_the_last = policy_logits[:-1]
    passed = nn.functional.pad(logsigmoid(-before_the_last).cumsum(dim=0), (0, 0, 1, 0))
    return passed + nn.functional.pad(logsigmoid(before_the_last), (0, 0, 0, 1))


def draw_exits(policy_logits: Float[Tensor, "stages batch"], replicas: int) -> Int[Tensor, "replicas batch"]:
    """Stages (from 0) at which `replicas` copies of each sample leave, every exit asked in turn: Bernoulli(pi_l)."""
    leave = policy_logits[:-1].sigmoid().detach()
    stays = torch.rand(replicas, *leave.shape, device=leave.device) >= leave
    return stays.long().cumprod(dim=1).sum(dim=1)


def rewards(
    losses: Float[Tensor, "stages batch"],
    layers: tuple[int, ...],
    memorized_layer: Int[Tensor, " batch"],
    speed_weight: float,
    hardness: Hardness = "memorized",
) -> Float[Tensor, "stages batch"]:
    """R(l) = -CE_l - alpha (1 - ML / L) l for every exit; with "constant" hardness every layer costs alpha."""
    depth = torch.tensor(layers, dtype=losses.dtype, device=losses.device)[:, None]
    ease = 1 - memorized_layer / layers[-1] if hardness == "memorized" else torch.ones_like(memorized_layer)
    return -losses.detach() - speed_weight * ease.to(losses.dtype) * depth


def sampled_gradient(
    policy_logits: Float[Tensor, "stages batch"], reward: Float[Tensor, "stages batch"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "stages batch"]]:
    """REINFORCE: its loss, and the share of a sample's K replicas that took each exit.

    The baseline is the mean over a sample's own replicas, the one at hand included. So the expected gradient is
    (K - 1) / K times the exact one: a smaller step in the same direction.
    """
    exits = draw_exits(policy_logits, REPLICAS)
    gained = reward.gather(0, exits)
    loss = -((gained - gained.mean(dim=0)) * log_leaving(policy_logits).gather(0, exits)).mean()
    return loss, nn.functional.one_hot(exits, len(reward)).to(reward.dtype).mean(dim=0).T


def exact_gradient(
    policy_logits: Float[Tensor, "stages batch"], reward: Float[Tensor, "stages batch"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "stages batch"]]:
    """Minus the expected reward over all L exits, and P(l): what K replicas tend to as K grows, without their noise."""
    probability = log_leaving(policy_logits).exp()
    return -(probability * reward).sum(dim=0).mean(), probability.detach()


ESTIMATES = {"sampled": sampled_gradient, "exact": exact_gradient}


def policy_loss(
    options: ConsistentOptions, with_model: bool, model: MultiStageModel, answers: Answers, batch: Batch
) -> Tensor:
    """The loss of phase 2, and of phase 3 (`with_model`), in which cross entropy counts beside it.

    For "one exit" it is that of the exits that the replicas took (or, with the exact gradient, of each exit as likely
    as it is taken). It has no say in which exit is taken, that is the reward's affair: no gradient runs from it into
    the policy.
    """
    losses = answer_loss(answers.logits, batch.labels)
    reward = rewards(losses, model.layers, batch.notes["memorized_layer"], options.speed_weight, options.hardness)
    loss, taken = ESTIMATES[options.gradient](answers.extras["policy_logit"], reward)
    if not with_model:
        return loss
    if options.consistent == "one exit":
        return loss + (taken * losses).sum(dim=0).mean()
    return loss + pabee.weighted_loss(model, answers, batch)


def policies(model: MultiExitModel) -> list[nn.Module]:
    """All that phase 2 trains."""
    return [model.exit_at(stage).policy for stage in range(model.stages)]


def phases(options: ConsistentOptions) -> list[Phase]:
    """Phases 2 and 3; phase 1 is PABEE, which this starts from.

    Phase 2 takes as many steps as phase 1, for in one epoch of few samples the policies hardly learn to tell samples
    apart; phase 3 takes one epoch, as in one of the authors' scripts.
    """
    alone, together = (partial(policy_loss, options, with_model) for with_model in (False, True))
    return [
        Phase("policy", alone, policies, rate=POLICY_RATE),
        Phase("policy and model", together, epochs=1),
    ]


METHOD = Method(
    name="consistentee",
    title="ConsistentEE",
    citation="Zeng et al., ConsistentEE: A Consistent and Hardness-Guided Early Exiting Method, AAAI 2024",
    build=build,
    phases=phases,
    rules={"policy": policy()},
    options=ConsistentOptions(),
    annotate=annotate,
    starts_from=pabee.METHOD,
)
