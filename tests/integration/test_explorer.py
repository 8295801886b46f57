"""The explorer in a real browser: a reader moves the threshold by keyboard and reads what `tradeoff` computes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import Select, WebDriverWait

from eeutils.data.tasks import task_of
from eeutils.errors import InputError
from eeutils.exiting import rules, tradeoff
from eeutils.exiting.rules import NEVER, Rule
from eeutils.papers import pabee
from eeutils.reporting.explorer import document, explore, ground, model
from eeutils.study import explored
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.browser import chromium, narrow
from tests.helpers import accuracy, random_evidence

UNITS = 12
FIRST, SECOND = (random_evidence(seed, stages=4, samples=UNITS, classes=2) for seed in (1, 2))
RULES = (rules.entropy(), rules.patience())
LONG = "A sentence without end, " * 9


@pytest.fixture(scope="module")
def browser() -> Iterator[WebDriver]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The explorer of two models on twelve sentences."""
    models = [model(f"model {number}", said, RULES, accuracy) for number, said in ((1, FIRST), (2, SECOND))]
    texts = [LONG, *(f"sentence {number}" for number in range(1, UNITS))]
    made = ground("A ground", "Made by chance.", "accuracy", ["no", "yes"], texts, FIRST.labels.tolist(), models)
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    path.write_text(document([made]), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: WebDriver, file: Path) -> WebDriver:
    browser.get(file.as_uri())
    return browser


READ = """
  const all = (selector) => [...document.querySelectorAll(selector)];
  return {
    ...Object.fromEntries(all("[data-value]").map((element) => [element.id, Number(element.dataset.value)])),
    never: document.getElementById("tau").dataset.value === "null",
    columns: all("#columns button").map((button) => Number(button.dataset.count)),
    right: all("#leaving circle.right").length,
    told: document.getElementById("compared").textContent,
  };
"""


def read(browser: WebDriver) -> dict:
    """What stands on the page: the numbers with all their digits."""
    shown = browser.execute_script(READ)
    return shown | {"threshold": NEVER if shown["never"] else shown["tau"]}


def press(browser: WebDriver, *keys: str) -> None:
    """Keys on the slider, one after the other."""
    browser.find_element(By.ID, "threshold").send_keys(*keys)


def choose(browser: WebDriver, name: str, text: str) -> None:
    Select(browser.find_element(By.ID, name)).select_by_visible_text(text)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_slider_moved_by_keyboard_shows_the_numbers_of_the_tradeoff(opened: WebDriver, rule: Rule) -> None:
    choose(opened, "rule", rule.name)
    press(opened, Keys.HOME)
    seen = []
    while not seen or seen[-1] != NEVER:
        shown = read(opened)
        point = tradeoff.at_threshold(FIRST, rule, accuracy, shown["threshold"])
        numbers = ("score", "layers", "speedup")
        assert [shown[name] for name in numbers] == [point[name] for name in ("score", "layers", "flops_speedup")]
        # The dots, and the count under each layer, are those who leave there.
        assert shown["columns"] == [round(UNITS * point[f"leave_{stage}"]) for stage in range(1, 5)]
        assert shown["right"] / UNITS == pytest.approx(point["score"])
        seen.append(shown["threshold"])
        press(opened, Keys.ARROW_RIGHT)
    assert seen == sorted(tradeoff.sweep(FIRST, rule, accuracy).threshold)
    told = opened.find_element(By.ID, "threshold").get_attribute("aria-valuetext")
    assert told.startswith(
        f"never: accuracy {accuracy(FIRST.predictions[-1].numpy(), FIRST.labels.numpy()):.3f}, 4.00 layers"
    )


def test_two_methods_are_compared_at_equal_flops(opened: WebDriver) -> None:
    opened.find_element(By.ID, "compare").send_keys(Keys.SPACE)
    choose(opened, "method-b", "model 2")
    choose(opened, "rule-b", "patience")
    press(opened, Keys.END)
    compared = 0
    for _ in range(30):
        shown = read(opened)
        if tradeoff.can_reach(SECOND, RULES[1], shown["speedup"]):
            reading = tradeoff.at_speedup(SECOND, RULES[1], shown["speedup"])
            assert shown["compared"] == pytest.approx(reading.score(accuracy, SECOND.labels.numpy()), abs=1e-9)
            compared += 1
        else:
            assert "reaches" in shown["told"]
        press(opened, Keys.ARROW_LEFT)
    assert 10 < compared < 30


