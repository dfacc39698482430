"""The daemon killed at every step of a recording's journey, and at random moments: nothing lost, nothing twice.

A longer run of the second:

    HEIFYD_CRASH_KILLS=200 HEIFYD_CRASH_FILES=1000 pytest -n 0 tests/acceptance -k random_moments
"""

import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from heifyd.sandbox import CONFIGURATION_ID, Sandbox
from tests.harness import (
    DaemonProcess,
    Event,
    Place,
    SandboxProcess,
    files_below,
    make_place,
    need,
    running,
    sample,
    sha256,
)
from tests.rehearsal import STEPS

NO_RECORDING = b"the agent's notes, and no recording\n" * 20
OF_COPIES = ("copied", "placed")
URL_LIFETIME_S = 3


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Give a directory on another file system than the tests' own."""
    need(Path("/dev/shm").is_dir(), "a /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="heifyd-test-") as directory:
        yield Path(directory)


@pytest.mark.parametrize(
    ("step", "is_far", "nth"),
    [
        pytest.param(step, is_far, nth, id=f"{step}-{nth}-{'another' if is_far else 'same'}-file-system")
        for step in STEPS
        for is_far in (False, True)
        for nth in (1, 3)
        if (is_far or step not in OF_COPIES) and (nth == 1 or step != "settled")  # all settle in one go
    ],
)
def test_a_kill_at_any_step_loses_nothing_and_sends_nothing_twice(
    tmp_path: Path,
    sandbox: Sandbox,
    elsewhere: Path,
    step: str,
    is_far: bool,  # noqa: FBT001
    nth: int,
) -> None:
    folder = f"done: {elsewhere}/done\nfailed: {elsewhere}/failed\nrecursive: true" if is_far else "recursive: true"
    place = make_place(tmp_path, sandbox.url, settings="settle_seconds: 0\nworkers: 2", folder=folder)
    good = {f"{number}.wav": sample(".wav", number) for number in range(3)}
    bad = {f"sub/notes-{number}.wav": NO_RECORDING + bytes([number]) for number in range(3)}
    (place.calls / "sub").mkdir()
    for path, content in (good | bad).items():
        (place.calls / path).write_bytes(content)
    environ = {"REHEARSAL_KILL": f"{step}:{nth}"}

    with DaemonProcess(place.config, environ, module="tests.rehearsal") as first:
        first.wait_for(lambda: first.over, "the kill")
        assert first.end() == -signal.SIGKILL, first.output
    with running(place) as second:
        told = [first, second]
        second.wait_for(lambda: results(told).keys() >= good.keys() | bad.keys(), "every result")

    done, failed = (elsewhere / "done", elsewhere / "failed") if is_far else (place.done, place.failed)
    assert {path: sha256(file) for path, file in files_below(done).items()} == {
        path: sha256(content) for path, content in good.items()
    }
    explanations = {f"{path}.error.json" for path in bad}
    assert files_below(failed).keys() == bad.keys() | explanations
    assert left(place.calls) == []
    stored = Counter(each.sha256 for each in sandbox.transcriptions() if each.stored)
    assert stored == Counter(sha256(content) for content in good.values())
    assert {path: {event["event"] for event in events} for path, events in results(told).items()} == {
        **{path: {"recording.done"} for path in good},
        **{path: {"recording.failed"} for path in bad},
    }
    for events in results(told).values():
        places = {event["filed_at"] for event in events}
        assert len(places) == 1, "a line that is repeated says the same"
        assert Path(places.pop()).exists()
    assert not [each for run in told for each in run.events("upload.repeated", "recording.vanished")]


def results(runs: list[DaemonProcess]) -> dict[str, list[Event]]:
    """Return what the runs told of each recording's end, by its path."""
    found: dict[str, list[Event]] = {}
    for run in runs:
        for event in run.events("recording.done", "recording.failed"):
            found.setdefault(event["file"], []).append(event)
    return found


def left(folder: Path) -> list[str]:
    """Return what lies in a watched folder and is not filed."""
    return [path for path in files_below(folder) if not path.startswith(("done/", "failed/"))]


class Recorder:
    """Writes recordings as they come in, in a thread of its own, until all are there."""

    def __init__(self, places: list[Path], files: int, pause_s: float) -> None:
        self.contents: dict[str, bytes] = {}
        self._places = places
        self._files = files
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._record, name="test-recorder")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def finish(self) -> None:
        self._thread.join()

    def _record(self) -> None:
        for number in range(self._files):
            path = self._places[number % len(self._places)] / str(number % 7) / f"call {number}.wav"
            content = sample(".wav", f"{number} " * (number % 50 + 1))
            path.parent.mkdir(exist_ok=True)
            self.contents[str(path)] = content
            with path.open("wb", buffering=0) as file:
                file.write(content[:1000])
                file.write(content[1000:])
            if self._stopping.wait(self._pause_s):
                return


