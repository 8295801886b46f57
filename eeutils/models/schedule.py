"""Where each token stops, decided before the network runs: a hash from token ids to layers.

A schedule is an order of the vocabulary and a window of layers. The order says who leaves first; it is kept as one rank
per token type, the share of the vocabulary (or of the running tokens) that leaves before it. A window from layer a to
layer b is cut into equal parts of the rank, so that a token of rank r runs

    a + floor(r (b - a + 1))    layers.

Special tokens and types that training never saw have rank 1 and run to the top. Every statistic comes from the training
samples alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor

from eeutils.data.samples import Samples
from eeutils.errors import InputError, unknown

Function = Literal["random-type", "random-occurrence", "frequency", "mutual-information", "cluster"]
"""Random by token type (consistent) or by occurrence (inconsistent); the most frequent type first; the one that says
most about the label first; clusters of embeddings, the one of the smallest norms first."""

Buckets = Literal["mass", "types"]
"""Layers share the running tokens equally, or the token types."""

FUNCTIONS: tuple[str, ...] = get_args(Function)
BUCKETS: tuple[str, ...] = get_args(Buckets)

LABEL_BINS = 5
"""Into how many quantiles the labels of a regression are cut, for mutual information."""

_RESTARTS = 4  # of k-means
_PRIME = 2**31 - 1
_BELOW_ONE = 1 - 2**-24  # the largest single-precision number below 1


@dataclass(frozen=True)
class TokenSchedule:
    """Token id -> the last layer that a token runs.

    Attributes:
        ranks: (V,) by token id: in [0, 1) for types that the order knows, 1 for those that run to the top.
        depth: L, the layers of the encoder that it is made for.
        first, last: the window of layers, from 1; `last` is the top by default.
        occurrence_seed: with it, each OCCURRENCE of a type that the order knows takes a random rank instead of its
            type's, fixed by the sentence, the position and this seed.

    Raises:
        InputError: a window that does not lie within the layers.
    """

    ranks: Float[Tensor, " vocabulary"]
    depth: int
    first: int = 1
    last: int | None = None
    occurrence_seed: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.deepest <= self.depth:
            raise InputError(
                f"a schedule's window lies within layers 1 to {self.depth} of its encoder; got {self.first} to "
                f"{self.deepest}"
            )

    @property
    def deepest(self) -> int:
        """The window's last layer."""
        return self.depth if self.last is None else self.last

    @property
    def consistent(self) -> bool:
        """Whether a token type stops at the same layer wherever it stands."""
        return self.occurrence_seed is None

    def window(self, first: int, last: int) -> TokenSchedule:
        """The same order over other layers."""
        return replace(self, first=first, last=last)

    def layers_of(self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Tensor) -> Int[Tensor, "batch tokens"]:
        """The layers that each token runs, 0 for padding. An id outside the table runs to the top, as an unseen one."""
        known = (input_ids >= 0) & (input_ids < len(self.ranks))
        ranks = self.ranks.to(input_ids.device)[input_ids.clamp(0, len(self.ranks) - 1)].masked_fill(~known, 1.0)
        ordinary = ranks < 1
        if self.occurrence_seed is not None:
            ranks = _rank_by_occurrence(input_ids, attention_mask.long(), self.occurrence_seed)
        layers = self.first + (ranks * (self.deepest - self.first + 1)).floor().long().clamp(
            max=self.deepest - self.first
        )
        return layers.masked_fill(~ordinary, self.depth) * attention_mask.long()


def windows(depth: int) -> list[tuple[int, int]]:
    """A family of windows from the cheapest, (1, 1), over the widest, (1, L), to the plain model, (L, L).

    In buckets of equal mass an ordinary token runs (first + last) / 2 layers on average: half a layer more each step.
    """
    return [(1, last) for last in range(1, depth + 1)] + [(first, depth) for first in range(2, depth + 1)]


