"""The way of one request: which side it is for, which fault it meets, what is answered, and that it is counted."""

import time
from typing import TYPE_CHECKING, Any

from starlette.responses import Response, StreamingResponse

from heifyd.sandbox import api, control, storage
from heifyd.sandbox.answers import heify_error
from heifyd.sandbox.counters import Tally
from heifyd.sandbox.faults import Endpoint, Fault, FaultSchedule, Kind
from heifyd.sandbox.options import Options
from heifyd.sandbox.staged import staged_answer
from heifyd.sandbox.store import Store
from heifyd.sandbox.wire import Wire, wire_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_MAX_JSON_BYTES = 1_000_000


class App:
    """The sandbox as an ASGI application; it must be served by `heifyd.sandbox.wire.Wire`."""

    def __init__(self, options: Options, store: Store, schedule: FaultSchedule, tally: Tally) -> None:
        self._latency_s = options.latency_s
        self._schedule = schedule
        self._tally = tally
        self._api = api.Api(options, store)
        self._storage = storage.Storage(options, store, tally)
        self._control = control.Control(store, schedule, tally)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request (ASGI 3, ``http`` only) and count it."""
        path: str = scope["path"]
        if path.startswith(control.PREFIX):
            body = await _json_body(receive)
            response = (
                heify_error(413, "Too large") if body is None else self._control.call(scope["method"], path, body)
            )
            await response(scope, receive, send)
            return
        outcome = await self._answer(scope, receive, send)
        self._tally.count("put" if path.startswith(storage.PREFIX) else path.lstrip("/"), outcome)

    async def _answer(self, scope: "Scope", receive: "Receive", send: "Send") -> str:
        """Answer one request and return its outcome, as `heifyd.sandbox.counters` names outcomes."""
        endpoint = _endpoint(scope)
        fault = None if endpoint is None else self._schedule.take(endpoint, time.monotonic())
        wire = wire_of(scope)
        if fault is not None and fault.kind in (Kind.STALL, Kind.RESET, Kind.CUT_BODY):
            await _break(wire, receive, fault)
            return str(fault.kind)
        if fault is not None and fault.kind is Kind.DRIP:
            receive = wire.dripping(receive)
        response = staged_answer(fault, endpoint) if fault is not None and endpoint is not None else None
        if response is None:
            response = await self._true_answer(scope, receive, fault)
        if response is None:
            return "gone"
        if self._latency_s:
            await wire.wait(self._latency_s)
        if fault is not None and fault.kind is Kind.CUT_ANSWER:
            await wire.drop()
            return str(fault.kind)
        # A staged stream has no end of its own: the server must not wait for it when it stops.
        wire.under_fault = isinstance(response, StreamingResponse)
        await response(scope, receive, send)
        return str(response.status_code)

    async def _true_answer(self, scope: "Scope", receive: "Receive", fault: Fault | None) -> Response | None:
        path: str = scope["path"]
        if path.startswith(storage.PREFIX):
            return await self._storage.put(scope, receive)
        if path not in api.ENDPOINTS:
            return heify_error(404, "The requested endpoint does not exist")
        if scope["method"] != "POST":
            return heify_error(405, "Method not allowed", {"allow": "POST"})
        body = await _json_body(receive)
        if body is None:
            return heify_error(413, "The request's body is too large")
        headers = dict(scope["headers"])
        return self._api.call(path, headers, body, origin=_origin(scope, headers), fault=fault)


def _endpoint(scope: "Scope") -> Endpoint | None:
    path: str = scope["path"]
    if path.startswith(storage.PREFIX):
        return Endpoint.PUT
    return api.ENDPOINTS.get(path)


def _origin(scope: "Scope", headers: dict[bytes, bytes]) -> str:
    """Return where the client reached the sandbox: an upload URL must be good from there, too."""
    host = headers.get(b"host", b"").decode("latin-1")
    if not host:
        address: tuple[Any, ...] = scope["server"]
        host = f"{address[0]}:{address[1]}"
    return f"http://{host}"


async def _json_body(receive: "Receive") -> bytes | None:
    """Return a request's whole body, or None where it is larger than any such call has reason to be."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MAX_JSON_BYTES:
            return None
    return body


async def _break(wire: Wire, receive: "Receive", fault: Fault) -> None:
    if fault.kind is Kind.STALL:
        await wire.stall()
        return
    if fault.kind is Kind.CUT_BODY:
        await receive()
    await wire.reset()
