"""How long after the recorder's close() the upload begins, against the rival."""

import os
import random
import time
from collections.abc import Sequence
from typing import Final

from tests.bench import recordings, rival
from tests.bench.bench import Bench
from tests.bench.listener import Listener
from tests.bench.measure import await_that
from tests.bench.report import Figure, Result, median, percentile
from tests.harness import Place

_SHARE: Final = 0.5


_COLD: Final = 3
"""The first few of each, which warm up what is cold, do not count."""


def run(bench: Bench) -> Sequence[Result]:
    pause = random.Random(0)
    took: dict[tuple[str, str], list[float]] = {}
    kinds = (
        ("one after another", bench.much(200, 40), (0.02, 0.04)),
        ("after a rest", bench.much(40, 8), (0.35, 0.45)),
    )
    with (
        Listener() as ours_at,
        Listener() as theirs_at,
        bench.place(ours_at.url) as ours,
        bench.place(theirs_at.url) as theirs,
        bench.program.daemon(ours.config) as daemon,
        rival.running(theirs.root, theirs_at.url),
    ):
        daemon.await_event("daemon.started")
        number = 0
        for kind, files, (least_s, most_s) in kinds:
            bench.say(f"latency: {files} files by both, one at a time, {kind}")
            for _ in range(files + _COLD):
                number += 1
                for who, place, at in (("heifyd", ours, ours_at), ("rival", theirs, theirs_at)):
                    time.sleep(pause.uniform(least_s, most_s))
                    took.setdefault((who, kind), []).append(_one(place, at, number, content=recordings.wav(10_000)))
        daemon.stop()
    figures = []
    notes = []
    for kind, files, (least_s, most_s) in kinds:
        ours_ms, theirs_ms = (took[who, kind][_COLD:] for who in ("heifyd", "rival"))
        ends = [f"{min(some):.1f} to {max(some):.1f}" for some in (ours_ms, theirs_ms)]
        gaps = f"{2 * least_s:g} to {2 * most_s:g} s and the other's turn between one's own"
        notes.append(f"{kind}: {files} files each, in turn, {gaps}; ms: heifyd {ends[0]}, rival {ends[1]}")
        for what, value, rival_value in (
            ("median", median(ours_ms), median(theirs_ms)),
            ("99th percentile", percentile(ours_ms, 99), percentile(theirs_ms, 99)),
        ):
            figures.append(
                Figure(
                    f"close() to the PUT's first byte, {kind}, {what}: ms",
                    f"{value:.1f}",
                    f"{rival_value:.1f}",
                    f"{value / rival_value:.2f} x",
                    f"≤ {_SHARE:g} x",
                    value <= _SHARE * rival_value,
                )
            )
    return [Result("latency", figures, notes)]


def _one(place: Place, at: Listener, number: int, content: bytes) -> float:
    """Write one recording, wait until it is filed, and return the milliseconds from its close to its PUT."""
    fd = os.open(place.calls / recordings.name(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, content)
    closing_ns = time.monotonic_ns()
    os.close(fd)
    arrived_ns = at.next_put_ns()
    await_that((place.done / recordings.name(number)).exists, "the file in done/", every_s=0.005)
    return (arrived_ns - closing_ns) / 1e6
