"""The daemon and the sandbox as processes of their own, and what tests ask of them."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from heifyd.sandbox import API_KEY, CONFIGURATION_ID, EVALUATOR_ID, PARTICIPANT_ID, Sandbox

LIMIT_S = 60.0
"""How long a state is waited for before the test fails."""

ROOT = Path(__file__).parents[1]

ANY_KEY_OR_SIGNATURE = re.compile(re.escape(API_KEY) + r"|Signature(=|%3D)[0-9A-Za-z]", re.IGNORECASE)
"""What no output but the sandbox's own may hold: the key that the tests use, or any signature of a URL."""

Event = dict[str, Any]


class Process:
    """A `heifyd` command as a process; every line of its output is kept, and none may hold a secret.

    `prefix` is a command that runs it (`strace -f`, `ip netns exec ...`), `module` what python runs in heifyd's stead
    (`tests.rehearsal`), `program` what runs in this python's stead (a container), `user` the numeric id of the user it
    runs as, which takes root.
    """

    may_tell_the_key = False

    def __init__(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        module: str = "heifyd",
        program: Sequence[str] | None = None,
        user: int | None = None,
    ) -> None:
        self.lines: list[str] = []
        self.changed = threading.Condition()
        self.over = False
        self._process = subprocess.Popen(
            [*prefix, *(program or (sys.executable, "-m", module)), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environ or {})},
            user=user,
            group=user,
            extra_groups=None if user is None else (),
        )
        self._reader = threading.Thread(target=self._read, name="test-output")
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()
        with self.changed:
            self.over = True
            self.changed.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        with self.changed:
            return "".join(self.lines)

    def wait_for(self, state: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
        """Wait for a state that a line of output brings about."""
        with self.changed:
            self.changed.wait_for(lambda: state() or self.over, limit_s)
            assert state(), f"{what} did not come about; the output:\n{''.join(self.lines[-60:])}"

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, limit_s: float = LIMIT_S) -> int:
        """Send a signal, wait for the end and return the exit code (negative: the signal that ended it)."""
        if self._process.poll() is None:
            self.send(number)
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._reader.join()
            raise AssertionError(f"it did not end; the output:\n{''.join(self.lines[-60:])}") from None
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        if not self.may_tell_the_key:
            assert_tells_no_secret(self.output)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._reader.is_alive() and self._process.returncode is not None:
            return
        self.end(signal.SIGKILL)


class LoggingProcess(Process):
    """A process that writes heifyd's log, read as events."""

    def events(self, *names: str) -> list[Event]:
        """Return the events so far, all or those of these names."""
        with self.changed:
            events = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [event for event in events if not names or event["event"] in names]

    def await_event(self, name: str, count: int = 1, limit_s: float = LIMIT_S, **fields: object) -> list[Event]:
        """Wait until `count` events of that name, with those fields, have been logged, and return them."""

        def found() -> list[Event]:
            return [event for event in self.events(name) if all(event.get(key) == fields[key] for key in fields)]

        self.wait_for(lambda: len(found()) >= count, f"{count} times {name} {fields or ''}", limit_s)
        return found()

    def started(self) -> Self:
        self.await_event("daemon.started")
        return self


class DaemonProcess(LoggingProcess):
    """`heifyd run`."""

    def __init__(self, config: Path, environ: Mapping[str, str] | None = None, **how: Any) -> None:
        super().__init__("run", "--config", str(config), "--log", "json", environ=environ, **how)


