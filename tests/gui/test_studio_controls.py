"""The page's controls one by one: search, keys, minimap, theme, tables that sort, preview, redo, branches, levels, reset, every export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studio_browser import browsing, card, choose, one_browser, open_page, own_cache, shown, total, until  # noqa: F401
from studio_networks import small

import shorthaul as sh
from shorthaul.gui import Session
from shorthaul.gui.server import Studio
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.serialize import from_json


@pytest.fixture(scope="module")
def captured() -> Any:
    return sh.capture(*small())


@pytest.fixture
def studio(captured: Any) -> Iterator[Studio]:
    session = Session.of(captured, checks=False)
    opened = Studio(session)
    opened.start()
    yield opened
    opened.close()
    session.close()


def found(page: Any, text: str) -> list[str]:
    page.fill("#search", text)
    page.wait_for_selector("#found li")
    return page.eval_on_selector_all("#found li", "e => e.map((x) => x.innerText)")


def test_search_keys_minimap_and_theme(browser: Any, studio: Studio) -> None:
    node = next(n for n in studio.session.graph()["nodes"] if n["label"] == "silu" and n["module"].startswith("blocks.0"))
    with browsing(browser, color_scheme="dark") as context:
        page = open_page(context, studio.url)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"  # as the system says
        assert any(t.startswith("blocks.0") for t in found(page, "blocks.0"))
        assert any("silu" in t for t in found(page, "silu"))  # a name, an operator
        assert all("2×32×12×12" in t for t in found(page, "2x32x12x12"))
        assert any(node["ref"] in t for t in found(page, node["lines"][0])) and node["lines"][0].startswith("network.py:")
        assert found(page, "nothing of this name") == ["Nothing is called so."]

        choose(page, node["ref"])
        page.locator("#graph").focus()
        seen = set()
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"):
            page.keyboard.press(key)
            shown(page)
            seen.add(page.evaluate("studio.selection()"))
        assert len(seen) >= 3
        page.keyboard.press("Escape")
        assert page.evaluate("studio.selection()").startswith("module:")
        page.keyboard.press("Enter")  # closes the module
        page.keyboard.press("t")
        until(page, "document.documentElement.dataset.theme === 'light'")
        page.keyboard.press("?")
        assert page.locator("#dialog").is_visible() and "Ctrl+Z" in page.locator("#dialog").inner_text()
        page.keyboard.press("Escape")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "search"
        page.keyboard.press("Escape")

        before = page.evaluate("[studio.view.x, studio.view.y]")
        box = page.locator("#minimap").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] - 12)
        assert page.evaluate("[studio.view.x, studio.view.y]") != before
        page.click("#fit")
        far = page.evaluate("studio.view.k")
        page.mouse.move(300, 400)
        page.mouse.wheel(0, -400)
        until(page, f"studio.view.k > {far}")
        page.reload()  # the theme is kept
        until(page, "window.studio && studio.d && document.documentElement.dataset.theme === 'light'")


def shares(page: Any) -> list[float]:
    """The column of shares of the costliest nodes, in percent."""
    texts = page.eval_on_selector_all("#sheet tbody td:nth-child(6)", "e => e.map((x) => x.innerText)")
    return [float(t.rstrip("%")) for t in texts]


def test_tables_sort_and_lead_to_the_graph(browser: Any, studio: Studio) -> None:
    with browsing(browser) as context:
        page = open_page(context, studio.url)
        rows = page.locator("#sheet tbody tr")
        rows.first.wait_for()
        assert shares(page) == sorted(shares(page), reverse=True)
        page.get_by_role("button", name="Share").click()
        page.get_by_role("button", name="Share").click()
        assert shares(page) == sorted(shares(page)) != sorted(shares(page), reverse=True)
        page.get_by_role("button", name="Bytes").click()
        rows.first.click()
        shown(page)
        chosen = page.evaluate("studio.graph.nodes[studio.model.items[studio.selected].node].id")
        assert chosen == studio.session.costliest(limit=1)[0]["id"]
        page.click('[data-tab="roofline"]')
        page.locator("#sheet svg .dot").first.dispatch_event("click")
        until(page, "document.querySelectorAll('#sheet .dot.chosen').length === 1")
        page.click('[data-tab="opportunities"]')
        page.get_by_role("button", name="Show what does not apply").click()
        page.wait_for_selector("#sheet th:has-text('Reason')")


def test_preview_redo_branch_level_and_reset(browser: Any, studio: Studio) -> None:
    session = studio.session
    with browsing(browser) as context:
        page = open_page(context, studio.url)
        lowered = total(page, "Bytes moved")
        choose(page, "blocks.0")
        card(page, "MapFusion", "Preview")
        page.wait_for_selector("#dialog[open]")
        text = page.locator("#dialog").inner_text()
        assert "agrees" in text and "Before" in text and "After" in text and "▼" in text
        assert len(session.states) == 2  # nothing was done
        page.locator("#dialog").get_by_role("button", name="Apply", exact=True).click()
        until(page, "studio.d.current === 2")
        applied = total(page, "Bytes moved")
        page.click("#undo")
        until(page, "studio.d.current === 1")
        assert total(page, "Bytes moved") == lowered and page.locator("#redo").is_enabled()
        page.click("#redo")
        until(page, "studio.d.current === 2")
        assert total(page, "Bytes moved") == applied and page.locator("#redo").is_disabled()
        page.click("#undo")
        until(page, "studio.d.current === 1")
        shown(page)
        page.locator("#panel .card").nth(1).get_by_role("button", name="Apply", exact=True).click()  # another one: a branch
        until(page, "studio.d.current === 3")
        for level in "1234":
            page.select_option("#level", level)
            until(page, f"studio.d.states.at(-1).step === 'level {level}' && studio.d.current === studio.d.states.length - 1")
        assert [s.parent.id for s in session.states[2:]] == [1, 1, 0, 0, 0, 0]  # type: ignore[union-attr]
        sizes = [s.totals["bytes"] for s in session.states[-4:]]
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]
        page.select_option("#machine", "h100")
        until(page, "studio.d.machine === 'h100'")
        page.select_option("#level", "4")
        until(page, "studio.d.states.at(-1).step === 'level 4 for h100'")
        page.click("#reset")
        until(page, "studio.d.current === 1")
        assert total(page, "Bytes moved") == lowered
        page.keyboard.press("Control+z")
        page.keyboard.press("Control+z")  # more often than there is something to undo: said
        until(page, "document.querySelector('#notice').innerText.includes('nothing to undo')")
        page.click('[data-tab="history"]')
        until(page, "document.querySelectorAll('.tree .state').length === 9")
        page.locator(".tree .state").nth(2).get_by_role("button", name="Go here").click()
        until(page, "studio.d.current === 2")

        items = "[...studio.view.marked].map((i) => studio.model.items[i].node).filter((n) => n >= 0)"
        marked = f"new Set({items}.map((n) => studio.graph.nodes[n].id))"
        made = session.states[2].describe()["made"]
        assert sorted(page.evaluate(f"[...{marked}]")) == made  # the last step is outlined
        page.locator(".tree .state").nth(3).get_by_role("button", name="Compare").click()  # with the branch
        page.wait_for_selector("#sheet th:has-text('Bytes before')")
        new = sorted(n["id"] for n in session.diff(3, 2)["added"])
        until(page, f"{marked}.size === {len(new)}")
        assert sorted(page.evaluate(f"[...{marked}]")) == new != made  # what the comparison found new is
        page.click("#collapse")
        until(page, "studio.view.visible.some((i) => studio.model.items[i].node < 0 && studio.view.marked.has(i))")
        page.click('[data-tab="costliest"]')
        until(page, f"{marked}.size === {len(made)}")


def test_every_export_of_the_page(browser: Any, studio: Studio, tmp_path: Path) -> None:
    session = studio.session
    session.run_level(2)
    with browsing(browser) as context:
        page = open_page(context, studio.url)
        files = {}
        for kind, end in (("recipe", ".py"), ("svg", ".svg"), ("html", ".html"), ("trace", ".trace.json"), ("json", ".json")):
            with page.expect_download() as download:
                page.select_option("#export", kind)
            assert download.value.suggested_filename == f"Small{end}"
            download.value.save_as(tmp_path / kind)
            files[kind] = (tmp_path / kind).read_text()
        drawn = context.new_page()
        drawn.set_content(files["svg"])
        assert drawn.locator("svg rect").count() > 10 and drawn.locator("svg path").count() > 5 and "blocks" in files["svg"]
    assert fingerprint(from_json(files["json"])) == fingerprint(session.current.program)
    assert all(e["ph"] in "XC" for e in json.loads(files["trace"])["traceEvents"])
    assert files["recipe"].startswith('"""Recipe of Small') and 'id="offline"' in files["html"]


def test_a_program_that_was_written_opens_again(browser: Any, studio: Studio, tmp_path: Path) -> None:
    """`shorthaul studio program.json` on what the page exports; levels need the operators, which it has not any more."""
    session = Session.open(str(studio.session.save(tmp_path / "small.json")))
    again = Studio(session)
    again.start()
    try:
        with browsing(browser) as context:
            page, first = open_page(context, again.url), open_page(context, studio.url)
            assert total(page, "Bytes moved") == total(first, "Bytes moved") and total(page, "Kernels") == total(first, "Kernels")
            assert page.locator("#tune").is_disabled()
            page.select_option("#level", "2")
            until(page, "document.querySelector('#notice').innerText.includes('open the captured program')")
            assert page.evaluate("studio.d.states.length") == 1
    finally:
        again.close()
        session.close()
