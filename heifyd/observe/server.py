"""The server: two threads of their own, one that answers and one that reads what there is to answer."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import uvicorn
from uvicorn.server import ServerState

from heifyd.address import Address
from heifyd.ledger import HoldRow
from heifyd.observe.app import App
from heifyd.observe.guard import Guard
from heifyd.observe.listening import BACKLOG, CannotListenError, Listener, bound
from heifyd.observe.look import Looking, Reader, Subject
from heifyd.observe.metrics import Metrics
from heifyd.observe.wire import IDLE_S, MOST_HEAD_BYTES, Wire

__all__ = ["CannotListenError", "Server", "Subject"]

_AT_A_TIME: Final = 16
_STOP_S: Final = 5.0


class Server:
    """Answers at one address; its methods are the main thread's. An error that ends a thread is threading.excepthook's.

    `alive` names the threads that make no progress, `held` gives holds that no ledger can hold.
    """

    def __init__(
        self,
        address: Address,
        token: str | None,
        subject: Subject,
        *,
        alive: Callable[[], Sequence[str]],
        held: Callable[[], Sequence[HoldRow]],
    ) -> None:
        """Take the address; clients that come from now on wait until `start`. Raises CannotListenError."""
        self.metrics = Metrics()
        self.metrics.know(subject.folders)
        self._asked_for = address
        self._listener = bound(address)
        self._looking = Looking(subject, Reader(held).read)
        self._app = App(_guard(self._listener, token), self._looking, self.metrics, alive)
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._state = ServerState()
        self._config = uvicorn.Config(
            self._app,
            http=Wire,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_S,
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        )
        self._server: asyncio.Server | None = None
        self._threads = [
            threading.Thread(target=self._serve, name="status"),
            threading.Thread(target=self._looking.work, name="status-look"),
        ]

    @property
    def address(self) -> Address:
        """Where it listens: the port is the one that was taken where any would do."""
        return self._listener.address

    def start(self) -> None:
        """Answer from now on."""
        logging.getLogger("heifyd.status").setLevel(logging.ERROR)
        for thread in self._threads:
            thread.start()

    def at(self, subject: Subject) -> None:
        """Tell of this heifyd from now on."""
        self.metrics.know(subject.folders)
        self._looking.at(subject)

    def move(self, address: Address, token: str | None) -> bool:
        """Listen there and ask for that token from now on, without a moment in which nobody answers.

        Return whether the address is another one. Raises CannotListenError; then nothing has changed.
        """
        if address == self._asked_for:
            self._app.guard = _guard(self._listener, token)
            return False
        new, old = bound(address), self._listener
        asyncio.run_coroutine_threadsafe(self._listen(new, token), self._loop).result()
        self._asked_for, self._listener = address, new
        old.close()
        return True

    def stop(self) -> bool:
        """End both threads, whoever is connected; return False where one hangs."""
        with suppress(RuntimeError):  # the loop is closed: its thread has ended by itself
            self._loop.call_soon_threadsafe(self._end.set)
        self._looking.stop()
        until_s = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        self._listener.close()
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._answer())

    async def _answer(self) -> None:
        self._config.load()
        await self._listen(self._listener, self._app.guard.token)
        await self._end.wait()
        if self._server is not None:
            self._server.close()
        for wire in list(self._state.connections):
            wire.transport.abort()

    async def _listen(self, listener: Listener, token: str | None) -> None:
        before = self._server

        def wire() -> Wire:
            return Wire(self._config, self._state, {}, self._loop)

        # To asyncio the backlog is how many clients to let in at a time, and then how many may wait for that, too.
        self._server = await self._loop.create_server(wire, sock=listener.socket, backlog=_AT_A_TIME)
        listener.socket.listen(BACKLOG)
        self._app.guard = _guard(listener, token)
        if before is not None:
            before.close()


def _guard(listener: Listener, token: str | None) -> Guard:
    address = listener.address
    return Guard(token, is_loopback=address.is_of_this_machine_alone and not address.is_a_path)
