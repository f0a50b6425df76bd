"""What takes long, in the page and without it: tuning with progress that can be stopped, measuring that crashes, GPUs, bodies of loops."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import pytest
import torch
from studio_browser import browsing, choose, one_browser, open_page, own_cache, shown, until  # noqa: F401
from studio_networks import small
from torch import nn

import shorthaul as sh
from shorthaul import workbench
from shorthaul.codegen.triton.launch import is_interpreting
from shorthaul.gui import Session, SessionError, measuring
from shorthaul.gui.server import Studio
from shorthaul.runtime import profile as profiling


@pytest.fixture(scope="module")
def captured() -> Any:
    return sh.capture(*small())


def test_tuning_shows_how_far_it_is_and_keeps_what_it_found_when_it_is_stopped(browser: Any) -> None:
    torch.manual_seed(0)
    session = Session.of(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), (torch.randn(4, 6),), checks=False)
    studio = Studio(session)
    studio.start()
    try:
        with browsing(browser) as context:
            page = open_page(context, studio.url)
            page.evaluate("""(() => {
                window.heard = [];
                const old = studio.line.onEvent;
                studio.line.onEvent = (e) => { window.heard.push(e); old(e); };
            })()""")
            page.click("#tune")
            until(page, "document.querySelector('#tune').innerText === 'Stop'", 180)
            until(page, "window.heard.some((e) => e.job === 'tuning' && e.part > 0)", 180)
            assert "Tuning, " in page.locator("#notice").inner_text()
            assert page.locator("#measure").is_disabled()
            page.click("#tune")  # it is called Stop now
            until(page, "studio.d.states.some((s) => s.kind === 'tuned') && !studio.d.job", 180)
            until(page, "document.querySelector('#tune').innerText === 'Tune'")
        assert session.current.kind == "tuned" and session.current.parent is session.root
    finally:
        studio.close()
        session.close()


SAYS = "print('{\"what\": \"timing kernels\", \"part\": 0.7}', flush=True)"
CRASHES = f"import os, signal, sys; sys.stdin.readline(); {SAYS}; os.kill(os.getpid(), signal.SIGSEGV)"


def test_a_kernel_that_crashes_is_told_and_the_session_goes_on(browser: Any, captured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "COMMAND", (sys.executable, "-c", CRASHES))
    session = Session.of(captured, checks=False)
    studio = Studio(session)
    studio.start()
    try:
        with browsing(browser) as context:
            page = open_page(context, studio.url)
            page.click("#measure")
            until(page, "document.querySelector('#notice').innerText.includes('crashed (SIGSEGV) while timing kernels')")
            assert "The session is as it was" in page.locator("#notice").inner_text()
            until(page, "document.querySelector('#measure').innerText === 'Measure'")
            assert page.evaluate("studio.d.states.length") == 2
    finally:
        studio.close()
        session.close()


def test_measuring_stops_at_once_and_says_what_failed(captured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.of(captured, checks=False)
    told: list[Any] = []
    started = threading.Event()
    session.listen(lambda e: (told.append(e), started.set() if e.get("what") == "timing kernels" else None))
    monkeypatch.setattr(measuring, "COMMAND", (sys.executable, "-c", f"import sys, time; sys.stdin.readline(); {SAYS}; time.sleep(600)"))
    session.measure(wait=False)
    assert started.wait(60)
    session.stop()
    with pytest.raises(SessionError, match="was stopped"):
        session.settle(60)
    assert any(e["event"] == "stopped" for e in told) and session.current.measured is None
    monkeypatch.setattr(measuring, "COMMAND", (sys.executable, "-c", "raise ImportError('no compiler here')"))
    with pytest.raises(SessionError, match="ended with status 1 while starting: ImportError: no compiler here"):
        session.measure()
    with pytest.raises(SessionError, match=r"there is no device 'cuda:7' here; there are cpu"):
        session.measure(device="cuda:7")
    session.close()


class Event:
    """A GPU's event, on a clock that goes a millisecond further with each."""

    now = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1

    def record(self) -> None:
        Event.now += 1
        self.at = Event.now

    def elapsed_time(self, other: Event) -> int:
        assert 0 < self.at < other.at
        return other.at - self.at


def test_a_gpus_kernels_are_timed_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock alone, without a GPU: each call lies between two events, which are read after the device has done everything."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch, "cuda", types.SimpleNamespace(Event=Event, synchronize=waited.append))
    clock, seconds = profiling._EventClock(torch.device("cuda", 0)), list[float]()
    run = clock.timed(lambda a, b: a + b, seconds)
    assert [run(1, 2), run(3, 4)] == [3, 7] and not seconds and not waited
    clock.collect()
    assert seconds == [0.001, 0.001] and len(waited) == 1
    clock.collect()
    assert len(seconds) == 2


