"""The studio's page in a real browser: look, change, undo, measure, export; several tabs; a lost connection; a refused token."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studio_browser import browsing, choose, main_thread, one_browser, open_page, own_cache, until  # noqa: F401
from studio_networks import flat, small

import shorthaul as sh
from shorthaul.gui import Session
from shorthaul.gui.server import Studio

GENEROUS = 60.0  # seconds: opening is only kept from hanging, since others use the machine; the time is printed


@pytest.fixture(scope="module")
def captured() -> Any:
    return sh.capture(*small())


@pytest.fixture
def studio(captured: Any) -> Iterator[Studio]:
    session = Session.of(captured)
    opened = Studio(session)
    opened.start()
    yield opened
    opened.close()
    session.close()


def test_everything_of_a_node_is_shown(browser: Any, studio: Studio) -> None:
    with browsing(browser) as context:
        page = open_page(context, studio.url)
        choose(page, "blocks.0.block.2: silu")
        page.wait_for_selector("#panel h2:text-is('silu')")
        for text in ("float32[2, 32, 12, 12]", "network.py", "y = self.block(x)"):  # shapes; the user's line
            until(page, f"document.querySelector('#panel')?.innerText.includes('{text}')")
        page.click("#panel details.refusals summary")
        until(page, "document.querySelector('#panel .card.refused p')?.innerText")  # why not
        page.locator("#panel details.code summary").first.click()
        until(page, "document.querySelector('#panel details.code pre')?.innerText.includes('void k_')")  # generated code
        page.locator("#graph").focus()
        page.keyboard.press("Enter")  # open the kernel: maps and tasklets
        until(page, "studio.bodies.size === 1")
        assert any("sigmoid" in r["text"] for r in page.evaluate("[...studio.bodies.values()][0]"))
        for name in page.eval_on_selector_all("#overlay option", "o => o.map(x => x.value)"):
            page.select_option("#overlay", name)
            until(page, f"studio.overlay === '{name}' && document.querySelector('#legend').innerText")
        for tab in ("opportunities", "roofline", "memory", "costliest"):
            page.click(f'[data-tab="{tab}"]')
            page.wait_for_selector("#sheet table, #sheet svg")
        until(page, "location.hash.includes('select=') && location.hash.includes('tab=costliest')")  # the address follows a little later
        link = page.url
        other = context.new_page()  # a deep link leads back
        other.goto(link)
        other.wait_for_selector("#panel h2:text-is('silu')")


def test_two_tabs_share_one_session_and_nothing_is_applied_twice(browser: Any, studio: Studio) -> None:
    with browsing(browser) as context:
        one, two = open_page(context, studio.url), open_page(context, studio.url)
        place = studio.session.opportunities(limit=1)[0]
        ask = "p => studio.line.call('apply', p).then(r => r.step, e => 'refused: ' + e.message)"
        params = {"transformation": place["transformation"], "where": place["where"]}
        two.evaluate("studio.line.onEvent = () => {}")  # the second tab has not heard of the change yet
        stale = studio.session.version
        assert one.evaluate(ask, params).startswith(place["transformation"])
        two.evaluate(f"studio.line.version = {stale}")
        assert "changed meanwhile" in two.evaluate(ask, params)
        assert len(studio.session.states) == 3
        until(one, "studio.d.current === 2")
        two.reload()
        until(two, "window.studio && studio.d && studio.d.current === 2")


def test_a_lost_connection_comes_back_and_a_request_sent_twice_is_done_once(browser: Any, studio: Studio) -> None:
    with browsing(browser) as context:
        page = open_page(context, studio.url)
        place = studio.session.opportunities(limit=1)[0]
        page.evaluate("""p => {  // the request leaves, the answer is lost with the line; it is sent again on the next one
            const line = studio.line;
            line.receive = ((old) => (m) => { if (m.id === undefined) old.call(line, m); })(line.receive);
            window.done = line.call('apply', p);
        }""", {"transformation": place["transformation"], "where": place["where"]})  # fmt: skip
        until(page, "studio.loading >= 2")  # the change was told
        page.evaluate("delete studio.line.receive; studio.line.socket.close()")
        assert page.evaluate("window.done.then(r => r.id)") == 2
        assert len(studio.session.states) == 3
        until(page, "studio.d.current === 2")
        assert page.locator("#notice").inner_text().startswith("Connected again") or page.locator("#notice").is_hidden()


def get(url: str, **headers: str) -> int:
    """The status of a request; a refusal says so."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as e:
        return e.code if "refused" in e.read().decode() else -e.code


