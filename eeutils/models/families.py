"""How each family of encoders names its parts: all that differs between them stands here and nowhere else.

Families that do not fit. DeBERTa, DeBERTa-v2 and v3: what a position adds to a score depends on the query and on the
key there, by maps that every layer has for itself. So it is nothing that layers share, a layer on some tokens needs two
more products with 2 x 256 positions, and its cost has terms that `cost.layer_flops` has not: among them the maps of the
positions, which are paid once a batch, not once a sample. v2 has a convolution over neighbours after its first layer,
too. Funnel and other encoders that shorten the sentence on the way have no state of every token at every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from eeutils.errors import InputError

if TYPE_CHECKING:
    from eeutils.models.backbone import Hidden


Places = tuple[Tensor, Tensor]
"""Rows and columns of packed tokens in their batch."""
Map = Callable[[Tensor], Tensor]
Project = Callable[["Hidden", Tensor, Places], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class LayerParts:
    """The parts of one layer, for running it on some tokens only.

    Attributes:
        project: (state before the layer, packed states (n, D) of n tokens, their places (rows, columns)) -> queries
            (n, heads, d) of these tokens, keys and values (B, heads, T, d) of all. Whatever a family does on the way
            (a norm before, one fused map, rotary tables out of `Hidden.shared`) is its own business.
        finish: (what the heads gathered (n, heads d), packed states before the layer) -> packed states after it.
        dropout: falls on attention weights; 0 outside training.
        sees: (state before the layer, places of n tokens) -> (n, heads or 1, T), what is added to the scores that these
            tokens give to all, or where they may look (bool), padding included; None where padding is all.
    """

    project: Project
    finish: Callable[[Tensor, Tensor], Tensor]
    dropout: float
    sees: Callable[[Hidden, Places], Tensor | None] = lambda hidden, places: None


def _whole_batch_mask(model: PreTrainedModel, states: Tensor, attention_mask: Tensor) -> Tensor | None:
    return create_bidirectional_mask(config=model.config, inputs_embeds=states, attention_mask=attention_mask)


def _run_as_it_is(layer: nn.Module, states: Tensor, shared: Any) -> Tensor:
    return layer(states, shared)


@dataclass(frozen=True)
class Family:
    """How one family of encoders is run.

    Attributes:
        embed: (model, token ids, token types or None) -> states before the first layer.
        layers: model -> its layers in the order in which they run.
        parts: layer -> its parts.
        cut: (model, k) -> nothing; drops the weights of all layers but the first k.
        inner: configuration -> F, the width of the feed-forward pair; for a gated one, which is three maps, 3/2 of it.
        narrow: configuration -> E, the width of embeddings that a linear map widens to D; 0 where there is no such map.
        shared: (model, states, attention mask) -> what every layer needs besides the states; here the mask as the
            attention implementation wants it, None when nothing is padded. Made anew whenever padding is trimmed.
        run: (layer, states, shared) -> states after the layer.
        eager_only: transformers knows no other attention for it.
    """

    embed: Callable[[PreTrainedModel, Tensor, Tensor | None], Tensor]
    layers: Callable[[PreTrainedModel], list[nn.Module]]
    parts: Callable[[nn.Module], LayerParts]
    cut: Callable[[PreTrainedModel, int], None]
    inner: Callable[[PreTrainedConfig], int] = lambda config: config.intermediate_size
    narrow: Callable[[PreTrainedConfig], int] = lambda config: 0
    shared: Callable[[PreTrainedModel, Tensor, Tensor], Any] = _whole_batch_mask
    run: Callable[[nn.Module, Tensor, Any], Tensor] = _run_as_it_is
    eager_only: bool = False


def three_maps(query: Map, key: Map, value: Map, heads: int, norm: Map = lambda states: states) -> Project:
    """`LayerParts.project` of a layer that reads its states with three linear maps, with or without a norm before."""

    def project(hidden: Hidden, packed: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        queries, states = query(norm(packed)).unflatten(-1, (heads, -1)), norm(hidden.states)
        keys, values = (part(states).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (key, value))
        return queries, keys, values

    return project


def _embed_bert(model: PreTrainedModel, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
    return model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)


def _embed_electra(model: PreTrainedModel, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
    hidden = model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    return model.embeddings_project(hidden) if hasattr(model, "embeddings_project") else hidden


def _embed_ids(model: PreTrainedModel, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
    return model.embeddings(input_ids)


def _embed_albert(model: PreTrainedModel, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
    hidden = model.embeddings(input_ids, token_type_ids=token_type_ids)
    return model.encoder.embedding_hidden_mapping_in(hidden)


def _layers_encoder(model: PreTrainedModel) -> list[nn.Module]:
    return list(model.encoder.layer)


def _layers_albert(model: PreTrainedModel) -> list[nn.Module]:
    # ALBERT runs the same few groups again and again: the repetition is the architecture.
    groups, count = model.encoder.albert_layer_groups, model.config.num_hidden_layers
    return [groups[layer * len(groups) // count] for layer in range(count)]


def _rate(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0


def _parts_bert(layer: nn.Module) -> LayerParts:
    inner = layer.attention.self

    def finish(gathered: Tensor, before: Tensor) -> Tensor:
        attended = layer.attention.output(gathered, before)
        return layer.output(layer.intermediate(attended), attended)

    project = three_maps(inner.query, inner.key, inner.value, inner.num_attention_heads)
    return LayerParts(project, finish, _rate(inner.dropout))


def _parts_distilbert(layer: nn.Module) -> LayerParts:
    inner = layer.attention

    def finish(gathered: Tensor, before: Tensor) -> Tensor:
        attended = layer.sa_layer_norm(inner.out_lin(gathered) + before)
        return layer.output_layer_norm(layer.ffn(attended) + attended)

    project = three_maps(inner.q_lin, inner.k_lin, inner.v_lin, inner.n_heads)
    return LayerParts(project, finish, _rate(inner.dropout))


def _parts_albert(group: nn.Module) -> LayerParts:
    if len(group.albert_layers) != 1:
        raise InputError(
            f"tokens cannot leave between the {len(group.albert_layers)} inner layers of one ALBERT layer; use an "
            "encoder with inner_group_num 1"
        )
    layer = group.albert_layers[0]
    inner = layer.attention

    def finish(gathered: Tensor, before: Tensor) -> Tensor:
        attended = inner.LayerNorm(before + inner.output_dropout(inner.dense(gathered)))
        return layer.full_layer_layer_norm(layer.ff_chunk(attended) + attended)

    project = three_maps(inner.query, inner.key, inner.value, inner.num_attention_heads)
    return LayerParts(project, finish, _rate(inner.attention_dropout))


# MPNet: an embedding of relative positions, one for all layers, is added to the scores. transformers knows eager
# attention only; scaled_dot_product_attention with the sum as its mask differs by 3e-5 and trains no faster on a CPU,
# so the layer is run as it is.


def _mask_and_position_bias(model: PreTrainedModel, states: Tensor, attention_mask: Tensor) -> Tensor:
    bias = model.encoder.compute_position_bias(states[:1])
    mask = _whole_batch_mask(model, states, attention_mask)
    return bias if mask is None else bias + mask


def _parts_mpnet(layer: nn.Module) -> LayerParts:
    inner, attention = layer.attention.attn, layer.attention

    def finish(gathered: Tensor, before: Tensor) -> Tensor:
        attended = attention.LayerNorm(attention.dropout(inner.o(gathered)) + before)
        return layer.output(layer.intermediate(attended), attended)

    def sees(hidden: Hidden, places: Places) -> Tensor:
        return _scores_of(hidden.shared, places)

    project = three_maps(inner.q, inner.k, inner.v, inner.num_attention_heads)
    return LayerParts(project, finish, _rate(inner.dropout), sees)


def _scores_of(mask: Tensor, places: Places) -> Tensor:
    """Of a mask (B or 1, heads or 1, T, T) what is meant for the queries of packed tokens, (n, heads or 1, T)."""
    rows, columns = places
    return mask[rows if len(mask) > 1 else torch.zeros_like(rows), :, columns]


# Rotary families: positions turn queries and keys.

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of every position, (1, T, d) each."""


