"""What all tests share: options, markers, the sampling of large suites, and the record of `make test-all`.

`--full`    runs whole suites, `slow` tests included; without it large suites are sampled with a fixed seed
            (`shorthaul.testing.sample`).
`--resume`  skips the tests that already passed for exactly these sources (record in `.test-all/`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / ".test-all"

settings.register_profile(
    "sampled", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("full", parent=settings.get_profile("sampled"), max_examples=400)
settings.load_profile("sampled")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("shorthaul")
    group.addoption("--full", action="store_true", help="run whole suites, slow tests included")
    group.addoption("--resume", action="store_true", help="do not repeat what passed for exactly these sources")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("SHORTHAUL_WARM_START", "0")  # tests look at what is traced; tests of capture records turn them on
    if config.getoption("--full"):
        settings.load_profile("full")
        os.environ["SHORTHAUL_TESTS"] = "full"  # read by shorthaul.testing.sample when the test modules are imported
    try:
        import torch
    except ImportError:  # the style tests and those of the lower layers run without it
        pass
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if config.getoption("--resume") and not hasattr(config, "workerinput"):
        record = Record(RECORDS / fingerprint_of_sources())
        config.stash[_RECORD] = record
        config.pluginmanager.register(record, "shorthaul-record")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = _has_gpu() if any(item.get_closest_marker("gpu") for item in items) else False
    everything = not config.getoption("--full") and not config.getoption("file_or_dir") and not config.getoption("-k")
    for item in items:
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif item.get_closest_marker("slow") and not config.getoption("--full"):
            item.add_marker(pytest.mark.skip(reason="slow; run by `make test-all`"))
        elif everything and _left_out(item):
            item.add_marker(pytest.mark.skip(reason="a quarter of this large suite runs; all of it by `make test-all`, or name the file"))
    passed = _passed_before(config)
    if passed:
        repeated = [item for item in items if item.nodeid in passed]
        if repeated:
            items[:] = [item for item in items if item.nodeid not in passed]
            config.hook.pytest_deselected(items=repeated)


# Large suites of which a run of everything takes a quarter, chosen by the tests' names.
SAMPLED = (
    "api/test_autograd", "api/test_calls", "api/test_control_flow", "api/test_modules", "api/test_runtime_sizes", "api/test_shapes",
    "api/test_train_step", "api/test_vmap", "codegen/test_cpp_kernels", "codegen/test_triton", "ecosystem/", "frontends/test_functional",
    "models/test_blocks", "models/test_in_the_wild", "models/test_random_draws", "models/test_research_networks",
    "models/test_symbolic_sizes", "models/test_training", "models/test_transformers", "runtime/test_build", "runtime/test_vector",
    "suites/test_onnx", "testing/test_benchmark", "tuning/", "verification/",
)  # fmt: skip


def _left_out(item: pytest.Item) -> bool:
    place = item.nodeid.removeprefix("tests/")
    return place.startswith(SAMPLED) and zlib.crc32(place.encode()) % 12 not in (0, 3, 6)


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


# --- the record behind `make test-all` ---------------------------------------------------------------------

_RECORD: pytest.StashKey[Record] = pytest.StashKey()


class Record:
    """The names of the tests that passed for one state of the sources, one a line, appended as they pass."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed = frozenset(path.read_text().splitlines()) if path.exists() else frozenset()
        path.parent.mkdir(exist_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            with self.path.open("a") as file:
                file.write(report.nodeid + "\n")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """xdist: every worker must deselect the same tests, so the record is read once, here."""
        node.workerinput["shorthaul_passed"] = sorted(self.passed)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.passed:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.passed:
            terminalreporter.write_line(f"{len(self.passed)} tests passed earlier for these sources; not repeated")


def _passed_before(config: pytest.Config) -> frozenset[str]:
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        return frozenset(worker.get("shorthaul_passed", ()))
    record = config.stash.get(_RECORD, None)
    return record.passed if record is not None else frozenset()


def fingerprint_of_sources() -> str:
    """A digest of every file of the checkout that git does not ignore (name and content)."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout  # fmt: skip
    digest = hashlib.sha256()
    for name in sorted(filter(None, listing.split(b"\0"))):
        path = ROOT / os.fsdecode(name)
        if path.is_file():
            digest.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:24]
