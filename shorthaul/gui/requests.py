"""Requests to a session as text, as the server and the notebook widget get them, and the answers as text.

A request is JSON {id, method, params, version?, key?}; the answer is {id, result, version?} or {id, error}. `version` is the session's as
the page shows it, for methods that change something, and in their answers as it is then; `key` names a request that changes or starts
something, so that one which is sent again after a lost connection is answered, not done again.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .session import Session, SessionError

Json = Any
KEPT = 512  # answers to changes that are remembered by key
QUESTIONS = frozenset({"describe", "graph", "modules", "overlay", "node", "body", "module", "opportunities", "costliest", "roofline",
                       "memory", "diff", "preview", "export"})  # fmt: skip
CHANGES = frozenset({"apply", "apply_alike", "run_level", "replay", "undo", "redo", "goto", "reset", "set_machine", "restore"})
JOBS = frozenset({"measure", "stop", "tune"})


class Requests:
    """Answers the requests of all pages of one session: questions several at a time, changes one after the other."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._done: OrderedDict[str, Json] = OrderedDict()
        self._one = threading.Lock()  # jobs are started one after the other, so that a key is seen
        self._asking = ThreadPoolExecutor(4, thread_name_prefix="studio-ask")
        self._changing = ThreadPoolExecutor(1, thread_name_prefix="studio-change")

    def submit(self, text: str) -> Future[str]:
        """The answer to a request, as the text that is sent; what is wrong with the request is an answer too."""
        number: Json = None
        try:
            request = json.loads(text)
            method, params = (request.get("method"), request.get("params", {})) if isinstance(request, dict) else (None, None)
            if not isinstance(method, str) or not isinstance(params, dict):
                raise SessionError("a request is {id, method, params}")
            number = request.get("id")
            if method not in QUESTIONS | CHANGES | JOBS:
                raise SessionError(f"there is no method {method!r}")
        except (ValueError, SessionError) as e:
            done: Future[str] = Future()
            done.set_result(json.dumps({"id": number, "error": str(e)}))
            return done
        pool = self._changing if method in CHANGES else self._asking
        return pool.submit(self._answer, number, request)

    def _answer(self, number: Json, request: Json) -> str:
        method, params = request["method"], dict(request.get("params", {}))
        try:
            key = str(request.get("key", ""))
            if method in CHANGES:
                found, version = self._once(key, method, {**params, "version": request.get("version")})
                return json.dumps({"id": number, "result": found, "version": version}, default=str)
            if method == "graph":
                result = self._call("graph_text", params)
            elif method in JOBS:
                with self._one:
                    result = json.dumps(self._once(key, method, params if method == "stop" else {**params, "wait": False})[0])
            else:
                result = json.dumps(self._call(method, params), default=str)
        except SessionError as e:
            return json.dumps({"id": number, "error": str(e), "version": self.session.version})
        except Exception as e:  # a fault of ours must not end the connection: it is shown
            return json.dumps({"id": number, "error": f"an error inside the studio, please report it: {type(e).__name__}: {e}"})
        return f'{{"id": {json.dumps(number)}, "result": {result}}}'

    def _once(self, key: str, method: str, params: dict[str, Json]) -> tuple[Json, int]:
        """What came of it, and the session's version then; a key that was seen gets the answer that it got."""
        if key and key in self._done:
            return self._done[key]
        result = self._call(method, params), self.session.version
        if key:
            self._done[key] = result
            while len(self._done) > KEPT:
                self._done.popitem(last=False)
        return result

    def _call(self, method: str, params: dict[str, Json]) -> Json:
        function = getattr(self.session, method)
        try:
            return function(**params)
        except TypeError as e:
            if method in str(e):
                raise SessionError(f"wrong parameters: {e}") from e
            raise

    def close(self) -> None:
        """Take no more requests; what has not begun is dropped."""
        for pool in (self._asking, self._changing):
            pool.shutdown(wait=False, cancel_futures=True)
