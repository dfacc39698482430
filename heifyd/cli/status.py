"""``heifyd status``: what the ledger says, whether or not the daemon runs."""

import errno
import json
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from heifyd.cli import config_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from heifyd.ledger import FolderCounts, HoldRow

_LEAST_ROOM_BYTES: Final = 32 * 1024


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """One folder's line; `configured` is False where only the ledger still knows it."""

    folder: str
    configured: bool
    counts: "FolderCounts"


@dataclass(frozen=True, slots=True)
class Status:
    """All that the command shows."""

    running: bool
    ledger: str
    holds: "Sequence[HoldRow]"
    folders: Sequence[FolderStatus]


@click.command("status", short_help="Show what waits, what is done, what failed, what is held.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(config_path: Path, as_json: bool) -> int:
    """Show each folder's waiting, uploading, done today and failed recordings, and what is held and why."""
    from heifyd import config
    from heifyd.ledger import Ledger, LedgerUnwritableError

    settings = config.load(config_path, os.environ, may_be_missing=lambda *_: True)
    folders = [os.fspath(folder.path) for folder in settings.folders]
    try:
        with closing(Ledger(settings.ledger, create=False)) as ledger:
            status = read(ledger, folders)
    except LedgerUnwritableError:
        with closing(Ledger(settings.ledger, create=False, frozen=True)) as ledger:
            status = read(ledger, folders)
    if as_json:
        click.echo(json.dumps(as_dict(status), indent=2))
    else:
        _show(status)
    return 0


def read(ledger: Any, configured: Sequence[str]) -> Status:
    """Gather the status out of a ledger; the day begins at local midnight."""
    midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    known = [*configured, *(folder for folder in ledger.folders() if folder not in configured)]
    running = ledger.is_in_use()
    folders = [FolderStatus(folder, folder in configured, ledger.counts(folder, midnight)) for folder in known]
    if not running:
        folders = [replace(each, counts=_at_rest(each.counts)) for each in folders]
    holds = {(hold.scope, hold.owner): hold for hold in ledger.holds()} if running else {}
    for hold in _seen_from_here(ledger.path, configured):
        holds.setdefault((hold.scope, hold.owner), hold)
    return Status(running, str(ledger.path), list(holds.values()), folders)


def _at_rest(counts: "FolderCounts") -> "FolderCounts":
    """Count what was being uploaded when heifyd was killed as waiting, as which the next start takes it."""
    return replace(counts, waiting=counts.waiting + counts.uploading, uploading=0)


def _seen_from_here(ledger: Path, configured: Sequence[str]) -> "Iterator[HoldRow]":
    """Give what stops the daemon that it cannot write into the ledger, or that is so whether it runs or not."""
    from heifyd import faults
    from heifyd.ledger import HoldRow

    found = []
    if (wrong := _unwritable(ledger.parent)) is not None:
        found.append(("", faults.of_ledger(f"{ledger}: the ledger cannot be written: {wrong}")))
    for folder in configured:
        try:
            with os.scandir(folder):
                pass
        except OSError as error:
            detail = f"{folder} cannot be opened: {error.strerror}"
            found.append((folder, faults.of_folder("folder_missing", detail)))
    for scope, fault in found:
        yield HoldRow(scope, fault.owner, fault.reason, fault.detail, fault.advice, None)


def _unwritable(directory: Path) -> str | None:
    """Tell why nothing can be written in a directory, None where something can, by writing what nobody ever sees."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        lacks_it = error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EACCES, errno.EPERM)
        return None if lacks_it else error.strerror
    try:
        os.posix_fallocate(fd, 0, _LEAST_ROOM_BYTES)
    except OSError as error:
        return None if error.errno == errno.EOPNOTSUPP else error.strerror
    finally:
        os.close(fd)
    return None


def as_dict(status: Status) -> dict[str, Any]:
    """Turn the status into what ``--json`` prints; times are seconds since 1970, ages seconds."""
    now = time.time()
    return {
        "running": status.running,
        "ledger": status.ledger,
        "holds": [asdict(hold) | {"scope": hold.scope or "everything"} for hold in status.holds],
        "folders": [
            {
                "folder": each.folder,
                "configured": each.configured,
                "waiting": each.counts.waiting,
                "uploading": each.counts.uploading,
                "done_today": each.counts.done_since,
                "failed": each.counts.failed,
                "oldest_s": None
                if each.counts.oldest_settled_at is None
                else round(now - each.counts.oldest_settled_at, 1),
            }
            for each in status.folders
        ],
    }


def _show(status: Status) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(
        f"heifyd is [bold green]running[/] on {escape(status.ledger)}"
        if status.running
        else f"heifyd is [bold red]not running[/] on {escape(status.ledger)}"
    )
    for hold in status.holds:
        since = ""
        if hold.since is not None:
            since = datetime.fromtimestamp(hold.since).astimezone().strftime(" since %Y-%m-%d %H:%M:%S")
        what = escape(printable(hold.scope) or "everything")
        console.print(f"[bold red]held[/] {what}{since}: {escape(printable(hold.detail))}\n     {escape(hold.advice)}")
    table = Table(box=None, header_style="bold")
    table.add_column("folder", overflow="fold")
    for column in ("waiting", "uploading", "done today", "failed", "oldest"):
        table.add_column(column, justify="right")
    now = time.time()
    for each in status.folders:
        counts = each.counts
        table.add_row(
            escape(printable(each.folder)) + ("" if each.configured else " [dim](not configured)[/]"),
            str(counts.waiting),
            str(counts.uploading),
            str(counts.done_since),
            f"[red]{counts.failed}[/]" if counts.failed else "0",
            "" if counts.oldest_settled_at is None else age(now - counts.oldest_settled_at),
        )
    console.print(table)


def printable(name: str) -> str:
    """Make a file name fit for a terminal: bytes that are not UTF-8 and control characters are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in name)


def age(seconds: float) -> str:
    """Write an age for reading, such as ``5 s``, ``12 min`` or ``3 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
