"""A Simple Hash-Based Early Exiting Approach For Language Understanding and Generation (Sun et al., Findings of ACL
2022).

There are no internal classifiers and no rule: a fixed table says for every token, by its id, after which layer it
stops. From there on its state is frozen and carried up, still visible to the others as key and value, and one
classifier at the top reads what came of it. Nothing has to be computed to decide, so the cost is known before the
network runs, it works for regression, and training and inference stop the same tokens at the same layers. The paper
claims that this consistency matters more than how well the table estimates difficulty.

    state   h_i^l = Layer_l(h^{l-1})_i if l <= g(x_i), else h_i^{l-1};  keys and values of all tokens at every layer
    loss    cross entropy or squared error of the one answer, with g switched on
    cost    sum_l [ a_l (4 D^2 + 4 D F) + 4 T D^2 + 4 a_l T D ],  a_l tokens active in layer l

    symbol   variable                meaning
    g        TokenSchedule           token id -> last layer
    T        samples.lengths         tokens of a sentence
    a_l      HashExitModel.active    tokens that layer l runs on
    D, F     backbone.width          widths of a state and of the feed-forward layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eeutils.backbone import Backbone, Hidden, load_backbone, load_tokenizer
from eeutils.batching import Samples, batches
from eeutils.cost import embedding_flops, layer_flops
from eeutils.errors import InputError
from eeutils.evidence import Evidence, record
from eeutils.exits import Answer, Exit, ExitState, MultiStageModel, Pooler
from eeutils.method import Method
from eeutils.papers.finetuned import last_exit_loss
from eeutils.runs import samples_of
from eeutils.schedule import TokenSchedule, make_schedule, windows
from eeutils.settings import Setting
from eeutils.training import Phase


@dataclass(frozen=True)
class HashState:
    """The hidden states before the first layer, and how many layers each token will run."""

    hidden: Hidden
    layers: Int[Tensor, "batch tokens"]


class HashExitModel(MultiStageModel):
    """One encoder, one head, and a schedule that says where each token stops.

    Args:
        backbone: the encoder.
        head: the one exit, at the top.
        schedule: token id -> last layer.
        drawn: in training every batch takes a window of the schedule at random, all of `windows` alike, so that one
            model can be used with any of them.
        packed: compute active tokens only; without it every layer runs on all tokens and what it says of frozen ones is
            thrown away. The answers are the same: this is the reference that the packed form is held to.

    Raises:
        InputError: a schedule for another number of layers or another vocabulary.
    """

    def __init__(
        self, backbone: Backbone, head: Exit, schedule: TokenSchedule, drawn: bool = False, packed: bool = True
    ) -> None:
        super().__init__()
        vocabulary = backbone.config.vocab_size
        if (schedule.depth, len(schedule.ranks)) != (backbone.depth, vocabulary):
            raise InputError(
                f"a schedule for {schedule.depth} layers and {len(schedule.ranks)} token ids does not fit an encoder "
                f"of {backbone.depth} layers and {vocabulary} token ids; make it for this encoder"
            )
        self.backbone, self.head, self.drawn, self.packed = backbone, head, drawn, packed
        self.layers, self.reference_layers = (backbone.depth,), backbone.depth
        self._schedule = schedule
        # Saved with the weights: a trained model is of no use under another order.
        self.register_buffer("ranks", schedule.ranks.clone())

    @property
    def schedule(self) -> TokenSchedule:
        """The schedule in use."""
        return replace(self._schedule, ranks=self.ranks)

    def under(self, schedule: TokenSchedule, packed: bool = True) -> HashExitModel:
        """The same weights under another schedule."""
        other = HashExitModel(self.backbone, self.head, schedule, packed=packed)
        return other.to(self.ranks.device).train(self.training)

    def begin(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> HashState:
        schedule = self.schedule
        if self.training and self.drawn:
            family = windows(self.backbone.depth)
            schedule = schedule.window(*family[int(torch.randint(len(family), ()))])
        hidden = self.backbone.embed(input_ids, attention_mask, token_type_ids)
        return HashState(hidden, schedule.layers_of(input_ids, attention_mask))

    def step(self, stage: int, state: HashState) -> tuple[HashState, Answer]:
        hidden = before = state.hidden
        for layer in range(self.backbone.depth):
            before, active = hidden, state.layers > layer
            if self.packed:
                hidden = self.backbone.run_layer_on(layer, hidden, active)
            else:
                states = self.backbone.run_layer(layer, hidden).states
                hidden = replace(hidden, states=torch.where(active[..., None], states, hidden.states))
        answer, _ = self.head(ExitState(hidden, before))
        return replace(state, hidden=hidden), answer

    def select(self, state: HashState, rows: Int[Tensor, " rows"]) -> HashState:
        columns = state.hidden.attention_mask[rows].any(dim=0)
        return HashState(self.backbone.select(state.hidden, rows), state.layers[rows][:, columns])

    def active(self, samples: Samples) -> Int[Tensor, "layers samples"]:
        """a_l: how many tokens of each sample every layer runs on."""
        found, order, device = [], [], self.ranks.device
        for rows, batch in batches(samples, batch_size=256):
            layers = self.schedule.layers_of(batch.input_ids.to(device), batch.attention_mask.to(device)).cpu()
            found.append(torch.stack([(layers > layer).sum(dim=1) for layer in range(self.backbone.depth)]))
            order.append(rows)
        return torch.cat(found, dim=1)[:, torch.cat(order).argsort()]

    def layers_run(self, samples: Samples) -> Float[Tensor, "stages samples"]:
        """The mean over a sample's tokens of the layers that each one runs."""
        return (self.active(samples).sum(dim=0) / samples.lengths).double()[None]

    def cost(self, samples: Samples) -> Float[Tensor, "stages samples"]:
        active, tokens, width = self.active(samples).double(), samples.lengths, self.backbone.width
        # Of the whole layer, keys and values (4 T D^2) are for all tokens and the rest for the active ones.
        shared = 4 * tokens.double() * width**2
        share = active / tokens
        layers = torch.where(active > 0, shared + share * (layer_flops(self.backbone, tokens) - shared), 0.0)
        return (embedding_flops(self.backbone, tokens) + layers.sum(dim=0) + self.head.plain_flops)[None]

    def reference_cost(self, samples: Samples) -> Float[Tensor, " samples"]:
        layers = self.reference_layers * layer_flops(self.backbone, samples.lengths)
        return embedding_flops(self.backbone, samples.lengths) + layers + self.head.plain_flops


