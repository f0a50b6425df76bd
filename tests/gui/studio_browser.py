"""The browser that the tests of the page use: Debian's Chromium, or another one that is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REMEDY = "no Chromium or Chrome to test the studio's page in: apt-get install chromium, or name one in SHORTHAUL_BROWSER"


def find_browser() -> str:
    """Its path; the test fails, with the remedy, where there is none."""
    found = os.environ.get("SHORTHAUL_BROWSER") or next((p for n in NAMES if (p := shutil.which(n))), None)
    if found is None:
        pytest.fail(REMEDY, pytrace=False)
    return found


@contextlib.contextmanager
def browsing(**options: Any) -> Iterator[Any]:
    """A browser window; what the page reports as an error fails the test at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        # CI runs in containers as root, where Chromium's sandbox cannot be made
        browser = p.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-dev-shm-usage"])
        context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True, **options)
        context.set_default_timeout(60_000)
        faults: list[str] = []
        context.on("weberror", lambda e: faults.append(str(e.error)))
        try:
            yield context
        finally:
            browser.close()
        assert not faults, faults


def open_page(context: Any, url: str) -> Any:
    """A tab with the studio, when the graph is drawn."""
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#loading", state="hidden")
    return page


def total(page: Any, name: str) -> str:
    """A number of the bar as it is written."""
    return page.locator(f'[data-total="{name}"] b').inner_text().split("\n")[0].split("▼")[0].split("▲")[0].strip()


def until(page: Any, condition: str, seconds: float = 60) -> None:
    """Wait until a JavaScript expression holds (asked from outside: the page's policy forbids what evaluates text inside)."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"!!({condition})"):
        assert time.monotonic() < end, f"after {seconds} s still not: {condition}\n{page.locator('#notice').inner_text()}"
        page.wait_for_timeout(50)
