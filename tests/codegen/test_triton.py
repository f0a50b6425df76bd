"""The Triton target: numbers in Triton's interpreter, and compilation for a GPU that is not there.

Triton chooses its interpreter when it is imported, so those tests run in a process of their own (`triton_*.py` beside this file).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the Triton target needs triton")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# in the interpreter and on a GPU
ANYWHERE = ["triton_maps.py", "triton_contractions.py", "triton_operators.py", "triton_programs.py", "triton_ordered.py"]


def run(*arguments: str, interpret: bool) -> str:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1" if interpret else "0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("suite", [*ANYWHERE, "triton_mbconv.py"])
def test_in_the_interpreter(suite: str) -> None:
    out = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", str(HERE / suite), interpret=True)
    assert " passed" in out
    assert "skipped" not in out


def test_compiles_to_cubin_without_a_gpu() -> None:
    out = run(str(HERE / "triton_cubins.py"), interpret=False)
    assert out.count("cubin") >= 6, out


def test_kernels_of_a_network_compile_without_a_gpu() -> None:
    assert "chain: " in run(str(HERE / "triton_network_cubins.py"), "chain", interpret=False)


def test_kernels_of_sparse_updates_compile_without_a_gpu() -> None:
    out = run(str(HERE / "triton_row_cubins.py"), interpret=False)
    assert "lazy row_step: cubin" in out and "ordered places" in out and "serial pointwise+row_sums: cubin" in out


@pytest.mark.slow
def test_kernels_of_networks_compile_without_a_gpu() -> None:
    names = ("mlp", "lenet", "mbconv", "bert", "resnet18", "wavenet", "unet")
    assert f"{names[-1]}: " in run(str(HERE / "triton_network_cubins.py"), *names, interpret=False)


@pytest.mark.gpu
@pytest.mark.parametrize("suite", ANYWHERE)
def test_on_the_gpu(suite: str) -> None:
    assert " passed" in run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", str(HERE / suite), interpret=False
    )