class MortalSandbox:
    """A sandbox that is killed and started again on its port and its data."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.now = self._start(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.now.end()

    def _start(self, port: int) -> SandboxProcess:
        return SandboxProcess(self._data, "--no-rate-limit", "--url-lifetime", str(URL_LIFETIME_S), port=port)

    def die(self) -> None:
        self.now.end(signal.SIGKILL)
        self.now = self._start(self.now.port)


class Log:
    """What all runs of the daemon have told."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.repeated: set[str] = set()

    def note(self, run: DaemonProcess) -> None:
        assert not run.events("recording.failed", "thread.died", "ledger.set_aside", "recording.vanished"), run.output
        for name, known in (("recording.done", self.done), ("upload.repeated", self.repeated)):
            known.update(f"{event['folder']}/{event['file']}" for event in run.events(name))


def die_again_and_again(place: Place, sandbox: MortalSandbox, dice: random.Random, kills: int, log: Log) -> str:
    """Start the daemon and kill it `kills` times; return in words what happened."""
    at_a_step = sandbox_deaths = cut_answers = 0
    for _ in range(kills):
        environ = {}
        if dice.random() < 0.4:
            environ["REHEARSAL_KILL"] = f"{dice.choice(list(STEPS))}:{dice.randint(1, 6)}"
        with DaemonProcess(place.config, environ, module="tests.rehearsal") as run:
            if dice.random() < 0.2:
                sandbox.now.fail(f"cut-answer x{dice.randint(1, 3)}")
                cut_answers += 1
            if dice.random() < 0.1:
                sandbox.die()
                sandbox_deaths += 1
            with run.changed:
                run.changed.wait_for(lambda: run.over, dice.uniform(0.5, 2.0))
            at_a_step += run.over
            run.end(signal.SIGKILL)
            log.note(run)
    return (
        f"{kills} kills of the daemon ({at_a_step} at a named step), {sandbox_deaths} of the sandbox, "
        f"{cut_answers} times answers cut off"
    )


def test_kills_at_random_moments_lose_nothing_and_send_nothing_twice(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = int(os.environ.get("HEIFYD_CRASH_KILLS", "15"))
    files = int(os.environ.get("HEIFYD_CRASH_FILES", "100"))
    seed = int(os.environ.get("HEIFYD_CRASH_SEED", random.SystemRandom().randrange(10**6)))
    far = tmp_path / "far"
    far.mkdir()
    log = Log()
    with MortalSandbox(tmp_path / "heify") as sandbox:
        settings = "settle_seconds: 0.1\nrescan_seconds: 2"
        place = make_place(tmp_path, sandbox.now.url, settings=settings, folder="recursive: true")
        with place.config.open("a") as config:
            config.write(f"  - path: {far}\n    configuration_id: {CONFIGURATION_ID}\n    recursive: true\n")
            config.write(f"    done: {elsewhere}/done\n    failed: {elsewhere}/failed\n")
        with Recorder([place.calls, far], files, pause_s=kills / files) as recorder:
            told = die_again_and_again(place, sandbox, random.Random(seed), kills, log)
            recorder.finish()
        sandbox.now.recover()
        with running(place) as last:
            last.wait_for(lambda: not left(place.calls) + left(far), "everything filed", 180)
        log.note(last)
        stored = Counter(each["sha256"] for each in sandbox.now.stored())
    wanted = Counter(sha256(content) for content in recorder.contents.values())
    filed = Counter(sha256(file) for where in (place.done, elsewhere / "done") for file in files_below(where).values())
    lost, doubled = (wanted - stored).total(), (stored - wanted).total()
    with capsys.disabled():
        came_to = f"lost {lost}, doubled {doubled}, upload.repeated {len(log.repeated)}"
        sys.stdout.write(f"\n{told}; {files} files: {came_to} (seed {seed})\n")
    assert len(recorder.contents) == files
    assert lost == 0
    assert doubled <= len(log.repeated)
    assert filed == wanted
    assert log.done == set(recorder.contents), "each result is in the log"
