"""``heifyd status``: what the ledger says, whether or not the daemon runs."""

import json
import os
from pathlib import Path

import click

from heifyd.cli import config_option
from heifyd.cli.explained import CONFIG_FILE, Explained


@click.command(
    "status",
    cls=Explained,
    short_help="Show what waits, goes on, is done, failed, is held.",
    exits={
        0: "shown, whether or not the daemon runs; with --watch: ended by Ctrl-C",
        1: "there is no ledger yet, or it cannot be read",
        2: None,
        78: "the configuration cannot be used",
    },
    environment=("HEIFYD_CONFIG", "STATE_DIRECTORY", "XDG_STATE_HOME", "NO_COLOR"),
    files={CONFIG_FILE: "the configuration, where none is named; it says where the ledger is, which is only read"},
    examples={
        "heifyd status --watch": "have it before you, every 2 seconds",
        "heifyd status --json | jq .holds": "a script's question",
        "heifyd status --watch 60 >> status.log": "a report a minute; without a terminal one follows the other",
    },
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch one a line.")
@click.option(
    "--watch",
    "every_s",
    is_flag=False,
    flag_value=2.0,
    type=click.FloatRange(0.1, 86400.0),
    metavar="[SECONDS]",
    help="Show it again and again, every 2 seconds or as many as are given, until Ctrl-C.",
)
def command(config_path: Path, as_json: bool, every_s: float | None) -> int:
    """Show each folder's recordings by state, the uploads that go on, and what is held, why, and what to do.

    An upload is shown once it has taken longer than a second; how far it is, is known to about two seconds.
    """
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
