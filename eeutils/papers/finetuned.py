"""The plain model: one encoder, one head, fine-tuned. Every speed-up is measured against it.

Cut to its first k layers and fine-tuned on its own it is the second baseline without which no exit rule can be shown to
help: a k-layer model that never had to serve other exits (BERT-kL in the papers' tables).

    symbol   variable   meaning
    L        depth      layers of the encoder
    k        layers     layers kept, L unless given
"""

from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from eeutils.data.samples import Batch
from eeutils.exiting.tradeoff import fixed_exits
from eeutils.models.backbone import load_backbone
from eeutils.models.exits import Exit, MultiExitModel, Pooler
from eeutils.models.stages import Answers, MultiStageModel
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.method import Method, Options
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting


@dataclass(frozen=True)
class FinetunedOptions(Options):
    """`layers`: k, the first layers of the encoder that are kept; None for all of them."""

    layers: int | None = None


def build(setting: Setting, classes: int, options: FinetunedOptions) -> MultiExitModel:
    """The encoder's first k layers and one head on the last."""
    backbone = load_backbone(setting.backbone)
    depth = backbone.depth
    if options.layers is not None:
        backbone.truncate(options.layers)
    model = MultiExitModel(backbone, {backbone.depth: Exit(backbone.width, classes, setting.pool, Pooler(backbone))})
    model.reference_layers = depth  # speed-ups of a shallow model are measured against the whole encoder
    return model


def last_exit_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """The usual loss: that of the last answer alone."""
    return answer_loss(answers.logits[-1:], batch.labels).mean()


METHOD = Method(
    name="finetuned",
    title="fine-tuned",
    citation="Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, NAACL 2019",
    build=build,
    phases=lambda options: [Phase("fine-tune", last_exit_loss)],
    rules={},
    options=FinetunedOptions(),
)


def baselines(setting: Setting, depths: list[int]) -> pd.DataFrame:
    """Separately fine-tuned k-layer models on test: columns layers, score, layer_speedup, flops_speedup.

    Trains what is not there yet.
    """
    rows = []
    for layers in depths:
        run = load_or_train(METHOD, setting, layers=layers)
        point = fixed_exits(run.test, run.metric).iloc[-1]
        rows.append({"layers": layers, **point[["score", "layer_speedup", "flops_speedup"]]})
    return pd.DataFrame(rows)
