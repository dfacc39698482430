"""A backlog under the account's rate limit: how much of what is allowed is used, and that it is never exceeded."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from heifyd.sandbox import RateLimit
from tests.bench import recordings
from tests.bench.bench import HEAP_FILE_BYTES, Bench
from tests.bench.program import Event
from tests.bench.report import Figure, Result
from tests.harness import SandboxProcess

_SHARE: Final = 0.98


def run(bench: Bench) -> Sequence[Result]:
    files = bench.much(1000, 150)
    limit = RateLimit()
    bench.say(f"pace: {files:,} files at {limit.per_minute:g} a minute")
    with SandboxProcess(bench.work / "sandbox") as sandbox:
        setting = f"{{per_minute: {limit.per_minute:g}, burst: {limit.burst}}}"
        with bench.place(sandbox.url, rate_limit=setting) as place:
            recordings.write(place.calls, 0, files, recordings.wav(HEAP_FILE_BYTES))
            with bench.program.daemon(place.config) as daemon:
                daemon.await_event("recording.done", files, every_s=0.25)
                first, last = _time(daemon.events("recording.settled")[0]), _time(daemon.events("upload.started")[-1])
                daemon.stop()
        too_many = sandbox.counters()["too_many_requests"]
        stored = len(sandbox.stored())
        sandbox.end()
    allowed = limit.burst + limit.per_minute / 60 * (last - first)
    share = files / allowed
    figures = [
        Figure(
            f"{files:,} waiting, {limit.per_minute:g} a minute: % of the allowed requests",
            f"{share * 100:.1f}",
            bound=f"≥ {_SHARE * 100:g} %",
            met=share >= _SHARE,
        ),
        Figure("  429s seen", str(too_many), bound="0", met=too_many == 0),
    ]
    notes = [f"{last - first:.1f} s from the first file's being finished to the last request; {stored:,} are in Heify"]
    return [Result("pace", figures, notes)]


def _time(event: Event) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()
