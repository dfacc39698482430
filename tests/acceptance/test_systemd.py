"""The units as systemd runs them: a real one as PID 1, in a container made for these tests."""

import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, assert_tells_no_secret, need_program, need_root

UNITS = [ROOT / "systemd" / name for name in ("heifyd.service", "heifyd@.service")]
PROBE_S = 300.0
CAP_LEASE = 28
PACKAGES = "systemd,systemd-sysv,dbus,python3,procps"

PROBE = """[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/opt/heifyd/bin/python /probe/systemd_probe.py
ExecStopPost=systemctl --no-block poweroff
StandardOutput=file:/probe/output
StandardError=file:/probe/output
"""

SANDBOX = """[Service]
ExecStart=/opt/heifyd/bin/heifyd sandbox --port 8080 --data /var/lib/sandbox --no-rate-limit
StateDirectory=sandbox
"""

Findings = dict[str, Any]


def command(*words: str | Path, **how: Any) -> str:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **how)
    said: str = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{words}: {said[-3000:]}"
    return said


def put_in(tree: Path) -> None:
    """Install heifyd as the README says, at the version of the checkout; its packages come by this machine's pip."""
    python = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--no-input"]
    site = tree / "opt/heifyd/lib/python3.11/site-packages"
    command("chroot", tree, "python3", "-m", "venv", "--without-pip", "/opt/heifyd")
    command(*python, "wheel", "--no-deps", "--wheel-dir", tree / "wheel", ROOT)
    (wheel,) = (tree / "wheel").glob("heifyd-*.whl")
    as_there = ["--python-version", "3.11", "--only-binary", ":all:", "--upgrade"]
    command(*python, "install", *as_there, "--target", site, wheel)
    program = tree / "opt/heifyd/bin/heifyd"
    program.write_text("#!/opt/heifyd/bin/python\nfrom heifyd.cli import main\nmain()\n")
    program.chmod(0o755)

    units = tree / "etc/systemd/system"
    for unit in UNITS:
        shutil.copy(unit, units)
    (units / "probe.service").write_text(PROBE)
    (units / "sandbox.service").write_text(SANDBOX)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants" / "probe.service").symlink_to("/etc/systemd/system/probe.service")
    (tree / "probe").mkdir()
    for file in ("acceptance/systemd_probe.py", "rehearsal.py"):
        shutil.copy(ROOT / "tests" / file, tree / "probe")
    shutil.copy(ROOT / "heifyd/samples/call.wav", tree / "probe")


