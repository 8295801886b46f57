"""The plain model: one encoder, one head, fine-tuned. Every speed-up is measured against it.

Cut to its first k layers and fine-tuned on its own it is the second baseline without which no exit rule can be shown to
help: a k-layer model that never had to serve other exits (BERT-kL in the papers' tables).

    symbol   variable   meaning
    L        depth      layers of the encoder
    k        layers     layers kept, L unless given
"""

import pandas as pd
from torch import Tensor

from eeutils.backbone import load_backbone
from eeutils.batching import Batch
from eeutils.exits import Answers, Exit, MultiExitModel, MultiStageModel, Pooler
from eeutils.method import Method
from eeutils.runs import load_or_train
from eeutils.settings import Setting
from eeutils.tradeoff import fixed_exits
from eeutils.training import Phase, answer_loss


def build(setting: Setting, classes: int, layers: int | None = None) -> MultiExitModel:
    """The encoder's first `layers` layers (all of them by default) and one head on the last."""
    backbone = load_backbone(setting.backbone)
    depth = backbone.depth
    if layers is not None:
        backbone.truncate(layers)
    model = MultiExitModel(backbone, {backbone.depth: Exit(backbone.width, classes, setting.pool, Pooler(backbone))})
    # Speed-ups of a shallow model are measured against the whole encoder.
    model.reference_layers = depth
    return model


def last_exit_loss(model: MultiStageModel, answers: Answers, batch: Batch) -> Tensor:
    """The usual loss: that of the last answer alone."""
    return answer_loss(answers.logits[-1:], batch.labels).mean()


def phases(layers: int | None = None) -> list[Phase]:
    """One phase, everything trained."""
    return [Phase("fine-tune", last_exit_loss)]


METHOD = Method(
    name="finetuned",
    title="fine-tuned",
    citation="Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, NAACL 2019",
    build=build,
    phases=phases,
    rules={},
    options={"layers": None},
)


def baseline_depths(profile: str, depth: int) -> list[int]:
    """Which k-layer models a profile can afford to train: all of them in full, two in quick, one in smoke."""
    return {"smoke": [depth // 2], "quick": [depth // 3, 2 * depth // 3]}.get(profile, list(range(1, depth)))


def baselines(setting: Setting, depths: list[int]) -> pd.DataFrame:
    """Separately fine-tuned k-layer models on test: columns layers, score, layer_speedup, flops_speedup.

    Trains what is not there yet.
    """
    rows = []
    for layers in depths:
        run = load_or_train(METHOD, setting, layers=layers)
        rows.append(
            {
                "layers": layers,
                **fixed_exits(run.test, run.metric).iloc[-1][["score", "layer_speedup", "flops_speedup"]].to_dict(),
            }
        )
    return pd.DataFrame(rows)
