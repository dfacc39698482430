"""A small Heify that notes when the bytes of each PUT arrive; the same for both rivals."""

import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, Self

from tests.bench.report import BenchError
from tests.bench.server import answer

_MOST_BYTES: Final = 256 * 1024
_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


class Listener:
    """One thread a connection, on loopback.

    `arrived` is called with the time (CLOCK_MONOTONIC, ns) and the number of bytes whenever some of a PUT have been
    received; `buffer_bytes` is how large the kernel's own buffer for that may be, instead of what the kernel likes.
    """

    def __init__(
        self, arrived: Callable[[int, int], None] = lambda _now_ns, _bytes: None, buffer_bytes: int | None = None
    ) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        if buffer_bytes is not None:
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._note = arrived
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="listener")]

    def next_put_ns(self, limit_s: float = 30.0) -> int:
        """Wait for the next PUT, and return when its first byte was there (CLOCK_MONOTONIC)."""
        try:
            return self._arrived.get(timeout=limit_s)
        except queue.Empty:
            raise BenchError(f"no PUT came within {limit_s:g} s") from None

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        with self._lock:
            for connection in self._connections:
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        self._server.close()

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return  # it is over
            number += 1
            with self._lock:
                self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection, number), name="connection")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        requests = 0
        with connection:
            try:
                while first := connection.recv(_MOST_BYTES):
                    now_ns = time.monotonic_ns()
                    requests += 1
                    self._answer(connection, first, f"{number}-{requests}", now_ns)
            except OSError:
                pass
            with self._lock:
                self._connections.discard(connection)

    def _answer(self, connection: socket.socket, first: bytes, transcription_id: str, now_ns: int) -> None:
        is_put = first.startswith(b"PUT")
        if is_put:
            self._arrived.put(now_ns)
        request = bytearray(first)
        while b"\r\n\r\n" not in request:
            request += _received(connection)
        head, _, body = bytes(request).partition(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if headers.get(b"expect") == b"100-continue":  # curl asks before it sends any file
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        missing = int(headers.get(b"content-length", b"0")) - len(body)
        if is_put:
            self._note(now_ns, len(body))
        while missing > 0:
            received = len(_received(connection))
            missing -= received
            if is_put:
                self._note(time.monotonic_ns(), received)
        said = b"" if is_put else answer(self.url, transcription_id).encode("ascii")
        connection.sendall(_OK % (len(said), said))


def _received(connection: socket.socket) -> bytes:
    received = connection.recv(_MOST_BYTES)
    if not received:
        raise ConnectionResetError
    return received
