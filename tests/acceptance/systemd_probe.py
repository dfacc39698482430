"""Runs in the container of test_systemd.py, as root under its systemd: drives heifyd's units, writes down what it saw.

Each scene's findings are a JSON object in ``/findings.json``; a scene that breaks off leaves its traceback there.
"""

import ctypes
import hashlib
import json
import os
import pwd
import subprocess
import time
import traceback
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from heifyd.sandbox import API_KEY, CONFIGURATION_ID

LIMIT_S = 45.0
HEIFY = "http://127.0.0.1:8080"
SAMPLE = Path("/probe/call.wav").read_bytes()
UNITS = Path("/etc/systemd/system")

Findings = dict[str, Any]


def run(*words: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, check=False, **how)


def must(*words: str) -> str:
    done = run(*words)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def show(unit: str, *properties: str) -> dict[str, str]:
    lines = must("systemctl", "show", unit, *(f"-p{each}" for each in properties)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def status_text(unit: str) -> str:
    return show(unit, "StatusText")["StatusText"]


def events(unit: str, *names: str) -> list[Findings]:
    must("journalctl", "--sync")
    lines = must("journalctl", "-u", unit, "-o", "cat", "--no-pager").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [event for event in found if not names or event["event"] in names]


def eventually(state: Callable[[], object], what: str) -> None:
    until_s = time.monotonic() + LIMIT_S
    while not state():
        assert time.monotonic() < until_s, f"{what} did not come about"
        time.sleep(0.05)


def heify(method: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{HEIFY}{path}", data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or "null")


def stored() -> list[str]:
    return sorted(each["sha256"] for each in heify("GET", "/_sandbox/transcriptions") if each["stored"])


def folder(path: str, owner: str = "recorder") -> Path:
    """Make a folder as a recorder has it: its own, and its group's."""
    made = Path(path)
    made.mkdir(parents=True)
    found = pwd.getpwnam(owner)
    os.chown(made, found.pw_uid, found.pw_gid)
    made.chmod(0o2770)
    return made


def record(path: Path, *, times: int = 1, owner: str = "recorder") -> str:
    """Have the recorder write a recording, and return its SHA-256."""
    content = SAMPLE * times + os.fsencode(path)
    found = pwd.getpwnam(owner)
    how: Findings = {"user": found.pw_uid, "group": found.pw_gid, "umask": 0o027, "extra_groups": ()}
    subprocess.run(["dd", f"of={path}", "status=none"], input=content, check=True, **how)
    return hashlib.sha256(content).hexdigest()


def is_done(path: Path) -> bool:
    return (path.parent / "done" / path.name).exists()


def configure(name: str, folders: Sequence[Path], more: str = "") -> Path:
    lines = [f"api: {{base_url: '{HEIFY}', rate_limit: off}}", "settle_seconds: 0.3", "rescan_seconds: 1"]
    lines += ["shutdown_grace: 1s", more, "folders:"]
    for each in folders:
        lines += [f"  - path: {json.dumps(str(each))}", f"    configuration_id: {CONFIGURATION_ID}"]
    config = Path(f"/etc/heifyd/{name}.yaml")
    config.write_text("\n".join(lines) + "\n")
    return config


def key_file(name: str) -> None:
    path = Path(f"/etc/heifyd/{name}")
    path.touch(mode=0o600)
    path.write_text(API_KEY)


def drop_in(unit: str, name: str, text: str) -> Path:
    path = UNITS / f"{unit}.d" / f"{name}.conf"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    must("systemctl", "daemon-reload")
    return path


def drop_in_as_told(config: Path, unit: str) -> str:
    told = must("/opt/heifyd/bin/heifyd", "check", "--systemd-dropin", "--config", str(config))
    assert told.splitlines()[0] == f"# {UNITS}/{unit}.d/folders.conf", told
    drop_in(unit, "folders", told)
    return told


# The scenes


UNIT = "heifyd.service"
CALLS = Path("/srv/recorder/calls")
AT_HOME = Path("/home/recorder/calls")
ODD = Path('/srv/recorder/50% of "it\'s" \\ %n é')


def install() -> Findings:
    """Do what the README tells an administrator to do."""
    must("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "heifyd")
    must("useradd", "--create-home", "recorder")
    Path("/home/recorder").chmod(0o711)
    for each in (CALLS, AT_HOME, ODD):
        folder(str(each))
    Path("/etc/heifyd").mkdir()
    key_file("api-key")
    verified = run("systemd-analyze", "verify", str(UNITS / UNIT), str(UNITS / "heifyd@.service"))
    must("systemctl", "start", "sandbox.service")

    def answers() -> bool:
        try:
            return stored() == []
        except OSError:
            return False

    eventually(answers, "the sandbox")
    return {"code": verified.returncode, "said": verified.stdout + verified.stderr}


def without_its_drop_in() -> Findings:
    configure("config", [CALLS])
    groups = drop_in(UNIT, "groups", "[Service]\nSupplementaryGroups=recorder\n")
    must("systemctl", "start", UNIT)
    call = CALLS / "early.wav"
    record(call)
    eventually(lambda: events(UNIT, "hold.started"), "a hold")
    (hold,) = events(UNIT, "hold.started")
    must("systemctl", "stop", UNIT)
    groups.unlink()
    return {"hold": hold, "is_there": call.exists()}


def with_its_drop_in() -> Findings:
    config = configure("config", [CALLS, AT_HOME, ODD])
    told = drop_in_as_told(config, UNIT)
    before = len(events(UNIT))
    must("systemctl", "start", UNIT)
    at_return = [event["event"] for event in events(UNIT)[before:]]
    properties = show(UNIT, "ActiveState", "StatusText", "MainPID")
    process = Path(f"/proc/{properties['MainPID']}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)

    held_open = CALLS / "live.wav"
    writer = subprocess.Popen(
        ["sh", "-c", 'exec 3>"$0"; cat /probe/call.wav >&3; read _; cat /probe/call.wav >&3', held_open],
        stdin=subprocess.PIPE,
        user=pwd.getpwnam("recorder").pw_uid,
        group=pwd.getpwnam("recorder").pw_gid,
        umask=0o027,
    )
    eventually(held_open.exists, "the recorder's file")
    calls = [each / name for each in (CALLS, AT_HOME, ODD) for name in ("a.wav", "b.wav")]
    sent = [record(call) for call in calls]
    eventually(lambda: all(is_done(call) for call in calls), "everything filed")
    must("systemctl", "kill", "-s", "USR1", UNIT)  # a scan sees the open one, too
    eventually(lambda: record_another_and_await(CALLS / "c.wav"), "another one filed")
    untouched = held_open.exists() and not is_done(held_open)
    writer.communicate(b"\n")
    eventually(lambda: is_done(held_open), "the file that was open filed")
    healthy = run("/opt/heifyd/bin/heifyd", "health", "--config", str(config))
    checked = run(
        *("systemd-run", "--pipe", "--wait", "--quiet", "-pUser=heifyd", "-pSupplementaryGroups=recorder"),
        *("-pAmbientCapabilities=CAP_LEASE", "-pLoadCredential=heify-api-key:/etc/heifyd/api-key"),
        *("/opt/heifyd/bin/heifyd", "check", "--online"),
    )
    return {
        "check": [checked.returncode, checked.stdout + checked.stderr],
        "drop_in": told,
        "at_return": at_return,
        "properties": properties,
        "user": status["Uid"].split()[0] == str(pwd.getpwnam("heifyd").pw_uid),
        "capabilities": int(status["CapEff"], 16),
        "nice": os.getpriority(os.PRIO_PROCESS, int(process.name)),
        "checks": [event["check"] for event in events(UNIT, "folder.writer_check")],
        "untouched": untouched,
        "whole": hashlib.sha256((CALLS / "done" / "live.wav").read_bytes()).hexdigest()
        == hashlib.sha256(SAMPLE * 2).hexdigest(),
        "in_heify": all(each in stored() for each in sent),
        "owners": sorted({(CALLS / "done" / name).owner() for name in ("a.wav", "b.wav", "live.wav")}),
        "health": [healthy.returncode, healthy.stdout],
    }


def record_another_and_await(call: Path) -> bool:
    if not call.exists() and not is_done(call):
        record(call)
    return is_done(call)


def reloaded() -> Findings:
    second = folder(str(CALLS / "second"))
    before = show(UNIT, "MainPID")
    configure("config", [CALLS, AT_HOME, ODD, second])
    must("systemctl", "reload", UNIT)
    record(second / "call.wav")
    eventually(lambda: is_done(second / "call.wav"), "a recording of the new folder filed")
    after = show(UNIT, "MainPID", "ActiveState")

    good = Path("/etc/heifyd/config.yaml").read_text()
    Path("/etc/heifyd/config.yaml").write_text(good + "worker: 2\n")
    must("systemctl", "reload", UNIT)
    eventually(lambda: "rejected" in status_text(UNIT), "a status that tells of it")
    bad = show(UNIT, "MainPID", "ActiveState", "StatusText")
    record(second / "later.wav")
    eventually(lambda: is_done(second / "later.wav"), "a recording after a bad reload filed")
    Path("/etc/heifyd/config.yaml").write_text(good)
    must("systemctl", "reload", UNIT)
    eventually(lambda: "rejected" not in status_text(UNIT), "a status without it")
    return {"before": before, "after": after, "bad": bad}


def killed() -> Findings:
    heify("POST", "/_sandbox/faults", {"spec": "drip"})
    begun = len(events(UNIT, "upload.started"))
    calls = [CALLS / f"killed {number}.wav" for number in range(3)]
    sent = [record(call, times=20) for call in calls]
    eventually(lambda: len(events(UNIT, "upload.started")) >= begun + 3, "three uploads under way")
    before = show(UNIT, "MainPID", "NRestarts")
    must("systemctl", "kill", "-s", "KILL", UNIT)
    heify("DELETE", "/_sandbox/faults")
    eventually(lambda: all(is_done(call) for call in calls), "everything filed")
    here = [each for each in heify("GET", "/_sandbox/transcriptions") if each["sha256"] in sent]
    return {
        "before": before,
        "after": show(UNIT, "MainPID", "NRestarts", "ActiveState"),
        "stored": [stored().count(each) for each in sent],
        "transcriptions": len(here),
    }


def stopped() -> Findings:
    heify("POST", "/_sandbox/faults", {"spec": "drip"})
    begun = len(events(UNIT, "upload.started"))
    call = CALLS / "stopped.wav"
    sent = record(call, times=20)
    eventually(lambda: len(events(UNIT, "upload.started")) > begun, "an upload under way")
    before = len(must("journalctl", "-u", UNIT, "-o", "cat", "--no-pager"))
    must("systemctl", "stop", UNIT)
    must("journalctl", "--sync")
    log = must("journalctl", "-u", UNIT, "-o", "cat", "--no-pager")[before:]
    left = [event["file"] for event in events(UNIT, "upload.left")]
    is_there = call.exists()
    ill = run("/opt/heifyd/bin/heifyd", "health", "--config", "/etc/heifyd/config.yaml")
    heify("DELETE", "/_sandbox/faults")
    must("systemctl", "start", UNIT)
    eventually(lambda: is_done(call), "the recording filed")
    must("systemctl", "stop", UNIT)
    return {
        "log": log,
        "left": left,
        "is_there": is_there,
        "stored": stored().count(sent),
        "health": ill.returncode,
    }


def refused() -> Findings:
    key_file("bad-api-key")
    configure("bad", [CALLS], "worker: 2")
    started = run("systemctl", "start", "heifyd@bad.service")
    properties = ("ActiveState", "SubState", "ExecMainStatus", "NRestarts", "StatusText")
    eventually(lambda: show("heifyd@bad.service", "ActiveState")["ActiveState"] != "activating", "its end")
    return {"start": started.returncode, "after": show("heifyd@bad.service", *properties)}


def two_accounts() -> Findings:
    names = ("sales", "support")
    calls = {}
    for name in names:
        must("useradd", name)
        key_file(f"{name}-api-key")
        calls[name] = folder(f"/srv/{name}", name) / "call.wav"
        ledger = f"ledger: /var/lib/heifyd/{name}/ledger.sqlite"
        drop_in_as_told(configure(name, [calls[name].parent], ledger), f"heifyd@{name}.service")
    must("systemctl", "start", *(f"heifyd@{name}.service" for name in names))
    for name in names:
        record(calls[name], owner=name)
    eventually(lambda: all(is_done(call) for call in calls.values()), "everything filed")
    health = [run("/opt/heifyd/bin/heifyd", "health", "--config", f"/etc/heifyd/{name}.yaml") for name in names]
    ledgers = [Path(f"/var/lib/heifyd/{name}/ledger.sqlite") for name in names]
    found = {"ledgers": [oct(each.stat().st_mode) for each in ledgers], "health": [each.returncode for each in health]}
    must("systemctl", "stop", *(f"heifyd@{name}.service" for name in names))
    return found


HURRY = """[Service]
ExecStart=
ExecStart=/opt/heifyd/bin/python /probe/rehearsal.py run --config /etc/heifyd/hung.yaml --log json
Environment=REHEARSAL_SPEED=120
WatchdogSec=2
"""
"""What a thread may take at most passes 120 times as fast, so that it is seconds here; all else is the unit's."""


def hung() -> Findings:
    unit = "heifyd@hung.service"
    must("useradd", "hung")
    key_file("hung-api-key")
    calls = folder("/srv/hung", "hung")
    drop_in_as_told(configure("hung", [calls], "workers: 1"), unit)
    drop_in(unit, "hurry", HURRY)
    must("systemctl", "start", unit)
    first = calls / "first.wav"
    record(first, owner="hung")
    eventually(lambda: is_done(first), "the first recording filed")
    before = show(unit, "MainPID", "NRestarts")
    # The only worker is the last of the threads that were made.
    worker = max(int(each) for each in os.listdir(f"/proc/{before['MainPID']}/task"))
    stop_thread(worker)
    sent = record(calls / "second.wav", owner="hung")
    eventually(lambda: int(show(unit, "NRestarts")["NRestarts"]) > 0, "a restart")
    eventually(lambda: is_done(calls / "second.wav"), "the second recording filed")
    told = events(unit, "thread.unresponsive")
    log = must("journalctl", "-u", unit, "-o", "cat", "--no-pager")
    after = show(unit, "MainPID", "ActiveState")
    must("systemctl", "stop", unit)
    return {"before": before, "after": after, "told": told, "log": log, "stored": stored().count(sent)}


def stop_thread(tid: int) -> None:
    """Stop one thread of another process for good (ptrace(2)); a child does it, and waits until the process ends."""
    if os.fork():
        eventually(lambda: "tracing stop" in Path(f"/proc/{tid}/status").read_text(), "a thread that stands still")
        return
    ptrace_seize, ptrace_interrupt, wait_all = 0x4206, 0x4207, 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(ptrace_seize, tid, None, None) or libc.ptrace(ptrace_interrupt, tid, None, None):
        os._exit(ctypes.get_errno())
    while os.WIFSTOPPED(os.waitpid(tid, wait_all)[1]):
        pass
    os._exit(0)


def late_share() -> Findings:
    """A folder that is a mount point, mounted after the start, then unmounted and mounted anew."""
    unit = "heifyd@share.service"
    key_file("share-api-key")
    share = folder("/srv/share")
    drop_in_as_told(configure("share", [share]), unit)
    must("systemctl", "start", unit)
    for name in ("late.wav", "anew.wav"):
        must("mount", "-t", "tmpfs", "-o", "mode=2770,uid=recorder,gid=recorder", "share", str(share))
        record(share / name)
        eventually(lambda name=name: is_done(share / name), f"{name} filed")  # type: ignore[misc]
        must("umount", str(share))
    must("systemctl", "stop", unit)
    return {"back": len(events(unit, "folder.back")), "failed": events(unit, "hold.started")}


def last_words() -> Findings:
    return {"log": must("journalctl", "-u", "heifyd*", "-o", "cat", "--no-pager")}


SCENES = (
    install,
    without_its_drop_in,
    with_its_drop_in,
    reloaded,
    killed,
    stopped,
    refused,
    two_accounts,
    hung,
    late_share,
    last_words,
)


def main() -> None:
    findings: Findings = {}
    for scene in SCENES:
        began_s = time.monotonic()
        try:
            findings[scene.__name__] = scene()
        except Exception:  # noqa: BLE001 (it is told of, and the other scenes go on)
            log = run("journalctl", "-u", "heifyd*", "-u", "sandbox", "--no-pager", "-n", "60").stdout
            findings[scene.__name__] = {"broke_off": traceback.format_exc() + log}
        findings[scene.__name__]["took_s"] = round(time.monotonic() - began_s, 1)
    Path("/findings.json").write_text(json.dumps(findings, indent=2))


if __name__ == "__main__":
    main()
