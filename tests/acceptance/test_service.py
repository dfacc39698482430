"""What Heify and its storage may answer: whose fault it is decides what moves, what holds, and it ends by itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from heifyd.sandbox import (
    API_KEY,
    CONFIGURATION_ID,
    EVALUATOR_ID,
    PARTICIPANT_ID,
    RateLimit,
    Sandbox,
)
from tests.harness import (
    DaemonProcess,
    Place,
    asked,
    assert_all_in_heify_once,
    eventually,
    files_below,
    holds,
    hurrying,
    lay_out,
    make_place,
    sha256,
    status,
)

ONE_AT_A_TIME = "settle_seconds: 0.3\nworkers: 1"
"""With one worker, whatever is asked after a hold began is a probe."""

EVERYTHING = "everything"
FOLDER = "the folder"
STRANGE_ID = "00000000-0000-4000-8000-000000000000"

Hold = dict[str, Any]


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=ONE_AT_A_TIME)


def assert_one_hold_was_told_of_once(daemon: DaemonProcess) -> None:
    (started,) = daemon.events("hold.started")
    (ended,) = daemon.events("hold.ended")
    assert (ended["scope"], ended["owner"]) == (started["scope"], started["owner"])


# What is not about the file


@pytest.mark.parametrize(
    ("spec", "scope", "owner", "reason"),
    [
        ('400 "Configuration not found or does not belong to your account"', FOLDER, "mapping", "mapping_refused"),
        ('400 "Invalid request"', FOLDER, "mapping", "mapping_refused"),
        ("404", FOLDER, "mapping", "mapping_refused"),
        ('400 "Maximum number of queued transcriptions reached"', EVERYTHING, "account", "account_limit"),
        ("402", EVERYTHING, "account", "out_of_minutes"),
        ("403", EVERYTHING, "account", "key_refused"),
        ("429", EVERYTHING, "service", "rate_limited"),
        ("500", EVERYTHING, "service", "http_500"),
        ("html", EVERYTHING, "service", "http_502"),
        ("503", EVERYTHING, "service", "http_503"),
        ("redirect", EVERYTHING, "service", "http_307"),
        ("not-json", EVERYTHING, "service", "unintelligible"),
        ("wrong-shape", EVERYTHING, "service", "unintelligible"),
        ("no-upload-url", EVERYTHING, "service", "unintelligible"),
        ("huge", EVERYTHING, "service", "endless_answer"),
        ("endless", EVERYTHING, "service", "endless_answer"),
        ("http-url", EVERYTHING, "service", "unsafe_upload_url"),
        ("unknown-signed-header", EVERYTHING, "service", "unknown_signed_header"),
        ("expired-url", EVERYTHING, "service", "storage_AccessDenied"),
        ('put AccessDenied "Request has expired"', EVERYTHING, "service", "storage_AccessDenied"),
        ("put SignatureDoesNotMatch", EVERYTHING, "service", "storage_SignatureDoesNotMatch"),
        ("put RequestTimeout", EVERYTHING, "service", "storage_RequestTimeout"),
        ("put InternalError", EVERYTHING, "service", "storage_InternalError"),
        ("put SlowDown", EVERYTHING, "service", "storage_slow_down"),
        ("put 503", EVERYTHING, "service", "storage_slow_down"),
        ("put html", EVERYTHING, "service", "storage_502"),
        ("put redirect", EVERYTHING, "service", "storage_307"),
        ("put huge", EVERYTHING, "service", "endless_answer"),
        ("put endless", EVERYTHING, "service", "endless_answer"),
    ],
)
def test_a_fault_that_is_not_the_file_s_moves_nothing_is_told_of_once_and_ends_by_itself(
    place: Place, sandbox: Sandbox, spec: str, scope: str, owner: str, reason: str
) -> None:
    recordings = lay_out(place.calls, "a.wav", "b.mp3", "c.flac", "d.ogg")
    where = str(place.calls) if scope == FOLDER else EVERYTHING
    sandbox.fail(spec)
    with hurrying(place) as daemon:
        (started,) = daemon.await_event("hold.started")
        before = asked(sandbox)
        eventually(lambda: asked(sandbox) > before, "a probe")
        shown = holds(place)
        assert sorted(files_below(place.calls)) == sorted(recordings)

        sandbox.clear_faults()
        daemon.await_event("recording.done", len(recordings))
        daemon.await_event("hold.ended")
        eventually(lambda: not holds(place), "a status without a hold")

    assert (started["scope"], started["owner"], started["reason"]) == (where, owner, reason)
    assert [(each["scope"], each["owner"], each["reason"]) for each in shown] == [(where, owner, reason)]
    assert [(each["detail"], each["advice"]) for each in shown] == [(started["detail"], started["what_to_do"])]
    assert_one_hold_was_told_of_once(daemon)
    assert len(daemon.events("upload.retrying")) < 3  # those before the hold, not one a file or a probe
    assert not daemon.events("recording.failed", "upload.repeated")
    assert_all_in_heify_once(recordings, place, sandbox)


def test_heify_is_not_asked_before_the_time_that_it_named(place: Place, sandbox: Sandbox) -> None:
    recordings = lay_out(place.calls, "a.wav", "b.wav", "c.wav")
    sandbox.fail("retry-after 120 x3")
    with hurrying(place) as daemon:
        (started,) = daemon.await_event("hold.started")
        assert (started["owner"], started["reason"]) == ("service", "rate_limited")
        (ended,) = daemon.await_event("hold.ended")
        daemon.await_event("recording.done", len(recordings))
    assert asked(sandbox, "request-upload-url", "429") == 3
    assert ended["lasted_s"] >= 120
    assert_one_hold_was_told_of_once(daemon)
    assert_all_in_heify_once(recordings, place, sandbox)


def test_an_account_whose_rate_others_use_up_gets_every_recording_through(tmp_path: Path) -> None:
    names = [f"{number}.wav" for number in range(20)]
    with Sandbox(tmp_path / "heify", rate_limit=RateLimit(per_minute=600, burst=2), retry_after_s=1) as sandbox:
        place = make_place(
            tmp_path, sandbox.url, settings="settle_seconds: 0.3", rate_limit="{per_minute: 500, burst: 17}"
        )
        recordings = lay_out(place.calls, *names)
        with hurrying(place, speed=30) as daemon:
            daemon.await_event("recording.done", len(recordings))
        assert sandbox.counters().too_many_requests > 0
        assert not daemon.events("recording.failed")
        assert {each["reason"] for each in daemon.events("hold.started", "upload.retrying")} <= {"rate_limited"}
        assert_all_in_heify_once(recordings, place, sandbox)


@pytest.mark.parametrize("what", ["configuration", "evaluator", "participant"])
def test_an_id_that_heify_does_not_know_holds_its_folder_alone_until_heify_knows_it(tmp_path: Path, what: str) -> None:
    known = {"configuration": CONFIGURATION_ID, "evaluator": EVALUATOR_ID, "participant": PARTICIPANT_ID}
    ids = known | {what: STRANGE_ID}
    other = tmp_path / "other"
    other.mkdir()
    lay_out(other, "held.wav", "held too.wav")
    with Sandbox(tmp_path / "heify", rate_limit=None) as sandbox:
        place = make_place(tmp_path, sandbox.url, settings=ONE_AT_A_TIME)
        with place.config.open("a") as config:
            config.write(f"  - path: {other}\n" + "".join(f"    {each}_id: {ids[each]}\n" for each in ids))
        with hurrying(place) as daemon:
            (started,) = daemon.await_event("hold.started")
            lay_out(place.calls, "call.wav")
            daemon.await_event("recording.done", file="call.wav")
            (shown,) = holds(place)
            assert sorted(files_below(other)) == ["held too.wav", "held.wav"]

            sandbox.stop()
            tags = {f"{each}s": {ident: each, ids[each]: f"new {each}"} for each, ident in known.items()}
            port = int(sandbox.url.rpartition(":")[2])
            with Sandbox(tmp_path / "heify", port=port, rate_limit=None, **tags) as wiser:  # type: ignore[arg-type]
                daemon.await_event("recording.done", 2, folder=str(other))
                eventually(lambda: not holds(place), "a status without a hold")
                stored = [each for each in wiser.transcriptions() if each.stored]
    assert started["what_to_do"] == shown["advice"]
    for told in (started, shown):
        assert (told["scope"], told["owner"], told["reason"]) == (str(other), "mapping", "mapping_refused")
        assert f"{what.capitalize()} not found" in told["detail"]
    assert [each["owner"] for each in daemon.events("hold.started", "hold.ended")] == ["mapping", "mapping"]
    assert sorted(files_below(other)) == ["done/held too.wav", "done/held.wav"]
    assert [getattr(each, f"{what}_id") for each in stored] == [known[what], STRANGE_ID, STRANGE_ID]


def test_a_key_that_is_replaced_in_its_file_is_used_without_a_reload(place: Place, sandbox: Sandbox) -> None:
    recordings = lay_out(place.calls, "a.wav", "b.wav")
    (place.root / "key").write_text("a-key-of-yesteryear")
    with hurrying(place) as daemon:
        (started,) = daemon.await_event("hold.started")
        (shown,) = holds(place)
        (place.root / "key").write_text(API_KEY)
        daemon.await_event("recording.done", len(recordings))
        eventually(lambda: not holds(place), "a status without a hold")
    assert (started["owner"], started["reason"]) == (shown["owner"], shown["reason"]) == ("account", "key_refused")
    assert asked(sandbox, "request-upload-url", "403") > 0
    assert "a-key-of-yesteryear" not in daemon.output
    assert_one_hold_was_told_of_once(daemon)
    assert_all_in_heify_once(recordings, place, sandbox)


def test_while_heify_cannot_say_whether_a_recording_arrived_it_is_not_sent_again(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "heify", rate_limit=None, url_lifetime_s=60) as sandbox:
        place = make_place(tmp_path, sandbox.url, settings=ONE_AT_A_TIME)
        recordings = lay_out(place.calls, "a.wav", "b.wav", "c.wav")
        sandbox.fail("put cut-answer")
        sandbox.fail("get-transcription 503")
        with hurrying(place) as daemon:
            daemon.await_event("hold.started")
            eventually(lambda: asked(sandbox, "get-transcription", "503") > 2, "questions whether they arrived")
            asked_for = asked(sandbox, "request-upload-url")
            assert sorted(files_below(place.calls)) == sorted(recordings)
            sandbox.clear_faults()
            daemon.await_event("recording.done", len(recordings))
            daemon.await_event("hold.ended")
        assert asked_for == len(recordings)
        assert asked(sandbox, "request-upload-url") == len(recordings)
        assert_one_hold_was_told_of_once(daemon)
        assert not daemon.events("upload.repeated")
        assert_all_in_heify_once(recordings, place, sandbox)


# What is about the file


@pytest.mark.parametrize(
    ("spec", "reason", "detail"),
    [
        ('400 "Unsupported audio format" x1', "refused_by_heify", "Heify answered 400: Unsupported audio format"),
        ('400 "Audio duration is over 7200 s" x1', "refused_by_heify", "Audio duration is over 7200 s"),
        ("put EntityTooLarge x1", "too_large", "EntityTooLarge"),
    ],
)
def test_a_fault_of_one_file_fails_that_file_with_the_reason_beside_it_and_holds_nothing(
    place: Place, sandbox: Sandbox, spec: str, reason: str, detail: str
) -> None:
    recordings = lay_out(place.calls, "bad.wav", "good.wav")
    sandbox.fail(spec)
    with hurrying(place) as daemon:
        (failed,) = daemon.await_event("recording.failed")
        daemon.await_event("recording.done", file="good.wav")
        told = status(place)
        explanation = place.failed / "bad.wav.error.json"
        eventually(explanation.exists, "the reason beside the file")
    explained = json.loads(explanation.read_text())
    for each in (failed, explained):
        assert (each["file"], each["reason"]) == ("bad.wav", reason)
        assert detail in each["detail"]
        assert "heifyd retry" in each["what_to_do"]
    assert sha256(place.failed / "bad.wav") == recordings["bad.wav"]
    assert sorted(files_below(place.calls)) == ["done/good.wav", "failed/bad.wav", "failed/bad.wav.error.json"]
    assert [each.sha256 for each in sandbox.transcriptions() if each.stored] == [recordings["good.wav"]]
    assert (told["holds"], told["folders"][0]["failed"]) == ([], 1)
    assert not daemon.events("hold.started", "hold.ended", "upload.retrying")


# One fault after another


def test_a_probe_that_meets_another_owner_s_fault_is_told_of_and_each_hold_ends_once(
    place: Place, sandbox: Sandbox
) -> None:
    recordings = lay_out(place.calls, "a.wav", "b.wav", "c.wav", "d.wav")
    sandbox.fail("503")
    with hurrying(place) as daemon:
        daemon.await_event("hold.started", owner="service", reason="http_503")
        first = holds(place)
        sandbox.clear_faults()
        sandbox.fail("402")
        (account,) = daemon.await_event("hold.started", owner="account", reason="out_of_minutes")
        second = holds(place)
        assert not daemon.events("hold.ended", "recording.done")
        sandbox.clear_faults()
        daemon.await_event("recording.done", len(recordings))
        daemon.await_event("hold.ended", 2)
        eventually(lambda: not holds(place), "a status without a hold")

    assert [(each["owner"], each["reason"]) for each in first] == [("service", "http_503")]
    (shown,) = (each for each in second if each["owner"] == "account")
    assert (shown["reason"], shown["detail"]) == ("out_of_minutes", account["detail"])
    assert "402" in shown["detail"]
    assert sorted(each["owner"] for each in daemon.events("hold.started")) == ["account", "service"]
    assert sorted(each["owner"] for each in daemon.events("hold.ended")) == ["account", "service"]
    assert_all_in_heify_once(recordings, place, sandbox)


@pytest.mark.parametrize(
    ("spec", "then", "reason", "detail"),
    [
        ("503", "500", "http_500", "Heify answered 500"),
        ("402", "403", "key_refused", "Heify answered 403"),
        ("404", '404 "Participant not found"', "mapping_refused", "Participant not found"),
        ("503", "put SignatureDoesNotMatch", "storage_SignatureDoesNotMatch", "the storage answered 403"),
    ],
)
def test_status_tells_the_fault_that_the_last_probe_met(
    place: Place, sandbox: Sandbox, spec: str, then: str, reason: str, detail: str
) -> None:
    recordings = lay_out(place.calls, "a.wav", "b.wav", "c.wav", "d.wav")
    sandbox.fail(spec)
    with hurrying(place) as daemon:
        daemon.await_event("hold.started")
        sandbox.clear_faults()
        sandbox.fail(then)

        def is_told() -> bool:
            shown = holds(place)
            return [each["reason"] for each in shown] == [reason] and detail in shown[0]["detail"]

        eventually(is_told, f"{reason} in the status", limit_s=8)
        assert sorted(files_below(place.calls)) == sorted(recordings)
        sandbox.clear_faults()
        daemon.await_event("recording.done", len(recordings))
        daemon.await_event("hold.ended")
    assert_one_hold_was_told_of_once(daemon)
    assert_all_in_heify_once(recordings, place, sandbox)
