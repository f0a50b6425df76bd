"""The import directions of the architecture, and what a bare `import shorthaul` may need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "shorthaul"

# Which parts of the package each part may import. A part is a subpackage, or a module at the top. Everything may import
# itself. `errors` and `config` are leaves that everything may use.
LEAVES = {"errors", "config", "extension"}
DIRECTIONS: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "extension": set(),
    "symbolic": set(),
    "ir": {"symbolic"},
    "analysis": {"symbolic", "ir"},
    "ops": {"symbolic", "ir"},
    "frontends": {"symbolic", "ir", "ops"},
    "autodiff": {"symbolic", "ir", "ops", "analysis"},
    "transforms": {"symbolic", "ir", "ops.registry", "analysis"},
    "codegen": {"symbolic", "ir", "analysis"},
    "runtime": {"symbolic", "ir", "analysis", "codegen"},
    "warm": {"symbolic", "ir", "frontends.functional", "codegen", "runtime"},
    "pipeline": {"symbolic", "ir", "ops", "analysis", "autodiff", "transforms", "codegen", "runtime"},
    "workbench": {"pipeline", "symbolic", "ir", "analysis", "transforms", "codegen", "runtime"},
    "tuning": {"symbolic", "ir", "ops", "analysis", "transforms", "codegen", "runtime"},
    "tuner": {"api", "pipeline", "tuning", "ir", "analysis", "frontends", "transforms", "codegen", "runtime"},
    "testing": {"", "symbolic", "ir", "ops", "analysis"},
    "networks": {"onnx_models"},
    "gui": {"api", "networks", "tuner", "workbench", "symbolic", "ir", "ops", "analysis", "transforms", "codegen", "tuning"},
    # The top: what users call. `frontends.torch_compile` registers a backend that lives in `api`.
    "disabled": set(),
    "modules": {"disabled", "ir", "runtime", "warm", "frontends.functional", "transforms.recipe", "workbench", "api"},
    "": {"api", "gui", "modules", "onnx_models", "pipeline", "symbolic", "ir", "ops", "frontends", "analysis", "autodiff", "transforms",
         "runtime", "training", "tuning", "tuner", "verification"},
    "api": {"", "modules", "warm", "pipeline", "workbench", "symbolic", "ir", "ops", "frontends", "analysis", "autodiff", "transforms",
            "codegen", "runtime", "tuning", "gui", "testing"},
    "training": {"api", "modules", "pipeline", "symbolic", "ir", "ops", "frontends", "analysis", "autodiff", "codegen", "runtime"},
    "levels": {"api", "pipeline", "ir", "analysis", "transforms"},
    "onnx_models": {"api", "frontends", "ir"},
    "verification": {"", "modules", "symbolic", "ir", "ops", "frontends", "analysis", "transforms", "codegen", "runtime", "testing"},
    "coverage": {"", "symbolic", "ir", "ops", "frontends", "autodiff"},
    "demo": {"", "api"},
    "cli": {"", "api", "levels", "networks", "onnx_models", "demo", "runtime", "gui", "tuning", "tuner", "verification"},
    "__main__": {"cli"},
}  # fmt: skip

# Where torch may be imported; a prefix of the module's path inside the package.
TORCH = ("frontends", "codegen.library", "codegen.triton", "runtime", "warm", "modules", "disabled", "api", "testing", "verification",
         "training", "tuner", "demo")  # fmt: skip
THIRD_PARTY_EVERYWHERE = {"numpy"}
THIRD_PARTY = {
    "torch": TORCH,
    "triton": ("codegen.triton", "runtime"),
    "onnx": ("frontends",),
    "google": ("frontends.onnx_model",),  # protobuf, which onnx brings
    "aiohttp": ("gui.server",),
    "anywidget": ("gui.notebook",),
    "traitlets": ("gui.notebook",),  # which anywidget brings
    "rich": ("demo", "cli"),
    "matplotlib": ("demo", "tuning.plot"),
    "mlxtend": ("demo",),
}


class Import(NamedTuple):
    """One import statement, wherever it stands (also inside a function); `TYPE_CHECKING` imports count as well."""

    importer: str  # dotted path inside the package, "" for the package itself
    imported: str  # absolute dotted name
    line: int


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(importer: str, text: str, is_package: bool) -> Iterator[Import]:
    """All imports of a source, relative ones made absolute, `from package import module` resolved to the module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ("shorthaul." + importer).rstrip(".").split(".")
                keep = len(here) - node.level + (1 if is_package else 0)
                base = ".".join([*here[:keep], *([node.module] if node.module else [])])
            if base.split(".")[0] != "shorthaul":
                yield Import(importer, base, node.lineno)
                continue
            inside = Path(*base.split(".")[1:])
            for alias in node.names:
                target = PACKAGE / inside / alias.name
                is_module = target.with_suffix(".py").exists() or (target / "__init__.py").exists()
                yield Import(importer, f"{base}.{alias.name}" if is_module else base, node.lineno)


