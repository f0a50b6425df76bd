"""The numbered lessons run as they stand, each in a fresh process and folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "docs" / "lessons").glob("*.md"), key=lambda p: int(p.name.split("_")[0]))


def test_there_are_ten() -> None:
    assert [p.name.split("_")[0] for p in LESSONS] == [str(n) for n in range(1, 11)]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda p: p.stem)
def test_lesson(lesson: Path, tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", lesson.read_text(), re.DOTALL))
    assert "assert" in code or "try:" in code  # a lesson says what it shows
    script = tmp_path / "lesson.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
