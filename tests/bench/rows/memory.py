"""Memory: idle, with many recordings waiting, and over many uploads."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from tests.bench import recordings
from tests.bench.bench import Bench
from tests.bench.measure import LIMIT_S, Memory, await_that
from tests.bench.report import Figure, Result, median
from tests.harness import Place

_IDLE_MIB: Final = 60.0
_WAITING_MIB: Final = 10.0
_GROWTH_MIB: Final = 1.0
"""What the allocator's own breathing comes to; a leak of 100 bytes an upload would be 2 MiB."""

_BYTES: Final = 1_000


def run(bench: Bench) -> Sequence[Result]:
    idle, curve = _over_uploads(bench)
    held, highest_mib = _with_waiting(bench)
    part = max(1, len(curve) // 5)
    early, late = (median(each.anon for each in some) for some in (curve[part : 2 * part + 1], curve[-part - 1 :]))
    step = bench.much(1000, 200)
    figures = [
        Figure("PSS MiB, idle", f"{idle.pss:.1f}", bound=f"≤ {_IDLE_MIB:g}", met=idle.pss <= _IDLE_MIB),
        Figure(
            f"anonymous MiB more, {bench.heap_files:,} waiting",
            f"{held.anon - idle.anon:+.1f}",
            bound=f"≤ +{_WAITING_MIB:g}",
            met=held.anon - idle.anon <= _WAITING_MIB,
        ),
        Figure("  at the highest while they were taken in", f"{highest_mib - idle.anon:+.1f}"),
        Figure(
            f"anonymous MiB more, late against early in {len(curve) * step:,} uploads",
            f"{late - early:+.1f}",
            bound=f"≤ +{_GROWTH_MIB:g}",
            met=late - early <= _GROWTH_MIB,
        ),
    ]
    notes = [
        f"idle: RSS {idle.rss:.1f} MiB, of which {idle.anon:.1f} anonymous; the rest is shared with others",
        f"PSS MiB, {bench.heap_files:,} waiting: {held.pss:.1f}",
        f"after each {step:,} uploads, anonymous MiB: {' '.join(f'{each.anon:.1f}' for each in curve)}",
        f"after each {step:,} uploads, PSS MiB: {' '.join(f'{each.pss:.1f}' for each in curve)}",
    ]
    return [Result("memory", figures, notes)]


def _over_uploads(bench: Bench) -> tuple[Memory, list[Memory]]:
    """Return the memory when idle and after each so many uploads."""
    step, steps = bench.much((1000, 20), (200, 5))
    content = recordings.wav(_BYTES)
    curve = []
    with bench.place(bench.server.url) as place, bench.program.daemon(place.config) as daemon:
        daemon.await_event("daemon.started")
        daemon.process.cpu_when_quiet_s(1.0)
        idle = daemon.process.memory()
        for at in range(steps):
            bench.say(f"memory: {(at + 1) * step:,} uploads")
            recordings.write(place.calls, at * step, (at + 1) * step, content)
            _await_files(place, (at + 1) * step)
            curve.append(daemon.process.memory())
        daemon.stop()
    return idle, curve


def _await_files(place: Place, number: int) -> None:
    await_that(lambda: recordings.number_in(place.done) == number, f"{number:,} files in done/", every_s=0.1)


def _with_waiting(bench: Bench) -> tuple[Memory, float]:
    """Return the memory with the heap waiting, and the most that was anonymous on the way.

    They are held by a service that answers 503 to all.
    """
    highest_mib = 0.0
    with (
        bench.place(bench.server.fault_url) as place,
        bench.heap_as(place.calls),
        bench.program.daemon(place.config) as daemon,
    ):
        bench.say(f"memory: {bench.heap_files:,} files wait")
        daemon.await_event("daemon.started")

        def all_wait() -> bool:
            nonlocal highest_mib
            highest_mib = max(highest_mib, daemon.process.memory().anon)
            return _waiting(place) == bench.heap_files

        await_that(all_wait, f"{bench.heap_files:,} waiting", 2 * LIMIT_S, every_s=0.5)
        daemon.process.cpu_when_quiet_s(1.0)
        held = daemon.process.memory()
        daemon.await_event("hold.started")
        daemon.stop()
    return held, max(highest_mib, held.anon)


def _waiting(place: Place) -> int:
    with closing(sqlite3.connect(f"file:{place.ledger}?mode=ro", uri=True, timeout=30.0)) as db:
        (number,) = db.execute("SELECT count(*) FROM recordings").fetchone()
    return int(number)
