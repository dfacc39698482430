"""``heifyd upload``: files sent by hand, with a progress bar."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heifyd.cli import config_option
from heifyd.cli.explained import CONFIG_FILE, Explained
from heifyd.errors import HeifydError
from heifyd.wording import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from heifyd.config import Config
    from heifyd.heify import Heify
    from heifyd.recording import Ids


@click.command(
    "upload",
    cls=Explained,
    short_help="Upload single files now.",
    exits={0: "all are in Heify", 1: "one at least is not; the message says why", 2: None, 78: None},
    environment=("HEIFYD_CONFIG", "HEIFY_API_KEY", "HTTPS_PROXY, NO_PROXY", "SSL_CERT_FILE", "NO_COLOR"),
    files={CONFIG_FILE: "the configuration, where none is named"},
    examples={
        "heifyd upload call.wav --like /srv/calls": "under the ids that a watched folder has",
        "heifyd upload *.mp3 --configuration-id a1b2c3d4-e5f6-7890-1234-567890abcdef": "under ids of your own",
    },
)
@config_option
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--like", type=click.Path(path_type=Path), help="Send under the ids of this watched folder.")
@click.option("--configuration-id", help="Send under this configuration.")
@click.option("--evaluator-id", help="Send under this evaluator.")
@click.option("--participant-id", help="Send under this participant.")
@click.option("--name", help="The label in Heify; the file's name by default.")
def command(
    config_path: Path,
    files: tuple[Path, ...],
    like: Path | None,
    configuration_id: str | None,
    evaluator_id: str | None,
    participant_id: str | None,
    name: str | None,
) -> int:
    """Upload FILES now and leave them where they are.

    For single files outside the watched folders, whose files are the daemon's: it would send them once more. Say with
    --like or --configuration-id under which ids. Each file's transcription id is printed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from heifyd import config, daemon
    from heifyd.heify import Heify
    from heifyd.log import Redactor
    from heifyd.recording import Ids

    settings = config.load(config_path, os.environ)
    ids = _ids_like(settings, like) if like else None
    if configuration_id:
        ids = Ids(
            configuration_id.lower(), evaluator_id and evaluator_id.lower(), participant_id and participant_id.lower()
        )
    if ids is None:
        raise click.UsageError("say under which ids: --configuration-id ID, or --like FOLDER")
    problems = 0
    heify = Heify(settings.api.base_url, daemon.key_reader(settings, os.environ, Redactor()), connections=1)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[result]}"),
    )
    try:
        with Progress(*columns, console=Console()) as progress:
            for file in files:
                task = progress.add_task(printable(file.name), total=None, result="")
                try:
                    _must_not_be_watched(file, settings)
                    transcription_id = _upload(heify, file, ids, name, _Bar(progress, task))
                    progress.update(task, result=f"[green]{transcription_id}[/]")
                except (HeifydError, OSError) as error:
                    progress.update(task, total=1, result="[red]failed[/]")
                    progress.console.print(
                        f"{printable(os.fspath(file))}: {error.strerror if isinstance(error, OSError) else error}",
                        style="red",
                        markup=False,
                        highlight=False,
                    )
                    problems += 1
    finally:
        heify.close()
    return 1 if problems else 0


def _ids_like(settings: "Config", like: Path) -> "Ids":
    wanted = os.path.abspath(like)
    for folder in settings.folders:
        if os.fspath(folder.path) == wanted:
            return folder.ids_for("")
    raise click.UsageError(f"{like}: not a folder of the configuration")


def _must_not_be_watched(file: Path, settings: "Config") -> None:
    where = Path(os.path.realpath(file)).parent
    for folder in settings.folders:
        root = Path(os.path.realpath(folder.path))
        if where == root or (folder.recursive and where.is_relative_to(root)):
            raise HeifydError(
                f"it lies in the watched folder {root}, so the daemon uploads it; "
                "a failed one is brought back by `heifyd retry`"
            )


@dataclass(frozen=True, slots=True)
class _Bar:
    """One file's progress bar."""

    progress: "Progress"
    task: "TaskID"

    def begin(self, size_bytes: int) -> None:
        self.progress.update(self.task, total=size_bytes)

    def sent(self, piece_bytes: int) -> None:
        self.progress.advance(self.task, piece_bytes)


def _upload(heify: "Heify", file: Path, ids: "Ids", name: str | None, bar: _Bar) -> str:
    from heifyd import preflight, tree
    from heifyd.sending import ascii_name

    with tree.opened(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        found = os.fstat(fd)
        facts = preflight.examine(fd, file.name, found.st_size)
        bar.begin(found.st_size)
        ticket = heify.request_upload(ids, ascii_name(name or file.stem))
        heify.put(ticket, fd, found.st_size, facts.content_type, bar.sent)
    return ticket.transcription_id
