"""What a page had reached, on disk, so that a studio which is started again can take it up: a process ends, a machine restarts.

One small file a program (by its fingerprint) in the cache directory: the recipe of the state that was current last, and how it is
described. Only what serves a page keeps one; a session by itself writes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from shorthaul import workbench
from shorthaul.analysis.roofline import MACHINES
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.transforms.recipe import Recipe

from .session import Session

Json = Any
MOST = 200  # files that stay; the oldest go


class Kept:
    """Reads what an earlier session on the same program left (`session.earlier`), then writes what this one reaches, until `close`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.path = workbench.cache_directory() / "studio" / f"{fingerprint(session.root.program)}.json"
        session.earlier = self._read()
        self._told = False
        self.close = session.listen(self._heard)

    def _read(self) -> Json:
        try:
            found = json.loads(self.path.read_text())
            known = isinstance(found["recipe"], str) and isinstance(found["step"], str) and isinstance(found["steps"], int)
            known = known and isinstance(found["bytes"], int) and isinstance(found["when"], (int, float)) and found["machine"] in MACHINES
            return found if known else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # there is none, or it was written by another version: the session begins anew, as it would without

    def _heard(self, event: Json) -> None:
        if event["event"] != "changed":
            return
        try:
            self._write()
        except OSError as e:
            if not self._told:  # once: the session goes on without
                self._told = True
                why = f"the state cannot be kept for the next start: {self.path.parent}: {e.strerror or e}"
                self.session.tell(event="failed", what=f"{why}. Export the recipe before you end the studio, or name another directory "
                                                       "in SHORTHAUL_CACHE_DIR")  # fmt: skip

    def _write(self) -> None:
        state = self.session.current
        recipe = Recipe.of(state.program)
        if state.kind in ("start", "lowered") or not recipe.steps:
            self.path.unlink(missing_ok=True)  # it was taken back: there is nothing to take up
            return
        text = json.dumps({"recipe": str(recipe), "step": state.step, "steps": state.depth, "bytes": state.totals["bytes"],
                           "when": time.time(), "machine": state.machine})  # fmt: skip
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.path.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        os.replace(part, self.path)  # whole or not at all
        for old in sorted(self.path.parent.glob("*.json"), key=_age)[:-MOST]:
            old.unlink(missing_ok=True)


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