def boot(root: Path) -> Findings:
    """Build the container, let its systemd run the probe, and return what that found."""
    tree = root / "tree"
    try:
        command(
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--dpkgopt=force-unsafe-io",
            f"--include={PACKAGES}",
            "bookworm",
            tree,
        )
        put_in(tree)
        began_s = time.monotonic()
        console = command(
            *("systemd-nspawn", "-q", "-D", tree, "-b", "--register=no", "--keep-unit", "--kill-signal=SIGKILL"),
            timeout=PROBE_S,
            stdin=subprocess.DEVNULL,
        )
        report = tree / "findings.json"
        output = tree / "probe/output"
        assert report.exists(), console[-3000:] + (output.read_text() if output.exists() else "")
        findings: Findings = json.loads(report.read_text())
        findings["took_s"] = round(time.monotonic() - began_s, 1)
        return findings
    finally:
        shutil.rmtree(tree, ignore_errors=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def findings(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Findings:
    """Boot one container for all the processes of a test run; what it found is there for each."""
    need_root()
    for program in ("mmdebstrap", "systemd-nspawn"):
        need_program(program)
    is_worker = hasattr(request.config, "workerinput")
    base = tmp_path_factory.getbasetemp()
    root = base.parent if is_worker else base
    kept = root / "systemd-findings.json"
    with alone(root / "systemd-findings.lock"):
        if not kept.exists():
            kept.write_text(json.dumps(boot(root)))
    found: Findings = json.loads(kept.read_text())
    return found


def scene(findings: Findings, name: str) -> Findings:
    found: Findings = findings[name]
    assert "broke_off" not in found, found["broke_off"]
    return found


# In the container


def test_the_units_are_as_systemd_wants_them(findings: Findings) -> None:
    seen = scene(findings, "install")
    assert (seen["code"], seen["said"]) == (0, "")


def test_no_folder_can_be_written_to_without_the_drop_in(findings: Findings) -> None:
    seen = scene(findings, "without_its_drop_in")
    assert (seen["hold"]["owner"], seen["hold"]["reason"]) == ("folder", "filing")
    assert "Read-only file system" in seen["hold"]["detail"]
    assert seen["is_there"]


def test_with_the_drop_in_that_check_prints_every_folder_is_served(findings: Findings) -> None:
    seen = scene(findings, "with_its_drop_in")
    assert "SupplementaryGroups=recorder" in seen["drop_in"]
    assert "ProtectHome=read-only" in seen["drop_in"]
    assert seen["in_heify"]
    assert seen["owners"] == ["recorder"]
    assert seen["health"] == [0, "alive\n"]


def test_check_can_be_run_as_the_daemon_would_be(findings: Findings) -> None:
    code, said = scene(findings, "with_its_drop_in")["check"]
    assert code == 0, said
    assert said.count("(lease, by CAP_LEASE)") == 3
    assert "Support calls" in said, "what Heify calls the configuration"


def test_it_is_ready_only_when_its_folders_are_watched(findings: Findings) -> None:
    seen = scene(findings, "with_its_drop_in")
    assert seen["at_return"].count("folder.watched") == 3
    assert seen["properties"]["ActiveState"] == "active"
    assert seen["properties"]["StatusText"].startswith("3 folders, ")


def test_it_is_a_user_of_its_own_that_sees_who_writes_and_can_do_nothing_else(findings: Findings) -> None:
    seen = scene(findings, "with_its_drop_in")
    assert seen["user"]
    assert seen["capabilities"] == 1 << CAP_LEASE
    assert seen["nice"] == 10
    assert seen["checks"]
    assert set(seen["checks"]) == {"lease"}
    assert seen["untouched"], "a recording was taken while its recorder had it open"
    assert seen["whole"]


def test_a_reload_takes_up_a_folder_in_the_same_process_and_a_bad_one_changes_nothing(findings: Findings) -> None:
    seen = scene(findings, "reloaded")
    pid = seen["before"]["MainPID"]
    assert (seen["after"]["MainPID"], seen["after"]["ActiveState"]) == (pid, "active")
    assert (seen["bad"]["MainPID"], seen["bad"]["ActiveState"]) == (pid, "active")
    assert "did you mean workers?" in seen["bad"]["StatusText"]


def test_killed_it_is_started_again_and_sends_nothing_twice(findings: Findings) -> None:
    seen = scene(findings, "killed")
    assert seen["after"]["MainPID"] not in ("0", seen["before"]["MainPID"])
    assert int(seen["after"]["NRestarts"]) == int(seen["before"]["NRestarts"]) + 1
    assert (seen["stored"], seen["transcriptions"]) == ([1, 1, 1], 3)


def test_it_stops_within_its_grace_and_the_next_start_goes_on(findings: Findings) -> None:
    seen = scene(findings, "stopped")
    assert "Deactivated successfully" in seen["log"]
    assert "daemon.stopped" in seen["log"]
    assert "timed out" not in seen["log"]
    assert seen["left"] == ["stopped.wav"]
    assert seen["is_there"]
    assert (seen["stored"], seen["health"]) == (1, 1)


def test_a_bad_configuration_is_not_started_again(findings: Findings) -> None:
    seen = scene(findings, "refused")
    assert seen["start"] != 0
    assert (seen["after"]["ExecMainStatus"], seen["after"]["NRestarts"]) == ("78", "0")
    assert (seen["after"]["ActiveState"], seen["after"]["SubState"]) == ("failed", "failed")
    assert "did you mean workers?" in seen["after"]["StatusText"]


def test_the_template_runs_an_account_each(findings: Findings) -> None:
    seen = scene(findings, "two_accounts")
    assert seen["ledgers"] == ["0o100600", "0o100600"]
    assert seen["health"] == [0, 0]


def test_a_thread_that_hangs_lets_the_watchdog_start_it_again_and_it_goes_on(findings: Findings) -> None:
    seen = scene(findings, "hung")
    assert [each["thread"] for each in seen["told"]] == ["upload-1"]
    assert "Watchdog timeout" in seen["log"]
    assert "Fatal Python error: Aborted" in seen["log"], "where the threads were"
    assert seen["after"]["ActiveState"] == "active"
    assert seen["after"]["MainPID"] != seen["before"]["MainPID"]
    assert seen["stored"] == 1


def test_a_share_that_is_mounted_after_the_start_is_served(findings: Findings) -> None:
    seen = scene(findings, "late_share")
    assert seen["back"] >= 1
    assert seen["failed"] == []


def test_the_journal_tells_no_secret(findings: Findings) -> None:
    seen = scene(findings, "last_words")
    assert "recording.done" in seen["log"]
    assert_tells_no_secret(seen["log"])


# Without one


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_unit_is_hardened(unit: Path) -> None:
    """1.5 or less of 10; without it the command ends with 1."""
    analyze = need_program("systemd-analyze")
    said = command(analyze, "security", "--offline=true", "--threshold=15", "--no-pager", unit)
    assert "Overall exposure level" in said


def test_the_template_differs_from_the_unit_in_what_is_an_account_s_alone() -> None:
    one, template = (unit.read_text(encoding="utf-8").partition("[Unit]")[2].splitlines() for unit in UNITS)
    different = [pair for pair in zip(one, template, strict=True) if pair[0] != pair[1]]
    assert [pair[0].partition("=")[0] for pair in different] == [
        "Description",
        "ExecStart",
        "StateDirectory",
        "RuntimeDirectory",
        "LoadCredential",
    ]
    assert all("%i" in pair[1] for pair in different)


def test_the_grace_fits_into_what_the_unit_gives() -> None:
    """The default grace, and the ten seconds that the rest is cut off in."""
    (line,) = (line for line in UNITS[0].read_text("utf-8").splitlines() if line.startswith("TimeoutStopSec="))
    assert int(line.partition("=")[2]) >= 25 + 10
