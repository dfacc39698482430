"""Whether somebody still has a file open for writing: asked of the kernel about real descriptors."""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from heifyd import probe
from heifyd.probe import Check, Writers, writers
from tests.harness import ROOT, need_program, need_root

HELD = Writers(open=True, check=Check.LEASE)
FREE = Writers(open=False, check=Check.LEASE)


@pytest.fixture
def call(tmp_path: Path) -> Path:
    file = tmp_path / "call.wav"
    file.write_bytes(b"RIFF" * 1024)
    return file


@pytest.fixture
def asked(call: Path) -> Iterator[int]:
    fd = os.open(call, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def no_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every lease, as the kernel does for a file of somebody else's."""

    def refuse(_fd: int, _command: int, _argument: int = 0) -> int:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "fcntl", refuse)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
def test_an_open_writer_is_seen_until_it_closes(call: Path, asked: int, flags: int) -> None:
    writer = os.open(call, flags)
    during = writers(asked)
    os.close(writer)

    assert during == HELD
    assert writers(asked) == FREE


def test_a_writer_in_another_process_is_seen(call: Path, asked: int) -> None:
    program = "import sys; file = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, call], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        during = writers(asked)
        process.communicate()

    assert during == HELD
    assert writers(asked) == FREE


def test_a_writable_mapping_is_seen_although_its_descriptor_is_closed(call: Path, asked: int) -> None:
    with call.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    during = writers(asked)
    mapping.close()

    assert during == HELD
    assert writers(asked) == FREE


def test_readers_do_not_count(call: Path, asked: int) -> None:
    with call.open("rb"):
        assert writers(asked) == FREE


def test_the_lease_is_given_back_at_once(call: Path, asked: int) -> None:
    writers(asked)

    os.close(os.open(call, os.O_WRONLY | os.O_NONBLOCK))  # which a lease would refuse with EWOULDBLOCK


@pytest.mark.usefixtures("no_leases")
def test_without_a_lease_the_open_files_of_all_processes_tell(call: Path, asked: int) -> None:
    with call.open("ab"):
        assert writers(asked) == Writers(open=True, check=Check.PROC)
    with call.open("rb"):
        assert writers(asked).open is not True


@pytest.fixture
def proc(tmp_path: Path, call: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out the /proc of a machine on which nobody writes to `call`."""
    proc = tmp_path / "proc"
    for process, flags in (("1", "0100000"), ("2", "02")):
        (proc / process / "fd").mkdir(parents=True)
        (proc / process / "fdinfo").mkdir()
        (proc / process / "fd" / "3").symlink_to(call if process == "1" else "/dev/null")
        (proc / process / "fdinfo" / "3").write_text(f"pos:\t0\nflags:\t{flags}\nmnt_id:\t1\n")
    (proc / "2" / "fd" / "4").symlink_to(tmp_path / "closed since")
    (proc / "3").mkdir()
    (proc / "sys").mkdir()
    (proc / "self" / "ns").mkdir(parents=True)
    (proc / "self" / "ns" / "pid").touch()
    monkeypatch.setattr(probe, "_FIRST_PID_NAMESPACE", (proc / "self" / "ns" / "pid").stat().st_ino)
    return proc


@pytest.mark.usefixtures("no_leases")
def test_a_complete_look_without_a_writer_says_so_and_passes_over_what_ends_meanwhile(asked: int, proc: Path) -> None:
    assert writers(asked, proc) == Writers(open=False, check=Check.PROC)


@pytest.mark.usefixtures("no_leases")
def test_who_sees_only_the_processes_of_a_container_cannot_say_that_there_is_no_writer(asked: int, proc: Path) -> None:
    (proc / "self" / "ns" / "pid").unlink()
    (proc / "self" / "ns" / "pid").symlink_to("/dev/null")

    assert writers(asked, proc) == Writers(open=None, check=Check.QUIET)


@pytest.mark.usefixtures("no_leases")
def test_who_does_not_see_the_first_process_is_not_shown_all(asked: int, proc: Path) -> None:
    (proc / "1").rename(proc / "4")

    assert writers(asked, proc) == Writers(open=None, check=Check.QUIET)


def test_in_a_container_of_its_own_a_process_outside_that_writes_is_not_denied(call: Path) -> None:
    need_root()
    program = """if True:
        import os, sys
        from heifyd.probe import writers
        os.setuid(65534)
        found = writers(0)
        print(found.open, found.check.value)
    """
    call.chmod(0o644)
    with call.open("ab"), call.open("rb") as file:
        answer = subprocess.run(
            [need_program("unshare"), "--pid", "--fork", "--mount-proc", sys.executable, "-c", program],
            stdin=file,
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )

    assert answer.stdout.split() == ["None", "quiet"]


def test_who_may_neither_lease_nor_look_is_told_that_nothing_can_tell() -> None:
    """The file is root's and the one who asks is not: the kernel grants no lease and hides root's descriptors."""
    program = """if True:
        import os
        from heifyd.probe import writers
        if os.geteuid() == 0:
            os.setuid(65534)
        found = writers(0)
        print(found.open, found.check.value)
    """

    with Path("/etc/passwd").open("rb") as somebody_elses:
        answer = subprocess.run(
            [sys.executable, "-c", program],
            stdin=somebody_elses,
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )

    assert answer.stdout.split() == ["None", "quiet"]


def test_an_error_that_says_nothing_of_writers_is_not_swallowed() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        writers(-1 + 2**20)
