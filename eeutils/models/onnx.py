"""Weights of a BERT encoder out of an ONNX file, as a folder that `transformers` loads.

An exported graph names the biases and embeddings of the encoder, but not its matrices: a linear map has become a
product with a nameless constant, and the sum with its bias. The bias tells whose matrix it is, so no order has to be
trusted.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

from eeutils.errors import InputError
from eeutils.files import atomic_write, sha256

_VERSION = 1
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def from_onnx(file: Path, like: Path) -> Path:
    """The folder with an ONNX file's weights, beside that file's own folder; converted when it is not there.

    Args:
        file: a BERT encoder as PyTorch exports it.
        like: the folder of a model with the same configuration but for the number of layers, and the same tokenizer.

    Raises:
        InputError: a graph that is not a BERT encoder's, or a width that is not that of `like`.
    """
    folder = file.parent.with_name(f"{file.parent.name}-converted-{_VERSION}-{sha256(file)[:12]}")
    if folder.exists():
        return folder
    weights = encoder_weights(file)
    config = json.loads((like / "config.json").read_text(encoding="utf-8"))
    vocabulary = (config["vocab_size"], config["hidden_size"])
    embedded = weights["embeddings.word_embeddings.weight"].shape
    if embedded != vocabulary:
        raise InputError(f"{file.name} embeds {embedded} and {like.name} {vocabulary}; name a model that is like it")
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
    with atomic_write(folder) as partial:
        partial.mkdir()
        save_file(weights, partial / "model.safetensors", {"format": "pt"})
        settings = config | {"num_hidden_layers": len(layers), "_name_or_path": file.stem}
        (partial / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        for name in _TOKENIZER:
            if (like / name).is_file():
                shutil.copyfile(like / name, partial / name)
    return folder


def encoder_weights(file: Path) -> dict[str, np.ndarray]:
    """The tensors of an exported BERT encoder under the names that `transformers` gives them.

    Raises:
        InputError: a tensor in the graph that is not found to belong to the encoder.
    """
    graph = onnx.load(file).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    weights = {_encoder_name(name): tensor for name, tensor in tensors.items() if _encoder_name(name)}
    owners = {}
    for node in graph.node:
        bias = next((name for name in node.input if name.endswith(".bias") and name in tensors), None)
        if node.op_type != "Add" or bias is None:
            continue
        for name in node.input:
            product = producers.get(name)
            if product is not None and product.op_type == "MatMul":
                owners |= {matrix: bias for matrix in product.input if matrix in tensors}
    for matrix, bias in owners.items():
        # ONNX multiplies from the right, a linear layer of PyTorch from the left.
        weights[_encoder_name(bias).removesuffix("bias") + "weight"] = np.ascontiguousarray(tensors[matrix].T)
    strangers = [name for name in tensors if not _encoder_name(name) and name not in owners]
    if strangers or not weights:
        why = f"{len(strangers)} tensors belong to no layer, {strangers[0]} for one" if strangers else "there is none"
        raise InputError(f"{file.name} is not a BERT encoder as PyTorch exports it: {why}")
    return weights


def _encoder_name(name: str) -> str:
    """`model.0.auto_model.encoder.layer.0...` without what stands before the encoder; "" for other tensors."""
    starts = [place for part in ("embeddings.", "encoder.layer.") if (place := name.find(part)) >= 0]
    return name[min(starts) :] if starts else ""
