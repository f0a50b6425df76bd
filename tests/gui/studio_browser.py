"""The browser that the tests of the page use: Debian's Chromium, or another one that is installed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shorthaul import workbench

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REMEDY = "no Chromium or Chrome to test the studio's page in: apt-get install chromium, or name one in SHORTHAUL_BROWSER"


def find_browser() -> str:
    """Its path; the test fails, with the remedy, where there is none."""
    found = os.environ.get("SHORTHAUL_BROWSER") or next((p for n in NAMES if (p := shutil.which(n))), None)
    if found is None:
        pytest.fail(REMEDY, pytrace=False)
    return found


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session keeps for the next start is one test's alone; compiled kernels stay where they are."""
    monkeypatch.setattr(workbench, "cache_directory", lambda: tmp_path / "cache")


@pytest.fixture(scope="module", name="browser")
def one_browser() -> Iterator[Any]:
    """One for the tests of a file: starting it takes longer than most of them."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        # CI runs in containers as root, where Chromium's sandbox cannot be made
        yield p.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-dev-shm-usage"])


@contextlib.contextmanager
def browsing(browser: Any, **options: Any) -> Iterator[Any]:
    """A browser window; what the page reports as an error fails the test at the end."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True, **options)
    context.set_default_timeout(60_000)
    faults: list[str] = []
    context.on("weberror", lambda e: faults.append(str(e.error)))
    try:
        yield context
    finally:
        context.close()
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


def choose(page: Any, text: str) -> None:
    """Search, take the first that is found, and wait until the side panel shows it."""
    page.fill("#search", text)
    page.wait_for_selector("#found li")
    page.evaluate("document.querySelector('#panel').dataset.shows = 'what was chosen before'")
    page.press("#search", "Enter")
    shown(page)


def shown(page: Any) -> None:
    """Wait until the side panel shows the selection as it is in the current state."""
    until(page, "document.querySelector('#panel').dataset.shows === `${studio.d.version} ${studio.selection() ?? ''}` && "
                "studio.d.version === studio.line.version")  # fmt: skip


def card(page: Any, transformation: str, button: str) -> None:
    """Press a button of the first card of a transformation in the side panel."""
    found = page.locator("#panel .card", has=page.locator(f"b:text-is('{transformation}')")).first
    found.get_by_role("button", name=button, exact=True).click()


def until(page: Any, condition: str, seconds: float = 60) -> None:
    """Wait until a JavaScript expression holds (asked from outside: the page's policy forbids what evaluates text inside)."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"!!({condition})"):
        assert time.monotonic() < end, f"after {seconds} s still not: {condition}\n{page.locator('#notice').inner_text()}"
        page.wait_for_timeout(50)


def main_thread(page: Any, drive: str) -> list[float]:
    """Milliseconds of processor time that the page's main thread took in each frame of `drive`, JavaScript that awaits `frame()` at the end
    of each.

    Everything counts that ran there: script, style, recording, rasterization, compositing (Chromium's own trace of its tasks); how long it
    waited for a processor that others used does not.
    """
    browser = page.context.browser
    browser.start_tracing(page=page, categories=["disabled-by-default-devtools.timeline", "blink.user_timing"])
    page.evaluate(f"""async () => {{
        const v = studio.view, end = () => performance.mark("frame"), next = () => new Promise((r) => requestAnimationFrame(r));
        const frame = async () => {{ await next(); await v.drawn(); end(); }};
        end();
        {drive}
    }}""")
    events = json.loads(browser.stop_tracing())["traceEvents"]
    marks = sorted((e["ts"], e["pid"], e["tid"]) for e in events if e["name"] == "frame" and "user_timing" in e["cat"])
    where = marks[0][1:]
    tasks = [(e["ts"], e["tdur"]) for e in events if e["name"] == "RunTask" and e["ph"] == "X" and (e["pid"], e["tid"]) == where]
    assert tasks, "the browser's trace has no tasks of the main thread"
    times = [t for t, *_ in marks]
    return [sum(d for t, d in tasks if begin <= t < end) / 1e3 for begin, end in itertools.pairwise(times)]
