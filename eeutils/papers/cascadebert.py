"""CascadeBERT: Accelerating Inference of Pre-trained Language Models via Calibrated Complete Models Cascade
(Li, Lin, Chen, Ren, Li, Zhou and Sun, Findings of EMNLP 2021).

The first layers of a deep encoder were never meant to answer: they lack the high-level meaning that a complete model of
the same depth has. So the stages here are complete models of growing size, and a sample that the small one is unsure of
starts again in the next. All are fine-tuned together, with nothing shared. A second loss on all but the last makes
confidence follow difficulty: an easy sample should be surer than a hard one, where hard is what a model of the small
one's size gets wrong when it has not seen it.

    loss         L = sum_k CE_k + lambda sum_{k<K} DAR_k
    difficulty   DAR_k = mean over pairs (i easy, j hard) of max(0, eps - (c_ki - c_kj)),  c_k = max_c p_k(c)
    rule         the answer of the first model with c_k >= T, else of the last
    cost         of all models that ran: 3 + 6 layers for a sample that goes on from 3 layers to 6

    symbol    variable           meaning
    K         model.stages       number of models
    CE_k      losses[k - 1]      cross entropy of model k
    c_k       confidence[k - 1]  its largest probability
    lambda    weight             0 leaves the difficulty term out
    eps       margin             by how much an easy sample should be surer than a hard one
    T         threshold          of rules.confidence()
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from eeutils.backbone import default_pool, load_tokenizer
from eeutils.batching import Batch, Samples
from eeutils.crossfit import out_of_fold
from eeutils.errors import InputError, unknown
from eeutils.exits import Answer, Answers, MultiStageModel
from eeutils.method import Method, Notes
from eeutils.papers import finetuned
from eeutils.rules import confidence
from eeutils.settings import Setting
from eeutils.training import Objective, Phase, answer_loss

_BERT_2 = ("google/bert_uncased_L-2_H-768_A-12",)
SMALLER = {"minilm-l6": ("minilm-l3",), "bert-base-uncased": _BERT_2, "google-bert/bert-base-uncased": _BERT_2}
"""Backbone -> the smaller complete models before it, where the option `models` does not name them."""

PAIRS = ("all", "sampled")
"""The paper's difficulty term, as commonly recalled, takes all pairs of a batch; its code takes one random hard sample
for each easy one."""

Encoded = tuple[Tensor, Tensor, Tensor | None]
"""Token ids, attention mask and token types of the samples that are left, in one vocabulary."""


class Cascade(MultiStageModel):
    """Complete models as stages. Each starts from the token ids, and runs on the samples that have come as far.

    Args:
        models: small to large; the last is what the speed-up is measured against.
        encodings: for each model, which of a batch's encodings it reads; 0 is the batch's own, then come its `others`.
            By default all read the same one.
    """

    def __init__(self, models: Sequence[MultiStageModel], encodings: Sequence[int] | None = None) -> None:
        super().__init__()
        if not models:
            raise InputError("a cascade needs at least one model")
        self.models = nn.ModuleList(models)
        self.encodings = tuple(encodings or [0] * len(models))
        if len(self.encodings) != len(models) or set(self.encodings) != set(range(max(self.encodings) + 1)):
            raise InputError(
                f"{len(models)} models need one encoding each, numbered from 0 without a gap; got {self.encodings}"
            )
        self.layers = tuple(int(total) for total in torch.tensor([model.layers[-1] for model in models]).cumsum(dim=0))
        self.reference_layers = models[-1].reference_layers

    def begin(self, *inputs: Tensor | None) -> tuple[Encoded, ...]:
        state = tuple((inputs[place], inputs[place + 1], inputs[place + 2]) for place in range(0, len(inputs), 3))
        if len(state) != max(self.encodings) + 1:
            raise InputError(
                f"this cascade reads {max(self.encodings) + 1} vocabularies and the batch has {len(state)}; encode the "
                "texts with the tokenizers that `reads` names"
            )
        return state

    def step(self, stage: int, state: tuple[Encoded, ...]) -> tuple[tuple[Encoded, ...], Answer]:
        said = self.models[stage](*state[self.encodings[stage]])
        return state, Answer(said.logits[-1], {name: values[-1] for name, values in said.extras.items()})

    def select(self, state: tuple[Encoded, ...], rows: Int[Tensor, " rows"]) -> tuple[Encoded, ...]:
        def kept(ids: Tensor, mask: Tensor, types: Tensor | None) -> Encoded:
            # Columns that became padding for all who stay go, so the next model is spared them.
            columns = mask[rows].bool().any(dim=0)
            return ids[rows][:, columns], mask[rows][:, columns], None if types is None else types[rows][:, columns]

        return tuple(kept(*encoded) for encoded in state)

    def cost(self, samples: Samples) -> Float[Tensor, "stages samples"]:
        read = (samples, *samples.others)
        own = [model.cost(read[place])[-1] for model, place in zip(self.models, self.encodings, strict=True)]
        return torch.stack(own).cumsum(dim=0)

    def reference_cost(self, samples: Samples) -> Float[Tensor, " samples"]:
        return self.models[-1].reference_cost((samples, *samples.others)[self.encodings[-1]])


def build(setting: Setting, classes: int, models: Sequence[str] | None = None, **_: Any) -> Cascade:
    """The plain model of every encoder, each with its own configuration, small to large.

    Raises:
        InputError: a regression, an encoder without known smaller ones, or one that its tokens or texts do not fit.
    """
    if classes == 1:
        raise InputError(
            "CascadeBERT goes on when the largest probability is low, and a regression has no probabilities; choose a "
            "classification task"
        )
    names = models_of(setting, models)
    plain = [finetuned.build(_alone(setting, name), classes) for name in names]
    for name, model in zip(names, plain, strict=True):
        config, tokenizer = model.backbone.config, load_tokenizer(name)
        if len(tokenizer) > config.vocab_size:
            raise InputError(
                f"the tokenizer of {name!r} has {len(tokenizer)} tokens and its encoder embeds {config.vocab_size}; "
                "give a folder in which the two belong together"
            )
        if setting.max_length > config.max_position_embeddings:
            raise InputError(
                f"{name!r} reads {config.max_position_embeddings} tokens and max_length is {setting.max_length}; "
                "choose a smaller max_length"
            )
    return Cascade(plain, _encodings(names))


def models_of(setting: Setting, models: Sequence[str] | None = None) -> tuple[str, ...]:
    """The encoders of a cascade, small to large: `models`, or the known smaller ones, and the setting's backbone.

    Raises:
        InputError: no smaller one is given, and none is known.
    """
    smaller = tuple(models) if models is not None else SMALLER.get(setting.backbone, ())
    if not smaller:
        raise InputError(
            f"no smaller complete model is known for backbone {setting.backbone!r}; name one or more with the option "
            f"models=(...), small to large, or choose a backbone of: {', '.join(SMALLER)}"
        )
    return (*smaller, setting.backbone)


def reads(setting: Setting, models: Sequence[str] | None = None, **_: Any) -> tuple[str, ...]:
    """One encoder for each vocabulary, the reference's first: models with the same one share their tokens."""
    names = models_of(setting, models)
    places = _encodings(names)
    return tuple(
        next(name for name, at in zip(names[::-1], places[::-1], strict=True) if at == place)
        for place in range(max(places) + 1)
    )


