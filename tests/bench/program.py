"""heifyd as the benchmark runs it: a copy of the package made at the start, compiled, its log in a file."""

import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.bench.measure import LIMIT_S, Accounted, await_that
from tests.bench.report import BenchError

ROOT: Final = Path(__file__).parents[2]

Event = dict[str, Any]


class Daemon:
    """A running `heifyd run`: its process, and its log as events."""

    def __init__(self, process: Accounted, log: Path) -> None:
        self.process = process
        self._log = log
        self._read_to = 0
        self._events: list[Event] = []

    def events(self, name: str) -> list[Event]:
        with self._log.open("rb") as log:
            log.seek(self._read_to)
            whole, end, _ = log.read().rpartition(b"\n")
        self._read_to += len(whole + end)
        self._events += [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return [event for event in self._events if event["event"] == name]

    def await_event(self, name: str, number: int = 1, limit_s: float = LIMIT_S, every_s: float = 0.02) -> list[Event]:
        def come() -> bool:
            if self.process.is_over:
                raise BenchError(f"heifyd has ended: {self._log.read_text('utf-8', 'replace')[-2000:]}")
            return len(self.events(name)) >= number

        await_that(come, f"{number} times {name}", limit_s, every_s)
        return self.events(name)

    def await_bytes(self, wanted: bytes, limit_s: float = LIMIT_S) -> None:
        """Wait, looking as often as that costs little, until the log holds `wanted`."""
        await_that(lambda: wanted in self._log.read_bytes(), repr(wanted), limit_s, every_s=0.001)

    def stop(self) -> None:
        self.process.signal(signal.SIGTERM)
        if (code := self.process.wait(60.0)) != 0:
            raise BenchError(f"heifyd ended with {code}: {self._log.read_text('utf-8', 'replace')[-2000:]}")


class Program:
    """Runs heifyd's commands from the copy, so that nothing that is edited meanwhile gets into the figures."""

    def __init__(self, package: Path, work: Path) -> None:
        self._home = work / "program"
        shutil.copytree(package, self._home / "heifyd", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(self._home, quiet=2)  # as pip does when it installs
        self._env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HEIFY"))}

    @contextmanager
    def daemon(self, config: Path) -> Iterator[Daemon]:
        """Run the daemon for the block; it is killed at the end if it was not stopped. It may not have started yet."""
        log = config.with_suffix(".log")
        command = [sys.executable, "-m", "heifyd", "run", "--config", os.fspath(config), "--log", "json"]
        with log.open("wb") as out, Accounted(command, env=self._env, out=out, cwd=self._home) as process:
            yield Daemon(process, log)

    def command_s(self, *arguments: str | Path) -> float:
        """Run another of heifyd's commands, and return how long it took."""
        began_s = time.perf_counter()
        self._run(["-m", "heifyd", *map(str, arguments)])
        return time.perf_counter() - began_s

    def module(self, name: str, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> str:
        """Run one of the benchmark's own modules on the copy, and return its output."""
        env = {"PYTHONPATH": f"{self._home}:{ROOT}", **(environ or {})}
        return self._run(["-m", name, *map(str, arguments)], env)

    def _run(self, arguments: list[str], environ: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**self._env, **(environ or {})},
            cwd=self._home,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"{' '.join(arguments)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
        return done.stdout
