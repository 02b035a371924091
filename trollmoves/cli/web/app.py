"""The status page as a web application: the page, its data, live updates, and orders with a token."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trollmoves.cli.web.site import Site
from trollmoves.errors import TrollmovesError

MAX_VIEWERS = 100  # live connections
MAX_BODY = 65_536  # bytes of an order
MAX_NAME = 4096  # characters of the name of a file
KEEP_ALIVE = 15.0  # s without news after which a comment shows that the connection works
POLL_INTERVAL = 0.2  # s between two looks of a viewer at the state
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


class SecurityHeaders:
    """Adds ``HEADERS`` to each response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Page:
    """The handlers of the requests. ``token`` allows orders; empty for none. ``is_local`` allows all (Unix socket)."""

    def __init__(self, site: Site, token: str, *, is_local: bool) -> None:
        self._site = site
        self._token = token
        self._is_local = is_local
        self._viewers = 0

    async def file(self, request: Request) -> Response:
        """Return a file of the page."""
        name, media_type = FILES[request.url.path]
        return Response((files("trollmoves.cli.web") / "static" / name).read_bytes(), media_type=media_type)

    async def state(self, _: Request) -> Response:
        """Return the state of all daemons."""
        return JSONResponse(await run_in_threadpool(self._site.state))

    async def history(self, request: Request) -> Response:
        """Return the steps of a file."""
        name = request.query_params.get("file", "").strip()
        if not name or len(name) > MAX_NAME:
            return JSONResponse({"error": f"the parameter file must be a name of at most {MAX_NAME} characters"}, 400)
        return JSONResponse(await run_in_threadpool(self._site.history, name))

    async def timeline(self, _: Request) -> Response:
        """Return the counts of the last 24 hours."""
        return JSONResponse(self._site.timeline())

    async def warnings(self, _: Request) -> Response:
        """Return the last warnings and errors."""
        return JSONResponse(await run_in_threadpool(self._site.warnings))

    async def rights(self, request: Request) -> Response:
        """Return whether the token of this request allows orders."""
        return JSONResponse({"orders": self._may_act(request)})

    async def orders(self, request: Request) -> Response:
        """Give an order to a daemon."""
        if not self._may_act(request):
            return JSONResponse({"error": "orders need the token of this page"}, 403)
        try:
            values = json.loads(await _body(request))
            if not isinstance(values, dict):
                raise TrollmovesError("an order must be a JSON object")
            result = await run_in_threadpool(self._site.act, values, _token(request))
        except (TrollmovesError, ValueError, RecursionError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(result)

    async def events(self, _: Request) -> Response:
        """Stream the state, rates, time line and warnings as server-sent events."""
        if self._viewers >= MAX_VIEWERS:
            return JSONResponse({"error": f"{MAX_VIEWERS} viewers are connected"}, 503)
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        number, sent = -1, dict[str, str]()
        self._viewers += 1
        try:
            while True:
                number, texts = await self._next(number)
                changed = {event: text for event, text in texts.items() if sent.get(event) != text}
                sent = texts
                for event, text in changed.items():
                    yield f"event: {event}\ndata: {text}\n\n"
                if not changed:
                    yield ": no change\n\n"
        finally:
            self._viewers -= 1

    async def _next(self, number: int) -> tuple[int, dict[str, str]]:
        """Wait for the next state, at most ``KEEP_ALIVE`` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + KEEP_ALIVE
        while True:
            newest, texts = self._site.current()
            if newest != number or loop.time() > deadline:
                return newest, texts
            await asyncio.sleep(POLL_INTERVAL)

    def _may_act(self, request: Request) -> bool:
        return self._is_local or (
            bool(self._token) and hmac.compare_digest(_token(request).encode(), self._token.encode())
        )


def _token(request: Request) -> str:
    return request.headers.get("authorization", "").removeprefix("Bearer ")


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise TrollmovesError(f"an order has at most {MAX_BODY} bytes")
    return body


def make_app(site: Site, *, token: str, hosts: Sequence[str], is_local: bool) -> Starlette:
    """Return the application.

    Args:
        site: the daemons to show; started.
        token: the token for orders, empty if the page is read-only.
        hosts: the host names and addresses by which browsers may request the page; others are rejected.
        is_local: True if it listens on a Unix socket, which its permissions protect.
    """
    page = Page(site, token, is_local=is_local)
    reads: list[tuple[str, Any]] = [
        *((path, page.file) for path in FILES),
        ("/api/state", page.state),
        ("/api/history", page.history),
        ("/api/timeline", page.timeline),
        ("/api/warnings", page.warnings),
        ("/api/rights", page.rights),
        ("/events", page.events),
    ]
    routes = [Route(path, handler, methods=["GET"]) for path, handler in reads]
    routes.append(Route("/api/orders", page.orders, methods=["POST"]))
    middleware = [Middleware(SecurityHeaders)]
    if not is_local:  # against pages of other sites that resolve to this host
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)))
    return Starlette(routes=routes, middleware=middleware)
