"""Processes whose CPU and memory are accounted for, with all that they start."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Final, Protocol, Self

from tests.bench.report import BenchError

LIMIT_S: Final = 300.0
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_JOIN: Final = 'echo $$ >"$0" && exec "$@"'
_LOOK_S: Final = 0.005
_STALL_S: Final = 0.015
_numbers: Final = count(1)


def await_that(state: Callable[[], object], what: str, limit_s: float = LIMIT_S, every_s: float = 0.02) -> None:
    """Look until `state` is true. Raises BenchError where it does not come about."""
    until_s = time.monotonic() + limit_s
    while not state():
        if time.monotonic() > until_s:
            raise BenchError(f"{what} did not come about within {limit_s:g} s")
        time.sleep(every_s)


class Stalls:
    """Notes, for the block, when the machine let nobody run: when a thread that only sleeps was woken late."""

    def __init__(self) -> None:
        self.noted: list[tuple[float, float]] = []
        """Each from when to when (CLOCK_MONOTONIC, seconds)."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="stalls")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        due_s = time.monotonic() + _LOOK_S
        while not self._over.wait(_LOOK_S):
            now_s = time.monotonic()
            if now_s - due_s > _STALL_S:
                self.noted.append((due_s, now_s))
            due_s = now_s + _LOOK_S


class Account(Protocol):
    """Adds up the CPU of a process and of all that it starts, also of what has ended."""

    def joining(self, command: Sequence[str]) -> list[str]:
        """Return the command that joins the account and then becomes `command`."""

    def cpu_s(self, pid: int) -> float:
        """Return the CPU seconds so far, user and system."""

    def kill(self, pid: int) -> None:
        """End whatever still runs."""

    def close(self) -> None:
        """Close the account, when nothing runs any more."""


class Cgroup:
    """The kernel's own account (cgroup-v2, cpu.stat): nothing that was forked can get out of it."""

    def __init__(self) -> None:
        root = _cgroup2()
        if root is None:
            raise OSError("no cgroup2 file system is mounted")
        self._path = root / f"heifyd-bench-{os.getpid()}-{next(_numbers)}"
        self._path.mkdir()

    def joining(self, command: Sequence[str]) -> list[str]:
        return ["sh", "-c", _JOIN, os.fspath(self._path / "cgroup.procs"), *command]

    def cpu_s(self, pid: int) -> float:  # noqa: ARG002 (the other kind of account needs it)
        found = re.search(r"usage_usec (\d+)", (self._path / "cpu.stat").read_text("ascii"))
        if found is None:
            raise BenchError("cpu.stat has no usage_usec")
        return int(found[1]) / 1e6

    def kill(self, pid: int) -> None:  # noqa: ARG002
        (self._path / "cgroup.kill").write_text("1", "ascii")

    def close(self) -> None:
        await_that(lambda: not (self._path / "cgroup.procs").read_text("ascii"), "the end of all processes", 10.0)
        self._path.rmdir()


class Tree:
    """What /proc tells, where there are no cgroups.

    A process's own figures hold those of its children that have ended and were waited for, as bash waits for all of
    its own, so the sum over the processes that live misses nothing but what is being waited for at this moment.
    """

    def joining(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def cpu_s(self, pid: int) -> float:
        stats = _stats()
        return sum(stats[each][1] for each in _descendants(pid, stats)) * _TICK_S

    def kill(self, pid: int) -> None:
        for each in _descendants(pid, _stats()):
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        return


def _cgroup2() -> Path | None:
    mountinfo = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    points = re.findall(r"^(?:\S+ ){4}(\S+) .* - cgroup2 ", mountinfo, re.MULTILINE)
    return Path(points[0]) if points else None


def _stats() -> dict[int, tuple[int, int]]:
    """Read every process's parent and CPU ticks, those of its ended children with them (proc_pid_stat(5))."""
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", process, "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(process)] = int(fields[1]), sum(map(int, fields[11:15]))
    return found


def _descendants(pid: int, stats: Mapping[int, tuple[int, int]]) -> list[int]:
    family = [pid] if pid in stats else []
    for member in family:
        family += [each for each, (parent, _) in stats.items() if parent == member]
    return family


def open_account() -> Account:
    try:
        return Cgroup()
    except OSError:
        return Tree()


def kind_of_account() -> str:
    account = open_account()
    account.close()
    return "cgroup v2, cpu.stat" if isinstance(account, Cgroup) else "/proc, ended children included"


@dataclass(frozen=True, slots=True)
class Memory:
    """A process's memory in MiB (proc_pid_smaps_rollup(5)).

    `pss` is less the more other processes run the same Python: its code is shared out among them. `anon` is what the
    process has made itself, whatever others do, and so what can be told to have grown; `rss` counts all of what is
    shared, as if nobody else were there.
    """

    pss: float
    anon: float
    rss: float


class Accounted:
    """A command that runs, and its account."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], out: IO[bytes] | int, cwd: Path | None = None
    ) -> None:
        self._account = open_account()
        self._process = subprocess.Popen(
            self._account.joining(command),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        self.pid = self._process.pid

    def cpu_s(self) -> float:
        return self._account.cpu_s(self.pid)

    def cpu_when_quiet_s(self, quiet_s: float = 0.3, limit_s: float = 30.0) -> float:
        """Wait until next to no CPU is used any more, and return what was used in all."""
        until_s = time.monotonic() + limit_s
        before_s = self.cpu_s()
        while time.monotonic() < until_s:
            time.sleep(quiet_s)
            now_s = self.cpu_s()
            if now_s - before_s < 0.01 * quiet_s:
                return now_s
            before_s = now_s
        raise BenchError(f"it did not become quiet within {limit_s:g} s")

    def memory(self) -> "Memory":
        """Return the process's memory; of it alone, not of its children."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text("ascii")
        mib = {key: int(kb) / 1024 for key, kb in re.findall(r"^(\w+):\s+(\d+) kB", rollup, re.MULTILINE)}
        return Memory(mib["Pss"], mib["Pss_Anon"], mib["Rss"])

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, limit_s: float = LIMIT_S) -> int:
        return self._process.wait(limit_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._account.kill(self.pid)
        self._process.wait()
        self._account.close()
