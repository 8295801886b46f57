"""A decoder that knows nothing, for showing in seconds that everything runs."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eeutils.data.sources import fetch
from eeutils.files import atomic_write, cache_dir

_VERSION = 2


def tiny_decoder() -> Path:
    """The folder of a random decoder of four layers, 64 wide, with the words of minilm-l6; made when it is not there.
    The same weights everywhere."""
    folder = cache_dir() / f"tiny-decoder-{_VERSION}"
    if folder.exists():
        return folder
    tokenizer = AutoTokenizer.from_pretrained(fetch("minilm-l6"), eos_token="[SEP]")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with atomic_write(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder
