"""What is shown of a heifyd at a time, read in a thread of its own: only when somebody looks, however many look."""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from heifyd import overview
from heifyd.ledger import HoldRow, Ledger, LedgerError
from heifyd.ledger_history import HOUR_S, Failure, Hour
from heifyd.overview import Overview

HOURS: Final = 24
MOST_FAILURES: Final = 20
LEAST_S: Final = 1.0
"""So often at most is anything read anew."""

_SHARE: Final = 0.05
"""And reading takes this share of the time at most."""

_PAST_S: Final = 60.0
"""Hours that are over change only where a failed recording is brought back: they are read anew this often."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The heifyd that is looked at; `is_running` is False while it starts, or is made anew for a reload."""

    ledger: Path
    folders: tuple[str, ...]
    workers: int
    is_running: bool
    since: float


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at a time (wall clock).

    `overview` is None where the ledger could not be read; `trouble` says why, or why this look is an old one. `holds`
    is all that is held.
    """

    subject: Subject
    at: float
    holds: Sequence[HoldRow] = ()
    overview: Overview | None = None
    hours: Sequence[Hour] = ()
    failures: Sequence[Failure] = ()
    last_done: float | None = None
    free_bytes: int | None = None
    trouble: str | None = None


@dataclass(slots=True)
class Reader:
    """Reads what there is to be seen; `held` gives the holds that the ledger itself cannot hold, being their cause."""

    held: Callable[[], Sequence[HoldRow]]
    _past: tuple[tuple[object, ...], float, list[Hour]] = field(default=((), 0.0, []))

    def read(self, subject: Subject) -> Look:
        """Look at a heifyd now. What cannot be read is told of, and not raised."""
        if not subject.is_running:  # its ledger is in nobody's hands: to ask whether it is takes its lock for a moment
            look = Look(subject, time.time(), self.held())
        else:
            try:
                look = overview.seen(subject.ledger, lambda ledger: self._of(ledger, subject))
            except (LedgerError, OSError) as error:
                look = Look(subject, time.time(), self.held(), trouble=str(error))
        return replace(look, free_bytes=_free_bytes(subject.ledger.parent))

    def _of(self, ledger: Ledger, subject: Subject) -> Look:
        now = time.time()
        seen = overview.of(ledger, subject.folders)
        holds = {(hold.scope, hold.owner): hold for hold in (*seen.holds, *self.held())}
        folders = [each.folder for each in seen.folders]
        return Look(
            subject,
            now,
            list(holds.values()),
            seen,
            self._hours(ledger, folders, int(now) // HOUR_S * HOUR_S),
            ledger.history.last_failures(folders, MOST_FAILURES),
            ledger.history.last_done(folders),
        )

    def _hours(self, ledger: Ledger, folders: list[str], this_hour: int) -> list[Hour]:
        about = (ledger.path, this_hour, *folders)
        if self._past[0] != about or time.monotonic() - self._past[1] >= _PAST_S:
            past = ledger.history.by_hour(folders, this_hour - (HOURS - 1) * HOUR_S, this_hour)
            self._past = (about, time.monotonic(), past)
        return [*self._past[2], *ledger.history.by_hour(folders, this_hour, this_hour + HOUR_S)]


class Looking:
    """Hands out looks; one thread runs `work` until `stop`. Thread-safe."""

    def __init__(self, subject: Subject, read: Callable[[Subject], Look]) -> None:
        self._subject = subject
        self._read = read
        self._asked: queue.SimpleQueue[Future[Look] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._latest: Future[Look] | None = None
        self._good_until_s = 0.0
        self._last = Look(subject, subject.since, trouble="nothing has been read yet")

    def at(self, subject: Subject) -> None:
        """Look at this heifyd from now on."""
        with self._lock:
            self._subject = subject
            self._good_until_s = 0.0

    def ask(self) -> Future[Look]:
        """Return a look of now, or the last one where that is recent, as soon as there is one."""
        with self._lock:
            is_recent = time.monotonic() < self._good_until_s
            if self._latest is None or (self._latest.done() and not is_recent):
                self._latest = Future()
                self._latest.set_running_or_notify_cancel()
                self._asked.put(self._latest)
            return self._latest

    def last(self, trouble: str) -> Look:
        """Return the last look, with why there is no later one."""
        return replace(self._last, trouble=trouble)

    def work(self) -> None:
        """Look whenever that is asked for, until `stop`."""
        while (future := self._asked.get()) is not None:
            began_s = time.monotonic()
            with self._lock:
                subject = self._subject
            self._last = look = self._read(subject)
            took_s = time.monotonic() - began_s
            with self._lock:
                if subject is self._subject:
                    self._good_until_s = time.monotonic() + max(LEAST_S, took_s / _SHARE)
            future.set_result(look)

    def stop(self) -> None:
        """Let `work` end, once it has come back from what it reads."""
        self._asked.put(None)


def _free_bytes(directory: Path) -> int | None:
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
