"""The connection under a request, for faults that HTTP has no words for: uvicorn's HTTP/1.1 protocol, opened a little.

The protocol puts itself into each request's scope, as ``scope["extensions"]["heifyd.wire"]``.
"""

import asyncio
import contextlib
import select
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable
    from uvicorn._types import Scope as UvicornScope

DRIP_BYTES_PER_S: Final = 20_000

_DRIP_BYTES: Final = 4_000
_SMALLEST_BUFFER: Final = 4_096
_LINGER_NOT: Final = struct.pack("ii", 1, 0)


class Wire(H11Protocol):
    """One connection; a request's handler may reset it, drop it or let it hang. Belongs to the event loop's thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._next = self.app
        self.app = self._with_wire
        self.gone = asyncio.Event()
        self.under_fault = False

    async def _with_wire(
        self,
        scope: "UvicornScope",
        receive: "ASGIReceiveCallable",
        send: "ASGISendCallable",
    ) -> None:
        cast("dict[str, Any]", scope)["extensions"] = {"heifyd.wire": self}
        await self._next(scope, receive, send)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is over, for whoever waits for that."""
        super().connection_lost(exc)
        self.gone.set()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn narrows asyncio's `bool | None` to None
        """Let a body that ends too early be answered: the client may have closed its sending side only."""
        if self.cycle is None or not self.cycle.more_body or self.cycle.response_complete:
            return False
        self.cycle.more_body = False
        self.cycle.message_event.set()
        return True

    async def reset(self) -> None:
        """End the connection with a RST, whatever is still unread or unsent (socket(7): SO_LINGER of zero)."""
        self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        await self.drop()

    async def drop(self) -> None:
        """Close the connection without another byte of answer."""
        self.transport.abort()
        await self.gone.wait()

    async def stall(self) -> None:
        """Read nothing and answer nothing until the client closes or the server stops.

        A client that closes with its send buffer still full is not noticed: its FIN waits behind the data.
        """
        self.under_fault = True
        self._read_no_more()
        loop = asyncio.get_running_loop()
        # asyncio sees a close only by reading; epoll(7) reports EPOLLRDHUP without it.
        with select.epoll() as watcher:
            watcher.register(self._socket().fileno(), select.EPOLLRDHUP)
            loop.add_reader(watcher.fileno(), self.transport.abort)
            try:
                await self.gone.wait()
            finally:
                loop.remove_reader(watcher.fileno())

    async def wait(self, seconds: float) -> None:
        """Let time pass, but no longer than the connection lives."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.gone.wait()

    def dripping(self, receive: "Receive") -> "Receive":
        """Return a `receive` that gives the body at `DRIP_BYTES_PER_S`, and reads no faster than that."""
        self.under_fault = True
        self._read_no_more()
        kept = bytearray()
        more = True

        async def slowly() -> "Message":
            nonlocal more
            if more and not kept:
                message = await receive()  # lets the transport read again
                if message["type"] == "http.disconnect":
                    return message
                kept.extend(message.get("body", b""))
                more = message.get("more_body", False)
                self.flow.pause_reading()
            piece = bytes(kept[:_DRIP_BYTES])
            del kept[:_DRIP_BYTES]
            await self.wait(len(piece) / DRIP_BYTES_PER_S)
            if self.gone.is_set():
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": piece, "more_body": more or bool(kept)}

        return slowly

    def _read_no_more(self) -> None:
        # A small buffer makes the pause felt: the kernel would take megabytes in the server's stead.
        self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALLEST_BUFFER)
        self.flow.pause_reading()

    def _socket(self) -> socket.socket:
        return cast("socket.socket", self.transport.get_extra_info("socket"))


def wire_of(scope: "Scope") -> Wire:
    """Return the connection that a request came by."""
    return cast("Wire", scope["extensions"]["heifyd.wire"])
