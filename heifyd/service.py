"""The process as its service manager sees it: signals in, what it does and exit codes out."""

import os
import queue
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from enum import Enum, IntEnum
from types import FrameType
from typing import Final

_SEND_S: Final = 5.0
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]+")


class Exit(IntEnum):
    """The exit codes, an interface: see the README."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERNAL = 70
    IN_USE = 75
    CONFIG = 78


class Call(Enum):
    """What the outside asks of a running daemon."""

    STOP = "stop"
    RELOAD = "reload"
    RESCAN = "rescan"
    DIED = "died"
    DAMAGED = "damaged"


_CALLS = {
    signal.SIGTERM: Call.STOP,
    signal.SIGINT: Call.STOP,
    signal.SIGHUP: Call.RELOAD,
    signal.SIGUSR1: Call.RESCAN,
}


class Calls:
    """The daemon's inbox; signal handlers and threads put into it, the main thread takes out."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Call] = queue.SimpleQueue()

    def put(self, call: Call) -> None:
        """Leave a call; safe in a signal handler."""
        self._inbox.put(call)

    def take(self, timeout_s: float) -> Call | None:
        """Wait for the next call, at most `timeout_s` seconds."""
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None


class Manager:
    """The service manager, as sd_notify(3) describes how it is talked to; where there is none, nothing is said."""

    def __init__(self, environ: MutableMapping[str, str], failed: Callable[[str], None]) -> None:
        """Take the manager's variables out of `environ`, so that no child talks in this process's name.

        `failed` is told, once until it works again, why the manager cannot be told anything.
        """
        self._failed = failed
        self._has_failed = False
        where = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us, of_pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._socket: socket.socket | None = None
        self._status = ""
        self.watchdog_s: float | None = None
        """Within how many seconds each sign of life is expected after the last one, None where none is."""
        if not where:
            return
        if where[0] not in "/@":
            failed(f"NOTIFY_SOCKET={where}: it is neither a path nor an abstract socket's name")
            return
        if watchdog_us.isdecimal() and int(watchdog_us) and of_pid in ("", str(os.getpid())):
            self.watchdog_s = int(watchdog_us) / 1e6
        self._address = os.fsencode("\0" + where[1:] if where[0] == "@" else where)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_SEND_S)

    @property
    def is_there(self) -> bool:
        """Whether anybody listens."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """Say that everything is up, at the start and after `reloading`."""
        self._send("READY=1", *self._news(status))

    def reloading(self) -> None:
        """Say that the configuration is being read again; `ready` ends that."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """Say that the process is about to end."""
        self._send("STOPPING=1", *self._news(status))

    def alive(self, status: str | None = None, *, for_s: float | None = None) -> None:
        """Feed the watchdog; say what is being done, where that is news, and, within `for_s`, that it may take longer.

        The latter counts from now, while the service starts, reloads or stops.
        """
        lines = ["WATCHDOG=1"] if self.watchdog_s is not None else []
        lines += self._news(status)
        if for_s is not None:
            lines.append(f"EXTEND_TIMEOUT_USEC={round(for_s * 1e6)}")
        if lines:
            self._send(*lines)

    def _news(self, status: str | None) -> list[str]:
        if status is None or status == self._status:
            return []
        self._status = status
        return [f"STATUS={_UNPRINTABLE.sub(' ', status)}"]

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), self._address)
        except OSError as error:
            if not self._has_failed:
                self._failed(f"it cannot be told what heifyd does: {error.strerror or error}")
            self._has_failed = True
        else:
            self._has_failed = False

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@contextmanager
def for_other_threads() -> Iterator[None]:
    """Let the threads that are started in the block never take the signals that are calls.

    A signal that another thread takes does not wake the main one, which alone runs Python's handlers; which one takes
    it is the kernel's choice (signal(7)). Threads inherit the mask of their maker (pthread_sigmask(3)).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _CALLS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals_to(calls: Calls) -> Iterator[None]:
    """Turn SIGTERM, SIGINT, SIGHUP and SIGUSR1 into calls within the block, and ignore SIGIO.

    The kernel sends SIGIO, which ends a process, to one whose read lease is being broken (fcntl(2)); `probe.writers`
    holds such leases for microseconds.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        calls.put(_CALLS[signal.Signals(number)])

    before = {number: signal.signal(number, handle) for number in _CALLS}
    before[signal.SIGIO] = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
