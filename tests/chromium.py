"""A real browser without a window: Debian's Chromium, driven by Selenium."""

import shutil
from typing import Any

import pytest

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("chromedriver") is None or shutil.which("chromium") is None,
        reason="needs Debian's chromium and chromium-driver",
    ),
]


def start(width: int, height: int) -> Any:
    """The driver of a browser with a window of that size; what its console says can be asked."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    size = f"--window-size={width},{height}"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", size):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)
