"""Triton kernels compiled by another program with processes of its own (`codegen.triton.worker`), which starts while the program that
needs them is still being optimized."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, cast

from shorthaul.codegen.triton.worker import Answer, Request, compile_request, receive, send

from .machine import usable_cores

LOG = logging.getLogger("shorthaul")
FEW = 4  # kernels that are not worth a process
_LOCK = threading.Lock()
_WORKER: subprocess.Popen[bytes] | None = None


def prepare(processes: int | None = None) -> None:
    """Start the worker, unless it runs. Returns at once. processes: default is one a usable core."""
    global _WORKER
    count = usable_cores() if processes is None else processes
    if count < 2 or (_WORKER is not None and _WORKER.poll() is None):
        return
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        program = f"from shorthaul.codegen.triton.worker import main; main({count})"
        _WORKER = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], env=environment,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)  # fmt: skip
    except OSError as e:
        LOG.warning("kernels are compiled in this process: another one does not start (%s)", e)


@atexit.register
def stop() -> None:
    """End the worker, if it runs."""
    global _WORKER
    worker, _WORKER = _WORKER, None
    if worker is not None:
        with contextlib.suppress(OSError):
            os.killpg(worker.pid, signal.SIGKILL)  # with its processes, which nothing else would end
        worker.wait()
        for stream in (worker.stdin, worker.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def compile_requests(requests: Sequence[Request]) -> list[Answer]:
    """The compiled kernels, in order. What the worker does not answer is compiled in threads of this process."""
    answers: dict[int, Answer] = {}
    if len(requests) > FEW:
        with _LOCK:
            prepare()
            worker = _WORKER
            if worker is not None:
                assert worker.stdin is not None and worker.stdout is not None
                try:
                    writer = threading.Thread(target=_send_all, args=(cast(BinaryIO, worker.stdin), requests), daemon=True)
                    writer.start()  # beside the reading: neither waits for the other's full pipe
                    while len(answers) < len(requests):
                        number, answer = receive(cast(BinaryIO, worker.stdout))
                        answers[number] = answer
                    writer.join()
                except BaseException as e:
                    stop()  # answers that nobody waits for must not reach the next one
                    if not isinstance(e, (EOFError, OSError)):
                        raise
                    LOG.warning("%d kernels are compiled in this process: the worker ended", len(requests) - len(answers))
    missing = [i for i in range(len(requests)) if i not in answers]
    with ThreadPoolExecutor(max_workers=max(1, min(len(missing), usable_cores()))) as pool:
        answers.update(zip(missing, pool.map(compile_request, [requests[i] for i in missing]), strict=True))
    return [answers[i] for i in range(len(requests))]


def _send_all(stream: BinaryIO, requests: Sequence[Request]) -> None:
    with contextlib.suppress(OSError, ValueError):  # the reader sees that the worker is gone
        for i in sorted(range(len(requests)), key=lambda i: -len(requests[i].source)):  # else the longest may be what all wait for
            send(stream, (i, requests[i]))
