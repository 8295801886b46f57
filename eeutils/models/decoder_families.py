"""How each family of decoders is run: where its parts are, and what differs before the first layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the positions, (B, T, d) each."""
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DecoderLayer:
    """The parts of one layer.

    Attributes:
        norm: before attention.
        query: normed states (..., D) -> (..., heads d).
        key_value: normed states -> keys and values, each (..., key-value heads d).
        output: what the heads gathered -> (..., D), added to the state.
        feed_forward: states (..., D) -> (..., D), its own norm included, added to the state.
        modules: where the layer's matrices are, for counting.
    """

    norm: Map
    query: Map
    key_value: Callable[[Tensor], tuple[Tensor, Tensor]]
    output: Map
    feed_forward: Map
    modules: nn.Module


@dataclass(frozen=True)
class DecoderFamily:
    """How one family of decoders is run.

    Attributes:
        embed: (model, token ids, positions) -> states before the first layer.
        angles: (model, states, positions) -> cosines and sines that turn queries and keys; None without.
        layers: model -> parts of its layers.
        norm: model -> the norm after the last layer.
        cut: (model, k) -> nothing; drops all layers but the first k.
    """

    embed: Callable[[PreTrainedModel, Tensor, Tensor], Tensor]
    angles: Callable[[PreTrainedModel, Tensor, Tensor], Angles | None]
    layers: Callable[[PreTrainedModel], list[DecoderLayer]]
    norm: Callable[[PreTrainedModel], nn.Module]
    cut: Callable[[PreTrainedModel, int], None]


def _llama_layers(model: PreTrainedModel) -> list[DecoderLayer]:
    def parts(layer: nn.Module) -> DecoderLayer:
        inner = layer.self_attn
        return DecoderLayer(
            layer.input_layernorm,
            inner.q_proj,
            lambda states: (inner.k_proj(states), inner.v_proj(states)),
            inner.o_proj,
            lambda states: layer.mlp(layer.post_attention_layernorm(states)),
            layer,
        )

    return [parts(layer) for layer in model.model.layers]


def _llama_angles(model: PreTrainedModel, states: Tensor, positions: Tensor) -> Angles:
    return model.model.rotary_emb(states, position_ids=positions)


def _cut_llama(model: PreTrainedModel, layers: int) -> None:
    model.model.layers = model.model.layers[:layers]


def _gpt2_layers(model: PreTrainedModel) -> list[DecoderLayer]:
    width = model.config.n_embd

    def parts(layer: nn.Module) -> DecoderLayer:
        fused = layer.attn.c_attn  # one map for queries, keys and values, stored (in, out)

        def query(states: Tensor) -> Tensor:
            return states @ fused.weight[:, :width] + fused.bias[:width]

        def key_value(states: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = (states @ fused.weight[:, width:] + fused.bias[width:]).chunk(2, dim=-1)
            return keys, values

        return DecoderLayer(
            layer.ln_1, query, key_value, layer.attn.c_proj, lambda states: layer.mlp(layer.ln_2(states)), layer
        )

    return [parts(layer) for layer in model.transformer.h]


def _embed_gpt2(model: PreTrainedModel, input_ids: Tensor, positions: Tensor) -> Tensor:
    return model.transformer.wte(input_ids) + model.transformer.wpe(positions)


def _cut_gpt2(model: PreTrainedModel, layers: int) -> None:
    model.transformer.h = model.transformer.h[:layers]


_LLAMA = DecoderFamily(
    lambda model, input_ids, positions: model.model.embed_tokens(input_ids),
    _llama_angles,
    _llama_layers,
    lambda model: model.model.norm,
    _cut_llama,
)
_GPT2 = DecoderFamily(
    _embed_gpt2,
    lambda model, states, positions: None,
    _gpt2_layers,
    lambda model: model.transformer.ln_f,
    _cut_gpt2,
)
DECODER_FAMILIES = {"llama": _LLAMA, "qwen2": _LLAMA, "gpt2": _GPT2}
"""transformers' name of a family -> how it is run."""
