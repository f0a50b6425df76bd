"""What the site has besides the pages of this folder: pages from files elsewhere, and the page of transformations from docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
             "examples/extension/README.md": "extension.md"}  # fmt: skip
LEVELS = {1: "Inside one operator", 2: "Fusion of neighbours", 3: "Layout and algebra of the whole graph", 4: "The whole training step"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "transformations.md", content=transformations()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between files of the repository become links between pages; those to sources become their text."""
    path = page.file.src_uri
    source = next((s for s, p in ELSEWHERE.items() if p == path), f"docs/{path}")

    def link(m: re.Match[str]) -> str:
        text, target, anchor = m.groups()
        if re.match(r"[a-z]+:", target) or not target:
            return m.group()
        found = (ROOT / source).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        inside = ELSEWHERE.get(found) or (found.removeprefix("docs/") if found.startswith("docs/") and found.endswith(".md") else None)
        if inside is None:
            return text
        return f"[{text}]({'../' * path.count('/')}{inside}{anchor or ''})"

    return re.sub(r"\[([^\]]+)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, markdown)


def transformations() -> str:
    """Every transformation of the catalog, by level, with what its docstring says and its parameters."""
    sys.path.insert(0, str(ROOT))
    from shorthaul.transforms.catalog import catalog

    lines = ["# Transformations", "", "What each does, from its docstring. Each states what it saves before it is applied, "
             "refuses with a reason where it does not apply, and can be asked about and applied by hand (`prog.explain(\"MapFusion\")`, "
             "`prog.apply(\"MapFusion\")`).", ""]  # fmt: skip
    level = 0
    for name, t in catalog().items():
        if not t.__module__.startswith("shorthaul."):
            continue
        if t.level != level:
            level = t.level
            lines += [f"## Level {level}: {LEVELS.get(level, '')}", ""]
        lines += [f"### {name}", "", *_paragraphs(inspect.cleandoc(t.__doc__ or "")), ""]
        parameters = [p for p in inspect.signature(t).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        if parameters and t.__init__ is not object.__init__:
            defaults = ("" if p.default is p.empty else f" = `{p.default!r}`" for p in parameters)
            lines += ["Parameters: " + ", ".join(f"`{p.name}`{d}" for p, d in zip(parameters, defaults, strict=True)), ""]
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    """Sketches (paragraphs that are lined up or indented) as code, the rest as text."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        is_sketch = bool(re.match(r"(before|after):", paragraph)) or paragraph.startswith("    ")
        lines += ["```text", paragraph, "```", ""] if is_sketch else [paragraph, ""]
    return lines
