"""Triton kernels compiled by another program: the same machine code, errors as answers, and nothing lost when it dies."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shorthaul.codegen.triton.worker import Answer, Request, compile_request
from shorthaul.runtime import compile_pool

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

SOURCE = """
import triton
import triton.language as tl


@triton.jit
def scale_kernel(x_ptr, n, FACTOR: tl.constexpr, INDEX: tl.constexpr):
    i = tl.program_id(0).to(INDEX) * 128 + tl.arange(0, 128)
    print_nothing = tl.load(x_ptr + i, mask=i < n)
    tl.store(x_ptr + i, print_nothing * FACTOR, mask=i < n)
"""
REQUEST = Request(SOURCE, "scale_kernel", ("*fp32", "i32"), {"FACTOR": 2, "INDEX": None}, False, {"num_warps": 2, "num_stages": 1}, 90, ())


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compile_pool.stop()
    compile_pool.prepare(2)
    assert compile_pool._WORKER is not None
    yield compile_pool._WORKER
    compile_pool.stop()


def many(count: int) -> list[Request]:
    return [replace(REQUEST, constants={**REQUEST.constants, "FACTOR": i + 2}) for i in range(count)]


def test_machine_code_is_that_of_this_process(worker: subprocess.Popen[bytes]) -> None:
    requests = [*many(compile_pool.FEW + 1), replace(REQUEST, wide=True)]
    answers = compile_pool.compile_requests(requests)
    assert compile_pool._WORKER is worker and worker.poll() is None  # and it stays, for the next program
    assert [a.error for a in answers] == [""] * len(requests)
    assert [a.warps for a in answers] == [2] * len(requests) and answers[0].name == "scale_kernel"
    assert answers[0] == compile_request(requests[0])
    assert len({a.code for a in answers}) == len(requests)  # in the order of the requests: all differ
    assert compile_pool.compile_requests(requests) == answers


def test_an_error_is_an_answer(worker: subprocess.Popen[bytes]) -> None:
    bad = replace(REQUEST, source=SOURCE.replace("FACTOR, mask", "UNKNOWN, mask"))
    *good, last = compile_pool.compile_requests([*many(compile_pool.FEW), bad])
    assert "UNKNOWN is not defined" in last.error and not last.code
    assert all(a.code[:4] == b"\x7fELF" for a in good)


def test_a_worker_that_dies_costs_time_only(worker: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture) -> None:
    os.killpg(worker.pid, signal.SIGSTOP)  # so that it has answered nothing when it is killed
    killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.killpg({worker.pid}, 9)"])
    with caplog.at_level(logging.WARNING, logger="shorthaul"):
        answers = compile_pool.compile_requests(many(compile_pool.FEW + 1))
    killer.wait()
    assert all(isinstance(a, Answer) and a.code[:4] == b"\x7fELF" for a in answers)
    assert "5 kernels are compiled in this process: the worker ended" in caplog.text
    compile_pool.prepare(2)
    assert compile_pool._WORKER is not None and compile_pool._WORKER is not worker


def test_the_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """Also with a parent that is killed: its input ends then."""
    script = ("from shorthaul.runtime import compile_pool; import os, time; compile_pool.prepare(2);"
              "print(compile_pool._WORKER.pid, flush=True); time.sleep(60)")  # fmt: skip
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    state = Path(f"/proc/{pid}/stat")
    for _ in range(300):
        if not state.exists() or state.read_text().rpartition(") ")[2][0] == "Z":  # nobody may be there to collect it
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")
