"""``heifyd status``: what the ledger says, whether or not the daemon runs."""

import json
import os
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heifyd.cli import config_option

if TYPE_CHECKING:
    from heifyd.overview import Overview


@click.command("status", short_help="Show what waits, what is done, what failed, what is held.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(config_path: Path, as_json: bool) -> int:
    """Show each folder's waiting, uploading, done today and failed recordings, and what is held and why."""
    from heifyd import config, overview
    from heifyd.ledger import Ledger, LedgerUnwritableError

    settings = config.load(config_path, os.environ, may_be_missing=lambda *_: True)
    folders = [os.fspath(folder.path) for folder in settings.folders]
    try:
        with closing(Ledger(settings.ledger, create=False)) as ledger:
            found = overview.of(ledger, folders)
    except LedgerUnwritableError:
        with closing(Ledger(settings.ledger, create=False, frozen=True)) as ledger:
            found = overview.of(ledger, folders)
    if as_json:
        click.echo(json.dumps(overview.as_dict(found), indent=2))
    else:
        _show(found)
    return 0


def _show(overview: "Overview") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from heifyd.wording import age, printable

    console = Console()
    console.print(
        f"heifyd is [bold green]running[/] on {escape(overview.ledger)}"
        if overview.running
        else f"heifyd is [bold red]not running[/] on {escape(overview.ledger)}"
    )
    for hold in overview.holds:
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
    for each in overview.folders:
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
