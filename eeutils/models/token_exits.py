"""Exits on some layers of a decoder: every token that is written may leave at one of them.

An exit shares the model's last norm and head, which are too large to have often, and owns a low-rank map of the state
before them. The prompt always runs in full, so the first word comes from the top. A unit is a token that has been
written, and what its stages say is the next word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eeutils.data.prompts import padded_left
from eeutils.errors import InputError
from eeutils.models.cost import Spent, exact
from eeutils.models.decoder import Cache, Decoder, Flow
from eeutils.models.stages import Answer, MultiStageModel


class LowRankMap(nn.Module):
    """h + U V h, which begins as h itself.

    Args:
        width: D.
        rank: rows of V and columns of U.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, states: Float[Tensor, "*units width"]) -> Float[Tensor, "*units width"]:
        return states + self.up(self.down(states))


@dataclass(frozen=True)
class TokenCosts:
    """What one token spends, in FLOPs; matrix products only, as in `cost`. A look of CALM's classifier, one product
    with a vector, is left out: it is a six-thousandth of a layer.

    Attributes:
        layer: one layer, but for what depends on how many tokens are seen.
        per_key: that, for each token seen.
        fill: keys and values of one layer, made of a state that has left.
        head: one look through the head, over all words.
        exit: an exit's own map.
        width: D.
    """

    layer: int
    per_key: int
    fill: int
    head: int
    exit: int
    width: int

    @classmethod
    def of(cls, decoder: Decoder, rank: int = 0) -> TokenCosts:
        """Those of a decoder with exits of that rank."""
        matrices = [weight for weight in decoder.layers[0].modules.parameters() if weight.dim() == 2]
        inner = decoder.heads * decoder.head_width
        key_heads = getattr(decoder.model.config, "num_key_value_heads", None) or decoder.heads
        return cls(
            layer=2 * sum(weight.numel() for weight in matrices),
            per_key=4 * inner,
            fill=4 * decoder.width * key_heads * decoder.head_width,
            head=2 * decoder.vocabulary * decoder.width,
            exit=4 * decoder.width * rank,
            width=decoder.width,
        )

    def layers(self, run: Tensor | int, keys: Tensor) -> Tensor:
        """`run` layers of tokens that see so many tokens each, themselves included."""
        return run * (self.layer + self.per_key * exact(keys))

    def shortlist(self, words: int) -> int:
        """A look through the head cut to so many words."""
        return 2 * words * self.width


@dataclass(frozen=True)
class TokenState:
    """The tokens of a batch on their way: which of them are units, and which have left.

    Attributes:
        flow: the tokens.
        units: (B, T), the tokens whose next word is asked for.
        left: (B, T), those that are frozen.
        stage_states: (units, D), the units' states at the stage before; those of the embeddings before the first.
    """

    flow: Flow
    units: Bool[Tensor, "batch tokens"]
    left: Bool[Tensor, "batch tokens"]
    stage_states: Float[Tensor, "units width"]


