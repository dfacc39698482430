"""Which paths of a folder may have changed: hints from watchdog, and the scan that is the truth."""

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

from watchdog.events import (
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.inotify import InotifyEmitter, InotifyObserver
from watchdog.observers.inotify_c import InotifyConstants, Mask
from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper

from heifyd import tree
from heifyd.mounts import Mount, mount_of
from heifyd.recording import Stamp

if TYPE_CHECKING:
    from watchdog.observers.api import ObservedWatch

SCAN_CHUNK: Final = 256
_PAIRING_S: Final = 0.001
MOST_HINTS: Final = 10_000
"""Paths held between two looks; beyond them one scan is cheaper, and memory stays bounded."""

_HINTS: Final[list[type[FileSystemEvent]]] = [FileClosedEvent, FileCreatedEvent, FileAttribEvent, FileMovedEvent]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a folder is watched, and why, in words for the log and `heifyd check`; `mount` is its mount point."""

    kind: Literal["events", "poll"]
    remote: bool
    reason: str
    mount: str


def plan(path: str, wanted: Literal["auto", "events", "poll"], mounts: list[Mount]) -> Plan:
    """Choose between native events and polling for the folder at `path` (symlinks resolved)."""
    mount = mount_of(path, mounts)
    if wanted != "auto":
        reason = f"watch: {wanted} is configured (file system {mount.fs_type})"
        return Plan(wanted, mount.is_remote, reason, mount.point)
    where = f"{mount.fs_type} at {mount.point}"
    if mount.is_remote:
        reason = f"{where}: events of writers elsewhere do not arrive here"
        return Plan("poll", remote=True, reason=reason, mount=mount.point)
    return Plan("events", remote=False, reason=f"{where}: the kernel tells of every change", mount=mount.point)


@dataclass(slots=True)
class Hints:
    """Where the observer leaves what may have changed and the intake takes it from. Thread-safe."""

    _paths: dict[str, None] = field(default_factory=dict)
    _scan: bool = False
    _closed: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def stir(self, path: str) -> None:
        """Note that the file at `path`, relative to the folder, may have changed."""
        with self._changed:
            if len(self._paths) < MOST_HINTS:
                self._paths[path] = None
            else:
                self._scan = True
            self._changed.notify()

    def scan(self) -> None:
        """Ask for a scan of the whole folder."""
        with self._changed:
            self._scan = True
            self._changed.notify()

    def close(self) -> None:
        """End the waiting, now and from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, timeout_s: float) -> tuple[list[str], bool]:
        """Wait up to `timeout_s` seconds for a hint; return the paths and whether a scan is asked for."""
        with self._changed:
            self._changed.wait_for(lambda: self._paths or self._scan or self._closed, max(timeout_s, 0.0))
            taken = list(self._paths), self._scan
            self._paths.clear()
            self._scan = False
            return taken


class _Handler(FileSystemEventHandler):
    """Only enqueues: watchdog's dispatcher dies of what a handler raises, and waits for one that blocks."""

    def __init__(self, root: str, hints: Hints) -> None:
        self._prefix = root.rstrip("/") + "/"
        self._hints = hints

    def on_any_event(self, event: FileSystemEvent) -> None:
        path = os.fsdecode(event.dest_path or event.src_path)
        if path.startswith(self._prefix):
            self._hints.stir(path.removeprefix(self._prefix))


class _Emitter(InotifyEmitter):
    """Has the kernel tell only of what is a hint.

    Not of each write: a recorder makes fifty a second in every call, and the closing, or the next look, tells as much.
    Nor of what leaves a folder, as each recording does that is moved to `done/`, but for sub-folders, of which watchdog
    keeps account.
    """

    def get_event_mask_from_filter(self) -> Mask:
        mask = InotifyConstants.IN_CREATE | InotifyConstants.IN_CLOSE_WRITE | InotifyConstants.IN_ATTRIB
        mask |= InotifyConstants.IN_MOVE if self.watch.is_recursive else InotifyConstants.IN_MOVED_TO
        return Mask(mask | InotifyConstants.IN_DELETE_SELF)


class _Observer(InotifyObserver):
    def __init__(self) -> None:
        super().__init__()
        self._emitter_class = _Emitter


