"""SmartBERT: A Promotion of Dynamic Early Exiting Mechanism for Accelerating BERT Inference (Hu et al., IJCAI 2023,
arXiv 2303.09266).

Two ways to save layers in one model: a gate before every layer lets a sample skip it, and an exit behind every layer
lets it leave. Encoder, gates and the last exit learn first, with a term that rewards skipping and with gates that
decide (hard weights) from some point on, so that training meets the states that inference will. The encoder is then
frozen with its decisions, and the other exits learn to answer on the way. In both stages a contrastive term ties each
token's state to the same token's state one layer on.

    gate      g_l = sigmoid(w . attn(tanh(W h_{l-1}))): the probability to SKIP layer l
    weight    s_l = g_l (soft), or 1[g_l >= 1/2], whose gradient is taken to be that of g_l (hard)
    state     h_l = (1 - s_l) f_l(h_{l-1}) + s_l h_{l-1}
    stage 1   (1 - eta1) (CE(exit_L(h_L), y) + skip) + eta1 sum_{l<L} NCE(P_l h_{l-1}, P_{l+1} h_l)
              skip = lamada / sum_l mean g_l (published), or lamada mean (1 - s_l), a price on each layer that runs
    stage 2   (1 - eta2) sum_{l<L} CE(exit_l(x_l), y) + eta2 / (L - 2) sum_{l<L-1} NCE'(q_l, q_{l+1})
              x_l = f_l(h_{l-1}) on the path of the hard gates, q_l a map of the tokens that exit l attends to
    NCE       mean over tokens i of -log(e^{u_i.v_i / t} / sum_j e^{u_i.v_j / t}), unit vectors of one sentence, with
              temperature t; NCE' leaves the positive, j = i, out of the sum
    rule      skip layer l if g_l >= 1/2; else run it and leave if the entropy of exit l is below S; else at L

    symbol   variable              meaning
    g_l      extras["gate"]        probability to skip layer l
    s_l      extras["weight"]      how much of the state before the layer stays, in training
    lamada   lamada                weight of the skip term; the authors' spelling
    eta1,2   contrast_layers, contrast_exits
    t1, t2   TEMPERATURES
    P_l      input_maps            for stage 1's contrast; of q_l: exit_maps

What differs from the authors' code: the skip term may be a price; padding takes no part in the contrast; its last pair,
lost there by an off-by-one, counts; stage 2 runs the frozen encoder without dropout; the last weights are kept, where
the code keeps the epoch with the best dev score, soft ones included; exits and gates read the mean over tokens where
the encoder was made for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting.rules import entropy, unless_skipped
from eeutils.models.backbone import Backbone, Hidden, load_backbone
from eeutils.models.exits import Carried
from eeutils.models.gates import BlindGate, Gate, GatedModel
from eeutils.models.small_attention import INNER, AttentionExit
from eeutils.models.stages import Answers
from eeutils.papers.finetuned import last_exit_loss
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.method import Method, Options
from eeutils.training.runs import samples_of
from eeutils.training.settings import Setting

GATE_HEADS, EXIT_HEADS = 2, 4
TEMPERATURES = (0.5, 0.55)  # t1 of stage 1, t2 of stage 2
SOFT_SHARE = 0.6  # of the steps of stage 1, before weights are hard: three epochs of five

SkipTerm = Literal["published", "price"]
Weights = Literal["soft", "hard", "soft then hard"]


@dataclass(frozen=True)
class SmartOptions(Options):
    """What may be varied.

    Attributes:
        lamada: of the skip term, as in the authors' script.
        skip_term: "published" is lamada over the sum of the mean gates: it grows without bound as no gate opens at all,
            and hardly changes once some do. "price" charges each layer that runs, lamada / L.
        weights: of the states in stage 1; inference and stage 2 are always hard.
        contrast_layers, contrast_exits: eta1 and eta2.
        dropped: a control: no gates, and everybody skips these layers.
    """

    lamada: float = 0.04
    skip_term: SkipTerm = "published"
    weights: Weights = "soft then hard"
    contrast_layers: float = 0.01
    contrast_exits: float = 0.05
    dropped: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.lamada >= 0:
            raise InputError(f"lamada rewards skipping, 0 or more; got {self.lamada}")
        for name in ("contrast_layers", "contrast_exits"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"{name} is the contrast's share of a loss, from 0 to below 1; got {getattr(self, name)}"
                )


def contrast(
    ours: Float[Tensor, "batch tokens inner"],
    theirs: Float[Tensor, "batch tokens inner"],
    mask: Bool[Tensor, "batch tokens"],
    temperature: float,
    positive_counts: bool,
) -> Float[Tensor, " batch"]:
    """NCE of each sentence, the mean over its real tokens; without `positive_counts` NCE'.

    A sentence of one token has no other to be told from: its NCE' is 0.
    """
    ours, theirs = (nn.functional.normalize(side.float(), dim=-1) for side in (ours, theirs))
    alike = ours @ theirs.transpose(1, 2) / temperature
    positive = alike.diagonal(dim1=1, dim2=2)
    others = mask[:, None, :].expand_as(alike)
    if not positive_counts:
        others = others & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    # -1e4 and not minus infinity: where nobody is left, a gradient must not be NaN.
    each = (alike.masked_fill(~others, -1e4).logsumexp(dim=-1) - positive) * (mask & others.any(dim=-1))
    return each.sum(dim=1) / mask.sum(dim=1)


class SmartModel(GatedModel):
    """Gates, exits that attend, and the maps of the contrast, which are there for training alone.

    Extra in training: "contrast" (B,), NCE of this layer's input with that of the layer before while the encoder
    learns, NCE' of this exit's tokens with those of the exit before while exits do; 0 at the first stage.
    """

    def __init__(
        self, backbone: Backbone, classes: int, pool: str, gates: Sequence[nn.Module], soft_passes: int
    ) -> None:
        layers, width = range(1, backbone.depth + 1), backbone.width
        exits = {layer: AttentionExit(width, classes, pool, EXIT_HEADS) for layer in layers}
        super().__init__(backbone, exits, gates, soft_passes=soft_passes)
        self.input_maps = nn.ModuleList(_map(width) for _ in layers)
        self.exit_maps = nn.ModuleList(_map(INNER) for _ in layers)

    def watch(self, stage: int, before: Hidden, output: Hidden, carried: Carried) -> tuple[Carried, dict[str, Tensor]]:
        if self.shaping:
            mapped = self.input_maps[stage](before.states)
        else:
            mapped = self.exit_maps[stage](self.exit_at(stage).attention.reduced(output.states))
        loss = mapped.new_zeros(len(mapped), dtype=torch.float32)
        if stage:
            how = (TEMPERATURES[0], True) if self.shaping else (TEMPERATURES[1], False)
            loss = contrast(carried["mapped"], mapped, before.attention_mask, *how)
        return {"mapped": mapped}, {"contrast": loss}


def _map(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, INNER), nn.LayerNorm(INNER), nn.Tanh(), nn.Linear(INNER, INNER))


def build(setting: Setting, classes: int, options: SmartOptions) -> SmartModel:
    """A gate and an exit on every layer; an error for regression, where no exit knows how sure it is."""
    if classes < 2:
        raise InputError(f"SmartBERT leaves by the entropy of classes and task {setting.task!r} is a regression")
    backbone = load_backbone(setting.backbone)
    layers = range(1, backbone.depth + 1)
    if strangers := set(options.dropped) - set(layers):
        raise InputError(f"this encoder has layers 1 to {backbone.depth}; it cannot drop {sorted(strangers)}")
    if options.dropped:
        gates = [BlindGate(float(layer in options.dropped)) for layer in layers]
    else:
        gates = [Gate(backbone.width, setting.pool, GATE_HEADS) for _ in layers]
    steps = setting.epochs * -(-len(samples_of(setting, "train")) // setting.batch_size)
    soft = {"soft": sys.maxsize, "hard": 0, "soft then hard": round(SOFT_SHARE * steps)}
    return SmartModel(backbone, classes, setting.pool, gates, soft[options.weights])


def shaping_loss(options: SmartOptions, model: SmartModel, answers: Answers, batch: Batch) -> Tensor:
    """Stage 1: what the last exit says, the skip term, and the contrast between the inputs of layers."""
    gate, weight = answers.extras["gate"], answers.extras["weight"]
    skip = 1 / gate.mean(dim=1).sum() if options.skip_term == "published" else (1 - weight).mean()
    task = last_exit_loss(model, answers, batch) + options.lamada * skip
    contrasts = answers.extras["contrast"][1:].mean(dim=1).sum()
    return (1 - options.contrast_layers) * task + options.contrast_layers * contrasts


def exits_loss(options: SmartOptions, model: SmartModel, answers: Answers, batch: Batch) -> Tensor:
    """Stage 2: all exits but the last, which stage 1 has trained, and the contrast between neighbours among them."""
    task = answer_loss(answers.logits[:-1], batch.labels).mean(dim=1).sum()
    contrasts = answers.extras["contrast"][1:-1].mean(dim=1).sum() / max(model.stages - 2, 1)
    return (1 - options.contrast_exits) * task + options.contrast_exits * contrasts


def phases(options: SmartOptions) -> list[Phase]:
    """Both stages, each as long as the setting says."""
    return [
        Phase(
            "gates and encoder",
            partial(shaping_loss, options),
            lambda model: [model.backbone, model.gates, model.input_maps, model.exit_at(-1)],
        ),
        Phase(
            "exits",
            partial(exits_loss, options),
            lambda model: [model.exit_maps, *(model.exit_at(stage) for stage in range(model.stages - 1))],
        ),
    ]


METHOD = Method(
    name="smartbert",
    title="SmartBERT",
    citation="Hu et al., SmartBERT: A Promotion of Dynamic Early Exiting Mechanism for Accelerating BERT Inference, "
    "IJCAI 2023",
    build=build,
    phases=phases,
    rules={"entropy": unless_skipped(entropy())},
    options=SmartOptions(),
)
