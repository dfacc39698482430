"""The Heify API and its storage: one method a call, every failure a `FaultError` that says whose it is."""

import errno
import json
import os
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from heifyd import faults
from heifyd.answers import Arrival, api_message, arrival, retry_after_s, storage_error
from heifyd.errors import HeifydError
from heifyd.faults import FaultError
from heifyd.hiding import secrets_of, without
from heifyd.pace import Bandwidth, next_piece_bytes
from heifyd.pulse import Beat, unwatched
from heifyd.recording import Ids, Ticket
from heifyd.urls import must_be_safe, parsed, signed_headers, url_lifetime_s

PIECE_BYTES: Final = 2 * 1024 * 1024
"""The largest piece of a PUT's body; httpx's own 64 KiB cost several times the CPU a byte."""

FIRST_PIECE_BYTES: Final = 256 * 1024
"""The first piece, from which it is seen how fast the link is."""

MOST_ANSWER_BYTES: Final = 1024 * 1024
MOST_ANSWER_S: Final = 60.0
_SLOWEST_BYTES_PER_S: Final = 10_000.0
_LONGEST_ANSWER_S: Final = 900.0
_LONGEST_CONNECT_S: Final = 120.0
"""What connecting to a host of many addresses may take, each of which is given its time."""

_LEAST_BYTES_PER_S: Final = 1000.0
"""A link slower than this may be taken for a thread that hangs."""

_MOST_SHOWN_CHARS: Final = 500
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
"""What JSON can say and neither UTF-8 nor a ledger can hold."""

TIMEOUT: Final = httpx.Timeout(None, connect=10.0, write=60.0, read=60.0)
"""Seconds. `write` is for one send in which not a byte moves: a slow link never meets it, a dead one always."""


_Answer: TypeAlias = tuple[int, httpx.Headers, bytes]


class Listener(Protocol):
    """Who is told of every request. It is called by many threads, and must neither wait nor raise."""

    def sent(self, size_bytes: int) -> None:
        """Take in that so many bytes of a recording are on their way."""

    def answered(self, endpoint: str, outcome: str) -> None:
        """Take in that a request is over: by the HTTP status of its answer, or by the reason that there was none."""


class TruncatedError(HeifydError):
    """The file became shorter while it was sent; the storage got no complete body and keeps nothing."""


class UrlExpiredError(FaultError):
    """The upload URL is no longer good; ask for another."""


@dataclass(frozen=True, slots=True)
class Status:
    """What /get-transcription says: the API's own word, and what it means for the upload."""

    said: str
    arrival: Arrival


