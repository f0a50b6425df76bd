"""Rules for every file of the project: length, docstrings, no names of particular machines, and a README that is right."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # lines a source file


def tracked() -> list[Path]:
    """Files of the checkout that git tracks, or would: all that it does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    paths = (ROOT / name.decode() for name in listing.split(b"\0") if name)
    return sorted(p for p in paths if p.is_file())


def text_of(path: Path) -> str | None:
    """The file's text, None for a binary one."""
    data = path.read_bytes()
    if b"\0" in data:
        return None
    return data.decode()


def test_no_source_file_is_longer_than_the_limit() -> None:
    long = {}
    for path in tracked():
        if path.suffix in {".py", ".h", ".cpp", ".js", ".ts"} and "vendor" not in path.parts:
            lines = len(path.read_text().splitlines())
            if lines > LIMIT:
                long[str(path.relative_to(ROOT))] = lines
    assert not long, f"split these by topic (at most {LIMIT} lines): {long}"


def test_modules_have_docstrings() -> None:
    bare = []
    for path in sorted((ROOT / "shorthaul").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py")):
        tree = ast.parse(path.read_text())
        empty = path.name == "__init__.py" and not tree.body
        if not empty and not ast.get_docstring(tree):
            bare.append(str(path.relative_to(ROOT)))
    assert not bare, f"without a module docstring: {bare}"


# Assembled from pieces, so that this file does not contain what it forbids.
FORBIDDEN = {
    "a path of one machine": "|".join(re.escape(a + b) for a, b in [("/wo", "rk/"), ("/ro", "ot/"), ("/opt", "/pypi")])
    + r"|/home/[a-z]\w*/|/Users/[A-Z]\w*/",
    "the name of a package registry's host": "|".join(
        re.escape(a + b) for a, b in [("pyp", "i.org"), ("files.python", "hosted.org"), ("download.py", "torch.org"),
                                      ("conda", ".anaconda.org"), ("registry.npm", "js.org")]
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FORBIDDEN)
def test_files_name_no_machine(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in tracked():
        text = text_of(path)
        for number, line in enumerate((text or "").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, f"{what}:\n" + "\n".join(found)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_in_the_documents_exist(document: str) -> None:
    # A command is an indented line or stands in backquotes; "make" is also a word.
    named = set(re.findall(r"^    make ([a-z][a-z-]+)\b", (ROOT / document).read_text(), re.MULTILINE))
    named |= set(re.findall(r"`make ([a-z][a-z-]+)\b", (ROOT / document).read_text()))
    assert {"demo", "test"} <= named if document == "README.md" else named
    assert named <= make_targets(), f"no such targets: {named - make_targets()}"


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    assert "make test" in script.read_text()


def test_only_known_markers_and_pinned_requirements() -> None:
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            if line and not line.startswith("#"):
                assert re.match(r"[A-Za-z0-9_.-]+==[0-9]", line), f"{path.name}: not pinned: {line}"


def test_local_links_in_documents_lead_somewhere() -> None:
    dead = []
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
            if "://" not in target and not (document.parent / target).exists():
                dead.append(f"{document.relative_to(ROOT)} -> {target}")
    assert not dead, "\n".join(dead)


def test_test_modules_have_names_of_their_own() -> None:
    """pytest imports them by their file name alone: two of one name cannot run together."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert sorted({n for n in names if names.count(n) > 1}) == []