def same_vocabulary(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids for every text: the same pieces, normalisation and special tokens."""

    def essence(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
        steps = json.loads(tokenizer.backend_tokenizer.to_str())
        # How far the last call cut and padded is kept there, too, and says nothing about the vocabulary.
        rest = {name: value for name, value in steps.items() if name not in ("truncation", "padding")}
        return rest, tokenizer.pad_token_id, tokenizer.model_input_names

    return essence(one) == essence(other)


def difficulty_loss(
    confidence: Float[Tensor, " batch"], hard: Bool[Tensor, " batch"], margin: float, pairs: str
) -> Float[Tensor, ""]:
    """DAR: the mean over pairs of an easy and a hard sample of max(0, eps - (c_easy - c_hard)); 0 without pairs.

    Pairs of the same difficulty have no gradient in the paper's form, and are left out. `pairs` is "all", or "sampled":
    one hard sample for each easy one, drawn with replacement, whose expectation is the same.
    """
    surer, unsurer = confidence[~hard], confidence[hard]
    if len(surer) == 0 or len(unsurer) == 0:
        return confidence.sum() * 0
    if pairs == "sampled":
        drawn = torch.randint(len(unsurer), (len(surer),), device=confidence.device)
        gaps = surer - unsurer[drawn]
    else:
        gaps = surer[:, None] - unsurer[None, :]
    return (margin - gaps).clamp(min=0).mean()


def cascade_loss(weight: float, margin: float, pairs: str) -> Objective:
    """L = sum_k CE_k + lambda sum_{k<K} DAR_k, with the difficulty from `batch.notes`."""

    def loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
        losses = answer_loss(answers.logits, batch.labels).mean(dim=1)
        if weight == 0:
            return losses.sum()
        hard = batch.notes["difficulty"].bool()
        confidence = answers.logits.float().softmax(dim=-1).amax(dim=-1)
        return losses.sum() + weight * sum(difficulty_loss(c, hard, margin, pairs) for c in confidence[:-1])

    return loss


def phases(weight: float, margin: float, pairs: str, **_: Any) -> list[Phase]:
    """One phase, all models trained together."""
    if weight < 0 or not 0 < margin <= 1:
        raise InputError(f"weight is 0 or more and margin above 0 and at most 1; got {weight} and {margin}")
    if pairs not in PAIRS:
        raise unknown("form of pairs", pairs, PAIRS)
    return [Phase("cascade", cascade_loss(weight, margin, pairs))]


def difficulty(
    setting: Setting, models: Sequence[str] | None = None, folds: int = 5, repeats: int = 5
) -> tuple[Int[Tensor, " samples"], Float[Tensor, " samples"]]:
    """Ids of the training samples, and how often (0 to 1) the small model, trained without a sample, gets it right."""
    if repeats < 1:
        raise InputError(f"repeats must be 1 or more; got {repeats}")
    small = _alone(setting, models_of(setting, models)[0])
    opinions = [out_of_fold(finetuned.METHOD, small, folds, seed) for seed in range(repeats)]
    right = torch.stack([opinion.predictions[-1] == opinion.labels for opinion in opinions])
    return opinions[0].ids, right.double().mean(dim=0)


def annotate(
    setting: Setting, models: Sequence[str] | None, weight: float, folds: int, repeats: int, **_: Any
) -> Notes:
    """Two levels of difficulty: 1 (hard) where most of the small models are wrong, else 0."""
    if weight == 0:
        return {}
    ids, right = difficulty(setting, models, folds, repeats)
    return {"difficulty": (ids, (right < 0.5).long())}


def _alone(setting: Setting, name: str) -> Setting:
    """The setting in which one of the models is fine-tuned on its own."""
    return setting if name == setting.backbone else replace(setting, backbone=name, pool=default_pool(name))


@lru_cache
def _encodings(names: tuple[str, ...]) -> tuple[int, ...]:
    """For each model the number of its vocabulary; the last one's, the reference's, is 0."""
    known: list[PreTrainedTokenizerBase] = []
    places = []
    for name in names[::-1]:
        tokenizer = load_tokenizer(name)
        place = next((at for at, other in enumerate(known) if same_vocabulary(tokenizer, other)), len(known))
        if place == len(known):
            known.append(tokenizer)
        places.append(place)
    return tuple(places[::-1])


METHOD = Method(
    name="cascadebert",
    title="CascadeBERT",
    citation="Li et al., CascadeBERT: Accelerating Inference of Pre-trained Language Models via Calibrated Complete "
    "Models Cascade, Findings of EMNLP 2021",
    build=build,
    phases=phases,
    rules={"confidence": confidence()},
    # Margin and weight are those of the authors' README, five seeds as their label file's name has it; the number of
    # folds is not known to us.
    options={"models": None, "weight": 0.5, "margin": 0.5, "pairs": "all", "folds": 5, "repeats": 5},
    annotate=annotate,
    reads=reads,
)
