"""A long history: what `heifyd status` and a claim cost with a million recordings in the ledger."""

import json
import time
from collections.abc import Sequence
from typing import Final

from tests.bench.bench import Bench
from tests.bench.report import Figure, Result, median, spread

_COMMAND_S: Final = 1.0
_GROWTH: Final = 1.2
_MODULE: Final = "tests.bench.ledgers"


def run(bench: Bench) -> Sequence[Result]:
    rows = bench.much(1_000_000, 100_000)
    with bench.place(bench.server.url) as place:
        bench.say(f"history: a ledger of {rows:,} recordings")
        bench.program.module(
            _MODULE, "build", place.ledger, str(rows), str(place.calls), *(f"/old/{n}" for n in range(4))
        )
        bench.say("status: the commands")
        took_s = {
            command: [bench.program.command_s(command, "--config", place.config) for _ in range(bench.much(7, 3))]
            for command in ("status", "check")
        }
        bench.say("history: claims")
        empty = place.root / "empty.sqlite"
        rounds = str(bench.much(8, 3))
        said = bench.program.module(_MODULE, "claim", rounds, empty, place.ledger)
        none, many = ({step: median(times) for step, times in each.items()} for each in json.loads(said))
        began_s = time.perf_counter()
        with bench.program.daemon(place.config) as daemon:
            daemon.await_event("daemon.started", every_s=0.005)
            start_s = time.perf_counter() - began_s
            daemon.stop()
    status = [
        Figure(
            f"heifyd {command}, {rows:,} rows: s",
            f"{median(times):.2f}",
            bound=f"< {_COMMAND_S:g} s",
            met=median(times) < _COMMAND_S,
        )
        for command, times in took_s.items()
    ]
    history = [
        Figure(
            f"{step}: CPU µs, {rows:,} rows against none",
            f"{many[f'{step} cpu']:.0f}",
            ratio=f"{many[f'{step} cpu'] / none[f'{step} cpu']:.2f} x {none[f'{step} cpu']:.0f}",
            bound=f"≤ {_GROWTH:g} x" if step == "claim" else "",
            met=many["claim cpu"] <= _GROWTH * none["claim cpu"] if step == "claim" else None,
        )
        for step in ("claim", "add", "end")
    ]
    walls = ", ".join(
        f"{step} {none[f'{step} wall']:.0f} and {many[f'{step} wall']:.0f}" for step in ("claim", "add", "end")
    )
    return [
        Result(
            "status", status, [f"{command}, each run's s: {spread(times, '.2f')}" for command, times in took_s.items()]
        ),
        Result(
            "history",
            history,
            [
                f"wall µs with none and with {rows:,}, synced: {walls}",
                f"the daemon has started {start_s:.2f} s after its exec with that history",
            ],
        ),
    ]
