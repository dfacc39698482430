"""Whether heifyd gets on: what hangs, what is told of it, and what goes on all the same."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from heifyd.heify import FIRST_PIECE_BYTES, PIECE_BYTES, Heify
from heifyd.recording import Ids
from heifyd.sandbox import API_KEY, CONFIGURATION_ID, Sandbox
from tests.acceptance.test_resources import small_disk
from tests.harness import (
    LIMIT_S,
    ROOT,
    DaemonProcess,
    Place,
    assert_tells_no_secret,
    eventually,
    holds,
    hurrying,
    lay_out,
    make_place,
    need_program,
    need_root,
    running,
    sample,
)

OFTEN = {"REHEARSAL_LOOK_S": "0.5"}
"""The main thread looks every half second, and a heartbeat is old after one and a half."""

HANG = {"REHEARSAL_KILL": "claimed", "REHEARSAL_HANG_S": "3600", "REHEARSAL_STEP_S": "2"}
"""Whoever takes on a recording hangs, and is late two seconds later."""

SETTINGS = "settle_seconds: 0.3\nrescan_seconds: 0.5"


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=SETTINGS)


def health(place: Place, *options: str) -> tuple[int, str]:
    """Run `heifyd health`, and return how it ended and what it said."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.rehearsal", "health", "--config", str(place.config), *options],
        capture_output=True,
        text=True,
        env={**os.environ, **OFTEN},
        cwd=ROOT,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.stderr == ""
    assert_tells_no_secret(run.stdout)
    return run.returncode, run.stdout


def health_as_json(place: Place) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(health(place, "--json")[1])
    return told


@dataclass(frozen=True)
class Share:
    """A FUSE file system whose server can be stopped: whoever asks it anything hangs until it goes on."""

    path: Path
    server: "subprocess.Popen[bytes]"

    def die(self) -> None:
        self.server.send_signal(signal.SIGSTOP)

    def revive(self) -> None:
        self.server.send_signal(signal.SIGCONT)


@contextmanager
def share(root: Path) -> Iterator[Share]:
    need_root()
    bindfs = need_program("bindfs")
    (root / "server").mkdir()
    (root / "share").mkdir()
    server = subprocess.Popen([bindfs, "-f", "-o", "attr_timeout=0,entry_timeout=0", root / "server", root / "share"])
    try:
        eventually(lambda: os.path.ismount(root / "share"), "the share")
        yield Share(root / "share", server)
    finally:
        server.send_signal(signal.SIGCONT)
        subprocess.run(["umount", "--lazy", root / "share"], check=True)
        server.terminate()
        server.wait(LIMIT_S)


def with_folder(place: Place, folder: Path) -> None:
    with place.config.open("a") as config:
        config.write(f"  - path: {folder}\n    configuration_id: {CONFIGURATION_ID}\n    settle_seconds: 0\n")


# A folder that does not answer


