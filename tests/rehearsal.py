"""`heifyd` with its time sped up, or killed at a step of a recording's journey: `python -m tests.rehearsal run ...`.

The program is heifyd itself, unchanged on disk; what the environment asks for is put around it in this process.

REHEARSAL_SPEED=60 lets an hour pass in a minute: the clocks that heifyd measures spans with run faster, and what it
waits for between threads ends sooner. The network's own timeouts stay, unless REHEARSAL_TIMEOUT_S sets them all.
REHEARSAL_LOOK_S sets how often the main thread looks whether all is well, and by that how old a heartbeat may be;
REHEARSAL_STEP_S sets how long a thread may take for a step until it counts as one that hangs.

REHEARSAL_KILL=STEP or STEP:3 kills the process with SIGKILL the first (third) time that a recording gets to that step,
see `STEPS`. REHEARSAL_HANG_S=n lets a thread that gets to it wait n seconds there instead.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

BEFORE, AFTER = "before", "after"

STEPS: dict[str, tuple[str, str, str]] = {
    "settled": ("heifyd.ledger:Ledger.add", AFTER, "the recording is in the ledger"),
    "claimed": ("heifyd.ledger:Ledger.claim", AFTER, "a worker has it"),
    "asked": ("heifyd.heify:Heify.request_upload", AFTER, "Heify gave a URL, which is not written down"),
    "noted": ("heifyd.ledger:Ledger.uploading", AFTER, "the URL is written down, nothing is sent"),
    "sending": ("heifyd.heify:Heify.put", "piece", "a piece of the body is on its way"),
    "sent": ("heifyd.heify:Heify.put", AFTER, "Heify has it, the ledger does not know"),
    "uploaded": ("heifyd.ledger:Ledger.uploaded", AFTER, "the ledger knows that Heify has it"),
    "copied": ("heifyd.filing:_copy", AFTER, "a copy lies on the other file system under a temporary name"),
    "placed": (
        "heifyd.filing:_rename_to_free",
        AFTER,
        "it has its name in done/, of another file system twice",
    ),
    "moved": ("heifyd.filing:move", AFTER, "the file is in done/ or failed/, the ledger does not know"),
    "explained": ("heifyd.filing:explain", AFTER, "the reason lies beside a failed file"),
    "ending": ("heifyd.ledger:Ledger.ended", BEFORE, "all is done but the ledger's last word"),
    "ended": ("heifyd.ledger:Ledger.ended", AFTER, "the ledger's last word is written"),
}
"""Each step's function, the moment, and where a recording is then."""


def speed_up(factor: float) -> None:
    """Let spans of time pass `factor` times as fast; called before heifyd is imported."""
    monotonic, clock_gettime, wait = time.monotonic, time.clock_gettime, threading.Condition.wait
    began_s = monotonic()

    def fast_monotonic() -> float:
        return began_s + (monotonic() - began_s) * factor

    def fast_clock_gettime(clock: int) -> float:
        if clock != time.CLOCK_BOOTTIME:
            return clock_gettime(clock)
        return clock_gettime(clock) + (monotonic() - began_s) * (factor - 1)

    def fast_wait(self: threading.Condition, timeout: float | None = None) -> bool:
        return wait(self, None if timeout is None else timeout / factor)

    time.monotonic, time.clock_gettime = fast_monotonic, fast_clock_gettime
    setattr(threading, "_time", fast_monotonic)  # noqa: B010 (what Condition.wait_for reads; no stub knows it)
    threading.Condition.wait = fast_wait  # type: ignore[method-assign]


def at_step(name: str, act: Callable[[], None]) -> None:
    """Put `act` at a step of `STEPS`."""
    where, moment, _ = STEPS[name]
    module, _, path = where.partition(":")
    owner: Any = __import__(module, fromlist=["_"])
    *above, last = path.split(".")
    for part in above:
        owner = getattr(owner, part)
    original = getattr(owner, last)

    def around(*args: Any, **kwargs: Any) -> Any:
        if moment == BEFORE:
            act()
        if moment == "piece":
            kwargs["sent"] = lambda _piece: act()
        result = original(*args, **kwargs)
        if moment == AFTER and (result is not None or last != "claim"):
            act()
        return result

    setattr(owner, last, around)


def prepare() -> None:
    """Put around heifyd what the environment asks for; called before heifyd is imported."""
    if speed := float(os.environ.get("REHEARSAL_SPEED", "0")):
        speed_up(speed)
    if step := os.environ.get("REHEARSAL_KILL"):
        name, _, count = step.partition(":")
        left = threading.Semaphore(int(count or 1) - 1)
        hang_s = float(os.environ.get("REHEARSAL_HANG_S", "0"))

        def act() -> None:
            if left.acquire(blocking=False):
                return
            if hang_s:
                time.sleep(hang_s)
            else:
                os.kill(os.getpid(), signal.SIGKILL)

        at_step(name, act)
    for name in ("LOOK_S", "STEP_S"):
        if seconds := os.environ.get(f"REHEARSAL_{name}"):
            from heifyd import pulse  # noqa: PLC0415 (after the clocks are set)

            setattr(pulse, name, float(seconds))
    if timeout := os.environ.get("REHEARSAL_TIMEOUT_S"):
        import httpx  # noqa: PLC0415 (after the clocks are set)

        from heifyd import heify  # noqa: PLC0415

        heify.TIMEOUT = httpx.Timeout(float(timeout))  # type: ignore[misc]


def main() -> None:
    prepare()

    from heifyd.cli import main as heifyd  # noqa: PLC0415 (after the clocks are set)

    heifyd()


if __name__ == "__main__":
    main()
