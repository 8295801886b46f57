"""The real weights of mpnet-base: microsoft/mpnet-base trained further as a sentence encoder."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from eeutils.data.samples import encode
from eeutils.data.sources import SourceError, fetch
from eeutils.models.backbone import Backbone, load_backbone, load_tokenizer
from eeutils.models.vocabularies import encodings

TEXTS = [
    "A triumph.",
    "Two hours that I will not get back, and a headache.",
    "Nobody asked for it, did they?",
]
OTHERS = ["It succeeds.", "It was long.", "They did not ask."]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    try:
        fetch("mpnet-base")
    except SourceError as error:
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(f"no network and nothing cached: {error}")
    return load_backbone("mpnet-base").eval()


def inputs(rows: list[int], pairs: bool = False, left: bool = False) -> dict[str, Tensor]:
    samples = encode(load_tokenizer("mpnet-base"), TEXTS, OTHERS if pairs else None)
    ids, mask, types = samples.batch(rows).inputs
    assert types is None, "this encoder knows no token types"
    if left:
        turn = [torch.arange(len(row)).roll(int((~row.bool()).sum())) for row in mask]
        ids, mask = (torch.stack([row[place] for row, place in zip(part, turn, strict=True)]) for part in (ids, mask))
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "given",
    [{"rows": [1]}, {"rows": [0, 1, 2]}, {"rows": [0, 1, 2], "pairs": True}, {"rows": [0, 1, 2], "left": True}],
    ids=["unpadded", "padded", "pairs", "left"],
)
@torch.inference_mode()
def test_every_layer_equals_hugging_face_s_to_the_last_bit(backbone: Backbone, given: dict) -> None:
    batch = inputs(**given)
    assert bool((batch["attention_mask"] == 0).any()) == (len(given["rows"]) > 1)
    theirs = AutoModel.from_pretrained(fetch("mpnet-base"), attn_implementation="eager").eval()
    wanted = theirs(**batch, output_hidden_states=True).hidden_states
    hidden = backbone.embed(**batch)
    assert torch.equal(hidden.states, wanted[0])
    for layer in range(12):
        hidden = backbone.run_layer(layer, hidden)
        assert torch.equal(hidden.states, wanted[layer + 1]), layer
    assert backbone.depth == 12
    assert backbone.width == 768


@torch.inference_mode()
def test_tokens_that_stop_are_seen_where_they_stand(backbone: Backbone) -> None:
    batch = inputs([0, 1, 2], left=True)
    torch.manual_seed(0)
    last = torch.randint(0, 13, batch["input_ids"].shape)  # the layers that each token runs
    packed = masked = backbone.embed(**batch)
    for layer in range(12):
        active = last > layer
        whole = backbone.run_layer(layer, masked).states
        masked = replace(masked, states=torch.where(active[..., None], whole, masked.states))
        packed = backbone.run_layer(layer, packed, active)
    real = packed.attention_mask
    torch.testing.assert_close(packed.states[real], masked.states[real], atol=2e-4, rtol=1e-3)
    assert (packed.states[real] - backbone(**batch)[real]).abs().max() > 0.1
    # Who stays when the others have left is not moved by that.
    one = backbone.take(packed, torch.tensor([1]))
    one, rest = backbone.run_layer(0, one), backbone.run_layer(0, packed)
    torch.testing.assert_close(one.states[0], rest.states[1][real[1]], atol=2e-4, rtol=1e-3)


@torch.inference_mode()
def test_a_pass_spends_what_torch_counts(backbone: Backbone) -> None:
    batch = inputs([1])
    with FlopCounterMode(display=False) as counter:
        hidden = backbone.embed(**batch)
        for layer in range(12):
            hidden = backbone.run_layer(layer, hidden)
    assert hidden.spent.flops.tolist() == [counter.get_total_flops()]
    assert hidden.spent.layers.tolist() == [12]


def test_small_encoders_before_it_read_another_vocabulary(backbone: Backbone) -> None:
    assert encodings(("minilm-l3", "minilm-l6", "mpnet-base")) == (1, 1, 0)
