"""The sandbox's server: started in a thread of its own, stopped and joined."""

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import uvicorn

from heifyd.errors import HeifydError
from heifyd.recording import MAX_BYTES
from heifyd.sandbox import options as known
from heifyd.sandbox.app import App
from heifyd.sandbox.counters import Counters, Tally
from heifyd.sandbox.faults import FaultSchedule, PendingFault, parse_fault
from heifyd.sandbox.limits import RateLimit
from heifyd.sandbox.store import Store, Transcription
from heifyd.sandbox.wire import Wire

_BACKLOG = 1024
_GRACE_S = 1.0
_LOOK_S = 1.0


class SandboxError(HeifydError):
    """The sandbox cannot run."""


class Sandbox:
    """A local Heify, API and storage behind one port of this machine; a context manager that runs it in a thread.

    `data_dir` holds all state and is made where it is missing; a sandbox made on it again knows what it knew, and at
    the same port its URLs are still good. `port` 0 takes a free one, which stays the same for every later `start`.
    `host` is loopback unless the caller says otherwise.

    `api_key` is the one key it accepts. `configurations`, `evaluators` and `participants` map ids to tags; by default
    there is one of each (`CONFIGURATION_ID` …). With `accept_any_id` any UUID will do.

    `edition` is what upload URLs sign, `url_lifetime_s` how long they live (whole seconds). `rate_limit` is the
    account's, None for none; `retry_after_s` adds a Retry-After header to its 429. `unstored_status` is the status of
    a transcription whose object has not arrived; with None, /get-transcription answers 404 for it. A stored one is
    PROCESSING for `processing_s`. `latency_s` passes before each answer. An object may have `max_bytes`, and its
    sender may be silent for `body_timeout_s`.

    `faults` are set when the sandbox is made; `heifyd.sandbox.faults` has their grammar. Raises FaultSpecError.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        api_key: str = known.API_KEY,
        configurations: Mapping[str, str] | None = None,
        evaluators: Mapping[str, str] | None = None,
        participants: Mapping[str, str] | None = None,
        accept_any_id: bool = False,
        edition: known.Edition = "current",
        url_lifetime_s: int = 300,
        rate_limit: RateLimit | None = RateLimit(),  # noqa: B008 (frozen: nothing is shared)
        retry_after_s: int | None = None,
        unstored_status: str | None = None,
        processing_s: float = 0.0,
        latency_s: float = 0.0,
        max_bytes: int = MAX_BYTES,
        body_timeout_s: float = 20.0,
        faults: Sequence[str] = (),
    ) -> None:
        if not host:
            raise SandboxError("The sandbox needs a host to listen on: an empty one would open it to every network.")
        options = known.Options(
            api_key=api_key,
            configurations=_ids(configurations, known.CONFIGURATION_ID, known.CONFIGURATION_TAG),
            evaluators=_ids(evaluators, known.EVALUATOR_ID, known.EVALUATOR_TAG),
            participants=_ids(participants, known.PARTICIPANT_ID, known.PARTICIPANT_TAG),
            accept_any_id=accept_any_id,
            edition=edition,
            url_lifetime_s=url_lifetime_s,
            rate_limit=rate_limit,
            retry_after_s=retry_after_s,
            unstored_status=unstored_status,
            processing_s=processing_s,
            latency_s=latency_s,
            max_bytes=max_bytes,
            body_timeout_s=body_timeout_s,
        )
        self._address = (host, port)
        self._schedule = FaultSchedule()
        self._tally = Tally()
        for spec in faults:
            self.fail(spec)
        self._store = Store(data_dir)
        self._app = App(options, self._store, self._schedule, self._tally)
        self._running: _Running | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, and return once requests are answered; raises SandboxError where the address cannot be had."""
        if self._running is not None:
            raise SandboxError("The sandbox runs already.")
        listener = _listen(*self._address)
        self._address = (self._address[0], listener.getsockname()[1])
        self._running = _Running(self._app, listener)
        self._running.start()

    def stop(self) -> None:
        """Stop listening, end what is under way within about a second, and join the thread."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    @property
    def alive(self) -> bool:
        """Whether the sandbox answers."""
        return self._running is not None and self._running.thread.is_alive()

    @property
    def url(self) -> str:
        """The API's base URL, ``http://host:port``; known once the sandbox was started."""
        host, port = self._address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (a client cannot call "anywhere")
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def fail(self, spec: str) -> None:
        """Set a fault; a duration in it counts from now. Raises FaultSpecError."""
        self._schedule.add(parse_fault(spec), time.monotonic())

    def clear_faults(self) -> None:
        """Let everything work again."""
        self._schedule.clear()

    def faults(self) -> list[PendingFault]:
        """Return what is set, in the order it will be met."""
        return self._schedule.pending(time.monotonic())

    def transcriptions(self) -> list[Transcription]:
        """Return every transcription, oldest first."""
        return self._store.all()

    def counters(self) -> Counters:
        """Return what has been answered since this object was made."""
        return self._tally.look()

    def object_path(self, transcription_id: str) -> Path:
        """Return the file that holds a transcription's object; it exists once a PUT was complete."""
        return self._store.object_path(transcription_id)


def serve(sandbox: Sandbox, *, on_ready: Callable[[str], None]) -> None:
    """Run `sandbox` until SIGINT or SIGTERM, from the main thread; `on_ready` is given its URL.

    Raises SandboxError where it cannot listen, or where its thread ended by itself.
    """
    asked_to_stop = threading.Event()
    with _on_signals(asked_to_stop), sandbox:
        on_ready(sandbox.url)
        while not asked_to_stop.wait(_LOOK_S):
            if not sandbox.alive:
                raise SandboxError("The sandbox's server ended by itself.")


@contextlib.contextmanager
def _on_signals(event: threading.Event) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Running:
    """A server in its thread."""

    def __init__(self, app: App, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            http=Wire,
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._listener = listener
        self._server = _Server(config)
        self.thread = threading.Thread(target=self._run, name="heifyd-sandbox")

    def start(self) -> None:
        self.thread.start()
        self._server.ready.wait()
        if not self._server.started:
            self.thread.join()
            raise SandboxError("The sandbox's server did not start.")

    def stop(self) -> None:
        self._server.should_exit = True
        self.thread.join()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        finally:
            self._listener.close()
            self._server.ready.set()


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready and waits for no request that will never end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._abort(only_under_fault=True)
        grace = asyncio.get_running_loop().call_later(_GRACE_S, self._abort)
        try:
            await super().shutdown(sockets)
        finally:
            grace.cancel()

    def _abort(self, *, only_under_fault: bool = False) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Wire) and (connection.under_fault or not only_under_fault):
                connection.transport.abort()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY only where a socket names its protocol, which socket.create_server leaves out:
        # without it every answer that has a body waits 40 ms for a delayed acknowledgement.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> SandboxError:
    return SandboxError(f"The sandbox cannot listen on {host}, port {port}: {error}. Choose another one.")


def _ids(given: Mapping[str, str] | None, usual_id: str, usual_tag: str) -> dict[str, str]:
    return {usual_id: usual_tag} if given is None else {one.lower(): tag for one, tag in given.items()}
