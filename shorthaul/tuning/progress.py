"""What a tuning run shows while it runs: one line with the time, what is being tried and the best so far."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from .session import Session

WIDTH = 100


class Progress:
    """On a terminal a line that is written over; elsewhere a line for each new best."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._terminal = self.stream.isatty()
        self._best = 1.0

    def __call__(self, session: Session) -> None:
        text = (f"{session.spent:5.1f}/{session.budget:g} s  {len(session.trials)} tried  best {1 / session.ratio:.3f}x  "
                f"{session.trials[-1].status}: {session.trials[-1].what}")  # fmt: skip
        if self._terminal:
            self.stream.write("\r" + text[:WIDTH].ljust(WIDTH))
        elif session.ratio < self._best:
            self.stream.write(text + "\n")
        self._best = session.ratio
        self.stream.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            self.stream.write("\r" + " " * WIDTH + "\r")
            self.stream.flush()
