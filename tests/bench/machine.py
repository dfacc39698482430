"""Which machine the figures are of."""

import os
import platform
import re
import sqlite3
import subprocess
import time
from pathlib import Path

from heifyd import mounts
from tests.bench.report import median


def describe(work: Path) -> list[str]:
    """Say what the figures depend on; `work` is where the recordings and the ledger will lie."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    cores = len(os.sched_getaffinity(0))
    meminfo = Path("/proc/meminfo").read_text("ascii")
    total = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    memory_gib = int(total[1]) / 1024**2 if total else 0.0
    mount = mounts.mount_of(os.path.realpath(work), mounts.own_mounts())
    programs = [_version("nginx", "-v"), _version("curl", "--version"), _version("jq", "--version")]
    programs.append(_version("bash", "--version"))
    load = os.getloadavg()[0]
    hardware = f"{model[1] if model else platform.machine()}, {cores} cores, {memory_gib:.0f} GiB"
    return [
        f"machine: {hardware}, Linux {platform.release()}, load {load:.1f} at the start",
        f"python {platform.python_version()}, SQLite {sqlite3.sqlite_version}; {'; '.join(programs)}",
        f"disk: {mount.fs_type} at {mount.point} ({work}), {_sync_ms(work):.2f} ms a synced write of 4 KiB",
    ]


def _version(*command: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"no {command[0]}"
    return (said.stdout or said.stderr).splitlines()[0].split(" (", maxsplit=1)[0]


def _sync_ms(work: Path) -> float:
    took_s = []
    path = work / "sync"
    with path.open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(bytes(4096))
            began_s = time.perf_counter()
            os.fdatasync(file.fileno())
            took_s.append(time.perf_counter() - began_s)
    path.unlink()
    return median(took_s) * 1000
