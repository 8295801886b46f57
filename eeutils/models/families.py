"""How each family of encoders names its parts: all that differs between them stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from eeutils.errors import InputError

if TYPE_CHECKING:
    from eeutils.models.backbone import Hidden


Project = Callable[["Hidden", Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class LayerParts:
    """The parts of one layer, for running it on some tokens only.

    Attributes:
        project: (state before the layer, packed states (n, D) of n tokens, their places (rows, columns)) -> queries
            (n, heads, d) of these tokens, keys and values (B, heads, T, d) of all. Whatever a family does on the way
            (a norm before, one fused map, rotary tables out of `Hidden.shared`) is its own business.
        finish: (what the heads gathered (n, heads d), packed states before the layer) -> packed states after it.
        dropout: falls on attention weights; 0 outside training.
    """

    project: Project
    finish: Callable[[Tensor, Tensor], Tensor]
    dropout: float


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
        inner: configuration -> F, the width of the feed-forward pair.
        narrow: configuration -> E, the width of embeddings that a linear map widens to D; 0 where there is no such map.
        shared: (model, states, attention mask) -> what every layer needs besides the states; here the mask as the
            attention implementation wants it, None when nothing is padded. Made anew whenever padding is trimmed.
        run: (layer, states, shared) -> states after the layer.
    """

    embed: Callable[[PreTrainedModel, Tensor, Tensor | None], Tensor]
    layers: Callable[[PreTrainedModel], list[nn.Module]]
    parts: Callable[[nn.Module], LayerParts]
    cut: Callable[[PreTrainedModel, int], None]
    inner: Callable[[PreTrainedConfig], int] = lambda config: config.intermediate_size
    narrow: Callable[[PreTrainedConfig], int] = lambda config: 0
    shared: Callable[[PreTrainedModel, Tensor, Tensor], Any] = _whole_batch_mask
    run: Callable[[nn.Module, Tensor, Any], Tensor] = _run_as_it_is


def three_maps(query: nn.Linear, key: nn.Linear, value: nn.Linear, heads: int) -> Project:
    """`LayerParts.project` of a layer that reads its states with three linear maps and nothing before them."""

    def project(hidden: Hidden, packed: Tensor, places: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        queries = query(packed).unflatten(-1, (heads, -1))
        keys, values = (part(hidden.states).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (key, value))
        return queries, keys, values

    return project


def _embed_bert(model: PreTrainedModel, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
    return model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)


def _embed_electra(model: PreTrainedModel, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
    hidden = model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    return model.embeddings_project(hidden) if hasattr(model, "embeddings_project") else hidden


def _embed_distilbert(model: PreTrainedModel, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
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


def _cut_encoder(model: PreTrainedModel, layers: int) -> None:
    model.encoder.layer = model.encoder.layer[:layers]
    model.config.num_hidden_layers = layers


def _cut_distilbert(model: PreTrainedModel, layers: int) -> None:
    model.transformer.layer = model.transformer.layer[:layers]
    model.config.num_hidden_layers = layers


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
        _embed_distilbert,
        lambda model: list(model.transformer.layer),
        _parts_distilbert,
        _cut_distilbert,
        inner=lambda config: config.hidden_dim,
    ),
    "albert": Family(
        _embed_albert, _layers_albert, _parts_albert, _cut_albert, narrow=lambda config: config.embedding_size
    ),
}
"""Hugging Face's model type -> how to run it."""
