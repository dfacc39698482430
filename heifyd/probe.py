"""Whether somebody still has a file open for writing, asked of the kernel."""

import errno
import fcntl
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from heifyd import mounts

_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC
"""The inode of the machine's own PID namespace: PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h."""


class Check(Enum):
    """How it is told whether a file has a writer; the value is what the log and `heifyd check` call it."""

    LEASE = "lease"
    PROC = "proc"
    QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Writers:
    """What was found: `open` is True or False, or None where nothing can tell for sure; `check` is how it was asked."""

    open: bool | None
    check: Check


def writers(fd: int, proc: Path = Path("/proc")) -> Writers:
    """Tell whether any process has the regular file behind the read-only `fd` open for writing or mapped writable.

    A read lease is refused with EAGAIN while that is so (fcntl(2), "Leases"). It is given back at once: an open for
    writing that falls into these microseconds waits for them, and the kernel's SIGIO about it must be ignored by the
    process (`service.signals_to`). Where leases are not to be had (EACCES: not the file's owner and no
    CAP_LEASE; EINVAL: not on this file system) the descriptors under /proc are read, as far as they may be.

    On a share nothing tells of writers on other machines, and a lease is no question to ask: NFS and SMB refuse it with
    EAGAIN whenever the server has not delegated the file. There, /proc may still show a writer on this machine.
    """
    if mounts.is_shared(fd):
        here = _writers_in_proc(os.fstat(fd), proc)
        return here if here.open else Writers(open=None, check=Check.QUIET)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return Writers(open=True, check=Check.LEASE)
        if error.errno in (errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK):
            return _writers_in_proc(os.fstat(fd), proc)
        raise
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return Writers(open=False, check=Check.LEASE)


def _writers_in_proc(wanted: os.stat_result, proc: Path) -> Writers:
    """Look through every process's descriptors; only a complete look can say that there is no writer.

    In a container there are only the container's processes, and /proc may be mounted so that others' are hidden, the
    first one among them (pid_namespaces(7), proc(5), "hidepid").
    """
    processes = [*filter(str.isdigit, os.listdir(proc))]
    complete = "1" in processes and os.stat(proc / "self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    for process in processes:
        try:
            if _process_writes(proc / process, wanted):
                return Writers(open=True, check=Check.PROC)
        except PermissionError:
            complete = False
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return Writers(open=False, check=Check.PROC) if complete else Writers(open=None, check=Check.QUIET)


def _process_writes(process: Path, wanted: os.stat_result) -> bool:
    for descriptor in os.listdir(process / "fd"):
        try:
            found = os.stat(process / "fd" / descriptor)
            if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino):
                continue
            info = (process / "fdinfo" / descriptor).read_text()
        except FileNotFoundError:
            continue  # it was closed while we looked
        flags = next(line.split()[1] for line in info.splitlines() if line.startswith("flags:"))
        if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
            return True
    return False
