"""Which token stops where: orders of the vocabulary, their statistics, and windows of layers."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mutual_info_score

from eeutils.data.samples import Samples
from eeutils.errors import InputError
from eeutils.models.schedule import (
    BUCKETS,
    FUNCTIONS,
    TokenSchedule,
    count_types,
    make_schedule,
    mutual_information,
    windows,
)

CLS, SEP, VOCABULARY = 0, 1, 60


def samples_of(sentences: list[list[int]], labels: list | None = None) -> Samples:
    """Sentences of token ids between the two special tokens."""
    tokens = tuple((CLS, *sentence, SEP) for sentence in sentences)
    return Samples(tokens, None, None if labels is None else torch.tensor(labels), torch.arange(len(tokens)), 0)


def skewed_samples(count: int = 400, classes: int = 2, regression: bool = False) -> Samples:
    """Token types from 2 to 49 with frequencies like those of a language: a few make up most of the text."""
    generator = np.random.default_rng(0)
    share = 1 / np.arange(1, 49)
    sentences = [
        (2 + generator.choice(48, size=generator.integers(3, 15), p=share / share.sum())).tolist() for _ in range(count)
    ]
    labels = generator.normal(size=count).tolist() if regression else generator.integers(classes, size=count).tolist()
    return samples_of(sentences, labels)


def embeddings(seed: int = 0) -> torch.Tensor:
    return torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(seed))


def schedule(function: str = "frequency", samples: Samples | None = None, depth: int = 4, **options) -> TokenSchedule:
    samples = skewed_samples() if samples is None else samples
    return make_schedule(function, samples, embeddings(), depth, **{"special": (CLS, SEP), **options})


def layers_of(made: TokenSchedule, sentences: list[list[int]]) -> torch.Tensor:
    """Layers of the tokens of sentences of equal length."""
    ids = torch.tensor(sentences)
    return made.layers_of(ids, torch.ones_like(ids))


def layers_of_types(made: TokenSchedule, types: list[int]) -> list[int]:
    return layers_of(made, [types])[0].tolist()


def test_by_frequency_the_most_frequent_types_leave_first_worked_out_by_hand() -> None:
    # 8 running tokens: type 2 four times, 3 twice, 4 and 5 once. Halves of the mass: {2} and {3, 4, 5}.
    counted = samples_of([[2, 2, 3, 4], [2, 2, 3, 5]])
    assert layers_of_types(schedule(samples=counted, depth=2), [2, 3, 4, 5]) == [1, 2, 2, 2]
    # Halves of the types: {2, 3} and {4, 5}.
    assert layers_of_types(schedule(samples=counted, depth=2, buckets="types"), [2, 3, 4, 5]) == [1, 1, 2, 2]


def test_special_tokens_types_that_training_never_saw_and_ids_outside_the_table_run_to_the_top() -> None:
    made = schedule(last=2)
    assert layers_of_types(made, [CLS, SEP, 55, VOCABULARY, 10_000, -1]) == [4] * 6
    assert set(layers_of_types(made, list(range(2, 50)))) <= {1, 2}


def test_special_tokens_are_hashed_like_any_other_when_asked() -> None:
    # They stand in every sentence, so by frequency they leave first.
    assert max(layers_of_types(schedule(special=()), [CLS, SEP])) <= 2


def test_padding_runs_no_layer() -> None:
    ids, mask = torch.tensor([[CLS, 5, SEP, 0]]), torch.tensor([[1, 1, 1, 0]])
    for function in FUNCTIONS:
        assert schedule(function).layers_of(ids, mask)[0, -1] == 0


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("buckets", BUCKETS)
def test_layers_share_what_they_should_equally(function: str, buckets: str) -> None:
    samples = skewed_samples(2000)
    made = schedule(function, samples, buckets=buckets)
    if function == "random-occurrence":
        layers = torch.cat([layers_of(made, [list(sentence[1:-1])])[0] for sentence in samples.tokens])
        shares = layers.bincount(minlength=5)[1:] / len(layers)
        assert shares.sub(0.25).abs().max() < 0.02
        return
    running = Counter(token for sentence in samples.tokens for token in sentence[1:-1])
    share = Counter()
    for token, layer in zip(running, layers_of_types(made, list(running)), strict=True):
        share[layer] += running[token] if buckets == "mass" else 1
    assert set(share) == {1, 2, 3, 4}
    # A bucket can be off by half of the type at each of its borders.
    largest = max(running.values()) if buckets == "mass" else 1
    assert max(abs(share[layer] - sum(share.values()) / 4) for layer in share) <= largest


def test_in_equal_shares_of_the_types_most_running_text_leaves_after_the_first_layer() -> None:
    samples = skewed_samples()
    made = schedule(samples=samples, buckets="types")
    layers = torch.cat([layers_of(made, [list(sentence[1:-1])])[0] for sentence in samples.tokens])
    assert (layers == 1).double().mean() > 0.5


def test_random_by_type_is_consistent_and_random_by_occurrence_is_not() -> None:
    sentences = [[CLS, 5, 6, 5, 7, 5, SEP], [CLS, 7, 5, 6, 6, 5, SEP]]
    by_type, by_occurrence = (layers_of(schedule(f"random-{kind}"), sentences) for kind in ("type", "occurrence"))
    ids = torch.tensor(sentences)
    assert by_type[ids == 5].unique().numel() == 1
    assert by_occurrence[ids == 5].unique().numel() > 1


def test_random_by_occurrence_says_the_same_in_any_batch_and_on_either_side_of_the_padding() -> None:
    made, sentence = schedule("random-occurrence"), [CLS, 5, 6, 5, 7, SEP]
    alone = layers_of(made, [sentence])[0]
    ids = torch.tensor([[*sentence, 0, 0], [0, 0, *sentence], [CLS, 9, 9, 9, 9, 9, 9, SEP]])
    mask = torch.tensor([[1] * 6 + [0] * 2, [0] * 2 + [1] * 6, [1] * 8])
    right, left, _ = made.layers_of(ids, mask)
    assert torch.equal(right[:6], alone)
    assert torch.equal(left[2:], alone)


def test_random_by_occurrence_is_uniform_and_the_same_for_neighbours_only_by_chance() -> None:
    made = schedule("random-occurrence", depth=6)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 50, (400, 50), generator=generator)
    layers = made.layers_of(ids, torch.ones_like(ids)) - 1
    assert stats.chisquare(layers.flatten().bincount(minlength=6)).pvalue > 0.001
    pairs = (6 * layers[:, :-1] + layers[:, 1:]).flatten().bincount(minlength=36)
    assert stats.chisquare(pairs).pvalue > 0.001
    down = (6 * layers[:-1] + layers[1:]).flatten().bincount(minlength=36)
    assert stats.chisquare(down).pvalue > 0.001


def test_seeds_decide_random_orders_and_nothing_else_does() -> None:
    for function in ("random-type", "random-occurrence"):
        first, again, other = (
            layers_of(schedule(function, seed=seed), [list(range(2, 50))]).tolist() for seed in (0, 0, 1)
        )
        assert first == again != other


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_mutual_information_sums_to_that_of_token_and_label(classes: int) -> None:
    samples = skewed_samples(classes=classes)
    tokens = [token for sentence in samples.tokens for token in sentence]
    labels = samples.labels.repeat_interleave(samples.lengths).tolist()
    information = mutual_information(count_types(samples, VOCABULARY, by_label=True))
    assert information.sum().item() == pytest.approx(mutual_info_score(tokens, labels))
    assert (information >= -1e-12).all()


def test_a_type_that_occurs_once_counts_once() -> None:
    # Two classes of four tokens each; type 4 stands in class 1 alone, once in 8: 1/8 ln( (1/8) / (1/8 * 1/2) ).
    counts = torch.tensor([[0, 0], [2, 2], [2, 1], [0, 0], [0, 1]])
    assert mutual_information(counts)[4].item() == pytest.approx(np.log(2) / 8)
    assert mutual_information(counts)[[0, 1, 3]].tolist() == [0, 0, 0]


def test_by_mutual_information_the_types_that_give_the_label_away_leave_first() -> None:
    sentences = [[2, 4, 5], [2, 5, 4]] * 5 + [[3, 4, 5], [3, 5, 4]] * 5
    for labels in ([0] * 10 + [1] * 10, [0.0] * 10 + [1.0] * 10):
        made = schedule("mutual-information", samples_of(sentences, labels), depth=2)
        assert layers_of_types(made, [2, 3, 4, 5]) == [1, 1, 2, 2]


def test_labels_of_a_regression_are_classed_by_quantiles() -> None:
    sentences, labels = [[2], [3], [4], [5], [6]] * 20, [float(place % 5) for place in range(100)]
    counts = count_types(samples_of(sentences, labels), VOCABULARY, by_label=True)
    assert counts.shape == (VOCABULARY, 5)
    assert counts[2:7].sum(dim=1).tolist() == [20] * 5
    # Every type is tied to one quantile.
    assert (counts[2:7] > 0).sum(dim=1).tolist() == [1] * 5


def test_clusters_stay_together_and_short_embeddings_leave_first() -> None:
    table = torch.zeros(VOCABULARY, 2)
    table[2:12] = torch.tensor([10.0, 0]) + 0.01 * torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    table[12:22] = torch.tensor([0.0, 1]) + 0.01 * torch.randn(10, 2, generator=torch.Generator().manual_seed(1))
    made = make_schedule("cluster", samples_of([list(range(2, 22))]), table, 2, special=(CLS, SEP))
    assert layers_of_types(made, list(range(2, 12))) == [2] * 10
    assert layers_of_types(made, list(range(12, 22))) == [1] * 10


@given(st.integers(1, 24))
def test_the_family_of_windows_runs_from_one_layer_to_all_in_equal_steps(depth: int) -> None:
    family = windows(depth)
    assert family[0] == (1, 1)
    assert family[-1] == (depth, depth)
    assert (1, depth) in family
    means = [(first + last) / 2 for first, last in family]
    assert np.allclose(np.diff(means), 0.5)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.integers(1, 12), st.data())
def test_every_rank_gets_a_layer_of_the_window(ranks: list[float], depth: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, depth))
    last = data.draw(st.integers(first, depth))
    made = TokenSchedule(torch.tensor(ranks), depth, first, last)
    layers = layers_of_types(made, list(range(len(ranks))))
    for rank, layer in zip(ranks, layers, strict=True):
        assert (first <= layer <= last) if rank < 1 else layer == depth
    in_order = [layer for _, layer in sorted(zip(ranks, layers, strict=True))]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize(("first", "last"), [(0, 2), (3, 2), (1, 5), (5, None)])
def test_a_window_beyond_the_encoder_is_refused(first: int, last: int | None) -> None:
    with pytest.raises(InputError, match="layers 1 to 4"):
        schedule(first=first, last=last)


def test_what_cannot_be_hashed_is_told() -> None:
    with pytest.raises(InputError, match="mean 'frequency'"):
        schedule("frequencies")
    with pytest.raises(InputError, match="choose one of: mass, types"):
        schedule(buckets="equal")
    with pytest.raises(InputError, match="token id 60 is outside a vocabulary of 60"):
        schedule(samples=samples_of([[2, VOCABULARY]]))
    with pytest.raises(InputError, match="have no labels"):
        schedule("mutual-information", samples_of([[2, 3]]))
    with pytest.raises(InputError, match="at least one token"):
        schedule(samples=samples_of([[], []]))
