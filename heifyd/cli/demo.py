"""``heifyd demo``: the whole job, end to end, on this machine."""

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from heifyd.cli.explained import Explained

if TYPE_CHECKING:
    from rich.console import Console

    from heifyd.sandbox import Sandbox

_SETTLE_S: Final = 1.0
_PAUSE_S: Final = 3.0
_LIMIT_S: Final = 60.0
_PATH_WIDTH: Final = 27
_SALES_EVALUATOR: Final = "2abb5563-dd64-47bb-bb17-94252e168b06"


@dataclass(frozen=True, slots=True)
class Scene:
    """One recording of the demo: where it goes, how it comes about, and how it must end."""

    path: str
    story: str
    make: Callable[[Path, Callable[[str], None]], None]
    fails: bool = False


class Stage:
    """The terminal: what the recorder does and what heifyd makes of it, line by line, with the time."""

    def __init__(self, console: "Console") -> None:
        self.console = console
        self._began_s = time.monotonic()

    def say(self, who: str, path: str, text: str) -> None:
        """Print one line."""
        from rich.markup import escape

        color = "cyan" if who == "recorder" else "magenta"
        at = f"[dim]{time.monotonic() - self._began_s:5.1f} s[/]"
        self.console.print(f"{at}  [{color}]{who:<8}[/]  {escape(path):<{_PATH_WIDTH}}  [dim]{escape(text)}[/]")


@dataclass(slots=True)
class Daemon:
    """The daemon's process and what its log has said so far."""

    process: subprocess.Popen[str]
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    started: bool = False
    over: bool = False

    def wait_for(self, state: Callable[[], bool], limit_s: float) -> bool:
        """Wait for a state that the log brings about, and tell whether it came."""
        with self.changed:
            return self.changed.wait_for(lambda: state() or self.over, limit_s) and state()


def sample(extension: str) -> bytes:
    """Return a two-second recording in the format of that extension (with its dot)."""
    return resources.files("heifyd").joinpath("samples", f"call{extension}").read_bytes()


def dropped(extension: str) -> Callable[[Path, Callable[[str], None]], None]:
    """Make a recording the way a file arrives that was finished elsewhere: written, then closed."""

    def make(path: Path, _tell: Callable[[str], None]) -> None:
        path.write_bytes(sample(extension))

    return make


def moved_in(extension: str) -> Callable[[Path, Callable[[str], None]], None]:
    """Make a recording under a temporary name, and rename it when it is whole."""

    def make(path: Path, _tell: Callable[[str], None]) -> None:
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(sample(extension))
        part.rename(path)

    return make


def live_call(path: Path, tell: Callable[[str], None]) -> None:
    """Record as a PBX does: the file stays open through a pause longer than the settle time, its header comes last."""
    source = sample(".wav")[44:]
    half = len(source) // 4 * 2
    with wave.open(str(path), "wb") as call:
        call.setnchannels(1)
        call.setsampwidth(2)
        call.setframerate(8000)
        call.writeframes(source[:half])
        tell(f"on hold for {_PAUSE_S:g} s; the file stays open, quiet for longer than it takes to settle")
        time.sleep(_PAUSE_S)  # the pause is the thing shown, nothing is awaited
        call.writeframes(source[half:])
    tell("the call is over, the file is closed")


def notes(path: Path, _tell: Callable[[str], None]) -> None:
    """Write something that is no recording under a recording's name."""
    path.write_text("These are the agent's notes, not a recording.\n" * 20, encoding="utf-8")


BEFORE: Final = (
    Scene("2026-11-23/yesterday.mp3", "lay there before heifyd started", dropped(".mp3")),
    Scene("sales/Звонок 7.ogg", "lay there before heifyd started", dropped(".ogg")),
)
AFTER: Final = (
    Scene("call.flac", "written and closed", dropped(".flac")),
    Scene("sales/Réclamation n° 12.m4a", "written as .part, then renamed", moved_in(".m4a")),
    Scene("2026-11-24/agent 4/call.amr", "in a folder made just now", dropped(".amr")),
    Scene("2026-11-24/agent 5/call.amr", "the same name in another folder", dropped(".amr")),
    Scene("screen.webm", "written and closed", dropped(".webm")),
    Scene("notes.wav", "no recording at all", notes, fails=True),
    Scene("live.wav", "a call begins", live_call),
)


