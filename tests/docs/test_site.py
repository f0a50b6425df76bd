"""The documentation site builds without warnings, and says what the code says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shorthaul.transforms.catalog import catalog

ROOT = Path(__file__).resolve().parents[2]


def build(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mkdocs", "build", "--site-dir", str(target)], cwd=root, capture_output=True, text=True,
                          check=False)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT, target)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return target


def test_every_page_is_there(site: Path) -> None:
    pages = {p.relative_to(site).as_posix() for p in site.rglob("*.html")}
    assert {"index.html", "usage.html", "transformations.html", "extension.html", "lessons/9_efficientnet.html"} <= pages
    assert len([p for p in pages if p.startswith("lessons/")]) == 10


def test_every_transformation_is_described_with_before_and_after(site: Path) -> None:
    page = (site / "transformations.html").read_text()
    own = [name for name, t in catalog().items() if t.__module__.startswith("shorthaul.")]
    assert len(own) > 15 and [n for n in own if f'id="{n.lower()}"' not in page] == []
    assert page.count("before:") >= len(own) - 3


def test_links_between_files_of_the_repository_are_links_between_pages(site: Path) -> None:
    assert 'href="usage.html#tune"' in (site / "index.html").read_text()
    assert 'href="extension.html"' in (site / "usage.html").read_text()
    assert "../usage.html#extend-it-from-a-package-of-your-own" in (site / "lessons" / "6_operator.html").read_text()


@pytest.mark.parametrize(("text", "reason"), [("[gone](gone.md)", "gone.md"), ("[gone](usage.md#no-such-heading)", "no-such-heading")])
def test_a_broken_link_is_an_error(tmp_path: Path, text: str, reason: str) -> None:
    root = tmp_path / "root"
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, root / name)
    page = root / "docs" / "cpu_notes.md"
    page.write_text(page.read_text() + f"\n{text}\n")
    done = build(root, tmp_path / "site")
    assert done.returncode != 0 and reason in done.stderr
