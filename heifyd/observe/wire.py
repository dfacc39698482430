"""One client's connection, kept from doing harm: uvicorn's HTTP/1.1 protocol with a limit to everything."""

import asyncio
import logging
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS: Final = 64
MOST_HEAD_BYTES: Final = 16 * 1024
REQUEST_S: Final = 20.0
"""From its first byte to its answer's last one a request may take so long."""

IDLE_S: Final = 30
"""So long a connection is kept for its next request."""


class Wire(H11Protocol):
    """One connection. When there are too many, the one that was opened first is closed: a new one always gets in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = logging.getLogger("heifyd.status")  # which tells of faults, and not of what clients do wrong
        self.began_s = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take in a client."""
        super().connection_made(transport)
        self._hurry()
        if len(self.connections) > MOST_CONNECTIONS:
            oldest = min((each for each in self.connections if isinstance(each, Wire)), key=lambda wire: wire.began_s)
            self.connections.discard(oldest)  # which is lost only later: the next one is not to find it again
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take in that the client has gone."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in bytes of a request."""
        self._hurry()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Take in that an answer is written; it may still be on its way to a client that reads slowly."""
        if self._deadline is not None and not self.transport.get_write_buffer_size():
            self._deadline.cancel()
            self._deadline = None
        super().on_response_complete()
        if not self.cycle.response_complete:  # the next request had come along with this one
            self._hurry()

    def _hurry(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self.transport.abort)
