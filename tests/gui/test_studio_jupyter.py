"""The widget in JupyterLab itself, where that is installed: shown, changed in the page and by a cell, the kernel started anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studio_browser import browsing, one_browser, own_cache, until  # noqa: F401
from test_studio_reconnect import free_port

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed; the widget's messages are tested without it, too")
pytest.importorskip("ipykernel", reason="JupyterLab has no kernel: pip install ipykernel")

HERE = Path(__file__).parent
CELLS = (
    f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    "import shorthaul as sh\nfrom studio_networks import small\nshown = sh.studio(*small())\nshown",
    "shown.session.undo()['id'], len(shown.session.states)",
)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a notebook with the cells above."""
    cells = [{"cell_type": "code", "id": f"cell{i}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
             for i, text in enumerate(CELLS)]  # fmt: skip
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (tmp_path / "work").mkdir()
    notebook = {"cells": cells, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "work" / "s.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    own = {k: str(tmp_path / k.lower()) for k in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, **own, "SHORTHAUL_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": paths}
    command = (sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip", "127.0.0.1", "--port", str(port),
               "--IdentityProvider.token=t", f"--ServerApp.root_dir={tmp_path / 'work'}")  # fmt: skip
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            end = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=t", timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-2000:]
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/lab/tree/s.ipynb?token=t"
        finally:
            process.send_signal(signal.SIGINT)  # twice: it would ask
            process.send_signal(signal.SIGTERM)


def run_cell(page: Any, i: int) -> None:
    """Run a cell; while the page is being built, its keys are not listened to yet."""
    cell = page.locator(".jp-CodeCell").nth(i)
    prompt = cell.locator(".jp-InputArea-prompt")
    for _ in range(20):
        before = prompt.inner_text()
        cell.locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        for _ in range(60):
            if prompt.inner_text() != before:
                return
            page.wait_for_timeout(50)
    pytest.fail("the cell was not run")


def frame_of(page: Any) -> Any:
    """The studio's page, when its graph is drawn."""
    page.wait_for_selector("iframe[title='Shorthaul studio']", state="attached", timeout=120_000)
    frame = next(f for f in page.frames if f != page.main_frame)
    frame.wait_for_selector("#loading", state="hidden")
    until(frame, "window.studio && studio.best && studio.best.length")
    return frame


@pytest.mark.slow
def test_the_widget_in_jupyterlab(browser: Any, lab: str) -> None:
    with browsing(browser) as context:
        page = context.new_page()
        page.goto(lab)
        page.wait_for_selector(".jp-CodeCell .cm-content", timeout=120_000)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=120_000)
        run_cell(page, 0)
        frame = frame_of(page)
        frame.fill("#search", "blocks.0")
        frame.press("#search", "Enter")
        frame.wait_for_selector("#panel h2:text-is('blocks.0')")
        frame.locator("#panel .card button.main").first.click()
        until(frame, "studio.d.current === 2")
        with page.expect_download() as download:
            frame.select_option("#export", "recipe")
        assert "MapFusion" in Path(download.value.path()).read_text()
        run_cell(page, 1)
        page.wait_for_selector(".jp-OutputArea-output :text('(1, 3)')")
        until(frame, "studio.d.current === 1")  # the page follows the cell
        frame.locator("#redo").click()
        until(frame, "studio.d.current === 2")

        page.keyboard.press("Escape")
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_role("menuitem", name="Restart Kernel…").click()
        page.locator(".jp-Dialog .jp-mod-accept").click()
        page.wait_for_selector(".jp-Dialog", state="detached")
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
        frame.locator("#undo").click()
        until(frame, "document.querySelector('#notice').innerText.includes('Run the cell of the widget again')")
        run_cell(page, 0)
        page.wait_for_function("document.querySelectorAll('iframe').length === 1")
        again = frame_of(page)
        until(again, "document.querySelector('#notice').innerText.includes('came a step further')")
        again.click("#restore")
        until(again, "studio.d.states.at(-1).step.startsWith('taken up: MapFusion')")
