"""A closed lid, a process that was ended, one that was started anew: what the page says, what is kept, and that nothing is done twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studio_browser import browsing, one_browser, open_page, own_cache, total, until  # noqa: F401
from studio_networks import small

import shorthaul as sh
from shorthaul import gui
from shorthaul.gui import Session, SessionError
from shorthaul.gui.kept import MOST, Kept
from shorthaul.gui.requests import Requests
from shorthaul.gui.server import Studio
from shorthaul.ir.fingerprint import fingerprint

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def captured() -> Any:
    return sh.capture(*small())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What these sessions keep is theirs alone."""
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def served(port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`shorthaul studio` as a process of its own, and the address that it prints."""
    command = (sys.executable, "-m", "shorthaul", "studio", f"{HERE / 'studio_networks.py'}:small", "--no-browser", "--port", str(port))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert "http://" in line, line
            yield process, next(w for w in line.split() if w.startswith("http://"))
        finally:
            process.kill()


def test_a_closed_lid_and_a_process_that_is_started_anew(browser: Any) -> None:
    """A process that is stopped stands for a machine that sleeps: its connections are there, and nobody answers."""
    port = free_port()
    with browsing(browser) as context:
        with served(port) as (process, url):
            page = open_page(context, url)
            until(page, "studio.best && studio.best.length")
            page.evaluate("""(() => {
                const fast = window.setTimeout;  // the page's patience, a tenth of it
                window.setTimeout = (f, ms, ...rest) => fast(f, ms > 4000 ? ms / 10 : ms, ...rest);
            })()""")

            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)  # it is stopped now
            page.wait_for_timeout(200)  # and what it had said before has arrived
            page.evaluate("""() => {
                const best = studio.best[0];
                window.done = studio.line.call('apply', { transformation: best.transformation, where: best.where });
                window.dispatchEvent(new Event('online'));
            }""")  # the request is under way when the line turns out to be dead
            until(page, "document.querySelector('#notice').innerText.includes('has not answered since')")
            assert "start it again and open the address" in page.locator("#notice").inner_text()
            before = page.evaluate("studio.d.states.length")
            page.locator("#undo").click()  # what is asked for now is refused, not saved up
            until(page, "document.querySelector('#notice').innerText.includes('Until then nothing can be changed here')")
            process.send_signal(signal.SIGCONT)
            applied = page.evaluate("window.done.then((r) => r.id)")
            until(page, f"studio.d.current === {applied}")
            assert page.evaluate("studio.d.states.length") == before + 1  # it was sent on both lines, and done once
            assert not page.evaluate("studio.lost") and "has not answered" not in page.locator("#notice").inner_text()

            until(page, "studio.best && studio.best.length")
            page.evaluate("studio.change('apply_alike', { transformation: studio.best[0].transformation, where: studio.best[0].where })")
            until(page, "studio.d.states.length === 4")
            reached, bytes_moved = page.evaluate("studio.d.states.at(-1).step"), total(page, "Bytes moved")
            process.kill()
            until(page, "studio.lost")

        with served(port) as (_, url):  # the same address, but for the token
            until(page, "document.querySelector('#notice').innerText.includes('another studio runs at its address')")
            assert "Open the address that the new one printed" in page.locator("#notice").inner_text()
            assert page.evaluate("studio.line.call('undo').then(() => 'done', (e) => e.message)").endswith("Nothing can be changed here.")

            new = open_page(context, url)
            until(new, "document.querySelector('#notice').innerText.includes('came 2 steps further')")
            assert reached in new.locator("#notice").inner_text() and total(new, "Bytes moved") != bytes_moved
            new.click('[data-tab="history"]')
            assert new.locator("#sheet .state", has_text="an earlier session").count() == 1
            new.click("#restore")
            until(new, "studio.d.states.length === 3 && studio.d.current === 2")
            assert total(new, "Bytes moved") == bytes_moved
            until(new, "document.querySelector('#notice').hidden")
            until(new, "!document.querySelector('#sheet').innerText.includes('earlier session')")
            assert "taken up already" in new.evaluate("studio.line.call('restore').then(() => 'done', (e) => e.message)")
            new.reload()
            until(new, "window.studio && studio.d && studio.d.current === 2 && document.querySelector('#notice').hidden")


def test_what_was_under_way_is_not_done_by_another_session(browser: Any, captured: Any) -> None:
    """The same address and token, another session: as where a script starts the studio with both."""
    one, two = Session.of(captured, checks=False), Session.of(captured, checks=False)
    studio = Studio(one, token="a-token-that-stays")
    studio.start()
    port = studio.port
    try:
        with browsing(browser) as context:
            page = open_page(context, studio.url)
            until(page, "studio.best && studio.best.length")
            best = one.opportunities(limit=1)[0]
            page.evaluate("""p => {  // it leaves when the line is gone already
                studio.line.socket.onclose = null;
                studio.line.transmit = () => {};
                window.done = studio.line.call('apply', p).then(() => 'done', (e) => e.message);
                delete studio.line.transmit;
            }""", {"transformation": best["transformation"], "where": best["where"]})  # fmt: skip
            studio.close()
            studio = Studio(two, port=port, token="a-token-that-stays")
            studio.start()
            page.evaluate("studio.line.lose()")
            assert page.evaluate("window.done") == "The studio was started anew: what was under way was not done."
            until(page, f"studio.d.session === '{two.key}'")
            assert "started anew" in page.locator("#notice").inner_text()
            assert (len(one.states), len(two.states)) == (2, 2)
            page.evaluate("p => studio.line.call('apply', p)", {"transformation": best["transformation"], "where": best["where"]})
            assert (len(one.states), len(two.states)) == (2, 3)  # and the page works on
    finally:
        studio.close()
        one.close()
        two.close()


def test_requests_that_are_sent_again_are_answered_and_not_done_again(captured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.of(captured, checks=False)
    started: list[bool] = []
    monkeypatch.setattr(session, "measure", lambda wait, **_: started.append(wait) or {"state": 1})
    requests = Requests(session)
    best = session.opportunities(limit=1)[0]

    def ask(key: str, method: str, **params: Any) -> Any:
        text = json.dumps({"id": 1, "method": method, "params": params, "version": session.version, "key": key})
        return json.loads(requests.submit(text).result(120))

    first = ask("a/1", "apply", transformation=best["transformation"], where=best["where"])
    assert first["version"] == session.version == 2 and len(session.states) == 3
    assert ask("a/1", "apply", transformation=best["transformation"], where=best["where"]) == first and len(session.states) == 3
    assert ask("a/2", "measure") == ask("a/2", "measure") == {"id": 1, "result": {"state": 1}} and started == [False]
    ask("a/3", "measure")
    assert len(started) == 2
    requests.close()
    session.close()


def test_what_is_kept_for_the_next_start(captured: Any, cache: Path) -> None:
    session = Session.of(captured, checks=False)
    kept = Kept(session)
    assert session.earlier is None and not kept.path.exists()
    with pytest.raises(SessionError, match="nothing of an earlier session"):
        session.restore()
    for _ in range(2):
        best = session.opportunities(limit=1)[0]
        session.apply_alike(best["transformation"], best["where"])
    session.run_level(2)
    session.goto(3)
    kept.close()
    session.goto(2)  # is not kept any more

    other = Session.of(captured, checks=False)
    again = Kept(other)
    assert again.path == kept.path and other.describe()["earlier"]["steps"] == 2
    best = other.opportunities(limit=1)[0]
    other.apply(best["transformation"], best["where"])  # this is kept now; the session remembers what it read
    taken = other.restore()
    assert fingerprint(other.current.program) == fingerprint(session.states[3].program)
    assert taken["parent"] == 0 and taken["totals"] == session.states[3].describe()["totals"]
    other.reset()
    assert not again.path.exists()  # there is nothing to take up
    again.close()

    best = session.opportunities(limit=1)[0]
    session.reset()
    for damage in ("", "{}", '{"recipe": 3, "step": "", "steps": 1, "bytes": 1, "when": 1, "machine": "cpu"}'):
        kept.path.write_text(damage)
        assert Kept(session).session.earlier is None
    kept.path.write_text(json.dumps({"recipe": "recipe = 3", "step": "s", "steps": 1, "bytes": 1, "when": 1, "machine": "cpu"}))
    Kept(session)
    before = len(session.states)
    with pytest.raises(SessionError, match="does not fit this program any more"):
        session.restore()
    assert len(session.states) == before and session.earlier is not None
    for i in range(MOST + 5):
        (kept.path.parent / f"{i}.json").write_text("{}")
    session.run_level(1)
    assert len(list(kept.path.parent.glob("*.json"))) == MOST
    session.close()
    other.close()


def test_where_nothing_can_be_kept_it_is_said_once_and_the_session_goes_on(captured: Any, cache: Path) -> None:
    cache.write_text("a file where a directory should be")
    session = Session.of(captured, checks=False)
    told: list[Any] = []
    session.listen(told.append)
    Kept(session)
    session.run_level(1)
    session.run_level(2)
    failed = [e["what"] for e in told if e["event"] == "failed"]
    assert len(failed) == 1 and "SHORTHAUL_CACHE_DIR" in failed[0] and session.current.id == 3
    session.close()


def test_a_session_without_a_page_writes_nothing(captured: Any, cache: Path) -> None:
    session = gui.Session.of(captured, checks=False)
    session.run_level(1)
    session.close()
    assert not (cache / "studio").exists()
