"""The small attention: what it reads, what it ignores, what it costs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eeutils.errors import InputError
from eeutils.models.backbone import Backbone
from eeutils.models.exits import Exit, MultiExitModel, Pooler
from eeutils.models.record import record
from eeutils.models.small_attention import AttentionExit, SmallAttention
from tests.tiny import flops_counted, of_length, tiny_encoder, tiny_samples

WIDTH, INNER = 16, 8


def attention(pool: str = "mean", heads: int = 2, projects: bool = False) -> SmallAttention:
    torch.manual_seed(0)
    return SmallAttention(WIDTH, heads, pool, INNER, projects=projects).eval()


def exits_model(pool: str = "mean", classes: int = 3, projects: bool = False) -> MultiExitModel:
    backbone = Backbone(tiny_encoder(attention="eager"))
    exits = [AttentionExit(WIDTH, classes, pool, 2, INNER, projects=projects) for _ in range(backbone.depth)]
    return MultiExitModel(backbone, dict(enumerate(exits, 1))).eval()


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("projects", [False, True])
def test_it_is_attention_written_out_by_hand(pool: str, projects: bool) -> None:
    module, states = attention(pool, projects=projects), torch.randn(1, 5, WIDTH)
    small = torch.tanh(states[0] @ module.down.weight.T + module.down.bias)
    query, key, value = (small @ part.weight.T + part.bias for part in (module.query, module.key, module.value))
    heads = []
    for columns in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(query[:, columns] @ key[:, columns].T / 4**0.5, dim=-1)
        heads.append(weights @ value[:, columns])
    tokens = module.project(torch.cat(heads, dim=-1))
    expected = tokens[0] if pool == "cls" else tokens.mean(dim=0)
    torch.testing.assert_close(module(states, torch.ones(1, 5).bool())[0], expected)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_is_neither_attended_to_nor_read(pool: str) -> None:
    module, states = attention(pool), torch.randn(2, 6, WIDTH)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    padded = module(states, mask)
    torch.testing.assert_close(padded[0], module(states[:1, :3], mask[:1, :3])[0])
    states[0, 3:] = 1e3
    torch.testing.assert_close(module(states, mask), padded)


@pytest.mark.parametrize("tokens", [3, 17])
@pytest.mark.parametrize("projects", [False, True])
def test_its_flops_are_those_that_torch_counts(tokens: int, projects: bool) -> None:
    module = attention(projects=projects)
    # torch counts nothing of the fused attention of CPUs; the plain form is the same work.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(torch.randn(1, tokens, WIDTH), torch.ones(1, tokens).bool())
    assert module.flops(torch.tensor([tokens])).tolist() == [counter.get_total_flops()]


@pytest.mark.parametrize("projects", [False, True])
def test_flops_of_attention_exits_are_those_that_torch_counts(projects: bool) -> None:
    model = exits_model(projects=projects)
    for tokens in (3, 17):
        evidence = record(model, of_length(tokens))
        with sdpa_kernel(SDPBackend.MATH):
            assert evidence.cost["flops"][:, 0].tolist() == flops_counted(model, tokens)


def test_speed_ups_of_attention_exits_are_measured_against_the_plain_model() -> None:
    model = exits_model()
    plain = MultiExitModel(model.backbone, {4: Exit(WIDTH, 3, "mean", Pooler(model.backbone))}).eval()
    samples = of_length(3, 17)
    assert torch.equal(record(model, samples).reference["flops"], record(plain, samples).reference["flops"])


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_batch_says_what_each_sentence_alone_does(pool: str) -> None:
    model, samples = exits_model(pool), tiny_samples(9)
    alone, together = (record(model, samples, batch_size=size) for size in (1, 9))
    torch.testing.assert_close(alone.logits, together.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(alone.cost["flops"], together.cost["flops"])


def test_bad_sizes_are_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="3 heads cannot share a width of 8"):
        SmallAttention(WIDTH, 3, "cls", 8)
    with pytest.raises(InputError, match="unknown pool 'max'"):
        SmallAttention(WIDTH, 2, "max")
