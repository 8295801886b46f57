"""The book asks no network: what its pages would load is found, what a reader may follow is let be."""

from pathlib import Path

import pytest

from workflow.site import foreign, ledger_table

LOADED = {
    "a script": '<script src="https://cdn.example.org/a.js"></script>',
    "a style sheet without a scheme": '<link rel="stylesheet" href="//cdn.example.org/a.css">',
    "a picture among several": '<img src="a.png" srcset="a.png 1x, http://example.org/b.png 2x">',
    "a frame": '<iframe src="HTTPS://example.org"></iframe>',
    "a font in a page": "<style>@font-face { src: url(https://example.org/a.woff2) }</style>",
    "an import in a page": '<style>@import "https://example.org/a.css";</style>',
    "a background": "<p style=\"background: url('https://example.org/a.png')\">",
}
FOLLOWED = (
    '<a href="https://example.org">paper</a><code>https://example.org</code><img src="data:image/png;base64,AA==">'
)


@pytest.mark.parametrize("kind", LOADED)
def test_what_a_page_would_load_from_elsewhere_is_found(tmp_path: Path, kind: str) -> None:
    (tmp_path / "page.html").write_text(f"<p>{LOADED[kind]}{FOLLOWED}", encoding="utf-8")
    [line] = foreign(tmp_path)
    assert line.startswith("page.html: ")
    assert "example.org" in line


def test_a_style_sheet_is_read_and_links_and_local_files_are_let_be(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.css").write_text(
        "b { src: url(../a.woff2) } i { src: url('//example.org/b') }", encoding="utf-8"
    )
    (tmp_path / "page.html").write_text(f'{FOLLOWED}<script src="_static/a.js"></script>', encoding="utf-8")
    assert list(foreign(tmp_path)) == ["sub/a.css: //example.org/b"]


def test_the_ledger_says_of_each_claim_what_the_table_says_and_lets_no_text_become_markup() -> None:
    names = ("of", "claim", "what it says", "source", "paper", "our test", "bar", "ours", "verdict", "note", "guess")
    claim = dict(
        zip(names, ("pabee", "P1", "a < b & c", "[P]", "0.1", "ours", ">= 0", "0.2", "mixed", "", ""), strict=True)
    )
    table = ledger_table([claim, claim | {"claim": "P2", "verdict": "undecided"}])
    assert table.count("<tr data-") == 2
    assert "a &lt; b &amp; c" in table
    assert "bar &gt;= 0" in table
    assert '<option value="mixed">mixed (1)</option>' in table
    assert "reproduced" not in table
    assert "<dt>note</dt>" not in table
