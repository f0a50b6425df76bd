"""Names for lines of generated code: where a front end writes code of its own, reports and errors name what a line stands for."""

from __future__ import annotations

_LINES: dict[str, dict[int, tuple[str, str]]] = {}


def name_lines(file: str, lines: dict[int, tuple[str, str]] | None) -> None:
    """Say what the lines of a generated file stand for: (name, kind) by line number; None forgets the file."""
    if lines is None:
        _LINES.pop(file, None)
    else:
        _LINES[file] = lines


def named_line(file: str, line: int) -> tuple[str, str] | None:
    """Name and kind of what a line stands for, or None."""
    return _LINES.get(file, {}).get(line)
