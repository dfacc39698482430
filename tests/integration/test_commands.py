"""The commands as a person runs them: what they print, and how they end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from heifyd.sandbox import API_KEY, CONFIGURATION_ID, EVALUATOR_ID, Sandbox
from heifyd.service import Exit
from tests.harness import Place, files_below, make_place, need_program, need_root, running, sample, sha256

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings="settle_seconds: 0.2", folder="recursive: true")


def heifyd(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; what it prints is the terminal's, 200 columns wide."""
    return subprocess.run(
        [sys.executable, "-m", "heifyd", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "COLUMNS": "200", **environ},
        timeout=60,
        check=False,
    )


def test_the_schema_accepts_the_example_and_refuses_a_key_that_does_not_exist() -> None:
    run = heifyd("schema")
    example = yaml.safe_load((ROOT / "config.example.yaml").read_text())

    assert run.returncode == 0
    jsonschema.validate(example, json.loads(run.stdout))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**example, "worker": 1}, json.loads(run.stdout))


def test_check_tells_how_each_folder_is_watched_and_leaves_nothing_behind(place: Place) -> None:
    run = heifyd("check", "--config", str(place.config))

    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{place.calls}" in run.stdout
    assert "watched by events" in run.stdout
    assert "watches needed" in run.stdout
    assert files_below(place.calls) == {}
    assert os.listdir(place.calls) == []
    assert API_KEY not in run.stdout + run.stderr


def test_check_does_not_take_the_capabilities_of_a_rootless_container_for_the_machine_s(place: Place) -> None:
    need_root()
    command = [sys.executable, "-m", "heifyd", "check", "--config", str(place.config)]
    rootless = [need_program("unshare"), "--user", "--map-root-user"]
    outside, inside = (
        subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout
        for prefix in ([], rootless)
    )

    assert "lease, by CAP_LEASE" in outside
    assert "lease, by CAP_LEASE" not in inside
    assert "Run heifyd as the user who owns them" in " ".join(inside.split())


def test_check_finds_a_done_directory_that_cannot_be_made(tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "a-file").touch()
    place = make_place(tmp_path, sandbox.url, folder=f"done: {tmp_path}/a-file/done")

    run = heifyd("check", "--config", str(place.config))

    assert run.returncode == 1
    assert "error" in run.stdout
    assert "files cannot be moved" in run.stdout


@pytest.mark.parametrize(
    ("listen", "environ", "said", "code"),
    [
        ("127.0.0.1:9469", {}, "ok      listens on 127.0.0.1:9469, for this machine", 0),
        ("unix:/run/x.sock", {}, "ok      listens on unix:/run/x.sock, for whoever may open the socket", 0),
        ("0.0.0.0:1", {"HEIFYD_STATUS_TOKEN": "x" * 16}, "ok      listens on 0.0.0.0:1, for who has the token", 0),
        ("0.0.0.0:1", {"HEIFYD_STATUS_TOKEN": "x" * 15}, "error   environment: HEIFYD_STATUS_TOKEN: is too short", 1),
    ],
)
def test_check_tells_where_the_status_page_is_and_for_whom(
    tmp_path: Path, sandbox: Sandbox, listen: str, environ: dict[str, str], said: str, code: int
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f'status: {{listen: "{listen}"}}')

    run = heifyd("check", "--config", str(place.config), **environ)

    assert run.returncode == code, run.stdout
    assert f"status page\n  {said}" in run.stdout


def test_monitoring_prints_what_prometheus_and_grafana_read() -> None:
    rules, dashboard = heifyd("monitoring", "alerts"), heifyd("monitoring", "dashboard")

    assert [group["name"] for group in yaml.safe_load(rules.stdout)["groups"]] == ["heifyd"]
    assert json.loads(dashboard.stdout)["title"] == "heifyd"


def test_check_prints_the_drop_in_of_the_systemd_unit_and_nothing_else(place: Place) -> None:
    run = heifyd("check", "--systemd-dropin", "--config", str(place.config))

    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("# /etc/systemd/system/heifyd.service.d/folders.conf\n")
    assert f"\nReadWritePaths=-{place.root}\n" in run.stdout  # the ledger is beside the folder here
    place.config.write_text("workers: many\n")
    assert heifyd("check", "--systemd-dropin", "--config", str(place.config)).returncode == 78


