"""Which file system a path is on, and whether other machines can write to it behind the kernel's back."""

import ctypes
import os
import re
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_REMOTE: Final = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "prl_fs", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"),
    )
)
_SHARED_MAGIC: Final = frozenset(
    (
        *(0x6969, 0xFF534D42, 0xFE534D42, 0x517B, 0x65735546, 0x01021997, 0x00C36400, 0x5346414F, 0x786F4256),
        *(0x19830326, 0x73757245, 0x01161970, 0x7461636F, 0x47504653, 0x0BD00BD0, 0x564C, 0x7C7C6673, 0xBACBACBC),
    )
)
"""NFS, CIFS, SMB2, SMB, FUSE (virtiofs too), 9p, Ceph, AFS, vboxsf; BeeGFS, Coda, GFS2, OCFS2, GPFS, Lustre, NCP,
prl_fs, vmhgfs: statfs(2), linux/magic.h and the file systems' own sources."""

_STATFS_BYTES: Final = 256
_libc: Final = ctypes.CDLL(None, use_errno=True)
_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")
_LEAST_COLUMNS: Final = 5


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo: where it is mounted and of which type, such as `ext4` or `fuse.sshfs`."""

    point: str
    fs_type: str

    @property
    def is_remote(self) -> bool:
        """Whether writers elsewhere are invisible here: neither inotify nor leases tell of them."""
        return self.fs_type in _REMOTE or self.fs_type == "fuse" or self.fs_type.startswith("fuse.")


def parse(mountinfo: bytes) -> list[Mount]:
    """Read the lines of a mountinfo file (proc_pid_mountinfo(5)); later ones cover earlier ones at the same point."""
    mounts = []
    for line in mountinfo.split(b"\n"):
        fields, _, rest = line.partition(b" - ")
        columns, fs_type = fields.split(b" "), rest.split(b" ")[0]
        if len(columns) < _LEAST_COLUMNS:
            continue
        point = _OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), columns[4])
        mounts.append(Mount(os.fsdecode(point), fs_type.decode("ascii", "backslashreplace")))
    return mounts


def mount_of(path: str, mounts: list[Mount]) -> Mount:
    """Return the mount that holds `path` (absolute, symlinks resolved); `/` of unknown type where none does."""
    best = Mount("/", "unknown")
    for mount in mounts:
        inside = mount.point in ("/", path) or path.startswith(mount.point + "/")
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best


def is_shared(fd: int) -> bool:
    """Tell whether the open file `fd` is on a file system that others may write to unseen, by statfs(2)'s magic.

    Unlike `Mount.is_remote` this counts every FUSE file system, whatever lies behind it. Raises OSError.
    """
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, answer) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF in _SHARED_MAGIC


def silent(paths: Iterable[str], within_s: float) -> set[str]:
    """Return those paths that cannot be looked at within so many seconds, such as below a share whose server is away.

    Who asks the kernel of such a one hangs until the server is back, so a thread is left behind that asks.
    """
    asking = {path: threading.Thread(target=_look_at, args=(path,), daemon=True) for path in set(paths)}
    for thread in asking.values():
        thread.start()
    until_s = time.monotonic() + within_s
    for thread in asking.values():
        thread.join(max(0.0, until_s - time.monotonic()))
    return {path for path, thread in asking.items() if thread.is_alive()}


def _look_at(path: str) -> None:
    with suppress(OSError, ValueError):  # an error is an answer
        os.stat(path)


def own_mounts() -> list[Mount]:
    """Read the mounts that this process sees. Raises OSError."""
    return parse(Path("/proc/self/mountinfo").read_bytes())
