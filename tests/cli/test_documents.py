"""What the documents say is so: the example runs, headings and transformations that they name exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_example_of_the_readme_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bytes moved" in done.stdout
    assert "lower bound" in done.stdout


MARKED = "<!-- tests/cli/test_documents.py runs this example -->\n```python\n"
EXAMPLES = [(d, n) for d in DOCUMENTS if d.name != "README.md" for n in range(d.read_text().count(MARKED))]


@pytest.mark.parametrize(("document", "number"), EXAMPLES, ids=lambda p: getattr(p, "name", str(p)))
def test_marked_examples_run(document: Path, number: int, tmp_path: Path) -> None:
    example = document.read_text().split(MARKED)[number + 1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_to_headings_lead_somewhere(document: Path) -> None:
    for path, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text()):
        found = document.parent / path if path else document
        headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert heading in slugs, f"{document.name} links to {path}#{heading}"


def test_transformations_are_described() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    sources = "\n".join(p.read_text() for p in (ROOT / "shorthaul" / "transforms").glob("level*/*.py"))
    names = re.findall(r"^class (\w+)\((?:Transformation|ReductionFusion)\):", sources, re.MULTILINE)
    assert len(names) > 10
    assert [n for n in names if f"`{n}`" not in page] == []
