"""``heifyd health``: whether the daemon is alive, for a service manager, a container or a monitor to ask."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from heifyd.cli import config_option
from heifyd.cli.explained import CONFIG_FILE, Explained


@click.command(
    "health",
    cls=Explained,
    short_help="Tell whether the daemon is alive, and what is held.",
    exits={
        0: "it runs and all of its threads get on, also where something is held: starting it again would not help",
        1: "it does not run, or hangs",
        2: None,
        78: None,
    },
    environment=["HEIFYD_CONFIG", "STATE_DIRECTORY", "XDG_STATE_HOME"],
    files={CONFIG_FILE: "the configuration"},
    examples={
        "heifyd health": "in one line, and one more for each thing that is held",
        "heifyd health --json | jq -r .state": "well, held, hanging or not running, for a monitor",
    },
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(config_path: Path, as_json: bool) -> int:
    """Tell whether the daemon runs and all of its threads get on, and what is held and why."""
    from heifyd import config, overview
    from heifyd.wording import printable

    settings = config.load(config_path, os.environ, may_be_missing=lambda *_: True)
    folders = [os.fspath(folder.path) for folder in settings.folders]
    found = overview.health_of(settings.ledger, folders)
    state = "not running" if not found.running else "hanging" if not found.alive else "held" if found.holds else "well"
    if as_json:
        holds = [asdict(hold) | {"scope": hold.scope or "everything"} for hold in found.holds]
        told = {"state": state, "running": found.running, "alive": found.alive, "beat_age_s": found.beat_age_s}
        click.echo(json.dumps(told | {"holds": holds}, indent=2))
        return 0 if found.alive else 1
    if not found.running:
        why = next((hold.detail for hold in found.holds if not hold.scope), f"no heifyd uses {settings.ledger}")
        click.echo(f"not running: {printable(why)}; start it, or look into its log for why it ended")
    elif not found.alive:
        age = "it has not said so" if found.beat_age_s is None else f"it last did {found.beat_age_s:.0f} s ago"
        click.echo(f"hanging: heifyd runs, but not all of its threads get on ({age}); start it again")
    else:
        click.echo("alive" if not found.holds else "alive, but held:")
        for hold in found.holds:
            click.echo(f"  {printable(hold.scope) or 'everything'}: {printable(hold.detail)}; {hold.advice}")
    return 0 if found.alive else 1
