"""What a machine runs out of, or takes away, while heifyd runs: disks, descriptors, watches, mounts, time, the key."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from heifyd.sandbox import API_KEY, CONFIGURATION_ID, Sandbox
from tests.harness import (
    DaemonProcess,
    Event,
    Place,
    assert_tells_no_secret,
    eventually,
    files_below,
    make_place,
    need,
    need_program,
    need_root,
    running,
    sample,
    sha256,
    status,
)
from tests.terminal import Terminal

QUICK = "settle_seconds: 0.3\nrescan_seconds: 0.5"
SPED_UP = {"REHEARSAL_SPEED": "30"}


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=QUICK)


# What the tests do to the machine


@dataclass(frozen=True)
class Disk:
    """A small file system of its own: ext4 in a file, mounted by loop."""

    image: Path
    path: Path

    @property
    def ballast(self) -> Path:
        return self.path / "ballast"

    @property
    def is_mounted(self) -> bool:
        return os.path.ismount(self.path)

    def mount(self, options: str = "loop") -> None:
        command("mount", "-o", options, self.image, self.path)

    def unmount(self) -> None:
        """Unmount it, not lazily: whoever keeps a file open there keeps it from going."""
        eventually(
            lambda: subprocess.run(["umount", self.path], capture_output=True, check=False).returncode == 0,
            f"{self.path} unmounted",
            limit_s=10.0,
        )
        eventually(lambda: not said("losetup", "-j", self.image), f"{self.image} let go of")

    def remount(self, option: str) -> None:
        command("mount", "-o", f"remount,{option}", self.path)

    def fill(self, *, but_bytes: int = 0) -> None:
        """Leave room for `but_bytes` bytes and not one more."""
        spared = self.path / "spared"
        if but_bytes:
            spared.write_bytes(bytes(but_bytes))
            sync(spared)
        with self.ballast.open("ab", buffering=0) as ballast:
            for piece in (1024 * 1024, 4096, 1):
                write_until_full(ballast.fileno(), bytes(piece))
        spared.unlink(missing_ok=True)
        sync(self.path)

    def make_room(self) -> None:
        self.ballast.unlink()
        sync(self.path)

    def break_down(self) -> None:
        """Let the kernel find an error of the file system, upon which it lets nobody write there any more."""
        device = said("findmnt", "-no", "SOURCE", self.path)
        trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
        need(trigger.exists(), "ext4's trigger_fs_error")
        trigger.write_text("heifyd's tests\n")


def said(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def command(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_until_full(fd: int, piece: bytes) -> None:
    try:
        while True:
            os.write(fd, piece)
            os.fsync(fd)
    except OSError:
        return


@contextmanager
def small_disk(root: Path, name: str, megabytes: int = 8, options: str = "loop") -> Iterator[Disk]:
    need_root()
    need_program("mkfs.ext4")
    disk = Disk(root / f"{name}.img", root / name)
    disk.path.mkdir()
    with disk.image.open("wb") as image:
        image.truncate(megabytes * 1024 * 1024)
    command("mkfs.ext4", "-q", "-F", "-m", "0", disk.image)
    disk.mount(options)
    try:
        yield disk
    finally:
        if disk.is_mounted:
            command("umount", "--lazy", disk.path)


def ledger_on(disk: Disk, place: Place) -> Place:
    """Put a place's ledger on another disk."""
    change(place, f"ledger: {place.ledger}", f"ledger: {disk.path}/ledger.sqlite")
    return place


def change(place: Place, old: str, new: str) -> None:
    text = place.config.read_text()
    assert old in text
    place.config.write_text(text.replace(old, new))


def put(folder: Path, *names: str) -> dict[str, bytes]:
    """Write recordings, each with a content of its own, and return them by path."""
    recordings = {name: sample(Path(name).suffix, name) for name in names}
    for name, content in recordings.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return recordings


def numbered(first: int, end: int) -> list[str]:
    return [f"{number}.wav" for number in range(first, end)]


def assert_delivered(recordings: Mapping[str, bytes], sandbox: Sandbox, calls: Path, done: Path | None = None) -> None:
    """Each recording is in Heify under one id, byte for byte, and its file in done/; nothing else is anywhere."""
    done = done or calls / "done"
    stored = sorted(str(each.sha256) for each in sandbox.transcriptions() if each.stored)
    assert stored == sorted(sha256(content) for content in recordings.values())
    assert {path: sha256(file) for path, file in files_below(done).items()} == {
        path: sha256(content) for path, content in recordings.items()
    }
    inside = done.is_relative_to(calls)
    assert set(files_below(calls)) == (
        {os.fspath((done / path).relative_to(calls)) for path in recordings} if inside else set()
    )


