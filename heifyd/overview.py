"""What is to be known of a heifyd at a glance, whether or not it runs: its ledger's counts and holds."""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from heifyd import faults, ledger_lock, mounts, pulse
from heifyd.faults import Owner
from heifyd.ledger import FolderCounts, HoldRow, Ledger, LedgerUnwritableError, UploadRow

T = TypeVar("T")

_LEAST_ROOM_BYTES: Final = 32 * 1024
_ANSWER_S: Final = 2.0
_STALE_LOOKS: Final = 3


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """One folder's line; `configured` is False where only the ledger still knows it."""

    folder: str
    configured: bool
    counts: FolderCounts


@dataclass(frozen=True, slots=True)
class Overview:
    """All that is to be known of one heifyd at a time; one that is `running` and not `alive` hangs."""

    running: bool
    alive: bool
    ledger: str
    holds: Sequence[HoldRow]
    folders: Sequence[FolderStatus]
    uploads: Sequence[UploadRow]
    """Those that have taken longer than about a second, the largest first; how far they are is known to 2 s."""


def seen(path: Path, look: Callable[[Ledger], T]) -> T:
    """Return what `look` sees of the ledger at `path`, also where its disk is full or read-only. Raises LedgerError."""
    try:
        with closing(Ledger(path, create=False)) as ledger:
            return look(ledger)
    except LedgerUnwritableError:
        with closing(Ledger(path, create=False, frozen=True)) as ledger:
            return look(ledger)


def of(ledger: Ledger, configured: Sequence[str]) -> Overview:
    """Gather it out of a ledger and from what can be seen from here; the day begins at local midnight."""
    midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    known = [*configured, *(folder for folder in ledger.folders() if folder not in configured)]
    health = _health(ledger.path, configured, ledger.holds)
    running = health.running
    folders = [FolderStatus(folder, folder in configured, ledger.counts(folder, midnight)) for folder in known]
    if not running:
        folders = [replace(each, counts=_at_rest(each.counts)) for each in folders]
    uploads = ledger.uploads() if running else []
    return Overview(running, health.alive, os.fspath(ledger.path), health.holds, folders, uploads)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a daemon runs, whether all of its threads get on, and what is held.

    `beat_age_s` is for how many seconds it has not said that they do, None where it never did.
    """

    running: bool
    alive: bool
    beat_age_s: float | None
    holds: Sequence[HoldRow]


def health_of(ledger: Path, configured: Sequence[str]) -> Health:
    """Tell how the daemon of a ledger is. Raises LedgerError."""
    return _health(ledger, configured, lambda: seen(ledger, Ledger.holds))


def _health(ledger: Path, configured: Sequence[str], noted: Callable[[], Sequence[HoldRow]]) -> Health:
    """Tell how a daemon is; `noted` gives the holds that its ledger has, and is asked only where one runs."""
    running = ledger_lock.is_in_use(ledger)
    beat_s = ledger_lock.last_beat_s(ledger) if running else None
    age_s = None if beat_s is None else max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - beat_s)
    alive = age_s is not None and age_s < _STALE_LOOKS * pulse.LOOK_S
    holds = {(hold.scope, hold.owner): hold for hold in (noted() if running else ())}
    for hold in _seen_from_here(ledger, [each for each in configured if (each, Owner.FOLDER) not in holds]):
        holds.setdefault((hold.scope, hold.owner), hold)
    return Health(running, alive, age_s, list(holds.values()))


def _at_rest(counts: FolderCounts) -> FolderCounts:
    """Count what was being uploaded when heifyd was killed as waiting, as which the next start takes it."""
    return replace(counts, waiting=counts.waiting + counts.uploading, uploading=0)


def _seen_from_here(ledger: Path, configured: Sequence[str]) -> Iterator[HoldRow]:
    """Give what stops the daemon that it cannot write into the ledger, or that is so whether it runs or not."""
    found = []
    if (wrong := _unwritable(ledger.parent)) is not None:
        found.append(("", faults.of_ledger(f"{ledger}: the ledger cannot be written: {wrong}")))
    silent = mounts.silent(configured, _ANSWER_S)
    for folder in configured:
        if folder in silent:
            found.append((folder, faults.of_silence(f"{folder} does not answer")))
            continue
        try:
            with os.scandir(folder):
                pass
        except OSError as error:
            detail = f"{folder} cannot be opened: {error.strerror}"
            found.append((folder, faults.of_folder("folder_missing", detail)))
    for scope, fault in found:
        yield HoldRow(scope, fault.owner, fault.reason, fault.detail, fault.advice, None)


def _unwritable(directory: Path) -> str | None:
    """Tell why nothing can be written in a directory, None where something can, by writing what nobody ever sees."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        lacks_it = error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EACCES, errno.EPERM)
        return None if lacks_it else error.strerror
    try:
        os.posix_fallocate(fd, 0, _LEAST_ROOM_BYTES)
    except OSError as error:
        return None if error.errno == errno.EOPNOTSUPP else error.strerror
    finally:
        os.close(fd)
    return None


def as_dict(overview: Overview) -> dict[str, Any]:
    """Turn it into what ``heifyd status --json`` prints; times are seconds since 1970, ages seconds."""
    now = time.time()
    return {
        "running": overview.running,
        "alive": overview.alive,
        "ledger": overview.ledger,
        "holds": [asdict(hold) | {"scope": hold.scope or "everything"} for hold in overview.holds],
        "folders": [
            {
                "folder": each.folder,
                "configured": each.configured,
                "waiting": each.counts.waiting,
                "uploading": each.counts.uploading,
                "done_today": each.counts.done_since,
                "failed": each.counts.failed,
                "oldest_s": None
                if each.counts.oldest_settled_at is None
                else round(now - each.counts.oldest_settled_at, 1),
            }
            for each in overview.folders
        ],
        "uploads": [asdict(upload) for upload in overview.uploads],
    }
