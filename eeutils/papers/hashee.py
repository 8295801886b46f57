"""A Simple Hash-Based Early Exiting Approach For Language Understanding and Generation (Sun et al., Findings of ACL
2022).

There are no internal classifiers and no rule: a fixed table says for every token, by its id, after which layer it
stops. From there on its state is frozen and carried up, still visible to the others as key and value, and one
classifier at the top reads what came of it. Nothing has to be computed to decide, so the cost is known before the
network runs, it works for regression, and training and inference stop the same tokens at the same layers. The paper
claims that this consistency matters more than how well the table estimates difficulty.

    state   h_i^l = Layer_l(h^{l-1})_i if l <= g(x_i), else h_i^{l-1};  keys and values of all tokens at every layer
    loss    cross entropy or squared error of the one answer, with g switched on
    cost    sum_l [ a_l (4 D^2 + 4 D F) + 4 T D^2 + 4 a_l T D ],  a_l tokens active in layer l

    symbol   variable                meaning
    g        TokenSchedule           token id -> last layer
    T        samples.lengths         tokens of a sentence
    a_l      active                  tokens that layer l runs on
    D, F     backbone.width          widths of a state and of the feed-forward layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eeutils.data.samples import Samples
from eeutils.exiting.evidence import Evidence, as_stages
from eeutils.models.backbone import load_backbone, load_tokenizer
from eeutils.models.exits import Exit, Pooler
from eeutils.models.record import record
from eeutils.models.schedule import Buckets, Function, TokenSchedule, make_schedule
from eeutils.models.tokens import HashExitModel
from eeutils.papers.finetuned import last_exit_loss
from eeutils.training.loop import Phase
from eeutils.training.method import Method, Options
from eeutils.training.runs import samples_of
from eeutils.training.settings import Setting


@dataclass(frozen=True)
class HashOptions(Options):
    """What may be varied."""

    function: Function = "frequency"  # the order of the vocabulary, who leaves first
    buckets: Buckets = "mass"  # whether layers share the running tokens or the token types
    first: int = 1  # of the window of layers
    last: int | None = None  # likewise; None is the top
    truncated: bool = True  # whether the encoder ends at the last bucket, as the paper's, or goes on to its top
    special_to_top: bool = True  # whether [CLS] and its like run all layers
    drawn: bool = False  # train with a window drawn for each batch, so that one model serves them all


def record_under(model: HashExitModel, schedules: Sequence[TokenSchedule], samples: Samples) -> Evidence:
    """One model's answers under several schedules, as `as_stages` gives them."""
    return as_stages([record(model.under(schedule), samples) for schedule in schedules])


def build(setting: Setting, classes: int, options: HashOptions) -> HashExitModel:
    """The plain model, cut to the layers of its last bucket as the paper's is, under a schedule that is made from the
    training split."""
    backbone = load_backbone(setting.backbone)
    depth = backbone.depth
    if options.truncated and options.last is not None:
        backbone.truncate(options.last)
    schedule = make_schedule(
        options.function,
        samples_of(setting, "train"),
        backbone.model.get_input_embeddings().weight,
        backbone.depth,
        buckets=options.buckets,
        first=options.first,
        last=options.last,
        special=load_tokenizer(setting.backbone).all_special_ids if options.special_to_top else (),
        seed=setting.seed,
    )
    head = Exit(backbone.width, classes, setting.pool, Pooler(backbone))
    model = HashExitModel(backbone, head, schedule, drawn=options.drawn)
    model.reference_layers = depth  # speed-ups are measured against the whole encoder
    return model


METHOD = Method(
    name="hashee",
    title="HashEE",
    citation="Sun et al., A Simple Hash-Based Early Exiting Approach For Language Understanding and Generation, "
    "Findings of ACL 2022",
    build=build,
    phases=lambda options: [Phase("fine-tune", last_exit_loss)],
    rules={},
    options=HashOptions(),
)
