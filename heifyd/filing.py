"""Moves a file to where it belongs: never over another, never through a symlink, across file systems too."""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from heifyd import tree
from heifyd.errors import HeifydError
from heifyd.recording import Identity, Stamp

MOST_NAME_BYTES: Final = 255
_PART_SUFFIX: Final = ".heifyd-part"
_RENAME_NOREPLACE: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)


class ChangedError(HeifydError):
    """The file at the recording's path is no longer the recording; it was not moved."""


def move(identity: Identity, target: Path) -> str:
    """Move a recording below the directory `target`, its sub-folders kept, and return its new absolute path.

    `target` is made where it is missing; where it lies inside the recording's folder it is reached without following a
    symlink. A name that is taken gets ``~1``, ``~2`` … before its extension. On another file system it is
    copied, synced, renamed and only then unlinked. Where it was moved already, by a move whose end was not noted, that
    is found and told. Raises ChangedError, FileNotFoundError where the recording is gone, tree.NotARegularFileError, or
    OSError.
    """
    subfolder, _, name = identity.path.rpartition("/")
    with tree.opened(tree.open_root(identity.folder)) as root:
        try:
            with tree.parent_of(root, identity.path) as (source, _):
                found = os.stat(name, dir_fd=source, follow_symlinks=False)
                if not _is_it(found, identity):
                    raise ChangedError(f"{identity.path} was written to after it was sent")
                with _target_directory(root, identity.folder, target, subfolder) as directory:
                    moved = _move_into(source, name, directory)
        except FileNotFoundError:
            with _target_directory(root, identity.folder, target, subfolder, create=False) as directory:
                moved = _moved_before(identity, directory, name)
    return os.path.join(target, subfolder, moved)


def _is_it(found: os.stat_result, identity: Identity) -> bool:
    return stat.S_ISREG(found.st_mode) and Stamp.of(found).identity(identity.folder, identity.path) == identity


def _moved_before(identity: Identity, directory: int, wanted: str) -> str:
    """Return the name that an earlier move has given to a recording. Raises FileNotFoundError where there was none."""
    for name in _free_names(wanted):
        if _is_it(os.stat(name, dir_fd=directory, follow_symlinks=False), identity):
            return name
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), identity.path)


def bring_back(filed_at: str, identity: Identity) -> str:
    """Move a filed recording, wherever it lies now, to its place in its folder again and return its new path.

    Its explanation goes. A name that is taken there is not overwritten, see `move`. Raises OSError.
    """
    where, _, name = filed_at.rpartition("/")
    subfolder, _, original = identity.path.rpartition("/")
    with (
        tree.opened(tree.open_root(where)) as source,
        tree.opened(tree.open_root(identity.folder)) as root,
        tree.opened(tree.open_directory(root, subfolder, create=True)) as directory,
    ):
        back = _move_into(source, name, directory, wanted=original)
    remove_explanation(filed_at)
    return os.path.join(identity.folder, subfolder, back)


def remove_explanation(filed_at: str) -> None:
    """Remove what `explain` wrote beside a failed file, if it is there. Raises OSError."""
    where, _, name = filed_at.rpartition("/")
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(where, _error_name(name)))


def explain(filed_at: str, explanation: dict[str, object]) -> str:
    """Write ``NAME.error.json`` beside a failed file and return its path. Raises OSError."""
    where, _, name = filed_at.rpartition("/")
    with tree.opened(tree.open_root(where)) as directory:
        fd = os.open(
            _error_name(name),
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o644,
            dir_fd=directory,
        )
        text = json.dumps(explanation, ensure_ascii=False, indent=2) + "\n"
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(text.encode("utf-8", "backslashreplace"))  # a byte that is not UTF-8 is JSON's \udcXX
        except OSError:
            os.unlink(_error_name(name), dir_fd=directory)
            raise
    return os.path.join(where, _error_name(name))


