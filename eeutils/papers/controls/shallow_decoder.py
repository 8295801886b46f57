"""The baseline that never had to serve exits: the decoder's first k layers, fine-tuned on their own."""

from __future__ import annotations

import pandas as pd

from eeutils.data.text_metrics import rouge_l
from eeutils.models.generate import Generator, Outcome
from eeutils.papers.calm import Texts, alike
from eeutils.training.decoders import TARGET_TOKENS, ExitRun, plain_model, tokenizer_of


def write(run: ExitRun, layers: int, split: str) -> Outcome:
    """What the first `layers` layers, trained alone, write on a split; trained when they are not there yet."""
    model = plain_model(run.setting, layers)  # trained, if need be, before anything is written

    def make() -> list[Outcome]:
        model.to(run.model.decoder.head_weight.dtype)
        generator = Generator(model, tokenizer_of(run.setting))
        return [generator.generate_tokens(run.prompts(split), TARGET_TOKENS + 1, 16, progress=True)]

    return run.written(split, {"alone": layers}, make)[0]


def point(shallow: Outcome, layers: int, depth: int, full: Texts) -> pd.DataFrame:
    """It as one point beside curves: layer_speedup, flops_speedup (of a word), ROUGE-L to the references (score) and to
    the full model's text."""
    plain = full.outcomes[0]
    return pd.DataFrame(
        {
            "layer_speedup": [depth / layers],
            "flops_speedup": [plain.mean_flops / shallow.mean_flops],
            "score": [float(rouge_l(shallow.texts, full.references).mean())],
            "to the full text": [float(alike(shallow.texts, plain.texts).mean())],
        }
    )
