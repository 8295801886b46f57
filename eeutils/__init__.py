"""Early-exit language models: one model that can answer at several points, a way to train it, a rule to stop.

A paper names its three choices in `eeutils.papers`; everything else is shared. README maps the modules.
"""

__version__ = "0.1.0"
