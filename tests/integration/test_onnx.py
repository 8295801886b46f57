"""ONNX weights: the converted encoder says what the ONNX file says."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from eeutils.data.sources import SourceError, fetch
from eeutils.errors import InputError
from eeutils.models import backbone
from eeutils.models.backbone import load_backbone, load_tokenizer
from eeutils.models.onnx import encoder_weights, from_onnx


def l3_folder() -> Path:
    try:
        fetch("minilm-l6")
        return fetch("minilm-l3")
    except SourceError as error:
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(f"no network and nothing cached: {error}")


def tiny_onnx(path: Path, bias: str = "auto_model.encoder.layer.0.intermediate.dense.bias") -> np.ndarray:
    """A graph of one linear map, its matrix nameless; returns the matrix as ONNX has it, (inputs, outputs)."""
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    words = np.ones((5, 2), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"]), helper.make_node("Add", [bias, "y"], ["z"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array(matrix, "onnx::MatMul_7"),
            numpy_helper.from_array(np.zeros(3, dtype=np.float32), bias),
            numpy_helper.from_array(words, "auto_model.embeddings.word_embeddings.weight"),
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph), path)
    return matrix


def test_the_three_layers_say_what_onnxruntime_says() -> None:
    session = onnxruntime.InferenceSession(l3_folder() / "model.onnx")
    encoder, tokenizer = load_backbone("minilm-l3").eval(), load_tokenizer("minilm-l3")
    assert encoder.depth == len(encoder.layers) == 3
    # A pooler that was not in the file must not be taken for a pre-trained one.
    assert encoder.pretrained_pooler is None
    texts = ["good", "a film that is neither short nor long", "what a waste of two hours, and of a fine cast!"]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    outputs = session.run(None, {name: encoded[name].numpy() for name in ("input_ids", "attention_mask")})
    wanted = next(output for output in outputs if output.ndim == 3)
    with torch.no_grad():
        states = encoder(encoded.input_ids, encoded.attention_mask).numpy()
    real = encoded.attention_mask.bool().numpy()
    np.testing.assert_allclose(states[real], wanted[real], atol=1e-5)


def test_it_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    l3_folder()
    first = backbone.resolve("minilm-l3")
    monkeypatch.setattr("eeutils.models.onnx.encoder_weights", lambda file: pytest.fail("converted again"))
    assert backbone.resolve("minilm-l3") == first


def test_a_matrix_goes_to_the_layer_of_its_bias_turned_round(tmp_path: Path) -> None:
    matrix = tiny_onnx(tmp_path / "m.onnx")
    weights = encoder_weights(tmp_path / "m.onnx")
    assert sorted(weights) == [
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.intermediate.dense.bias",
        "encoder.layer.0.intermediate.dense.weight",
    ]
    np.testing.assert_array_equal(weights["encoder.layer.0.intermediate.dense.weight"], matrix.T)


def test_a_graph_with_a_tensor_of_no_layer_is_refused(tmp_path: Path) -> None:
    tiny_onnx(tmp_path / "m.onnx", bias="somewhere.bias")
    with pytest.raises(InputError, match=r"m\.onnx is not a BERT encoder .* tensors belong to no layer"):
        encoder_weights(tmp_path / "m.onnx")


def test_a_model_of_another_size_is_refused(tmp_path: Path) -> None:
    tiny_onnx(tmp_path / "source" / "m.onnx")
    like = tmp_path / "like"
    like.mkdir()
    (like / "config.json").write_text(json.dumps({"vocab_size": 9, "hidden_size": 2}))
    with pytest.raises(InputError, match=r"embeds \(5, 2\) and like \(9, 2\)"):
        from_onnx(tmp_path / "source" / "m.onnx", like)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["like", "source"]
