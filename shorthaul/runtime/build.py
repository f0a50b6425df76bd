"""Compile C++ translation units in parallel and link them to one shared library.

    path = build({"k0.cpp": text, "k1.cpp": text}, symbols=["k0", "k1"])

Two caches: a library is found again by its sources, flags, compiler, instruction set, headers and package version;
an object file likewise, so that a kernel that another program has compiled is only linked. Linking takes about 30 ms
for 40 kernels, compiling one kernel 0.1 to 0.2 s, so objects are where the time is.

The library is linked against the OpenMP runtime that PyTorch has loaded (often a private copy of libgomp), so that a
process has one pool of threads and ``torch.set_num_threads`` governs it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from pathlib import Path

from .cache import Cache, make_key, temporary_folder
from .machine import NO_COMPILER_REMEDY, Compiler, Machine, machine, usable_cores

INCLUDE = Path(__file__).parent.parent / "codegen" / "cpp" / "include"

# -O2: -O3 takes a quarter longer and made none of the kernels faster (they are vector code already).
# -fno-math-errno, -fno-trapping-math: needed to vectorize; they change no result. Not -ffast-math: NaN must work.
# -ffp-contract=fast: a * b + c is one fused operation, which only rounds less.
FLAGS = (
    "-std=c++17", "-O2", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
    "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-w",
)  # fmt: skip
LINK_FLAGS = ("-shared", "-nostdlib", "-Wl,-O1")

Progress = Callable[[int, int], None]


class BuildError(RuntimeError):
    """A translation unit does not compile, or the objects do not link. ``source`` is the file kept for inspection."""

    def __init__(self, message: str, source: Path | None = None) -> None:
        super().__init__(message)
        self.source = source


class NoCompiler(RuntimeError):
    """There is no C++ compiler on this machine."""

    def __init__(self) -> None:
        wanted = os.environ.get("CXX")
        what = f"the compiler that CXX names ({wanted!r}) does not run" if wanted else "no C++ compiler was found"
        super().__init__(f"{what}: {NO_COMPILER_REMEDY}")


def build(
    sources: Mapping[str, str],
    *,
    symbols: Sequence[str] = (),
    flags: Sequence[str] = (),
    target: Machine | None = None,
    cache_directory: Path | None = None,
    jobs: int | None = None,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> Path:
    """The path of a shared library made of ``sources`` (file name → text of a translation unit).

    Identical texts are compiled once. ``symbols`` are the functions that the library must define. ``flags`` are added
    to the compiler's. ``target`` is the machine to compile for (default: this one), ``jobs`` the number of compilers at
    once (default: usable cores), ``timeout`` bounds one compilation in seconds, and ``progress(done, total)`` is called
    while compiling. Raises :class:`BuildError`, :class:`NoCompiler`, or OSError where no file can be written at all.
    """
    target = target or machine()
    compiler = target.compiler
    if compiler is None:
        raise NoCompiler
    openmp = openmp_runtime()
    compile_flags = (*FLAGS, *target.isa_flags, *flags)
    common = (*compile_flags, compiler.version, target.kind, header_hash(), _package_version())
    texts = {make_key("object", text, *common): (name, text) for name, text in sources.items()}
    link = (*LINK_FLAGS, *(f"-Wl,--require-defined={symbol}" for symbol in symbols))
    key = make_key("library", *sorted(texts), *link, openmp.name if openmp else "")
    libraries = Cache("libraries", cache_directory)
    if (folder := libraries.get(key)) is not None:
        return folder / "library.so"

    objects = Cache("objects", cache_directory)
    found = {k: folder / "unit.o" for k in texts if (folder := objects.get(k)) is not None}
    missing = [k for k in texts if k not in found]
    with _working_folder() as work, _Processes() as processes:

        def compile_one(k: str) -> Path:
            name, text = texts[k]
            source, result = work / f"{k[:16]}.cpp", work / f"{k[:16]}.o"
            source.write_text(text)
            command = [compiler.path, *compile_flags, f"-I{INCLUDE}", "-pipe", "-c", str(source), "-o", str(result)]
            output, code = processes.run(command, timeout)
            if processes.stopped:
                raise CancelledError  # because of the error of another unit, or an interrupt
            if code != 0:
                raise _failure(name, source, command, output, code, objects.directory)
            return objects.put(k, {"unit.o": result}, evict=False) / "unit.o"

        with ThreadPoolExecutor(max_workers=max(1, jobs or usable_cores())) as pool:
            try:
                futures = {pool.submit(compile_one, k): k for k in missing}
                for done, future in enumerate(as_completed(futures)):
                    found[futures[future]] = future.result()
                    if progress is not None:
                        progress(done + 1, len(missing))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                processes.stop()  # so that the pool's threads return and no compiler stays behind
                raise

        library = work / "library.so"
        inputs = [str(found[k]) for k in texts]
        arguments = work / "link.txt"  # many objects: longer than a command line may be
        arguments.write_text("\n".join(f'"{path}"' for path in inputs))
        command = [compiler.path, *link, f"@{arguments}", *_openmp_link(compiler, openmp), "-lm", "-lc", "-lgcc"]
        output, code = processes.run([*command, "-o", str(library)], timeout)
        if code != 0:
            names = ", ".join(name for name, _ in texts.values())
            raise _failure(f"linking {names}", None, command, output, code, objects.directory)
        return libraries.put(key, {"library.so": library}) / "library.so"


# ---------------------------------------------------------------------------------------------------- OpenMP
@functools.cache
def openmp_runtime() -> Path | None:
    """The OpenMP runtime that torch has loaded into this process (None where it has none)."""
    import torch

    inside = Path(torch.__file__).parent
    pattern = re.compile(r"lib(gomp|iomp5|omp)\b.*\.so")
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        mapped = {Path(line.split(maxsplit=5)[-1]) for line in lines if ".so" in line}
    except OSError:
        mapped = set()
    candidates = sorted(path for path in mapped if pattern.match(path.name))
    if not candidates:  # not loaded yet, or no /proc
        folders = (inside / "lib", inside.parent / "torch.libs")
        candidates = sorted(
            path for folder in folders for path in folder.glob("lib*omp*.so*") if pattern.match(path.name)
        )
    own = [path for path in candidates if inside.parent in path.parents]
    best = own or candidates
    return best[0] if best else None


def _openmp_link(compiler: Compiler, openmp: Path | None) -> list[str]:
    if openmp is not None and (compiler.family == "gcc" or not openmp.name.startswith("libgomp")):
        return [str(openmp)]  # linked by its file: the name it records is the one that is loaded already
    if openmp is not None:
        warnings.warn(
            f"{compiler.path} needs LLVM's OpenMP runtime, but PyTorch has loaded {openmp.name}: kernels run on threads of "
            "their own, which torch.set_num_threads does not govern. Install g++ or set CXX=g++.",
            stacklevel=4,
        )
    return ["-fopenmp"]


# ---------------------------------------------------------------------------------------------------- keys
@functools.cache
def header_hash() -> str:
    """A hash over the headers that generated code may include."""
    return make_key(*(part for path in sorted(INCLUDE.glob("*.h")) for part in (path.name, path.read_bytes())))


@functools.cache
def _package_version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("shorthaul")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


# ---------------------------------------------------------------------------------------------------- processes
class _Processes:
    """Compilers that are running. Leaving the block, however it is left, kills what still runs with its children."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def run(self, command: Sequence[str], timeout: float) -> tuple[str, int]:
        """Run to the end; the output of both streams and the exit status (negative: the signal that ended it)."""
        if self.stopped:
            return "stopped", -signal.SIGTERM
        # A session of its own: the driver's children are reached through the group, and an interrupt at the
        # terminal comes to Python alone, which then cleans up.
        environment = {**os.environ, "LC_ALL": "C"}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        self._running.add(process)
        try:
            if self.stopped:
                _kill(process)
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            return f"stopped after {timeout:g} s (timeout)", -signal.SIGKILL
        except BaseException:
            _kill(process)
            raise
        finally:
            self._running.discard(process)
        return output.decode(errors="replace"), process.returncode

    def stop(self) -> None:
        """Kill everything that runs and refuse to start more."""
        self.stopped = True
        for process in list(self._running):
            _kill(process, wait=False)
        deadline = time.monotonic() + 5
        while self._running and time.monotonic() < deadline:  # their threads collect them
            time.sleep(0.005)


