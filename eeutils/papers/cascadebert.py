"""CascadeBERT: Accelerating Inference of Pre-trained Language Models via Calibrated Complete Models Cascade
(Li, Lin, Chen, Ren, Li, Zhou and Sun, Findings of EMNLP 2021).

The first layers of a deep encoder were never meant to answer: they lack the high-level meaning that a complete model of
the same depth has. So the stages here are complete models of growing size, and a sample that the small one is unsure of
starts again in the next. All are fine-tuned together, with nothing shared. A second loss on all but the last makes
confidence follow difficulty: an easy sample should be surer than a hard one, where hard is what a model of the small
one's size gets wrong when it has not seen it.

    loss         L = sum_k CE_k + lambda sum_{k<K} DT_k
    difficulty   DT_k = mean over pairs (i easy, j hard) of max(0, eps - (c_ki - c_kj)),  c_k = max_c p_k(c)
    rule         the answer of the first model with c_k >= T, else of the last
    cost         of all models that ran: 3 + 6 layers for a sample that goes on from 3 layers to 6

    symbol    variable           meaning
    K         model.stages       number of models
    CE_k      losses[k - 1]      cross entropy of model k
    c_k       confidence[k - 1]  its largest probability
    lambda    weight             0 leaves the difficulty term out
    eps       margin             by how much an easy sample should be surer than a hard one
    T         threshold          of rules.confidence()

The paper calls the difficulty term DAR, difficulty-aware regularisation; DE3-BERT's distance regulariser has the same
initials, so neither is called that here. The cascade itself is `models.cascade`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting.rules import confidence
from eeutils.models.backbone import load_tokenizer
from eeutils.models.cascade import Cascade
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.models.vocabularies import encodings
from eeutils.papers import finetuned
from eeutils.training.crossfit import out_of_fold
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.method import Method, Notes, Options
from eeutils.training.settings import Setting

_BERT_2 = ("google/bert_uncased_L-2_H-768_A-12",)
SMALLER = {
    "minilm-l6": ("minilm-l3",),
    # An eighth of its FLOPs, in another vocabulary. For three models: models=("minilm-l3", "minilm-l6").
    "mpnet-base": ("minilm-l6",),
    "bert-base-uncased": _BERT_2,
    "google-bert/bert-base-uncased": _BERT_2,
}
"""Backbone -> the smaller complete models before it, where the option `models` does not name them."""

Pairs = Literal["all", "sampled"]
"""The paper's difficulty term, as commonly recalled, takes all pairs of a batch; its code draws a hard sample for each
easy one, with replacement. The expectation is the same."""


@dataclass(frozen=True)
class CascadeOptions(Options):
    """What may be varied. Margin and weight are those of the authors' README, five repeats as their label file's name
    has it; the number of folds is not known to us."""

    models: tuple[str, ...] | None = None  # the smaller encoders, small to large; None for those of `SMALLER`
    weight: float = 0.5  # lambda
    margin: float = 0.5  # eps
    pairs: Pairs = "all"
    # Of the small models that say which samples are hard.
    folds: int = 5
    repeats: int = 5

    def __post_init__(self) -> None:
        if not self.weight >= 0 or not 0 < self.margin <= 1:
            got = f"{self.weight} and {self.margin}"
            raise InputError(f"weight is 0 or more and margin above 0 and at most 1; got {got}")
        if self.repeats < 1:
            raise InputError(f"repeats must be 1 or more; got {self.repeats}")


def encoders(setting: Setting, options: CascadeOptions) -> tuple[str, ...]:
    """The encoders of a cascade, small to large; the last one is the setting's backbone."""
    smaller = SMALLER.get(setting.backbone, ()) if options.models is None else tuple(options.models)
    if not smaller:
        raise InputError(
            f"no smaller complete model is known for backbone {setting.backbone!r}; name one or more with the option "
            f"models=(...), small to large, or choose a backbone of: {', '.join(SMALLER)}"
        )
    return (*smaller, setting.backbone)


def build(setting: Setting, classes: int, options: CascadeOptions) -> Cascade:
    """The plain model of every encoder, each with its own configuration, small to large.

    An error for regression, for an encoder without known smaller ones, or one that its tokens or texts do not fit.
    """
    if classes == 1:
        raise InputError(
            "CascadeBERT goes on when the largest probability is low, and a regression has no probabilities; choose a "
            "classification task"
        )
    names = encoders(setting, options)
    settings = [setting.on(name) for name in names]
    models = [finetuned.build(own, classes, finetuned.METHOD.options) for own in settings]
    for model, own in zip(models, settings, strict=True):
        model.rate = own.learning_rate / setting.learning_rate
    for name, model in zip(names, models, strict=True):
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
    return Cascade(models, encodings(names))


def difficulty_loss(
    confidence: Float[Tensor, " batch"], hard: Bool[Tensor, " batch"], margin: float, pairs: Pairs
) -> Float[Tensor, ""]:
    """The difficulty term: the mean over pairs of an easy and a hard sample of max(0, eps - (c_easy - c_hard)).

    0 without pairs. Pairs of the same difficulty have no gradient in the paper's form, and are left out.
    """
    surer, unsurer = confidence[~hard], confidence[hard]
    if len(surer) == 0 or len(unsurer) == 0:
        return confidence.sum() * 0
    if pairs == "sampled":
        gaps = surer - unsurer[torch.randint(len(unsurer), (len(surer),), device=confidence.device)]
    else:
        gaps = surer[:, None] - unsurer
    return (margin - gaps).clamp(min=0).mean()


def cascade_loss(options: CascadeOptions, model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """L = sum_k CE_k + lambda sum_{k<K} DT_k, with the difficulty from `batch.notes`."""
    losses = answer_loss(answers.logits, batch.labels).mean(dim=1)
    if options.weight == 0:
        return losses.sum()
    hard = batch.notes["difficulty"].bool()
    surest = answers.logits.float().softmax(dim=-1).amax(dim=-1)
    terms = [difficulty_loss(c, hard, options.margin, options.pairs) for c in surest[:-1]]
    return losses.sum() + options.weight * sum(terms)


def difficulty(setting: Setting, options: CascadeOptions) -> tuple[Int[Tensor, " samples"], Float[Tensor, " samples"]]:
    """Ids of the training samples, and how often (0 to 1) the small model, trained without a sample, gets it right."""
    small = setting.on(encoders(setting, options)[0])
    opinions = [out_of_fold(finetuned.METHOD, small, options.folds, seed) for seed in range(options.repeats)]
    right = torch.stack([opinion.predictions[-1] == opinion.labels for opinion in opinions])
    return opinions[0].ids, right.double().mean(dim=0)


def annotate(setting: Setting, options: CascadeOptions) -> Notes:
    """Two levels of difficulty: 1 (hard) where most of the small models are wrong, else 0."""
    if options.weight == 0:
        return {}
    ids, right = difficulty(setting, options)
    return {"difficulty": (ids, (right < 0.5).long())}


METHOD = Method(
    name="cascadebert",
    title="CascadeBERT",
    citation="Li et al., CascadeBERT: Accelerating Inference of Pre-trained Language Models via Calibrated Complete "
    "Models Cascade, Findings of EMNLP 2021",
    build=build,
    phases=lambda options: [Phase("cascade", partial(cascade_loss, options))],
    rules={"confidence": confidence()},
    options=CascadeOptions(),
    annotate=annotate,
    encoders=encoders,
)