class SandboxProcess(Process):
    """`heifyd sandbox` on a loopback port."""

    may_tell_the_key = True

    def __init__(self, data: Path, *options: str, port: int = 0) -> None:
        super().__init__("sandbox", "--port", str(port), "--data", str(data), *options)
        self.data = data
        self.wait_for(lambda: bool(self._address()), "the sandbox's address")
        address = self._address()
        assert address is not None
        self.url = address[0]
        self.port = int(self.url.rpartition(":")[2])

    def _address(self) -> "re.Match[str] | None":
        return re.search(r"http://\S+", "".join(self.lines))

    def fail(self, spec: str) -> None:
        httpx.post(f"{self.url}/_sandbox/faults", json={"spec": spec}).raise_for_status()

    def recover(self) -> None:
        httpx.delete(f"{self.url}/_sandbox/faults").raise_for_status()

    def transcriptions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/_sandbox/transcriptions").raise_for_status().json()
        return found

    def stored(self) -> list[dict[str, Any]]:
        return [each for each in self.transcriptions() if each["stored"]]

    def counters(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/_sandbox/counters").raise_for_status().json()
        return found


@dataclass(frozen=True)
class Place:
    """A directory with a watched folder, a key and a configuration."""

    root: Path
    config: Path

    @property
    def calls(self) -> Path:
        return self.root / "calls"

    @property
    def done(self) -> Path:
        return self.calls / "done"

    @property
    def failed(self) -> Path:
        return self.calls / "failed"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"


def make_place(root: Path, url: str, *, settings: str = "", folder: str = "", rate_limit: str = "off") -> Place:
    """Lay out a place; `settings` are further lines of YAML at the top level, `folder` of the one folder."""
    (root / "calls").mkdir(parents=True, exist_ok=True)
    key = root / "key"
    key.touch(mode=0o600)
    key.write_text(API_KEY, encoding="ascii")
    config = root / "config.yaml"
    lines = [
        "api:",
        f"  base_url: {url}",
        f"  key_file: {key}",
        f"  rate_limit: {rate_limit}",
        f"ledger: {root}/ledger.sqlite",
        settings,
        "folders:",
        f"  - path: {root}/calls",
        f"    configuration_id: {CONFIGURATION_ID}",
        f"    evaluator_id: {EVALUATOR_ID}",
        f"    participant_id: {PARTICIPANT_ID}",
        *(f"    {line}" for line in folder.splitlines()),
    ]
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Place(root, config)


def sample(extension: str, unique: int | str = "") -> bytes:
    """Return a recording of that format; `unique` bytes at its end tell it from others."""
    whole = resources.files("heifyd").joinpath("samples", f"call{extension}").read_bytes()
    return whole + str(unique).encode()


def sha256(data: bytes | Path) -> str:
    return hashlib.sha256(data.read_bytes() if isinstance(data, Path) else data).hexdigest()


def files_below(directory: Path) -> dict[str, Path]:
    """Return every file below a directory by its relative path."""
    return {os.fspath(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}


def need(available: object, what: str) -> None:
    """Skip a test, and say so, where the machine lacks what it takes."""
    if not available:
        pytest.skip(f"SKIPPED LOUDLY: this takes {what}")


def need_root() -> None:
    need(os.geteuid() == 0, "root")


def need_program(name: str) -> str:
    """Return where a program is, or skip the test."""
    found = shutil.which(name)
    need(found, f"the program {name}")
    assert found is not None
    return found


def assert_tells_no_secret(text: str) -> None:
    """Fail where a text holds the API key or a URL's signature; the message does not repeat it."""
    found = ANY_KEY_OR_SIGNATURE.search(text)
    assert found is None, f"a secret after {text[max(found.start() - 200, 0) : found.start()]!r}"


@contextmanager
def running(place: Place, environ: Mapping[str, str] | None = None, **how: Any) -> Iterator[DaemonProcess]:
    """Run the daemon until it has started, for the block; it must stop with 0."""
    with DaemonProcess(place.config, environ, **how) as daemon:
        yield daemon.started()
        assert daemon.end() == 0, daemon.output


@contextmanager
def hurrying(
    place: Place,
    environ: Mapping[str, str] | None = None,
    *,
    speed: int = 60,
    timeout_s: float | None = None,
    **how: Any,
) -> Iterator[DaemonProcess]:
    """Run the daemon with its own waits shortened, and the network's timeouts if that is asked for."""
    asked_for = {"REHEARSAL_SPEED": str(speed), **(environ or {})}
    if timeout_s is not None:
        asked_for["REHEARSAL_TIMEOUT_S"] = str(timeout_s)
    with running(place, asked_for, module="tests.rehearsal", **how) as daemon:
        yield daemon


def eventually(state: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Look again and again for a state that no line of output brings about."""
    until_s = time.monotonic() + limit_s
    while not state():
        assert time.monotonic() < until_s, f"{what} did not come about"
        time.sleep(0.02)


def status(place: Place) -> dict[str, Any]:
    """Return what `heifyd status --json` tells."""
    run = subprocess.run(
        [sys.executable, "-m", "heifyd", "status", "--json", "--config", str(place.config)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert_tells_no_secret(run.stdout + run.stderr)
    told: dict[str, Any] = json.loads(run.stdout)
    return told


def holds(place: Place) -> list[dict[str, Any]]:
    """Return the holds that `heifyd status` tells of."""
    found: list[dict[str, Any]] = status(place)["holds"]
    return found


def asked(sandbox: Sandbox, endpoint: str | None = None, outcome: str | None = None) -> int:
    """Return how many requests there were; to one endpoint, or that ended in one way, if it is named."""
    requests: Mapping[str, Mapping[str, int]] = sandbox.counters().requests
    return sum(
        count
        for where, outcomes in requests.items()
        for what, count in outcomes.items()
        if endpoint in (None, where) and outcome in (None, what)
    )


def lay_out(folder: Path, *names: str, times: int = 1) -> dict[str, str]:
    """Put recordings there that have long been quiet, the first the oldest; return their SHA-256 by name."""
    recordings = {}
    for age_s, name in enumerate(reversed(names), start=3600):
        (folder / name).write_bytes(sample(Path(name).suffix) * times + name.encode())
        os.utime(folder / name, (time.time() - age_s,) * 2)
        recordings[name] = sha256(folder / name)
    return recordings


def assert_all_in_heify_once(recordings: Mapping[str, str], place: Place, sandbox: Sandbox) -> None:
    """Each recording is stored once and lies in done/, and nothing else lies anywhere."""
    assert {name: sha256(file) for name, file in files_below(place.done).items()} == recordings
    assert sorted(files_below(place.calls)) == sorted(f"done/{name}" for name in recordings)
    stored = [each.sha256 for each in sandbox.transcriptions() if each.stored]
    assert sorted(str(each) for each in stored) == sorted(recordings.values())