@click.command(
    "demo",
    cls=Explained,
    short_help="Show the whole job on this machine.",
    exits={0: "each recording ended where it should", 1: "one did not", 2: None},
    environment=("NO_COLOR",),
    examples={
        "heifyd demo": "about ten seconds; nothing is left",
        "heifyd demo --keep ./demo": "keep the folder, the ledger and the configuration, to look at",
    },
)
@click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path), help="Do it in this directory, and leave all there."
)
def command(keep: Path | None) -> int:
    """Show the whole job on this machine: a sandbox, the daemon, and recordings of several kinds.

    It takes no account and no configuration. Each recording must end where it should: in the sandbox byte for byte,
    once, under the right ids, and in done/ or, the one that must fail, in failed/.
    """
    from rich.console import Console

    from heifyd.sandbox import CONFIGURATION_ID, EVALUATOR_ID, Sandbox

    console = Console(highlight=False, soft_wrap=True)
    stage = Stage(console)
    with _directory(keep) as place:
        calls = place / "calls"
        calls.mkdir(parents=True)
        originals: dict[str, str] = {}
        evaluators = {EVALUATOR_ID: "Quality", _SALES_EVALUATOR: "Sales quality"}
        with Sandbox(place / "heify", evaluators=evaluators, processing_s=0.0) as sandbox:
            _configure(place, sandbox.url, CONFIGURATION_ID, EVALUATOR_ID)
            console.print(f"[bold]A recorder's folder[/]  {calls}\n[bold]A local Heify[/]        {sandbox.url}\n")
            for scene in BEFORE:
                _play(scene, calls, stage, originals)
            with _daemon(place, stage) as daemon:
                if not daemon.wait_for(lambda: daemon.started, _LIMIT_S):
                    console.print("[bold red]The daemon did not start.[/]")
                    return 1
                for scene in AFTER:
                    _play(scene, calls, stage, originals)
                scenes = (*BEFORE, *AFTER)
                daemon.wait_for(lambda: all(scene.path in daemon.ended for scene in scenes), _LIMIT_S)
            return _report(scenes, calls, daemon, sandbox, originals, console)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="heifyd-demo-") as made:
            yield Path(made)
    else:
        if keep.exists() and any(keep.iterdir()):
            raise click.UsageError(f"{keep} is not empty; give --keep a directory that is, or a new one")
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()


def _configure(place: Path, url: str, configuration_id: str, evaluator_id: str) -> None:
    from heifyd.sandbox import API_KEY

    settings = f"""\
api:
  base_url: {url}
  key_file: {place}/key
ledger: {place}/ledger.sqlite
settle_seconds: {_SETTLE_S:g}
folders:
  - path: {place}/calls
    configuration_id: {configuration_id}
    evaluator_id: {evaluator_id}
    recursive: true
    rules:
      - match: sales/**
        evaluator_id: {_SALES_EVALUATOR}
"""
    (place / "config.yaml").write_text(settings, encoding="utf-8")
    key = place / "key"
    key.touch(mode=0o600)
    key.write_text(API_KEY, encoding="ascii")


def _play(scene: Scene, calls: Path, stage: Stage, originals: dict[str, str]) -> None:
    path = calls / scene.path
    path.parent.mkdir(parents=True, exist_ok=True)
    stage.say("recorder", scene.path, scene.story)
    scene.make(path, lambda text: stage.say("recorder", scene.path, text))
    # read back from where it is by now: a quick daemon may have filed it already
    for place in (path, calls / "done" / scene.path, calls / "failed" / scene.path):
        try:
            originals[scene.path] = hashlib.sha256(place.read_bytes()).hexdigest()
        except FileNotFoundError:
            continue
        return


