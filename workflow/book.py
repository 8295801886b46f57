"""What the book has beside its texts: the ledger of claims, the glossary, the explorer, formulas without a network.

A Sphinx extension, which `docs/conf.py` loads.
"""

from __future__ import annotations

import csv
import re
import shutil
from base64 import b64decode
from functools import lru_cache
from hashlib import sha256 as hash_of
from importlib.metadata import distribution
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from eeutils.files import atomic_write, repository_root, sha256
from eeutils.reporting.explorer.page import committed, document
from workflow.site import ledger_table

ROOT = repository_root()
LEDGER = ROOT / "data" / "results" / "08-ledger.csv"
GLOSSARY = ROOT / "notebooks" / "00_early_exit_from_scratch.ipynb"

MATHJAX = ("sphinx-mathjax-offline", "sphinx-mathjax-offline/static/mathjax/tex-svg.js")
"""The package that carries MathJax 3.2.2, and the one file of it that is used: fonts and all."""
MATHJAX_SHA256 = "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"
"""Of the file as MathJax published it."""


class Ledger(SphinxDirective):
    """`{ledger}`: every claim with its verdict, as a table that one can filter."""

    def run(self) -> list[nodes.Node]:
        """The table, its filters above it."""
        self.env.note_dependency(str(LEDGER))
        with LEDGER.open(encoding="utf-8", newline="") as file:
            claims = list(csv.DictReader(file))
        return [nodes.raw("", ledger_table(claims), format="html")]


class Glossary(SphinxDirective):
    """`{glossary-of-notebooks}`: the glossary of notebook 00, where the words are met first."""

    def run(self) -> list[nodes.Node]:
        """The section below its heading."""
        self.env.note_dependency(str(GLOSSARY))
        [cell] = [
            cell.source
            for cell in nbformat.read(GLOSSARY, as_version=4).cells
            if cell.cell_type == "markdown" and re.search("^## Glossary$", cell.source, flags=re.MULTILINE)
        ]
        section = re.split("^## ", cell.split("## Glossary\n", 1)[1], flags=re.MULTILINE)[0]
        parent = nodes.Element()
        self.state.nested_parse(StringList(section.splitlines(), source=str(GLOSSARY)), 0, parent)
        return parent.children


class Explorer(SphinxDirective):
    """`{explorer}`: the explorer in a frame; it stands alone as `explorer.html` beside the start page."""

    def run(self) -> list[nodes.Node]:
        """The frame."""
        frame = (
            '<p><a href="../explorer.html">Open it alone</a></p>'
            '<iframe class="explorer" src="../explorer.html" title="Early-exit explorer"></iframe>'
        )
        return [nodes.raw("", frame, format="html")]


API = "The package <docs/api/eeutils>"
CONTENTS = {
    "Touch it": ("docs/explorer",),
    "Notebooks": ("notebooks/*.ipynb",),
    "Solutions": ("notebooks/solutions/*.ipynb",),
    "Look up": ("docs/glossary", "docs/claims", "docs/adding_a_method", "docs/*.md", "data/README", API),
}
"""The book's table of contents: caption -> pages, or patterns of those that are not named before."""


def contents() -> str:
    """`CONTENTS` as it stands behind README, which is the first page. What is not there yet has no heading."""
    listed, blocks = set(), []
    for caption, places in CONTENTS.items():
        pages = []
        for place in places:
            found = sorted(ROOT.glob(place)) if "*" in place else [ROOT / place]
            pages += [place] if place == API else [str(path.relative_to(ROOT).with_suffix("")) for path in found]
        new = [name for name in dict.fromkeys(pages) if name not in listed]
        listed.update(new)
        if new:
            blocks.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *new, "```"]))
    return "\n\n".join(["", *blocks, ""])


