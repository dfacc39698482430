"""``heifyd check``: whether the daemon could do its work here, before it has to."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from heifyd.cli import config_option
from heifyd.cli.explained import CONFIG_FILE, Explained

if TYPE_CHECKING:
    from heifyd.config import Config, Folder, Rule

_CAP_LEASE: Final = 28
_FIRST_USER_NAMESPACE: Final = 0xEFFFFFFD  # PROC_USER_INIT_INO of the kernel's include/linux/proc_ns.h


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `about` is a folder's path, or what else was looked at."""

    level: Literal["ok", "warning", "error"]
    about: str
    text: str


@click.command(
    "check",
    cls=Explained,
    short_help="Check the configuration, the permissions, the watching.",
    exits={0: "nothing is wrong; there may be warnings", 1: "something is wrong", 2: None, 78: None},
    environment=("HEIFYD_CONFIG", "HEIFY_API_KEY", "HTTPS_PROXY, NO_PROXY", "SSL_CERT_FILE", "NO_COLOR"),
    files={CONFIG_FILE: "the configuration, where none is named"},
    examples={
        "sudo -u heifyd heifyd check": "as the daemon's user, whose permissions count",
        "heifyd check --online": "also whether the key works and Heify knows every id",
    },
)
@config_option
@click.option("--online", is_flag=True, help="Also ask Heify whether the key works and every id is known.")
@click.option("--systemd-dropin", is_flag=True, help="Only print what the systemd unit needs for these folders.")
def command(config_path: Path, online: bool, systemd_dropin: bool) -> int:
    """Check the configuration, the folders' permissions, and how each folder would be watched.

    It tries what the daemon will do: to read each folder, and to move a file of its own to done/ and failed/. Nothing
    is left behind.
    """
    from rich.console import Console

    from heifyd import config

    settings = config.load(config_path, os.environ)
    if systemd_dropin:
        from heifyd.cli import dropin

        default_ledger = config.default_ledger(os.environ)
        click.echo("\n".join(dropin.lines(settings, config_path.absolute(), default_ledger)))
        return 0
    findings = [
        Finding("ok", "configuration", f"{config_path}: {len(settings.folders)} folder(s), ledger {settings.ledger}")
    ]
    findings += _key(settings)
    for folder in settings.folders:
        findings += _folder(folder)
    findings += _inotify(settings)
    findings += _status(settings)
    if online:
        findings += _online(settings)
    console = Console()
    marks = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "error": "[bold red]error  [/]"}
    about = None
    for finding in findings:
        if finding.about != about:
            about = finding.about
            console.print(about, style="bold", markup=False, highlight=False)
        console.print("  " + marks[finding.level], end=" ")
        console.print(finding.text, markup=False, highlight=False, soft_wrap=True)
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _key(settings: "Config") -> Iterator[Finding]:
    from heifyd.api_key import read_key
    from heifyd.config import ConfigError

    try:
        read_key(settings.api, os.environ)
    except ConfigError as error:
        yield Finding("error", "API key", str(error))
    else:
        yield Finding(
            "ok",
            "API key",
            f"from {settings.api.key_file or 'the environment, or the credential of the systemd unit'}",
        )


def _folder(folder: "Folder") -> Iterator[Finding]:
    from heifyd import daemon

    about = os.fspath(folder.path)
    manner = daemon.manner_of(folder)
    plan = manner.plan
    watched = f"watched by {plan.kind} ({plan.reason}), scanned every {manner.rescan_seconds:g} s"
    yield Finding("ok", about, watched)
    yield from _writers(folder, manner.rule.settle_seconds, remote=plan.remote)
    for name, target in (("done", folder.done), ("failed", folder.failed)):
        yield _movable(folder, name, target)


def _writers(folder: "Folder", settle_seconds: float, *, remote: bool) -> Iterator[Finding]:
    about = os.fspath(folder.path)
    quiet = f"quiet for {settle_seconds:g} s"
    if remote:
        yield Finding(
            "ok",
            about,
            f"finished: unchanged for {settle_seconds:g} s over two looks (writers elsewhere cannot be seen from here)",
        )
    elif _has_cap_lease():
        yield Finding("ok", about, f"finished: {quiet}, and nobody has it open for writing (lease, by CAP_LEASE)")
    else:
        yield Finding(
            "warning",
            about,
            f"finished: {quiet}; whether a file is still open for writing is seen only for files that this user owns. "
            "Run heifyd as the user who owns them, or give it CAP_LEASE (in systemd AmbientCapabilities=CAP_LEASE)",
        )


