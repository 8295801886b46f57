"""Owning the loop over the layers changes nothing: every family equals its own Hugging Face model."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from eeutils.errors import InputError
from eeutils.models.backbone import (
    Backbone,
    Hidden,
    check_backbone,
    default_pool,
    described,
    load_backbone,
    load_tokenizer,
    width_of,
)
from eeutils.models.families import FAMILIES, Family, LayerParts
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
    given = {"input_ids": ids, "attention_mask": mask}
    if pairs and model.config.model_type not in {"distilbert", "mpnet", "modernbert"}:
        given["token_type_ids"] = (torch.arange(9)[None].expand(4, 9) > 3).long() * mask
    return given


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
    if encoder.config.model_type not in {
        "roberta",
        "xlm-roberta",
        "camembert",
        "mpnet",
    }:  # their positions count padding ids
        with torch.inference_mode():
            one, two = backbone(**given), backbone(**other)
        real = given["attention_mask"].bool()
        torch.testing.assert_close(one[real], two[real])


def mask_in(backbone: Backbone, hidden: Hidden) -> Tensor | None:
    """The mask of layers that look at the whole sentence, whatever else their family shares."""
    match backbone.config.model_type:
        case "mpnet":
            return hidden.shared - backbone.model.encoder.compute_position_bias(hidden.states)
        case "nomic_bert":
            return hidden.shared[0]
        case "modernbert":
            return hidden.shared["full_attention"][0]
    return hidden.shared


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
        hidden = backbone.take(hidden, torch.tensor(rows))
        for layer in range(after, backbone.depth):
            hidden = backbone.run_layer(layer, hidden)
    longest = max(LENGTHS[row] for row in rows)
    assert hidden.states.shape == (len(rows), longest, 16)
    assert hidden.attention_mask.sum(dim=1).tolist() == [LENGTHS[row] for row in rows]
    if len({LENGTHS[row] for row in rows}) == 1:
        mask = mask_in(backbone, hidden)
        assert mask is None or bool((mask == mask.max()).all()), "a batch without padding excludes nobody"
    for place, row in enumerate(rows):
        real = given["attention_mask"][row].bool()
        stayed = hidden.states[place][hidden.attention_mask[place]]
        torch.testing.assert_close(stayed, whole[row][real], atol=1e-5, rtol=1e-5)


def test_selecting_from_an_unpadded_batch_keeps_it_unpadded(encoder: PreTrainedModel) -> None:
    given, backbone = inputs(encoder, padded=False), Backbone(encoder)
    with torch.inference_mode():
        hidden = backbone.take(backbone.embed(**given), torch.tensor([3, 1]))
        for layer in range(backbone.depth):
            hidden = backbone.run_layer(layer, hidden)
        torch.testing.assert_close(hidden.states, backbone(**given)[[3, 1]])
    assert hidden.states.shape[1] == 9


# A layer on some tokens only: three of the first sample, none of the second, all of the third and one of the last.

COUNTS = (3, 0, 6, 1)


def some_tokens() -> Tensor:
    active = torch.zeros(4, 9, dtype=torch.bool)
    active[0, [1, 2, 8]] = active[2] = active[3, 4] = True  # of the third sample the padding, too: nothing runs there
    return active


def after_one_layer(backbone: Backbone) -> Hidden:
    return backbone.run_layer(0, backbone.embed(**inputs(backbone.model)))


@torch.inference_mode()
def test_a_layer_on_some_tokens_changes_these_and_is_paid_for_these_alone(encoder: PreTrainedModel) -> None:
    backbone = Backbone(encoder).eval()
    before = after_one_layer(backbone)
    whole, partly = backbone.run_layer(1, before), backbone.run_layer(1, before, some_tokens())
    ran, stayed = some_tokens() & before.attention_mask, ~some_tokens() & before.attention_mask
    torch.testing.assert_close(partly.states[ran], whole.states[ran], atol=1e-5, rtol=1e-5)
    assert torch.equal(partly.states[stayed], before.states[stayed])
    spent = partly.spent.minus(before.spent)
    assert spent.layers.tolist() == pytest.approx([3 / 9, 0, 1, 1 / 9])
    # D = 16, F = 24. Keys and values of all T tokens; for an active one query and output, attention, feed-forward: two
    # maps, or three where one of them is a gate.
    maps = 3 if encoder.config.model_type in {"nomic_bert", "modernbert"} else 2
    one = [4 * 16 * 16 + 4 * length * 16 + maps * 2 * 16 * 24 for length in LENGTHS]
    wanted = [4 * 16 * 16 * length + count * each for length, count, each in zip(LENGTHS, COUNTS, one, strict=True)]
    assert spent.flops.tolist() == [wanted[0], 0, wanted[2], wanted[3]]
    assert whole.spent.minus(before.spent).flops[2] == wanted[2]


@torch.inference_mode()
def test_a_layer_on_some_tokens_spends_what_torch_counts_for_each_sample_alone(encoder: PreTrainedModel) -> None:
    backbone = Backbone(encoder).eval()
    before = after_one_layer(backbone)
    spent = backbone.run_layer(1, before, some_tokens()).spent.minus(before.spent)
    for row, length in enumerate(LENGTHS):
        alone = backbone.take(before, torch.tensor([row]))
        # The mathematical form of attention: a fused kernel is not seen by the counter.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            backbone.run_layer(1, alone, some_tokens()[[row], :length])
        assert spent.flops[row] == counter.get_total_flops()


@torch.inference_mode()
def test_with_all_tokens_active_it_is_the_full_layer_and_with_none_it_is_not_run(encoder: PreTrainedModel) -> None:
    backbone = Backbone(encoder).eval()
    before = after_one_layer(backbone)
    whole = backbone.run_layer(1, before)
    for active in (before.attention_mask, torch.ones(4, 9, dtype=torch.bool)):
        again = backbone.run_layer(1, before, active)
        assert torch.equal(again.states, whole.states)
        assert torch.equal(again.spent.flops, whole.spent.flops)
        assert again.spent.layers.tolist() == [2, 2, 2, 2]
    ran: list[int] = []
    for part in backbone.layers[1].modules():
        part.register_forward_hook(lambda *_: ran.append(1))
    idle = backbone.run_layer(1, before, torch.zeros(4, 9, dtype=torch.bool))
    assert torch.equal(idle.states, before.states)
    assert torch.equal(idle.spent.flops, before.spent.flops)
    assert ran == []


@torch.inference_mode()
def test_what_samples_have_spent_follows_them_when_the_batch_is_packed_again(encoder: PreTrainedModel) -> None:
    backbone, rows = Backbone(encoder).eval(), torch.tensor([2, 1])
    hidden = backbone.run_layer(1, after_one_layer(backbone), some_tokens())
    packed = backbone.take(hidden, rows)
    later = some_tokens().flip(0)  # now the second sample has active tokens, all of them
    whole, some = backbone.run_layer(2, hidden, later), backbone.run_layer(2, packed, later[rows, :6])
    for taken, given in ((packed, hidden), (some, whole)):
        for kind in ("layers", "flops"):
            assert torch.equal(getattr(taken.spent, kind), getattr(given.spent, kind)[rows])
    assert some.spent.layers.tolist() == [2, 2]
    real = some.attention_mask
    assert real.sum(dim=1).tolist() == [6, 4]
    torch.testing.assert_close(some.states[real], whole.states[rows, :6][real], atol=1e-5, rtol=1e-5)


# What layers share must be right for those that run on some tokens only, and learned there, too.


@torch.inference_mode()
def test_layers_of_modernbert_look_at_their_neighbourhood_and_those_of_mpnet_at_distances() -> None:
    # The tests above hold nothing if windows and distances make no difference on nine tokens.
    one, other = (tiny_encoder("modernbert", local_attention=window) for window in (4, 64))
    given = inputs(one)
    assert (Backbone(one)(**given) - Backbone(other)(**given)).abs().max() > 1e-2
    encoder = tiny_encoder("mpnet")
    before = Backbone(encoder)(**given)
    encoder.encoder.relative_attention_bias.weight.zero_()
    assert (Backbone(encoder)(**given) - before).abs().max() > 1e-2


def test_the_position_bias_learns_what_it_learns_in_hugging_face() -> None:
    encoder, gradients = tiny_encoder("mpnet"), []
    for forward in (lambda given: encoder(**given).last_hidden_state, lambda given: Backbone(encoder)(**given)):
        encoder.zero_grad()
        forward(inputs(encoder)).square().mean().backward()
        gradients.append(encoder.encoder.relative_attention_bias.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["bert", "mpnet", "nomic_bert", "modernbert"])
@torch.inference_mode()
def test_a_layer_on_some_tokens_runs_in_mixed_precision(name: str) -> None:
    backbone = Backbone(tiny_encoder(name))
    with torch.autocast("cpu", torch.bfloat16):
        before = after_one_layer(backbone)
        whole, partly = backbone.run_layer(1, before), backbone.run_layer(1, before, some_tokens())
    ran = some_tokens() & before.attention_mask
    torch.testing.assert_close(partly.states[ran].float(), whole.states[ran].float(), atol=0.15, rtol=0.05)


# A family of another kind: a norm before each part, one map for queries, keys and values, and positions that enter by
# turning queries and keys, so that every layer reads the mask and a table of angles.


class TurnedConfig(PreTrainedConfig):
    model_type = "turned"


class TurnedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(16), nn.LayerNorm(16)
        self.fused, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def heads(self, states: Tensor, angles: Tensor) -> list[Tensor]:
        """Queries, keys and values (B, 2, T, 8), the first two turned by their position's angles."""

        def turned(vectors: Tensor) -> Tensor:
            one, other = vectors.chunk(2, dim=-1)
            return torch.cat([one * angles.cos() - other * angles.sin(), one * angles.sin() + other * angles.cos()], -1)

        parts = self.fused(self.first_norm(states)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return [turned(parts[0]), turned(parts[1]), parts[2]]

    def finish(self, gathered: Tensor, before: Tensor) -> Tensor:
        attended = before + self.out(gathered)
        return attended + self.down(nn.functional.gelu(self.up(self.second_norm(attended))))

    def forward(self, states: Tensor, shared: tuple[Tensor, Tensor]) -> Tensor:
        mask, angles = shared
        queries, keys, values = self.heads(states, angles)
        scores = (queries @ keys.mT / 8**0.5).masked_fill(~mask[:, None, None, :], -torch.inf)
        return self.finish((scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2), states)


class TurnedModel(PreTrainedModel):
    config_class = TurnedConfig

    def __init__(self, config: TurnedConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(40, 16)
        self.layers = nn.ModuleList(TurnedLayer() for _ in range(4))


def turned_parts(layer: nn.Module) -> LayerParts:
    def project(hidden: Hidden, packed: Tensor, places: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = layer.heads(hidden.states, hidden.shared[1])
        return queries.transpose(1, 2)[places], keys, values

    return LayerParts(project, layer.finish, dropout=0.0)


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    frequencies = torch.tensor([1.0, 0.3, 0.1, 0.03])
    family = Family(
        embed=lambda model, input_ids, token_type_ids: model.embeddings(input_ids),
        layers=lambda model: list(model.layers),
        parts=turned_parts,
        cut=lambda model, layers: None,
        shared=lambda model, states, mask: (mask, torch.arange(states.shape[1])[:, None] * frequencies),
    )
    monkeypatch.setitem(FAMILIES, "turned", family)
    torch.manual_seed(0)
    config = TurnedConfig(hidden_size=16, num_hidden_layers=4, intermediate_size=24)
    return Backbone(TurnedModel(config)).eval()


def padded(left: bool) -> dict[str, Tensor]:
    return {name: given for name, given in inputs(tiny_encoder(), left=left).items() if name != "token_type_ids"}


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@torch.inference_mode()
def test_a_family_with_norms_before_and_one_fused_map_runs_on_some_tokens(turned: Backbone, left: bool) -> None:
    torch.manual_seed(2)
    last = torch.randint(0, 5, (4, 9))  # the layers that each token runs
    packed = masked = turned.embed(**padded(left))
    for layer in range(4):
        active = last > layer
        whole = turned.run_layer(layer, masked).states
        masked = replace(masked, states=torch.where(active[..., None], whole, masked.states))
        packed = turned.run_layer(layer, packed, active)
    real = packed.attention_mask
    torch.testing.assert_close(packed.states[real], masked.states[real], atol=1e-5, rtol=1e-5)
    plain = turned(**padded(left))
    assert (plain[real] - packed.states[real]).abs().max() > 0.1
    counts = (last * real).sum(dim=1)
    torch.testing.assert_close(packed.spent.layers, counts / torch.tensor(LENGTHS, dtype=torch.float64))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("rows", [[1], [2, 1], [3, 0, 1]], ids=str)
@torch.inference_mode()
def test_what_layers_share_is_made_anew_when_padding_is_trimmed(turned: Backbone, rows: list[int], left: bool) -> None:
    given = padded(left)
    whole, hidden = turned(**given), turned.run_layer(0, turned.embed(**given))
    hidden = turned.take(hidden, torch.tensor(rows))
    longest = max(LENGTHS[row] for row in rows)
    assert [len(hidden.shared[0]), len(hidden.shared[1])] == [len(rows), longest]
    for layer in range(1, 4):
        hidden = turned.run_layer(layer, hidden)
    for place, row in enumerate(rows):
        alone = turned(given["input_ids"][[row]][:, given["attention_mask"][row].bool()])
        stayed = hidden.states[place][hidden.attention_mask[place]]
        torch.testing.assert_close(stayed, whole[row][given["attention_mask"][row].bool()], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(stayed, alone[0], atol=1e-5, rtol=1e-5)


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
    assert default_pool("mpnet-base") == "mean"
    assert default_pool("some/bert") == "cls"


def test_what_a_name_does_not_say_of_an_encoder_is_said_with_it() -> None:
    assert described("mpnet-base") == "mpnet-base (microsoft/mpnet-base trained further as a sentence encoder)"
    assert described("minilm-l6") == "minilm-l6"
    assert described("some/bert") == "some/bert"
    assert [width_of(name) for name in ("minilm-l3", "minilm-l6", "mpnet-base")] == [384, 384, 768]
