"""Building shared libraries: caches, errors, one OpenMP runtime, interruption, several processes."""

import ctypes
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from shorthaul.runtime.build import BuildError, NoCompiler, build, openmp_runtime
from shorthaul.runtime.cache import CacheWarning
from shorthaul.runtime.library import CompiledLibrary, build_library
from shorthaul.runtime.machine import Compiler, describe, machine, usable_cores

pytestmark = pytest.mark.skipif(machine().compiler is None, reason="no C++ compiler on this machine")

EXPORT = 'extern "C" __attribute__((visibility("default")))'


def kernel(name: str, value: int) -> str:
    return f"{EXPORT} int {name}() {{ return {value}; }}\n"


def call(library: CompiledLibrary, name: str) -> int:
    return library.function(name, [], ctypes.c_int)()


class Progress:
    """Counts the translation units that were compiled."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, done: int, total: int) -> None:
        self.compiled += 1


def fake_compiler(folder: Path, script: str) -> Compiler:
    path = folder / "compiler.sh"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return Compiler(str(path), "gcc", "fake 1.0")


def test_several_units_in_one_library(tmp_path):
    sources = {f"k{i}.cpp": kernel(f"k{i}", i) for i in range(5)}
    library = build_library(sources, symbols=["k0", "k1", "k2", "k3", "k4"], cache_directory=tmp_path)
    assert [call(library, f"k{i}") for i in range(5)] == list(range(5))
    assert library.address("k1") != library.address("k2")


def test_what_was_compiled_before_is_not_compiled_again(tmp_path):
    a, b, c = kernel("a", 1), kernel("b", 2), kernel("c", 3)
    counts = []
    for sources in ({"a.cpp": a, "b.cpp": b}, {"x.cpp": a, "y.cpp": b}, {"b.cpp": b, "c.cpp": c}, {"c.cpp": c}):
        progress = Progress()
        build(sources, cache_directory=tmp_path, progress=progress)
        counts.append(progress.compiled)
    assert counts == [2, 0, 1, 0]  # the same program; b as an object; only linked


def test_a_warm_start_runs_no_compiler(tmp_path, monkeypatch):
    path = build({"a.cpp": kernel("a", 1)}, cache_directory=tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert build({"a.cpp": kernel("a", 1)}, cache_directory=tmp_path) == path


def test_identical_units_are_compiled_once(tmp_path):
    progress = Progress()
    library = build_library(
        {"one.cpp": kernel("f", 7), "two.cpp": kernel("f", 7)}, cache_directory=tmp_path, progress=progress
    )
    assert progress.compiled == 1
    assert call(library, "f") == 7


def test_the_key_has_flags_and_instruction_set_and_symbols(tmp_path):
    source = {"a.cpp": "#ifndef VALUE\n#define VALUE 1\n#endif\n" + kernel("a", 0).replace("0", "VALUE")}
    plain = build(source, cache_directory=tmp_path)
    other = build(source, flags=["-DVALUE=2"], cache_directory=tmp_path)
    lower = build(source, target=dataclasses.replace(machine(), isa="baseline"), cache_directory=tmp_path)
    named = build(source, symbols=["a"], cache_directory=tmp_path)
    newer = build(source, target=with_version("99"), cache_directory=tmp_path)
    assert (
        len({plain, other, lower, named, newer} if machine().isa != "baseline" else {plain, other, named, newer}) >= 4
    )
    assert call(CompiledLibrary(plain), "a") == 1
    assert call(CompiledLibrary(other), "a") == 2


def with_version(version: str):
    return dataclasses.replace(machine(), compiler=dataclasses.replace(machine().compiler, version=version))


def test_a_corrupted_library_is_built_again(tmp_path):
    path = build({"a.cpp": kernel("a", 5)}, cache_directory=tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    progress = Progress()
    with pytest.warns(CacheWarning, match="damaged"):
        library = build_library({"a.cpp": kernel("a", 5)}, cache_directory=tmp_path, progress=progress)
    assert call(library, "a") == 5
    assert progress.compiled == 0, "the object file is intact: only linked again"


def test_a_cache_that_cannot_be_written(tmp_path):
    from shorthaul.runtime import cache

    cache._warn_once.cache_clear()
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheWarning, match="cannot be written"):
        library = build_library({"a.cpp": kernel("a", 5)}, cache_directory=tmp_path / "file" / "inside")
    assert call(library, "a") == 5


def test_a_compile_error_shows_the_message_and_keeps_the_source(tmp_path):
    text = kernel("good", 1) + "int broken( { return undefined_name; }\n"
    with pytest.raises(BuildError, match=r"broken\.cpp: the C\+\+ compiler failed") as caught:
        build({"fine.cpp": kernel("fine", 1), "broken.cpp": text}, cache_directory=tmp_path)
    assert "error: expected" in str(caught.value)
    assert "report it" in str(caught.value)
    assert caught.value.source is not None
    assert caught.value.source.read_text() == text
    assert str(caught.value.source) in str(caught.value)


def test_a_missing_symbol_is_a_link_error(tmp_path):
    with pytest.raises(BuildError, match="absent"):
        build({"a.cpp": kernel("a", 1)}, symbols=["absent"], cache_directory=tmp_path)
    library = build_library({"a.cpp": kernel("a", 1)}, cache_directory=tmp_path)
    with pytest.raises(AttributeError, match=r"no function 'absent'.*extern"):
        library.function("absent")


def test_no_compiler_names_the_remedy(tmp_path, monkeypatch):
    none = dataclasses.replace(machine(), compiler=None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NoCompiler, match=r"apt install g\+\+"):
        build({"a.cpp": kernel("a", 1)}, target=none, cache_directory=tmp_path)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(NoCompiler, match="CXX names"):
        build({"a.cpp": kernel("a", 1)}, target=none, cache_directory=tmp_path)


def test_a_full_temporary_disk_is_named(tmp_path):
    compiler = fake_compiler(tmp_path, "echo 'cc1plus: fatal error: No space left on device'; exit 1\n")
    with pytest.raises(BuildError, match="TMPDIR"):
        build({"a.cpp": ""}, target=dataclasses.replace(machine(), compiler=compiler), cache_directory=tmp_path / "c")


def running(marker: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if marker in line and "pytest" not in line:
            found.append(line)
    return found


def test_a_timeout_ends_the_compiler_and_its_children(tmp_path):
    seconds = f"87654.{os.getpid()}"
    compiler = fake_compiler(tmp_path, f"sleep {seconds}\n")
    target = dataclasses.replace(machine(), compiler=compiler)
    with pytest.raises(BuildError, match=r"timeout"):
        build({"a.cpp": ""}, target=target, cache_directory=tmp_path / "c", timeout=0.3)
    assert not running(seconds)


INTERRUPTED = """
import dataclasses, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with SIGINT ignored
from pathlib import Path
from shorthaul.runtime.build import build
from shorthaul.runtime.machine import Compiler, machine
target = dataclasses.replace(machine(), compiler=Compiler(sys.argv[1], "gcc", "fake"))
try:
    build({f"k{i}.cpp": f"// {i}" for i in range(6)}, target=target, cache_directory=Path(sys.argv[2]), jobs=2)
