"""What it costs when nothing happens: on the kernel's events, and by polling."""

import signal
import time
from collections.abc import Sequence
from typing import Final

from heifyd.sandbox import CONFIGURATION_ID
from tests.bench import recordings
from tests.bench.bench import HEAP_FILE_BYTES, Bench
from tests.bench.measure import LIMIT_S, await_that
from tests.bench.report import Figure, Result, median, spread

_SHARE: Final = 0.001
_FOLDERS: Final = 50
_POLLED: Final = 10_000


def run(bench: Bench) -> Sequence[Result]:
    share, window_s = _on_events(bench)
    polled, scans_s = _by_polling(bench)
    scan_s = median(scans_s) * _POLLED / polled
    figures = [
        Figure(
            f"{_FOLDERS} folders, {bench.heap_files:,} files in done/: % of a core",
            f"{share * 100:.3f}",
            bound=f"≤ {_SHARE * 100:g} %",
            met=share <= _SHARE,
        ),
        Figure("polling, each scan of 10,000 waiting files: CPU s", f"{scan_s:.3f}"),
    ]
    often = f"every 10 s that is {scan_s * 10:.1f} % of a core for 10,000 files"
    notes = [
        f"events: over {window_s:.0f} s, in which every folder is scanned once",
        f"polling: CPU s of each scan of {polled:,} files: {spread(scans_s, '.3f')}; {often}",
    ]
    return [Result("idle", figures, notes)]


def _on_events(bench: Bench) -> tuple[float, float]:
    """Return the share of a core that is used over a time in which each folder is scanned just once."""
    rescan_s = bench.much(60, 10)
    with bench.place(bench.server.url, settings=f"rescan_seconds: {rescan_s}") as place:
        more = []
        for number in range(1, _FOLDERS):
            folder = place.root / f"calls-{number}"
            folder.mkdir()
            more.append(f"  - path: {folder}\n    configuration_id: {CONFIGURATION_ID}\n")
        place.config.write_text(place.config.read_text("utf-8") + "".join(more), "utf-8")
        with bench.heap_as(place.done), bench.program.daemon(place.config) as daemon:
            bench.say(f"idle: {rescan_s} s of nothing")
            daemon.await_event("daemon.started")
            before_s, began_s = daemon.process.cpu_when_quiet_s(1.0), time.monotonic()
            time.sleep(rescan_s)
            used_s, window_s = daemon.process.cpu_s() - before_s, time.monotonic() - began_s
            daemon.stop()
    return used_s / window_s, window_s


def _by_polling(bench: Bench) -> tuple[int, list[float]]:
    """Return how many files lay in a folder that is polled, all of them waiting, and each scan's CPU seconds."""
    files = bench.much(_POLLED, 1_000)
    with bench.place(bench.server.fault_url, settings="watch: poll\nrescan_seconds: 3600") as place:
        recordings.write(place.calls, 0, files, recordings.wav(HEAP_FILE_BYTES))
        with bench.program.daemon(place.config) as daemon:
            bench.say(f"idle: scans of {files:,} files")
            await_that(lambda: len(daemon.events("recording.settled")) == files, "all files settled", LIMIT_S, 0.25)
            took_s = []
            for _ in range(bench.much(7, 3)):
                before_s = daemon.process.cpu_when_quiet_s()
                daemon.process.signal(signal.SIGUSR1)
                took_s.append(daemon.process.cpu_when_quiet_s() - before_s)
            daemon.stop()
    return files, took_s