def _turned(vectors: Tensor, angles: Angles) -> Tensor:
    one, other = vectors.chunk(2, dim=-1)
    return vectors * angles[0] + torch.cat([-other, one], dim=-1) * angles[1]


def _rotary(straight: Project, angles_of: Callable[[Any], Angles]) -> Project:
    """`LayerParts.project` of a layer that turns what `straight` gives, by angles out of what its family shares."""

    def project(hidden: Hidden, packed: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = straight(hidden, packed, places)
        cos, sin = angles_of(hidden.shared)
        at_queries, at_keys = (cos[0, places[1], None], sin[0, places[1], None]), (cos[:, None], sin[:, None])
        return _turned(queries, at_queries), _turned(keys, at_keys), values

    return project


def _mask_and_angles(model: PreTrainedModel, states: Tensor, attention_mask: Tensor) -> tuple[Tensor | None, Angles]:
    columns = torch.arange(states.shape[1], device=states.device)[None]
    return _whole_batch_mask(model, states, attention_mask), model.rotary_emb(states, columns)


def _run_rotary(layer: nn.Module, states: Tensor, shared: tuple[Tensor | None, Angles]) -> Tensor:
    return layer(states, attention_mask=shared[0], position_embeddings=shared[1])


def _parts_nomic(layer: nn.Module) -> LayerParts:
    inner = layer.self_attn
    straight = three_maps(inner.q_proj, inner.k_proj, inner.v_proj, inner.config.num_attention_heads)

    def finish(gathered: Tensor, before: Tensor) -> Tensor:
        attended = layer.post_attention_layernorm(before + layer.post_attention_dropout(inner.o_proj(gathered)))
        return layer.post_mlp_layernorm(attended + layer.post_mlp_dropout(layer.mlp(attended)))

    dropout = inner.attention_dropout if inner.training else 0.0
    return LayerParts(_rotary(straight, lambda shared: shared[1]), finish, dropout)


# ModernBERT: rotary, with layers that look at their neighbourhood only among others. Norms stand before the parts, so
# that the whole model ends in one more norm: here it belongs to the last layer, and exits below read states without it.


class _WithNorm(nn.Module):
    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm, self.attention_type = layer, norm, layer.attention_type

    def forward(self, states: Tensor, **shared: Any) -> Tensor:
        return self.norm(self.layer(states, **shared))


def _masks_and_angles(model: PreTrainedModel, states: Tensor, attention_mask: Tensor) -> dict[str, tuple[Any, Angles]]:
    columns = torch.arange(states.shape[1], device=states.device)[None]
    of = {"config": model.config, "inputs_embeds": states, "attention_mask": attention_mask}
    near = "sliding_attention" in model.config.layer_types
    masks = {"full_attention": create_bidirectional_mask(**of)}
    masks |= {"sliding_attention": create_bidirectional_sliding_window_mask(**of)} if near else {}
    return {kind: (mask, model.rotary_emb(states, columns, kind)) for kind, mask in masks.items()}


def _parts_modernbert(layer: nn.Module) -> LayerParts:
    layer, norm = (layer.layer, layer.norm) if isinstance(layer, _WithNorm) else (layer, nn.Identity())
    inner, kind = layer.attn, layer.attention_type
    # One map makes all three; queries are wanted of fewer tokens.
    biases = (None,) * 3 if inner.Wqkv.bias is None else inner.Wqkv.bias.chunk(3)
    pairs = zip(inner.Wqkv.weight.chunk(3), biases, strict=True)
    maps = [partial(nn.functional.linear, weight=weight, bias=bias) for weight, bias in pairs]
    straight = three_maps(*maps, layer.config.num_attention_heads, layer.attn_norm)

    def finish(gathered: Tensor, before: Tensor) -> Tensor:
        attended = before + inner.out_drop(inner.Wo(gathered))
        return norm(attended + layer.mlp(layer.mlp_norm(attended)))

    def sees(hidden: Hidden, places: Places) -> Tensor | None:
        mask = hidden.shared[kind][0]
        return None if mask is None else _scores_of(mask, places)

    dropout = inner.attention_dropout if inner.training else 0.0
    return LayerParts(_rotary(straight, lambda shared: shared[kind][1]), finish, dropout, sees)


def _cut_encoder(model: PreTrainedModel, layers: int) -> None:
    model.encoder.layer = model.encoder.layer[:layers]
    model.config.num_hidden_layers = layers


def _cut_distilbert(model: PreTrainedModel, layers: int) -> None:
    model.transformer.layer = model.transformer.layer[:layers]
    model.config.num_hidden_layers = layers


def _cut_layers(model: PreTrainedModel, layers: int) -> None:
    model.layers = model.layers[:layers]
    model.config.num_hidden_layers = layers


def _gated(config: PreTrainedConfig) -> int:
    return 3 * config.intermediate_size // 2


def _cut_albert(model: PreTrainedModel, layers: int) -> None:
    # Few groups serve many layers, and which one serves a layer depends on the original number of layers.
    pass


_BERT = Family(_embed_bert, _layers_encoder, _parts_bert, _cut_encoder)

FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": Family(
        _embed_electra,
        _layers_encoder,
        _parts_bert,
        _cut_encoder,
        narrow=lambda config: config.embedding_size if config.embedding_size != config.hidden_size else 0,
    ),
    "distilbert": Family(
        _embed_ids,
        lambda model: list(model.transformer.layer),
        _parts_distilbert,
        _cut_distilbert,
        inner=lambda config: config.hidden_dim,
    ),
    "albert": Family(
        _embed_albert, _layers_albert, _parts_albert, _cut_albert, narrow=lambda config: config.embedding_size
    ),
    "mpnet": Family(
        _embed_ids,
        _layers_encoder,
        _parts_mpnet,
        _cut_encoder,
        shared=_mask_and_position_bias,
        run=lambda layer, states, shared: layer(states, shared)[0],
        eager_only=True,
    ),
    "nomic_bert": Family(
        _embed_bert,
        lambda model: list(model.layers),
        _parts_nomic,
        _cut_layers,
        inner=_gated,
        shared=_mask_and_angles,
        run=_run_rotary,
    ),
    "modernbert": Family(
        _embed_ids,
        lambda model: [*model.layers[:-1], _WithNorm(model.layers[-1], model.final_norm)],
        _parts_modernbert,
        _cut_layers,
        inner=_gated,
        shared=_masks_and_angles,
        run=lambda layer, states, shared: _run_rotary(layer, states, shared[layer.attention_type]),
    ),
}
"""Hugging Face's model type -> how to run it."""
