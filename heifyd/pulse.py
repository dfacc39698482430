"""Which threads make progress: each says by when it will be back at the latest, and who looks sees who is late."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

STEP_S: Final = 180.0
"""How long any step may take that is no wait of its own: a disk, SQLite's own wait for its file, a DNS look-up."""

LOOK_S: Final = 10.0
"""How often the main thread looks; the heartbeat is as old at most, while all is well."""

Beat = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Late:
    """A thread that is not back by when it said it would be, and `folder`, where it looks after one alone."""

    thread: str
    folder: str | None
    late_s: float


@dataclass(slots=True)
class _Pulse:
    thread: str
    folder: str | None
    back_by_s: float


class Pulses:
    """The pulses of a daemon's threads. Thread-safe; a thread tells of itself alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        self._pulses: dict[int, _Pulse] = {}
        self._lock = threading.Lock()

    def begin(self, thread: str, folder: str | None = None) -> None:
        """Have the calling thread watched from now on."""
        with self._lock:
            self._pulses[threading.get_ident()] = _Pulse(thread, folder, self._clock() + STEP_S)

    def beat(self, wait_s: float = 0.0) -> None:
        """Say that the calling thread is getting on, and that it may wait for up to `wait_s` seconds now.

        A thread that is not watched says nothing by it.
        """
        with self._lock:
            if (own := self._pulses.get(threading.get_ident())) is not None:
                own.back_by_s = self._clock() + wait_s + STEP_S

    def end(self) -> None:
        """Have the calling thread watched no more."""
        with self._lock:
            self._pulses.pop(threading.get_ident(), None)

    def late(self) -> list[Late]:
        """Return the threads that ought to be back by now."""
        with self._lock:
            now_s = self._clock()
            return [
                Late(each.thread, each.folder, now_s - each.back_by_s)
                for each in self._pulses.values()
                if each.back_by_s < now_s
            ]


def unwatched(wait_s: float) -> None:
    """Beat for nobody: of what is used outside of a daemon, too."""


class PatientLock:
    """A lock whose holder may be long about it, but gets on: who waits for it goes on beating."""

    def __init__(self, beat: Beat) -> None:
        self._beat = beat
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._beat(0.0)
        while not self._lock.acquire(timeout=STEP_S / 2):
            self._beat(0.0)

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire_at_once(self) -> bool:
        """Take it if nobody has it, and tell whether; `release` it then."""
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        """Let it go."""
        self._lock.release()