def test_check_online_shows_tags_and_names_an_id_that_heify_does_not_know(tmp_path: Path, sandbox: Sandbox) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    rules = f"rules:\n  - match: '*.mp3'\n    evaluator_id: {unknown}"
    place = make_place(tmp_path, sandbox.url, folder=rules)

    run = heifyd("check", "--online", "--config", str(place.config))

    assert run.returncode == 1
    assert f"configuration {CONFIGURATION_ID}: Support calls" in run.stdout
    assert f"evaluator {EVALUATOR_ID}: Quality score" in run.stdout
    assert f"evaluator {unknown} is not known" in run.stdout


def test_check_online_says_whose_fault_a_refused_key_is(place: Place) -> None:
    (place.root / "key").write_text("another-key")

    run = heifyd("check", "--online", "--config", str(place.config))

    assert run.returncode == 1
    assert "403" in run.stdout
    assert "API key" in run.stdout
    assert "another-key" not in run.stdout + run.stderr


def test_a_configuration_that_cannot_be_read_is_a_wrong_one_and_no_wrong_command_line(place: Place) -> None:
    for command in ("run", "check", "health"):
        run = heifyd(command, "--config", str(place.root))

        assert run.returncode == 78, run.stdout + run.stderr
        assert "cannot be read (Is a directory)" in run.stdout + run.stderr


def test_a_wrong_configuration_ends_each_command_with_78_and_all_its_errors(place: Place) -> None:
    place.config.write_text(place.config.read_text() + "worker: 2\nwatch: sometimes\n")

    for command in ("check", "status", "retry"):
        run = heifyd(command, "--config", str(place.config), *(["--all"] if command == "retry" else []))
        assert run.returncode == 78
        assert "did you mean workers?" in run.stderr
        assert "config.yaml:14: watch: " in run.stderr


def test_status_tells_what_waits_what_failed_and_what_is_held(place: Place, sandbox: Sandbox) -> None:
    (place.calls / "good.wav").write_bytes(sample(".wav"))
    (place.calls / "bad.wav").write_text("no recording " * 100)
    with running(place) as daemon:
        daemon.await_event("recording.done")
        daemon.await_event("recording.failed")
        sandbox.fail("402")
        (place.calls / "held.wav").write_bytes(sample(".wav", "held"))
        daemon.await_event("hold.started")
        told = json.loads(heifyd("status", "--json", "--config", str(place.config)).stdout)
        shown = heifyd("status", "--config", str(place.config)).stdout
    after = json.loads(heifyd("status", "--json", "--config", str(place.config)).stdout)

    (folder,) = told["folders"]
    assert told["running"] is True
    assert (folder["waiting"], folder["done_today"], folder["failed"]) == (1, 1, 1)
    assert [(hold["scope"], hold["reason"]) for hold in told["holds"]] == [("everything", "out_of_minutes")]
    assert "top up" in shown
    assert after["running"] is False


def test_status_before_the_first_start_makes_no_ledger(place: Place) -> None:
    run = heifyd("status", "--config", str(place.config))

    assert run.returncode == 1
    assert "no ledger yet" in run.stderr
    assert not place.ledger.exists()


