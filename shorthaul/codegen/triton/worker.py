"""A process that compiles Triton kernels in several processes of its own: much of a compilation holds Python's lock.

    python -c "from shorthaul.codegen.triton.worker import main; main(16)"

It is a program of its own, not a fork of the caller, whose threads and GPU a fork would not survive, nor a process of `multiprocessing`,
which would run the caller's script again. It reads requests from its standard input and answers on its standard output, each a pickled
object behind its length, and ends when the input ends or when nothing was asked for some time.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import select
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

IDLE = 120.0  # seconds without a request after which the process ends


@dataclass(frozen=True)
class Request:
    """A kernel to compile: its source, the name of its function, and `launch.compile_for`'s arguments. wide: 64-bit addresses."""

    source: str
    name: str
    types: tuple[str, ...]
    constants: Mapping[str, Any]
    wide: bool
    meta: Mapping[str, Any]
    capability: int
    unaligned: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What the driver needs of a compiled kernel; memory: bytes that it asks for by itself; error: why there is none."""

    name: str = ""
    code: bytes = b""
    shared: int = 0
    warps: int = 0
    memory: int = 0
    error: str = ""


def compile_request(r: Request) -> Answer:
    """Compile one kernel. Every error becomes an answer."""
    try:
        import triton.language as tl

        from .launch import compile_source, load_source

        constants = {k: (tl.int64 if r.wide else tl.int32) if k == "INDEX" else v for k, v in r.constants.items()}
        found = compile_source(load_source(r.source, r.name), list(r.types), constants, dict(r.meta), r.capability, r.unaligned)
        m = found.metadata
        return Answer(m.name, found.kernel, m.shared, m.num_warps, m.global_scratch_size + m.profile_scratch_size)
    except Exception as e:
        return Answer(error=f"{type(e).__name__}: {e}")


def send(stream: BinaryIO, value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """The next value. Raises EOFError at the end of the stream."""
    return pickle.loads(_exactly(stream, int.from_bytes(_exactly(stream, 8), "little")))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    """That many bytes: an unbuffered stream gives what there is."""
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def main(processes: int) -> None:
    from . import launch  # noqa: F401  imported once, before the processes are forked

    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a compiler prints must not get among the answers
    lock = threading.Lock()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:

        def answer(number: int, future: Future[Answer]) -> None:
            with contextlib.suppress(BrokenPipeError), lock:
                error = future.exception()
                send(answers, (number, future.result() if error is None else Answer(error=f"{type(error).__name__}: {error}")))

        pending: set[Future[Answer]] = set()
        while True:
            pending = {f for f in pending if not f.done()}
            if not select.select([requests], [], [], IDLE)[0]:
                if pending:
                    continue
                return
            try:
                number, request = receive(requests)
            except EOFError:
                pool.shutdown(wait=False, cancel_futures=True)
                return
            future = pool.submit(compile_request, request)
            pending.add(future)
            future.add_done_callback(functools.partial(answer, number))
