"""Any Hugging Face decoder of the Llama or GPT-2 family as embeddings, a list of layers, and a head.

Owning the loop over the layers is what lets a token leave between two of them. A token that has left is *frozen*: its
state is carried up, and the keys and values that later tokens look for in the layers above are made of that state, with
each layer's own norm and projections ("state copying": CALM, ConsistentEE). The same mechanism runs all tokens of a
text at once or one after the other with a cache, and both give the same states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from eeutils.data.sources import fetch
from eeutils.errors import InputError, unknown
from eeutils.models.backbone import _quiet
from eeutils.models.decoder_families import DECODER_FAMILIES, Angles, DecoderLayer
from eeutils.models.gguf import from_gguf
from eeutils.models.tiny import tiny_decoder

TINY = "tiny-random"
OFFLINE_DECODERS = {
    "smollm2-135m": "SmolLM2-135M-Instruct, its weights quantised to four bits",
    TINY: "a random decoder of four layers, which knows nothing and shows that everything runs",
}
"""Decoders that come from the package index, and what must be said wherever one is named."""


class Cache:
    """Keys and values of the tokens so far, layer by layer, in columns that all rows of a batch share.

    Args:
        layers: how many layers.
        mask: (B, T), true on the real tokens of the columns that are about to be written.
        room: how many further columns may follow.
        forgetful: leave holes where tokens have left, so that later ones do not see them there: a control.
    """

    def __init__(self, layers: int, mask: Bool[Tensor, "batch tokens"], room: int, forgetful: bool = False) -> None:
        self.length = 0
        """Columns that hold tokens."""
        self.mask = nn.functional.pad(mask, (0, room), value=True)
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._holes = [torch.zeros_like(self.mask) for _ in range(layers)] if forgetful else None

    @property
    def room(self) -> int:
        """How many columns there are, used or not."""
        return self.mask.shape[1]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, heads, T, d) behind the columns that hold tokens; all keys and values up to there."""
        end = self.length + keys.shape[2]
        if self._keys[layer] is None:
            shape = (*keys.shape[:2], self.room, keys.shape[3])
            self._keys[layer], self._values[layer] = keys.new_zeros(shape), values.new_zeros(shape)
        self._keys[layer][:, :, self.length : end] = keys
        self._values[layer][:, :, self.length : end] = values
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def dig(self, layer: int, active: Bool[Tensor, "batch tokens"]) -> None:
        """Where a forgetful cache has holes: the columns that were just written for tokens that have left."""
        if self._holes is not None:
            self._holes[layer][:, self.length : self.length + active.shape[1]] = ~active

    def seen(self, layer: int, sees: Tensor | None, end: int) -> Tensor | None:
        """Where tokens may look at a layer, holes left out."""
        if self._holes is None:
            return sees
        whole = ~self._holes[layer][:, None, None, :end]
        return whole if sees is None else sees & whole

    def advance(self, tokens: int) -> None:
        """All layers have written so many columns."""
        self.length += tokens

    def crop(self, length: int) -> None:
        """Forget the columns from `length` on."""
        self.length = min(self.length, length)

    def take(self, rows: Tensor) -> Cache:
        """The same for some rows, as a copy of its own: several may go on from one prompt."""
        other = Cache(0, self.mask[rows], 0)
        other.length = self.length
        other._keys = [None if keys is None else keys[rows] for keys in self._keys]
        other._values = [None if values is None else values[rows] for values in self._values]
        other._holes = None if self._holes is None else [holes[rows] for holes in self._holes]
        return other

    def lengths(self) -> Int[Tensor, " batch"]:
        """(B,) real tokens of each row."""
        return self.mask[:, : self.length].sum(dim=1)


@dataclass(frozen=True)
class Flow:
    """The tokens that are on their way through the layers.

    Attributes:
        states: (B, T, D).
        mask: (B, T), true on real tokens.
        angles: of their positions, or None.
        sees: (B, 1, T, keys) bool, where each token may look.
        keys: (B, T), how many real tokens each one sees, itself included: what its attention costs.
        cache: where keys and values are kept and found; None where all tokens run at once.
    """

    states: Float[Tensor, "batch tokens width"]
    mask: Bool[Tensor, "batch tokens"]
    angles: Angles | None
    sees: Bool[Tensor, "batch 1 tokens keys"] | None
    keys: Int[Tensor, "batch tokens"]
    cache: Cache | None = None


