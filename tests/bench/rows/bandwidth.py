"""bandwidth_limit on the wire: how exactly and how smoothly all workers together keep it, seen at the other end."""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from tests.bench import recordings
from tests.bench.arrivals import Arrivals
from tests.bench.bench import Bench
from tests.bench.listener import Listener
from tests.bench.measure import Stalls
from tests.bench.report import BenchError, Figure, Result

_M: Final = 1024 * 1024
_WORKERS: Final = 4
_WINDOW_S: Final = 10.0
_MOMENT_S: Final = 0.1
_EXACT: Final = 0.05
_FILES: Final = 12
_BUFFER_BYTES: Final = 64 * 1024
_BEFORE_S: Final = 13.0
_AFTER_S: Final = 12.0
_START_S: Final = 3.0


def run(bench: Bench) -> Sequence[Result]:
    figures: list[Figure] = []
    with Stalls() as stalls:
        for limit in (2, 20):
            lasts_s = bench.much(24.0, 13.0)
            bench.say(f"bandwidth: {lasts_s:g} s at {limit} MiB/s")
            arrivals = _uploaded(bench, f"{limit}M", limit * _M * lasts_s)
            figures += _figures(f"{limit} MiB/s, {_WORKERS} workers", arrivals, limit * _M, stalls)
        figures += _switch(bench, stalls)
    stood = [end - begin for begin, end in stalls.noted]
    about_times = (
        f"the other end reads as fast as it can, with {_BUFFER_BYTES // 1024} KiB of the kernel's buffer a connection, "
        "and notes when it has read; after a switch it counts from 100 ms on"
    )
    about_units = "100 ms worth is what the limit lets through in 100 ms; a pause is the time between two arrivals"
    about_stalls = (
        f"the machine stood still {len(stood)} times, for {max(stood, default=0.0) * 1000:.0f} ms at most "
        "(a thread that only sleeps was woken late); that is taken out of a pause"
    )
    notes = [about_times, about_units, about_stalls]
    return [Result("bandwidth", figures, notes)]


def _switch(bench: Bench, stalls: Stalls) -> list[Figure]:
    """Measure before and after a time of the timetable at which the limit falls to a tenth."""
    now = datetime.now().astimezone()
    switch = now.replace(second=0, microsecond=0) + timedelta(minutes=1)
    if (switch - now).total_seconds() < _BEFORE_S + _START_S:
        switch += timedelta(minutes=1)
    wait_s = (switch - now).total_seconds() - _BEFORE_S - _START_S
    bench.say(f"bandwidth: waiting for {wait_s:.0f} s, then 20 MiB/s until {switch:%H:%M} and 2 MiB/s from then on")
    time.sleep(wait_s)  # the time of the day is what is waited for
    before_s = (switch - datetime.now().astimezone()).total_seconds()
    switch_s = time.monotonic() + before_s
    timetable = " ".join(sorted((f"{now:%H:%M},20M", f"{switch:%H:%M},2M")))  # in the order of the day
    arrivals = _uploaded(bench, timetable, 20 * _M * before_s + 2 * _M * _AFTER_S)
    before, after = arrivals.between(0, switch_s), arrivals.between(switch_s + _MOMENT_S, float("inf"))
    figures = _figures(f"20 MiB/s until {switch:%H:%M}", before, 20 * _M, stalls)
    return figures + _figures(f"2 MiB/s from {switch:%H:%M} on", after, 2 * _M, stalls)


def _uploaded(bench: Bench, limit: str, size_bytes: float) -> Arrivals:
    """Let the daemon upload so much in several files, which all lie there when it starts, and return what arrived."""
    noted: list[tuple[float, int]] = []
    settings = f'bandwidth_limit: "{limit}"\nworkers: {_WORKERS}'
    with (
        Listener(lambda now_ns, size: noted.append((now_ns / 1e9, size)), _BUFFER_BYTES) as listener,
        bench.place(listener.url, settings=settings) as place,
    ):
        recordings.write(place.calls, 0, _FILES, recordings.wav(int(size_bytes / _FILES)))
        with bench.program.daemon(place.config) as daemon:
            daemon.await_event("recording.done", _FILES, every_s=0.25)
            daemon.stop()
    return Arrivals.of(noted)


def _figures(what: str, arrivals: Arrivals, bytes_per_s: float, stalls: Stalls) -> list[Figure]:
    rates = [rate / bytes_per_s for rate in arrivals.rates(_WINDOW_S)]
    if not rates:
        raise BenchError(f"{what}: it lasted but {arrivals.lasted_s:.1f} s")
    most = arrivals.most_bytes(_MOMENT_S) / (bytes_per_s * _MOMENT_S)
    pause_s = arrivals.longest_pause_s(stalls.noted)
    least, greatest = min(rates), max(rates)
    return [
        Figure(
            f"{what}: % of the limit in any {_WINDOW_S:g} s",
            f"{least * 100:.1f}-{greatest * 100:.1f}",
            bound=f"± {_EXACT * 100:g} %",
            met=least >= 1 - _EXACT and greatest <= 1 + _EXACT,
        ),
        Figure("  the most in any 100 ms, in 100 ms worth", f"{most:.2f}", bound="≤ 2", met=most <= 2),
        Figure("  the longest pause, ms", f"{pause_s * 1000:.0f}", bound="≤ 100", met=pause_s <= _MOMENT_S),
    ]
