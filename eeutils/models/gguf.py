"""Weights of a decoder out of a GGUF file, as a folder that `transformers` loads like any other.

Such a file holds weights in few bits, the configuration and the vocabulary. The conversion makes them dense once; what
four bits have lost stays lost, so whoever names such a decoder says that it was quantised.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from eeutils.errors import InputError
from eeutils.files import atomic_write, sha256

_VERSION = 1


def from_gguf(file: Path) -> Path:
    """The folder with a GGUF file's weights and tokenizer, beside that file's own folder; converted when it is not
    there. In single precision: four times the parameters in bytes.

    Raises:
        InputError: a file that transformers cannot read as a decoder, or whose weights are not all there.
    """
    folder = file.parent.with_name(f"{file.parent.name}-converted-{_VERSION}-{sha256(file)[:12]}")
    if folder.exists():
        return folder
    # Dense weights: packed ones are slow in bfloat16 and cannot be saved.
    dense = GgufConfig(dequantize=True)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=dense,
            dtype=torch.float32,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file.name} is not a decoder that transformers can read ({error})") from error
    if info["missing_keys"]:
        raise InputError(f"{file.name} lacks {len(info['missing_keys'])} tensors, such as {info['missing_keys'][0]}")
    model.config.quantization_config = None
    model.hf_quantizer = None
    with atomic_write(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder
