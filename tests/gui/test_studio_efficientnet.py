"""EfficientNet's training program in the page: look, change, undo, change all blocks, measure, take it out; and the lesson."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from studio_browser import browsing, card, choose, one_browser, open_page, own_cache, shown, total, until  # noqa: F401

import shorthaul as sh
from benchmarks.networks import network
from shorthaul.demo.lesson import efficientnet
from shorthaul.gui import Session
from shorthaul.gui.server import Studio
from shorthaul.ir.fingerprint import fingerprint

LESSON = Path(__file__).resolve().parents[2] / "docs" / "lessons" / "10_studio.md"


def capture(small: bool) -> Any:
    """The training program of the benchmark network; its full size has shapes alone."""
    net = network("efficientnet_b0", small=small, device="cpu" if small else "meta")
    return sh.capture(net.module, net.inputs)


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["small", "full"])
def test_see_change_undo_measure_export_and_replay(browser: Any, small: bool, tmp_path: Path) -> None:
    session = Session.of(capture(small), checks=small)  # the interpreter would need the full network's memory
    studio = Studio(session)
    studio.start()
    block = "blocks.1" if small else "blocks.10"  # like blocks.3; like blocks.9
    try:
        with browsing(browser) as context:
            page = open_page(context, studio.url)
            before = total(page, "Bytes moved")
            choose(page, block)  # a block, and its bytes
            assert page.locator("#panel h2").inner_text() == block
            facts = page.locator("#panel .facts").inner_text()
            assert "Bytes moved" in facts and re.search(r"[0-9.]+ [MG]iB", facts)
            alike = page.locator("#panel").get_by_text("blocks.3" if small else "blocks.9", exact=True)
            assert alike.count()

            card(page, "MapFusion", "Apply")  # one fusion: totals fall, undo brings them back
            until(page, "studio.d.current === 2")
            assert session.current.totals["bytes"] < session.states[1].totals["bytes"]
            assert total(page, "Bytes moved") != before or not small  # one of many in the full network
            if small:
                page.wait_for_selector("#totals .badge.good", timeout=180_000)  # the numbers were checked
            page.locator("#graph").focus()
            page.keyboard.press("Control+z")
            until(page, "studio.d.current === 1")
            assert total(page, "Bytes moved") == before

            shown(page)
            card(page, "MapFusion", "Apply to all alike")  # a branch, in every block where it fits
            until(page, "studio.d.current === 3")
            done = [r.notes["where"] for r in session.current.program.log if r.name == "MapFusion"]
            assert len(done) >= 2
            assert all(any(b in where for where in done) for b in (block, "blocks.3" if small else "blocks.9"))

            if small:
                page.click("#measure")
                until(page, "studio.d.states[3].totals.measured", 300)
                assert re.match(r"[0-9.]+ (ms|µs|s)", total(page, "Measured"))
            page.click('[data-tab="history"]')
            page.wait_for_selector(".tree .state")
            assert page.locator(".tree .state").count() == 4
            page.click('[data-tab="diff"]')
            page.wait_for_selector(f"#sheet table td:has-text('{block}')")

            with page.expect_download() as download:
                page.select_option("#export", "recipe")
            download.value.save_as(tmp_path / "recipe.py")
        again = capture(small)
        again.replay(tmp_path / "recipe.py")
        assert fingerprint(again) == fingerprint(session.current.program)
        assert again.movement().bytes == session.current.totals["bytes"]
    finally:
        studio.close()
        session.close()


def test_the_lesson_with_the_page_alone(browser: Any, tmp_path: Path) -> None:
    """The steps of the lesson as its reader does them; its numbers are those that the page shows."""
    text = LESSON.read_text()
    session = Session.of(*efficientnet(), checks=False)
    studio = Studio(session)
    studio.start()
    try:
        with browsing(browser) as context:
            page = open_page(context, studio.url)
            for name in ("Bytes moved", "of eager", "Kernels"):
                assert f"**{total(page, name)}**" in text, (name, total(page, name))
            darkest = page.evaluate("studio.view.visible.map((i) => studio.model.items[i]).filter((x) => !studio.open.has(x.path))"
                                    ".reduce((a, b) => (b.bytes > a.bytes ? b : a))")  # fmt: skip
            assert (darkest["path"], darkest["column"]) == ("features.3.block", 1)  # on the backward side
            choose(page, "features.3")
            assert page.locator("#panel").get_by_text("features.5", exact=True).count()
            card(page, "MapFusion", "Preview")
            page.wait_for_selector("#dialog[open]")
            assert "Preview: MapFusion" in page.locator("#dialog").inner_text() and "agrees" in page.locator("#dialog").inner_text()
            page.locator("#dialog").get_by_role("button", name="Close", exact=True).click()
            for step in range(6):
                page.locator("#panel .card").first.get_by_role("button", name="Apply to all alike", exact=True).click()
                until(page, f"studio.d.current === {step + 2}")
                shown(page)
            for name in ("Bytes moved", "of eager", "Kernels"):
                assert f"**{total(page, name)}**" in text, (name, total(page, name))
            with page.expect_download() as download:
                page.select_option("#export", "recipe")
            download.value.save_as(tmp_path / "block.py")
            page.select_option("#level", "4")
            until(page, "studio.d.current === 8")
            for name in ("Bytes moved", "of eager", "Kernels"):
                assert f"**{total(page, name)}**" in text, (name, total(page, name))
            page.click('[data-tab="history"]')
            page.locator(".tree .state", has_text="ReductionFusion").get_by_role("button", name="Compare", exact=True).click()
            page.wait_for_selector("#sheet table td:has-text('features.3')")
            until(page, "studio.view.marked.size > 281")  # every kernel of level 4 is new, and so are the modules around them
    finally:
        studio.close()
        session.close()
    model, (x,) = efficientnet()
    again = sh.capture(model, (x,))
    again.replay(tmp_path / "block.py")
    assert fingerprint(again) == fingerprint(session.states[7].program)