except KeyboardInterrupt:
    sys.exit(42)
"""


def test_an_interrupt_leaves_no_process_and_no_file(tmp_path):
    cache, scratch = tmp_path / "cache", tmp_path / "scratch"
    scratch.mkdir()
    seconds = f"98765.{os.getpid()}"  # found again by this number
    compiler = fake_compiler(tmp_path, f"sleep {seconds}\n")
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, compiler.path, str(cache)],
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 60
    while not running(f"sleep {seconds}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(f"sleep {seconds}")
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=20) == 42
    assert not running(seconds)
    assert list(scratch.iterdir()) == []
    assert not cache.exists() or not [path for path in cache.rglob("*") if path.is_file()]


THREADS = (
    EXPORT
    + """ int threads() {
  int seen = 0;
#pragma omp parallel reduction(+ : seen)
  seen += 1;
  return seen;
}
extern "C" int omp_get_max_threads();
"""
    + EXPORT
    + " int maximum() { return omp_get_max_threads(); }\n"
)

ONE_RUNTIME = """
import ctypes, sys, torch
from pathlib import Path
from shorthaul.runtime.library import build_library
library = build_library({"t.cpp": sys.argv[2]}, symbols=["threads"], cache_directory=Path(sys.argv[1]))
for count in (1, 3, 2):
    torch.set_num_threads(count)
    torch.ones(1000, 1000).sum()
    print(count, library.function("threads", [], ctypes.c_int)(), library.function("maximum", [], ctypes.c_int)())
