"""Pairs as token ids: a prompt, then what is to be written, then the end."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eeutils.data.pairs import Pair
from eeutils.data.samples import Samples
from eeutils.data.texts import is_empty
from eeutils.errors import InputError

QUESTION = "\nIn a few words:"
"""Stands behind the text that is to be read."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int) -> list[list[int]]:
    """The token ids of each text, cut to `longest` of them, and the question.

    Raises:
        InputError: no text, or an empty one (named by its place).
    """
    if isinstance(texts, str):
        raise InputError("give a list of texts; for a single text write [text]")
    if len(texts) == 0:
        raise InputError("there is nothing to read: give at least one text")
    for place, text in enumerate(texts):
        if is_empty(text):
            raise InputError(f"the text at place {place} is empty; remove it or give it words")
    question = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    read = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
    return [[*ids, *question] for ids in read]


def padded_left(
    prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Token ids of prompts that end together, 0 where there is none, and a mask that is true on real tokens."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths[:, None]


def encode_targets(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int) -> list[list[int]]:
    """The token ids of what is to be written, cut to `longest`, and the end token."""
    ids = tokenizer([f" {text}" for text in texts], add_special_tokens=False, truncation=True, max_length=longest)
    return [[*one, tokenizer.eos_token_id] for one in ids["input_ids"]]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    longest_prompt: int,
    longest_target: int,
    targets: Sequence[Sequence[int]] | None = None,
) -> Samples:
    """Pairs as samples whose token types are 1 where something is to be written.

    Args:
        tokenizer, pairs: what and by whom.
        longest_prompt, longest_target: both are cut to so many tokens, question and end token not counted.
        targets: token ids to be written instead of the pairs' own targets, such as a model's own texts; each without
            or with its end token.
    """
    prompts = encode_prompts(tokenizer, [pair.source for pair in pairs], longest_prompt)
    if targets is None:
        targets = encode_targets(tokenizer, [pair.target for pair in pairs], longest_target)
    return Samples(
        tuple((*prompt, *target) for prompt, target in zip(prompts, targets, strict=True)),
        tuple((*[0] * len(prompt), *[1] * len(target)) for prompt, target in zip(prompts, targets, strict=True)),
        torch.zeros(len(pairs), dtype=torch.long),  # the labels are the tokens themselves
        torch.tensor([pair.id for pair in pairs]),
        tokenizer.pad_token_id,
    )
