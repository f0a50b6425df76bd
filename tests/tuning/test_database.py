"""The tuning database: keys, damage, places that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from shorthaul.tuning.database import Database, DatabaseWarning, Known


def test_rows_belong_to_machine_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "a" / "tuning.sqlite"
    d = Database(path, "m", "v")
    d.put("r", Known("slow", 1.2, 0.3, "slower"))
    d.put("r", Known("broken", None, None, "failed"))
    d.put("r", Known("fast", 0.8, 0.2, "faster"))
    d.put("r", Known("fast", 0.7, 0.2, "faster"))
    d.close()
    again = Database(path, "m", "v")
    assert [k.choice for k in again.of("r")] == ["fast", "slow", "broken"]
    assert again.get("r", "fast") == Known("fast", 0.7, 0.2, "faster") and again.get("r", "other") is None
    assert not list(again.of("q")) and not list(Database(path, "n", "v").of("r")) and not list(Database(path, "m", "w").of("r"))


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.warns(DatabaseWarning, match="is damaged"):
        d = Database(path, "m", "v")
    d.put("r", Known("c", 1.0, 1.0, "faster"))
    assert d.get("r", "c") is not None
    assert len(list(tmp_path.glob("tuning.damaged-*"))) == 1


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(DatabaseWarning, match="cannot be used"):
        d = Database(tmp_path / "file" / "tuning.sqlite", "m", "v")
    d.put("r", Known("c", 1.0, 1.0, "faster"))
    assert d.get("r", "c") is not None
