"""Owning the loop over the layers changes nothing: every family equals its own Hugging Face model."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from eeutils.models.backbone import FAMILIES, Backbone, check_backbone, default_pool, load_backbone, load_tokenizer
from eeutils.errors import InputError
from tests.tiny import CONFIGS, tiny_encoder

LENGTHS = (9, 4, 6, 9)


def inputs(model: PreTrainedModel, padded: bool = True, pairs: bool = False, left: bool = False) -> dict[str, Tensor]:
    """What a tokenizer would give: ids, mask and, for families that read them, token types."""
    torch.manual_seed(1)
    padding = model.config.pad_token_id
    ids = torch.randint(5, 40, (4, 9))
    mask = torch.ones_like(ids)
    if padded:
        for row, length in enumerate(LENGTHS):
            outside = slice(0, 9 - length) if left else slice(length, 9)
            ids[row, outside], mask[row, outside] = padding, 0
    found = {"input_ids": ids, "attention_mask": mask}
    if pairs and model.config.model_type != "distilbert":
        found["token_type_ids"] = (torch.arange(9)[None].expand(4, 9) > 3).long() * mask
    return found


def states(model: PreTrainedModel, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Hugging Face's own hidden states: embeddings, then after each layer."""
    with torch.inference_mode():
        return model(**given, output_hidden_states=True).hidden_states


@pytest.fixture(params=CONFIGS)
def encoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_encoder(request.param)


