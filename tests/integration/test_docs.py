"""The book keeps its word: what it says of adding a method is done as it stands, and its ledger filters."""

import csv
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from IPython.display import IFrame
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from eeutils import papers
from eeutils.exiting.rules import Rule
from eeutils.files import repository_root
from eeutils.training.settings import Setting
from tests.browser import chromium
from tests.helpers import random_evidence
from workflow.site import ledger_table

ROOT = repository_root()
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
FILE, TRIED, RULE = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_example_of_a_method_trains_and_is_compared(
    setting: Setting, tiny_tasks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file lies where the page says: in the folder of papers, or so it seems.
    (tmp_path / "doubtful.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(papers, "__path__", [*papers.__path__, str(tmp_path)])
    monkeypatch.setattr(Setting, "from_profile", lambda *_, **__: setting)
    *lines, last = TRIED.strip().splitlines()
    namespace: dict = {}
    try:
        exec("\n".join(lines), namespace)
        assert isinstance(eval(last, namespace), IFrame)
        doubtful = import_module("eeutils.papers.doubtful")
        assert namespace["ours"].method is doubtful.METHOD
        assert namespace["ours"].history.loss.iloc[-1] < namespace["ours"].history.loss.iloc[0]
    finally:
        sys.modules.pop("eeutils.papers.doubtful", None)
        vars(papers).pop("doubtful", None)


def test_the_ledger_shows_the_claims_that_its_filters_let_through(tmp_path: Path) -> None:
    with (ROOT / "data" / "results" / "08-ledger.csv").open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    script = (ROOT / "docs" / "_static" / "book.js").read_text(encoding="utf-8")
    table = ledger_table(claims).replace('src="../_static/book.js" defer>', f">{script}")
    (tmp_path / "claims.html").write_text(f"<!doctype html><title>claims</title>{table}", encoding="utf-8")
    with chromium() as browser:
        browser.get((tmp_path / "claims.html").as_uri())

        def shown() -> list[str]:
            rows = "[...document.querySelectorAll('tbody tr:not([hidden]) th')]"
            return browser.execute_script(f"return {rows}.map((row) => row.firstChild.textContent)")

        assert shown() == [claim["claim"] for claim in claims]
        Select(browser.find_element(By.CSS_SELECTOR, "[data-filter=verdict]")).select_by_value("not reproduced")
        assert shown() == [claim["claim"] for claim in claims if claim["verdict"] == "not reproduced"]
        browser.find_element(By.CSS_SELECTOR, "[data-filter=words]").send_keys("PATIENCE")
        found = shown()
        assert 0 < len(found) < 11
        assert browser.find_element(By.CSS_SELECTOR, ".ledger-count").text == f"{len(found)} of {len(claims)} claims"


def test_the_example_of_a_rule_is_one() -> None:
    namespace: dict = {}
    exec(RULE, namespace)
    rule, evidence = namespace["calm"], random_evidence(0, stages=3, samples=5, classes=2)
    assert isinstance(rule, Rule)
    readiness = rule.readiness(evidence)
    assert torch.equal(rule.readiness(evidence.upto(1)), readiness[:2])
    assert ((readiness >= rule.low) & (readiness <= rule.high)).all()
