"""Learning to Weight Samples for Dynamic Early-Exiting Networks (Han et al., ECCV 2022, arXiv 2209.08310): L2W-DEN.

At inference early exits answer the easy samples and late exits the hard ones, but in training every exit learns from
all samples alike. So a small network reads a sample's losses at all exits and says how much the sample weighs at each.
It learns from what its weights lead to: one half of a batch makes a pseudo-update of the model, and the other half
judges the model that came of it where each of its samples would leave under a budget. The model itself learns from the
weighted losses, the weights taken as constants; at inference nothing of this is left.

    weights   t_i = f(log(1 + l_i)) in (-1, 1)^K,  w_ik = 1 + eps (t_ik - mean t), the mean over the exits of a sample
              ("col"), over the samples of an exit ("row"), or over all ("mat")
    J         1 / (n K) sum_ik w_ik l_ik(theta), over half A
    pseudo    theta' = theta - rate grad J
    budget    p_k = q^k / sum_j q^j; at exit k the surest of those who are left leave, until p_1 + .. + p_k have left
    M         sum_k mean of l_ik(theta') over those who leave at k, over half B
    meta      dM / dw_ik = -rate / (n K) <grad l_ik(theta), grad M(theta')>: one forward-mode pass over A along grad M

    symbol   variable               meaning
    K        exits                  number of exits
    f        WeightNetwork          one hidden layer, tanh; starts at t = 0, where all weights are 1
    l_ik     losses[k - 1, i]       cross entropy of sample i at exit k
    w_ik     weights[k - 1, i]      its weight there
    theta    theta                  all parameters but those of f
    eps, q   eps, q                 how far weights may go; how fast the budget falls with depth
    rate     rate                   of the pseudo-update

What differs from the authors' code. The pseudo-update is a plain step of SGD, without momentum and without dropout,
while the model is trained by AdamW. f learns by the same AdamW, at the rate of heads, and weighs a step before it has
learned from it. A batch makes one step, both halves judging each other, where theirs makes two of half the size. Shares
of the budget are rounded in sum: one by one, the last exit would get a third of 16 samples. f learns in every
`interval`-th step alone, as in theirs on ImageNet (every 100th). Under several processes each makes its own
pseudo-updates, and f learns from their mean.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from accelerate.utils import reduce
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.rules import confidence, entropy
from eeutils.models.exits import MultiExitModel, Poolers
from eeutils.models.stages import Answers
from eeutils.models.trail import Trail
from eeutils.papers import pabee
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting

Parameters = dict[str, Tensor]
Heard = tuple[Float[Tensor, "exits batch"], Float[Tensor, "exits batch"]]
"""What f may read of a batch: the loss at every exit, and the largest probability there."""

AXES = {"col": (0,), "row": (1,), "mat": (0, 1)}
"""Over which axes of (exits, batch) the mean of t is taken off; the names are those of the authors' code."""


@dataclass(frozen=True)
class L2wOptions(Options):
    """What may be varied.

    Attributes:
        eps: how far weights may go; 0 is the plain mean of all losses. "col" keeps weights above 0 up to K / (2K - 2).
        q: of the budget; 1 sends equally many to each exit, less sends more out early.
        normalisation: over what the mean weight is 1.
        reads: what f reads of a sample at every exit.
        interval: every how many steps f learns.
        rate: of the pseudo-update.
        poolers: of the exits, as PABEE's option.
    """

    eps: float = 0.8
    q: float = 0.75
    normalisation: Literal["col", "row", "mat"] = "col"
    reads: Literal["losses", "confidences", "both"] = "losses"
    interval: int = 6  # then a training takes less than twice as long as without f
    rate: float = 1e-4  # the encoder's own; a plain step that is much larger overshoots, and M asks for the opposite
    poolers: Poolers = "own"

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise InputError(f"eps is how far weights may go from 1, a finite number of 0 or more; got {self.eps}")
        for name, value in (("q", self.q), ("rate", self.rate)):
            if not 0 < value < math.inf:
                raise InputError(f"{name} must be a finite number above 0; got {value}")
        if self.interval < 1:
            raise InputError(f"interval counts steps, 1 or more; got {self.interval}")


