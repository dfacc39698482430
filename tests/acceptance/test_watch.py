"""`heifyd status --watch` as a person has it before them: in a real terminal, through all that may happen meanwhile."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heifyd.sandbox import Sandbox
from tests.harness import (
    DaemonProcess,
    Place,
    assert_tells_no_secret,
    eventually,
    make_place,
    running,
    sample,
    status,
)
from tests.terminal import ALTERNATE_OFF, ALTERNATE_ON, CURSOR_OFF, CURSOR_ON, Terminal

SLOW = "settle_seconds: 0.2\nrescan_seconds: 0.5\nbandwidth_limit: 400k"


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=SLOW, folder="recursive: true")


def watch(place: Place, *arguments: str, columns: int = 100, lines: int = 24) -> Terminal:
    return Terminal(command(place, *arguments), columns=columns, lines=lines)


def command(place: Place, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "heifyd", "status", "--config", str(place.config), "--watch", "0.2", *arguments]


def recording(place: Place, name: str, times: int) -> Path:
    path = place.calls / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sample(".wav") * times + name.encode())
    return path


def uploading(place: Place) -> None:
    eventually(lambda: status(place)["uploads"], "an upload that is noted")


@pytest.mark.parametrize("columns", [40, 65, 80, 130])
def test_an_upload_s_bar_its_percentage_and_the_time_left_are_seen_at_any_width(place: Place, columns: int) -> None:
    name = f"agents/7/{'a long name ' * 9}.wav"
    recording(place, name, 300)
    with DaemonProcess(place.config) as daemon, watch(place, columns=columns) as terminal:
        daemon.started()
        terminal.wait_for_text(
            "uploads", " % ", " left", "━", "running", "1 uploading" if columns < 70 else "uploading"
        )
        assert all(len(line) <= columns for line in terminal.lines)
        assert (" of 9.6 MB" in terminal.text) == (columns > 40)
        assert "a long name .wav" in terminal.text, "the end of a name that has no room tells most"
        terminal.type("\x03")
        assert terminal.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_it_ends_with_0_and_gives_the_screen_and_the_cursor_back(place: Place, number: signal.Signals) -> None:
    with running(place), watch(place) as terminal:
        terminal.wait_for_text("running on", "oldest")
        assert (ALTERNATE_ON in terminal.written, CURSOR_OFF in terminal.written) == (True, True)
        assert ALTERNATE_OFF not in terminal.written
        if number == signal.SIGINT:
            terminal.type("\x03")
        else:
            terminal.send(number)
        assert terminal.end() == 0
    assert terminal.written.rstrip().endswith(CURSOR_ON)
    assert terminal.written.count(ALTERNATE_ON) == terminal.written.count(ALTERNATE_OFF) == 1
    assert b"Traceback" not in terminal.written


def test_it_follows_what_happens_and_redraws_in_place(place: Place) -> None:
    with watch(place, columns=250) as terminal:
        terminal.wait_for_text("there is no ledger yet")
        with running(place) as daemon:
            terminal.wait_for_text("heifyd is running")
            recording(place, "call.wav", 1)
            daemon.await_event("recording.done")
            terminal.wait_for(lambda: terminal.lines[4].split()[-4:-1] == ["0", "0", "1"], "one that is done today")
        terminal.wait_for_text("heifyd is not running")
        assert terminal.text.count("heifyd is") == 1
        with running(place):
            terminal.wait_for_text("heifyd is running")
        terminal.type("\x03")
        assert terminal.end() == 0
    assert_tells_no_secret(terminal.written.decode())


def test_a_window_that_changes_its_size_is_filled_anew_at_once(place: Place) -> None:
    with (
        running(place),
        Terminal([*command(place)[:-1], "600"], columns=100, lines=24) as terminal,
    ):  # the next look of its own would come in ten minutes
        terminal.wait_for_text("done today")
        assert "waiting," not in terminal.text
        terminal.resize(40, 12)
        terminal.wait_for_text("0 waiting, 0 uploading")
        assert all(len(line) <= 40 for line in terminal.lines)
        terminal.resize(40, 5)
        terminal.wait_for_text("lines more")
        terminal.resize(120, 30)
        terminal.wait_for_text("done today", "oldest")
        assert "lines more" not in terminal.text
        terminal.type("\x03")
        assert terminal.end() == 0


def test_ctrl_z_gives_the_screen_back_and_fg_takes_it_again(place: Place) -> None:
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with running(place), Terminal(shell, {"PS1": "ready> "}, columns=100) as terminal:
        terminal.wait_for_text("ready>")
        terminal.type(f"cd {os.getcwd()}; {' '.join(command(place))}\n")
        terminal.wait_for_text("done today")
        terminal.type("\x1a")
        terminal.wait_for_text("Stopped")
        assert terminal.written.count(ALTERNATE_OFF) == 1
        assert terminal.written.count(CURSOR_ON) == 1
        terminal.type("fg\n")
        terminal.wait_for(lambda: terminal.written.count(ALTERNATE_ON) == 2, "the screen taken again")
        terminal.type("\x03")
        terminal.wait_for(lambda: terminal.written.count(ALTERNATE_OFF) == 2, "the screen given back again")
        terminal.type("echo it ended with $?.; exit\n")
        terminal.wait_for_text("it ended with 0.")
        assert terminal.end() == 0


def test_it_goes_on_while_the_configuration_is_wrong_and_while_there_is_none(place: Place) -> None:
    right = place.config.read_text()
    with running(place), watch(place, columns=250) as terminal:
        terminal.wait_for_text("done today")
        place.config.write_text(right + "worker: 2\n")
        terminal.wait_for_text("did you mean workers?")
        place.config.unlink()
        terminal.wait_for_text("config.yaml: does not exist")
        place.config.write_text(right)
        terminal.wait_for_text("done today")
        assert "did you mean" not in terminal.text
        terminal.type("\x03")
        assert terminal.end() == 0


def test_a_configuration_that_is_wrong_from_the_start_is_an_error(place: Place) -> None:
    place.config.write_text(place.config.read_text() + "worker: 2\n")
    with watch(place) as terminal:
        assert terminal.end() == 78
    assert ALTERNATE_ON not in terminal.written
    assert "did you mean workers?" in terminal.text


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_without_a_terminal_one_report_follows_the_other(place: Place, *, as_json: bool) -> None:
    recording(place, "call.wav", 200)
    arguments = ["--json"] if as_json else []
    with (
        DaemonProcess(place.config) as daemon,
        subprocess.Popen(
            command(place, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        ) as process,
    ):
        assert process.stdout is not None
        daemon.started()
        reports: list[str] = []
        while len(reports) < 4 or not any("call.wav" in each for each in reports):
            line = process.stdout.readline()
            assert line, process.stderr
            if as_json or "heifyd is running" in line or "call.wav" in line:
                reports.append(line)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "\x1b" not in "".join(reports) + rest
    if as_json:
        told = [json.loads(line) for line in reports]
        assert told[-1]["running"]
        assert told[-1]["uploads"][0]["path"] == "call.wav"


def test_nohup_keeps_it_going_when_the_terminal_hangs_up(place: Place) -> None:
    with (
        running(place),
        subprocess.Popen(
            ["nohup", *command(place)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        ) as process,
    ):
        assert process.stdout is not None
        next(line for line in process.stdout if "heifyd is running" in line)
        process.send_signal(signal.SIGHUP)
        for _ in range(3):
            next(line for line in process.stdout if "heifyd is running" in line)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