lines = Path("/proc/self/maps").read_text().splitlines()
print(*sorted({line.split()[-1] for line in lines if "omp" in Path(line.split()[-1]).name and ".so" in line}))
"""


def test_kernels_run_on_the_openmp_runtime_of_torch(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_RUNTIME, str(tmp_path), THREADS],
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *counts, runtimes = done.stdout.strip().splitlines()
    assert counts == ["1 1 1", "3 3 3", "2 2 2"]
    assert runtimes.split() == [str(openmp_runtime())]
    assert Path(torch.__file__).parent in openmp_runtime().parents


def _build_and_call(directory: Path, barrier, results) -> None:
    sources = {f"k{i}.cpp": kernel(f"k{i}", i) for i in range(4)}
    barrier.wait()
    library = build_library(sources, symbols=[f"k{i}" for i in range(4)], cache_directory=directory)
    results.put([call(library, f"k{i}") for i in range(4)])


def test_two_processes_build_the_same_program_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_build_and_call, args=(tmp_path, barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=120) for _ in workers] == [[0, 1, 2, 3]] * 2
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert len(list(tmp_path.glob("libraries/*/*/library.so"))) == 1
    assert not list(tmp_path.rglob(".*"))


def test_a_cache_entry_that_vanishes_before_loading_is_built_again(tmp_path, monkeypatch):
    from shorthaul.runtime import library as library_module

    calls = []

    def build_and_lose(*arguments, **options):
        path = build(*arguments, **options)
        calls.append(path)
        if len(calls) == 1:
            path.unlink()
        return path

    monkeypatch.setattr(library_module, "build", build_and_lose)
    with pytest.warns(CacheWarning):
        library = build_library({"a.cpp": kernel("a", 6)}, cache_directory=tmp_path)
    assert call(library, "a") == 6
    assert len(calls) == 2


def test_the_machine_description():
    m = machine()
    assert 1 <= m.cores <= (os.cpu_count() or 1)
    assert usable_cores() == m.cores
    assert m.isa in ("avx512", "avx2", "baseline")
    assert all(size > 0 for size in m.caches.values())
    assert set(describe()) >= {"CPU", "C++ compiler", "GPU", "Cache directory", "Usable cores"}
    assert hash(m) == hash(dataclasses.replace(m))


def test_the_instruction_set_can_be_lowered_and_not_raised():
    script = "from shorthaul.runtime.machine import machine; print(machine().isa, *machine().isa_flags)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def run(isa: str):
        return subprocess.run(
            [sys.executable, "-c", script],
            env={**environment, "SHORTHAUL_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("baseline").stdout.split() == ["baseline"]
    assert "use one of avx512, avx2, baseline" in run("sse9").stderr


def test_import_needs_no_torch():
    script = "import sys, shorthaul.runtime.machine, shorthaul.runtime.cache, shorthaul.runtime.build; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