@pytest.mark.skipif(not is_interpreting() and not torch.cuda.is_available(), reason="needs a GPU, or TRITON_INTERPRET=1")
def test_the_triton_target_is_measured() -> None:
    """On a GPU, or by Triton's interpreter: the step and every kernel have times."""
    program = sh.capture(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), (torch.randn(4, 6),))
    program.optimize(level=2)  # type: ignore[attr-defined]
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    found = profiling.profile(program, workbench._values(program), runs=2, warmup=1, device=device, target="triton")
    assert found.kernels.keys() == {n.id for n in program.nodes} and all(t.runs == 2 and t.least > 0 for t in found.kernels.values())
    assert 0 < found.step.low <= found.step.high and found.device == ("cpu" if device == "cpu" else torch.cuda.get_device_name(0))


class Controlled(nn.Module):
    """A branch whose sides differ and a loop; (3, 4) -> (3, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cond(x.sum() > 0, lambda x: (x * self.w).tanh(), lambda x: x.exp() * 2, (x,))
        return torch.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, (y * self.w).sigmoid()), (torch.tensor(0), y))[1]


def test_the_bodies_of_loops_and_branches_are_drawn_searched_and_shown(browser: Any) -> None:
    session = Session.of(Controlled(), (torch.randn(3, 4),), checks=False)
    graph = session.graph()
    inner = [n for n in graph["nodes"] if "parent" in n]
    assert {"then", "otherwise"} <= {n["body"] for n in inner} and any(graph["nodes"][n["parent"]]["kind"] == "loop" for n in inner)
    assert len({n["ref"] for n in graph["nodes"]}) == len(graph["nodes"])
    assert sum(n["bytes"] for n in graph["nodes"] if "parent" not in n) == session.current.totals["bytes"]
    sigmoid = next(n for n in inner if n["label"] == "sigmoid" and n["phase"] == "forward")
    details = session.node(sigmoid["ref"])
    assert details["inside"] == graph["nodes"][sigmoid["parent"]]["ref"] and details["code"][0]["language"] == "C++"
    assert session.body(sigmoid["ref"])["kind"] == "map"
    studio = Studio(session)
    studio.start()
    try:
        with browsing(browser) as context:
            page = open_page(context, studio.url)
            closed = page.evaluate("studio.view.visible.length")
            choose(page, sigmoid["ref"])  # a search opens what is around it
            assert page.locator("#panel h2").inner_text() == "sigmoid"
            assert "node of a body" in page.locator("#panel").inner_text()
            assert page.evaluate("studio.view.visible.length") > closed
            page.locator("#graph").focus()
            page.keyboard.press("Escape")  # the loop around it
            shown(page)
            assert page.evaluate("studio.graph.nodes[studio.model.items[studio.selected].node].kind") == "loop"
            page.keyboard.press("Enter")
            until(page, f"studio.view.visible.length === {closed}")
            page.keyboard.press("Enter")
            until(page, f"studio.view.visible.length > {closed}")
    finally:
        studio.close()
        session.close()


def test_an_answer_that_comes_late_does_not_replace_the_table_that_is_shown(browser: Any, captured: Any) -> None:
    session = Session(captured, checks=False)
    studio = Studio(session)
    studio.start()
    try:
        with browsing(browser) as context:
            page = open_page(context, studio.url)
            page.evaluate("""(() => {
                const call = studio.line.call.bind(studio.line), late = new Promise((go) => { window.go = go; });
                studio.line.call = async (method, params) => {
                    const answer = await call(method, params);
                    if (method === 'roofline') await late;
                    return answer;
                };
            })()""")
            page.click('[data-tab="roofline"]')
            page.click('[data-tab="history"]')
            page.wait_for_selector(".tree .state")
            page.evaluate("window.go()")
            page.wait_for_timeout(300)
            assert page.locator("#sheet .tree .state").count() == 1
    finally:
        studio.close()
        session.close()


def test_a_description_that_comes_late_does_not_replace_a_newer_one(browser: Any, captured: Any) -> None:
    """A check ends, its description is asked for, and before it arrives the program is changed."""
    session = Session.of(captured, checks=False)
    studio = Studio(session)
    studio.start()
    try:
        with browsing(browser) as context:
            page = open_page(context, studio.url)
            page.evaluate("""(() => {
                const call = studio.line.call.bind(studio.line), late = new Promise((go) => { window.go = go; });
                let first = true;
                studio.line.call = async (method, params) => {
                    const held = first && method === 'describe', answer = call(method, params);
                    if (held) { first = false; await answer; window.held = true; await late; }
                    return answer;
                };
            })()""")
            session.tell(event="checked", state=1, version=session.version)
            until(page, "window.held")
            session.run_level(2)
            until(page, "studio.d.current === 2")
            page.evaluate("window.go()")
            page.wait_for_timeout(300)
            assert page.evaluate("[studio.d.current, studio.d.version, studio.line.version]") == [2, session.version, session.version]
    finally:
        studio.close()
        session.close()