def _kill(process: subprocess.Popen[bytes], wait: bool = True) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if wait:
        process.communicate()


@contextlib.contextmanager
def _working_folder() -> Iterator[Path]:
    """A fresh folder, removed at the end: in the system's place for temporary files, else in memory."""
    for place in (None, "/dev/shm"):
        try:
            folder = Path(tempfile.mkdtemp(prefix="shorthaul-build-", dir=place))
            break
        except OSError as error:
            problem = error
    else:
        raise BuildError(
            f"no temporary folder can be made for compiling ({problem}); free some space or set TMPDIR to another disk"
        )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _failure(
    what: str, source: Path | None, command: Sequence[str], output: str, code: int, directory: Path
) -> BuildError:
    """The error for a failed command; keeps the source where the user can look at it."""
    kept: Path | None = None
    if source is not None:
        for folder in (directory / "failed", temporary_folder()):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                kept = Path(shutil.copy(source, folder / f"{source.stem}-{Path(what).name}"))
                break
            except OSError:
                continue
    lines = output.strip().splitlines() or [f"exit status {code}"]
    shown = "\n".join(lines[:40]) + (f"\n... {len(lines) - 40} more lines" if len(lines) > 40 else "")
    if "No space left on device" in output:
        remedy = "The disk for temporary files is full: free some space or set TMPDIR to another directory."
    elif code == -signal.SIGKILL and "timeout" not in output:
        remedy = "The compiler was killed, most likely for lack of memory: build with fewer jobs or free some memory."
    elif code < 0 or "timeout" in output:
        remedy = "Simplify the kernel (fewer operators fused into one) or raise the timeout."
    else:
        remedy = "This is a defect of the code generator or of the compiler: please report it with the file and this message."
    text = f"{what}: the C++ compiler failed.\n{shown}\nCommand: {' '.join(command)}\n{remedy}"
    if kept is not None:  # the working copy is gone when the user reads this
        text = text.replace(str(source), str(kept)) + f"\nThe source is kept in {kept}"
    return BuildError(text, kept)