def _source(app: Sphinx, name: str, source: list[str]) -> None:
    """README gets the contents, and a page of the package a short title. Anchors are as GitHub writes them: JupyterLab
    keeps the capitals of a heading, and notebooks link either way."""
    source[0] = re.sub(r"(\]\([^)\s]*#)([^)\s]+)(?=\))", lambda link: link[1] + link[2].lower(), source[0])
    if name == app.config.root_doc:
        source[0] += contents()
    if name.startswith("docs/api/eeutils."):
        source[0] = re.sub(r"\Aeeutils\.(\S+) \w+\n", r"\1\n", source[0])


def _plain(_: Sphinx, kind: str, ___: str, ____: object, _____: object, lines: list[str]) -> None:
    """Docstrings mean no markup but code in backticks: a star or a bar is just that. What a module's docstring indents
    is an equation or a table, to be shown as it stands."""
    told: list[str] = []
    for line in lines:
        shown = kind == "module" and line.startswith("  ")
        before = next((old for old in reversed(told) if old), "")
        if shown and not before.startswith("  "):
            told += ["", "::", ""]
        elif not shown and before.startswith("  ") and told[-1]:
            told.append("")
        told.append(line if shown else _escaped(line))
    lines[:] = told


def _signature(*given: object) -> tuple[str | None, str | None] | None:
    """A default that is a function has no text that Sphinx can read, which spoils all of the signature."""
    signature, returned = given[-2:]
    if not isinstance(signature, str) or "<function" not in signature:
        return None
    readable = re.sub(r"<function \S+>", "...", signature)
    return re.sub(r"~?(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", readable), returned


def _escaped(line: str) -> str:
    parts = re.split(r"(`+[^`]*`+)", line)
    parts[::2] = [re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _alternative_texts(_: Sphinx, page: nodes.document, name: str) -> None:
    """What a figure says in words goes along: it stands beside the picture in the notebook."""
    told = _told_in(ROOT / f"{name}.ipynb") if name.startswith("notebooks/") else {}
    for image in page.findall(nodes.image):
        image["alt"] = told.get(Path(image["uri"]).stem, image.get("alt", ""))


def _words(_: Sphinx, page: nodes.document, __: str) -> None:
    """What docstrings call attributes, Sphinx calls variables."""
    for name in page.findall(nodes.field_name):
        if name.astext() == "Variables":
            name.children = [nodes.Text("Attributes")]


@lru_cache(maxsize=1)
def _told_in(notebook: Path) -> dict[str, str]:
    """The sha256 of each picture of a notebook, by which its file is called -> its alternative text."""
    outputs = [output for cell in nbformat.read(notebook, as_version=4).cells for output in cell.get("outputs", [])]
    return {
        hash_of(b64decode(output.data["image/png"])).hexdigest(): output.metadata.get("image/png", {}).get("alt", "")
        for output in outputs
        if "image/png" in output.get("data", {})
    }


def _beside_the_pages(app: Sphinx, error: Exception | None) -> None:
    if error is not None:
        return
    out = Path(app.outdir)
    package, name = MATHJAX
    script = Path(str(distribution(package).locate_file(name)))
    if sha256(script) != MATHJAX_SHA256:
        raise ExtensionError(f"{script} is not MathJax 3.2.2 as it was published; install {package} anew")
    shutil.copyfile(script, out / "_static" / "mathjax.js")
    for target, text in (("explorer.html", document(committed())), ("index.html", _to_start(app.config.root_doc))):
        with atomic_write(out / target) as partial:
            partial.write_text(text, encoding="utf-8")
    (out / ".nojekyll").touch()  # or GitHub Pages leaves out folders that begin with an underscore


def _to_start(start: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Early-exit language models</title>'
        f'<meta http-equiv="refresh" content="0; url={start}.html"><a href="{start}.html">To the book</a></html>\n'
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_directive("ledger", Ledger)
    app.add_directive("glossary-of-notebooks", Glossary)
    app.add_directive("explorer", Explorer)
    app.connect("source-read", _source)
    app.connect("autodoc-process-docstring", _plain, priority=100)  # before napoleon reads sections
    app.connect("doctree-resolved", _alternative_texts)
    app.connect("autodoc-process-signature", _signature)
    app.connect("doctree-resolved", _words)
    app.connect("build-finished", _beside_the_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
