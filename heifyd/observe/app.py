"""What is answered: an ASGI application of a handful of paths, none of which changes anything."""

import asyncio
import hashlib
import json
import socket
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from importlib import resources
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers
from starlette.responses import Response

from heifyd.observe import health, page
from heifyd.observe.guard import Guard
from heifyd.observe.look import Look, Looking
from heifyd.observe.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

ANSWER_S: Final = 5.0
"""A look that takes longer is not waited for: the last one is shown, and that it is old."""

_FOR_EVER: Final = "private, max-age=31536000, immutable"
_APART_S: Final = 0.005
_LONGEST_QUEUE_S: Final = 0.5
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class App:
    """The application; it belongs to its event loop's thread, but for `guard`, which may be set anew at any time."""

    def __init__(self, guard: Guard, looking: Looking, metrics: Metrics, alive: Callable[[], Sequence[str]]) -> None:
        """`alive` names the threads that make no progress."""
        self.guard = guard
        self._looking = looking
        self._metrics = metrics
        self._alive = alive
        self._next_s = 0.0
        self._assets = _assets()
        self._version = hashlib.sha256(b"".join(content for content, _ in self._assets.values())).hexdigest()[:16]
        self._page: tuple[Look, list[str], str] | None = None

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request (ASGI 3, ``http`` only); its body, if it has one, is not read."""
        response = await self._answer(scope)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers["Date"] = formatdate(usegmt=True)
        await response(scope, receive, send)

    async def _answer(self, scope: "Scope") -> Response:
        refusal = self.guard.refusal(scope["method"], Headers(scope=scope))
        await self._take_turn()
        if refusal is not None:
            return Response(f"{refusal.why}\n", refusal.status, refusal.headers, "text/plain")
        match scope["path"]:
            case "/":
                return Response(self._rendered(await self._look(), [*self._alive()]), media_type="text/html")
            case "/healthz":
                return _json(*health.liveness(self._alive()))
            case "/readyz":
                return _json(*health.readiness([*health.reasons(await self._look())]))
            case "/metrics":
                accept = Headers(scope=scope).get("accept", "")
                text, content_type = self._metrics.text(await self._look(), self._alive(), accept)
                return Response(text, headers={"Content-Type": content_type})
        if (asset := self._assets.get(scope["path"].removeprefix("/"))) is not None:
            content, media_type = asset
            return Response(content, headers={"Cache-Control": _FOR_EVER}, media_type=media_type)
        return Response("There is nothing here.\n", 404, media_type="text/plain")

    async def _look(self) -> Look:
        waiting = asyncio.shield(asyncio.wrap_future(self._looking.ask()))
        try:
            return await asyncio.wait_for(waiting, ANSWER_S)
        except TimeoutError:
            return self._looking.last("the ledger's disk, or a folder, does not answer; what is shown is old")

    def _rendered(self, look: Look, stuck: list[str]) -> str:
        """Return the page of a look; however many look at the same one, it is made once."""
        if self._page is None or self._page[0] is not look or self._page[1] != stuck:
            made = page.render(look, stuck, socket.gethostname(), lambda name: f"/{name}?{self._version}")
            self._page = (look, stuck, made)
        return self._page[2]

    async def _take_turn(self) -> None:
        """Wait so that answers keep apart: who asks without end takes no more than a part of the processor."""
        now_s = time.monotonic()
        self._next_s = min(max(now_s, self._next_s + _APART_S), now_s + _LONGEST_QUEUE_S)
        if self._next_s > now_s:
            await asyncio.sleep(self._next_s - now_s)


def _assets() -> dict[str, tuple[bytes, str]]:
    """Return the page's own files, each with its type; an address with a version in it stands for them for ever."""
    files = resources.files("heifyd.observe")
    made = {f"icon-{level}.svg": (page.icon(level).encode("ascii"), "image/svg+xml") for level in page.LEVELS}
    return {
        "page.css": (files.joinpath("page.css").read_bytes(), "text/css"),
        "page.js": (files.joinpath("page.js").read_bytes(), "text/javascript"),
        **made,
    }


def _json(status: int, content: object) -> Response:
    return Response(json.dumps(content, indent=2) + "\n", status, media_type="application/json")
