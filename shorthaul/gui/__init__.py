"""The studio: a local web page that shows a training program and lets its user change it, and the same as an API without the page.

    session = Session(program)                       # or Session.open("model.onnx"), ("program.json"), ("package.module:factory")
    session.run_level(0)                             # lower it, nothing fused
    found = session.opportunities()[0]               # what saves most, with its place
    session.apply(found["transformation"], found["where"])
    session.undo(); session.redo(); session.measure()
    session.save("recipe.py")                        # also .html, .svg, .json, .trace.json

    sh.studio(model, (x,))                           # opens the page; blocks until Ctrl+C unless block=False

`server` serves a session to any number of browser tabs on this machine; `static/` is the page.
"""

from __future__ import annotations

from .overlays import Overlay, overlay
from .session import Session, SessionError

__all__ = ["Overlay", "Session", "SessionError", "overlay", "studio"]


def studio(what: object, inputs: tuple | None = None, *, level: int | None = 0, train: bool = True, port: int = 0,
           browser: bool = True, block: bool = True) -> object:  # fmt: skip
    """Open the studio on a Program, an `nn.Module` with its inputs, or anything `Session.open` takes.

    level: lower the program first (0: nothing is fused; None: leave it as it is). port: 0 takes a free one. browser: open a tab.
    block: serve until Ctrl+C; else serve in a thread and return the `Studio` (`.url`, `.session`, `.close()`).
    Raises SessionError where it cannot be opened, ImportError where aiohttp is missing.
    """
    from .server import Studio

    opened = Studio(Session.of(what, inputs, level=level, train=train), port=port)
    opened.start()
    print(f"Shorthaul studio on {opened.url}" + ("  (Ctrl+C ends it)" if block else ""), flush=True)
    if browser:
        import webbrowser

        webbrowser.open(opened.url)
    if block:
        opened.wait()
    return opened
