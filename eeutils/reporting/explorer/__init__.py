"""The explorer: evidence that one can touch. Move a threshold and see sentences leave at their layers.

- `view`: evidence as one small JSON value, which is all that the page knows;
- `page`: the page, one file that opens alone; `explore` shows it in a notebook cell.

The page computes no rule: where every sentence leaves at every threshold, and what that scores and costs, is worked out
here by `tradeoff`, so the two cannot disagree.
"""

from eeutils.reporting.explorer.page import document, explore
from eeutils.reporting.explorer.view import ground, model

__all__ = ["document", "explore", "ground", "model"]
