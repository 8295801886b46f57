"""Token ids and batches: padded right, every sample once, in an order that can be taken up again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eeutils.data.samples import LengthBuckets, Samples, batches, encode
from eeutils.errors import InputError
from tests.tiny import tiny_samples, tiny_tokenizer


def lengths_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 60, (count,), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50)
@given(
    count=st.integers(1, 200),
    batch_size=st.integers(1, 32),
    pool=st.integers(1, 8),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_every_sample_stands_in_one_batch_of_each_epoch(
    count: int, batch_size: int, pool: int, epoch: int, seed: int
) -> None:
    sampler = LengthBuckets(lengths_of(count), batch_size, seed, pool)
    sampler.start(epoch)
    drawn = list(sampler)
    assert sorted(row for rows in drawn for row in rows) == list(range(count))
    assert len(drawn) == len(sampler)
    assert all(len(rows) <= batch_size for rows in drawn)
    assert sum(len(rows) < batch_size for rows in drawn) <= 1


@settings(max_examples=50)
@given(count=st.integers(1, 100), batches_each=st.integers(1, 4), processes=st.integers(1, 4), first=st.integers(0, 3))
def test_processes_share_each_batch_among_them_and_none_goes_without(
    count: int, batches_each: int, processes: int, first: int
) -> None:
    size = batches_each * processes
    alone = LengthBuckets(lengths_of(count), size, seed=0)
    alone.start(1, first)
    shares = [LengthBuckets(lengths_of(count), size, seed=0, share=(k, processes)) for k in range(processes)]
    for share in shares:
        share.start(1, first)
    for whole, *parts in zip(alone, *shares, strict=True):
        assert all(parts)
        assert {row for part in parts for row in part} == set(whole)
        if len(whole) >= processes:
            assert sorted(row for part in parts for row in part) == sorted(whole)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_order_is_another_each_epoch_and_the_same_for_a_seed() -> None:
    def order(seed: int, epoch: int, first: int = 0) -> list[list[int]]:
        sampler = LengthBuckets(lengths_of(100), 8, seed)
        sampler.start(epoch, first)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert {frozenset(rows) for rows in order(0, 1)} != {frozenset(rows) for rows in order(0, 2)}
    assert order(0, 1, first=5) == order(0, 1)[5:]
    assert order(0, 1, first=13) == []


def test_batches_of_like_length_are_hardly_padded_and_do_not_come_in_order_of_length() -> None:
    lengths = lengths_of(2000)
    drawn = list(LengthBuckets(lengths, 32, seed=0))
    padded = sum(int(lengths[rows].max()) * len(rows) for rows in drawn)
    at_random = sum(int(rows.max()) * len(rows) for rows in lengths.split(32))
    assert padded / lengths.sum() < 1.05
    assert at_random / lengths.sum() > 1.5
    means = torch.tensor([lengths[rows].double().mean() for rows in drawn])
    assert abs(torch.corrcoef(torch.stack([means, torch.arange(len(means)).double()]))[0, 1]) < 0.4


def test_a_batch_is_padded_to_its_longest_sample_or_further() -> None:
    samples = Samples(
        ((2, 7, 3), (2, 5, 6, 8, 3)), ((0, 0, 0), (0, 0, 0, 1, 1)), torch.tensor([1, 0]), torch.tensor([8, 9]), 4
    )
    batch = samples.batch([1, 0])
    assert batch.input_ids.tolist() == [[2, 5, 6, 8, 3], [2, 7, 3, 4, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert (batch.labels.tolist(), batch.ids.tolist()) == ([0, 1], [9, 8])
    assert samples.batch([0], pad_to=6).attention_mask.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert samples.batch([1], pad_to=2).input_ids.shape == (1, 5)
    assert samples.lengths.tolist() == [3, 5]
    taken = samples.take([1])
    assert (taken.tokens, taken.ids.tolist(), len(taken)) == (((2, 5, 6, 8, 3),), [9], 1)
    with pytest.raises(InputError, match="at least one sample"):
        samples.batch([])


def test_all_samples_pass_once_in_order_of_length() -> None:
    samples = tiny_samples(23)
    seen, widths = [], []
    for rows, batch in batches(samples, 5):
        assert batch.ids.tolist() == samples.ids[rows].tolist()
        seen.extend(rows.tolist())
        widths.append(batch.input_ids.shape[1])
    assert sorted(seen) == list(range(23))
    assert widths == sorted(widths)


def test_sentences_and_pairs_are_encoded_as_the_tokenizer_says() -> None:
    tokenizer = tiny_tokenizer()
    single = encode(tokenizer, ["good film", "bad"], max_length=40, labels=[1, 0], ids=[5, 6])
    assert [tokenizer.decode(tokens) for tokens in single.tokens] == ["[CLS] good film [SEP]", "[CLS] bad [SEP]"]
    assert single.types is None
    assert (single.labels.tolist(), single.ids.tolist(), single.padding) == ([1, 0], [5, 6], 0)
    pairs = encode(tokenizer, ["good film", "bad"], ["plot", ""], max_length=40)
    assert tokenizer.decode(pairs.tokens[0]) == "[CLS] good film [SEP] plot [SEP]"
    assert pairs.types[0] == (0, 0, 0, 0, 1, 1)
    assert encode(tokenizer, ["good"], [""], max_length=40).types is None
    assert encode(tokenizer, ["good"], ["\u200b"], max_length=40).types is None


def test_what_is_too_long_is_cut_with_its_end_mark() -> None:
    tokenizer = tiny_tokenizer()
    cut = encode(tokenizer, [" ".join(["film"] * 500)], max_length=6)
    assert tokenizer.decode(cut.tokens[0]) == "[CLS] film film film film [SEP]"
    pair = encode(tokenizer, [" ".join(["film"] * 500)], ["good"], max_length=8)
    assert len(pair.tokens[0]) == 8
    assert tokenizer.decode(pair.tokens[0]).endswith("[SEP] good [SEP]")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([],), "nothing to encode"),
        ((["good", "\t "],), "place 1 is empty"),
        ((["good", "bad", "\u00a0\u200b\u2060\ufeff\u00ad"],), "place 2 is empty"),
        ((["good", "bad"], ["film"]), "2 first and 1 second texts"),
    ],
)
def test_texts_that_cannot_be_encoded_are_refused(arguments: tuple, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        encode(tiny_tokenizer(), *arguments, max_length=40)


@pytest.mark.parametrize("max_length", [2, 41, 0])
def test_a_length_that_the_model_cannot_take_is_refused(max_length: int) -> None:
    with pytest.raises(InputError, match=rf"max_length {max_length} does not fit.*choose 3 to 40"):
        encode(tiny_tokenizer(), ["good"], max_length=max_length)


def test_notes_are_joined_by_id_and_follow_the_samples_into_batches() -> None:
    samples = tiny_samples(4).take([2, 0, 3])
    noted = samples.with_notes(hardness=(torch.tensor([3, 9, 0, 2]), torch.tensor([0.3, 0.9, 0.0, 0.2])))
    assert noted.notes["hardness"].tolist() == pytest.approx([0.2, 0.0, 0.3])
    assert noted.take([1, 2]).batch([1]).notes["hardness"].tolist() == pytest.approx([0.3])
    assert noted.batch([0]).to(torch.device("meta")).notes["hardness"].device.type == "meta"
    assert samples.notes == {}


def test_a_sample_without_its_note_or_an_id_with_two_notes_is_refused() -> None:
    samples = tiny_samples(3)
    with pytest.raises(InputError, match="note 'hardness' lacks 1 of 3 samples, such as id 1"):
        samples.with_notes(hardness=(torch.tensor([0, 2]), torch.zeros(2)))
    with pytest.raises(InputError, match="4 values for 3 ids"):
        samples.with_notes(hardness=(torch.tensor([0, 1, 2, 2]), torch.zeros(4)))


def test_further_tokenizers_give_the_same_samples_in_other_tokens_all_the_way_to_the_batch() -> None:
    short = tiny_tokenizer()
    short.add_tokens(["very good"])  # one token where the other tokenizer has two
    texts = ["very good", "bad film", "very good plot and the end"]
    samples = encode([tiny_tokenizer(), short], texts, max_length=40, labels=[1, 0, 1], ids=[5, 6, 7])
    alone = encode(short, texts, max_length=40, labels=[1, 0, 1], ids=[5, 6, 7])
    assert samples.tokens == encode(tiny_tokenizer(), texts, max_length=40).tokens
    assert samples.others[0].tokens == alone.tokens != samples.tokens
    batch = samples.take([2, 0]).batch([1])
    assert batch.ids.tolist() == batch.others[0].ids.tolist() == [5]
    own, other = batch.inputs[:3], batch.inputs[3:]
    assert own[0].tolist() == [list(samples.tokens[0])]
    assert other[0].tolist() == [list(alone.tokens[0])]
    assert len(batch.to(torch.device("cpu")).inputs) == 6
    assert encode(short, texts, max_length=40).others == ()
