"""Machine code for a GPU and its launches from the cache, without a GPU: compiled for sm_90, launched on a driver that only listens."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import shorthaul as sh
from shorthaul import pipeline
from shorthaul.config import Options
from shorthaul.errors import DeviceError
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.runtime import gpu_launch, triton_target
from shorthaul.runtime.artifact import artifact_key, load, store
from shorthaul.runtime.compile import compile_triton
from shorthaul.runtime.gpu_launch import Binary, Launched, bind, loaded, triton_version

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
GPU = torch.device("cuda", 0)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose GPU is described, but not there, with an empty cache."""
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton_target, "require_gpu", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a described GPU")


def scheduled() -> Any:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(24, 40), nn.LayerNorm(40), nn.GELU(), nn.BatchNorm1d(40), nn.Linear(40, 3))
    program = sh.capture(module, (torch.randn(200, 24),))
    key = artifact_key(program, "test", device=GPU)
    pipeline.optimize(program, Options(target="triton"))
    return key, program


def test_launches_from_the_cache_are_those_that_were_compiled(hopper: None) -> None:
    key, program = scheduled()
    compiled = compile_triton(program, GPU)
    assert load(key, GPU) is None
    store(key, program, compiled)
    found = load(key, GPU)
    assert found is not None
    again, ready = found
    assert fingerprint(again) == fingerprint(program)
    target, kept = compiled.executable.target, ready.executable.target
    assert target is not None and kept is not None and kept.device == GPU
    binding = compiled.executable.layout({}).binding
    ours, theirs = (
        [s for p in e.host.phases.values() for s in p.steps if hasattr(s, "kernels")] for e in (compiled.executable, ready.executable)
    )
    assert len(ours) == len(theirs) > 3
    launches = [target.launched(s, binding) for s in ours]  # type: ignore[attr-defined]
    assert launches == [kept.launches[gpu_launch.nodes_of(s)] for s in theirs]  # type: ignore[attr-defined]
    assert [target.scratch(s, {}) for s in ours] == [kept.scratch(s, {}) for s in theirs]
    assert all(launch.binary.code[:4] == b"\x7fELF" for of in launches for launch in of)
    assert any(launch.numbers or kept.scratch(s, {}) for s, of in zip(theirs, launches, strict=True) for launch in of)
    a, b = (e.layout({}) for e in (compiled.executable, ready.executable))
    assert (a.offsets, a.arena_bytes) == (b.offsets, b.arena_bytes)


def test_another_gpu_has_another_key(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = scheduled()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "another GPU")
    assert scheduled()[0] != key


class Driver:
    """Writes down what it is asked for. refuses: name of the function that gives an error."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.calls: list[tuple[str, tuple]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name == "cuModuleGetFunction":
                arguments[0]._obj.value = 77
            return 209 if name == self.refuses else 0

        return call


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(gpu_launch, "driver", lambda: found)
    monkeypatch.setattr(gpu_launch, "_LOADED", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 5, raising=False)
    return found


def test_a_launch_reads_the_pointer_table_when_it_runs(listening: Driver) -> None:
    table = np.zeros(3, dtype=np.uint64)
    binary = Binary("kernel_7", b"code", 60_000, 4)
    run = bind(Launched(1, "k", ("x", "y"), (11, 12), 9, binary), table, {"y": 0, "x": 2}, GPU)
    table[:] = 100, 200, 300
    run(0, 0)
    name, (function, grid, _, _, threads, _, _, shared, stream, parameters, _) = listening.calls[-1]
    assert name == "cuLaunchKernel"
    assert (function.value, grid.value, threads.value, shared.value, stream.value) == (77, 9, 128, 60_000, 5)
    assert [ctypes.c_uint64.from_address(parameters[i]).value for i in range(2)] == [300, 100]
    assert [ctypes.c_int32.from_address(parameters[i]).value for i in (2, 3)] == [11, 12]
    assert "cuFuncSetAttribute" in [n for n, _ in listening.calls]  # more shared memory than a kernel has by default
    before = len(listening.calls)
    assert loaded(binary, GPU) == 77 and len(listening.calls) == before


def test_machine_code_that_the_driver_refuses(listening: Driver) -> None:
    listening.refuses = "cuModuleLoadData"
    with pytest.raises(DeviceError, match="kernel_7 cannot be loaded on cuda:0: cuModuleLoadData gave CUDA driver error 209"):
        loaded(Binary("kernel_7", b"code", 0, 4), GPU)


def test_triton_that_is_missing_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    triton_version.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", none)
    net = sh.optimize(nn.Linear(3, 3), target="triton", strict=True)
    with pytest.raises(Exception, match=r"Triton is not installed. Install triton 3.6"):
        net(torch.randn(2, 3))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.9.1")
    with pytest.warns(UserWarning, match="Triton 3.9.1 is installed; the kernels are tested with 3.6"):
        triton_version()
    triton_version.cache_clear()
