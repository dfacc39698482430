"""``heifyd retry``: failed recordings back into their folders."""

import os
from pathlib import Path

import click

from heifyd.cli import config_option
from heifyd.cli.status import printable


@click.command("retry")
@config_option
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--folder",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    help="All failed recordings of this watched folder.",
)
@click.option("--all", "everything", is_flag=True, help="All failed recordings of all folders.")
def command(config_path: Path, files: tuple[Path, ...], folders: tuple[Path, ...], everything: bool) -> int:
    """Move failed recordings back to where they were, to be uploaded again.

    FILES are named as they lie in failed/ or as they were called in their folder. The daemon takes them from there; one
    that is not running takes them when it starts.
    """
    from heifyd import config, filing
    from heifyd.ledger import Ledger

    if not (files or folders or everything):
        raise click.UsageError("name files, or a folder with --folder, or give --all")
    settings = config.load(config_path, os.environ)
    configured = {os.fspath(folder.path) for folder in settings.folders}
    wanted_folders = {os.path.abspath(folder) for folder in folders}
    if unknown := wanted_folders - configured:
        raise click.UsageError(f"{', '.join(sorted(unknown))}: not a folder of {config_path}")
    wanted_files = {os.path.abspath(file) for file in files}
    ledger = Ledger(settings.ledger, create=False)
    problems = 0
    try:
        for folder in sorted(configured):
            for recording in ledger.failed(folder):
                names = {recording.filed_at, os.path.join(folder, recording.identity.path)}
                if recording.filed_at is None or not (everything or folder in wanted_folders or names & wanted_files):
                    continue
                wanted_files -= names
                try:
                    back = filing.bring_back(recording.filed_at, recording.identity)
                except OSError as error:
                    click.echo(f"{printable(recording.filed_at)}: {error.strerror}", err=True)
                    problems += 1
                    continue
                ledger.brought_back(recording)
                click.echo(printable(back))
    finally:
        ledger.close()
    for missing in sorted(wanted_files):
        click.echo(f"{printable(missing)}: the ledger knows no failed recording of this name", err=True)
        problems += 1
    return 1 if problems else 0
