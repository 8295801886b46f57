"""Early-exit language models: one model that can answer at several points, a way to train it, a rule to stop.

A paper names its three choices in `eeutils.papers`; everything else is shared. README maps the modules.
"""

import warnings

# Progress bars are plain text here; without ipywidgets tqdm would warn at the top of every notebook.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
