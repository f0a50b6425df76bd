"""The studio: a local web page that shows a training program and lets its user change it, and the same as an API without the page.

    session = Session(program)                       # or Session.open("model.onnx"), ("program.json"), ("package.module:factory")
    session.run_level(0)                             # lower it, nothing fused
    found = session.opportunities()[0]               # what saves most, with its place
    session.apply(found["transformation"], found["where"])
    session.undo(); session.redo(); session.measure()
    session.save("recipe.py")                        # also .html, .svg, .json, .trace.json

    sh.studio(model, (x,))                           # opens the page; blocks until Ctrl+C, in a notebook shows it there

`server` serves a session to any number of browser tabs on this machine; `static/` is the page.
"""

from __future__ import annotations

import importlib.util
import sys

from .overlays import Overlay, overlay
from .session import Session, SessionError

__all__ = ["Overlay", "Session", "SessionError", "overlay", "studio", "widget"]


def studio(what: object, inputs: tuple | None = None, *, level: int | None = 0, train: bool = True, port: int = 0,
           browser: bool = True, block: bool | None = None) -> object:  # fmt: skip
    """Open the studio on a Program, an `nn.Module` with its inputs, or anything `Session.open` takes.

    level: lower the program first (0: nothing is fused; None: leave it as it is). port: 0 takes a free one. browser: open a tab.
    block: serve until Ctrl+C; False: serve in a thread and return the `Studio` (`.url`, `.session`, `.close()`). By default it blocks, but
    in a notebook it returns the `widget` where anywidget is installed, and serves in a thread where it is not.
    Raises SessionError where it cannot be opened, ImportError where aiohttp is missing.
    """
    notebook = block is None and in_notebook()
    if notebook and importlib.util.find_spec("anywidget") is not None:
        return widget(what, inputs, level=level, train=train)
    from .server import Studio

    opened = Studio(Session.of(what, inputs, level=level, train=train), port=port)
    opened.start()
    block = not notebook if block is None else block
    print(f"Shorthaul studio on {opened.url}" + ("  (Ctrl+C ends it)" if block else ""), flush=True)
    if browser:
        import webbrowser

        webbrowser.open(opened.url)
    if block:
        opened.wait()
    return opened


def widget(what: object, inputs: tuple | None = None, *, level: int | None = 0, train: bool = True, height: int = 720) -> object:
    """The studio as a widget of a notebook, on the same things as `studio`; `.session` is its session. height: pixels.

    Raises SessionError where it cannot be opened, ImportError where anywidget is missing.
    """
    try:
        from .notebook import StudioWidget
    except ImportError as e:
        raise ImportError("the studio's widget needs anywidget: pip install 'shorthaul[notebook]'") from e
    return StudioWidget(Session.of(what, inputs, level=level, train=train), height=height)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    interactive = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive is not None else None
    return getattr(shell, "kernel", None) is not None
