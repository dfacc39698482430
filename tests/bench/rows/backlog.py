"""A backlog at the start: what it takes until the first upload starts, however many files lie there."""

import os
import time
from collections.abc import Sequence
from typing import Final

from tests.bench import recordings
from tests.bench.bench import HEAP_FILE_BYTES, Bench
from tests.bench.report import Figure, Result, median, spread
from tests.harness import Place

_CPU_S: Final = 2.0
_GROWTH: Final = 1.2


def run(bench: Bench) -> Sequence[Result]:
    sizes = bench.much((1_000, 10_000), (200, 1_000))
    took: dict[int, list[tuple[float, float]]] = {}
    for at in range(bench.much(3, 1)):
        bench.say(f"backlog: a start before each number of files, round {at + 1}")
        for files in sizes:
            with bench.place(bench.server.url) as place:
                recordings.write(place.calls, 0, files, recordings.wav(HEAP_FILE_BYTES))
                took.setdefault(files, []).append(_until_first(bench, place))
        with bench.place(bench.server.url) as place, bench.heap_as(place.calls):
            took.setdefault(bench.heap_files, []).append(_until_first(bench, place))
    cpus = {files: median(cpu_s for cpu_s, _ in some) for files, some in took.items()}
    least = cpus[sizes[0]]
    figures = []
    for files, cpu_s in cpus.items():
        is_whole = files == bench.heap_files
        figures.append(
            Figure(
                f"CPU s until the first upload, {files:,} files there",
                f"{cpu_s:.2f}",
                ratio=f"{cpu_s / least:.2f} x {sizes[0]:,}'s",
                bound=f"< {_CPU_S:g} s, ≤ {_GROWTH:g} x" if is_whole else "",
                met=cpu_s < _CPU_S and cpu_s <= _GROWTH * least if is_whole else None,
            )
        )
    notes = [
        f"{files:,} files: CPU s {spread([cpu_s for cpu_s, _ in some], '.2f')}, "
        f"wall s {spread([wall_s for _, wall_s in some], '.2f')}"
        for files, some in took.items()
    ]
    return [Result("backlog", figures, notes)]


def _until_first(bench: Bench, place: Place) -> tuple[float, float]:
    """Start the daemon and kill it when its first upload has started; return its CPU and wall seconds until then."""
    os.sync()  # the files were written a moment ago; their writing back is not the daemon's
    began_s = time.perf_counter()
    with bench.program.daemon(place.config) as daemon:
        daemon.await_bytes(b'"event": "upload.started"')
        cpu_s, wall_s = daemon.process.cpu_s(), time.perf_counter() - began_s
    return cpu_s, wall_s
