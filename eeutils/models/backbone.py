"""Any Hugging Face encoder as embeddings, a list of layers, and what these share, such as a mask.

Owning the loop over the layers is what lets a sample leave between two of them. For every family, running all layers
equals the family's own Hugging Face model exactly (tests/integration/test_backbone.py). Each layer adds what it spends
to the state that it gives.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from eeutils.data.sources import fetch
from eeutils.errors import InputError, unknown
from eeutils.models.cost import Spent, exact, layer_flops
from eeutils.models.families import FAMILIES
from eeutils.models.onnx import from_onnx


@dataclass(frozen=True)
class OfflineBackbone:
    """Weights that come from the package index.

    Attributes:
        source: its name in `data/sources.toml`, which says what it is.
        pool: where exits should read a sentence from.
        width: D, known without reading its files.
        like: for weights in ONNX form, the backbone with the same configuration (but for its depth) and tokenizer.
        about: what must be said of it wherever it is named, because its name does not.
    """

    source: str
    pool: str
    width: int
    like: str | None = None
    about: str = ""


# Sentence encoders are trained on the mean over tokens: at their lower layers [CLS] says nothing about the sentence.
OFFLINE_BACKBONES = {
    "minilm-l6": OfflineBackbone("minilm-l6", pool="mean", width=384),
    "minilm-l3": OfflineBackbone("minilm-l3", pool="mean", width=384, like="minilm-l6"),
    "mpnet-base": OfflineBackbone(
        "mpnet-base", pool="mean", width=768, about="microsoft/mpnet-base trained further as a sentence encoder"
    ),
}


@dataclass(frozen=True)
class Hidden:
    """The state between two layers for the samples of a batch that are still running, and what they have spent so far.

    Attributes:
        states: (B, T, D).
        attention_mask: (B, T), true on real tokens.
        shared: what the family's layers need besides the states; see `Family.shared`.
        tokens: (B,) real tokens of each sample.
        whole_layer: what a layer on all tokens of a sample spends.
        spent: what each sample has spent since its token ids were embedded.
        padded: whether any token is padding; true also where nobody has looked.
    """

    states: Float[Tensor, "batch tokens width"]
    attention_mask: Bool[Tensor, "batch tokens"]
    shared: Any
    tokens: Int[Tensor, " batch"]
    whole_layer: Spent
    spent: Spent
    padded: bool = True


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
        self.layers: list[nn.Module] = self.family.layers(model)
        """The layers in the order in which they run; the model holds them, too."""
        self.width: int = model.config.hidden_size
        """D, the width of a token's hidden state."""
        self._inner, self._narrow = self.family.inner(model.config), self.family.narrow(model.config)

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.layers)

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
        mask = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        states = self.family.embed(self.model, input_ids, token_type_ids)
        shared, tokens = self.family.shared(self.model, states, mask), mask.sum(dim=1)
        spent = self._whole_layer(tokens), self._embedding(tokens)
        return Hidden(states, mask, shared, tokens, *spent, padded=_any_padding(mask))

    def run_layer(self, layer: int, hidden: Hidden, active: Bool[Tensor, "batch tokens"] | None = None) -> Hidden:
        """Layer number `layer` (from 0), on all tokens or on the active ones only; the others keep their state.

        Every real token stays visible as key and value. The active tokens of all samples are packed, so that queries,
        output and feed-forward are computed for them alone.
        """
        if active is not None:
            active = active & hidden.attention_mask
        if active is None or torch.equal(active, hidden.attention_mask):
            states = self.family.run(self.layers[layer], hidden.states, hidden.shared)
            return replace(hidden, states=states, spent=hidden.spent.plus(hidden.whole_layer))
        places = active.nonzero(as_tuple=True)
        if len(places[0]) == 0:
            return hidden
        parts, mask, packed = self.family.parts(self.layers[layer]), hidden.attention_mask, hidden.states[places]
        projected, keys, values = parts.project(hidden, packed, places)
        # Attention alone needs the tokens by sample again: each sample's active ones stand in front.
        in_front = places[0], (active.cumsum(dim=1) - 1)[places]
        front = len(active), int(in_front[1].max()) + 1
        queries = projected.new_zeros(*front, *projected.shape[1:]).index_put(in_front, projected)
        seen = parts.sees(hidden, places)
        if seen is not None:
            seen = seen if seen.dtype == torch.bool else seen.to(queries.dtype)
            # Places behind the last active token look at everything; what they find is never read.
            free = seen.new_full((*front, *seen.shape[1:]), seen.dtype == torch.bool)
            seen = free.index_put(in_front, seen).transpose(1, 2)
        elif hidden.padded:
            seen = mask[:, None, None, :]
        gathered = nn.functional.scaled_dot_product_attention(
            queries.transpose(1, 2), keys, values, attn_mask=seen, dropout_p=parts.dropout
        )
        after = parts.finish(gathered.transpose(1, 2)[in_front].flatten(1), packed)
        states = hidden.states.index_put(places, after.to(hidden.states.dtype))
        return replace(hidden, states=states, spent=self.spent_after(hidden, active))

    def spent_after(self, hidden: Hidden, active: Bool[Tensor, "batch tokens"]) -> Spent:
        """What each sample has spent once a layer has run on its active tokens, none of which is padding."""
        tokens = hidden.tokens  # alone: what is counted later must not hold on to the states

        def count() -> tuple[Tensor, Tensor]:
            counts = active.sum(dim=1)
            return exact(counts) / tokens, layer_flops(self.width, self._inner, tokens, counts)

        return hidden.spent.plus(Spent.later(count))

    def take(self, hidden: Hidden, rows: Int[Tensor, " rows"]) -> Hidden:
        """The given samples only, without the columns that are padding for all of them."""
        states, mask, tokens = hidden.states[rows], hidden.attention_mask[rows], hidden.tokens[rows]
        padded = hidden.padded and _any_padding(mask)
        if padded:
            columns = mask.any(dim=0)
            # Padding may stand on either side; only columns that nobody needs go.
            if not bool(columns.all()):
                states, mask = states[:, columns], mask[:, columns]
                padded = _any_padding(mask)
        shared = self.family.shared(self.model, states, mask)
        spent = hidden.whole_layer.take(rows), hidden.spent.take(rows)
        return Hidden(states, mask, shared, tokens, *spent, padded=padded)

    def whole_pass(self, attention_mask: Int[Tensor, "batch tokens"], layers: int) -> Spent:
        """What `layers` layers on all tokens of a batch spend, without running them."""

        def count() -> Spent:
            tokens = attention_mask.sum(dim=1)
            return self._embedding(tokens).plus(self._whole_layer(tokens).each(lambda kind: layers * kind))

        return Spent.later(count)

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
        self.family.cut(self.model, layers)
        self.layers = self.layers[:layers]
        return self

    def _whole_layer(self, tokens: Tensor) -> Spent:
        def count() -> tuple[Tensor, Tensor]:
            flops = layer_flops(self.width, self._inner, tokens)
            return torch.ones_like(flops), flops

        return Spent.later(count)

    def _embedding(self, tokens: Tensor) -> Spent:
        def count() -> tuple[Tensor, Tensor]:
            # The projection of factorised embeddings (ALBERT, small ELECTRA), 2TED.
            flops = exact(tokens * (2 * self._narrow * self.width))
            return torch.zeros_like(flops), flops

        return Spent.later(count)