class Decoder(nn.Module):
    """A Hugging Face decoder, run layer by layer; in full it equals the family's own model.

    Args:
        model: the decoder with its head (`AutoModelForCausalLM`).

    Raises:
        InputError: the family is not one whose layers this package knows how to run.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        if model.config.model_type not in DECODER_FAMILIES:
            raise unknown("decoder family", model.config.model_type, DECODER_FAMILIES)
        if getattr(model.config, "use_sliding_window", False):
            raise InputError("this decoder looks at a sliding window of tokens only; use one without")
        self.model = model
        self.family = DECODER_FAMILIES[model.config.model_type]
        self.layers = self.family.layers(model)
        config = model.config
        self.width: int = config.hidden_size
        """D, the width of a token's state."""
        self.vocabulary: int = config.vocab_size
        """V, the number of words that the head chooses from."""
        self.context: int = config.max_position_embeddings
        """How many tokens a text may have."""
        self.heads: int = config.num_attention_heads
        self._key_heads: int = getattr(config, "num_key_value_heads", None) or self.heads
        self.head_width: int = getattr(config, "head_dim", None) or self.width // self.heads

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.layers)

    @property
    def head_weight(self) -> Float[Tensor, "words width"]:
        """The head's matrix, which is that of the embeddings where they are tied."""
        return self.model.get_output_embeddings().weight

    def embed(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"] | None = None,
        cache: Cache | None = None,
    ) -> Flow:
        """The tokens before the first layer; behind those in the cache, if one is given. Padding may stand on either
        side of a text.

        Raises:
            InputError: more tokens than the model has positions.
        """
        mask = torch.ones_like(input_ids).bool() if mask is None else mask
        before = 0 if cache is None else cache.length
        known = mask
        if cache is not None:
            cache.mask[:, before : before + mask.shape[1]] = mask
            known = cache.mask[:, : before + mask.shape[1]]
        count = known.cumsum(dim=1)[:, before:]
        if before + input_ids.shape[1] > self.context:
            raise InputError(
                f"a text of {before + input_ids.shape[1]} tokens does not fit a context of {self.context}; cut it"
            )
        positions = (count - 1).clamp(min=0)
        states = self.family.embed(self.model, input_ids, positions)
        # One token that sees every column needs no mask.
        alone = input_ids.shape[1] == 1 and bool(known.all())
        sees = None if alone else _sees(known, before)
        return Flow(states, mask, self.family.angles(self.model, states, positions), sees, count, cache)

    def run_layer(self, layer: int, flow: Flow, active: Bool[Tensor, "batch tokens"] | None = None) -> Flow:
        """Layer number `layer` (from 0), on all tokens or on the active ones only; the others keep their state, and
        give keys and values made of it."""
        parts = self.layers[layer]
        normed = parts.norm(flow.states)
        keys, values = self._keys_and_values(parts, normed, flow)
        if flow.cache is not None:
            keys, values = flow.cache.write(layer, keys, values)
            if active is not None:
                flow.cache.dig(layer, active)
            sees = flow.cache.seen(layer, flow.sees, keys.shape[2])
        else:
            sees = flow.sees
        if active is None:
            queries = self._turned(self._split(parts.query(normed), self.heads), flow.angles)
            attended = flow.states + parts.output(self._attend(queries, keys, values, sees))
            return replace(flow, states=attended + parts.feed_forward(attended))
        places = active.nonzero(as_tuple=True)
        if len(places[0]) == 0:
            return flow
        packed = flow.states[places]
        asked = parts.query(normed[places])
        queries = asked.new_zeros(*active.shape, asked.shape[-1]).index_put(places, asked)
        queries = self._turned(self._split(queries, self.heads), flow.angles)
        attended = packed + parts.output(self._attend(queries, keys, values, sees)[places])
        after = attended + parts.feed_forward(attended)
        return replace(flow, states=flow.states.index_put(places, after.to(flow.states.dtype)))

    def fill(self, layer: int, flow: Flow) -> None:
        """Only the keys and values of that layer, for tokens all of which have left."""
        parts = self.layers[layer]
        flow.cache.write(layer, *self._keys_and_values(parts, parts.norm(flow.states), flow))
        flow.cache.dig(layer, torch.zeros_like(flow.mask))

    def read(self, states: Float[Tensor, "*units width"]) -> Float[Tensor, "*units words"]:
        """What the head says of states, the last norm before it."""
        return self.say_normed(self.norm(states))

    def say_normed(self, normed: Float[Tensor, "*units width"]) -> Float[Tensor, "*units words"]:
        """What the head says of states behind the last norm."""
        return self.model.get_output_embeddings()(normed)

    def norm(self, states: Float[Tensor, "*units width"]) -> Float[Tensor, "*units width"]:
        """The norm after the last layer."""
        return self.family.norm(self.model)(states)

    def forward(
        self, input_ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens words"]:
        """The logits of every token, as the Hugging Face model gives them."""
        flow = self.embed(input_ids, mask)
        for layer in range(self.depth):
            flow = self.run_layer(layer, flow)
        return self.read(flow.states)

    def truncate(self, layers: int) -> Decoder:
        """Keep the first `layers` layers only, in place."""
        if not 1 <= layers <= self.depth:
            raise InputError(f"cannot keep {layers} layers of a decoder that has {self.depth}")
        self.family.cut(self.model, layers)
        self.layers = self.layers[:layers]
        return self

    def _split(self, flat: Tensor, heads: int) -> Tensor:
        return flat.unflatten(-1, (heads, -1)).transpose(1, 2)

    def _keys_and_values(self, parts: DecoderLayer, normed: Tensor, flow: Flow) -> tuple[Tensor, Tensor]:
        keys, values = (self._split(flat, self._key_heads) for flat in parts.key_value(normed))
        return self._turned(keys, flow.angles), values

    def _turned(self, vectors: Tensor, angles: Angles | None) -> Tensor:
        """Rotary positions."""
        if angles is None:
            return vectors
        one, other = vectors.chunk(2, dim=-1)
        return vectors * angles[0][:, None] + torch.cat([-other, one], dim=-1) * angles[1][:, None]

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, sees: Tensor | None) -> Tensor:
        groups = self.heads // self._key_heads
        if groups > 1:
            keys, values = (part[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for part in (keys, values))
        gathered = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=sees)
        return gathered.transpose(1, 2).flatten(2)


