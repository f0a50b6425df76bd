"""The command line: what it lists, and what it says to bad input."""

from __future__ import annotations

from pathlib import Path

import pytest

from shorthaul.cli import UserError, load_network, main

NETWORK = """
import torch
def make():
    return torch.nn.Linear(3, 2), (torch.ones(4, 3),)
def single():
    return torch.nn.Linear(3, 2), torch.ones(4, 3)
def wrong():
    return torch.nn.Linear(3, 2)
"""


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    path = tmp_path / "some_network.py"
    path.write_text(NETWORK)
    return path


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "demo" in shown
    assert "doctor" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice"),
        (["demo", "--steps", "0"], "at least 1"),
        (["demo", "--compare", "magic"], "invalid choice"),
        (["doctor", "--verbose"], "unrecognized arguments: --verbose"),
    ],
)
def test_bad_calls_are_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_doctor_names_compiler_and_cache(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTHAUL_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "entry").write_bytes(bytes(2**20))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "C++ compiler" in shown
    assert f"{tmp_path / 'cache'} (1 files, 1.0 MiB)" in shown


def test_networks_are_loaded_from_files(network_file: Path) -> None:
    module, inputs = load_network(f"{network_file}:make")
    assert module(*inputs).shape == (4, 2)
    module, inputs = load_network(f"{network_file}:single")
    assert module(*inputs).shape == (4, 2)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{file}", "names no function"),
        ("{file}:", "names no function"),
        ("nowhere.py:make", "no file nowhere.py"),
        ("{file}:other", "has no function other"),
        ("{file}:wrong", "must return .module, inputs., not Linear"),
        ("no_such_package.models:make", "cannot import no_such_package.models"),
    ],
)
def test_bad_places_say_what_is_wrong(place: str, message: str, network_file: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_network(place.format(file=network_file))


def test_report_of_an_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", real, [3, 2], [1.0] * 6)
    x, y = (helper.make_tensor_value_info(n, real, ["batch", size]) for n, size in (("x", 3), ("y", 2)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    assert main(["report", str(tmp_path / "m.onnx")]) == 0
    assert "1 compiled" in capsys.readouterr().out
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert main(["report", str(tmp_path / "bad.onnx")]) == 2
    assert "no ONNX model" in capsys.readouterr().err


def test_levels_print_a_table_and_run_nothing(network_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--levels", f"{network_file}:make", "lenet"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert "level 0" in head and "level 4" in head and "eager" in head
    assert first.startswith(f"{network_file}:make") and first.count("(") == 5
    assert second.startswith("lenet")


def test_levels_refuse_an_unknown_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--levels", "lenett"]) == 2
    assert "no benchmark network is called 'lenett'" in capsys.readouterr().err
    assert main(["report", "lenet", "bert"]) == 2
    assert "several are for --levels" in capsys.readouterr().err
