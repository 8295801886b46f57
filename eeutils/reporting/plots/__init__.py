"""Every figure of the notebooks: one theme, readable in print and by colour-blind readers.

Functions draw what they are given; each returns a matplotlib figure, which `Notebook.show` displays. Notebooks write
`plots.NAME`, wherever NAME is defined:

- `theme`: what all figures have in common, and `show`;
- `tradeoffs`: exits and rules: scores over the speed-up and over the layers, where samples leave, how sure exits are;
- `charts`: any columns of a tidy frame as lines, points, bars, boxes and intervals;
- `pictures`: single sentences, and matrices with their entries written in.
"""

from eeutils.reporting.plots.charts import against, bars, distribution, intervals, intervals_beside, lines, scatter
from eeutils.reporting.plots.pictures import journeys, matrices, shares, words
from eeutils.reporting.plots.theme import show, use_theme
from eeutils.reporting.plots.tradeoffs import leaving, panels, reliability, stage_scores, tradeoff

__all__ = ["show", "use_theme"]
__all__ += ["leaving", "panels", "reliability", "stage_scores", "tradeoff"]
__all__ += ["against", "bars", "distribution", "intervals", "intervals_beside", "lines", "scatter"]
__all__ += ["journeys", "matrices", "shares", "words"]
