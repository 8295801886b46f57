"""Exits: what they read, what they share, what they carry along, and that no forward pass depends on chance."""

import weakref
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from eeutils.errors import InputError
from eeutils.models.backbone import Backbone, Hidden
from eeutils.models.cost import Spent
from eeutils.models.exits import (
    Exit,
    ExitState,
    MultiExitModel,
    Pooler,
    exits_on_all_layers,
    pool_tokens,
)
from eeutils.models.stages import Answer, stack
from tests.tiny import CONFIGS, tiny_encoder, tiny_model, tiny_samples

BATCH = tiny_samples(6).batch(range(6))


def test_the_mean_is_over_real_tokens_and_cls_is_the_first() -> None:
    states = torch.tensor([[[1.0], [2.0], [100.0]], [[3.0], [6.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    nothing = Spent(torch.zeros(2), torch.zeros(2))
    hidden = Hidden(states, mask, None, mask.sum(dim=1), nothing, nothing)
    assert pool_tokens(hidden, "mean").tolist() == [[1.5], [6.0]]
    assert pool_tokens(hidden, "cls").tolist() == [[1.0], [3.0]]


@given(lengths=st.lists(st.integers(3, 12), min_size=1, max_size=6), stay=st.data())
def test_the_state_knows_whether_anything_is_padding_and_pools_the_same_either_way(
    lengths: list[int], stay: st.DataObject
) -> None:
    backbone, lengths = tiny_model().backbone, torch.tensor(lengths)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    rows = stay.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True))
    with torch.inference_mode():
        whole = backbone.embed(mask * 5, mask)
        for hidden in (whole, backbone.take(whole, torch.tensor(rows))):
            assert hidden.padded == (not bool(hidden.attention_mask.all()))
            assert torch.equal(pool_tokens(hidden, "mean"), pool_tokens(replace(hidden, padded=True), "mean"))


def test_an_answer_whose_cost_nobody_has_counted_yet_holds_no_hidden_states() -> None:
    model = tiny_model()
    with torch.inference_mode():
        state, answer = model.step(0, model.begin(*BATCH.inputs))
        states = weakref.ref(state.hidden.states)
        del state
        assert states() is None
        assert answer.spent.layers.tolist() == [1] * 6


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_further_changes_no_answer(pool: str) -> None:
    model, samples = tiny_model(pool=pool), tiny_samples(6)
    with torch.inference_mode():
        tight = model(*samples.batch(range(6)).inputs)
        loose = model(*samples.batch(range(6), pad_to=35).inputs)
    torch.testing.assert_close(tight.logits, loose.logits, atol=1e-5, rtol=1e-5)


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(InputError, match="unknown pool 'max'; choose one of: cls, mean"):
        Exit(16, 2, "max")


def test_an_exit_on_the_last_layer_with_the_encoder_s_pooler_is_hugging_face_s_pooled_output() -> None:
    encoder = tiny_encoder()
    backbone = Backbone(encoder)
    model = MultiExitModel(backbone, exits_on_all_layers(backbone, 2, "cls", "own")).eval()
    features: list[torch.Tensor] = []
    model.exits["4"].classifier.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    with torch.inference_mode():
        model(*BATCH.inputs)
        wanted = encoder(BATCH.input_ids, BATCH.attention_mask).pooler_output
    assert torch.equal(features[0], wanted)


def test_own_poolers_are_distinct_and_start_from_the_pre_trained_one() -> None:
    backbone = Backbone(tiny_encoder())
    exits = exits_on_all_layers(backbone, 2, "cls", "own")
    poolers = [head.pooler for head in exits.values()]
    assert list(exits) == [1, 2, 3, 4]
    assert len({id(pooler) for pooler in poolers}) == 4
    assert len({pooler.dense.weight.data_ptr() for pooler in poolers}) == 4
    source = backbone.model.pooler.dense
    for pooler in poolers:
        assert torch.equal(pooler.dense.weight, source.weight)
        assert torch.equal(pooler.dense.bias, source.bias)
        assert pooler.dense.weight.data_ptr() != source.weight.data_ptr()
    with torch.no_grad():
        poolers[0].dense.weight.zero_()
    assert not torch.equal(poolers[1].dense.weight, poolers[0].dense.weight)
    assert torch.equal(poolers[1].dense.weight, source.weight)


def test_the_shared_pooler_is_one_object_and_the_classifiers_are_not() -> None:
    exits = exits_on_all_layers(Backbone(tiny_encoder()), 2, "cls", "shared")
    assert len({id(head.pooler) for head in exits.values()}) == 1
    assert len({id(head.classifier) for head in exits.values()}) == 4


@pytest.mark.parametrize("name", ["electra", "distilbert"])
def test_families_without_a_pooler_get_a_new_one(name: str) -> None:
    backbone = Backbone(tiny_encoder(name))
    assert backbone.pretrained_pooler is None
    assert Pooler(backbone).dense.weight.shape == (16, 16)


@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
def test_families_with_a_pooler_lend_it(name: str) -> None:
    backbone = Backbone(tiny_encoder(name))
    assert torch.equal(Pooler(backbone).dense.weight, backbone.pretrained_pooler.weight)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_module_stands_twice_in_a_list_of_modules(name: str) -> None:
    backbone = Backbone(tiny_encoder(name))
    model = MultiExitModel(backbone, exits_on_all_layers(backbone, 2, "cls", "own"))
    for part in model.modules():
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            children = list(part.values() if isinstance(part, nn.ModuleDict) else part)
            assert len({id(child) for child in children}) == len(children)


def test_there_is_no_dropout_in_evaluation_mode_and_there_is_in_training_mode() -> None:
    model = tiny_model()
    with torch.inference_mode():
        assert torch.equal(model(*BATCH.inputs).logits, model(*BATCH.inputs).logits)
        model.train()
        assert not torch.equal(model(*BATCH.inputs).logits, model(*BATCH.inputs).logits)


def test_exits_answer_from_the_state_after_their_layer() -> None:
    model = tiny_model()
    with torch.inference_mode():
        logits = model(*BATCH.inputs).logits
        states = model.backbone.model(BATCH.input_ids, BATCH.attention_mask, output_hidden_states=True).hidden_states
        for stage, head in enumerate(model.exits.values()):
            wanted = head.classifier(torch.tanh(head.pooler.dense(states[stage + 1][:, 0])))
            torch.testing.assert_close(logits[stage], wanted, atol=1e-6, rtol=1e-6)
    assert logits.shape == (4, 6, 2)


def test_sparse_exits_answer_as_the_same_exits_among_all() -> None:
    model = tiny_model()
    sparse = MultiExitModel(model.backbone, {4: model.exits["4"], 2: model.exits["2"]}).eval()
    assert (sparse.layers, sparse.stages, sparse.reference_layers) == ((2, 4), 2, 4)
    with torch.inference_mode():
        assert torch.equal(sparse(*BATCH.inputs).logits, model(*BATCH.inputs).logits[[1, 3]])


def test_layers_beyond_the_last_exit_never_run() -> None:
    model = tiny_model()
    shallow = MultiExitModel(model.backbone, {2: model.exits["2"]}).eval()
    ran: list[int] = []
    for number, layer in enumerate(model.backbone.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.inference_mode():
        shallow(*BATCH.inputs)
    assert ran == [0, 1]


@pytest.mark.parametrize("layers", [[], [0], [5], [1, 9]])
def test_exits_stand_only_on_layers_that_there_are(layers: list[int]) -> None:
    with pytest.raises(InputError, match="exits stand on layers 1 to 4"):
        MultiExitModel(Backbone(tiny_encoder()), {layer: Exit(16, 2, "cls") for layer in layers})


class Counting(Exit):
    """An exit that carries a count per sample along, and says how the state changed in its last layer."""

    def forward(self, state: ExitState, earlier: Spent | None = None) -> tuple[ExitState, Answer]:
        after, answer = super().forward(state, earlier)
        count = state.carried.get("count", torch.zeros(len(answer.logits))) + 1
        moved = (state.hidden.states - state.before.states).abs().amax(dim=(1, 2))
        return replace(after, carried={"count": count}), answer._replace(extras={"count": count, "moved": moved})


def test_extras_and_what_exits_carry_follow_the_samples() -> None:
    backbone = Backbone(tiny_encoder())
    model = MultiExitModel(backbone, {layer: Counting(16, 2, "cls") for layer in (1, 3, 4)}).eval()
    with torch.inference_mode():
        whole = model(*BATCH.inputs)
        assert whole.extras["count"].tolist() == [[1.0] * 6, [2.0] * 6, [3.0] * 6]
        state, _ = model.step(0, model.begin(*BATCH.inputs))
        state = replace(state, carried={"count": torch.arange(6.0)})
        state = model.leave(state, torch.tensor([True, False, True, True, False, True]))
        state, answer = model.step(1, state)
    assert answer.extras["count"].tolist() == [2.0, 5.0]
    torch.testing.assert_close(answer.logits, whole.logits[1, [1, 4]], atol=1e-5, rtol=1e-5)
    for kind in ("layers", "flops"):
        assert torch.equal(getattr(answer.spent, kind), getattr(whole.spent, kind)[1, [1, 4]])
    assert answer.spent.layers.tolist() == [2, 2]
    # "before" is the state before the exit's own layer, not that of the exit before.
    states = backbone.model(BATCH.input_ids, BATCH.attention_mask, output_hidden_states=True).hidden_states
    wanted = (states[3] - states[2]).abs()
    for place, real in enumerate(BATCH.attention_mask.bool()):
        assert whole.extras["moved"][1, place] >= wanted[place][real].max() - 1e-5


def test_an_extra_that_a_stage_lacks_is_refused() -> None:
    nothing = Spent(torch.zeros(2), torch.zeros(2))
    with pytest.raises(InputError, match="every stage must give the same extras"):
        stack([Answer(torch.zeros(2, 2), nothing, {"policy": torch.zeros(2)}), Answer(torch.zeros(2, 2), nothing)])
