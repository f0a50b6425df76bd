"""The page of operators says what the registry says."""

from __future__ import annotations

from shorthaul import coverage
from shorthaul.ops.registry import REGISTRY


def test_the_page_is_current() -> None:
    assert coverage.PAGE.read_text() == coverage.page(), "run `python -m shorthaul.coverage`"


def test_rows_say_how_operators_are_differentiated() -> None:
    found = {name: (gradient, targets) for name, _, gradient, targets in coverage.rows()}
    assert set(found) == set(REGISTRY)
    assert found["silu"] == ("written", "C++, Triton")
    assert found["prod"][0] == "maps"
    assert found["argmax"][0] == ""
    assert found["sort"][1].endswith("library")
    assert "Triton" not in found["airy_ai"][1]


def test_a_page_that_is_not_current_is_reported(tmp_path, capsys, monkeypatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("old")
    monkeypatch.setattr("sys.argv", ["coverage", "--check", str(page)])
    assert coverage.main() == 1
    assert "not current" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["coverage", str(page)])
    assert coverage.main() == 0
    monkeypatch.setattr("sys.argv", ["coverage", "--check", str(page)])
    assert coverage.main() == 0
