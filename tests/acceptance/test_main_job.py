"""The main job, with the daemon and the sandbox as processes of their own."""

import signal
from pathlib import Path

from heifyd.recording import CONTENT_TYPES
from heifyd.sandbox import CONFIGURATION_ID, EVALUATOR_ID, PARTICIPANT_ID
from tests.harness import DaemonProcess, Place, SandboxProcess, files_below, make_place, running, sample, sha256

NIGHT_EVALUATOR = "2abb5563-dd64-47bb-bb17-94252e168b06"
FOLDERS = ("", "sales", "sales/2026-11-24", "Ночная смена/agent 4", "équipe/été", "a/b/c/d")
NAMES = ("call", "call with spaces", "réclamation", "Звонок", "50% off & more", "it's «quoted»")


def two_hundred() -> dict[str, bytes]:
    """Return 200 recordings by relative path: all formats, many kinds of name, folders in folders."""
    extensions = sorted(CONTENT_TYPES)
    recordings = {}
    for number in range(200):
        extension = extensions[number % len(extensions)]
        folder = FOLDERS[number % len(FOLDERS)]
        name = f"{NAMES[number // 11 % len(NAMES)]} {number}{extension.upper() if number % 7 == 0 else extension}"
        recordings[f"{folder}/{name}" if folder else name] = sample(extension, number)
    assert len(recordings) == 200
    return recordings


def put(recordings: dict[str, bytes], folder: Path) -> None:
    for path, content in recordings.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def halves(recordings: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    paths = list(recordings)
    return {path: recordings[path] for path in paths[::2]}, {path: recordings[path] for path in paths[1::2]}


def place_for(root: Path, sandbox: SandboxProcess) -> Place:
    rules = f"recursive: true\nrules:\n  - match: Ночная смена/**\n    evaluator_id: {NIGHT_EVALUATOR}"
    return make_place(root, sandbox.url, settings="settle_seconds: 0.5", folder=rules)


def sandbox_for(root: Path) -> SandboxProcess:
    evaluators = f"{EVALUATOR_ID}=Quality", f"{NIGHT_EVALUATOR}=Night"
    return SandboxProcess(root / "heify", "--no-rate-limit", "--evaluator", evaluators[0], "--evaluator", evaluators[1])


def assert_all_in_heify_once(recordings: dict[str, bytes], place: Place, sandbox: SandboxProcess) -> None:
    """Each recording is stored byte for byte under one id, with the ids its folder maps to, and lies in done/."""
    done = files_below(place.done)
    assert {path: sha256(file) for path, file in done.items()} == {
        path: sha256(content) for path, content in recordings.items()
    }
    assert set(files_below(place.calls)) == {f"done/{path}" for path in recordings}
    by_hash: dict[str, list[dict[str, object]]] = {}
    for transcription in sandbox.stored():
        by_hash.setdefault(str(transcription["sha256"]), []).append(transcription)
    assert {sha: len(found) for sha, found in by_hash.items()} == {
        sha256(content): 1 for content in recordings.values()
    }
    for path, content in recordings.items():
        (found,) = by_hash[sha256(content)]
        evaluator = NIGHT_EVALUATOR if path.startswith("Ночная смена/") else EVALUATOR_ID
        assert (found["configuration_id"], found["evaluator_id"], found["participant_id"]) == (
            CONFIGURATION_ID,
            evaluator,
            PARTICIPANT_ID,
        )
        name = found["name"]
        assert isinstance(name, str)
        assert name.isascii()
        assert name.strip()


def test_two_hundred_recordings_of_all_formats_are_in_heify_byte_for_byte(tmp_path: Path) -> None:
    recordings = two_hundred()
    before, after = halves(recordings)
    with sandbox_for(tmp_path) as sandbox:
        place = place_for(tmp_path, sandbox)
        put(before, place.calls)
        with running(place) as daemon:
            put(after, place.calls)
            done = daemon.await_event("recording.done", len(recordings))
        assert sorted(event["file"] for event in done) == sorted(recordings)
        assert len(daemon.events("recording.done")) == len(recordings)
        assert_all_in_heify_once(recordings, place, sandbox)
        assert not [event for event in daemon.events() if event["level"] != "info"]


def test_a_kill_in_the_middle_loses_nothing_and_sends_nothing_twice(tmp_path: Path) -> None:
    recordings = two_hundred()
    before, after = halves(recordings)
    with sandbox_for(tmp_path) as sandbox:
        place = place_for(tmp_path, sandbox)
        put(before, place.calls)
        with DaemonProcess(place.config) as first:
            first.started()
            put(after, place.calls)
            first.await_event("recording.done", 60)
            assert first.end(signal.SIGKILL) == -signal.SIGKILL
        done_before = {event["file"] for event in first.events("recording.done")}
        assert len(done_before) < len(recordings), "it was killed too late to show anything"
        with running(place) as second:
            second.wait_for(
                lambda: not set(files_below(place.calls)) - {f"done/{path}" for path in recordings}, "all filed"
            )
        assert_all_in_heify_once(recordings, place, sandbox)
        assert not second.events("upload.repeated")
