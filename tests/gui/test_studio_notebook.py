"""The studio in a notebook: what goes between the page's frame and the kernel, without and with a browser."""

from __future__ import annotations

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


FRONT = """<body style="margin:0"><div id="here"></div><script type="module">
    // what a front end does: state from the kernel's comm_open message, the module from that state, messages both ways
    const state = await kernelState(), heard = [];
    let ended = false, at = 0;
    window.end = () => { ended = true; };
    const { default: widget } = await import(URL.createObjectURL(new Blob([state._esm], { type: "text/javascript" })));
    const model = {
        get: (name) => state[name],
        on: (what, f) => { if (what === "msg:custom") heard.push(f); },
        off: (what, f) => { heard.splice(heard.indexOf(f), 1); },
        send: (content) => { if (ended) throw new Error("Cannot send"); kernelSend(content); },
    };
    window.remove = widget.render({ model, el: document.getElementById("here") });
    window.listeners = () => heard.length;
    for (;;) {
        const news = await kernelNews(at);
        at += news.length;
        for (const content of news) [...heard].forEach((f) => f(content));
        await new Promise((go) => setTimeout(go, 30));
    }
</script>"""


def test_the_page_works_in_the_widgets_frame(browser: Any, shown: Any) -> None:
    """The widget's own messages on the kernel's side, a browser on the other: a change made in the frame arrives and comes back."""
    wire, session = shown.comm, shown.session
    opened = wire.sent[0]["state"]
    assert opened["_anywidget_id"].endswith("StudioWidget") and opened["height"] == 720
    with browsing(browser) as context:
        page = context.new_page()
        page.expose_function("kernelState", lambda: {k: opened[k] for k in ("_esm", "page", "height")})
        data = lambda content: {"content": {"data": {"method": "custom", "content": content}}, "buffers": []}  # noqa: E731
        page.expose_function("kernelSend", lambda content: wire.handle_msg(data(content)))
        page.expose_function("kernelNews", lambda n: [d["content"] for d in wire.sent if d and d.get("method") == "custom"][n:])
        page.goto("about:blank")
        page.set_content(FRONT)
        page.wait_for_selector("iframe")
        frame = page.frames[1]
        frame.wait_for_selector("#loading", state="hidden")
        frame.fill("#search", "blocks.0")
        frame.press("#search", "Enter")
        frame.wait_for_selector("#panel h2:text-is('blocks.0')")
        frame.locator("#panel .card button.main").first.click()
        until(frame, "studio.d.current === 2")
        assert session.current.id == 2
        session.undo()  # by a cell: the page follows
        until(frame, "studio.d.current === 1")
        assert frame.evaluate("(() => { try { return parent.document.title; } catch (e) { return e.name; } })()") == "SecurityError"

        page.evaluate("end()")  # the kernel is started anew: the front end has nobody to send to
        frame.locator("#redo").click()
        until(frame, "document.querySelector('#notice').innerText.includes('Run the cell of the widget again')")
        assert session.current.id == 1
        page.evaluate("remove()")
        assert page.evaluate("listeners()") == 0
