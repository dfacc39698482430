"""Many small recordings: how many a second, and the CPU of each, against the rival."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench import recordings, rival
from tests.bench.bench import Bench
from tests.bench.measure import Accounted, await_that
from tests.bench.report import Figure, Result, median, spread
from tests.harness import Place

_BYTES: Final = 10_000
_FASTER: Final = 8.0
_CPU_SHARE: Final = 1 / 12


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: files a second, CPU milliseconds a file, and how busy the server was meanwhile (cores)."""

    per_s: float
    cpu_ms: float
    server_cores: float


def run(bench: Bench) -> Sequence[Result]:
    files = bench.much(2000, 300)
    content = recordings.wav(_BYTES)
    capacity = bench.server.capacity(content, bench.much(20_000, 4_000))
    runs: dict[tuple[str, str], list[_Run]] = {}
    for at in range(bench.much(3, 1)):
        bench.say(f"small: {files:,} files by both, round {at + 1}")
        for kind in ("arriving", "lying there") if at == 0 else ("arriving",):
            runs.setdefault(("heifyd", kind), []).append(_heifyd(bench, kind, files, content))
            runs.setdefault(("rival", kind), []).append(_rival(bench, kind, files, content))
    speeds, cpus = [], []
    for kind in ("arriving", "lying there"):
        ours, theirs = runs["heifyd", kind], runs["rival", kind]
        per_s, rival_per_s = (median(each.per_s for each in some) for some in (ours, theirs))
        cpu_ms, rival_cpu_ms = (median(each.cpu_ms for each in some) for some in (ours, theirs))
        counts = kind == "arriving"
        speeds.append(
            Figure(
                f"{files:,} x 10 kB {kind}: files/s",
                f"{per_s:.1f}",
                f"{rival_per_s:.1f}",
                f"{per_s / rival_per_s:.2f} x",
                f"≥ {_FASTER:g} x" if counts else "",
                per_s >= _FASTER * rival_per_s if counts else None,
            )
        )
        cpus.append(
            Figure(
                f"{kind}: CPU ms a file" + ("" if counts else ", start included"),
                f"{cpu_ms:.2f}",
                f"{rival_cpu_ms:.2f}",
                f"1/{rival_cpu_ms / cpu_ms:.1f}",
                f"≤ 1/{1 / _CPU_SHARE:.0f}" if counts else "",
                cpu_ms <= _CPU_SHARE * rival_cpu_ms if counts else None,
            )
        )
    every = runs["heifyd", "arriving"]
    asked = max(each.per_s for each in every)
    about_server = (
        f"the server can do {capacity.posts_per_s:,.0f} POST/s and {capacity.puts_per_s:,.0f} PUT/s of 10 kB "
        f"(ab, 4 connections), that is {capacity.uploads_per_s:,.0f} uploads/s; at most {asked:,.0f} were asked of it, "
        f"which took {max(each.server_cores for each in every):.2f} cores"
    )
    rates = [spread([each.per_s for each in runs[who, "arriving"]], ".1f") for who in ("heifyd", "rival")]
    costs = [spread([each.cpu_ms for each in runs[who, "arriving"]], ".2f") for who in ("heifyd", "rival")]
    return [
        Result("small", speeds, [about_server, f"arriving, each run's files/s: heifyd {rates[0]}; rival {rates[1]}"]),
        Result("cpu", cpus, [f"arriving, each run's CPU ms a file: heifyd {costs[0]}; rival {costs[1]}"]),
    ]


def _heifyd(bench: Bench, kind: str, files: int, content: bytes) -> _Run:
    with bench.place(bench.server.url) as place:
        if kind != "arriving":
            recordings.write(place.calls, 0, files, content)
        began_s = time.time()
        with bench.program.daemon(place.config) as daemon:
            if kind == "arriving":
                daemon.await_event("daemon.started")
            measured = _measure(bench, place, daemon.process, kind, files, content, began_s)
            daemon.stop()
        return measured


def _rival(bench: Bench, kind: str, files: int, content: bytes) -> _Run:
    with bench.place(bench.server.url) as place:
        if kind != "arriving":
            recordings.write(place.calls, 0, files, content)
        began_s = time.time()
        with rival.running(place.root, bench.server.url) as process:
            return _measure(bench, place, process, kind, files, content, began_s)


def _measure(
    bench: Bench, place: Place, process: Accounted, kind: str, files: int, content: bytes, began_s: float
) -> _Run:
    """Measure from the first file's arrival, or from `began_s` where they lie there, to the last file in done/."""
    bench.server.forget()
    server_before_s, before_s = bench.server.cpu_s(), 0.0
    if kind == "arriving":
        before_s = process.cpu_when_quiet_s()
        began_s = time.time()
        recordings.write(place.calls, 0, files, content)
    await_that(lambda: recordings.number_in(place.done) == files, f"{files} files in done/", every_s=0.1)
    took_s = recordings.last_moved_in(place.done) - began_s
    server_s = bench.server.cpu_s() - server_before_s
    cpu_s = process.cpu_when_quiet_s() - before_s
    bench.server.must_have_stored(files, len(content))
    return _Run(files / took_s, cpu_s / files * 1000, server_s / took_s)