class WeightNetwork(nn.Module):
    """f and what makes weights of what it says."""

    def __init__(self, exits: int, options: L2wOptions) -> None:
        super().__init__()
        self.options = options
        read, hidden = exits * (2 if options.reads == "both" else 1), 100 * exits
        self.layers = nn.Sequential(nn.Linear(read, hidden), nn.ReLU(), nn.Linear(hidden, exits), nn.Tanh())
        for parameter in self.layers[2].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, losses: Float[Tensor, "exits batch"], confidences: Float[Tensor, "exits batch"]
    ) -> Float[Tensor, "exits batch"]:
        """w, the weight of each sample at each exit."""
        scaled = {"losses": [losses.log1p()], "confidences": [confidences], "both": [losses.log1p(), confidences]}
        t = self.layers(torch.cat(scaled[self.options.reads]).T).T.float()
        return 1 + self.options.eps * (t - t.mean(dim=AXES[self.options.normalisation], keepdim=True))


def build(setting: Setting, classes: int, options: L2wOptions) -> MultiExitModel:
    """PABEE's model, with f and a record of the weights that it gave.

    An error for regression, where nobody is the surest.
    """
    if classes < 2:
        raise InputError(
            f"L2W-DEN sends the surest samples out early and task {setting.task!r} is a regression, where one number "
            "is never sure; use pabee or berxit"
        )
    model = pabee.build(setting, classes, pabee.PabeeOptions(options.poolers))
    with torch.random.fork_rng(devices=[]):  # the exits start as PABEE's do with the same seed
        model.weight_network = WeightNetwork(model.stages, options)
    # Weights by exit of the easier and of the harder half of each batch. What it counts also says when f learns next.
    model.trail = Trail(2, model.stages)
    return model


def budget(q: float, exits: int) -> Float[Tensor, " exits"]:
    """p_k = q^k / sum_j q^j: the share of the samples that leaves at each exit."""
    powers = q ** torch.arange(1, exits + 1, dtype=torch.float64)
    return powers / powers.sum()


def simulated_exits(
    confidences: Float[Tensor, "exits batch"], shares: Float[Tensor, " exits"]
) -> Int[Tensor, " batch"]:
    """Where each sample leaves (from 0) when at each exit the surest of those who are left do, as many as the budget
    has there."""
    exits, samples = confidences.shape
    ends = (samples * shares.cumsum(dim=0)).round().long().tolist()
    stage, waiting = torch.full_like(confidences[0], exits - 1).long(), torch.ones_like(confidences[0]).bool()
    for k, count in enumerate(end - start for start, end in zip([0, *ends], ends[:-1], strict=False)):
        rank = confidences[k].masked_fill(~waiting, -1).argsort(descending=True, stable=True).argsort()
        leaving = waiting & (rank < count)
        stage, waiting = torch.where(leaving, k, stage), waiting & ~leaving
    return stage


def meta_loss(losses: Float[Tensor, "exits batch"], confidences: Float[Tensor, "exits batch"], q: float) -> Tensor:
    """M: at each exit the mean loss of those who leave there under the budget; one where nobody does counts 0."""
    stage = simulated_exits(confidences.detach(), budget(q, len(losses)))
    leaves = nn.functional.one_hot(stage, len(losses)).T.to(losses.dtype)
    return ((leaves * losses).sum(dim=1) / leaves.sum(dim=1).clamp(min=1)).sum()