def _sees(known: Bool[Tensor, "batch keys"], before: int) -> Bool[Tensor, "batch 1 tokens keys"]:
    """Where the tokens behind the first `before` columns may look: at real ones up to themselves. Padding looks at
    itself, for something must be looked at."""
    place = torch.arange(known.shape[1], device=known.device)
    causal = place[None] <= place[before:, None]
    itself = place[None] == place[before:, None]
    return ((known[:, None] & causal) | itself)[:, None]


def resolve_decoder(name: str) -> str:
    """The folder or hub name from which `transformers` can load the decoder called `name`."""
    if name == TINY:
        return str(tiny_decoder())
    return str(from_gguf(fetch(name) / "model.gguf")) if name in OFFLINE_DECODERS else name


def load_decoder(name: str) -> Decoder:
    """Load a decoder by its offline name, a folder, or a hub name, in single precision.

    Raises:
        InputError: nothing is found under that name, or the family is not known.
    """
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(resolve_decoder(name), dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(name, error) from error
    return Decoder(model.eval())


def load_decoder_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a decoder; its end token pads where it has no other.

    Raises:
        InputError: nothing is found under that name.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_decoder(name))
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_decoder(name: str) -> None:
    """Fail early when a decoder cannot be had or its family is not known.

    Raises:
        InputError: as `load_decoder` does, without reading the weights.
    """
    if name in OFFLINE_DECODERS:
        return
    try:
        family = AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    if family not in DECODER_FAMILIES:
        raise unknown("decoder family", family, DECODER_FAMILIES)


def _not_loaded(name: str, error: Exception) -> InputError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    kind = "the folder" if Path(name).exists() else "a folder or hub name"
    return InputError(
        f"cannot load decoder {name!r} as {kind} ({first_line}); the offline decoders are: "
        f"{', '.join(sorted(OFFLINE_DECODERS))}; any other needs a folder with config.json, weights and tokenizer, or "
        "the hub"
    )
