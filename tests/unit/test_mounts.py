"""Which file system a path is on, read from mountinfo lines as the kernel writes them."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heifyd.mounts import Mount, is_shared, mount_of, own_mounts, parse, silent

MOUNTINFO = rb"""22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 22 0:31 / /srv/calls rw,nosuid shared:7 master:2 - nfs4 pbx.example.com:/calls rw,vers=4.2
37 22 0:32 / /srv/calls/local rw - xfs /dev/vdb rw
38 22 0:33 / /srv/with\040space\011and\134more rw - fuse.sshfs pbx:/ rw
"""


@pytest.mark.parametrize(
    ("path", "fs_type"),
    [
        ("/", "ext4"),
        ("/var/spool", "ext4"),
        ("/srv/calls", "nfs4"),
        ("/srv/calls/2026", "nfs4"),
        ("/srv/calls-too", "ext4"),
        ("/srv/calls/local/sales", "xfs"),
        ("/srv/with space\tand\\more/x", "fuse.sshfs"),
    ],
)
def test_a_path_is_on_the_nearest_mount_above_it(path: str, fs_type: str) -> None:
    assert mount_of(path, parse(MOUNTINFO)).fs_type == fs_type


def test_a_later_mount_covers_an_earlier_one_at_the_same_point() -> None:
    covered = parse(MOUNTINFO + b"39 22 0:34 / /srv/calls rw - tmpfs tmpfs rw\n")

    assert mount_of("/srv/calls", covered).fs_type == "tmpfs"


def test_a_path_under_no_known_mount_is_local_as_far_as_is_known() -> None:
    assert mount_of("/srv", []) == Mount("/", "unknown")


@pytest.mark.parametrize(
    "fs_type", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "fuse.s3fs", "fuse", "vboxsf", "ceph"]
)
def test_a_file_system_that_others_write_to_unseen_is_remote(fs_type: str) -> None:
    assert Mount("/srv", fs_type).is_remote


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "unknown"])
def test_a_file_system_of_this_kernels_own_is_not_remote(fs_type: str) -> None:
    assert not Mount("/srv", fs_type).is_remote


def test_a_mount_point_may_hold_every_byte_that_the_kernel_does_not_escape() -> None:
    odd = b"/srv/a\rb\x0bc\x0cd\x85\xff"

    assert parse(b"40 22 0:35 / " + odd + b" rw - nfs pbx:/ rw\n") == [Mount(os.fsdecode(odd), "nfs")]


@given(st.binary(max_size=200))
@example(b"\n")
@example(b"40 22 0:35 / /srv\\777 rw - nfs pbx:/ rw")
@example(b"40 22 0:35 / /srv rw - ")
def test_no_line_however_odd_hides_the_others(line: bytes) -> None:
    mounts = parse(line.replace(b"\n", b" ") + b"\n" + MOUNTINFO)

    assert mounts[-4:] == parse(MOUNTINFO)


def test_the_kernels_own_table_tells_of_the_root_and_of_shared_memory() -> None:
    mounts = own_mounts()

    assert mount_of("/proc/self", mounts).fs_type == "proc"
    assert mount_of("/", mounts).point == "/"
    assert Path(mount_of("/dev/shm", mounts).point).is_dir()


def test_a_local_file_is_not_on_a_share(tmp_path: Path) -> None:
    with (tmp_path / "call.wav").open("wb") as file:
        assert not is_shared(file.fileno())


def test_what_the_kernel_cannot_tell_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        is_shared(-1)


def test_what_is_there_and_what_is_not_both_answer(tmp_path: Path) -> None:
    assert silent([str(tmp_path), str(tmp_path / "gone"), "/\0"], 60.0) == set()