def as_stages(parts: Sequence[Evidence]) -> Evidence:
    """Several passes over the same samples, each under a schedule, as stages of one evidence: the cheapest first.

    Nobody passes from one stage to the next: each costs what its own pass does. With `rules.fixed()` the evidence is a
    trade-off curve, and reading it between two schedules sends a share of the samples through each.

    Raises:
        InputError: no part, or parts that are not one answer to the same samples.
    """
    if not parts or any(part.stages != 1 or not torch.equal(part.ids, parts[0].ids) for part in parts):
        raise InputError("schedules make a curve when each of them has answered the same samples once")
    by_cost = sorted(parts, key=lambda part: float(part.cost.mean()))

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in by_cost])

    layers = tuple(part.layers[0] for part in by_cost)
    return replace(
        by_cost[0], logits=joined("logits"), cost=joined("cost"), layers_run=joined("layers_run"), layers=layers
    )


def record_under(model: HashExitModel, schedules: Sequence[TokenSchedule], samples: Samples) -> Evidence:
    """One model's answers under several schedules, as `as_stages` gives them."""
    return as_stages([record(model.under(schedule), samples) for schedule in schedules])


def schedule_of(
    setting: Setting,
    function: str,
    buckets: str = "mass",
    first: int = 1,
    last: int | None = None,
    special_to_top: bool = True,
    backbone: Backbone | None = None,
) -> TokenSchedule:
    """A schedule from a setting's training split, for its encoder; see `make_schedule`."""
    backbone = load_backbone(setting.backbone) if backbone is None else backbone
    return make_schedule(
        function,
        samples_of(setting, "train"),
        backbone.model.get_input_embeddings().weight,
        backbone.depth,
        buckets=buckets,
        first=first,
        last=last,
        special=load_tokenizer(setting.backbone).all_special_ids if special_to_top else (),
        seed=setting.seed,
    )


def build(
    setting: Setting,
    classes: int,
    function: str = "frequency",
    buckets: str = "mass",
    first: int = 1,
    last: int | None = None,
    special_to_top: bool = True,
    drawn: bool = False,
) -> HashExitModel:
    """The plain model under a schedule."""
    backbone = load_backbone(setting.backbone)
    schedule = schedule_of(setting, function, buckets, first, last, special_to_top, backbone)
    head = Exit(backbone.width, classes, setting.pool, Pooler(backbone))
    return HashExitModel(backbone, head, schedule, drawn=drawn)


def phases(**_: object) -> list[Phase]:
    """One phase, the usual loss, the schedule switched on."""
    return [Phase("fine-tune", last_exit_loss)]


METHOD = Method(
    name="hashee",
    title="HashEE",
    citation="Sun et al., A Simple Hash-Based Early Exiting Approach For Language Understanding and Generation, "
    "Findings of ACL 2022",
    build=build,
    phases=phases,
    rules={},
    options={
        "function": "frequency",
        "buckets": "mass",
        "first": 1,
        "last": None,
        "special_to_top": True,
        "drawn": False,
    },
)