def of_owner(daemon: DaemonProcess, name: str, owner: str) -> list[Event]:
    return [event for event in daemon.events(name) if event["owner"] == owner]


# The ledger's disk


def test_a_ledger_whose_disk_is_full_from_the_start_is_waited_for(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    with small_disk(tmp_path, "disk") as disk:
        ledger_on(disk, place)
        disk.fill()
        recordings = put(place.calls, *numbered(0, 3))
        with DaemonProcess(place.config) as daemon:
            (hold,) = daemon.await_event("hold.started")
            assert (hold["scope"], hold["owner"]) == ("everything", "ledger")
            assert not daemon.over
            disk.make_room()
            daemon.started()
            daemon.await_event("recording.done", 3)
            assert len(daemon.events("hold.started")) == len(daemon.events("hold.ended")) == 1
            assert daemon.end() == 0
        assert_delivered(recordings, sandbox, place.calls)


def test_a_daemon_that_waits_for_its_ledger_s_disk_from_the_start_ends_when_it_is_told_to(
    place: Place, tmp_path: Path
) -> None:
    with small_disk(tmp_path, "disk") as disk:
        ledger_on(disk, place)
        disk.fill()
        with DaemonProcess(place.config) as daemon:
            daemon.await_event("hold.started", owner="ledger")
            assert daemon.end() == 0
        assert not daemon.events("daemon.started", "daemon.stuck", "thread.died")


def test_a_ledger_on_a_read_only_disk_is_waited_for_until_it_can_be_written(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    recordings = put(place.calls, *numbered(0, 3))
    with small_disk(tmp_path, "disk") as disk:
        ledger_on(disk, place)
        with running(place) as first:
            first.await_event("recording.done", 3)
        disk.remount("ro")
        recordings |= put(place.calls, *numbered(3, 6))
        with DaemonProcess(place.config) as daemon:
            (hold,) = daemon.await_event("hold.started")
            assert (hold["scope"], hold["owner"]) == ("everything", "ledger")
            disk.remount("rw")
            daemon.started()
            daemon.await_event("recording.done", 3)
            assert len(daemon.events("hold.started")) == len(daemon.events("hold.ended")) == 1
            assert daemon.end() == 0
        assert_delivered(recordings, sandbox, place.calls)


def test_uploads_under_way_and_new_recordings_outlast_a_full_disk_of_the_ledger(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.fail("drip")
    with small_disk(tmp_path, "disk") as disk:
        ledger_on(disk, place)
        with running(place) as daemon:
            recordings = put(place.calls, *numbered(0, 3))
            daemon.await_event("upload.started", 3)
            disk.fill()
            recordings |= put(place.calls, *numbered(3, 10))
            (hold,) = daemon.await_event("hold.started")
            assert (hold["scope"], hold["owner"]) == ("everything", "ledger")
            eventually(lambda: sum(each.stored for each in sandbox.transcriptions()) == 3, "three stored")
            assert not daemon.events("recording.done")
            sandbox.clear_faults()
            disk.make_room()
            daemon.await_event("hold.ended", owner="ledger")
            daemon.await_event("recording.done", 10)
            assert len(daemon.events("hold.started")) == len(daemon.events("hold.ended")) == 1
            assert not status(place)["holds"]
        assert_delivered(recordings, sandbox, place.calls)
        assert [each.puts for each in sandbox.transcriptions()] == [1] * 10


def test_an_upload_whose_progress_finds_no_room_in_the_ledger_goes_on_and_is_whole(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nbandwidth_limit: 1M")
    with small_disk(tmp_path, "disk") as disk:
        ledger_on(disk, place)
        recordings = {"long.wav": sample(".wav") * 200}
        (place.calls / "long.wav").write_bytes(recordings["long.wav"])
        with running(place) as daemon:
            eventually(lambda: status(place)["uploads"], "an upload that is noted")
            disk.fill()
            eventually(lambda: [each for each in sandbox.transcriptions() if each.stored], "the recording in Heify")
            daemon.await_event("hold.started", owner="ledger")
            assert [each["event"] for each in daemon.events("upload.started", "upload.retrying")] == ["upload.started"]
            disk.make_room()
            daemon.await_event("recording.done")
            assert status(place)["uploads"] == []
        assert_delivered(recordings, sandbox, place.calls)


def test_a_stop_while_the_ledger_s_disk_is_full_loses_nothing_and_sends_nothing_under_a_second_id(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.fail("drip")
    with small_disk(tmp_path, "disk") as disk:
        ledger_on(disk, place)
        with running(place) as first:
            recordings = put(place.calls, *numbered(0, 3))
            first.await_event("upload.started", 3)
            disk.fill()
            recordings |= put(place.calls, *numbered(3, 6))
            first.await_event("hold.started", owner="ledger")
            eventually(lambda: sum(each.stored for each in sandbox.transcriptions()) == 3, "three stored")
        assert not first.events("daemon.stuck", "thread.died")
        sandbox.clear_faults()
        disk.make_room()
        with running(place) as second:
            eventually(lambda: len(files_below(place.done)) == 6, "all in done/")
            assert not second.events("upload.repeated")
        assert_delivered(recordings, sandbox, place.calls)
        assert len(sandbox.transcriptions()) == 6


def test_a_ledger_s_file_system_that_breaks_down_holds_everything_and_the_next_start_goes_on(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    """A running daemon keeps its ledger open, so nobody can remount it read-only but the kernel, after an error."""
    with small_disk(tmp_path, "disk", options="loop,errors=remount-ro") as disk:
        ledger_on(disk, place)
        with running(place) as first:
            recordings = put(place.calls, *numbered(0, 3))
            first.await_event("recording.done", 3)
            disk.break_down()
            recordings |= put(place.calls, *numbered(3, 6))
            (hold,) = first.await_event("hold.started")
            assert (hold["scope"], hold["owner"]) == ("everything", "ledger")
        disk.unmount()
        fsck = subprocess.run(["fsck.ext4", "-p", "-f", disk.image], capture_output=True, text=True, check=False)
        assert fsck.returncode in (0, 1), fsck.stdout
        disk.mount()
        with running(place):  # which may tell of the first three again: their ends were not synced yet
            eventually(lambda: len(files_below(place.done)) == len(recordings), "everything filed")
        assert_delivered(recordings, sandbox, place.calls)


@pytest.mark.parametrize("fault", ["full", "broken-down"])
def test_status_tells_while_heifyd_runs_that_its_ledger_cannot_be_written_and_that_it_lives(
    place: Place, tmp_path: Path, fault: str
) -> None:
    with small_disk(tmp_path, "disk", options="loop,errors=remount-ro") as disk:
        ledger_on(disk, place)
        with running(place) as daemon:
            disk.fill() if fault == "full" else disk.break_down()
            put(place.calls, *numbered(0, 3))
            daemon.await_event("hold.started", owner="ledger")
            told = status(place)
            assert (told["running"], told["alive"]) == (True, True)
            assert [(hold["scope"], hold["owner"]) for hold in told["holds"]] == [("everything", "ledger")]


def test_a_watched_status_goes_on_while_the_ledger_cannot_be_written(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    with small_disk(tmp_path, "disk") as disk:
        ledger_on(disk, place)
        with running(place) as daemon:
            watch = [sys.executable, "-m", "heifyd", "status", "--config", str(place.config), "--watch", "0.2"]
            with Terminal(watch, columns=250) as terminal:
                terminal.wait_for_text("heifyd is running")
                disk.fill()
                recordings = put(place.calls, *numbered(0, 3))
                daemon.await_event("hold.started", owner="ledger")
                terminal.wait_for_text("heifyd is running", "held everything", "No space left on device")
                disk.make_room()
                daemon.await_event("recording.done", 3)
                terminal.wait_for(lambda: "held" not in terminal.text, "no hold any more")
                terminal.type("\x03")
                assert terminal.end() == 0
        assert_delivered(recordings, sandbox, place.calls)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_status_tells_of_a_ledger_that_could_not_be_written_from_the_start(
    place: Place, tmp_path: Path, fault: str
) -> None:
    with small_disk(tmp_path, "disk") as disk:
        ledger_on(disk, place)
        put(place.calls, "call.wav")
        with running(place) as first:
            first.await_event("recording.done")
        disk.fill() if fault == "full" else disk.remount("ro")
        put(place.calls, "later.wav")
        with DaemonProcess(place.config) as daemon:
            daemon.await_event("hold.started", owner="ledger")
            told = status(place)
            assert [(hold["scope"], hold["owner"]) for hold in told["holds"]] == [("everything", "ledger")]
            assert told["folders"][0]["done_today"] == 1
            assert daemon.end() == 0


# The disks of done/, failed/ and the log


def test_a_full_disk_of_done_holds_the_folder_and_what_is_uploaded_is_not_sent_again(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    with small_disk(tmp_path, "disk") as disk:
        done = disk.path / "done"
        place = make_place(tmp_path, sandbox.url, settings=QUICK, folder=f"done: {done}")
        done.mkdir()
        disk.fill(but_bytes=8192)  # of a recording's 32 kB
        recordings = put(place.calls, *numbered(0, 4))
        with running(place, SPED_UP, module="tests.rehearsal") as daemon:
            (hold,) = daemon.await_event("hold.started")
            assert (hold["scope"], hold["owner"]) == (str(place.calls), "folder")
            assert "No space left" in hold["detail"]
            recordings |= put(place.calls, "later.wav")
            daemon.await_event("recording.settled", 5)
            assert [name for name in os.listdir(done) if not name.endswith(".heifyd-part")] == []
            assert set(files_below(place.calls)) == set(recordings)
            disk.make_room()
            daemon.await_event("hold.ended", owner="folder")
            daemon.await_event("recording.done", 5)
            assert len(daemon.events("hold.started")) == 1
            assert not daemon.events("recording.failed", "upload.retrying")
        assert_delivered(recordings, sandbox, place.calls, done)
        assert [each.puts for each in sandbox.transcriptions()] == [1] * 5
        assert set(os.listdir(done)) == set(recordings)


def test_a_full_disk_of_failed_holds_the_folder_until_the_file_and_its_reason_have_room(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    with small_disk(tmp_path, "disk") as disk:
        failed = disk.path / "failed"
        place = make_place(tmp_path, sandbox.url, settings=QUICK, folder=f"failed: {failed}")
        failed.mkdir()
        disk.fill()
        (place.calls / "notes.wav").write_text("not a recording " * 100)
        with running(place, SPED_UP, module="tests.rehearsal") as daemon:
            (hold,) = daemon.await_event("hold.started")
            assert (hold["scope"], hold["owner"]) == (str(place.calls), "folder")
            assert os.listdir(failed) == []
            assert (place.calls / "notes.wav").exists()
            disk.make_room()
            daemon.await_event("hold.ended", owner="folder")
            daemon.await_event("recording.failed")
        assert sorted(os.listdir(failed)) == ["notes.wav", "notes.wav.error.json"]
        assert json.loads((failed / "notes.wav.error.json").read_text())["reason"] == "not_audio"
        assert sandbox.transcriptions() == []


def test_where_only_the_failed_file_has_room_no_half_explanation_is_left_beside_it(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    with small_disk(tmp_path, "disk") as disk:
        failed = disk.path / "failed"
        place = make_place(tmp_path, sandbox.url, settings=QUICK, folder=f"failed: {failed}")
        failed.mkdir()
        block = os.statvfs(failed).f_frsize
        disk.fill(but_bytes=block)
        (place.calls / "notes.wav").write_text("n" * block)
        with running(place, SPED_UP, module="tests.rehearsal") as daemon:
            (untold,) = daemon.await_event("filing.unexplained")
            assert "No space left" in untold["detail"]
            (event,) = daemon.await_event("recording.failed")
            assert event["reason"] == "not_audio"
        assert os.listdir(failed) == ["notes.wav"]
        assert files_below(place.calls) == {}


def lines_of(file: Path) -> list[str]:
    return file.read_text(errors="backslashreplace").splitlines() if file.exists() else []


def names_in(file: Path) -> list[str]:
    return [json.loads(line)["event"] for line in lines_of(file) if line.startswith("{") and line.endswith("}")]


def test_a_full_disk_of_the_log_stops_no_work_and_the_lines_that_were_lost_are_counted(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    with small_disk(tmp_path, "disk") as disk:
        log = disk.path / "log"
        with DaemonProcess(place.config, prefix=("sh", "-c", f'exec "$@" >{log}', "sh")) as daemon:
            recordings = put(place.calls, "before.wav")  # also so that what is told once is told
            eventually(lambda: "recording.done" in names_in(log), "a first recording")
            disk.fill()
            recordings |= put(place.calls, *numbered(0, 30))
            eventually(lambda: len(files_below(place.done)) == 31, "all in done/ without a log")
            assert names_in(log).count("recording.done") < 31
            disk.make_room()
            recordings |= put(place.calls, "after.wav")
            eventually(lambda: "after.wav" in log.read_text() and names_in(log)[-1] == "recording.done", "a log again")
            assert daemon.end() == 0
        events = [json.loads(line) for line in lines_of(log)]
        # A disk that is all but full may have room for a line now and then.
        lost = {at: event["lines"] for at, event in enumerate(events) if event["event"] == "log.lost"}
        at = max(lost)
        kept = [event for event in events[:at] if event.get("file")]
        assert "after.wav" not in [event.get("file") for event in events[:at]]
        assert events[at + 1]["file"] == "after.wav"
        assert len(kept) + sum(lost.values()) == 31 * len(("recording.settled", "upload.started", "recording.done"))
        assert_tells_no_secret(log.read_text())
        assert_delivered(recordings, sandbox, place.calls)


def test_a_reader_of_the_log_that_goes_away_stops_no_work_and_the_next_one_is_told(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with DaemonProcess(place.config, prefix=("sh", "-c", f'exec "$@" >{pipe}', "sh")) as daemon:
        recordings = put(place.calls, "before.wav")  # also so that what is told once is told
        with pipe.open() as reader:
            assert any('"recording.done"' in line for line in reader)
        recordings |= put(place.calls, *numbered(0, 5))
        eventually(lambda: len(files_below(place.done)) == 6, "all in done/ without a reader")
        with pipe.open() as reader:
            recordings |= put(place.calls, "after.wav")
            first = json.loads(next(reader))
            assert (first["event"], first["lines"]) == ("log.lost", 15)
            assert any('"recording.done"' in line for line in reader)
            assert daemon.end() == 0
    assert_delivered(recordings, sandbox, place.calls)


# Descriptors


def lowest_free_descriptor(pid: int) -> int:
    """Return the first number that a process's next descriptor would get."""
    used = {int(each) for each in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(used) + 1) if number not in used)


@pytest.mark.parametrize("spare", [0, 2, 4])
def test_used_up_descriptors_lose_nothing_and_end_by_themselves(place: Place, sandbox: Sandbox, spare: int) -> None:
    before = put(place.calls, "before.wav")
    with running(place, SPED_UP, module="tests.rehearsal") as daemon:
        daemon.await_event("recording.done")
        sandbox.fail("request-upload-url 503")
        waiting = put(place.calls, *numbered(0, 3))
        daemon.await_event("hold.started", owner="service")
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (lowest_free_descriptor(daemon.pid) + spare, limits[1]))
        arriving = put(place.calls, *numbered(3, 6))
        sandbox.clear_faults()
        if spare == 0:
            daemon.await_event("folder.unreadable")
            assert "Too many open files" in daemon.output
            assert not daemon.events("folder.missing", "recording.refused", "recording.vanished")
        assert not daemon.over
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
        daemon.await_event("recording.done", 7)
        assert not daemon.events("thread.died", "recording.failed", "recording.vanished", "recording.refused")
        assert "folder_missing" not in [event["reason"] for event in daemon.events("hold.started")]
    assert_delivered(before | waiting | arriving, sandbox, place.calls)


@pytest.mark.parametrize("limit", [8, 16, 48])
def test_few_descriptors_from_the_start_are_enough_or_are_named(place: Place, sandbox: Sandbox, limit: int) -> None:
    recordings = put(place.calls, "call.wav")
    prefix = ("sh", "-c", f'ulimit -S -n {limit}; exec "$@"', "sh")
    with DaemonProcess(place.config, SPED_UP, module="tests.rehearsal", prefix=prefix) as daemon:
        daemon.wait_for(
            lambda: "recording.done" in daemon.output or "open files" in daemon.output or daemon.over, "an outcome"
        )
        if "recording.done" in daemon.output:
            assert daemon.end() == 0
            assert_delivered(recordings, sandbox, place.calls)
            return
        code = daemon.end()
    assert "open files" in daemon.output
    # The signal itself: it was sent to one that had told of the want and was ending of it.
    assert code in (0, 70, 75, 78, -signal.SIGTERM), daemon.output
    assert limit < 48, "so many are enough"
    assert set(files_below(place.calls)) == {"call.wav"}


# Watches


def in_a_namespace_with(what: str, number: int) -> tuple[str, ...]:
    """Return what runs a command where its user may have `number` of an inotify resource."""
    need_program("unshare")
    setting = f"/proc/sys/user/{what}"
    tried = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", f"echo {number} >{setting} && cat {setting}"],
        capture_output=True,
        text=True,
        check=False,
    )
    need(tried.stdout.strip() == str(number), "user namespaces with their own limits of inotify")
    return ("unshare", "-Ur", "sh", "-c", f'echo {number} >{setting}; exec "$@"', "sh")


def test_where_watches_are_used_up_the_folder_is_polled_and_the_log_names_the_setting(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=QUICK, folder="recursive: true")
    recordings = put(place.calls, *(f"agent {number}/before.wav" for number in range(5)))
    with running(place, prefix=in_a_namespace_with("max_inotify_watches", 2)) as daemon:
        (polling,) = daemon.await_event("watch.polling")
        assert "fs.inotify.max_user_watches" in polling["what_to_do"]
        recordings |= put(place.calls, *(f"agent {number}/after.wav" for number in range(3, 8)))
        daemon.await_event("recording.done", 10)
        assert len(daemon.events("watch.polling")) == 1
    assert_delivered(recordings, sandbox, place.calls)


def test_where_inotify_instances_are_used_up_every_folder_is_polled(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=QUICK, folder="recursive: true")
    recordings = put(place.calls, "before.wav")
    with running(place, prefix=in_a_namespace_with("max_inotify_instances", 0)) as daemon:
        assert daemon.events("watch.unavailable")
        recordings |= put(place.calls, "after.wav", "deep/er/after.wav")
        daemon.await_event("recording.done", 3)
    assert_delivered(recordings, sandbox, place.calls)


# Folders that are unmounted


def folder_on(disk: Disk, below: str, root: Path, sandbox: Sandbox) -> tuple[Place, Path]:
    """Lay out a place whose watched folder is on a disk of its own: the mount point itself, or below it."""
    place = make_place(root, sandbox.url, settings=QUICK)
    calls = disk.path / below
    calls.mkdir(exist_ok=True)
    if not below:
        shutil.rmtree(disk.path / "lost+found")
    change(place, f"path: {place.calls}", f"path: {calls}")
    return place, calls


BELOW = pytest.mark.parametrize("below", ["", "calls"], ids=["the-mount-point", "a-directory-on-it"])


@BELOW
def test_a_folder_that_is_unmounted_and_back_loses_no_recording(tmp_path: Path, sandbox: Sandbox, below: str) -> None:
    with small_disk(tmp_path, "disk") as disk:
        place, calls = folder_on(disk, below, tmp_path, sandbox)
        sandbox.fail("request-upload-url 503")
        with running(place, SPED_UP, module="tests.rehearsal") as daemon:
            recordings = put(calls, *numbered(0, 5))
            daemon.await_event("hold.started", owner="service")
            daemon.await_event("recording.settled", 5)
            disk.unmount()
            sandbox.clear_faults()
            (hold,) = daemon.await_event("hold.started", owner="folder")
            assert (hold["scope"], hold["reason"]) == (str(calls), "folder_missing")
            if below:
                daemon.await_event("folder.missing")
            assert files_below(disk.path) == {}
            assert sandbox.transcriptions() == []
            disk.mount()
            daemon.await_event("folder.back")
            daemon.await_event("recording.done", 5)
            daemon.await_event("hold.ended", owner="folder")
            recordings |= put(calls, "after.wav")
            daemon.await_event("recording.done", 6)
            assert not daemon.events("recording.vanished", "recording.failed")
        assert_delivered(recordings, sandbox, calls)


@BELOW
def test_a_daemon_that_is_killed_starts_while_a_folder_that_it_knows_is_unmounted(
    tmp_path: Path, sandbox: Sandbox, below: str
) -> None:
    with small_disk(tmp_path, "disk") as disk:
        place, calls = folder_on(disk, below, tmp_path, sandbox)
        sandbox.fail("request-upload-url 503")
        with DaemonProcess(place.config) as first:
            recordings = put(calls, *numbered(0, 3))
            first.await_event("recording.settled", 3)
            first.end(signal.SIGKILL)
        disk.unmount()
        sandbox.clear_faults()
        with running(place, SPED_UP, module="tests.rehearsal") as second:
            second.await_event("hold.started", owner="folder", reason="folder_missing", scope=str(calls))
            if below:
                second.await_event("folder.missing")
            assert sandbox.transcriptions() == []
            disk.mount()
            second.await_event("recording.done", 3)
            assert not second.events("recording.vanished", "recording.failed")
        assert_delivered(recordings, sandbox, calls)


def test_a_missing_folder_that_heifyd_has_never_had_a_recording_of_is_a_mistake_in_the_configuration(
    place: Place,
) -> None:
    put(place.calls, "call.wav")
    with running(place) as first:
        first.await_event("recording.done")
    with place.config.open("a") as config:
        config.write(f"  - path: {place.root}/never\n    configuration_id: {CONFIGURATION_ID}\n")
    with DaemonProcess(place.config) as second:
        second.wait_for(lambda: second.over, "its end")
        assert second.end() == 78
        assert [event["key"] for event in second.events("config.invalid")] == ["folders[1].path"]


# The clock


POLLED = f"{QUICK}\nwatch: poll"
"""Without watchdog's threads, which sleep: under libfaketime 0.9.10 Python's `time.sleep` always fails (EINVAL)."""


class Clock:
    """A wall clock that one process sees and a test moves; the monotonic clocks stay as they are."""

    def __init__(self, root: Path) -> None:
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        need(libraries, "libfaketime (Debian's package faketime)")
        self._file = root / "clock"
        self.move("+0")
        self.environ = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def move(self, by: str) -> None:
        new = self._file.with_name("new-clock")
        new.write_text(f"{by}\n")
        new.rename(self._file)


def hours_between(first: Event, second: Event) -> float:
    times = [datetime.fromisoformat(event["timestamp"]) for event in (first, second)]
    return (times[1] - times[0]).total_seconds() / 3600


def test_recordings_pass_after_the_clock_has_jumped_either_way(tmp_path: Path, sandbox: Sandbox) -> None:
    clock = Clock(tmp_path)
    place = make_place(tmp_path, sandbox.url, settings=POLLED)
    with running(place, clock.environ) as daemon:
        recordings = put(place.calls, "0.wav")
        daemon.await_event("recording.done", file="0.wav")
        for number, by in enumerate(("+5h", "-5h", "+0"), start=1):
            clock.move(by)
            recordings |= put(place.calls, f"{number}.wav")
            daemon.await_event("recording.done", file=f"{number}.wav")
        done = daemon.events("recording.done")
        assert not [event for event in daemon.events() if event["level"] not in ("info", "warning")]
    jumps = [round(hours_between(before, after)) for before, after in pairwise(done)]
    assert jumps == [5, -10, 5]
    assert_delivered(recordings, sandbox, place.calls)


@pytest.mark.parametrize("by", ["+30d", "-30d"])
def test_a_jump_of_the_clock_neither_stretches_a_wait_nor_ends_retry_for(
    tmp_path: Path, sandbox: Sandbox, by: str
) -> None:
    clock = Clock(tmp_path)
    place = make_place(tmp_path, sandbox.url, settings=f"{POLLED}\nretry_for: 1h")
    sandbox.fail("request-upload-url 500 x2")
    recordings = put(place.calls, "call.wav")
    with running(place, {**clock.environ, "REHEARSAL_SPEED": "3"}, module="tests.rehearsal") as daemon:
        first = daemon.await_event("upload.retrying")[0]
        clock.move(by)
        (done,) = daemon.await_event("recording.done")
        assert len(daemon.events("upload.retrying")) == 2
        assert not daemon.events("recording.failed")
    assert round(hours_between(first, done) / 24) == int(by.rstrip("d"))
    assert_delivered(recordings, sandbox, place.calls)


def test_a_jump_of_the_clock_forward_makes_no_url_of_an_upload_expire(tmp_path: Path, sandbox: Sandbox) -> None:
    clock = Clock(tmp_path)
    place = make_place(tmp_path, sandbox.url, settings=POLLED)
    sandbox.fail("put 500 x1")
    recordings = put(place.calls, "call.wav")
    with running(place, clock.environ) as daemon:
        daemon.await_event("upload.retrying")
        clock.move("+5h")
        daemon.await_event("recording.done")
    assert_delivered(recordings, sandbox, place.calls)
    assert sandbox.counters().requests["request-upload-url"] == {"200": 1}


def test_a_jump_of_the_clock_back_makes_no_expired_url_good_again(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with Sandbox(tmp_path / "heify", rate_limit=None, url_lifetime_s=2) as sandbox:
        place = make_place(tmp_path, sandbox.url, settings=POLLED)
        sandbox.fail("put 500 x2")
        recordings = put(place.calls, "call.wav")
        with running(place, clock.environ) as daemon:
            daemon.await_event("upload.retrying", 2)  # the third time comes after three seconds at the earliest
            clock.move("-5h")
            daemon.await_event("recording.done")
        assert_delivered(recordings, sandbox, place.calls)
        assert sandbox.counters().requests["put"] == {"500": 2, "200": 1}, "an expired URL was used"


# The API key


WRONG_KEY = "a-key-that-heify-does-not-know"


def test_a_refused_key_holds_everything_until_its_file_has_the_right_one(place: Place, sandbox: Sandbox) -> None:
    key = place.root / "key"
    recordings = put(place.calls, "0.wav")
    with running(place, SPED_UP, module="tests.rehearsal") as daemon:
        daemon.await_event("recording.done")
        key.write_text(WRONG_KEY)
        recordings |= put(place.calls, "1.wav", "2.wav")
        (hold,) = daemon.await_event("hold.started")
        assert (hold["scope"], hold["owner"], hold["reason"]) == ("everything", "account", "key_refused")
        key.write_text(API_KEY)
        daemon.await_event("hold.ended", owner="account")
        daemon.await_event("recording.done", 3)
        assert len(daemon.events("hold.started")) == 1
        assert WRONG_KEY not in daemon.output
    assert sandbox.counters().requests["request-upload-url"]["403"] >= 1
    assert_delivered(recordings, sandbox, place.calls)


def lose(key: Path) -> None:
    key.rename(key.with_name("lost"))


def find(key: Path) -> None:
    key.with_name("lost").rename(key)


def expose(key: Path) -> None:
    key.chmod(0o644)


def hide(key: Path) -> None:
    key.chmod(0o600)


def empty(key: Path) -> None:
    key.write_text("")


def refill(key: Path) -> None:
    key.write_text(API_KEY)


@pytest.mark.parametrize(
    ("spoil", "mend", "said"),
    [
        pytest.param(lose, find, "No such file", id="deleted"),
        pytest.param(expose, hide, "can be read by every user", id="exposed"),
        pytest.param(empty, refill, "is empty", id="empty"),
    ],
)
def test_a_key_file_that_cannot_be_used_while_heifyd_runs_holds_everything_and_says_why(
    place: Place, sandbox: Sandbox, spoil: Callable[[Path], None], mend: Callable[[Path], None], said: str
) -> None:
    key = place.root / "key"
    with running(place, SPED_UP, module="tests.rehearsal") as daemon:
        spoil(key)
        recordings = put(place.calls, "0.wav", "1.wav")
        (hold,) = daemon.await_event("hold.started")
        assert (hold["scope"], hold["owner"], hold["reason"]) == ("everything", "account", "key_unreadable")
        assert said in hold["detail"]
        assert sandbox.counters().requests == {}
        mend(key)
        daemon.await_event("hold.ended", owner="account")
        daemon.await_event("recording.done", 2)
        assert len(daemon.events("hold.started")) == 1
    assert_delivered(recordings, sandbox, place.calls)


def test_a_key_file_that_others_may_read_is_refused_at_the_start_unless_it_is_allowed(
    place: Place, sandbox: Sandbox
) -> None:
    expose(place.root / "key")
    recordings = put(place.calls, "call.wav")
    with DaemonProcess(place.config) as refused:
        refused.wait_for(lambda: refused.over, "its end")
        assert refused.end() == 78
        (problem,) = refused.events("config.invalid")
        assert problem["key"] == "api.key_file"
        assert "chmod o-r" in problem["detail"]
    change(place, "api:\n", "api:\n  allow_readable_key: true\n")
    with running(place) as allowed:
        allowed.await_event("recording.done")
    assert_delivered(recordings, sandbox, place.calls)


# The process itself


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_process_that_is_stopped_and_continued_goes_on(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail("drip")
    with running(place) as daemon:
        recordings = put(place.calls, *numbered(0, 3))
        daemon.await_event("upload.started", 3)
        daemon.send(signal.SIGSTOP)
        eventually(lambda: is_stopped(daemon.pid), "a stopped process")
        recordings |= put(place.calls, *numbered(3, 10))
        sandbox.clear_faults()
        assert not daemon.events("recording.done")
        daemon.send(signal.SIGCONT)
        daemon.await_event("recording.done", 10)
        assert not daemon.events("thread.died", "hold.started", "recording.failed")
    assert_delivered(recordings, sandbox, place.calls)
