"""One large recording: the CPU of each byte, against a bare `curl -T`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench import recordings, rival
from tests.bench.bench import Bench
from tests.bench.measure import await_that
from tests.bench.program import Daemon
from tests.bench.report import Figure, Result, median, spread
from tests.harness import Place

_BYTES: Final = 200_000_000
_SHARE: Final = 0.8


def run(bench: Bench) -> Sequence[Result]:
    with bench.place(bench.server.url) as place, bench.program.daemon(place.config) as daemon:
        daemon.await_event("daemon.started")
        large, small = place.root / "large.wav", place.root / "small.wav"
        large.write_bytes(recordings.wav(_BYTES))
        small.write_bytes(recordings.wav(10_000))
        ours: list[float] = []
        theirs: list[float] = []
        for at in range(bench.much(7, 3)):
            bench.say(f"large: 200 MB by both, round {at + 1}")
            ours.append(_heifyd(bench, place, daemon, large))
            bench.server.forget()
            theirs.append(rival.put_alone(large, bench.server.url))
            bench.server.must_have_stored(1, _BYTES)
        small_ms = median(rival.put_alone(small, bench.server.url) for _ in range(5)) * 1000
        daemon.stop()
    cpu_s, rival_s = median(ours), median(theirs)
    figure = Figure(
        "200 MB: CPU ns a byte",
        f"{cpu_s / _BYTES * 1e9:.3f}",
        f"{rival_s / _BYTES * 1e9:.3f}",
        f"{cpu_s / rival_s:.2f} x",
        f"≤ {_SHARE:g} x",
        cpu_s <= _SHARE * rival_s,
    )
    spreads = (
        f"heifyd {spread(ours, '.3f')} (from the file's arrival to its being filed); curl -T {spread(theirs, '.3f')}"
    )
    note = f"CPU seconds, each run: {spreads} (of which {small_ms:.0f} ms are its start, seen from a 10 kB file)"
    return [Result("large", [figure], [note])]


def _heifyd(bench: Bench, place: Place, daemon: Daemon, large: Path) -> float:
    """Move the file in, and back out when it is done; return the CPU seconds of the daemon, which runs already."""
    bench.server.forget()
    before_s = daemon.process.cpu_when_quiet_s()
    arriving = place.calls / f"large-{time.monotonic_ns()}.wav"
    large.touch()  # a recording of its own: the same content with the same times was sent before
    large.rename(arriving)
    await_that((place.done / arriving.name).exists, "the large file in done/")
    cpu_s = daemon.process.cpu_when_quiet_s() - before_s
    (place.done / arriving.name).rename(large)
    bench.server.must_have_stored(1, _BYTES)
    return cpu_s