def test_every_family_is_held_to_hugging_face() -> None:
    assert {family for family, _ in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "kind",
    [{"padded": False}, {"padded": True}, {"left": True}, {"pairs": True}],
    ids=["unpadded", "padded", "left", "pairs"],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_running_all_layers_equals_hugging_face_exactly(name: str, kind: dict[str, bool], attention: str) -> None:
    model = tiny_encoder(name, attention)
    given = inputs(model, **kind)
    with torch.inference_mode():
        ours, theirs = Backbone(model)(**given), model(**given).last_hidden_state
    assert torch.equal(ours, theirs)


def test_without_a_mask_every_token_is_real(encoder: PreTrainedModel) -> None:
    given = inputs(encoder, padded=False)
    with torch.inference_mode():
        assert torch.equal(Backbone(encoder)(given["input_ids"]), Backbone(encoder)(**given))


def test_every_layer_on_the_way_equals_hugging_face(encoder: PreTrainedModel) -> None:
    given, backbone = inputs(encoder), Backbone(encoder)
    theirs = states(encoder, given)
    with torch.inference_mode():
        hidden = backbone.embed(**given)
        if encoder.config.model_type != "albert":  # there the recorded input of layer 1 is narrower
            torch.testing.assert_close(hidden.states, theirs[0], atol=0, rtol=0)
        for layer in range(backbone.depth):
            hidden = backbone.run_layer(layer, hidden)
            torch.testing.assert_close(hidden.states, theirs[layer + 1], atol=0, rtol=0)
    assert backbone.depth == len(backbone.layers) == 4


def test_layers_do_something_and_padding_does_not(encoder: PreTrainedModel) -> None:
    given, backbone = inputs(encoder), Backbone(encoder)
    theirs = states(encoder, given)
    assert all((after - before).abs().max() > 1e-3 for before, after in itertools.pairwise(theirs))
    other = dict(given, input_ids=torch.where(given["attention_mask"] == 1, given["input_ids"], 7))
    if encoder.config.model_type not in {"roberta", "xlm-roberta", "camembert"}:  # their positions count padding ids
        with torch.inference_mode():
            one, two = backbone(**given), backbone(**other)
        real = given["attention_mask"].bool()
        torch.testing.assert_close(one[real], two[real])


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("rows", [[1], [2, 1], [0, 1], [1, 2, 3]], ids=str)
def test_the_rows_that_stay_go_on_as_if_they_had_run_alone(
    encoder: PreTrainedModel, rows: list[int], after: int, left: bool
) -> None:
    given, backbone = inputs(encoder, left=left, pairs=True), Backbone(encoder)
    whole = states(encoder, given)[-1]
    with torch.inference_mode():
        hidden = backbone.embed(**given)
        for layer in range(after):
            hidden = backbone.run_layer(layer, hidden)
        hidden = backbone.select(hidden, torch.tensor(rows))
        for layer in range(after, backbone.depth):
            hidden = backbone.run_layer(layer, hidden)
    longest = max(LENGTHS[row] for row in rows)
    assert hidden.states.shape == (len(rows), longest, 16)
    assert hidden.attention_mask.sum(dim=1).tolist() == [LENGTHS[row] for row in rows]
    if len({LENGTHS[row] for row in rows}) == 1:
        assert hidden.prepared_mask is None or bool((hidden.prepared_mask == hidden.prepared_mask.max()).all())
    for place, row in enumerate(rows):
        real = given["attention_mask"][row].bool()
        stayed = hidden.states[place][hidden.attention_mask[place]]
        torch.testing.assert_close(stayed, whole[row][real], atol=1e-5, rtol=1e-5)


def test_selecting_from_an_unpadded_batch_keeps_it_unpadded(encoder: PreTrainedModel) -> None:
    given, backbone = inputs(encoder, padded=False), Backbone(encoder)
    with torch.inference_mode():
        hidden = backbone.select(backbone.embed(**given), torch.tensor([3, 1]))
        for layer in range(backbone.depth):
            hidden = backbone.run_layer(layer, hidden)
        torch.testing.assert_close(hidden.states, backbone(**given)[[3, 1]])
    assert hidden.states.shape[1] == 9


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_truncated_encoder_ends_where_hugging_face_s_layer_does(encoder: PreTrainedModel, layers: int) -> None:
    given = inputs(encoder)
    wanted = states(encoder, given)[layers]
    backbone = Backbone(encoder).truncate(layers)
    with torch.inference_mode():
        assert torch.equal(backbone(**given), wanted)
    assert backbone.depth == len(backbone.layers) == layers


@pytest.mark.parametrize("layers", [0, 5, -1])
def test_an_encoder_cannot_be_cut_to_more_layers_than_it_has(layers: int) -> None:
    with pytest.raises(InputError, match=rf"cannot keep {layers} layers.*choose 1 to 4"):
        Backbone(tiny_encoder()).truncate(layers)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_distinct_objects_except_where_the_architecture_repeats_them(name: str) -> None:
    backbone = Backbone(tiny_encoder(name))
    distinct = {id(layer) for layer in backbone.layers}
    assert len(distinct) == {"albert": 1, "albert, two groups": 2}.get(name, 4)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    config = AutoConfig.for_model("mobilebert", num_hidden_layers=1)
    with pytest.raises(InputError, match=r"unknown encoder family 'mobilebert'.*choose one of: albert, bert"):
        Backbone(AutoModel.from_config(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_encoder().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_loaded_as_hugging_face_loads_it(folder: Path) -> None:
    given = inputs(tiny_encoder())
    check_backbone(str(folder))
    with torch.inference_mode():
        assert torch.equal(load_backbone(str(folder))(**given), tiny_encoder()(**given).last_hidden_state)


def test_weights_without_a_pooler_are_fine_and_no_pooler_is_made_up(folder: Path) -> None:
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    assert load_backbone(str(folder)).pretrained_pooler is not None
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    # transformers makes up what is missing: random weights must not pass for pre-trained ones.
    assert load_backbone(str(folder)).pretrained_pooler is None


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 6}, {"hidden_size": 20}, {"vocab_size": 41}, {"intermediate_size": 32}], ids=str
)
def test_weights_that_do_not_match_the_config_are_refused_by_name(folder: Path, changes: dict[str, int]) -> None:
    # A small checkpoint under a big configuration would give an encoder whose upper layers are random.
    change_config(folder, **changes)
    with pytest.raises(InputError, match=r"weights of backbone .*encoder.* do not match its config.json"):
        load_backbone(str(folder))


def test_weights_with_more_layers_than_the_config_are_refused(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2)
    with pytest.raises(InputError, match=r"do not match its config.json"):
        load_backbone(str(folder))


def test_damaged_weights_are_refused_with_a_sentence(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="backbone"):
        load_backbone(str(folder))


@pytest.mark.parametrize("load", [load_backbone, load_tokenizer, check_backbone])
def test_what_is_not_there_is_refused_with_what_could_be(load, tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "no-such-owner/no-such-encoder", str(tmp_path)):
        with pytest.raises(InputError, match=r"cannot load backbone .*offline backbones are: minilm-l3, minilm-l6"):
            load(name)


def test_an_unknown_family_is_refused_before_its_weights_are_read(folder: Path) -> None:
    change_config(folder, model_type="gpt2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="unknown encoder family 'gpt2'"):
        check_backbone(str(folder))


def test_exits_read_the_mean_of_the_sentence_encoder_and_the_first_token_of_others() -> None:
    assert default_pool("minilm-l6") == "mean"
    assert default_pool("some/bert") == "cls"
