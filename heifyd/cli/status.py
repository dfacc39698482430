"""``heifyd status``: what the ledger says, whether or not the daemon runs."""

import json
import os
from pathlib import Path

import click

from heifyd.cli import config_option


@click.command("status", short_help="Show what waits, what is done, what failed, what is held.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch one a line.")
@click.option(
    "--watch",
    "every_s",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(min=0.1),
    metavar="[SECONDS]",
    help="Show it again and again, every 2 seconds or as many as are given, until Ctrl-C.",
)
def command(config_path: Path, as_json: bool, every_s: float | None) -> int:
    """Show each folder's waiting, uploading, done today and failed recordings, and what is held and why."""
    from rich.console import Console

    from heifyd import config, overview
    from heifyd.cli import watching
    from heifyd.cli.board import Board

    def look() -> overview.Overview:
        settings = config.load(config_path, os.environ, may_be_missing=lambda *_: True)
        folders = [os.fspath(folder.path) for folder in settings.folders]
        return overview.seen(settings.ledger, lambda ledger: overview.of(ledger, folders))

    if every_s is not None:
        config.load(config_path, os.environ, may_be_missing=lambda *_: True)
        watching.watch(look, every_s, as_json=as_json)
    elif as_json:
        click.echo(json.dumps(overview.as_dict(look()), indent=2))
    else:
        Console().print(Board(look()))
    return 0
