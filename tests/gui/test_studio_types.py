"""The page's JavaScript has no type errors (TypeScript's checker, by `make check-page`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "--no-print-directory", "check-page", f"VENV={sys.prefix}"], cwd=root, capture_output=True, text=True,
                          check=False, timeout=300)  # fmt: skip


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not installed: the page's JavaScript is not type checked")
def test_the_page_has_no_type_errors(tmp_path: Path) -> None:
    done = check(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no type errors" in done.stdout
    page = tmp_path / "shorthaul" / "gui" / "static"  # and the check can fail
    shutil.copytree(ROOT / "shorthaul" / "gui" / "static", page)
    shutil.copy(ROOT / "Makefile", tmp_path)
    (page / "js" / "format.js").write_text((page / "js" / "format.js").read_text() + '\nexport const wrong = bytes("three");\n')
    broken = check(tmp_path)
    assert broken.returncode != 0 and "not assignable" in broken.stdout