class Heify:
    """One account's client: one connection pool for all threads. The key goes to `base_url` and nowhere else."""

    def __init__(
        self,
        base_url: str,
        key: Callable[[], str],
        *,
        connections: int,
        bandwidth: Bandwidth | None = None,
        beat: Beat = unwatched,
        listener: Listener | None = None,
    ) -> None:
        """`key` is asked before each request, so that a key that was replaced is used at once."""
        self._beat = beat
        self._listener = listener
        self._bandwidth = bandwidth or Bandwidth(None)
        self._is_cut_off = threading.Event()
        self._base_url = base_url
        self._key = key
        self._last_key = ""
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._sockets_lock = threading.Lock()
        trusted = httpx.create_ssl_context()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=2 * connections, keepalive_expiry=60.0)
        proxies = getproxies()
        proxy = proxies.get("https", proxies.get("all"))
        self._direct: httpx.BaseTransport = httpx.HTTPTransport(verify=trusted, limits=limits)
        self._proxied: httpx.BaseTransport = (
            httpx.HTTPTransport(verify=trusted, limits=limits, proxy=proxy) if proxy else self._direct
        )

    def close(self) -> None:
        """Close all connections."""
        self._direct.close()
        self._proxied.close()

    def cut_off(self) -> None:
        """Cut every connection, so that a thread that is waiting for the network comes back at once with an error."""
        self._is_cut_off.set()
        with self._sockets_lock:
            sockets = list(self._sockets)
        for each in sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it was not connected any more

    def request_upload(self, ids: Ids, name: str) -> Ticket:
        """Ask for the URL of one upload. Raises FaultError."""
        body = {"configuration_id": ids.configuration_id, "name": name}
        if ids.evaluator_id:
            body["evaluator_id"] = ids.evaluator_id
        if ids.participant_id:
            body["participant_id"] = ids.participant_id
        data = self._call("/request-upload-url", body)
        arrived_s = boot_clock_s()
        try:
            given = Ids(
                _text(data, "configuration_id"),
                _text_or_none(data, "evaluator_id"),
                _text_or_none(data, "participant_id"),
            )
            url = _text(data, "upload_url")
            transcription_id = _text(data, "transcription_id")
            name = _text_or_none(data, "name") or name
        except (KeyError, TypeError) as error:
            raise _unintelligible("/request-upload-url", f"there is no usable {error.args[0]} in its answer") from None
        must_be_safe(url, self._base_url)
        ticket = Ticket(transcription_id, url, given, name, arrived_s + url_lifetime_s(url), boot_id())
        signed_headers(ticket)  # a URL that cannot be used is found out before it is kept
        return ticket

    def put(
        self, ticket: Ticket, fd: int, size_bytes: int, content_type: str, sent: Callable[[int], None] = lambda _: None
    ) -> None:
        """Send the `size_bytes` bytes of the file behind `fd` to a ticket's URL.

        `sent` is called with the length of each piece that is on its way. Raises UrlExpiredError, TruncatedError
        when the file ends early, else FaultError.
        """
        headers = signed_headers(ticket)
        headers["Content-Type"] = content_type
        headers["Content-Length"] = str(size_bytes)
        body = self._pieces(fd, size_bytes, sent)
        read_s = _answer_s(size_bytes)
        status, answer_headers, answer = self._told_of(
            "put", lambda: self._send("PUT", ticket.url, headers, body, "the storage", read_s=read_s)
        )
        if status == httpx.codes.OK:
            return
        code, message = (self._shown(said, ticket.url) for said in storage_error(answer))
        fault = faults.of_storage(status, code, message, retry_after_s(answer_headers.get("Retry-After", "")))
        if code in ("ExpiredToken", "RequestExpired") or (code == "AccessDenied" and "expired" in message.lower()):
            raise UrlExpiredError(fault)
        raise FaultError(fault)

    def transcription(self, transcription_id: str) -> Status:
        """Ask whether an upload has arrived. Raises FaultError where the API gives no answer to the question."""
        try:
            data = self._call("/get-transcription", {"transcription_id": transcription_id})
        except FaultError as error:
            if error.fault.owner is faults.Owner.MAPPING:  # 404, or 400 saying so: Heify knows of no such transcription
                return Status("not found", Arrival.NOT_ARRIVED)
            raise
        said = data.get("status")
        said = said if isinstance(said, str) else ""
        return Status(self._shown(said), arrival(said, data.get("duration")))

    def tags(self, what: str) -> dict[str, str]:
        """List the account's `configurations`, `evaluators` or `participants`: ids and tags. Raises FaultError."""
        key = f"{what.removesuffix('s')}_id"
        items = self._call(f"/list-{what}", {}).get("items")
        if not isinstance(items, list):
            raise _unintelligible(f"/list-{what}", "there is no list of items in its answer")
        return {
            self._shown(str(item[key]).lower()): self._shown(str(item.get("tag") or ""))
            for item in items
            if isinstance(item, dict) and key in item
        }

    def _call(self, path: str, body: dict[str, str]) -> dict[str, Any]:
        self._last_key = self._key()
        headers = {"Content-Type": "application/json", "x-api-key": self._last_key}
        content = json.dumps(body).encode()
        status, answer_headers, answer = self._told_of(
            path.lstrip("/"), lambda: self._send("POST", self._base_url + path, headers, content, "Heify")
        )
        if status != httpx.codes.OK:
            message = self._shown(api_message(answer))
            raise FaultError(faults.of_api(status, message, retry_after_s(answer_headers.get("Retry-After", ""))))
        try:
            data = json.loads(answer)["data"]
        except (ValueError, KeyError, TypeError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise _unintelligible(path, "its answer is not the JSON that Heify documents")
        return data

    def _pieces(self, fd: int, size_bytes: int, sent: Callable[[int], None]) -> Iterator[bytes]:
        at, most_bytes = 0, FIRST_PIECE_BYTES
        while at < size_bytes:
            self._beat(0.0)
            piece = os.pread(fd, self._bandwidth.take(min(most_bytes, size_bytes - at), self._is_cut_off), at)
            if not piece:
                raise TruncatedError(f"it ended after {at:,} of {size_bytes:,} bytes while it was sent")
            self._beat((TIMEOUT.write or 0.0) + len(piece) / _LEAST_BYTES_PER_S)
            began_s = time.monotonic()
            yield piece
            at += len(piece)
            sent(len(piece))
            if self._listener is not None:
                self._listener.sent(len(piece))
            most_bytes = next_piece_bytes(most_bytes, time.monotonic() - began_s, PIECE_BYTES)
        self._beat(_exchange_s(_answer_s(size_bytes)))

    def _told_of(self, endpoint: str, send: Callable[[], _Answer]) -> _Answer:
        """Make one request, and tell the listener how it ended."""
        outcome = "cut_short"  # which the file is, where it is no fault that ends the request
        try:
            answer = send()
            outcome = str(answer[0])
        except FaultError as error:
            outcome = error.fault.reason
            raise
        finally:
            if self._listener is not None:
                self._listener.answered(endpoint, outcome)
        return answer

    def _shown(self, said: str, url: str = "") -> str:
        """Return what a server said as it may be shown and kept: without what is secret, and not longer than a line."""
        encodable = said.encode("utf-8", "replace").decode("utf-8")
        return without(encodable, {*secrets_of(url), self._last_key})[:_MOST_SHOWN_CHARS]

    def _send(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | Iterator[bytes],
        who: str,
        *,
        read_s: float | None = None,
    ) -> _Answer:
        """Make one request; return status, headers and body, of which at most `MOST_ANSWER_BYTES` are read.

        `read_s` is how long an answer may be in coming, instead of `TIMEOUT`'s own. It goes to httpx's transport, past
        its client, which follows redirects, keeps cookies and adds headers; none of that is wanted here.
        """
        read_s = read_s or TIMEOUT.read or 0.0
        extensions = {"timeout": {**TIMEOUT.as_dict(), "read": read_s}, "trace": self._trace}
        self._beat(_LONGEST_CONNECT_S + _exchange_s(read_s))
        try:
            target = parsed(url)
            headers = {"User-Agent": "heifyd", **headers}
            request = httpx.Request(method, target, headers=headers, content=body, extensions=extensions)
            response = self._transport_to(target).handle_request(request)
            try:
                return response.status_code, response.headers, _limited(response, target.host)
            finally:
                response.close()
        except httpx.ConnectTimeout:
            raise FaultError(
                faults.of_network(
                    "connect_timeout", f"no connection to {who} ({_host(url)}) within {TIMEOUT.connect:g} s"
                )
            ) from None
        except httpx.WriteTimeout:
            raise FaultError(
                faults.of_network("write_stalled", f"{who} took not a byte for {TIMEOUT.write:g} s")
            ) from None
        except httpx.ReadTimeout as error:
            if errno.ETIMEDOUT in _errnos(error):
                detail = f"{who} took not a byte for {_untaken_s():g} s"
                raise FaultError(faults.of_network("write_stalled", detail)) from None
            raise FaultError(faults.of_network("read_timeout", f"{who} gave no answer for {read_s:.0f} s")) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            said = self._shown(str(error) or type(error).__name__, url)
            if isinstance(error, httpx.ConnectError):
                detail = f"no connection to {who} ({_host(url)}): {said}"
                raise FaultError(faults.of_network(_connect_reason(error), detail)) from None
            raise FaultError(faults.of_network("connection_lost", f"the connection to {who} broke: {said}")) from None

    def _transport_to(self, target: httpx.URL) -> httpx.BaseTransport:
        """Choose between the environment's proxy and the direct way; plain http is for loopback, past any proxy."""
        is_direct = target.scheme != "https" or self._proxied is self._direct or proxy_bypass(target.host)
        return self._direct if is_direct else self._proxied

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Keep hold of every socket that httpcore opens, weakly, for `cut_off`; let none hang on a dead link.

        What the kernel was given to send it may keep for long: TCP_USER_TIMEOUT (tcp(7)) ends that where the other side
        takes none of it for twice as long as a send may stall (it may take it in large portions).
        """
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            opened = info["return_value"].get_extra_info("socket")
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(_untaken_s() * 1000))
            with self._sockets_lock:
                self._sockets.add(opened)


def _untaken_s() -> float:
    return 2.0 * (TIMEOUT.write or 0.0)


def _answer_s(size_bytes: int) -> float:
    """Return for how many seconds the answer to a PUT is waited for.

    When the last piece has been handed to the kernel, much of it is still on its way: in the buffers of both sides and
    of what lies between. They are given the time that a slow link takes to drain them.
    """
    return min((TIMEOUT.read or 0.0) + size_bytes / _SLOWEST_BYTES_PER_S, _LONGEST_ANSWER_S)


def _exchange_s(read_s: float) -> float:
    """Return what an answer may take as a whole that may be `read_s` seconds in coming, and again between its parts."""
    return 2 * read_s + MOST_ANSWER_S


def boot_clock_s() -> float:
    """Return the seconds since this machine's boot, which no change of the date moves (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def boot_id() -> str:
    """Return the name of this machine's present boot (random(4)). Raises OSError."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _limited(response: httpx.Response, host: str) -> bytes:
    """Read an answer, but no more of it and for no longer than any answer of Heify's needs."""
    body = bytearray()
    until_s = time.monotonic() + MOST_ANSWER_S
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MOST_ANSWER_BYTES or time.monotonic() > until_s:
            raise FaultError(faults.of_network("endless_answer", f"an answer of {host} did not end within reason"))
    return bytes(body)


def _host(url: str) -> str:
    return urlsplit(url).hostname or "?"


def _connect_reason(error: httpx.ConnectError) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return "tls"
        if isinstance(cause, socket.gaierror):
            return "dns"
    return "connect"


def _errnos(error: BaseException) -> set[int | None]:
    return {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _unintelligible(path: str, why: str) -> FaultError:
    return FaultError(faults.of_network("unintelligible", f"{path}: {why}"))


def _text(data: dict[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str) or not value or _LONE_SURROGATE.search(value):
        raise TypeError(key)
    return value


def _text_or_none(data: dict[str, Any], key: str) -> str | None:
    return _text(data, key) if data.get(key) else None
