"""The studio's server: one session, any number of tabs, on the loopback interface only.

A random token is part of the address; without it nothing but a refusal is answered, and a WebSocket is refused too when its Origin or
Host is not this server's (so no other page that the user visits can reach it). Nothing is loaded from or sent to elsewhere.

Messages are the texts of `requests`; events ({event, ...}) go to every tab. A connection begins with the event `hello`, which also answers
the message "ping": a page that was asleep asks so whether the line still carries.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from .export import STATIC, modules_of_the_page, page
from .kept import Kept
from .requests import Requests
from .session import Session

Json = Any
HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
PING = "ping"
POLICY = ("default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
          "connect-src 'self' ws://127.0.0.1:{port} ws://localhost:{port}; worker-src 'self'; base-uri 'none'; form-action 'none'; "
          "frame-ancestors 'none'")  # fmt: skip


class Studio:
    """Serves a session. `start()` returns when it listens; `url` has the token; `wait()` blocks until Ctrl+C; `close()` ends it."""

    def __init__(self, session: Session, *, port: int = 0, token: str | None = None) -> None:
        self.session = session
        self.port = port
        self.token = token or secrets.token_urlsafe(24)
        self._sockets: set[web.WebSocketResponse] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = Requests(session)
        self._kept: Kept | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="studio-server")
        self._ready: threading.Event = threading.Event()
        self._failed: BaseException | None = None
        self._runner: web.AppRunner | None = None
        self._unlisten: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        self._kept = Kept(self.session)
        self.session.graph_text()  # kept by its state: the first tab does not wait for it
        self.session.describe()
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed
        self._unlisten = self.session.listen(self._broadcast)

    def wait(self) -> None:
        """Until Ctrl+C."""
        try:
            while self._thread.is_alive():
                self._thread.join(1.0)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Close every connection and stop listening; the session stays usable."""
        self._unlisten()
        if self._kept is not None:
            self._kept.close()
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        self._requests.close()

    # --- the loop -----------------------------------------------------------------------------------------------------
    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._listen())
        except BaseException as e:  # handed to the thread that called start()
            self._failed = e
            self._ready.set()
            return
        self._ready.set()
        self._loop.run_forever()
        self._loop.close()

    async def _listen(self) -> None:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._index)
        app.router.add_get("/ws", self._socket)
        app.router.add_get("/static/{name:[a-z_.-]+}", self._file)
        app.router.add_get("/static/js/{name:[a-z_.-]+}", self._file)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def _end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for socket in list(self._sockets):
            await socket.close(code=1001, message=b"the studio was closed")
        if self._runner is not None:
            await self._runner.cleanup()

    # --- requests -----------------------------------------------------------------------------------------------------
    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        """Refuse other hosts (a name that was made to point here), other origins, and whoever does not have the token."""
        hosts = {f"{n}:{self.port}" for n in NAMES}
        origin = request.headers.get("Origin")
        if request.host not in hosts:
            return _refused(f"host {request.host!r} is not this server")
        if origin is not None and urlsplit(origin).netloc not in hosts:
            return _refused(f"pages of {origin} may not use the studio")
        if not request.path.startswith("/static/"):  # the page's code is no secret, and is loaded without the token
            if not secrets.compare_digest(request.query.get("token", "").encode(), self.token.encode()):
                return _refused("the token is missing or wrong: open the address that the studio printed")
        response: web.StreamResponse = await handler(request)
        if not response.prepared:
            response.headers.update({"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
                                     "Cross-Origin-Resource-Policy": "same-origin"})  # fmt: skip
        return response

    async def _index(self, request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(12)
        imports = json.dumps({"imports": {f"studio/{p.name}": f"/static/js/{p.name}" for p in modules_of_the_page()}})
        early = "".join(f'<link rel="modulepreload" href="/static/js/{p.name}">' for p in modules_of_the_page())
        scripts = (f'<link rel="stylesheet" href="/static/style.css"><script type="importmap" nonce="{nonce}">{imports}</script>{early}'
                   '<script type="module" src="/static/js/main.js"></script>')  # fmt: skip
        text = page(f"{self.session.name} · Shorthaul studio", scripts)
        policy = POLICY.format(nonce=nonce, port=self.port)
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        folder = STATIC / "js" if request.path.startswith("/static/js/") else STATIC
        known = {p.name: p for p in folder.iterdir() if p.suffix in (".js", ".css")}
        if name not in known:
            return web.Response(status=404, text=f"there is no {name}")
        kind = "text/javascript" if name.endswith(".js") else "text/css"
        return web.Response(body=known[name].read_bytes(), content_type=kind, charset="utf-8")

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=20, max_msg_size=8 << 20, compress=False)  # it stays on this machine
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            await socket.send_str(self._hello())
            async for message in socket:
                if message.type is WSMsgType.TEXT and message.data == PING:
                    await socket.send_str(self._hello())
                elif message.type is WSMsgType.TEXT:
                    task = asyncio.create_task(self._answer(socket, message.data))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        finally:
            self._sockets.discard(socket)
        return socket

    def _hello(self) -> str:
        """Which session answers here, and how far it is: a page that comes back may find another one."""
        return json.dumps({"event": "hello", "session": self.session.key, "version": self.session.version})

    async def _answer(self, socket: web.WebSocketResponse, text: str) -> None:
        answer = await asyncio.wrap_future(self._requests.submit(text))
        if not socket.closed:
            try:
                await socket.send_str(answer)
            except ConnectionError:
                pass  # the tab is gone; it asks again when it is back

    def _broadcast(self, event: Json) -> None:
        """To every tab, from whatever thread."""
        text = json.dumps(event)

        async def send() -> None:
            for socket in list(self._sockets):
                if not socket.closed:
                    try:
                        await socket.send_str(text)
                    except ConnectionError:
                        self._sockets.discard(socket)

        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(send(), self._loop)


def _refused(why: str) -> web.Response:
    return web.Response(status=403, text=f"refused: {why}\n")
