"""A real browser for tests: headless Chromium, where the machine has one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-quic")
# Inside a container there are no further walls to put up, and little shared memory.
_ANYWHERE = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage")


@contextmanager
def chromium() -> Iterator[WebDriver]:
    """A browser with nothing open; skips the test, saying so, where there is none."""
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no Chromium with its driver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (*_ANYWHERE, *_QUIET):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With both named, Selenium looks for nothing on any network.
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


def narrow(browser: WebDriver, width: int = 360, height: int = 740) -> None:
    """Give the page the screen of a phone; width 0 takes it away."""
    screen = {"width": width, "height": height if width else 0, "deviceScaleFactor": 1, "mobile": bool(width)}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