def test_a_sentence_opened_by_keyboard_tells_what_every_exit_said(opened: WebDriver) -> None:
    press(opened, Keys.HOME, *[Keys.ARROW_RIGHT] * 12)
    stages = tradeoff.decide(FIRST, RULES[0], read(opened)["threshold"]).stages
    first = opened.find_element(By.CSS_SELECTOR, "#sentences summary")
    first.send_keys(Keys.ENTER)
    # A browser tells its page that a sentence was opened once it finds the time.
    WebDriverWait(opened, 20).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#sentences tbody tr"))
    rows = [row.text for row in opened.find_elements(By.CSS_SELECTOR, "#sentences tbody tr")]
    assert len(rows) == FIRST.stages
    for stage, row in enumerate(rows):
        said = ("no", "yes")[int(FIRST.predictions[stage, 0])]
        assert row.startswith(f"{stage + 1} {said} {float(FIRST.confidence[stage, 0]):.3f}")
        assert row.endswith("leaves") == (stage == stages[0])
        assert row.endswith("never runs") == (stage > stages[0])


def test_a_phone_shows_it_without_moving_sideways_and_no_request_leaves_the_machine(
    opened: WebDriver, file: Path
) -> None:
    narrow(opened)
    try:
        opened.get(file.as_uri())
        for opener in ("compare", "threshold"):
            opened.find_element(By.ID, opener).send_keys(Keys.SPACE)
        opened.find_element(By.CSS_SELECTOR, "#sentences summary").send_keys(Keys.ENTER)
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        narrow(opened, 0)
    sent = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = {step["params"]["request"]["url"] for step in sent if step["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith(("file:", "data:"))} == set()
    assert opened.get_log("browser") == []


def test_everything_one_can_act_on_has_a_name_and_a_visible_focus(opened: WebDriver) -> None:
    for element in opened.find_elements(By.CSS_SELECTOR, "select, input, button, summary"):
        if element.is_displayed():
            assert element.accessible_name, element.get_attribute("outerHTML")
    press(opened, Keys.TAB)  # onto the first layer
    style = opened.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"
    assert opened.switch_to.active_element.accessible_name.startswith("Layer 1")


def test_a_run_is_explored_in_a_cell(browser: WebDriver, setting: Setting, tiny_tasks: None, tmp_path: Path) -> None:
    run = load_or_train(pabee.METHOD, setting, progress=False)
    cell = tmp_path / "cell.html"
    cell.write_text(f"<!doctype html><title>cell</title>{explore(run)._repr_html_()}", encoding="utf-8")
    browser.get(cell.as_uri())
    browser.switch_to.frame(0)
    assert browser.find_element(By.CSS_SELECTOR, "#method option").text == "PABEE"
    press(browser, Keys.END)
    last = tradeoff.fixed_exits(run.test, run.metric).iloc[-1]
    shown = read(browser)
    assert (shown["score"], shown["layers"]) == (last.score, last.layers)
    assert f"{run.test.samples} sentences" in browser.find_element(By.ID, "count").text


def test_the_study_writes_what_has_been_run_as_a_ground(
    setting: Setting, tiny_tasks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explored, "grounds_dir", lambda: tmp_path)
    with pytest.raises(InputError, match="none of DeeBERT, PABEE, BADGE"):
        explored.explored("smoke", setting)
    run = load_or_train(pabee.METHOD, setting, progress=False)
    path = explored.explored("smoke", setting, shown=7)
    assert [file.name for file in tmp_path.glob("*.json")] == [path.name]
    made = json.loads(path.read_text(encoding="utf-8"))
    assert len({unit["text"] for unit in made["units"]}) == 7
    assert made["about"].startswith(f"7 of {run.test.samples} test sentences, drawn by chance")
    [shown] = made["models"]
    assert shown["name"] == "PABEE"
    assert [rule["name"] for rule in shown["rules"]] == ["patience", "entropy", "divergence (jsd)"]
    rows = task_of(setting.task, setting.train_size, setting.test_size).test.to_pandas().set_index("text_a")
    for unit, said in zip(made["units"], zip(*shown["answers"], strict=True), strict=True):
        place = run.test.ids.tolist().index(rows.loc[unit["text"]].id)
        assert unit["label"] == rows.loc[unit["text"]].label
        assert list(said) == run.test.predictions[:, place].tolist()