def test_a_share_that_is_dead_at_the_start_keeps_no_other_folder_waiting(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    with share(tmp_path) as dead:
        with_folder(place, dead.path)
        sandbox.fail("402")
        more_than_workers = lay_out(dead.path, *(f"{number}.wav" for number in range(6)))
        with running(place) as before:
            before.await_event("recording.settled", len(more_than_workers))
        sandbox.clear_faults()
        dead.die()
        with running(place, OFTEN, module="tests.rehearsal") as daemon:
            (told,) = daemon.await_event("folder.unresponsive")
            (place.calls / "call.wav").write_bytes(sample(".wav"))
            daemon.await_event("recording.done", file="call.wav")
            code, said = health(place)
            assert code == 0, said
            assert f"{dead.path}: it does not answer" in said

            dead.revive()
            daemon.await_event("folder.back", folder=str(dead.path))
            daemon.await_event("recording.done", len(more_than_workers), folder=str(dead.path))
            eventually(lambda: health(place) == (0, "alive\n"), "good health")
    assert told["folder"] == str(dead.path)
    assert "server" in told["what_to_do"]


def test_a_share_that_dies_later_is_told_of_and_starves_no_watchdog(place: Place, tmp_path: Path) -> None:
    with share(tmp_path) as dying, listening(tmp_path) as manager:
        with_folder(place, dying.path)
        environ = {**OFTEN, **manager.environ, "WATCHDOG_USEC": "1000000"}
        with hurrying(place, environ) as daemon:
            manager.wait_for("READY=1")
            dying.die()
            daemon.await_event("folder.unresponsive", folder=str(dying.path))
            eventually(
                lambda: [hold["scope"] for hold in health_as_json(place)["holds"]] == [str(dying.path)], "a hold"
            )
            manager.wait_for("WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1")
            (place.calls / "call.wav").write_bytes(sample(".wav"))
            daemon.await_event("recording.done", file="call.wav")

            daemon.send(signal.SIGHUP)  # the thread that hangs is left behind, the others are taken over
            daemon.await_event("daemon.started", 2)
            (place.calls / "another.wav").write_bytes(sample(".wav", "another"))
            daemon.await_event("recording.done", file="another.wav")
            dying.revive()
            daemon.await_event("folder.back", folder=str(dying.path))
    assert not daemon.events("thread.unresponsive", "thread.died", "daemon.stuck")


def test_status_and_check_do_not_wait_for_a_dead_share(place: Place, tmp_path: Path) -> None:
    with share(tmp_path) as dead:
        with_folder(place, dead.path)
        with running(place):
            pass
        dead.die()
        (hold,) = holds(place)
        check = subprocess.run(
            [sys.executable, "-m", "heifyd", "check", "--config", str(place.config)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=LIMIT_S,
            check=False,
        )
    assert (hold["scope"], hold["reason"]) == (str(dead.path), "folder_unresponsive")
    assert check.returncode == 78
    assert "does not answer; see to the share it is on" in check.stderr


# A thread that hangs


def test_a_worker_that_hangs_ends_the_daemon_where_no_service_manager_does(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{SETTINGS}\nshutdown_grace: 0.5")
    (place.calls / "call.wav").write_bytes(sample(".wav"))
    with DaemonProcess(place.config, {**OFTEN, **HANG}, module="tests.rehearsal") as daemon:
        (told,) = daemon.await_event("thread.unresponsive")
        daemon.wait_for(lambda: daemon.over, "its end")
        assert daemon.end() == 70
    assert told["thread"].startswith("upload-")
    with running(place) as again:
        again.await_event("recording.done", file="call.wav")


def test_a_worker_that_hangs_starves_the_watchdog_and_the_heartbeat(place: Place, tmp_path: Path) -> None:
    (place.calls / "call.wav").write_bytes(sample(".wav"))
    with listening(tmp_path) as manager:
        environ = {**OFTEN, **HANG, **manager.environ, "WATCHDOG_USEC": "1000000"}
        with DaemonProcess(place.config, environ, module="tests.rehearsal") as daemon:
            daemon.await_event("thread.unresponsive")
            manager.forget()
            eventually(lambda: health(place)[0] == 1, "a stale heartbeat")
            assert "WATCHDOG=1" not in manager.lines()
            assert "hanging" in health(place)[1]


@pytest.mark.parametrize("disk_is_full", [False, True])
def test_a_thread_that_waits_for_longer_than_a_step_may_take_hangs_not(
    tmp_path: Path,
    sandbox: Sandbox,
    disk_is_full: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    """It has nothing to do, or waits for room on the ledger's disk."""
    environ = {**OFTEN, "REHEARSAL_STEP_S": "1"}
    place = make_place(tmp_path, sandbox.url, settings="settle_seconds: 0.3\nrescan_seconds: 4")
    with small_disk(tmp_path, "disk") as disk:
        place.config.write_text(place.config.read_text().replace(str(place.ledger), f"{disk.path}/ledger.sqlite"))
        with running(place, environ, module="tests.rehearsal") as daemon:
            if disk_is_full:
                disk.fill()
                lay_out(place.calls, "a.wav", "b.wav")
                daemon.await_event("hold.started", owner="ledger")
            looks = [health(place)[0] for _ in range(10)]
            if disk_is_full:
                disk.make_room()
                daemon.await_event("recording.done", 2)
        assert set(looks) == {0}
    assert not daemon.events("thread.unresponsive", "folder.unresponsive")


def test_a_slow_upload_is_no_thread_that_hangs(tmp_path: Path, sandbox: Sandbox) -> None:
    """It takes longer than all that a request may wait for, together, but its pieces move."""
    place = make_place(tmp_path, sandbox.url, settings=f"{SETTINGS}\nbandwidth_limit: 1k")
    lay_out(place.calls, "call.wav", times=24)
    with hurrying(place, OFTEN) as daemon:
        (done,) = daemon.await_event("recording.done")
    assert done["put_ms"] > 700_000
    assert not daemon.events("thread.unresponsive")


def test_each_piece_of_an_upload_is_a_sign_of_life(tmp_path: Path, sandbox: Sandbox) -> None:
    told: list[float | str] = []
    call = tmp_path / "call.wav"
    call.write_bytes(bytes(3 * PIECE_BYTES))
    heify = Heify(sandbox.url, lambda: API_KEY, connections=1, beat=told.append)
    with closing(heify), call.open("rb") as file:
        ticket = heify.request_upload(Ids(CONFIGURATION_ID, None, None), "call")
        told.clear()
        heify.put(ticket, file.fileno(), 3 * PIECE_BYTES, "audio/wav", sent=lambda _bytes: told.append("sent"))
    assert told.count("sent") >= 3
    pieces = [at for at, each in enumerate(told) if each == "sent"]
    for at in pieces:
        reading, sending = told[at - 2 : at]
        assert reading == 0.0  # a disk is given no more time than any step
        assert isinstance(sending, float)
        assert sending >= FIRST_PIECE_BYTES / 1000  # a link of a kilobyte a second is one that works
    assert isinstance(told[-1], float)  # and then the answer is waited for
    assert told[-1] > 60


# Health


def test_health_tells_a_daemon_that_runs_from_one_that_is_stopped_and_one_that_has_ended(place: Place) -> None:
    with running(place, OFTEN, module="tests.rehearsal") as daemon:
        assert health(place) == (0, "alive\n")
        daemon.send(signal.SIGSTOP)
        eventually(lambda: health(place)[0] == 1, "a stale heartbeat")
        code, said = health(place)
        assert said.startswith("hanging: ")
        assert health_as_json(place)["state"] == "hanging"
        daemon.send(signal.SIGCONT)
        eventually(lambda: health(place) == (0, "alive\n"), "good health")
    code, said = health(place)
    assert (code, len(said.splitlines())) == (1, 1)
    assert said.startswith(f"not running: no heifyd uses {place.ledger}")


def test_what_is_held_is_told_and_is_no_ill_health(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail("402")
    (place.calls / "call.wav").write_bytes(sample(".wav"))
    with running(place, OFTEN, module="tests.rehearsal") as daemon:
        daemon.await_event("hold.started")
        code, said = health(place)
        told = health_as_json(place)
    assert code == 0
    assert said.startswith("alive, but held:\n  everything: Heify answered 402")
    assert (told["state"], told["running"], told["alive"]) == ("held", True, True)
    assert [(hold["scope"], hold["reason"]) for hold in told["holds"]] == [("everything", "out_of_minutes")]


def test_health_before_the_first_start_is_not_running(place: Place) -> None:
    code, said = health(place)
    assert code == 1
    assert said.startswith("not running: ")
    assert not place.ledger.exists()


# The service manager


class Listening:
    """A service manager's end of its socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.environ: Mapping[str, str] = {"NOTIFY_SOCKET": str(path)}
        self._lines: list[str] = []

    def lines(self) -> list[str]:
        """Return all lines that have come so far."""
        self._socket.setblocking(False)
        try:
            while True:
                self._lines += self._socket.recv(65536).decode().split("\n")
        except BlockingIOError:
            return self._lines

    def forget(self) -> None:
        self.lines()
        self._lines = []

    def wait_for(self, *lines: str) -> None:
        """Wait for lines that come one after the other, others between them."""

        def have_come() -> bool:
            come = iter(self.lines())
            return all(line in come for line in lines)

        eventually(have_come, f"{lines} in {self._lines}")

    def statuses(self) -> list[str]:
        return [line.removeprefix("STATUS=") for line in self.lines() if line.startswith("STATUS=")]

    def close(self) -> None:
        self._socket.close()


@contextmanager
def listening(root: Path) -> Iterator[Listening]:
    with closing(Listening(root / "notify")) as manager:
        yield manager


def test_the_service_manager_is_told_of_each_stage_and_what_is_done(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.fail("402")
    with listening(tmp_path) as manager:
        with running(place, {**OFTEN, **manager.environ}, module="tests.rehearsal") as daemon:
            manager.wait_for("READY=1", "STATUS=1 folders, 0 waiting, 0 uploading")
            assert daemon.events("folder.watched")
            (place.calls / "call.wav").write_bytes(sample(".wav"))
            manager.wait_for("STATUS=1 folders, 1 waiting, 0 uploading, held: everything (out_of_minutes)")
            sandbox.clear_faults()

            daemon.send(signal.SIGHUP)
            manager.wait_for("RELOADING=1", "READY=1")
            daemon.await_event("recording.done")
            manager.forget()

            place.config.write_text(place.config.read_text() + "worker: 2\n")
            daemon.send(signal.SIGHUP)
            manager.wait_for("RELOADING=1", "READY=1")
            (said,) = manager.statuses()
            assert said.startswith("the new configuration is rejected, the former one goes on (")
            assert "did you mean workers?" in said
            manager.forget()
        assert manager.lines()[0] == "STOPPING=1"


def test_a_stop_that_takes_longer_asks_the_service_manager_for_time(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{SETTINGS}\nshutdown_grace: 2")
    sandbox.fail("drip")
    (place.calls / "call.wav").write_bytes(sample(".wav") * 40)
    with listening(tmp_path) as manager:
        with running(place, {**OFTEN, **manager.environ}, module="tests.rehearsal") as daemon:
            daemon.await_event("upload.started")
        manager.wait_for("STOPPING=1", "EXTEND_TIMEOUT_USEC=60000000", "EXTEND_TIMEOUT_USEC=60000000")