class TokenExitModel(MultiStageModel):
    """A decoder with exits on some layers; the top always answers.

    `forward` takes token ids, mask and token types as `Batch.inputs` gives them: 1 where a text is to be written. Its
    units are the tokens before such a one, row by row. `leave` freezes units; their rows stay.

    Args:
        decoder: the model.
        exits: layers (from 1) with an exit, the top not among them.
        rank: of the exits' maps.

    Raises:
        InputError: an exit on a layer that is not there or at the top.
    """

    def __init__(self, decoder: Decoder, exits: Sequence[int] = (), rank: int = 64) -> None:
        super().__init__()
        if not all(1 <= layer < decoder.depth for layer in exits) or len(set(exits)) < len(exits):
            raise InputError(
                f"exits stand on different layers from 1 to {decoder.depth - 1}, below the top; got {list(exits)}"
            )
        self.decoder = decoder
        self.layers = (*sorted(exits), decoder.depth)
        self.reference_layers, self.classes = decoder.depth, decoder.vocabulary
        self.maps = nn.ModuleDict({str(layer): LowRankMap(decoder.width, rank) for layer in self.layers[:-1]})
        self.costs = TokenCosts.of(decoder, rank)
        self.judge: nn.Linear | None = None
        """CALM's classifier, one for all layers: will this layer say what the top says? Set by whoever trains it."""

    def only(self, exits: Sequence[int]) -> TokenExitModel:
        """The same weights with some of the exits only.

        Raises:
            InputError: a layer without an exit.
        """
        if missing := sorted(set(exits) - set(self.layers[:-1])):
            raise InputError(f"there is no exit on layer {missing[0]}; exits stand on {list(self.layers[:-1])}")
        rank = self.maps[str(self.layers[0])].down.out_features if exits else 1
        other = TokenExitModel(self.decoder, exits, rank)
        other.maps = nn.ModuleDict({str(layer): self.maps[str(layer)] for layer in other.layers[:-1]})
        other.judge, other.reference_layers = self.judge, self.reference_layers
        return other.train(self.training)

    def begin(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, cache: Cache | None = None
    ) -> TokenState:
        flow = self.decoder.embed(input_ids, attention_mask.bool(), cache)
        units = nn.functional.pad(token_type_ids[:, 1:] == 1, (0, 1))
        return TokenState(flow, units, torch.zeros_like(units), flow.states[units])

    def layers_read(self, input_ids: Tensor, mask: Tensor) -> Int[Tensor, "batch tokens"] | None:
        """How many layers each token of a prompt runs while it is read, padding on the left; None where all run all."""
        return None

    def reading_flops(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, " prompts"]:
        """What reading each prompt costs, the look for its first word included: known before anything runs."""
        input_ids, mask = padded_left(prompts, self.decoder.head_weight.device)
        costs, depth, read = self.costs, self.decoder.depth, self.layers_read(input_ids, mask)
        run = depth if read is None else read
        spent = costs.layers(run, mask.cumsum(dim=1)) + (depth - run) * costs.fill
        return exact((spent * mask).sum(dim=1) + costs.head)

    def run_to(self, stage: int, state: TokenState) -> TokenState:
        """The layers of that stage, on whoever has not left."""
        flow, frozen = state.flow, bool(state.left.any())
        for layer in range(self.layers[stage - 1] if stage else 0, self.layers[stage]):
            flow = self.decoder.run_layer(layer, flow, ~state.left if frozen else None)
        return replace(state, flow=flow)

    def step(self, stage: int, state: TokenState) -> tuple[TokenState, Answer]:
        state = self.run_to(stage, state)
        states = state.flow.states[state.units]
        first = self.layers[stage - 1] if stage else 0
        spent = self.costs.layers(self.layers[stage] - first, state.flow.keys[state.units])
        run = torch.full_like(spent, self.layers[stage] - first)
        own = self.costs.exit if stage < self.stages - 1 else 0
        known = self.signals(stage, state.stage_states, states)
        answer = Answer(self.say(stage, states), Spent(run, spent + self.costs.head + own), known)
        return replace(state, stage_states=states), answer

    def say(self, stage: int, states: Float[Tensor, "*units width"]) -> Float[Tensor, "*units words"]:
        """What the exit of a stage says of states after its layer."""
        return self.decoder.read(self.mapped(stage, states))

    def mapped(self, stage: int, states: Float[Tensor, "*units width"]) -> Float[Tensor, "*units width"]:
        """States through the exit's own map; the top has none."""
        return states if stage == self.stages - 1 else self.maps[str(self.layers[stage])](states)

    def signals(
        self, stage: int, before: Float[Tensor, "units width"], states: Float[Tensor, "units width"]
    ) -> dict[str, Tensor]:
        """What may be known without asking the head, from the states at the stage before and at this one."""
        known = {"similarity": nn.functional.cosine_similarity(states, before, dim=-1)}
        if self.judge is not None:
            known["sure"] = self.judge(states)[:, 0].sigmoid()
        return known

    def leave(self, state: TokenState, done: Bool[Tensor, " units"]) -> TokenState:
        left = state.left.clone()
        left[state.units] |= done
        return replace(state, left=left)

    def reference(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Spent:
        units = nn.functional.pad(token_type_ids[:, 1:] == 1, (0, 1))
        keys = attention_mask.cumsum(dim=1)[units]
        flops = self.costs.layers(self.reference_layers, keys) + self.costs.head
        return Spent(torch.full_like(flops, self.reference_layers), flops)


def next_words(
    input_ids: Int[Tensor, "batch tokens"], token_type_ids: Int[Tensor, "batch tokens"]
) -> Int[Tensor, " units"]:
    """The word that each unit should say: that of the token behind it."""
    return input_ids[:, 1:][token_type_ids[:, 1:] == 1]
