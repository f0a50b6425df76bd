"""The studio in a notebook: the page in a frame of an anywidget, its requests answered by the kernel over the widget's own messages.

    from shorthaul.gui import widget
    widget(model, (x,))                 # the last expression of a cell; also what sh.studio(...) gives in a notebook

No port is opened, so that it works wherever the notebook does. Everything of the page is there; only the kernel answers, so the page waits
while a cell runs. The frame has an origin of its own: it can reach neither the notebook's page nor anything else.
"""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from .export import framed
from .kept import Kept
from .requests import Requests
from .session import Session

HERE = Path(__file__).parent


class StudioWidget(anywidget.AnyWidget):
    """Shows a session. Messages to the kernel are requests, those from it are answers and events; both are JSON text in `studio`."""

    _esm = (HERE / "static" / "widget.mjs").read_text()
    page = traitlets.Unicode(help="the page's HTML").tag(sync=True)
    height = traitlets.Int(720, help="pixels").tag(sync=True)

    def __init__(self, session: Session, *, height: int = 720) -> None:
        super().__init__(page=framed(session.name), height=height)
        self.session = session
        self._requests = Requests(session)
        self._kept = Kept(session)
        self._unlisten = session.listen(lambda event: self._say(json.dumps(event)))
        self.on_msg(self._receive)

    def _receive(self, _: Any, content: Any, buffers: Any) -> None:
        """A request of the page; it is answered from another thread, so that the next one is not kept waiting."""
        if isinstance(content, dict) and isinstance(content.get("studio"), str):
            self._requests.submit(content["studio"]).add_done_callback(self._answer)

    def _answer(self, done: Future[str]) -> None:
        if not done.cancelled():
            self._say(done.result())

    def _say(self, text: str) -> None:
        self.send({"studio": text})

    def close(self) -> None:
        """Remove the widget; the session stays usable."""
        self._unlisten()
        self._kept.close()
        self._requests.close()
        super().close()
