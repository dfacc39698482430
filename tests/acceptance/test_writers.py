"""No recording is stored cut short while its writer lives, however the writer goes about it."""

import io
import mmap
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from heifyd.sandbox import Sandbox
from tests.harness import (
    ROOT,
    DaemonProcess,
    Place,
    eventually,
    files_below,
    hurrying,
    make_place,
    need,
    need_program,
    need_root,
    running,
    sample,
    sha256,
)

QUICK = "settle_seconds: 0.3"
POLLED = f"{QUICK}\nwatch: poll\nrescan_seconds: 0.2"
FAST = {"REHEARSAL_SPEED": "30"}
NOBODY = 65534

serial = count(1)


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=QUICK)


def wav(seed: int, size_bytes: int = 20_000) -> bytes:
    """Return a WAV whose header agrees with its size, unlike one with bytes of the test's at its end."""
    whole = io.BytesIO()
    with wave.open(whole, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        writer.writeframes(random.Random(seed).randbytes((size_bytes - 44) // 2 * 2))
    return whole.getvalue()


def mp3(seed: int, size_bytes: int = 20_000) -> bytes:
    """Return an MP3 of that size: nothing in its header tells where it ends."""
    head = sample(".mp3")
    return head + random.Random(seed).randbytes(size_bytes - len(head))


def stored(sandbox: Sandbox) -> list[str | None]:
    return [each.sha256 for each in sandbox.transcriptions() if each.stored]


def give_every_chance(daemon: DaemonProcess, place: Place) -> list[bytes]:
    """Let recordings pass that were begun later, before and after a scan; return them.

    By then whatever lay in the folder before them has been quiet for longer than they have.
    """
    others = []
    for _ in range(2):
        number = next(serial)
        others.append(wav(number))
        (place.calls / f"other-{number}.wav").write_bytes(others[-1])
        daemon.await_event("recording.done", file=f"other-{number}.wav")
        daemon.send(signal.SIGUSR1)
    return others


def assert_untouched(daemon: DaemonProcess, names: Collection[str]) -> None:
    assert not [each for each in daemon.events() if each.get("file") in names]


def assert_done_as(daemon: DaemonProcess, sandbox: Sandbox, expected: Mapping[str, bytes]) -> None:
    """Each file was done once, and what Heify has under the id that the line names is the file's final content."""
    objects = {each.transcription_id: each.sha256 for each in sandbox.transcriptions()}
    found: dict[str, list[str | None]] = {}
    for event in daemon.events("recording.done"):
        found.setdefault(event["file"], []).append(objects[event["transcription_id"]])
    assert {name: found.get(name) for name in expected} == {
        name: [sha256(content)] for name, content in expected.items()
    }


# Writers that keep a file open. Each writes half, lets the test go on, and writes the rest.


@contextmanager
def held_open(path: Path, whole: bytes) -> Iterator[None]:
    with path.open("wb", buffering=0) as writer:
        writer.write(whole[: len(whole) // 2])
        yield
        writer.write(whole[len(whole) // 2 :])


@contextmanager
def closed_and_held_for_appending(path: Path, whole: bytes) -> Iterator[None]:
    path.write_bytes(whole[:100])
    with path.open("ab", buffering=0) as writer:
        writer.write(whole[100 : len(whole) // 2])
        yield
        writer.write(whole[len(whole) // 2 :])


@contextmanager
def mapped_and_closed(path: Path, whole: bytes) -> Iterator[None]:
    with path.open("w+b", buffering=0) as file:
        file.truncate(len(whole))
        memory = mmap.mmap(file.fileno(), len(whole))
    with memory:
        memory[: len(whole) // 2] = whole[: len(whole) // 2]
        yield
        memory[len(whole) // 2 :] = whole[len(whole) // 2 :]


@contextmanager
def copied_by_cp(path: Path, whole: bytes) -> Iterator[None]:
    with subprocess.Popen(["cp", "/dev/stdin", path], stdin=subprocess.PIPE, bufsize=0) as cp:
        assert cp.stdin is not None
        cp.stdin.write(whole[: len(whole) // 2])
        eventually(lambda: path.exists() and path.stat().st_size > 0, "the copy's beginning")
        yield
        for at in range(len(whole) // 2, len(whole), 2000):
            cp.stdin.write(whole[at : at + 2000])


@contextmanager
def written_by_the_wave_module(path: Path, whole: bytes) -> Iterator[None]:
    with path.open("wb") as file, wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        writer.writeframes(whole[44 : len(whole) // 2])
        file.flush()
        yield
        writer.writeframes(whole[len(whole) // 2 :])  # and the sizes in the header are completed at the end


@contextmanager
def linked_in_while_it_is_written(path: Path, whole: bytes) -> Iterator[None]:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb", buffering=0) as writer:
        writer.write(whole[: len(whole) // 2])
        os.link(temporary, path)
        yield
        writer.write(whole[len(whole) // 2 :])
    temporary.unlink()


@contextmanager
def renamed_in_while_it_is_written(path: Path, whole: bytes) -> Iterator[None]:
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    with elsewhere.open("wb", buffering=0) as writer:
        writer.write(whole[: len(whole) // 2])
        os.utime(elsewhere, (1e9, 1e9))
        elsewhere.rename(path)
        yield
        writer.write(whole[len(whole) // 2 :])


HELD_OPEN = (
    held_open,
    closed_and_held_for_appending,
    mapped_and_closed,
    copied_by_cp,
    written_by_the_wave_module,
    linked_in_while_it_is_written,
    renamed_in_while_it_is_written,
)


@pytest.mark.parametrize("settings", [QUICK, POLLED], ids=["events", "poll"])
def test_a_file_that_anybody_has_open_for_writing_waits_until_it_is_whole(
    tmp_path: Path, sandbox: Sandbox, settings: str
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=settings)
    expected = {f"{writer.__name__}.wav": wav(next(serial)) for writer in HELD_OPEN}
    with running(place) as daemon:
        assert daemon.events("folder.watched")[0]["watch"] == ("poll" if settings == POLLED else "events")
        with ExitStack() as writers:
            for writer in HELD_OPEN:
                name = f"{writer.__name__}.wav"
                writers.enter_context(writer(place.calls / name, expected[name]))
            others = give_every_chance(daemon, place)
            assert_untouched(daemon, list(expected))
            assert sorted(map(str, stored(sandbox))) == sorted(map(sha256, others))
        daemon.send(signal.SIGUSR1)  # the end of a writer that never used the recording's name is no event about it
        for name in expected:
            daemon.await_event("recording.done", file=name)
        assert_done_as(daemon, sandbox, expected)
        assert len(stored(sandbox)) == len(expected) + len(others)
        assert daemon.events("folder.writer_check")[0]["check"] == "lease"


def test_what_a_killed_writer_leaves_is_sent_as_it_lies_and_not_before(place: Place, sandbox: Sandbox) -> None:
    call = place.calls / "call.wav"
    half = wav(1)[:10_000]
    script = "import sys; f = open(sys.argv[1], 'wb', 0); f.write(sys.stdin.buffer.read(10000)); sys.stdin.read()"
    with running(place) as daemon:
        command = [sys.executable, "-c", script, os.fspath(call)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0) as writer:
            try:
                assert writer.stdin is not None
                writer.stdin.write(half)
                eventually(lambda: call.exists() and call.stat().st_size == len(half), "half a recording")
                give_every_chance(daemon, place)
                assert_untouched(daemon, ["call.wav"])
            finally:
                writer.kill()
        daemon.await_event("recording.done", file="call.wav")
        assert_done_as(daemon, sandbox, {"call.wav": half})


# Writers that close a file and open it again before it has settled


@dataclass(frozen=True)
class Step:
    """Wait, open the file if it is closed, write there, and close it or not."""

    wait_s: float
    at: int
    data: bytes
    close: bool


def result_of(steps: list[Step]) -> bytes:
    """Return what a file holds after its writer's last step."""
    content = bytearray()
    for step in steps:
        content.extend(bytes(max(0, step.at - len(content))))
        content[step.at : step.at + len(step.data)] = step.data
    return bytes(content)


def play(path: Path, steps: list[Step], *, pause_counts: bool = False) -> float:
    """Do what a writer does; return the longest time for which it let the file lie closed before the next step.

    With `pause_counts`, it is the longest time between two steps, the file open or closed.
    """
    longest_s = 0.0
    since_s: float | None = None
    file: BinaryIO | None = None
    try:
        for step in steps:
            time.sleep(step.wait_s)  # the writer's own pace
            if file is None:
                file = open(path, "r+b" if path.exists() else "wb", buffering=0)  # noqa: SIM115 (closed by a later step)
            if since_s is not None and not pause_counts:
                longest_s = max(longest_s, time.monotonic() - since_s)
            os.pwrite(file.fileno(), step.data, step.at)
            if since_s is not None and pause_counts:
                longest_s = max(longest_s, time.monotonic() - since_s)
            since_s = time.monotonic() if step.close or pause_counts else None
            if step.close:
                file.close()
                file = None
    finally:
        if file is not None:
            file.close()
    return longest_s


def play_in_time(
    folder: Path, name: str, steps: list[Step], settle_s: float, valid: dict[str, bytes], *, pause_counts: bool = False
) -> None:
    """Play a writer that never pauses for `settle_s`; where the machine made it, it begins again with a new file."""
    for attempt in range(10):
        longest_s = play(folder / f"{attempt}-{name}", steps, pause_counts=pause_counts)
        if longest_s < 0.9 * settle_s:
            valid[f"{attempt}-{name}"] = result_of(steps)
            return


def header_completed_after_the_close() -> list[Step]:
    whole = wav(next(serial))
    untold = b"RIFF\xff\xff\xff\xffWAVE" + whole[12:40] + b"\xff\xff\xff\xff"
    return [
        Step(0.0, 0, untold + whole[44:9000], close=False),
        Step(1.2, 9000, whole[9000:], close=True),
        Step(0.3, 4, whole[4:8], close=True),
        Step(0.3, 40, whole[40:44], close=True),
    ]


def closed_just_short_of_settling_each_time() -> list[Step]:
    whole = wav(next(serial))
    return [Step(0.65, at, whole[at : at + 5000], close=True) for at in range(0, len(whole), 5000)]


def closed_and_reopened_at_once() -> list[Step]:
    whole = wav(next(serial))
    return [Step(0.0, at, whole[at : at + 100], close=True) for at in range(0, len(whole), 100)]


def by_chance(chance: random.Random) -> list[Step]:
    """Make up a writer: it pauses for as long as it likes with the file open, and only briefly with it closed."""
    head = wav(chance.randrange(1000), 200)
    steps = [Step(chance.uniform(0, 1), 0, head + chance.randbytes(chance.randrange(5000)), chance.random() < 0.5)]
    for _ in range(chance.randrange(1, 7)):
        size = len(result_of(steps))
        at = size if chance.random() < 0.6 else chance.randrange(44, size)
        wait_s = chance.uniform(0, 0.65) if steps[-1].close else chance.choice((0.0, 0.1, 1.2))
        steps.append(Step(wait_s, at, chance.randbytes(chance.randrange(1, 3000)), chance.random() < 0.6))
    return steps


def test_whatever_a_writer_does_within_the_settle_time_its_final_content_is_what_counts(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"the writers' seed is {seed}")  # noqa: T201 (pytest shows it with a failure)
    chance = random.Random(seed)
    programs = {
        "header.wav": header_completed_after_the_close(),
        "short.wav": closed_just_short_of_settling_each_time(),
        "at-once.wav": closed_and_reopened_at_once(),
        **{f"chance-{number}.wav": by_chance(chance) for number in range(24)},
    }
    place = make_place(tmp_path, sandbox.url, settings="settle_seconds: 1\nrescan_seconds: 0.3")
    valid: dict[str, bytes] = {}
    with running(place) as daemon:
        threads = [
            threading.Thread(target=play_in_time, args=(place.calls, name, steps, 1.0, valid))
            for name, steps in programs.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(valid) == len(programs), "this machine is too slow for any writer to keep the time"
        for name in valid:
            daemon.await_event("recording.done", file=name)
        assert_done_as(daemon, sandbox, valid)
        assert {sha256(content) for content in valid.values()} <= set(stored(sandbox))
        if all(name.startswith("0-") for name in valid):
            assert len(stored(sandbox)) == len(valid), "something was sent before it was whole"


# Temporary names


def test_a_temporary_name_never_counts_and_its_renaming_does(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=QUICK, folder="recursive: true")
    other = tmp_path / "other folder"
    for directory in (other, place.calls / ".upload", place.calls / "sub"):
        directory.mkdir()
    temporary = {
        "part.wav": place.calls / "part.wav.part",
        "dot.wav": place.calls / ".dot.wav",
        "upper.WAV": place.calls / "upper.WAV.TMP",
        "sub/hidden.wav": place.calls / ".upload" / "hidden.wav",
        "moved.wav": other / "moved.wav",
        "linked.wav": place.calls / "linked.wav.filepart",
    }
    expected = {name: wav(next(serial)) for name in temporary}
    with running(place) as daemon:
        for name, path in temporary.items():
            path.write_bytes(expected[name][:9000])
        others = give_every_chance(daemon, place)
        assert_untouched(daemon, [*temporary, *(os.fspath(path.name) for path in temporary.values())])
        assert len(stored(sandbox)) == len(others)
        for name, path in temporary.items():
            with path.open("ab") as writer:
                writer.write(expected[name][9000:])
            os.utime(path, (1e9, 1e9))  # what is renamed keeps its time, however long ago that was
            if name == "linked.wav":
                os.link(path, place.calls / name)
                path.unlink()
            else:
                path.rename(place.calls / name)
        for name in expected:
            daemon.await_event("recording.done", file=name)
        assert_done_as(daemon, sandbox, expected)
        assert len(stored(sandbox)) == len(expected) + len(others)


# Writers that come back after the file was finished


def test_what_is_written_to_while_it_waits_its_turn_is_sent_with_all_that_was_written(
    place: Place, sandbox: Sandbox
) -> None:
    sandbox.fail("request-upload-url 503")
    expected = {name: wav(next(serial), 30_000) for name in ("appended.wav", "overwritten.wav", "replaced.wav")}
    with running(place, FAST, module="tests.rehearsal") as daemon:
        for name, whole in expected.items():
            (place.calls / name).write_bytes(whole[:20_000])
        daemon.await_event("hold.started", owner="service")
        for name in expected:
            daemon.await_event("recording.settled", file=name, size_bytes=20_000)
        with (place.calls / "appended.wav").open("ab") as writer:
            writer.write(expected["appended.wav"][20_000:])
        (place.calls / "overwritten.wav").write_bytes(expected["overwritten.wav"])
        (place.root / "new").write_bytes(expected["replaced.wav"])
        (place.root / "new").replace(place.calls / "replaced.wav")
        for name in expected:
            daemon.await_event("recording.settled", file=name, size_bytes=30_000)
        assert stored(sandbox) == []
        sandbox.clear_faults()
        daemon.await_event("recording.done", len(expected))
        assert_done_as(daemon, sandbox, expected)
    assert sorted(map(str, stored(sandbox))) == sorted(map(sha256, expected.values()))


SIZE = 60_000
"""Three seconds of a PUT at the sandbox's 20 kB a second."""


def replaced(path: Path, new: bytes) -> bytes:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(new)
    temporary.replace(path)
    return new


def appended_to(path: Path, new: bytes) -> bytes:
    with path.open("ab") as writer:
        writer.write(new)
    return path.read_bytes()


def overwritten_in_place(path: Path, new: bytes) -> bytes:
    with path.open("r+b") as writer:
        writer.seek(SIZE // 2)
        writer.write(new[: SIZE // 4])
    return path.read_bytes()


def written_anew(path: Path, new: bytes) -> bytes:
    path.write_bytes(new)
    return new


def mapped_and_overwritten(path: Path, new: bytes) -> bytes:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[SIZE // 2 : SIZE // 2 + 100] = new[SIZE // 2 : SIZE // 2 + 100]
    return path.read_bytes()


def truncated_to_half(path: Path, _: bytes) -> bytes:
    os.truncate(path, SIZE // 2)
    return path.read_bytes()


CHANGES = (replaced, appended_to, overwritten_in_place, written_anew, mapped_and_overwritten, truncated_to_half)


def test_whatever_is_done_to_a_file_during_its_put_only_its_final_content_counts_as_done(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nworkers: 8")
    sandbox.fail("drip")
    before = {f"{change.__name__}.wav": wav(next(serial), SIZE) for change in CHANGES}
    taken, emptied = wav(next(serial), SIZE), wav(next(serial), SIZE)
    expected = {}
    with running(place) as daemon:
        for name, content in {**before, "taken.wav": taken, "emptied.wav": emptied}.items():
            (place.calls / name).write_bytes(content)
        daemon.await_event("upload.started", len(CHANGES) + 2)
        eventually(lambda: sandbox.counters().bytes_received > 0, "a PUT's first bytes")
        (place.calls / "taken.wav").unlink()
        os.truncate(place.calls / "emptied.wav", 0)
        for change in CHANGES:
            name = f"{change.__name__}.wav"
            expected[name] = change(place.calls / name, wav(next(serial), SIZE))
        assert stored(sandbox) == [], "the PUTs were over before the files changed"
        sandbox.clear_faults()
        for name in (*expected, "emptied.wav"):
            daemon.await_event("recording.changed", file=name)
        for name in (*expected, "taken.wav"):
            daemon.await_event("recording.done", file=name)
        # What was taken away had been read to its end through the open file: Heify has all of it.
        assert_done_as(daemon, sandbox, {**expected, "taken.wav": taken})
        assert not [each for each in daemon.events("recording.done") if each["file"] == "emptied.wav"]
        assert [each["filed_at"] for each in daemon.await_event("recording.done", file="taken.wav")] == [None]
    assert {path: file.read_bytes() for path, file in files_below(place.calls).items()} == {
        "emptied.wav": b"",
        **{f"done/{name}": content for name, content in expected.items()},
    }


def test_a_file_that_is_truncated_between_two_pieces_of_its_put_is_not_stored_as_it_was(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=QUICK)
    piece = 1024 * 1024
    hang = {"REHEARSAL_KILL": "sending", "REHEARSAL_HANG_S": "1.5"}
    for name in ("emptied.mp3", "cut.mp3"):
        (place.calls / name).write_bytes(mp3(next(serial), 5 * piece))
    left = (place.calls / "cut.mp3").read_bytes()[: piece // 2]
    with running(place, hang, module="tests.rehearsal") as daemon:
        daemon.await_event("upload.started", 2)
        eventually(lambda: sandbox.counters().bytes_received >= 2 * piece, "the first piece of both")
        os.truncate(place.calls / "emptied.mp3", 0)
        os.truncate(place.calls / "cut.mp3", len(left))
        for name in ("emptied.mp3", "cut.mp3"):
            (changed,) = daemon.await_event("recording.changed", file=name)
            assert "while it was sent" in changed["detail"]
        daemon.await_event("recording.done", file="cut.mp3")
        assert_done_as(daemon, sandbox, {"cut.mp3": left})
    assert stored(sandbox) == [sha256(left)]
    assert (place.calls / "emptied.mp3").stat().st_size == 0


def test_a_file_whose_time_is_set_back_after_it_was_overwritten_during_its_put_is_not_done_as_it_was_sent(
    place: Place, sandbox: Sandbox
) -> None:
    call = place.calls / "call.mp3"
    piece = 1024 * 1024
    before, after = mp3(next(serial), 2 * piece), mp3(next(serial), 2 * piece)
    call.write_bytes(before)
    hang = {"REHEARSAL_KILL": "sending", "REHEARSAL_HANG_S": "1"}
    with running(place, hang, module="tests.rehearsal") as daemon:
        daemon.await_event("upload.started")
        eventually(lambda: sandbox.counters().bytes_received >= piece, "the first piece")
        times = call.stat()
        with call.open("r+b") as writer:  # as programs do that change a file's tags and keep its time
            writer.write(after)
        os.utime(call, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert stored(sandbox) == []
        daemon.await_event("recording.done")
        assert_done_as(daemon, sandbox, {"call.mp3": after})
    assert (place.done / "call.mp3").read_bytes() == after


@pytest.mark.parametrize("writes", [True, False], ids=["it-writes", "it-writes-nothing"])
def test_a_file_that_is_opened_again_during_its_put_is_not_moved_from_under_its_writer(
    place: Place,
    sandbox: Sandbox,
    writes: bool,  # noqa: FBT001
) -> None:
    sandbox.fail("drip")
    call = place.calls / "call.wav"
    content = wav(1, SIZE // 2)
    call.write_bytes(content)
    with running(place, FAST, module="tests.rehearsal") as daemon:
        daemon.await_event("upload.started")
        with call.open("ab", buffering=0) as writer:
            assert stored(sandbox) == []
            sandbox.clear_faults()
            eventually(lambda: stored(sandbox) == [sha256(content)], "the first content in Heify")
            give_every_chance(daemon, place)
            assert call.exists()
            assert not [each for each in daemon.events("recording.done") if each["file"] == "call.wav"]
            if writes:
                writer.write(b"the rest")
        daemon.await_event("recording.done", file="call.wav")
        assert_done_as(daemon, sandbox, {"call.wav": content + b"the rest" * writes})
        assert len(daemon.events("recording.changed")) == writes
    assert sorted(files_below(place.calls)) == sorted(f"done/{name}" for name in os.listdir(place.done))


# Ready markers


def test_with_a_ready_marker_a_recording_waits_for_it_and_for_its_writer(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=QUICK, folder='recursive: true\nready_marker: "{name}.ready"')
    expected = {name: wav(next(serial)) for name in ("late.wav", "sub/late.wav", "early.wav")}
    (place.calls / "sub").mkdir()

    def pass_by() -> None:
        number = next(serial)
        (place.calls / f"other-{number}.wav").write_bytes(wav(number))
        (place.calls / f"other-{number}.wav.ready").touch()
        daemon.await_event("recording.done", file=f"other-{number}.wav")

    with running(place) as daemon:
        (place.calls / "early.wav.ready").touch()
        for name in ("late.wav", "sub/late.wav"):
            (place.calls / name).write_bytes(expected[name])
        with held_open(place.calls / "early.wav", expected["early.wav"]):
            pass_by()
            daemon.send(signal.SIGUSR1)
            pass_by()
            assert_untouched(daemon, list(expected))
        daemon.await_event("recording.done", file="early.wav")
        assert_untouched(daemon, ["late.wav", "sub/late.wav"])
        for name in ("late.wav", "sub/late.wav"):
            (place.calls / f"{name}.ready").touch()
            daemon.await_event("recording.done", file=name)
        assert_done_as(daemon, sandbox, expected)


def test_a_name_too_long_to_have_a_ready_marker_is_told_of_and_harms_no_other(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings=QUICK, folder='ready_marker: "{name}.ready"')
    long = "x" * 251 + ".wav"
    (place.calls / long).write_bytes(wav(1))
    with running(place) as daemon:
        told = [each for each in daemon.await_event("folder.unreadable") if long in each["detail"]]
        assert len(told) == 1
        daemon.send(signal.SIGUSR1)
        (place.calls / "call.wav").write_bytes(wav(2))
        (place.calls / "call.wav.ready").touch()
        daemon.await_event("recording.done", file="call.wav")
        assert len([each for each in daemon.events() if long in str(each)]) == 1
    assert stored(sandbox) == [sha256(wav(2))]
    assert (place.calls / long).read_bytes() == wav(1)


# Where the kernel tells of no writers


IN_A_VIEW_OF_ITS_OWN = """
set -e
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/python /mnt/root
mount --bind "$1" /mnt/python
mount --bind "$3" /mnt/root
test -z "$2" || mount -t tmpfs -o mode=755 tmpfs "$2"
test -z "$4" || mount -t tmpfs -o mode=755 tmpfs "$4"
mkdir -p "$1" "$3"
mount --bind /mnt/python "$1"
mount --bind /mnt/root "$3"
shift 4
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""
"""Runs a command as nobody, who finds python `$1` and the place `$3` although `$2` and `$4` above are shut.

Only that command sees it so: nothing is mounted, and no directory opened up, for anybody else.
"""


def topmost_shut(path: Path) -> str:
    """Return the topmost directory above a path that other users cannot pass through, "" where there is none."""
    shut = [above for above in path.parents if not above.stat().st_mode & stat.S_IXOTH]
    return os.fspath(shut[-1]) if shut else ""


def lent_to_nobody(root: Path) -> dict[str, Any]:
    """Give what is below `root` to the user nobody; return how a daemon is run as that user."""
    need_root()
    python, checkout = Path(sys.base_prefix), ROOT / "heifyd" / "__init__.py"
    need(not topmost_shut(checkout) and not topmost_shut(Path(sys.executable)), "a checkout that everybody can read")
    views = os.fspath(python), topmost_shut(python), os.fspath(root), topmost_shut(root)
    how: dict[str, Any] = {"user": NOBODY}
    if any(views[1::2]):
        need_program("setpriv")
        how = {"prefix": [need_program("unshare"), "--mount", "sh", "-c", IN_A_VIEW_OF_ITS_OWN, "view", *views]}
    for path in (root, *root.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return how


def test_where_leases_are_refused_the_quiet_time_counts_and_an_unfinished_header_is_waited_for(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    place = make_place(tmp_path, sandbox.url, settings="settle_seconds: 0.6")
    whole = wav(next(serial))
    brisk = [Step(0.3, at, mp3(7)[at : at + 5000], close=at == 15_000) for at in range(0, 20_000, 5000)]
    valid: dict[str, bytes] = {}
    with running(place, **lent_to_nobody(tmp_path)) as daemon:
        with held_open(place.calls / "unfinished.wav", whole), held_open(place.calls / "paused.mp3", mp3(8)):
            play_in_time(place.calls, "brisk.mp3", brisk, 0.6, valid, pause_counts=True)
            assert valid, "this machine is too slow for any writer to keep the time"
            give_every_chance(daemon, place)
            assert daemon.events("folder.writer_check")[0]["check"] == "quiet"
            assert_untouched(daemon, ["unfinished.wav"])
            # That a pause with the file open is not seen here is what makes the header worth a look.
            daemon.await_event("recording.done", file="paused.mp3")
        daemon.await_event("recording.done", file="unfinished.wav")
        for name in valid:
            daemon.await_event("recording.done", file=name)
        assert_done_as(daemon, sandbox, {**valid, "unfinished.wav": whole})


@contextmanager
def mounted(source: Path, point: Path) -> Iterator[None]:
    """Mount a directory at another place as FUSE, as a share on which another machine writes."""
    need_root()
    bindfs = need_program("bindfs")
    need(Path("/dev/fuse").exists(), "/dev/fuse")
    subprocess.run([bindfs, source, point], check=True)
    try:
        yield
    finally:
        eventually(
            lambda: subprocess.run(["umount", point], check=False, capture_output=True).returncode == 0, "unmounting"
        )


@contextmanager
def share(tmp_path: Path, sandbox: Sandbox, settings: str) -> Iterator[tuple[Place, Path]]:
    """Give a place whose folder is a share, and the directory that the recorder on the other machine writes to."""
    place = make_place(tmp_path, sandbox.url, settings=f"{settings}\nrescan_seconds: 0.2")
    far = tmp_path / "far"
    far.mkdir()
    with mounted(far, place.calls):
        yield place, far


def assert_is_polled(daemon: DaemonProcess) -> None:
    (watched,) = daemon.events("folder.watched")
    assert watched["watch"] == "poll"
    assert watched["reason"].startswith("fuse")


def test_on_a_share_a_pause_shorter_than_the_settle_time_cuts_nothing_short(tmp_path: Path, sandbox: Sandbox) -> None:
    steps = [Step(0.5, at, mp3(9)[at : at + 4000], close=at in (8000, 16_000)) for at in range(0, 20_000, 4000)]
    valid: dict[str, bytes] = {}
    with share(tmp_path, sandbox, "settle_seconds: 1") as (place, far), running(place) as daemon:
        assert_is_polled(daemon)
        play_in_time(far, "call.mp3", steps, 1.0, valid, pause_counts=True)
        ((name, content),) = valid.items()
        daemon.await_event("recording.done", file=name)
        assert_done_as(daemon, sandbox, valid)
        assert (far / "done" / name).read_bytes() == content
        assert not (far / name).exists()


def test_on_a_share_a_wav_is_waited_for_until_it_is_as_long_as_its_header_says(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    whole = wav(next(serial))
    untold = whole[:4] + bytes(4) + whole[8:40] + bytes(4) + whole[44:]  # as it is before its sizes are filled in
    with share(tmp_path, sandbox, "settle_seconds: 1") as (place, far), running(place) as daemon:
        assert_is_polled(daemon)
        (far / "call.wav").write_bytes(whole[:9000])
        (far / "header.wav").write_bytes(untold)
        give_every_chance(daemon, Place(tmp_path, place.config))
        assert_untouched(daemon, ["call.wav", "header.wav"])
        with (far / "call.wav").open("ab") as writer:
            writer.write(whole[9000:])
        (far / "header.wav").write_bytes(whole)
        daemon.await_event("recording.done", file="call.wav")
        daemon.await_event("recording.done", file="header.wav")
        assert_done_as(daemon, sandbox, {"call.wav": whole, "header.wav": whole})
        assert not [each for each in daemon.events("recording.settled") if "detail" in each]


def test_on_a_share_a_wav_that_never_becomes_whole_is_taken_in_the_end_and_the_log_says_so(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    half = wav(next(serial))[:9000]
    with share(tmp_path, sandbox, "settle_seconds: 0.3") as (place, far), running(place) as daemon:
        assert_is_polled(daemon)
        (far / "call.wav").write_bytes(half)
        give_every_chance(daemon, place)
        assert_untouched(daemon, ["call.wav"])
        daemon.await_event("recording.done", file="call.wav")
        (settled,) = daemon.await_event("recording.settled", file="call.wav")
        assert "less than its WAV header says" in settled["detail"]
        assert_done_as(daemon, sandbox, {"call.wav": half})


def test_on_a_share_a_process_of_this_machine_that_has_the_file_open_is_seen(tmp_path: Path, sandbox: Sandbox) -> None:
    whole = mp3(next(serial))
    with share(tmp_path, sandbox, QUICK) as (place, _), running(place) as daemon:
        assert_is_polled(daemon)
        with held_open(place.calls / "call.mp3", whole):
            give_every_chance(daemon, place)
            assert_untouched(daemon, ["call.mp3"])
        daemon.await_event("recording.done", file="call.mp3")
        assert_done_as(daemon, sandbox, {"call.mp3": whole})
        assert "proc" in [each["check"] for each in daemon.events("folder.writer_check")]


def test_what_a_share_s_recorder_renames_in_is_taken_whole(tmp_path: Path, sandbox: Sandbox) -> None:
    whole = wav(next(serial))
    with share(tmp_path, sandbox, QUICK) as (place, far), running(place) as daemon:
        (far / "call.wav.part").write_bytes(whole[:9000])
        give_every_chance(daemon, place)
        with (far / "call.wav.part").open("ab") as writer:
            writer.write(whole[9000:])
        (far / "call.wav.part").rename(far / "call.wav")
        daemon.await_event("recording.done", file="call.wav")
        assert_done_as(daemon, sandbox, {"call.wav": whole})


def test_a_share_that_dies_during_a_put_holds_its_folder_until_it_is_back(tmp_path: Path, sandbox: Sandbox) -> None:
    settings = "settle_seconds: 0.3\nrescan_seconds: 0.2\nbandwidth_limit: 2M"
    place = make_place(tmp_path, sandbox.url, settings=settings)
    far = tmp_path / "far"
    far.mkdir()
    content = mp3(1) * 300  # more than the kernel reads ahead
    (far / "call.mp3").write_bytes(content)
    with mounted(far, place.calls), hurrying(place) as daemon:
        eventually(lambda: sandbox.counters().bytes_received > 0, "an upload that is under way")
        server = subprocess.run(["pgrep", "-f", f"bindfs {far}"], check=True, capture_output=True, text=True).stdout
        os.kill(int(server.split()[0]), signal.SIGKILL)
        (started,) = daemon.await_event("hold.started")
        assert (started["scope"], started["owner"]) == (str(place.calls), "folder")
        eventually(lambda: subprocess.run(["umount", place.calls], check=False).returncode == 0, "unmounting")
        subprocess.run([need_program("bindfs"), far, place.calls], check=True)
        daemon.await_event("recording.done")
        daemon.await_event("hold.ended")
    assert [each.sha256 for each in sandbox.transcriptions() if each.stored] == [sha256(content)]
    assert (far / "done" / "call.mp3").read_bytes() == content