def _has_cap_lease() -> bool:
    """Tell whether leases on all files are to be had; for that the capabilities of a rootless container are none."""
    if os.stat("/proc/self/ns/user").st_ino != _FIRST_USER_NAMESPACE:
        return False
    status = Path("/proc/self/status").read_text("ascii")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_LEASE & 1)


def _movable(folder: "Folder", name: str, target: Path) -> Finding:
    """Try what filing does: a hidden file is made in the folder, moved to the target and removed."""
    about = os.fspath(folder.path)
    token = f".heifyd-check-{secrets.token_hex(8)}"
    made = folder.path / token
    try:
        os.listdir(folder.path)
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            existed = target.is_dir()
            target.mkdir(parents=True, exist_ok=True)
            same = os.stat(target).st_dev == os.stat(folder.path).st_dev
            probe = target / token
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            probe.unlink()
            if not existed:
                target.rmdir()
        finally:
            made.unlink()
    except OSError as error:
        where = error.filename or target
        return Finding(
            "error",
            about,
            f"{name}: files cannot be moved to {target}: {os.fspath(where)}: {error.strerror}; "
            "give this user write permission there",
        )
    return Finding(
        "ok", about, f"{name}: {target}" + ("" if same else " (another file system: files are copied there and synced)")
    )


def _inotify(settings: "Config") -> Iterator[Finding]:
    from heifyd import daemon

    watched = [folder for folder in settings.folders if daemon.manner_of(folder).plan.kind == "events"]
    if not watched:
        return
    needed = sum(_directories(folder) for folder in watched)
    limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text("ascii"))
    used = _watches_in_use()
    free = limit - used
    text = f"{needed} watches needed, {free} of {limit} free"
    if needed > free:
        yield Finding(
            "error",
            "inotify",
            f"{text}; raise it with sysctl fs.inotify.max_user_watches, or heifyd polls what is left over",
        )
    else:
        yield Finding("ok", "inotify", text)


def _status(settings: "Config") -> Iterator[Finding]:
    from heifyd.api_key import read_token
    from heifyd.config import ConfigError

    listen = settings.status.listen
    if listen is None:
        return
    try:
        token = read_token(settings.status, os.environ)
    except ConfigError as error:
        yield Finding("error", "status page", str(error))
        return
    who = "who has the token" if token else "whoever may open the socket" if listen.is_a_path else "this machine"
    yield Finding("ok", "status page", f"listens on {listen}, for {who}")


def _directories(folder: "Folder") -> int:
    if not folder.recursive:
        return 1
    return sum(1 for _ in os.walk(folder.path, followlinks=False))


def _watches_in_use() -> int:
    """Count this user's inotify watches in all processes that may be looked into (proc_pid_fdinfo(5))."""
    used = 0
    for process in Path("/proc").iterdir():
        try:
            if not process.name.isdigit() or process.stat().st_uid != os.geteuid():
                continue
            for info in (process / "fdinfo").iterdir():
                used += info.read_bytes().count(b"inotify wd:")
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # it is somebody else's, or has ended
    return used


def _online(settings: "Config") -> Iterator[Finding]:
    from heifyd import daemon
    from heifyd.faults import FaultError
    from heifyd.heify import Heify
    from heifyd.log import Redactor

    about = settings.api.base_url
    heify = Heify(about, daemon.key_reader(settings, os.environ, Redactor()), connections=1)
    used: dict[str, dict[str, None]] = {"configurations": {}, "evaluators": {}, "participants": {}}
    mapped: list[Folder | Rule] = [*settings.folders]
    mapped += [rule for folder in settings.folders for rule in folder.rules]
    for ids in mapped:
        for what, value in zip(used, (ids.configuration_id, ids.evaluator_id, ids.participant_id), strict=True):
            if value:
                used[what][value] = None
    try:
        for what, wanted in used.items():
            if not wanted and what != "configurations":
                continue
            known = heify.tags(what)
            for each in wanted:
                if each in known:
                    yield Finding("ok", about, f"{what.removesuffix('s')} {each}: {known[each] or 'without a tag'}")
                else:
                    yield Finding(
                        "error",
                        about,
                        f"{what.removesuffix('s')} {each} is not known to this account; it has: "
                        + (", ".join(f"{k} ({v})" for k, v in known.items()) or "none"),
                    )
    except FaultError as error:
        yield Finding("error", about, str(error))
    finally:
        heify.close()