@contextmanager
def _daemon(place: Path, stage: Stage) -> Iterator[Daemon]:
    """Run the daemon as its own process; its log is read and shown as it comes."""
    process = subprocess.Popen(  # noqa: S603 (this very program)
        [sys.executable, "-m", "heifyd", "run", "--config", str(place / "config.yaml"), "--log", "json"],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    daemon = Daemon(process)
    reader = threading.Thread(target=_read, args=(daemon, stage), name="demo-log")
    reader.start()
    try:
        yield daemon
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join()
        process.wait()


def _read(daemon: Daemon, stage: Stage) -> None:
    assert daemon.process.stdout is not None  # noqa: S101 (narrows the type)
    for line in daemon.process.stdout:
        event = json.loads(line)
        name = event["event"]
        if (text := _in_words(event)) is not None:
            stage.say("heifyd", event.get("file") or "", text)
        with daemon.changed:
            daemon.started = daemon.started or name == "daemon.started"
            if name in ("recording.done", "recording.failed"):
                daemon.ended[event["file"]] = event
            daemon.changed.notify_all()
    with daemon.changed:
        daemon.over = True
        daemon.changed.notify_all()


def _in_words(event: dict[str, Any]) -> str | None:
    """Tell an event of the log in words; None for those that would only lengthen the story."""
    match event["event"]:
        case "folder.watched":
            return f"watches the folder by {event['watch']}: {event['reason']}"
        case "recording.settled":
            return "finished: nobody writes to it, and it is quiet"
        case "recording.done":
            audio = "" if event["duration_s"] is None else f", {event['duration_s']:.1f} s of audio"
            return f"uploaded in {event['put_ms']} ms{audio}; moved to done/"
        case "recording.failed":
            return f"moved to failed/: {event['detail']}"
        case "daemon.started" | "daemon.stopping" | "daemon.stopped" | "upload.started" | "folder.writer_check":
            return None
    return " ".join(filter(None, (event["event"], event.get("detail"))))


def _report(
    scenes: tuple[Scene, ...],
    calls: Path,
    daemon: Daemon,
    sandbox: "Sandbox",
    originals: dict[str, str],
    console: "Console",
) -> int:
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("recording", "lies in", "in Heify", ""):
        table.add_column(column)
    well = True
    stored: dict[str, list[Any]] = {}
    for transcription in sandbox.transcriptions():
        if transcription.stored:
            stored.setdefault(transcription.transcription_id, []).append(transcription)
    for scene in scenes:
        place = next((each for each in ("done", "failed", "") if (calls / each / scene.path).exists()), "?")
        in_heify, right = _judge(scene, calls, place, daemon.ended.get(scene.path, {}), sandbox, originals)
        well = well and right
        table.add_row(
            scene.path,
            f"{place}/" if place else "the folder",
            in_heify,
            "[green]as it should[/]" if right else "[bold red]wrong[/]",
        )
    expected = sum(not scene.fails for scene in scenes)
    well = well and len(stored) == expected
    console.print()
    console.print(table, soft_wrap=False)
    verdict = "[bold green]Each ended where it should[/]" if well else "[bold red]Something went wrong[/]"
    console.print(
        f"\n{verdict}: {len(stored)} of {expected} recordings stored, each once; what is none lies in failed/."
    )
    return 0 if well else 1


def _judge(
    scene: Scene, calls: Path, place: str, event: dict[str, Any], sandbox: "Sandbox", originals: dict[str, str]
) -> tuple[str, bool]:
    """Tell what Heify has of a recording, and whether all of it is as it should be."""
    from heifyd.sandbox import CONFIGURATION_ID, EVALUATOR_ID

    if scene.fails:
        explained = (calls / "failed" / f"{scene.path}.error.json").exists()
        return "nothing", place == "failed" and explained and event.get("event") == "recording.failed"
    found = [
        each
        for each in sandbox.transcriptions()
        if each.stored and each.transcription_id == event.get("transcription_id")
    ]
    if len(found) != 1:
        return "nothing", False
    evaluator_id = _SALES_EVALUATOR if scene.path.startswith("sales/") else EVALUATOR_ID
    right_ids = (found[0].configuration_id, found[0].evaluator_id) == (CONFIGURATION_ID, evaluator_id)
    same = found[0].sha256 == originals.get(scene.path)
    return (
        f"{found[0].size_bytes:,} bytes, {'the same' if same else 'NOT THE SAME'}",
        place == "done" and same and right_ids,
    )
