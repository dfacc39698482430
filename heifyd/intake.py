"""The first journey: from a path that may have changed to a finished recording in the ledger."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from heifyd import probe, tree, watch
from heifyd.ledger import Added, Ledger, LedgerUnwritableError
from heifyd.log import Log
from heifyd.names import NamedFolder, Names
from heifyd.probe import Check
from heifyd.pulse import Beat
from heifyd.recording import HEAD_BYTES, Identity, Stamp, riff_surplus
from heifyd.settle import Rule, Settling
from heifyd.watch import Entry, Hints, Observing, Plan, Walk

_BUSY_S: Final = 1.0
_WATCHING_S: Final = 1800.0
"""What it may take to watch a folder with all of its sub-folders, one by one."""

_MOST_REMEMBERED: Final = 1000
_UNFINISHED_WAV: Final = 10.0
"""For so many times `settle_seconds` a WAV is waited for whose header and size disagree, where writers are not seen."""

_SHORTAGES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""Errors that are this process's or the machine's, and say nothing of the file or folder that they came with."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a folder is looked after: how it is watched, when its files are quiet, how often it is scanned (seconds).

    `poll_seconds` is how often where its events cannot be had.
    """

    plan: Plan
    rule: Rule
    rescan_seconds: float
    poll_seconds: float


@dataclass(frozen=True, slots=True)
class _Finished:
    """A finished recording; `detail` says what is odd about it, None where nothing is."""

    identity: Identity
    detail: str | None


