"""`heifyd retry` brings back what failed, and `heifyd status` tells the truth, whatever the daemon is going through."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from heifyd.sandbox import Sandbox
from tests.harness import (
    LIMIT_S,
    DaemonProcess,
    Place,
    eventually,
    files_below,
    make_place,
    need,
    need_root,
    running,
    sample,
    sha256,
    status,
)

QUICK = "settle_seconds: 0.2\nrescan_seconds: 0.5"
SPED_UP = {"REHEARSAL_SPEED": "30"}
ODD_NAMES = (
    "a line\nbreak.wav",
    "quo\"te's \\ & <b>.wav",
    os.fsdecode(b"\xff\xfe.wav"),
    "x" * 251 + ".wav",
    os.fsdecode("ü".encode() * 125 + b"\xff.wav"),
    "-rf ~ {stem}*?.wav",
)
REFUSAL = 'request-upload-url 400 "Unsupported audio format"'


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=QUICK, folder="recursive: true")


def command(*arguments: str, cwd: Path | None = None) -> "subprocess.Popen[str]":
    """Begin a command; it prints for a terminal 200 columns wide."""
    return subprocess.Popen(
        [sys.executable, "-m", "heifyd", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
    )


def ended(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    with process:
        out, err = process.communicate(timeout=LIMIT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def retry(place: Place, *arguments: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return ended(command("retry", "--config", str(place.config), *(os.fspath(each) for each in arguments), cwd=cwd))


def put(folder: Path, *names: str) -> dict[str, bytes]:
    """Write recordings, each with a content of its own, and return them by path."""
    recordings = {name: sample(".wav", os.fsencode(name).hex()) for name in names}
    for name, content in recordings.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return recordings


def failed(place: Place, sandbox: Sandbox, *names: str) -> dict[str, bytes]:
    """Let Heify refuse recordings, so that they lie in failed/, and return them; no daemon runs after."""
    sandbox.fail(REFUSAL)
    recordings = put(place.calls, *names)
    with running(place) as daemon:
        daemon.await_event("recording.failed", len(names))
    sandbox.clear_faults()
    assert not [each for each in sandbox.transcriptions() if each.stored]
    return recordings


def recordings_in(directory: Path) -> dict[str, str]:
    """Return the hashes of the recordings below a directory, explanations left out."""
    return {path: sha256(file) for path, file in files_below(directory).items() if not path.endswith(".error.json")}


def hashes(recordings: Mapping[str, bytes]) -> dict[str, str]:
    return {path: sha256(content) for path, content in recordings.items()}


def stored(sandbox: Sandbox) -> list[str]:
    return sorted(str(each.sha256) for each in sandbox.transcriptions() if each.stored)


def assert_delivered(recordings: Mapping[str, bytes], sandbox: Sandbox, place: Place) -> None:
    """Each recording is in Heify under one id, its file is in done/, and nothing else is in the folder."""
    assert stored(sandbox) == sorted(hashes(recordings).values())
    assert recordings_in(place.done) == hashes(recordings)
    assert set(files_below(place.calls)) == {f"done/{path}" for path in recordings}


# retry


def test_several_are_brought_back_at_once_by_paths_relative_to_where_one_stands(place: Place, sandbox: Sandbox) -> None:
    recordings = failed(place, sandbox, "a.wav", "sub/b.wav", "c.wav", "d.wav")
    run = retry(place, "a.wav", Path("sub", "b.wav"), Path("..", "c.wav"), cwd=place.failed)
    assert (run.returncode, run.stderr) == (0, "")
    assert sorted(run.stdout.splitlines()) == sorted(
        f"{place.calls}/{name}" for name in ("a.wav", "sub/b.wav", "c.wav")
    )
    assert set(files_below(place.failed)) == {"d.wav", "d.wav.error.json"}
    assert status(place)["folders"][0]["failed"] == 1
    del recordings["d.wav"]
    with running(place) as daemon:
        daemon.await_event("recording.done", 3)
    assert stored(sandbox) == sorted(hashes(recordings).values())
    assert recordings_in(place.done) == hashes(recordings)


def test_what_was_moved_and_renamed_in_failed_goes_back_to_its_own_name_and_leaves_no_reason_behind(
    place: Place, sandbox: Sandbox
) -> None:
    recordings = failed(place, sandbox, "sub/with its reason.wav", "sub/without.wav", "other.wav")
    looked_at = place.failed / "looked at"
    looked_at.mkdir()
    (place.failed / "sub" / "with its reason.wav").rename(looked_at / "1.wav")
    (place.failed / "sub" / "with its reason.wav.error.json").rename(looked_at / "1.wav.error.json")
    (place.failed / "sub" / "without.wav").rename(looked_at / "2.wav")
    run = retry(place, looked_at / "1.wav", looked_at / "2.wav")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{place.calls}/sub/with its reason.wav\n{place.calls}/sub/without.wav\n"
    assert set(files_below(place.failed)) == {"other.wav", "other.wav.error.json"}
    assert status(place)["folders"][0]["failed"] == 1
    del recordings["other.wav"]
    with running(place) as daemon:
        daemon.await_event("recording.done", 2)
    assert recordings_in(place.done) == hashes(recordings)


def test_a_name_that_was_taken_meanwhile_is_not_overwritten(place: Place, sandbox: Sandbox) -> None:
    old = failed(place, sandbox, "call.wav")["call.wav"]
    new = sample(".wav", "the next call of that name")
    (place.calls / "call.wav").write_bytes(new)
    run = retry(place, place.failed / "call.wav")
    assert (run.returncode, run.stdout) == (0, f"{place.calls}/call~1.wav\n")
    assert (place.calls / "call.wav").read_bytes() == new
    with running(place) as daemon:
        daemon.await_event("recording.done", 2)
    assert_delivered({"call.wav": new, "call~1.wav": old}, sandbox, place)


def test_recordings_of_any_name_are_brought_back(place: Place, sandbox: Sandbox) -> None:
    recordings = failed(place, sandbox, *ODD_NAMES)
    run = retry(place, *(place.failed / name for name in ODD_NAMES))
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout.splitlines()) == len(ODD_NAMES)
    assert recordings_in(place.calls) == hashes(recordings)
    assert files_below(place.failed) == {}
    with running(place) as daemon:
        daemon.await_event("recording.done", len(ODD_NAMES))
    assert_delivered(recordings, sandbox, place)


def test_a_recording_that_had_arrived_before_it_failed_is_not_sent_again(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nretry_for: 0.5")
    sandbox.fail("cut-answer x2")
    recordings = put(place.calls, "call.wav")
    with running(place) as daemon:
        (event,) = daemon.await_event("recording.failed")
        assert event["reason"] == "retries_ended"
        (arrived,) = sandbox.transcriptions()
        assert (arrived.stored, arrived.puts) == (True, 2)
        assert retry(place, place.failed / "call.wav").returncode == 0
        (done,) = daemon.await_event("recording.done")
        assert not daemon.events("upload.repeated")
    assert done["transcription_id"] == arrived.transcription_id
    assert sandbox.transcriptions() == [arrived]
    assert_delivered(recordings, sandbox, place)


def test_what_has_not_failed_is_refused_with_a_message_and_what_has_is_brought_back_all_the_same(
    place: Place, sandbox: Sandbox
) -> None:
    failed(place, sandbox, "bad.wav")
    put(place.calls, "good.wav")
    with running(place) as daemon:
        daemon.await_event("recording.done")
    put(place.calls, "waiting.wav")
    asked = (place.done / "good.wav", place.calls / "good.wav", place.calls / "waiting.wav", place.root / "nothing.wav")
    run = retry(place, *asked, place.failed / "bad.wav")
    assert run.returncode == 1
    assert run.stderr.splitlines() == [f"{each}: no failed recording lies there or was called so" for each in asked]
    assert run.stdout == f"{place.calls}/bad.wav\n"
    assert set(files_below(place.calls)) == {"done/good.wav", "waiting.wav", "bad.wav"}


def test_a_folder_that_is_not_configured_is_a_mistake_of_the_command_line(place: Place, sandbox: Sandbox) -> None:
    failed(place, sandbox, "call.wav")
    run = retry(place, "--folder", place.root)
    assert run.returncode == 2
    assert "not a folder of" in run.stderr
    assert set(files_below(place.calls)) == {"failed/call.wav", "failed/call.wav.error.json"}


def test_what_cannot_be_brought_back_now_stays_where_it_is_with_its_reason(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=QUICK, folder=f"failed: {tmp_path}/elsewhere")
    elsewhere = tmp_path / "elsewhere"
    recordings = failed(place, sandbox, "call.wav")
    place.calls.rename(tmp_path / "away")
    run = retry(place, elsewhere / "call.wav")
    assert run.returncode == 1
    assert run.stderr == f"{elsewhere}/call.wav: No such file or directory\n"
    assert set(files_below(elsewhere)) == {"call.wav", "call.wav.error.json"}
    (tmp_path / "away").rename(place.calls)
    assert retry(place, "--all").returncode == 0
    with running(place) as daemon:
        daemon.await_event("recording.done")
    assert_delivered(recordings, sandbox, place)


def test_many_are_brought_back_while_the_daemon_is_at_work_on_others(place: Place, sandbox: Sandbox) -> None:
    recordings = failed(place, sandbox, *(f"bad/{number}.wav" for number in range(20)))
    with running(place) as daemon:
        recordings |= put(place.calls, *(f"new/{number}.wav" for number in range(40)))
        daemon.await_event("upload.started")
        run = retry(place, "--all")
        assert (run.returncode, len(run.stdout.splitlines())) == (0, 20)
        daemon.await_event("recording.done", 60)
    assert_delivered(recordings, sandbox, place)


def test_two_persons_who_bring_back_the_same_at_once_bring_each_back_once(place: Place, sandbox: Sandbox) -> None:
    recordings = failed(place, sandbox, *(f"{number}.wav" for number in range(20)))
    with running(place) as daemon:
        both = [command("retry", "--config", str(place.config), "--all") for _ in range(2)]
        runs = [ended(process) for process in both]
        daemon.await_event("recording.done", 20)
    brought = sorted(line for run in runs for line in run.stdout.splitlines())
    assert brought == sorted(f"{place.calls}/{name}" for name in recordings)
    assert "Traceback" not in "".join(run.stderr for run in runs)
    assert_delivered(recordings, sandbox, place)


def test_a_ledger_that_another_program_has_locked_is_waited_for(place: Place, sandbox: Sandbox) -> None:
    recordings = failed(place, sandbox, "call.wav")
    locked = sqlite3.connect(place.ledger, isolation_level=None)
    try:
        locked.execute("BEGIN IMMEDIATE")
        process = command("retry", "--config", str(place.config), "--all")
        while not (place.calls / "call.wav").exists() and process.poll() is None:
            threading.Event().wait(0.05)
        assert process.poll() is None
        assert the_folder(status(place), place)["failed"] == 1
        locked.execute("ROLLBACK")
        run = ended(process)
    finally:
        locked.close()
    assert (run.returncode, run.stdout) == (0, f"{place.calls}/call.wav\n")
    assert the_folder(status(place), place)["failed"] == 0
    with running(place) as daemon:
        daemon.await_event("recording.done")
    assert_delivered(recordings, sandbox, place)


# status


def the_folder(told: Mapping[str, Any], place: Place) -> dict[str, Any]:
    (folder,) = (each for each in told["folders"] if each["folder"] == str(place.calls))
    found: dict[str, Any] = folder
    return found


def test_status_of_a_daemon_with_nothing_to_do_tells_of_nothing(place: Place) -> None:
    with running(place):
        told = status(place)
    assert (told["running"], told["ledger"], told["holds"]) == (True, str(place.ledger), [])
    assert told["folders"] == [
        {
            "folder": str(place.calls),
            "configured": True,
            "waiting": 0,
            "uploading": 0,
            "done_today": 0,
            "failed": 0,
            "oldest_s": None,
        }
    ]
    assert told["uploads"] == []


def out_of_minutes(_: Place, sandbox: Sandbox) -> None:
    sandbox.fail("402")


def outage(_: Place, sandbox: Sandbox) -> None:
    sandbox.fail("request-upload-url 503")


def unknown_configuration(_: Place, sandbox: Sandbox) -> None:
    sandbox.fail('request-upload-url 404 "Configuration not found or does not belong to your account"')


def done_written_by_nobody(place: Place, _: Sandbox) -> None:
    """Let nobody write there, root included."""
    need_root()
    place.done.mkdir()
    need(subprocess.run(["chattr", "+i", place.done], capture_output=True, check=False).returncode == 0, "chattr +i")


def file_for_done(place: Place, _: Sandbox) -> None:
    place.done.write_text("a file stands where the directory should be")


def service_back(_: Place, sandbox: Sandbox) -> None:
    sandbox.clear_faults()


def done_writable(place: Place, _: Sandbox) -> None:
    subprocess.run(["chattr", "-i", place.done], check=True)


def no_file_for_done(place: Place, _: Sandbox) -> None:
    place.done.unlink()


@pytest.mark.parametrize(
    ("spoil", "mend", "of_everything", "owner", "reason"),
    [
        pytest.param(out_of_minutes, service_back, True, "account", "out_of_minutes", id="402"),
        pytest.param(outage, service_back, True, "service", "http_503", id="outage"),
        pytest.param(unknown_configuration, service_back, False, "mapping", "mapping_refused", id="mapping"),
        pytest.param(done_written_by_nobody, done_writable, False, "folder", "filing", id="done-unwritable"),
        pytest.param(file_for_done, no_file_for_done, False, "folder", "filing", id="done-is-a-file"),
    ],
)
def test_status_tells_what_is_held_and_why_as_long_as_it_is(
    place: Place,
    sandbox: Sandbox,
    spoil: Callable[[Place, Sandbox], None],
    mend: Callable[[Place, Sandbox], None],
    owner: str,
    reason: str,
    *,
    of_everything: bool,
) -> None:
    with running(place, SPED_UP, module="tests.rehearsal") as daemon:
        spoil(place, sandbox)
        try:
            recordings = put(place.calls, "a.wav", "b.wav", "c.wav")
            (event,) = daemon.await_event("hold.started")
            daemon.await_event("recording.settled", 3)
            told = status(place)
        finally:
            mend(place, sandbox)
        (hold,) = told["holds"]
        scope = "everything" if of_everything else str(place.calls)
        assert (hold["scope"], hold["owner"], hold["reason"]) == (scope, owner, reason)
        assert hold["advice"] == event["what_to_do"]
        assert hold["detail"]
        counts = the_folder(told, place)
        assert (counts["waiting"] + counts["uploading"], counts["done_today"], counts["failed"]) == (3, 0, 0)
        assert counts["oldest_s"] >= 0
        daemon.await_event("hold.ended")
        daemon.await_event("recording.done", 3)
        after = status(place)
        assert after["holds"] == []
        assert (the_folder(after, place)["done_today"], the_folder(after, place)["oldest_s"]) == (3, None)
    assert_delivered(recordings, sandbox, place)


@pytest.mark.parametrize("waits", [True, False], ids=["with-recordings", "without-recordings"])
def test_status_tells_of_a_folder_that_is_missing(place: Place, sandbox: Sandbox, *, waits: bool) -> None:
    sandbox.fail("request-upload-url 503")
    recordings = put(place.calls, "a.wav", "b.wav", "c.wav") if waits else {}
    away = place.root / "away"
    with running(place, SPED_UP, module="tests.rehearsal") as daemon:
        if waits:
            daemon.await_event("hold.started", owner="service")
        place.calls.rename(away)
        sandbox.clear_faults()
        daemon.await_event("folder.missing")
        if waits:
            daemon.await_event("hold.started", owner="folder")
        told = status(place)
        assert told["running"] is True
        holds = [(hold["scope"], hold["owner"], hold["reason"]) for hold in told["holds"]]
        assert (str(place.calls), "folder", "folder_missing") in holds
        assert the_folder(told, place)["waiting"] + the_folder(told, place)["uploading"] == len(recordings)
        away.rename(place.calls)
        daemon.await_event("folder.back")
        daemon.await_event("recording.done", len(recordings))
        assert status(place)["holds"] == []


def test_status_tells_of_a_missing_folder_also_where_no_daemon_runs(place: Place) -> None:
    put(place.calls, "call.wav")
    with running(place) as daemon:
        daemon.await_event("recording.done")
    place.calls.rename(place.root / "away")
    told = status(place)
    assert told["running"] is False
    assert [(hold["owner"], hold["reason"]) for hold in told["holds"]] == [("folder", "folder_missing")]
    assert the_folder(told, place)["done_today"] == 1


def test_status_of_a_daemon_that_was_killed_tells_of_no_hold(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail("402")
    put(place.calls, "a.wav", "b.wav")
    with DaemonProcess(place.config) as daemon:
        daemon.await_event("hold.started", owner="account")
        daemon.await_event("recording.settled", 2)
        assert len(status(place)["holds"]) == 1
        daemon.end(signal.SIGKILL)
    told = status(place)
    assert (told["running"], told["holds"]) == (False, [])
    assert (the_folder(told, place)["waiting"], the_folder(told, place)["uploading"]) == (2, 0)


def test_status_tells_of_an_upload_while_it_goes_on_and_of_none_once_the_daemon_is_killed(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nworkers: 1")
    sandbox.fail("put drip")
    for name in ("a.wav", "b.wav", "c.wav"):
        (place.calls / name).write_bytes(sample(".wav") * 40 + name.encode())  # about a minute at 20 kB a second
    with DaemonProcess(place.config) as daemon:
        daemon.await_event("recording.settled", 3)
        daemon.await_event("upload.started")
        alive = status(place)
        daemon.end(signal.SIGKILL)
    killed = status(place)
    assert alive["running"] is True
    assert (the_folder(alive, place)["waiting"], the_folder(alive, place)["uploading"]) == (2, 1)
    assert (killed["running"], killed["holds"], killed["uploads"]) == (False, [], [])
    assert (the_folder(killed, place)["waiting"], the_folder(killed, place)["uploading"]) == (3, 0)


def test_status_tells_how_far_each_upload_is_and_a_restarted_daemon_begins_at_nothing(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nworkers: 2\nbandwidth_limit: 200k")
    sizes = {}
    for times, name in ((300, "large.wav"), (200, "small.wav"), (1, "tiny.wav")):
        (place.calls / name).write_bytes(sample(".wav") * times + name.encode())
        sizes[name] = (place.calls / name).stat().st_size
    first_began_at = time.time()
    with DaemonProcess(place.config) as daemon:
        daemon.started()
        eventually(lambda: len(status(place)["uploads"]) == 2, "two uploads that are noted")
        early = status(place)["uploads"]
        eventually(lambda: status(place)["uploads"][0]["sent_bytes"] > early[0]["sent_bytes"], "progress")
        daemon.end(signal.SIGKILL)
    assert status(place)["uploads"] == []
    assert [(each["folder"], each["path"], each["size_bytes"]) for each in early] == [
        (str(place.calls), name, sizes[name]) for name in ("large.wav", "small.wav")
    ]
    assert all(0 < each["sent_bytes"] < each["size_bytes"] for each in early)
    assert all(first_began_at <= each["began_at"] <= time.time() for each in early)

    restarted_at = time.time()
    with DaemonProcess(place.config) as daemon:
        daemon.started()
        eventually(lambda: status(place)["uploads"], "an upload that is noted")
        assert min(each["began_at"] for each in status(place)["uploads"]) >= restarted_at
        daemon.end(signal.SIGKILL)