def _error_name(name: str) -> str:
    """Return the name of a file's explanation; where it would be too long, a hash keeps it the file's own."""
    ending = ".error.json"
    if len(os.fsencode(name + ending)) <= MOST_NAME_BYTES:
        return name + ending
    return _shortened(name, f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{ending}")


def _shortened(stem: str, ending: str) -> str:
    """Append `ending` to `stem`, of which as much is kept as a file name may hold."""
    raw = os.fsencode(stem)[: MOST_NAME_BYTES - len(os.fsencode(ending))]
    return os.fsdecode(raw) + ending


@contextmanager
def _target_directory(root: int, folder: str, target: Path, subfolder: str, *, create: bool = True) -> Iterator[int]:
    """Open the directory to move into; with `create` it is made where it is missing."""
    try:
        inside = target.relative_to(folder)
    except ValueError:
        if create:
            tree.make_directories(target)
        with (
            tree.opened(tree.open_root(target)) as outside,
            tree.opened(tree.open_directory(outside, subfolder, create=create)) as fd,
        ):
            yield fd
    else:
        with tree.opened(tree.open_directory(root, os.path.join(inside, subfolder), create=create)) as fd:
            yield fd


def _free_names(name: str) -> Iterator[str]:
    stem, dot, ending = name.rpartition(".")
    if not stem:
        stem, dot, ending = name, "", ""
    yield name
    for number in range(1, 1_000_000):
        yield _shortened(stem, f"~{number}{dot}{ending}")


def _move_into(source: int, name: str, directory: int, wanted: str | None = None) -> str:
    """Move `name` from one directory into another under a name that is free, and return that name."""
    try:
        return _rename_to_free(source, name, directory, wanted or name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    return _copy_into(source, name, directory, wanted or name)


def _rename_to_free(source: int, name: str, directory: int, wanted: str) -> str:
    for free in _free_names(wanted):
        try:
            _rename_no_replace(source, name, directory, free)
        except FileExistsError:
            continue
        return free
    raise FileExistsError(errno.EEXIST, "no free name is left", wanted)


def _rename_no_replace(source: int, name: str, directory: int, new: str) -> None:
    """Rename, or raise FileExistsError: in one step where possible (renameat2(2)), else by reserving the name."""
    if _libc.renameat2(source, os.fsencode(name), directory, os.fsencode(new), _RENAME_NOREPLACE) == 0:
        return
    error = ctypes.get_errno()
    if error not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(error, os.strerror(error), name)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory))
    try:
        os.rename(name, new, src_dir_fd=source, dst_dir_fd=directory)
    except BaseException:
        os.unlink(new, dir_fd=directory)
        raise


def _copy_into(source: int, name: str, directory: int, wanted: str) -> str:
    """Copy to another file system, sync, give the copy a free name, and only then unlink the original."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=source), "rb") as original:
        before = os.fstat(original.fileno())
        new = _earlier_copy(original, before, directory, wanted)
        if new is None:
            part = f".{before.st_dev:x}-{before.st_ino:x}{_PART_SUFFIX}"  # one a file: a copy cut off is begun anew
            try:
                _copy(original, before, part, directory)
                new = _rename_to_free(directory, part, directory, wanted)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=directory)
                raise
    os.fsync(directory)
    os.unlink(name, dir_fd=source)
    return new


def _copy(original: BinaryIO, before: os.stat_result, part: str, directory: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(part, flags, 0o600, dir_fd=directory), "wb") as copy:
        shutil.copyfileobj(original, copy, 1024 * 1024)
        copy.flush()
        _take_over(copy.fileno(), before)
        os.fsync(copy.fileno())
    if Stamp.of(os.fstat(original.fileno())) != Stamp.of(before):
        raise ChangedError("it was written to while it was copied")


def _take_over(copy: int, original: os.stat_result) -> None:
    """Give a copy the original's times, mode, and, where it is allowed, owner."""
    with suppress(PermissionError):
        os.fchown(copy, original.st_uid, original.st_gid)
    with suppress(PermissionError):
        os.fchmod(copy, original.st_mode & 0o7777)
    os.utime(copy, ns=(original.st_atime_ns, original.st_mtime_ns))


def _earlier_copy(original: BinaryIO, before: os.stat_result, directory: int, wanted: str) -> str | None:
    """Return the name under which a move that was cut off before its end has left a whole copy already, if it has."""
    for name in _free_names(wanted):
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        alike = (found.st_size, found.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        if alike and stat.S_ISREG(found.st_mode) and _has_same_content(original, name, directory):
            return name
    return None


def _has_same_content(original: BinaryIO, name: str, directory: int) -> bool:
    original.seek(0)
    try:
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory), "rb") as other:
            while piece := original.read(1024 * 1024):
                if piece != other.read(len(piece)):
                    return False
            return True
    finally:
        original.seek(0)