class Intake:
    """One folder's intake; one thread runs `work` until `stop`."""

    def __init__(
        self,
        folder: NamedFolder,
        manner_of: Callable[[], Manner],
        ledger: Ledger,
        observing: Observing,
        log: Log,
        beat: Beat,
    ) -> None:
        """`manner_of` is asked each time that the folder is another directory than before, as when it was mounted.

        Nothing of the folder is looked at here: it may be on a share that does not answer.
        """
        self._folder = folder
        self._manner_of = manner_of
        self._manner: Manner
        self._settling: Settling
        self._beat = beat
        self._ledger = ledger
        self._observing = observing
        self._log = log.bind(folder=os.fspath(folder.path))
        self._name = os.fspath(folder.path)
        self._names = Names(folder)
        self._stopping = threading.Event()
        self._told: set[tuple[str, str]] = set()
        self._root: tuple[int, int] | None = None
        self._scan: Iterator[list[Entry]] | None = None
        self._scan_root = -1
        self._next_scan_s = 0.0
        self._is_watched = False
        self._walk = Walk(folder.recursive, self._is_recording, self._names.is_entered, self._tell_unreadable)
        self.hints = Hints()
        self.ready = threading.Event()
        """Set once the folder is watched, or found to be missing."""

    def stop(self) -> None:
        """Let `work` end."""
        self._stopping.set()
        self.hints.close()

    def work(self) -> None:
        """Look at what changes, and at the whole folder from time to time, until `stop`."""
        try:
            self._take_up(self._manner_of())
            while not self._stopping.is_set():
                self._turn()
        except LedgerUnwritableError:
            if not self._stopping.is_set():
                raise
            # What is not in the ledger yet lies in the folder, for the next start.
        finally:
            self.ready.set()
            self._end_scan()
            self._observing.unwatch(os.path.realpath(self._name))

    def _take_up(self, manner: Manner) -> None:
        self._manner = manner
        self._settling = Settling(manner.rule)

    def _turn(self) -> None:
        self._beat(0.0)
        now_s = time.monotonic()
        if self._scan is None and now_s >= self._next_scan_s:
            self._begin_scan()
        wait_s = (
            0.0 if self._scan is not None else min(self._next_scan_s, self._settling.next_due_s()) - time.monotonic()
        )
        self._beat(max(wait_s, 0.0))
        paths, scan_asked = self.hints.take(wait_s)
        self._beat(0.0)
        if scan_asked:
            self._next_scan_s = 0.0
        stirred = {path: None for hinted in paths for path in self._names.recordings_at(hinted)}
        due = dict.fromkeys(self._settling.due(time.monotonic()))
        if stirred or due:
            self._look_at(list(stirred | due), stirred=stirred.keys())
        if self._scan is not None:
            self._scan_on()

    # The folder itself

    def _begin_scan(self) -> None:
        """Begin to walk the folder; watch it anew if it has come back or is another directory than before."""
        self._next_scan_s = time.monotonic() + self._interval_s()
        try:
            self._scan_root = tree.open_root(self._name)
        except OSError as error:
            self._miss(error)
            return
        found = os.fstat(self._scan_root)
        root = (found.st_dev, found.st_ino)
        if root != self._root:
            try:
                self._begin_anew(root)
            except OSError as error:
                self._end_scan()
                self._miss(error)
                return
        elif self._manner.plan.kind == "events" and not self._is_watched:
            self._watch()
        self.ready.set()
        self._scan = watch.scan(self._scan_root, self._walk)

    def _miss(self, error: OSError) -> None:
        """Take in that the folder cannot be opened."""
        if error.errno in _SHORTAGES:
            self._tell_unreadable("", error)
        else:
            if self._root is not None or not self.ready.is_set():
                detail = f"it cannot be opened: {error.strerror}; heifyd waits for it to come back"
                self._log.error("folder.missing", detail=detail)
            self._root, self._is_watched = None, False
            self._observing.unwatch(os.path.realpath(self._name))
        self.ready.set()

    def _begin_anew(self, root: tuple[int, int]) -> None:
        """Look after a directory that was not there at the last scan. Raises OSError."""
        self._take_up(self._manner_of())
        if self.ready.is_set():
            self._log.warning("folder.back", detail="it is there again, or another directory has taken its place")
        self._root = root
        self._log.info(
            "folder.watched",
            watch=self._manner.plan.kind,
            reason=self._manner.plan.reason,
            settle_seconds=self._manner.rule.settle_seconds,
            rescan_seconds=self._manner.rescan_seconds,
        )
        self._watch()
        self._next_scan_s = time.monotonic() + self._interval_s()

    def _watch(self) -> None:
        if self._manner.plan.kind != "events":
            return
        self._beat(_WATCHING_S)
        try:
            self._observing.watch(os.path.realpath(self._name), self.hints, recursive=self._folder.recursive)
            self._is_watched = True
        except OSError as error:
            self._is_watched = False
            advice = "raise fs.inotify.max_user_watches or fs.inotify.max_user_instances (sysctl)"
            self._tell(
                "watch.polling",
                "",
                detail=f"{error.strerror}; the folder is polled every {self._manner.poll_seconds:g} s until then",
                what_to_do=advice if error.errno in (errno.ENOSPC, errno.EMFILE) else None,
            )

    def _interval_s(self) -> float:
        is_deaf = self._manner.plan.kind == "events" and not self._is_watched and self._root is not None
        return self._manner.poll_seconds if is_deaf else self._manner.rescan_seconds

    def _scan_on(self) -> None:
        """Take the scan's next chunk."""
        assert self._scan is not None  # noqa: S101 (narrows the type)
        try:
            chunk = next(self._scan, None)
        except OSError as error:
            self._tell_unreadable("", error)
            chunk = None
        if chunk is None:
            self._end_scan()
            return
        regular = {}
        for entry in chunk:
            if watch.is_regular(entry):
                regular[entry.path] = entry.stamp
            elif not stat.S_ISDIR(entry.mode) or not self._folder.recursive:
                self._refuse(
                    entry.path,
                    f"{entry.path} is a {tree.kind(entry.mode)}, not a regular file; put the recording itself there",
                )
        identities = [stamp.identity(self._name, path) for path, stamp in regular.items()]
        fresh = self._ledger.unsettled(identities)
        if fresh:
            self._look_at([identity.path for identity in fresh])

    def _tell_unreadable(self, path: str, error: OSError) -> None:
        """Tell that something of the folder ("": the folder itself) cannot be read; a later scan tries again."""
        detail = f"{path or 'the folder'} cannot be read: {error.strerror}; what is there has to wait"
        self._tell("folder.unreadable", f"{error.errno} {path}", detail=detail)

    def _end_scan(self) -> None:
        self._scan = None
        if self._scan_root >= 0:
            os.close(self._scan_root)
            self._scan_root = -1

    # Files

    def _is_recording(self, path: str) -> bool:
        """Tell whether a file that a scan came by is a recording by its name; a folder may hold very many others."""
        self._beat(0.0)
        return self._names.is_recording(path)

    def _look_at(self, paths: list[str], stirred: AbstractSet[str] = frozenset()) -> None:
        """Look at files, and queue those that are finished."""
        finished: list[_Finished] = []
        try:
            root = tree.open_root(self._name)
        except OSError as error:
            if error.errno not in _SHORTAGES:
                self._next_scan_s = 0.0  # the folder is gone: the scan tells
            for path in paths:
                self._settling.forget(path)
            return
        with tree.opened(root):
            for path in paths:
                found = self._look(root, path, stirred=path in stirred)
                if found is not None:
                    finished.append(found)
        identities = [each.identity for each in finished]
        added = self._ledger.add(identities, time.time(), mount=self._manner.plan.mount)
        for each, outcome in zip(finished, added, strict=True):
            self._settled(each, outcome)

    def _look(self, root: int, path: str, *, stirred: bool) -> _Finished | None:
        """Look at one file; return it if it is finished. What cannot be looked at is told of, and left to the scan."""
        self._beat(0.0)
        try:
            with tree.opened(tree.open_recording(root, path)) as fd:
                return self._judge(root, path, fd, stirred=stirred)
        except FileNotFoundError:
            self._settling.forget(path)
        except (tree.NotARegularFileError, PermissionError) as error:
            self._settling.forget(path)
            self._refuse(path, str(error))
        except OSError as error:
            self._settling.forget(path)
            self._tell_unreadable(path, error)
        return None

    def _judge(self, root: int, path: str, fd: int, *, stirred: bool) -> _Finished | None:
        """Tell whether the open file is finished. Raises OSError."""
        stamp = Stamp.of(os.fstat(fd))
        if stamp.size_bytes == 0:
            self._settling.forget(path)
            return None
        now_s = time.monotonic()
        age_s = time.time() - max(stamp.mtime_ns, stamp.ctime_ns) / 1e9
        if not self._settling.quiet(path, stamp, now_s, age_s=age_s, stirred=stirred):
            return None
        if not self._is_marked(root, path):
            return None
        found = probe.writers(fd)
        self._tell_check(found.check)
        if found.open:
            self._settling.written_to(path)
            return None
        settle_s = self._manner.rule.settle_seconds
        detail = None
        if found.open is None and (surplus := riff_surplus(os.pread(fd, HEAD_BYTES, 0), stamp.size_bytes)):
            quiet_s = self._settling.quiet_s(path, now_s)
            if quiet_s < _UNFINISHED_WAV * settle_s:
                self._settling.look_again(path, now_s + settle_s)
                return None
            amount = f"{abs(surplus):,} bytes {'more' if surplus > 0 else 'less'}"
            detail = f"it has {amount} than its WAV header says, and is taken as it is after {quiet_s:,.0f} s of quiet"
        if self._settling.writer_gone(path, now_s) or Stamp.of(os.fstat(fd)) != stamp:
            self._settling.look_again(path, now_s + settle_s)
            return None
        return _Finished(stamp.identity(self._name, path), detail)

    def _is_marked(self, root: int, path: str) -> bool:
        """Tell whether the ready marker is there, where one is called for; its coming will be the next look."""
        marker = self._names.marker_of(path)
        if marker is None:
            return True
        try:
            with tree.parent_of(root, marker) as (parent, name):
                os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _settled(self, found: _Finished, added: Added) -> None:
        path = found.identity.path
        if added is Added.BUSY:
            self._settling.look_again(path, time.monotonic() + _BUSY_S)
            return
        self._settling.forget(path)
        if added is Added.QUEUED:
            about = {"detail": found.detail} if found.detail else {}
            self._log.info("recording.settled", file=path, size_bytes=found.identity.size_bytes, **about)
        elif added is Added.SENT_BEFORE:
            self._log.warning(
                "recording.sent_before", file=path, detail="Heify has it already; it is filed and not sent again"
            )

    def _refuse(self, path: str, detail: str) -> None:
        self._tell("recording.refused", path, file=path, detail=detail)

    def _tell_check(self, check: Check) -> None:
        if ("check", check.value) not in self._told:
            self._told.add(("check", check.value))
            self._log.info("folder.writer_check", check=check.value, detail=CHECKS[check])

    def _tell(self, event: str, about: str, **fields: object) -> None:
        """Log a warning once for what it is about: the next scan finds the same again."""
        if (event, about) not in self._told:
            if len(self._told) >= _MOST_REMEMBERED:
                self._told.clear()
            self._told.add((event, about))
            self._log.warning(event, **fields)


CHECKS: Final = {
    Check.LEASE: "the kernel tells whether anybody still has a file open for writing",
    Check.PROC: "the open files of all processes are read to see whether anybody still writes",
    Check.QUIET: (
        "nothing tells of open writers here (a share, or files of another owner and no CAP_LEASE): "
        "a file that is quiet for settle_seconds counts as finished"
    ),
}