class Observing:
    """One watchdog observer for all folders on events. Its owner starts and stops it."""

    def __init__(self) -> None:
        self._observer: _Observer | None = None
        self._watches: dict[str, ObservedWatch] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the observer's threads. Raises OSError: EMFILE where the user's inotify instances are used up.

        watchdog holds back all that comes after something's leaving for half a second, to see whether it comes in
        elsewhere. If both events come, they come together.
        """
        InotifyMoveEventGrouper.delay = _PAIRING_S
        self._observer = _Observer()
        self._observer.start()

    def has_ended(self) -> bool:
        """Tell whether the observer's thread has ended by itself.

        One that only falls behind, as while a large tree is being watched, loses nothing: the scan is the truth.
        """
        return self._observer is not None and not self._observer.is_alive()

    def stop(self) -> None:
        """Stop the observer and wait for its threads."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None
            self._watches.clear()

    def watch(self, root: str, hints: Hints, *, recursive: bool) -> None:
        """Watch the folder at `root` (symlinks resolved), anew if it was watched already.

        Raises OSError: ENOSPC or EMFILE where the user's inotify watches or instances are used up, also when only
        sub-folders are left without one (watchdog passes over those in silence).
        """
        with self._lock:
            self._unwatch(root)
            if self._observer is None:
                raise OSError(errno.EMFILE, "no inotify instance is to be had", root)
            self._watches[root] = self._observer.schedule(
                _Handler(root, hints), root, recursive=recursive, event_filter=_HINTS
            )
            if recursive and no_watches_left():
                self._unwatch(root)
                raise OSError(errno.ENOSPC, "inotify watch limit reached", root)

    def unwatch(self, root: str) -> None:
        """Stop watching the folder at `root`, if it is watched."""
        with self._lock:
            self._unwatch(root)

    def _unwatch(self, root: str) -> None:
        if (watch := self._watches.pop(root, None)) is not None and self._observer is not None:
            self._observer.unschedule(watch)


def no_watches_left() -> bool:
    """Tell whether the kernel refuses this user one more inotify watch (inotify(7), max_user_watches)."""
    libc = ctypes.CDLL(None, use_errno=True)
    instance = libc.inotify_init1(os.O_CLOEXEC)
    if instance < 0:
        return ctypes.get_errno() in (errno.EMFILE, errno.ENFILE)
    with tree.opened(instance):
        return bool(libc.inotify_add_watch(instance, b"/", 0x00000400) < 0 and ctypes.get_errno() == errno.ENOSPC)


@dataclass(frozen=True, slots=True)
class Entry:
    """A name that a scan found: its path below the folder, its mode and its stamp."""

    path: str
    mode: int
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Walk:
    """What a scan takes in: files and sub-folders by their relative path, and whom to tell of unreadable ones."""

    recursive: bool
    wanted: Callable[[str], bool]
    enter: Callable[[str], bool]
    unreadable: Callable[[str, OSError], None]


def scan(root: int, walk: Walk) -> Iterator[list[Entry]]:
    """Go through the folder behind the descriptor `root` and give what it holds in chunks of at most `SCAN_CHUNK`.

    Symlinks are entries, never followed. What vanishes on the way is passed over: the next scan tells. Memory does not
    grow with the folder. Raises OSError where the folder itself cannot be read.
    """
    entries = _entries(root, walk)
    while chunk := list(islice(entries, SCAN_CHUNK)):
        yield chunk


def _entries(root: int, walk: Walk) -> Iterator[Entry]:
    pending = [""]
    while pending:
        directory = pending.pop()
        try:
            with tree.opened(tree.open_directory(root, directory)) as fd, os.scandir(fd) as found:
                for entry in found:
                    path = f"{directory}/{entry.name}" if directory else entry.name
                    try:
                        if walk.recursive and entry.is_dir(follow_symlinks=False) and walk.enter(path):
                            pending.append(path)
                        if walk.wanted(path):
                            status = entry.stat(follow_symlinks=False)
                            yield Entry(path, status.st_mode, Stamp.of(status))
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        walk.unreadable(path, error)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if not directory:
                raise
            walk.unreadable(directory, error)


def is_regular(entry: Entry) -> bool:
    """Tell whether a scan's entry is a regular file."""
    return stat.S_ISREG(entry.mode)
