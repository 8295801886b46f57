"""Sphinx's settings for the book: `make site` builds it, from the repository's root, out of what is committed."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "Early-exit language models"
author = "The eeutils contributors"
project_copyright = "The eeutils contributors, Apache-2.0"
html_title = project
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "workflow.book",
]

# The source folder is the repository, so that links between files mean the same here and on GitHub.
root_doc = "README"
include_patterns = ["README.md", "data/README.md", "docs/**.md", "docs/api/*.rst", "notebooks/**.ipynb"]
exclude_patterns = [
    "docs/api/modules.rst",
    ".*",
    "build",
    "reproduced",
    "runs",
    "tests",
    "**/.ipynb_checkpoints",
    "**/*.failed.ipynb",
]

# Notebooks: as they were committed. A cell that only prepares stays as long as it is.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # outputs have tables and formulas, too
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
# Words of a docstring that are also the name of several fields.
suppress_warnings = ["ref.python"]

# The package, from its docstrings. They are plain text with code in single backticks.
default_role = "code"
highlight_language = "none"
apidoc_modules = [
    {
        "path": "../eeutils",
        "destination": "docs/api",
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as they are written: a path of this machine would be one
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "navigation_with_keys": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_fullscreen_button": False,
}
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = True  # a reader takes a notebook along
html_show_sphinx = False
# Formulas: put beside the pages by workflow.book, so that they need no network.
mathjax_path = "mathjax.js"
