"""The studio in a notebook: what goes between the page's frame and the kernel, without and with a browser."""

from __future__ import annotations

import base64
import json
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
from studio_browser import browsing, one_browser, own_cache, until  # noqa: F401
from studio_networks import small

import shorthaul as sh
from shorthaul import gui
from shorthaul.gui import Session

comm = pytest.importorskip("comm", reason="anywidget is not installed: requirements-dev.txt has it")
StudioWidget = pytest.importorskip("shorthaul.gui.notebook", reason="anywidget is not installed: requirements-dev.txt has it").StudioWidget


@pytest.fixture(scope="module")
def captured() -> Any:
    return sh.capture(*small())


class Wire(comm.base_comm.BaseComm):  # type: ignore[misc, name-defined]
    """A kernel's line to a notebook that keeps what is sent."""

    def __init__(self, **options: Any) -> None:
        self.sent: list[Any] = []
        self.news = threading.Condition()
        super().__init__(**options)

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any) -> None:
        with self.news:
            self.sent.append(data)
            self.news.notify_all()

    def texts(self) -> list[Any]:
        """What the kernel said in messages of the widget's own."""
        return [json.loads(d["content"]["studio"]) for d in self.sent if d and d.get("method") == "custom"]


@pytest.fixture
def shown(captured: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(comm, "create_comm", Wire)
    made = gui.widget(captured)
    assert isinstance(made, StudioWidget)
    yield made
    made.close()
    made.session.close()


def ask(widget: Any, method: str, **params: Any) -> Any:
    """Send a request as the page does, and wait for its answer."""
    wire, number = widget.comm, f"test/{len(widget.comm.sent)}"
    extra = {"version": widget.session.version, "key": number} if method in ("apply", "undo") else {}
    text = json.dumps({"id": number, "method": method, "params": params, **extra})
    wire.handle_msg({"content": {"data": {"method": "custom", "content": {"studio": text}}}, "buffers": []})
    with wire.news:
        assert wire.news.wait_for(lambda: any(m.get("id") == number for m in wire.texts()), 120)
    return next(m for m in wire.texts() if m.get("id") == number)


def test_requests_are_answered_and_changes_are_told(shown: Any) -> None:
    assert 'id="framed"' in shown.page and "studio/main.js" in shown.page and "http://" not in shown.page.replace("http://www.w3.org", "")
    before = ask(shown, "describe")["result"]
    assert before["current"] == 1
    best = ask(shown, "opportunities", limit=1)["result"][0]
    assert ask(shown, "apply", transformation=best["transformation"], where=best["where"])["result"]["id"] == 2
    assert {"changed"} <= {m.get("event") for m in shown.comm.texts()}
    assert shown.session.current.totals["bytes"] < before["states"][1]["totals"]["bytes"]
    assert "there is no method" in ask(shown, "close")["error"]
    shown.session.settle()
    shown.comm.handle_msg({"content": {"data": {"method": "custom", "content": "nonsense"}}, "buffers": []})  # it is ignored


def test_studio_gives_the_widget_in_a_notebook_alone(captured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "create_comm", Wire)
    assert not gui.in_notebook()
    kernel = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    assert gui.in_notebook()
    made: Any = sh.studio(captured)
    assert isinstance(made, StudioWidget)
    made.close()


FRAME = """<body style="margin:0"><div id="here"></div><script type="module">
    const { default: widget } = await import("data:text/javascript;base64,%s");
    const heard = [], model = {
        get: (name) => ({ page: window.page, height: 700 })[name],
        on: (what, f) => { if (what === "msg:custom") heard.push(f); }, off: () => {},
        send: (m) => kernel(m.studio).then((texts) => texts.forEach((studio) => heard.forEach((f) => f({ studio })))),
    };
    window.page = await kernel("");
    widget.render({ model, el: document.getElementById("here") });
</script>"""


def test_the_page_works_in_the_widgets_frame(browser: Any, captured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser's part for real, the notebook's model replaced: a change made in the frame arrives in the kernel and comes back."""
    session = Session.of(captured, checks=False)
    widget = StudioWidget(session)
    said: list[str] = []
    monkeypatch.setattr(widget, "send", lambda content: said.append(content["studio"]))

    def kernel(text: str) -> Any:
        if not text:
            return widget.page
        said.append(widget._requests.submit(text).result(120))
        told, said[:] = list(said), []
        return told

    with browsing(browser) as context:
        page = context.new_page()
        page.expose_function("kernel", kernel)
        page.goto("about:blank")
        page.set_content(FRAME % base64.b64encode(widget._esm.encode()).decode())
        page.wait_for_selector("iframe")
        frame = page.frames[1]
        frame.wait_for_selector("#loading", state="hidden")
        frame.fill("#search", "blocks.0")
        frame.press("#search", "Enter")
        frame.wait_for_selector("#panel h2:text-is('blocks.0')")
        frame.locator("#panel .card button.main").first.click()
        until(frame, "studio.d.current === 2")
        assert session.current.id == 2
        assert frame.evaluate("(() => { try { return parent.document.title; } catch (e) { return e.name; } })()") == "SecurityError"
    widget.close()
    session.close()