def _any_padding(mask: Bool[Tensor, "batch tokens"]) -> bool:
    # A graph is traced for any mask, so it must not look.
    return torch.compiler.is_compiling() or not bool(mask.all())


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


def described(name: str) -> str:
    """The name as readers are shown it."""
    about = OFFLINE_BACKBONES[name].about if name in OFFLINE_BACKBONES else ""
    return f"{name} ({about})" if about else name


def width_of(name: str) -> int:
    """D, the width of an encoder, without its weights.

    Raises:
        InputError: nothing is found under that name.
    """
    return OFFLINE_BACKBONES[name].width if name in OFFLINE_BACKBONES else config_of(name).hidden_size


def load_backbone(name: str, attention: str = "sdpa") -> Backbone:
    """Load an encoder by its offline name, a folder, or a hub name.

    Args:
        name: as above.
        attention: "sdpa" or "eager"; a family that knows eager attention only is given that.

    Raises:
        InputError: nothing is found under that name, or the weights do not fit the configuration beside them.
    """
    family = FAMILIES.get(config_of(name).model_type)
    attention = "eager" if family is not None and family.eager_only else attention
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
    return _read(AutoTokenizer, name)


def config_of(name: str) -> PreTrainedConfig:
    """The configuration of an encoder, without its weights.

    Raises:
        InputError: nothing is found under that name.
    """
    return _read(AutoConfig, name)


def check_backbone(name: str) -> None:
    """Fail early, before anything is trained, when a backbone cannot be had or its family is not known.

    Raises:
        InputError: as `load_backbone` does, without reading the weights.
    """
    if name not in OFFLINE_BACKBONES and config_of(name).model_type not in FAMILIES:
        raise unknown("encoder family", config_of(name).model_type, FAMILIES)


def _read(kind: type, name: str) -> Any:
    try:
        return kind.from_pretrained(resolve(name))
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error


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