def test_only_who_has_the_token_and_comes_from_here_is_answered(studio: Studio) -> None:
    wrong = studio.url[:-1] + ("a" if studio.url[-1] != "a" else "b")
    assert get(studio.url) == 200
    assert get(wrong) == 403 and get(studio.url.split("?")[0]) == 403
    assert get(studio.url, Origin="https://example.com") == 403
    assert get(studio.url, Host="example.com") == 403  # a name that was made to point to this machine
    socket = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
              "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
    place = studio.url.replace("/?", "/ws?")
    assert get(place, Origin="https://example.com", **socket) == 403
    assert get(wrong.replace("/?", "/ws?"), **socket) == 403
    assert studio.url.startswith("http://127.0.0.1:")


def test_a_flat_program_of_ten_thousand_nodes(browser: Any, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(flat())
    studio = Studio(session)
    studio.start()
    try:
        with browsing(browser) as context:
            page = context.new_page()
            page.goto(studio.url)
            page.wait_for_selector("#loading", state="hidden", timeout=GENEROUS * 1000)
            times = page.evaluate("studio.timing")
            page.evaluate("""async () => {
                const v = studio.view;
                v.fit();
                do { v.zoom(1.1, v.size[0] / 2, v.size[1] / 2); } while ((await v.drawn()).nodes > 2200);
                v.frames.length = 0;
            }""")
            frames = sorted(main_thread(page, """for (let i = 0; i < 120; i++) {
                if (i % 40 < 20) v.pan(i % 2 ? 6 : -5, 9 * (i % 3 - 1)); else v.zoom(i % 2 ? 1.01 : 1 / 1.01, 400, 300);
                await frame();
            }"""))  # fmt: skip
            painting, nodes = sorted(page.evaluate("studio.view.frames")), page.evaluate("studio.view.painted.nodes")
            assert page.evaluate("studio.view.visible.length") == 10_000
    finally:
        studio.close()
        session.close()
    half, most = len(frames) // 2, int(len(frames) * 0.95)
    with capsys.disabled():
        print(f"\n10,000 nodes: open in {times['opened']:.2f} s (layout {times['layout']:.2f} s in a worker) at a load of "
              f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; with {nodes} nodes in view the main thread works "
              f"{frames[half]:.1f} ms a frame, {frames[most]:.1f} ms at the 95th percentile (the painting worker: "
              f"{painting[len(painting) // 2]:.1f} ms)")  # fmt: skip
    assert times["opened"] < GENEROUS
    assert frames[most] < 8
    assert 1000 < nodes <= 2200


def test_the_exported_page_works_offline_and_changes_nothing(browser: Any, captured: Any, tmp_path: Path) -> None:
    session = Session.of(captured, checks=False)
    path = session.save(tmp_path / "small.html")
    with browsing(browser, offline=True) as context:
        page = open_page(context, path.as_uri())
        choose(page, "blocks.0.block.2: silu")
        page.wait_for_selector("#panel h2:text-is('silu')")
        assert "y = self.block(x)" in page.locator("#panel").inner_text()
        assert page.locator("#undo").count() == 0 and page.locator("#panel .card button").count() == 0
        for tab in ("opportunities", "roofline", "memory", "history", "costliest"):
            page.click(f'[data-tab="{tab}"]')
            page.wait_for_selector("#sheet table, #sheet svg, #sheet .tree")
        requests = page.evaluate("performance.getEntriesByType('resource').map((r) => r.name).filter((n) => !/^(data|blob):/.test(n))")
    assert requests == []
    assert json.loads(session.export("trace"))["traceEvents"]
