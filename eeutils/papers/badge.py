"""BADGE: Speeding Up BERT Inference after Deployment via Block-wise Bypasses and Divergence-based Early Exiting (Zhu,
Wang, Ni, Xie and Wang, ACL 2023, industry track).

When all exits are trained together, what an early exit asks of a layer may not be what the later layers need of it. A
light bottleneck beside each block gives the exit a path of its own, so that the exit need not bend the trunk: what the
next block reads is the block's own output, never the bypass. A sample leaves when the distributions of neighbouring
exits have stopped diverging. The wiring of the bypass, the divergence and all numbers are known to us from the abstract
only: the three readings of the wiring and all kinds of divergence are settings here.

    bypass     B(x) = s W_up g(W_down x), rank r, W_up = 0 at the start       (our reading of "block-wise bypasses")
    parallel   exit l reads H_l + B_l(H_{l-1})                                (the default)
    serial     exit l reads H_l + B_l(H_l)
    stream     exit l reads H_l + s_l, s_l = s_{l-1} + B_l(H_l)
    loss       L = sum_l l L_l / sum_l l                                      (PABEE's, as in the same group's code)
    rule       leave at the first l with D(p_{l-1}, p_l) <= tau, else at the last

    symbol   variable            meaning
    H_l      state.hidden        output of block l, one vector a token; H_{l-1} is state.before
    B_l      BypassExit.bypass   the bypass of exit l; g is GELU
    s_l      state.carried       the side stream, pooled
    r        rank                width of the bottleneck
    s        scale               a constant, as in LoRA: a learning rate of the bypass's own
    D        rules.divergence    kind: which divergence; against: the previous exit, or mean or max over all earlier
    tau      -threshold          readiness is -D
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eeutils.errors import InputError
from eeutils.exiting.rules import AGAINST, DIVERGENCES, divergence, sustained
from eeutils.models.backbone import Hidden, load_backbone
from eeutils.models.cost import linear_flops
from eeutils.models.exits import Carried, Exit, ExitState, MultiExitModel, exits_on_all_layers, pool_tokens
from eeutils.papers.pabee import weighted_loss
from eeutils.training.loop import Phase
from eeutils.training.method import Method, Options
from eeutils.training.settings import Setting

Wiring = Literal["parallel", "serial", "stream", "wide-head", "none"]
"""The three readings of the wiring, the control with as many parameters in the head, and PABEE's model."""

WIRINGS: tuple[str, ...] = get_args(Wiring)


@dataclass(frozen=True)
class BadgeOptions(Options):
    """`wiring` of the bypass, its `rank` r and its `scale` s."""

    wiring: Wiring = "parallel"
    rank: int = 32
    scale: float = 4.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise InputError(f"the scale of a bypass is above 0; got {self.scale}; use wiring='none' for no bypass")
        if self.rank < 1:
            raise InputError(f"a bypass has a rank of 1 or more; got {self.rank}; use wiring='none' for no bypass")


class Bottleneck(nn.Module):
    """s W_up g(W_down x) with g = GELU and `rank` r; W_up starts at zero, so that it begins as nothing."""

    def __init__(self, width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def narrow(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape rank"]:
        """g(W_down x)."""
        return nn.functional.gelu(self.down(x))

    def widen(self, x: Float[Tensor, "*shape rank"]) -> Float[Tensor, "*shape width"]:
        """s W_up x."""
        return self.scale * self.up(x)

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        return self.widen(self.narrow(x))


class BypassExit(Exit):
    """A plain exit, whose parts it takes over, that also reads a bypass beside its block; the trunk never does."""

    def __init__(self, plain: Exit, options: BadgeOptions) -> None:
        width, classes = plain.classifier.in_features, plain.classifier.out_features
        super().__init__(width, classes, plain.pool, plain.pooler, plain.dropout.p)
        self.classifier, self.wiring = plain.classifier, options.wiring
        self.bypass = Bottleneck(width, options.rank, options.scale)

    def beside(self, state: ExitState) -> Float[Tensor, "batch width"]:
        """What the bypass adds to the pooled output of the block: B_l pooled, or the stream s_l.

        Pooling is linear, so W_up is applied once a sample after it rather than once a token before it.
        """
        source: Hidden = state.before if self.wiring == "parallel" else state.hidden
        if self.pool == "cls":
            added = self.bypass(source.states[:, 0])
        else:
            narrow = replace(source, states=self.bypass.narrow(source.states))
            added = self.bypass.widen(pool_tokens(narrow, self.pool))
        return added + state.carried["stream"] if "stream" in state.carried else added

    def read(self, state: ExitState) -> tuple[Float[Tensor, "batch width"], Carried]:
        beside = self.beside(state)
        vector = self.pooler(pool_tokens(state.hidden, self.pool) + beside)
        return vector, {"stream": beside} if self.wiring == "stream" else {}

    def flops(self, tokens: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The plain exit's, W_down on every token that is pooled, and W_up once."""
        pooled = torch.ones_like(tokens) if self.pool == "cls" else tokens
        return super().flops(tokens) + pooled * linear_flops(self.bypass.down) + linear_flops(self.bypass.up)


class WideExit(Exit):
    """The control: the parameters of a bypass spent in the head, v + s W_up g(W_down v) on the pooler's output v.

    Behind the pooler and not before it: with "cls" that would be the serial bypass itself.
    """

    def __init__(self, plain: Exit, options: BadgeOptions) -> None:
        width, classes = plain.classifier.in_features, plain.classifier.out_features
        super().__init__(width, classes, plain.pool, plain.pooler, plain.dropout.p)
        self.classifier, self.wide = plain.classifier, Bottleneck(width, options.rank, options.scale)

    def read(self, state: ExitState) -> tuple[Float[Tensor, "batch width"], Carried]:
        vector, carried = super().read(state)
        return vector + self.wide(vector), carried

    def flops(self, tokens: Int[Tensor, " batch"]) -> int:
        return super().flops(tokens) + linear_flops(self.wide)


def build(setting: Setting, classes: int, options: BadgeOptions) -> MultiExitModel:
    """PABEE's model with a bypass for every exit; with wiring "none" exactly PABEE's model.

    All wirings start from the same numbers in all that they share, and give the same answers before training.
    """
    backbone = load_backbone(setting.backbone)
    exits = exits_on_all_layers(backbone, classes, setting.pool, "shared")
    if options.wiring == "wide-head":
        exits = {layer: WideExit(plain, options) for layer, plain in exits.items()}
    elif options.wiring != "none":
        exits = {layer: BypassExit(plain, options) for layer, plain in exits.items()}
    return MultiExitModel(backbone, exits)


# Every kind of divergence against every choice of earlier exits; JSD first.
_KINDS = sorted(DIVERGENCES, key=lambda kind: kind != "jsd")
_RULES = [divergence(kind, against) for against in AGAINST for kind in _KINDS]

METHOD = Method(
    name="badge",
    title="BADGE",
    citation="Zhu et al., BADGE: Speeding Up BERT Inference after Deployment via Block-wise Bypasses and "
    "Divergence-based Early Exiting, ACL 2023 (industry track)",
    build=build,
    phases=lambda options: [Phase("joint", weighted_loss)],
    rules={rule.name: rule for rule in [*_RULES, *(sustained(rule, 2) for rule in _RULES)]},
    options=BadgeOptions(),
)
