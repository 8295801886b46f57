"""Build the book (`make site`), and see that none of its pages asks a network for anything.

`workflow.book` is the part that Sphinx loads. This module needs no Sphinx to be imported.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from eeutils.exiting.claims import VERDICTS

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"
DOCTREES = ROOT / "build" / "doctrees"
API = ROOT / "docs" / "api"
"""What Sphinx writes of the package, to read it again."""


LOADS = {"src", "srcset", "data", "poster", "background", "action", "formaction"}
"""Attributes whose address a browser may fetch by itself; `href` does where the element is a `link`."""


def main() -> None:
    """Build into build/site/; warnings are errors, and so is an address that a page would load from elsewhere."""
    # Anew each time: a page that was added stands in the contents of pages that did not change, and one that is gone
    # would stay.
    for made in (SITE, DOCTREES, API):
        shutil.rmtree(made, ignore_errors=True)
    options = ["-W", "--keep-going", "--quiet", "-b", "html", "-c", "docs", "-d", str(DOCTREES)]
    built = subprocess.run([sys.executable, "-m", "sphinx", *options, ".", str(SITE)], cwd=ROOT, check=False)
    if built.returncode:
        sys.exit(built.returncode)
    if found := list(foreign(SITE)):
        sys.exit("the book must not ask a network for anything:\n" + "\n".join(found))
    print(f"The book is in {SITE.relative_to(ROOT)}/index.html; the explorer alone in explorer.html beside it.")


def foreign(folder: Path) -> Iterator[str]:
    """A line for each address in a built page or style sheet that a browser would load from another machine.

    A link that a reader may follow is none of them.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".html", ".css"}:
            text = path.read_text(encoding="utf-8")
            found = _Loads(text).found if path.suffix == ".html" else _in_style(text)
            yield from (f"{path.relative_to(folder)}: {address}" for address in found if _is_foreign(address))


class _Loads(HTMLParser):
    """The addresses that a page loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Addresses in attributes."""
        self._in_style = tag == "style"
        for name, value in attrs:
            if value and (name in LOADS or (tag, name) in {("link", "href"), ("image", "href"), ("use", "href")}):
                self.found += [part.split()[0] for part in value.split(", ")] if name == "srcset" else [value]
            elif value and name == "style":
                self.found += _in_style(value)

    def handle_data(self, data: str) -> None:
        """Addresses in a style sheet inside the page."""
        if self._in_style:
            self.found += _in_style(data)

    def handle_endtag(self, tag: str) -> None:
        """The style sheet has ended."""
        self._in_style = False


def _in_style(text: str) -> list[str]:
    imports = re.findall(r"""@import\s+["']([^"']+)""", text)
    return imports + re.findall(r"""url\(\s*["']?([^"')]+)""", text)


def _is_foreign(address: str) -> bool:
    return re.match(r"\s*(?:[a-z][a-z0-9+.-]*:)?//|\s*https?:", address, flags=re.IGNORECASE) is not None


def ledger_table(claims: list[dict[str, str]]) -> str:
    """The claims as HTML: `docs/_static/book.js` filters the rows by what stands in their `data-` attributes."""
    counts = Counter(claim["verdict"] for claim in claims)
    choices = {
        "paper": [(name, name) for name in dict.fromkeys(claim["of"] for claim in claims)],
        "verdict": [(name, f"{name} ({counts[name]})") for name in VERDICTS if counts[name]],
        "source": [(name, name) for name in sorted({claim["source"] for claim in claims})],
    }
    selects = "".join(
        f'<label>{name} <select data-filter="{name}"><option value="">all</option>'
        + "".join(f'<option value="{html.escape(value)}">{html.escape(text)}</option>' for value, text in values)
        + "</select></label>"
        for name, values in choices.items()
    )
    heads = ("claim", "what it says", "our test", "ours", "verdict")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    rows = "".join(map(_ledger_row, claims))
    return (
        f'<form class="ledger-filters"><label>words <input type="search" data-filter="words"></label>{selects}</form>'
        f'<p class="ledger-count" aria-live="polite">{len(claims)} of {len(claims)} claims</p>'
        f'<div class="ledger"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<script src="../_static/book.js" defer></script>'
    )


def _ledger_row(claim: dict[str, str]) -> str:
    kept = {name: html.escape(value or "") for name, value in claim.items()}
    more = [("paper's number", kept["paper"]), ("note", kept["note"]), ("a guess why", kept["guess"])]
    details = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in more if text)
    cells = (
        f'<th scope="row">{kept["claim"]}<br><small>{kept["of"]}</small></th>'
        f'<td data-name="what it says">{kept["what it says"]} <small>{kept["source"]}</small></td>'
        f'<td data-name="our test">{kept["our test"]}; bar {kept["bar"]}</td>'
        f'<td data-name="ours">{kept["ours"]}</td>'
        f'<td data-name="verdict"><strong>{kept["verdict"]}</strong>'
        f"<details><summary>more</summary><dl>{details}</dl></details></td>"
    )
    return f'<tr data-paper="{kept["of"]}" data-verdict="{kept["verdict"]}" data-source="{kept["source"]}">{cells}</tr>'


if __name__ == "__main__":
    main()