def test_retry_brings_failed_recordings_back_and_they_are_uploaded(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail('request-upload-url 400 "Unsupported audio format"')
    for path in ("a.wav", "sub/b.wav", "c.wav"):
        (place.calls / path).parent.mkdir(exist_ok=True)
        (place.calls / path).write_bytes(sample(".wav", path))
    with running(place) as daemon:
        daemon.await_event("recording.failed", 3)
        sandbox.clear_faults()

        by_its_place = heifyd("retry", str(place.failed / "a.wav"), "--config", str(place.config))
        by_its_name = heifyd("retry", str(place.calls / "sub/b.wav"), "--config", str(place.config))
        daemon.await_event("recording.done", 2)
        unknown = heifyd("retry", str(place.calls / "never.wav"), "--config", str(place.config))
        the_rest = heifyd("retry", "--folder", str(place.calls), "--config", str(place.config))
        daemon.await_event("recording.done", 3)

    assert (by_its_place.returncode, by_its_place.stdout) == (0, f"{place.calls}/a.wav\n")
    assert (by_its_name.returncode, by_its_name.stdout) == (0, f"{place.calls}/sub/b.wav\n")
    assert (unknown.returncode, the_rest.stdout) == (1, f"{place.calls}/c.wav\n")
    assert sorted(files_below(place.calls)) == ["done/a.wav", "done/c.wav", "done/sub/b.wav"]
    assert len([each for each in sandbox.transcriptions() if each.stored]) == 3


def test_retry_finds_what_was_renamed_in_failed_and_what_the_ledger_has_forgotten(
    place: Place, sandbox: Sandbox
) -> None:
    sandbox.fail('request-upload-url 400 "Unsupported audio format"')
    (place.calls / "sub").mkdir()
    (place.calls / "sub" / "call.wav").write_bytes(sample(".wav"))
    with running(place) as daemon:
        daemon.await_event("recording.failed")
    sandbox.clear_faults()
    (place.failed / "sub" / "call.wav").rename(place.failed / "look at this.wav")
    (place.failed / "old.wav").write_bytes(sample(".wav", "old"))

    run = heifyd("retry", str(place.failed / "look at this.wav"), "--config", str(place.config))
    the_rest = heifyd("retry", "--all", "--config", str(place.config))

    assert (run.returncode, run.stdout) == (0, f"{place.calls}/sub/call.wav\n")
    assert (the_rest.returncode, the_rest.stdout) == (0, f"{place.calls}/old.wav\n")
    assert sorted(files_below(place.calls)) == ["old.wav", "sub/call.wav"]
    with running(place) as daemon:
        daemon.await_event("recording.done", 2)


def test_retry_of_nothing_is_a_mistake(place: Place) -> None:
    assert heifyd("retry", "--config", str(place.config)).returncode == 2


def test_upload_sends_a_file_and_leaves_it_where_it_is(place: Place, sandbox: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "Звонок.mp3"
    file.write_bytes(sample(".mp3"))

    run = heifyd("upload", str(file), "--like", str(place.calls), "--config", str(place.config))

    assert run.returncode == 0, run.stdout + run.stderr
    (stored,) = sandbox.transcriptions()
    assert (stored.sha256, stored.evaluator_id, stored.name) == (sha256(file), EVALUATOR_ID, "Zvonok")
    assert stored.transcription_id in run.stdout


def test_upload_refuses_a_file_that_the_daemon_will_send(place: Place, sandbox: Sandbox) -> None:
    (place.calls / "call.wav").write_bytes(sample(".wav"))

    run = heifyd("upload", str(place.calls / "call.wav"), "--like", str(place.calls), "--config", str(place.config))

    assert run.returncode == 1
    assert "watched folder" in run.stdout
    assert sandbox.transcriptions() == []


def test_the_demo_ends_with_0_and_shows_each_recording_where_it_should_be(tmp_path: Path) -> None:
    run = heifyd("demo", "--keep", str(tmp_path / "demo"))

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("as it should") == 9
    assert (tmp_path / "demo" / "calls" / "done" / "live.wav").exists()
    assert API_KEY not in run.stdout
    assert "Signature=" not in run.stdout


COMMANDS = [
    *("run", "check", "status", "health", "retry", "upload"),
    *("schema", "completion", "monitoring", "sandbox", "demo"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_in_80_columns_with_its_exit_codes_and_examples(command: str) -> None:
    run = heifyd(command, "--help", COLUMNS="80")

    assert run.returncode == 0
    assert [line for line in run.stdout.splitlines() if len(line) > 80] == []
    _, _, exits = run.stdout.partition("\nExit codes:\n")
    codes = [int(code) for code in re.findall(r"^  (\d+)  ", exits, re.MULTILINE)]
    assert {0, 2} <= set(codes) <= set(Exit)
    assert codes == sorted(codes)
    assert f"  heifyd {command}" in run.stdout.partition("\nExamples:\n")[2]
    assert "HEIFYD_CONFIG" in exits or "--config FILE" not in run.stdout


def test_the_help_lists_every_command_and_what_is_the_same_for_all() -> None:
    run = heifyd("--help", COLUMNS="80")

    assert run.returncode == 0
    assert [line for line in run.stdout.splitlines() if len(line) > 80] == []
    assert re.findall(rf"^  ({'|'.join(COMMANDS)})  ", run.stdout, re.MULTILINE) == COMMANDS
    exits = run.stdout.partition("\nExit codes:\n")[2]
    assert [int(code) for code in re.findall(r"^  (\d+)  ", exits, re.MULTILINE)] == sorted(Exit)
    assert "HEIFY_API_KEY" in run.stdout.partition("\nEnvironment:\n")[2]


def test_a_port_that_there_is_not_is_a_mistake_of_the_command_line() -> None:
    run = heifyd("sandbox", "--port", "99999")

    assert run.returncode == 2
    assert "0<=x<=65535" in run.stderr
