"""The command line: `shorthaul demo | report | studio | bench | doctor | ...`.

A command appears when the part of Shorthaul behind it is there; each imports what it needs only when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shorthaul import networks


class UserError(Exception):
    """Something the user can put right: printed as one message, without a traceback; exit status 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 where the job failed, 2 where the call was wrong, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="shorthaul", description="Faster training of neural networks by moving less data."
    )
    parser.add_argument("--version", action="version", version=f"shorthaul {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    arguments, rest = parser.parse_known_args(argv)
    if rest and not hasattr(arguments, "rest"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    try:
        return int(arguments.run(arguments) or 0)
    except UserError as error:
        print(f"shorthaul: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("shorthaul")
    except PackageNotFoundError:
        return "(not installed)"


def _exists(module: str) -> bool:
    """Whether a module of the package is there, found without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


# --- demo ---------------------------------------------------------------------------------------------------


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a small EfficientNet-style network on real digits, eager and Shorthaul side by side",
        description="Trains the same network on 4000 real MNIST images with eager PyTorch and with Shorthaul, from the same "
        "seed and on the same batches, and compares losses, accuracy, time and bytes moved.",
    )
    parser.add_argument("--compare", action="append", default=[], choices=["torch.compile"],
                        help="also train with this engine (it compiles for a minute or two)")  # fmt: skip
    parser.add_argument(
        "--steps", type=_positive, default=None, help="training steps (default: chosen to take about a minute)"
    )
    parser.add_argument("--batch", type=_positive, default=64, help="images a step (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of parameters and batches (default: 0)")
    parser.add_argument("--threads", type=_positive, default=None, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument(
        "--output", type=Path, default=Path("shorthaul-demo"), help="folder for the plot and the numbers"
    )
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    for package in ("rich", "matplotlib", "mlxtend"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"the demo needs {package}; install it with: pip install 'shorthaul[demo]'")
    from shorthaul.demo import run

    return run(
        compare=arguments.compare,
        steps=arguments.steps,
        batch_size=arguments.batch,
        seed=arguments.seed,
        threads=arguments.threads,
        output=arguments.output,
    )


# --- report -------------------------------------------------------------------------------------------------


def _add_report(commands: Any) -> None:
    if not _exists("shorthaul.api"):
        return
    parser = commands.add_parser(
        "report",
        help="say what Shorthaul makes of a network: captured, fused, not fused and why, bytes before and after",
        description="Runs one training step of a network under Shorthaul and prints its report. With --levels it runs nothing: it prints "
        "the bytes that a step moves by level, of one network or of several.",
    )
    parser.add_argument("network", metavar="FILE.py:FUNCTION", nargs="+",
                        help="a function without arguments that returns (module, inputs); also package.module:function, or an ONNX "
                             "file (model.onnx), whose sizes left open are taken as 4; with --levels in a checkout also a benchmark "
                             "network at full size by name, such as bert_large, or ten for all")  # fmt: skip
    parser.add_argument("--levels", action="store_true", help="a table of bytes moved a training step by level 0 to 4; nothing is executed")
    parser.add_argument(
        "--level", type=int, choices=range(5), default=4, help="how far transformations see (default: 4)"
    )
    parser.add_argument("--strict", action="store_true", help="fail where an operator has no entry of its own")
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    import shorthaul

    if arguments.levels:
        return _levels(arguments.network)
    if len(arguments.network) > 1:
        raise UserError("report takes one network; several are for --levels")
    module, inputs = _network(arguments.network[0])
    model: Any = shorthaul.optimize(module.train(), level=arguments.level, strict=arguments.strict)
    output = model(*inputs)
    sums = [leaf.float().sum() for leaf in _floating_leaves(output) if leaf.requires_grad]
    if sums:
        sum(sums[1:], start=sums[0]).backward()
    print(model.report())
    return 0


def _network(place: str) -> tuple[Any, tuple[Any, ...]]:
    return _onnx_network(place) if place.endswith(".onnx") else load_network(place)


def _levels(places: Sequence[str]) -> int:
    """Print the table of bytes by level; status 1 where a level moves more than one before it."""
    from shorthaul.levels import header, level_rows, line

    width = max([27, *map(len, places)])
    print(header(width), flush=True)
    rises = False
    for row in level_rows(_networks(places)):
        print(line(row, width), flush=True)
        rises = rises or bool(row.rises)
    if rises:
        print("! moves more than a lower level")
    return int(rises)


def _networks(places: Sequence[str]) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Name, module and inputs of each place; a benchmark network is one without memory, at full size."""
    for place in places:
        if ":" in place or place.endswith(".onnx"):
            module, inputs = _network(place)
            yield place, module.train(), inputs
            continue
        root = _benchmarks()
        if root is None:
            raise UserError(f"{place!r} names no function, and the benchmark networks are not part of the installed package")
        sys.path.insert(0, str(root))
        known = importlib.import_module("benchmarks.networks")
        for name in known.TEN if place == "ten" else [place]:
            if name not in known.REGISTRY:
                raise UserError(f"no benchmark network is called {name!r}; there are {', '.join(known.REGISTRY)}")
            net = known.network(name, device="meta")
            yield name, net.module, net.inputs


# --- verify -------------------------------------------------------------------------------------------------


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="compare a network optimized with eager PyTorch and float64, and find what is at fault where they differ",
        description="Runs a network optimized, in eager mode and in float64, forward and backward, and judges every output, gradient and "
        "buffer. Where they differ it names the transformation, the operator or the kernel at fault, and ends with status 1.",
    )
    parser.add_argument("network", metavar="FILE.py:FUNCTION",
                        help="a function without arguments that returns (module, inputs); also package.module:function")  # fmt: skip
    parser.add_argument(
        "--level", type=int, choices=range(5), default=4, help="how far transformations see (default: 4)"
    )
    parser.add_argument("--worst", type=_positive, default=10, help="how many tensors to show, the most wrong first (default: 10)")
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from shorthaul.verification import verify

    module, inputs = load_network(arguments.network)
    try:
        found = verify(module, inputs, level=arguments.level)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    print(found.table(arguments.worst))
    return 0 if found.ok else 1


def _floating_leaves(value: Any) -> list[Any]:
    if hasattr(value, "is_floating_point"):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    elif hasattr(value, "__dataclass_fields__"):
        value = [getattr(value, name) for name in value.__dataclass_fields__]
    return [leaf for item in value for leaf in _floating_leaves(item)] if isinstance(value, list | tuple) else []


def _onnx_network(path: str) -> tuple[Any, tuple[Any, ...]]:
    try:
        return networks.load_onnx_network(path)
    except networks.LoadError as error:
        raise UserError(str(error)) from error


def load_network(place: str) -> tuple[Any, tuple[Any, ...]]:
    """`networks.load_network` with a `UserError` that says which part of `place` is wrong."""
    try:
        return networks.load_network(place)
    except networks.LoadError as error:
        raise UserError(str(error)) from error


# --- studio -------------------------------------------------------------------------------------------------


def _add_studio(commands: Any) -> None:
    parser = commands.add_parser(
        "studio",
        help="see a training program in the browser, and change it",
        description="Opens a local page with the program of a network: what moves, why something is not fused, what can be done about "
        "it. Serves this machine only (a random token is in the address) until Ctrl+C; loads nothing from elsewhere.",
    )
    parser.add_argument("network", metavar="WHAT",
                        help="model.onnx, program.json, or FILE.py:FUNCTION or package.module:function, a function without arguments "
                             "that returns (module, inputs)")  # fmt: skip
    parser.add_argument("--level", type=int, choices=range(5), default=0,
                        help="how far it is transformed when it opens (default: 0, only lowered)")  # fmt: skip
    parser.add_argument("--inference", action="store_true", help="without the backward pass")
    parser.add_argument("--port", type=int, default=0, help="port on the loopback interface (default: a free one)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    parser.add_argument("--export", type=Path, metavar="FILE.html", help="write a read-only page that works offline, and end")
    parser.set_defaults(run=_studio)


def _studio(arguments: argparse.Namespace) -> int:
    from shorthaul import gui

    try:
        session = gui.Session.open(arguments.network, level=arguments.level, train=not arguments.inference)
        if arguments.export is not None:
            print(f"wrote {session.save(arguments.export)}")
            return 0
    except gui.SessionError as error:
        raise UserError(str(error)) from error
    if importlib.util.find_spec("aiohttp") is None:
        raise UserError("the studio's page needs aiohttp; install it with: pip install 'shorthaul[studio]' (--export works without it)")
    try:
        gui.studio(session, port=arguments.port, browser=not arguments.no_browser)
    except OSError as error:
        raise UserError(f"cannot serve on port {arguments.port}: {error.strerror or error}; --port 0 takes a free one") from error
    return 0


# --- bench --------------------------------------------------------------------------------------------------


def _add_bench(commands: Any) -> None:
    if not _benchmarks():
        return
    parser = commands.add_parser("bench", help="measure training steps and compile times on this CPU", add_help=False)
    parser.set_defaults(run=_bench, rest=[])  # what follows is for benchmarks/cpu.py


def _benchmarks() -> Path | None:
    """The checkout that holds the benchmarks; they are not part of the installed package."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "benchmarks" / "cpu.py").is_file() else None


def _bench(arguments: argparse.Namespace) -> int:
    sys.path.insert(0, str(_benchmarks()))
    return int(importlib.import_module("benchmarks.cpu").main(arguments.rest))


# --- tune ---------------------------------------------------------------------------------------------------


def _add_tune(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        help="search for a faster plan for a network by measuring on this machine",
        description="Searches over transformations, their parameters and the schedules of kernels, measures candidates in turns with "
        "the best so far, and writes the plan that won as a recipe. Ctrl-C ends it with what was found; another run goes on from there.",
    )
    parser.add_argument("network", metavar="FILE.py:FUNCTION",
                        help="a function without arguments that returns (module, inputs), or model.onnx")  # fmt: skip
    parser.add_argument("--budget", type=_seconds, default=60.0, metavar="SECONDS",
                        help="seconds to search, compilation included (default: 60)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("recipe.py"), help="the recipe's file (default: recipe.py)")
    parser.add_argument("--plot", type=Path, default=None, help="draw the run into this file (.png, .svg or .pdf; needs matplotlib)")
    parser.add_argument("--forward", action="store_true", help="tune the forward pass alone")
    parser.add_argument("--search", default="greedy", help="the strategy (default: greedy; other packages add theirs)")
    parser.add_argument("--cost-model", default="roofline", help="the cost model (default: roofline; other packages add theirs)")
    parser.add_argument("--fresh", action="store_true", help="do not use what earlier runs found, and do not keep what this one finds")
    parser.set_defaults(run=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    from shorthaul.extension import UnknownName
    from shorthaul.tuner import tune

    if arguments.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib; install it with: pip install 'shorthaul[demo]'")
    module, inputs = _onnx_network(arguments.network) if arguments.network.endswith(".onnx") else load_network(arguments.network)
    try:
        tuned = tune(module, inputs, budget=arguments.budget, train=not arguments.forward, search=arguments.search,
                     cost_model=arguments.cost_model, database=not arguments.fresh)  # fmt: skip
    except UnknownName as error:
        raise UserError(str(error)) from error
    print(tuned)
    tuned.save(arguments.output)
    print(f"the recipe is in {arguments.output}: sh.optimize(model, recipe={str(arguments.output)!r})")
    if arguments.plot is not None:
        tuned.plot(arguments.plot)
        print(f"the plot is in {arguments.plot}")
    return 130 if tuned.interrupted else 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is needed, not {text!r}")
    return value


# --- doctor -------------------------------------------------------------------------------------------------


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="say what this machine offers: compiler, instruction set, GPU, cache")
    parser.add_argument("--measure", action="store_true",
                        help="measure bandwidth and arithmetic for the cost model, and keep what is found (some seconds)")  # fmt: skip
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from shorthaul.runtime.cache import default_directory
    from shorthaul.runtime.machine import NO_COMPILER_REMEDY, describe, machine

    findings = {"Shorthaul": _version(), "PyTorch": importlib.import_module("torch").__version__, **describe()}
    folder = default_directory()
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    findings["Cache directory"] = (
        f"{folder} ({len(files)} files, {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB)"
    )
    findings["Cache writable"] = "yes" if _writable(folder) else "no; name another in SHORTHAUL_CACHE_DIR"
    width = max(map(len, findings))
    for label, text in findings.items():
        print(f"{label:{width}}  {text}")
    if machine().compiler is not None and arguments.measure:
        from shorthaul.runtime.measured import keep, measure, table

        found = measure()
        print(f"\n{table(found)}\nkept in {keep(found)}")
    if machine().compiler is None:
        print(f"\nWithout a C++ compiler networks still train, but by library calls only: {NO_COMPILER_REMEDY}.")
        return 1
    return 0


def _writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or in the nearest folder above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, not {text!r}")
    return value


COMMANDS = (_add_demo, _add_report, _add_verify, _add_tune, _add_studio, _add_bench, _add_doctor)