def through_pseudo_update(
    heard_at: Callable[[Parameters], Heard],
    weigh: Callable[..., Tensor],
    judged_at: Callable[[Parameters], Tensor],
    theta: Parameters,
    rate: float,
) -> tuple[Heard, Float[Tensor, "exits batch"]]:
    """What half A hears at theta, and dM / dw of its weights.

    Args:
        heard_at: theta -> losses and confidences of half A.
        weigh: losses and confidences -> weights.
        judged_at: theta' -> M of half B.
        theta: where all starts.
        rate: of the pseudo-update.
    """

    def weighted(parameters: Parameters) -> tuple[Tensor, Heard]:
        heard = heard_at(parameters)
        return (weigh(*(each.detach() for each in heard)) * heard[0]).mean(), heard

    with torch.no_grad():  # of the parameters as such: grad and jvp take their own derivatives
        step, heard = grad(weighted, has_aux=True)(theta)
        towards = grad(judged_at)({name: theta[name] - rate * step[name] for name in theta})
        # The fused kernels have no forward mode; and torch scripts its own formulas for it, which it calls deprecated.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            along = jvp(lambda parameters: heard_at(parameters)[0], (theta,), (towards,))[1]
        return heard, -rate / along.numel() * along


def learn_to_weigh(options: L2wOptions, model: MultiExitModel, batch: Batch) -> None:
    """The meta step: lays the gradient of M with respect to f where the optimizer will find it, and touches nothing
    else."""
    network, own = model.weight_network, "weight_network."
    theta = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad and not name.startswith(own)}

    def heard_at(rows: slice, parameters: Parameters) -> Heard:
        inputs = tuple(None if part is None else part[rows] for part in batch.inputs)
        logits = functional_call(model, parameters, inputs).logits.float()
        return answer_loss(logits, batch.labels[rows]), logits.softmax(dim=-1).amax(dim=-1)

    # Every other sample: a batch is in order of length. One sample alone has no halves.
    halves = (slice(0, None, 2), slice(1, None, 2))
    gradient = [torch.zeros_like(parameter) for parameter in network.parameters()]
    model.eval()
    for ours, others in (halves, halves[::-1]) if len(batch.labels) > 1 else ():
        judged_at = lambda parameters, rows=others: meta_loss(*heard_at(rows, parameters), options.q)  # noqa: E731
        heard, towards = through_pseudo_update(partial(heard_at, ours), network, judged_at, theta, options.rate)
        found = torch.autograd.grad(network(*heard), network.parameters(), towards.float() / 2)
        gradient = [sum(each) for each in zip(gradient, found, strict=True)]
    model.train()
    for parameter, each in zip(network.parameters(), gradient, strict=True):
        parameter.grad = reduce(each, "mean")


def weighted_loss(options: L2wOptions, model: MultiExitModel, answers: Answers, batch: Batch) -> Tensor:
    """The real step's loss: the mean of w_ik l_ik over samples and exits, w taken as constants. Before it, in every
    `interval`-th step, f learns."""
    losses = answer_loss(answers.logits, batch.labels)
    if options.eps > 0 and int(model.trail.taken) % options.interval == 0:
        learn_to_weigh(options, model, batch)
    with torch.no_grad():
        weights = model.weight_network(losses, answers.logits.softmax(dim=-1).amax(dim=-1))
        by_ease = weights[:, losses.mean(dim=0).argsort()]
        cut = max(len(batch.labels) // 2, 1)
        model.trail.add(torch.stack([by_ease[:, :cut].mean(dim=1), by_ease[:, -cut:].mean(dim=1)]))
    return (weights * losses).mean()


@torch.inference_mode()
def weights_of(model: MultiExitModel, evidence: Evidence) -> Float[Tensor, "exits samples"]:
    """What the trained f says of labelled samples, from what the model was recorded to say of them."""
    logits, device = evidence.logits, next(model.parameters()).device
    heard = answer_loss(logits, evidence.labels), logits.softmax(dim=-1).amax(dim=-1)
    return model.weight_network(*(each.to(device) for each in heard)).cpu()


METHOD = Method(
    name="l2w",
    title="L2W-DEN",
    citation="Han et al., Learning to Weight Samples for Dynamic Early-Exiting Networks, ECCV 2022",
    build=build,
    phases=lambda options: [Phase("joint", partial(weighted_loss, options))],
    rules={"confidence": confidence(), "entropy": entropy()},
    options=L2wOptions(),
)
