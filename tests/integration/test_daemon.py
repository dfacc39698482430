"""The daemon as a process, against the sandbox in this one: what it does with writers, faults, signals and folders."""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from heifyd.sandbox import CONFIGURATION_ID, RateLimit, Sandbox
from tests.harness import DaemonProcess, Place, files_below, make_place, running, sample, sha256

QUICK = "settle_seconds: 0.3"


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=QUICK)


def stored(sandbox: Sandbox) -> list[str | None]:
    """Return the SHA-256 of every stored object."""
    return [each.sha256 for each in sandbox.transcriptions() if each.stored]


def test_a_writer_that_pauses_with_the_file_open_is_not_cut_short(place: Place, sandbox: Sandbox) -> None:
    call = place.calls / "call.wav"
    whole = sample(".wav")
    with running(place) as daemon:
        with call.open("wb", buffering=0) as writer:
            writer.write(whole[:1000])
            (place.calls / "other.wav").write_bytes(sample(".wav", "other"))
            daemon.await_event("recording.done", file="other.wav")  # by now the quiet time of call.wav is over too
            daemon.send(signal.SIGUSR1)  # and a scan sees it as well
            (place.calls / "later.wav").write_bytes(sample(".wav", "later"))
            daemon.await_event("recording.done", file="later.wav")
            assert not [each for each in daemon.events() if each.get("file") == "call.wav"]
            writer.write(whole[1000:])
        daemon.await_event("recording.done", file="call.wav")
    assert sha256(whole) in stored(sandbox)
    assert len(stored(sandbox)) == 3


