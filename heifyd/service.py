"""The process as its service manager sees it: signals in, exit codes out."""

import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, IntEnum
from types import FrameType


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
