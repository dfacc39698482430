"""Reaches the files of a folder through descriptors, so that no symlink is ever followed below it."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heifyd.errors import HeifydError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BELOW = _DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_KINDS = (
    (stat.S_ISLNK, "symlink"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
)


class NotARegularFileError(HeifydError):
    """The name does not belong to a regular file; heifyd opens nothing else."""


def kind(mode: int) -> str:
    """Return what an `st_mode` is, in words."""
    return next((word for is_kind, word in _KINDS if is_kind(mode)), "regular file")


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Close `fd` at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def open_root(folder: str | Path) -> int:
    """Open a folder that the operator named (symlinks are followed here) and return its descriptor.

    It is opened for each piece of work and closed again: a descriptor that stays open would keep a share from being
    unmounted. Raises OSError.
    """
    return os.open(folder, _DIRECTORY)


def open_directory(root: int, path: str, *, create: bool = False) -> int:
    """Open the directory `path` (relative, "" for the root itself) below `root`, component by component.

    With `create`, missing directories are made. Raises OSError; ENOTDIR or ELOOP where a component is a symlink.
    """
    fd = os.dup(root)
    for name in filter(None, path.split("/")):
        with opened(fd) as parent:
            if create:
                _ensure_directory(parent, name)
            fd = os.open(name, _BELOW, dir_fd=parent)
    return fd


def make_directories(path: Path) -> None:
    """Make the directory `path` that the operator named, and those above it, where missing. Raises OSError."""
    if not path.is_dir():
        make_directories(path.parent)
        with opened(open_root(path.parent)) as parent:
            _ensure_directory(parent, path.name)


def _ensure_directory(parent: int, name: str) -> None:
    """Make a directory where it is missing; what is moved into it is to outlast a power cut, so it must, too."""
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return
    os.fsync(parent)


@contextmanager
def parent_of(root: int, path: str) -> Iterator[tuple[int, str]]:
    """Give the descriptor of the directory that holds `path`, and the file's own name in it.

    Raises NotARegularFileError where a symlink or a file is on the way, else OSError.
    """
    directory, _, name = path.rpartition("/")
    try:
        fd = open_directory(root, directory)
    except NotADirectoryError:
        raise NotARegularFileError(
            f"{path}: a directory on the way is a symlink or a file; nothing is followed"
        ) from None
    with opened(fd) as parent:
        yield parent, name


def open_recording(root: int, path: str) -> int:
    """Open the regular file `path` below `root` for reading and return its descriptor.

    Looks before it opens, since opening a device may act on it, and again after, since the name may have changed
    hands. Raises NotARegularFileError for anything but a regular file, a symlink on the way included; else OSError.
    """
    with parent_of(root, path) as (parent, name):
        _must_be_regular(os.stat(name, dir_fd=parent, follow_symlinks=False), path)
        fd = os.open(name, _FILE, dir_fd=parent)
    try:
        _must_be_regular(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _must_be_regular(found: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotARegularFileError(
            f"{path} is a {kind(found.st_mode)}, not a regular file; put the recording itself there"
        )