def test_a_polled_folder_takes_what_events_would_not_tell_of(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(
        tmp_path, sandbox.url, settings=f"{QUICK}\nwatch: poll\nrescan_seconds: 0.2", folder="recursive: true"
    )
    with running(place) as daemon:
        assert daemon.events("folder.watched")[0]["watch"] == "poll"
        (place.calls / "deep" / "er").mkdir(parents=True)
        (place.calls / "deep" / "er" / "call.mp3").write_bytes(sample(".mp3"))
        daemon.await_event("recording.done", file="deep/er/call.mp3")
    assert stored(sandbox) == [sha256(sample(".mp3"))]
    assert (place.done / "deep" / "er" / "call.mp3").exists()


def test_temporary_names_other_extensions_and_empty_files_are_left_alone(place: Place, sandbox: Sandbox) -> None:
    for name in (".hidden.wav", "call.wav.part", "~$call.wav", "notes.txt", "call.xml"):
        (place.calls / name).write_bytes(sample(".wav"))
    (place.calls / "empty.wav").touch()
    with running(place) as daemon:
        (place.calls / "real.wav").write_bytes(sample(".wav", "real"))
        daemon.await_event("recording.done", file="real.wav")
    assert len(stored(sandbox)) == 1
    assert sorted(files_below(place.calls)) == sorted(
        [".hidden.wav", "call.wav.part", "call.xml", "done/real.wav", "empty.wav", "notes.txt", "~$call.wav"]
    )


def test_an_outage_moves_no_file_is_told_of_once_and_ends_by_itself(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail("request-upload-url 503")
    with running(place) as daemon:
        for number in range(20):
            (place.calls / f"{number}.wav").write_bytes(sample(".wav", number))
        daemon.await_event("hold.started", owner="service")
        assert len(files_below(place.calls)) == 20
        sandbox.clear_faults()
        daemon.await_event("recording.done", 20)
        daemon.await_event("hold.ended", owner="service")
        assert len(daemon.events("hold.started")) == 1
        assert len(daemon.events("upload.retrying")) < 20
    assert len(stored(sandbox)) == 20


def test_an_account_out_of_minutes_holds_everything_until_it_is_topped_up(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail("402")
    with running(place) as daemon:
        for number in range(5):
            (place.calls / f"{number}.wav").write_bytes(sample(".wav", number))
        (hold,) = daemon.await_event("hold.started")
        assert (hold["scope"], hold["owner"], hold["reason"]) == ("everything", "account", "out_of_minutes")
        sandbox.clear_faults()
        daemon.send(signal.SIGHUP)  # a reload looks at once, where the probe would take its time
        daemon.await_event("recording.done", 5)
        assert len(daemon.events("hold.started")) == 1
        assert not daemon.events("recording.failed")
    assert len(stored(sandbox)) == 5


def test_a_wrong_configuration_id_holds_its_folder_and_no_other(tmp_path: Path, sandbox: Sandbox) -> None:
    other = tmp_path / "other"
    other.mkdir()
    place = make_place(tmp_path, sandbox.url, settings=QUICK)
    unknown = "00000000-0000-4000-8000-000000000000"
    with place.config.open("a") as config:
        config.write(f"  - path: {other}\n    configuration_id: {unknown}\n")
    (other / "held.wav").write_bytes(sample(".wav", "held"))
    with running(place) as daemon:
        (hold,) = daemon.await_event("hold.started")
        assert (hold["scope"], hold["owner"]) == (str(other), "mapping")
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        daemon.await_event("recording.done", file="call.wav")
    assert (other / "held.wav").exists()
    assert stored(sandbox) == [sha256(sample(".wav"))]


def has_failed(daemon: DaemonProcess, times: int) -> bool:
    return len(daemon.events("upload.retrying")) >= times or bool(daemon.events("recording.failed"))


def test_a_recording_that_keeps_failing_while_others_pass_ends_in_failed(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nworkers: 1\nretry_for: 3s")
    (place.calls / "call.wav").write_bytes(sample(".wav"))
    sandbox.fail("put 500 x1")
    with running(place) as daemon:
        for number in range(1, 20):
            daemon.wait_for(partial(has_failed, daemon, number), "another failure")
            if daemon.events("recording.failed"):
                break
            (place.calls / f"{number}.mp3").write_bytes(sample(".mp3", number))
            daemon.await_event("recording.done", file=f"{number}.mp3")  # which shows that the service is well
            sandbox.fail("put 500 x1")
        (failed,) = daemon.events("recording.failed")
        assert not daemon.events("hold.started")
    assert (failed["reason"], failed["file"]) == ("retries_ended", "call.wav")
    assert "storage answered 500" in failed["detail"]
    assert (place.failed / "call.wav.error.json").exists()


def test_a_put_whose_answer_was_lost_goes_to_the_same_url_again(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail("cut-answer x1")
    with running(place) as daemon:
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        (done,) = daemon.await_event("recording.done")
        assert daemon.events("upload.retrying")
    (only,) = sandbox.transcriptions()
    assert (only.transcription_id, only.puts) == (done["transcription_id"], 2)


def test_an_expired_url_is_asked_anew(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail("expired-url x1")
    with running(place) as daemon:
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        (done,) = daemon.await_event("recording.done")
        assert not daemon.events("upload.repeated", "upload.retrying")
    assert [each.transcription_id for each in sandbox.transcriptions() if each.stored] == [done["transcription_id"]]


def test_a_stop_leaves_a_slow_upload_for_the_next_start_which_goes_on_with_it(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nshutdown_grace: 0.5")
    sandbox.fail("drip")
    whole = sample(".wav") * 40  # about a minute at 20 kB a second
    (place.calls / "call.wav").write_bytes(whole)
    with running(place) as first:
        first.await_event("upload.started")
    assert first.events("upload.left")
    assert stored(sandbox) == []
    assert (place.calls / "call.wav").exists()
    sandbox.clear_faults()
    with running(place) as second:
        (done,) = second.await_event("recording.done")
    (only,) = sandbox.transcriptions()
    assert (only.transcription_id, only.sha256) == (done["transcription_id"], sha256(whole))


def test_a_reload_takes_up_a_new_folder_and_a_bad_configuration_changes_nothing(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=QUICK)
    good = place.config.read_text()
    other = tmp_path / "other"
    other.mkdir()
    with running(place) as daemon:
        place.config.write_text(good.replace("configuration_id: ", "configuration_id: x"))
        daemon.send(signal.SIGHUP)
        (rejected,) = daemon.await_event("config.rejected")
        assert (rejected["key"], rejected["line"]) == ("folders[0].configuration_id", 9)
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        daemon.await_event("recording.done", file="call.wav")
        place.config.write_text(f"{good}  - path: {other}\n    configuration_id: {CONFIGURATION_ID}\n")
        daemon.send(signal.SIGHUP)
        daemon.await_event("daemon.started", 2)
        (other / "call.mp3").write_bytes(sample(".mp3"))
        daemon.await_event("recording.done", file="call.mp3")


def test_a_bad_configuration_ends_with_78_and_names_every_line(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("api:\n  base_ur: https://api.heify.com\nworkers: many\nfolders: []\n")
    with DaemonProcess(config) as daemon:
        daemon.wait_for(lambda: daemon.over, "its end")
        assert daemon.end() == 78
        assert {event["line"] for event in daemon.events("config.invalid")} == {2, 3, 4}


def test_a_second_daemon_on_the_same_ledger_ends_with_75(place: Place) -> None:
    with running(place), DaemonProcess(place.config) as second:
        second.wait_for(lambda: second.over, "its end")
        assert second.end() == 75


def test_what_is_no_recording_fails_with_the_reason_beside_it(place: Place, sandbox: Sandbox) -> None:
    (place.calls / "notes.wav").write_text("not a recording " * 100)
    with running(place) as daemon:
        (failed,) = daemon.await_event("recording.failed")
    explanation = json.loads((place.failed / "notes.wav.error.json").read_text())
    assert explanation["reason"] == failed["reason"] == "not_audio"
    assert "heifyd retry" in explanation["what_to_do"]
    assert sandbox.transcriptions() == []


def test_a_done_recording_that_comes_back_unchanged_is_filed_and_not_sent_again(place: Place, sandbox: Sandbox) -> None:
    call = place.calls / "call.wav"
    call.write_bytes(sample(".wav"))
    with running(place) as daemon:
        daemon.await_event("recording.done")
        shutil.copy2(place.done / "call.wav", call)
        daemon.await_event("recording.sent_before")
        daemon.await_event("recording.done", 2)
    assert sorted(files_below(place.calls)) == ["done/call.wav", "done/call~1.wav"]
    assert len(sandbox.transcriptions()) == 1


def test_done_may_be_on_another_file_system(tmp_path: Path, sandbox: Sandbox) -> None:
    elsewhere = Path("/dev/shm") / f"heifyd-test-{os.getpid()}"
    place = make_place(tmp_path, sandbox.url, settings=QUICK, folder=f"done: {elsewhere}\nrecursive: true")
    if Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("SKIPPED LOUDLY: /dev/shm and the temporary directory are one file system here")
    (place.calls / "sub").mkdir()
    (place.calls / "sub" / "call.wav").write_bytes(sample(".wav"))
    written = (place.calls / "sub" / "call.wav").stat()
    try:
        with running(place) as daemon:
            daemon.await_event("recording.done")
        assert sha256(elsewhere / "sub" / "call.wav") == sha256(sample(".wav"))
        assert (elsewhere / "sub" / "call.wav").stat().st_mtime_ns == written.st_mtime_ns
        assert files_below(place.calls) == {}
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)


def test_the_account_s_rate_is_kept_to_without_a_single_429(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "heify", rate_limit=RateLimit(per_minute=500, burst=17)) as sandbox:
        place = make_place(
            tmp_path, sandbox.url, settings=f"{QUICK}\nworkers: 8", rate_limit="{per_minute: 500, burst: 17}"
        )
        for number in range(50):
            (place.calls / f"{number}.wav").write_bytes(sample(".wav", number))
        began = time.monotonic()
        with running(place) as daemon:
            daemon.await_event("recording.done", 50)
        assert sandbox.counters().too_many_requests == 0
        assert time.monotonic() - began > (50 - 17) / (500 / 60)


def test_a_folder_that_goes_and_comes_back_is_watched_again(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nrescan_seconds: 0.2")
    with running(place) as daemon:
        place.calls.rename(tmp_path / "away")
        daemon.await_event("folder.missing")
        (tmp_path / "away" / "call.wav").write_bytes(sample(".wav"))
        (tmp_path / "away").rename(place.calls)
        daemon.await_event("folder.back")
        daemon.await_event("recording.done", file="call.wav")
    assert len(stored(sandbox)) == 1


def test_the_daemon_imports_nothing_that_only_commands_or_the_status_page_need(place: Place) -> None:
    with running(place, {"PYTHONPROFILEIMPORTTIME": "1"}) as daemon:
        pass

    imported = {line.rpartition("|")[2].strip() for line in daemon.lines if line.startswith("import time:")}
    assert {"httpx", "structlog", "watchdog.observers"} <= imported
    assert imported.isdisjoint({"rich.style", "uvicorn", "starlette", "prometheus_client"})