def fault(found: Import) -> str | None:
    """Why an import is not allowed, or None."""
    part = found.importer.split(".")[0]
    top, _, rest = found.imported.partition(".")
    if top == "sympy":
        return "sympy is not used in the compiler"
    if top != "shorthaul":
        if top in sys.stdlib_module_names or top in THIRD_PARTY_EVERYWHERE:
            return None
        allowed = THIRD_PARTY.get(top)
        if allowed is None:
            return f"{top} is not a dependency"
        if any(found.importer == a or found.importer.startswith(a + ".") for a in allowed):
            return None
        return f"{top} may be imported only in {', '.join(allowed)}"
    target = rest.split(".")[0]
    if target == part and (part or not rest):
        return None
    if part not in DIRECTIONS:
        return f"the part {part!r} of the package has no row in DIRECTIONS"
    if target in LEAVES and part not in LEAVES:
        return None
    may = DIRECTIONS[part]
    if target in may or any(rest == m or rest.startswith(m + ".") for m in may if m):
        return None
    return f"{part or 'shorthaul'} may not import {target or 'shorthaul itself'}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_directions(path: Path) -> None:
    found = imports_of(dotted(path), path.read_text(), path.name == "__init__.py")
    faults = [f"{path.relative_to(ROOT)}:{i.line}: {i.imported}: {why}" for i in found if (why := fault(i))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        ("symbolic.expr", "import shorthaul.ir"),
        ("ir.program", "from ..ops import registry"),
        ("ir.program", "def f():\n    from shorthaul.transforms import base"),
        ("ir.program", "import torch"),
        ("ir.program", "import sympy"),
        ("codegen.cpp.emit", "from ...transforms import base"),
        ("codegen.cpp.emit", "import torch"),
        ("transforms.base", "from shorthaul import codegen"),
        ("transforms.base", "from shorthaul.ops import elementwise"),
        ("runtime.launch", "from shorthaul.gui import server"),
        ("analysis.movement", "from shorthaul.ops import registry"),
        ("api", "import pandas"),
        ("newpart.x", "from shorthaul.ir import nodes"),
    ],
)
def test_the_test_refuses(importer: str, text: str) -> None:
    assert all(fault(i) for i in imports_of(importer, text, False))


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        ("ir.program", "from .nodes import Map\nfrom ..symbolic import expr\nimport numpy as np\nimport math"),
        ("transforms.level2_fusion.map", "from shorthaul.ops.registry import lookup"),
        ("codegen.library.torch_calls", "import torch"),
        ("cli", "def f():\n    from shorthaul.gui import studio"),
    ],
)
def test_the_test_allows(importer: str, text: str) -> None:
    assert not [why for i in imports_of(importer, text, False) if (why := fault(i))]


def test_import_needs_only_torch_and_numpy() -> None:
    """`import shorthaul` works where nothing is installed but torch, what torch itself needs, and numpy."""
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rich", "matplotlib", "mlxtend", "sklearn", "scipy", "pandas", "onnx", "pytest", "hypothesis"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import shorthaul, shorthaul.cli
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_optimize_needs_no_tracer_and_no_compiler() -> None:
    """A warm start finds its capture record without Dynamo, sympy and the stages of the compiler."""
    code = """import shorthaul, sys
shorthaul.optimize
heavy = {'torch._dynamo', 'sympy', 'shorthaul.api', 'shorthaul.pipeline', 'shorthaul.transforms', 'shorthaul.frontends.importer'}
print(sorted(heavy & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
