"""``heifyd retry``: failed recordings back into their folders."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heifyd.cli import config_option
from heifyd.cli.explained import CONFIG_FILE, Explained
from heifyd.wording import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from heifyd.config import Folder
    from heifyd.ledger import Ended, Ledger
    from heifyd.recording import Identity


@click.command(
    "retry",
    cls=Explained,
    short_help="Move failed recordings back, to be uploaded again.",
    exits={0: "each is back in its folder", 1: "one at least is not; the message says why", 2: None, 78: None},
    environment=("HEIFYD_CONFIG", "STATE_DIRECTORY", "XDG_STATE_HOME"),
    files={
        CONFIG_FILE: "the configuration, where none is named",
        "failed/NAME.error.json": "why a recording failed; it goes when the recording is brought back",
    },
    examples={
        "heifyd retry /srv/calls/failed/call.wav": "one that was mended, or whose reason is gone",
        "heifyd retry --folder /srv/calls": "all that failed in one folder",
        "heifyd retry --all": "all that failed anywhere",
    },
)
@config_option
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--folder", "folders", multiple=True, type=click.Path(path_type=Path), help="All failed recordings of this folder."
)
@click.option("--all", "everything", is_flag=True, help="All failed recordings of all folders.")
def command(config_path: Path, files: tuple[Path, ...], folders: tuple[Path, ...], everything: bool) -> int:
    """Move failed recordings back to where they were, to be uploaded again.

    FILES are named as they lie in failed/ (also under a name they were given since) or as they were called in their
    folder. The daemon takes them from there; one that is not running takes them when it starts. Where each lies now is
    printed, a line for each.
    """
    from heifyd import config
    from heifyd.ledger import Ledger

    if not (files or folders or everything):
        raise click.UsageError("name files, or a folder with --folder, or give --all")
    settings = config.load(config_path, os.environ, may_be_missing=lambda *_: True)
    configured = {os.fspath(folder.path): folder for folder in settings.folders}
    wanted = {os.path.abspath(folder) for folder in folders}
    if unknown := wanted - configured.keys():
        raise click.UsageError(f"{', '.join(sorted(unknown))}: not a folder of {config_path}")
    ledger = Ledger(settings.ledger, create=False)
    try:
        failures = [_Failures(folder, ledger) for folder in settings.folders]
        chosen: dict[str, _Failure] = {}
        problems = 0
        for each in failures:
            if everything or each.path in wanted:
                chosen |= each.by_place
        for file in files:
            found = next((failure for each in failures if (failure := each.find(os.path.abspath(file)))), None)
            if found is None:
                click.echo(f"{printable(os.fspath(file))}: no failed recording lies there or was called so", err=True)
                problems += 1
            else:
                chosen[found.place] = found
        problems += sum(not _bring_back(failure, ledger) for failure in chosen.values())
    finally:
        ledger.close()
    return 1 if problems else 0


@dataclass(frozen=True, slots=True)
class _Failure:
    """A failed recording: where it lies now, which one it is, and where the ledger has it (None: nowhere)."""

    place: str
    identity: "Identity"
    filed_at: str | None


class _Failures:
    """A folder's failed recordings: which lies where now, by the ledger and by what is in `failed/`."""

    def __init__(self, folder: "Folder", ledger: "Ledger") -> None:
        from heifyd.recording import Identity

        self.path = os.fspath(folder.path)
        self._target = os.fspath(folder.failed)
        rows = ledger.failed(self.path)
        there = dict(_files_below(self._target))
        by_stamp: dict[tuple[int, int], list[Ended]] = {}
        for row in rows:
            by_stamp.setdefault((row.identity.size_bytes, row.identity.mtime_ns), []).append(row)
        known = {row.filed_at: row for row in rows}
        self.by_place: dict[str, _Failure] = {}
        for place, stamp in there.items():
            # Renamed by a person, a file still has its size and its time.
            renamed = [row for row in by_stamp.get(stamp, []) if row.filed_at not in there]
            its = known.get(place) or next(iter(renamed), None)
            identity = its.identity if its else Identity(self.path, os.path.relpath(place, self._target), *stamp)
            self.by_place[place] = _Failure(place, identity, its.filed_at if its else None)

    def find(self, file: str) -> "_Failure | None":
        """Find a failed recording by where it lies, or by what it was called in its folder (the last one called so)."""
        if file in self.by_place:
            return self.by_place[file]
        called = [each for each in self.by_place.values() if os.path.join(self.path, each.identity.path) == file]
        return max(called, key=lambda failure: failure.identity.mtime_ns, default=None)


def _files_below(directory: str) -> "Iterator[tuple[str, tuple[int, int]]]":
    """Give each regular file that is no explanation, with its size and mtime."""
    for where, _, names in os.walk(directory):
        for name in names:
            place = os.path.join(where, name)
            found = os.lstat(place)
            if stat.S_ISREG(found.st_mode) and not name.startswith(".") and not name.endswith(".error.json"):
                yield place, (found.st_size, found.st_mtime_ns)


def _bring_back(failure: _Failure, ledger: "Ledger") -> bool:
    from heifyd import filing

    try:
        back = filing.bring_back(failure.place, failure.identity)
        if failure.filed_at is not None:
            ledger.brought_back(failure.identity)
            filing.remove_explanation(failure.filed_at)
    except OSError as error:
        click.echo(f"{printable(failure.place)}: {error.strerror}", err=True)
        return False
    click.echo(printable(back))
    return True
