"""Whose a ledger is: the lock that keeps it for one daemon, and that daemon's heartbeat."""

import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from heifyd.ledger_errors import LedgerInUseError, meaning

T = TypeVar("T")

_ASKING_S: Final = 0.5
"""Who only asks whether a ledger is in use has its lock for a moment; a daemon that has it keeps it."""


def lock(path: Path) -> int:
    """Keep every other daemon out of the ledger at `path` until the returned descriptor is closed.

    Raises LedgerInUseError, or another LedgerError.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise meaning(path, error) from None
    until_s = time.monotonic() + _ASKING_S
    while _is_locked(fd):
        if time.monotonic() > until_s:
            os.close(fd)
            raise LedgerInUseError(
                f"{path}: another heifyd is using this ledger; stop it, or give this one its own `ledger:`"
            )
        time.sleep(_ASKING_S / 10)
    return fd


# A daemon's heartbeat is a lock, too, of one byte of its lock file: that of the second in which it was last well. So it
# takes no disk, which may be full, read-only or asleep, and ends with the daemon.

_LOCKED_BYTES: Final = struct.Struct("hhqqi0q")
"""struct flock of fcntl(2): type, whence, start, length, process."""


def beat(lock_fd: int, now_s: float) -> None:
    """Leave the heartbeat of `now_s` (seconds, CLOCK_BOOTTIME), instead of earlier ones. Raises OSError."""
    second = int(now_s)
    for what, start, length in ((fcntl.F_WRLCK, second, 1), (fcntl.F_UNLCK, 0, second)):
        if length:
            fcntl.fcntl(lock_fd, fcntl.F_OFD_SETLK, _LOCKED_BYTES.pack(what, os.SEEK_SET, start, length, 0))


def last_beat_s(path: Path) -> int | None:
    """Return the second of the daemon's heartbeat (CLOCK_BOOTTIME), None where there is none. Raises LedgerError."""
    asked = _LOCKED_BYTES.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    answer = _of_lock_file(path, lambda fd: fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    found, _, start, _, _ = _LOCKED_BYTES.unpack(answer or asked)
    return start if answer and found != fcntl.F_UNLCK else None


def is_in_use(path: Path) -> bool:
    """Tell whether a daemon has the ledger at `path` locked. Raises LedgerError."""
    return bool(_of_lock_file(path, _is_locked))


def _of_lock_file(path: Path, ask: Callable[[int], T]) -> T | None:
    """Return what `ask` finds out of a ledger's lock file, None where there is none."""
    try:
        fd = os.open(f"{path}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise meaning(path, error) from None
    try:
        return ask(fd)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Lock a lock file, and tell whether another process has it locked instead."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