def make_schedule(
    function: str,
    samples: Samples,
    embeddings: Float[Tensor, "vocabulary width"],
    depth: int,
    *,
    buckets: str = "mass",
    first: int = 1,
    last: int | None = None,
    special: Collection[int] = (),
    seed: int = 0,
) -> TokenSchedule:
    """A schedule from the statistics of training samples.

    Args:
        function: one of `FUNCTIONS`: who leaves first.
        samples: of the training split; labels are read for mutual information only.
        embeddings: one vector per token id, for the clusters; their number is the size of the table.
        depth: L, layers of the encoder.
        buckets: one of `BUCKETS`: what layers share equally.
        first, last: the window of layers.
        special: ids that run to the top.
        seed: of random orders and of k-means.

    Raises:
        InputError: an unknown function or kind of buckets, token ids beyond the embeddings, or no ordinary token.
    """
    if function not in FUNCTIONS:
        raise unknown("hash function", function, FUNCTIONS)
    if buckets not in BUCKETS:
        raise unknown("kind of buckets", buckets, BUCKETS)
    counts = count_types(samples, len(embeddings)).sum(dim=1)
    ordinary = counts > 0
    ordinary[list(special)] = False
    types = ordinary.nonzero().flatten()
    if len(types) == 0:
        raise InputError("a schedule needs samples with at least one token that is not special; there is none")
    if function == "frequency":
        score = counts[types].double()
    elif function == "mutual-information":
        score = mutual_information(count_types(samples, len(embeddings), by_label=True))[types]
    elif function == "cluster":
        score = _cluster_score(embeddings[types], depth, seed)
    else:
        score = torch.rand(len(types), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = types[score.argsort(descending=True, stable=True)]
    weights = counts[order].double() if buckets == "mass" else torch.ones(len(order), dtype=torch.float64)
    ranks = torch.ones(len(embeddings))
    # A type's rank is the middle of its own share: what lies before it, and half of itself.
    ranks[order] = ((weights.cumsum(dim=0) - weights / 2) / weights.sum()).clamp(max=_BELOW_ONE).float()
    return TokenSchedule(ranks, depth, first, last, seed if function == "random-occurrence" else None)


def count_types(samples: Samples, vocabulary: int, by_label: bool = False) -> Int[Tensor, "vocabulary classes"]:
    """How often each token id occurs in sentences of each class; in one column for all unless `by_label`.

    The numbers of a regression are classed by quantiles, `LABEL_BINS` of them.

    Raises:
        InputError: a token id that the vocabulary does not have, or no labels where they are needed.
    """
    tokens = torch.tensor([token for sentence in samples.tokens for token in sentence])
    if int(tokens.max()) >= vocabulary:
        raise InputError(
            f"token id {int(tokens.max())} is outside a vocabulary of {vocabulary}; tokenise with the tokenizer that "
            "belongs to this encoder"
        )
    if not by_label:
        return tokens.bincount(minlength=vocabulary)[:, None]
    if samples.labels is None:
        raise InputError("mutual information needs labelled samples, and these have no labels")
    labels = samples.labels
    if labels.is_floating_point():
        inner = torch.arange(1, LABEL_BINS, dtype=torch.float64) / LABEL_BINS
        labels = torch.bucketize(labels.double(), labels.double().quantile(inner).unique())
    classes = int(labels.max()) + 1
    places = tokens * classes + labels.repeat_interleave(samples.lengths)
    return places.bincount(minlength=vocabulary * classes).view(vocabulary, classes)


def mutual_information(counts: Int[Tensor, "vocabulary classes"]) -> Float[Tensor, " vocabulary"]:
    """I(x) = sum_y p(x, y) ln( p(x, y) / (p(x) p(y)) ) in nats, all probabilities over running tokens.

    Summed over the vocabulary this is the mutual information of token and label. Every occurrence counts, the first
    one of a type, too; a type that never occurs says nothing: 0.
    """
    joint = counts.double() / counts.sum()
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    return torch.where(joint > 0, joint * (joint / independent).log(), 0.0).sum(dim=1)


def _cluster_score(embeddings: Tensor, clusters: int, seed: int) -> Tensor:
    """Larger leaves first: clusters by their mean norm, the smallest first, and in a cluster the nearest to its centre.

    The paper's order by the SUM of norms is decided by the size of the clusters.
    """
    vectors = embeddings.detach().double().cpu().numpy()
    means = KMeans(min(clusters, len(vectors)), n_init=_RESTARTS, random_state=seed).fit(vectors)
    label = torch.from_numpy(means.labels_).long()
    distance = torch.from_numpy(means.transform(vectors)).gather(1, label[:, None])[:, 0]
    norms = torch.zeros(len(means.cluster_centers_), dtype=torch.float64)
    norms = norms.index_add(0, label, torch.from_numpy(vectors).norm(dim=1)) / label.bincount()
    place = norms.argsort().argsort()[label]
    return -(place + distance / (1 + distance.max()))


def _rank_by_occurrence(input_ids: Tensor, attention_mask: Tensor, seed: int) -> Tensor:
    """A pseudo-random number in [0, 1) for each token, fixed by the sentence, its place in it, and the seed.

    The sentence enters as a polynomial of its ids modulo a prime, so neither padding nor the rest of the batch matters.
    """
    places = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    powers = torch.tensor([pow(48271, place, _PRIME) for place in range(input_ids.shape[1])], device=input_ids.device)
    sentence = ((input_ids + 1) * attention_mask * powers[places] % _PRIME).sum(dim=1, keepdim=True)
    number = (sentence + (places + 1) * 1013904223 + (seed + 1) * 69069) % _PRIME
    for factor in (747796405, 1540483477, 1103515245):
        number = (number ^ (number >> 13)) * factor % _PRIME
    return (number / _PRIME).clamp(max=_BELOW_ONE)
