"""Tiny random encoders of every family, a tiny tokenizer, and a task that a tiny encoder can learn."""

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from eeutils.data.samples import Samples, encode
from eeutils.data.specs import TASKS
from eeutils.data.tasks import Task
from eeutils.models.backbone import Backbone
from eeutils.models.exits import MultiExitModel, exits_on_all_layers
from eeutils.models.families import FAMILIES
from eeutils.models.stages import MultiStageModel

VOCABULARY, END = 40, 2
"""Of tiny decoders: how many words they have, and the one that ends a text."""

WORDS = [
    "good",
    "bad",
    "film",
    "plot",
    "the",
    "a",
    "was",
    "and",
    "very",
    "scene",
    "actor",
    "line",
    "end",
    "start",
    "song",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
# RoBERTa's padding id is 1, and its positions start behind it.
_ROBERTA = _SIZES | {"pad_token_id": 1, "type_vocab_size": 2}
CONFIGS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "bert": ("bert", _SIZES),
    "roberta": ("roberta", _ROBERTA),
    "xlm-roberta": ("xlm-roberta", _ROBERTA),
    "camembert": ("camembert", _ROBERTA),
    "electra": ("electra", _SIZES | {"embedding_size": 16}),
    "electra, narrow embeddings": ("electra", _SIZES | {"embedding_size": 8}),
    "distilbert": (
        "distilbert",
        {"vocab_size": 40, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
    ),
    "albert": ("albert", _SIZES | {"embedding_size": 8}),
    "albert, two groups": ("albert", _SIZES | {"embedding_size": 8, "num_hidden_groups": 2}),
    # Few buckets of distances near, one for all that is far: eight of either sign.
    "mpnet": ("mpnet", _SIZES | {"pad_token_id": 1, "relative_attention_num_buckets": 32}),
    "nomic_bert": ("nomic_bert", _SIZES),
    # Layers 2 and 3 look two tokens to either side.
    "modernbert": (
        "modernbert",
        _SIZES
        | {"pad_token_id": 0, "eos_token_id": 3, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3}
        | {"local_attention": 4},
    ),
}
"""Name -> (Hugging Face's model type, its configuration)."""


def tiny_encoder(name: str = "bert", attention: str = "sdpa", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random encoder in evaluation mode, with weights large enough that layers and tokens make a difference."""
    family, values = CONFIGS[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{"initializer_range": 0.3, **values, **changes})
    attention = "eager" if FAMILIES[family].eager_only else attention
    return AutoModel.from_config(config, attn_implementation=attention).eval()


def tiny_model(
    name: str = "bert", classes: int = 2, pool: str = "cls", seed: int = 0, **changes: Any
) -> MultiExitModel:
    """A tiny encoder with an exit on every layer, answers far enough apart that exits spread over the layers."""
    backbone = Backbone(tiny_encoder(name, seed=seed, **changes))
    model = MultiExitModel(backbone, exits_on_all_layers(backbone, classes, pool, "own"))
    for head in model.exits.values():
        torch.nn.init.normal_(head.classifier.weight, std=0.3)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Whole words of a few, between [CLS] and [SEP]."""
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=40,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def sentences(count: int, seed: int = 0, longest: int = 20) -> tuple[list[str], list[int]]:
    """Sentences of 2 to `longest` words that begin with "good" or "bad", which is their label."""
    generator = torch.Generator().manual_seed(seed)
    labels = [place % 2 for place in range(count)]
    texts = []
    for label in labels:
        length = int(torch.randint(1, longest, (1,), generator=generator))
        fillers = torch.randint(2, len(WORDS), (length,), generator=generator).tolist()
        texts.append(" ".join(["good" if label else "bad", *(WORDS[number] for number in fillers)]))
    return texts, labels


def tiny_samples(
    count: int = 32, seed: int = 0, pairs: bool = False, regression: bool = False, longest: int = 16
) -> Samples:
    """Tokenised sentences of different lengths, or pairs of them; the label of a regression is a number."""
    texts, labels = sentences(count, seed, longest)
    others = sentences(count, seed + 1, longest)[0] if pairs else None
    values = [2.0 * label - 0.5 for label in labels] if regression else labels
    return encode(tiny_tokenizer(), texts, others, max_length=40, labels=values)


def flops_counted(model: MultiStageModel, tokens: int) -> list[float]:
    """What torch counts until each stage has answered, for one sentence of that many tokens."""
    inputs, counted = of_length(tokens).batch([0]).inputs, []
    for stages in range(1, model.stages + 1):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            state = model.begin(*inputs)
            for stage in range(stages):
                state, _ = model.step(stage, state)
        counted.append(float(counter.get_total_flops()))
    return counted


def of_length(*tokens: int) -> Samples:
    """Samples of so many tokens each."""
    return Samples(tuple((7,) * length for length in tokens), None, None, torch.arange(len(tokens)), 0)


def tiny_task(name: str = "movie", count: int = 48) -> Task:
    """A task under a known name, with sentences of `sentences` in its splits."""
    regression = TASKS[name].kind == "regression"

    def split(first_id: int, seed: int, size: int) -> Dataset:
        texts, labels = sentences(size, seed)
        values = [2.0 * label - 0.5 for label in labels] if regression else labels
        ids = list(range(first_id, first_id + size))
        return Dataset.from_dict({"id": ids, "text_a": texts, "text_b": [""] * size, "label": values})

    return Task(TASKS[name], split(0, 0, count), split(1000, 1, 20), split(2000, 2, 24), f"tiny-{count}", {})
