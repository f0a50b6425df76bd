"""A package from outside that adds one thing of every kind is installed, and each is used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "examples" / "extension"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed into."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    shutil.copytree(PACKAGE, source / "extension", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--disable-pip-version-check", "--target", str(target), str(source / "extension")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run(code: str, installed: Path, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(installed)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


NETWORK = """
import torch
import shorthaul as sh
from shorthaul_example.operator import squareplus
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
    def forward(self, x):
        return squareplus(self.linear(x) / 8.0, 2.0)
net, x = Net().double(), torch.randn(16, 8, dtype=torch.float64)
"""


def test_it_is_short() -> None:
    files = [*PACKAGE.glob("*.toml"), *PACKAGE.glob("*.md"), *PACKAGE.glob("shorthaul_example/*.py")]
    assert len(files) == 9 and sum(len(f.read_text().splitlines()) for f in files) < 250


def test_operator_expansion_gradient_transformation_and_target(installed: Path, tmp_path: Path) -> None:
    out = run(NETWORK + """
expected = net(x); expected.sum().backward(); grads = [p.grad.clone() for p in net.parameters()]
net.zero_grad()
program = sh.capture(net, (x,))
print(program)
program.apply("ExpansionChoice", next(p for p in program.places("ExpansionChoice", to="stable") if p.applies).where, to="stable")
program.optimize()
print(program.explain("ExactReciprocal"))
program.apply("ExactReciprocal")
print(program.recipe)
program.recipe.save("recipe.py")
for options in ({}, {"recipe": "recipe.py"}, {"target": "cpp_o3"}):
    copy = Net().double(); copy.load_state_dict(net.state_dict())
    model = sh.optimize(copy, strict=True, **options)
    y = model(x); y.sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for p, g in zip(copy.parameters(), grads): torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-12)
    refused = [r for r in model.report().regions[0].program.attributes["refusals"] if "skipped" in r.reason]
    assert not refused, refused
print("all equal")
try:
    sh.optimize(Net(), target="cpp_03")
except KeyError as e:
    print(e)
""", installed, tmp_path)  # fmt: skip
    assert "squareplus(x: " in out and "ExactReciprocal (level 1): Multiply by the reciprocal" in out
    assert "at('ExpansionChoice', {'node': '<model>: squareplus'}, to='stable')" in out and "at('ExactReciprocal'" in out
    assert "all equal" in out and "no target is called 'cpp_03'; did you mean cpp_o3?" in out


def test_cost_model_and_search(installed: Path, tmp_path: Path) -> None:
    out = run(NETWORK + """
tuned = sh.tune(net, (x,), budget=6, search="random", cost_model="bytes", database=False, progress=False)
print(tuned)
from shorthaul.analysis.cost import COST_MODELS
p = sh.capture(net, (x,)).optimize()
print(COST_MODELS.get("bytes")("cpu").seconds(p) == p.movement().bytes / 20e9)
""", installed, tmp_path)  # fmt: skip
    assert "tuned Net in" in out and "start: the defaults" in out and out.strip().endswith("True")


def test_sources_from_outside_are_part_of_the_keys_of_caches(installed: Path, tmp_path: Path) -> None:
    out = run("""
from shorthaul.ops.registry import REGISTRY
import shorthaul.ops
from shorthaul.ops.registry import load_extensions
load_extensions()
from shorthaul.extension import foreign_sources
print(foreign_sources([type(REGISTRY["squareplus"])]) != "" and foreign_sources([type(REGISTRY["relu"])]) == "")
""", installed, tmp_path)  # fmt: skip
    assert out.strip().endswith("True")


def test_overlay(installed: Path, tmp_path: Path) -> None:
    out = run(NETWORK + """
from shorthaul.gui.overlays import View, overlays
program = sh.capture(net, (x,)).optimize()
print(sorted(overlays()["depth"].function(View(program)).values()))
""", installed, tmp_path)  # fmt: skip
    assert out.strip().startswith("[")


def test_a_package_that_cannot_be_loaded_is_named(installed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    info = broken / "broken_example-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-example\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[shorthaul.cost_models]\nbroken = broken_example:Missing\n")
    out = run("""
from shorthaul.analysis.cost import COST_MODELS
try:
    COST_MODELS.get("roofline")
except ImportError as e:
    print(e)
""", broken, tmp_path)  # fmt: skip
    assert "the package broken-example adds broken (broken_example:Missing) to shorthaul.cost_models, which cannot be loaded" in out
