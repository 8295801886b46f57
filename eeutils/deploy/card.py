"""What stands beside exported weights, for whoever finds them."""

from __future__ import annotations

from typing import Any

CARD = """\
# {task}: {method}, leaving early

{backbone}, fine-tuned with exits on layers {layers} ({precision}). A text leaves at the first exit where the rule
*{rule}* reaches {threshold}; the threshold was chosen on dev. On the {samples:,} texts of test:

| | {metric} | layers run | FLOPs speed-up |
|---|---|---|---|
| leaving early | {score:.3f} | {mean_layers:.2f} | {flops_speedup:.2f}x |
| last exit for all | {score_of_last_exit:.3f} | {deepest} | |

```python
from eeutils import deploy

model = deploy.load("this-folder")
answered = model([{example}]{pairs})
answered.answers, answered.layers
```

It needs onnxruntime, tokenizers and numpy; texts are cut to {max_length} word pieces. It has seen nothing but its
task's training data: try it on texts of your own before you rely on it.

{citation}
"""


def card(config: dict[str, Any]) -> str:
    """The README of an exported folder, in Markdown."""
    layers = [str(stage["layer"]) for stage in config["stages"]]
    shown = {
        "layers": ", ".join(layers),
        "deepest": layers[-1],
        "threshold": "never" if config["threshold"] is None else f"{config['threshold']:.4g}",
        "example": '"A first text."',
        "pairs": ', ["A second text."]' if config["pairs"] else "",
    }
    return CARD.format(**config | config["test"] | shown)
