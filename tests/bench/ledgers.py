"""Works on ledgers in a process of its own, with the heifyd that is measured: `python -m tests.bench.ledgers`."""

import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from heifyd.ledger import Ledger, State
from heifyd.recording import Identity

FOLDER: Final = "/bench/claims"
_DAY_S: Final = 86400.0
_HISTORY_DAYS: Final = 80
"""Less than heifyd's `history_days`, so that its housekeeping leaves all rows."""

_BLOCK: Final = 100


def build(path: Path, rows: int, folders: list[str]) -> None:
    """Make a ledger with so many ended recordings, through heifyd's own schema; one in a thousand has failed."""
    Ledger(path).close()
    now_s = time.time()

    def ended() -> Iterator[tuple[object, ...]]:
        for number in range(rows):
            folder = folders[number % len(folders)]
            at_s = now_s - _HISTORY_DAYS * _DAY_S * (1 - number / rows)
            name = f"2025/call-{number:08}.wav".encode()
            state = State.FAILED if number % 1000 == 0 else State.DONE
            yield (
                *(folder.encode(), name, 480_044, int(at_s * 1e9), state.value, b"/", at_s, at_s, 0, 0.0, 0, 0.0),
                *("a1b2c3d4-e5f6-7890-1234-567890abcdef", f"{number:032x}", "call"),
                *(folder.encode() + b"/done/" + name, "server" if state is State.FAILED else None),
            )

    columns = (
        *("folder", "path", "size_bytes", "mtime_ns", "state", "mount", "settled_at", "ended_at", "claimed"),
        *("not_before", "attempts", "failing_s", "configuration_id", "transcription_id", "name", "filed_at", "reason"),
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        # Indexes are made anew over all rows at once: the same indexes, in a fraction of the time.
        indexes = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        for name, _ in indexes:
            db.execute(f"DROP INDEX {name}")
        db.execute("BEGIN")
        marks = ", ".join("?" * len(columns))
        db.executemany(f"INSERT INTO recordings ({', '.join(columns)}) VALUES ({marks})", ended())
        db.execute("COMMIT")
        for _, sql in indexes:
            db.execute(sql)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def claim(paths: list[Path], rounds: int) -> list[dict[str, list[float]]]:
    """Queue, claim and end recordings in each ledger in turn; return each step's CPU and wall time (microseconds)."""
    ledgers = [(Ledger(path), Times()) for path in paths]
    for at in range(rounds):
        for ledger, times in ledgers:
            found = [Identity(FOLDER, f"{at}-{number}.wav", 480_044, time.time_ns()) for number in range(_BLOCK)]
            with times.of("add", _BLOCK):
                ledger.add(found, time.time())
            for _ in range(_BLOCK):
                with times.of("claim"):
                    claimed = ledger.claim(FOLDER, time.monotonic())
                assert claimed is not None
                with times.of("end"):
                    ledger.ended(claimed, State.DONE, time.time())
    for ledger, _ in ledgers:
        ledger.close()
    return [times.took for _, times in ledgers]


class Times:
    """What each step took."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {}

    @contextmanager
    def of(self, step: str, parts: int = 1) -> Iterator[None]:
        cpu_s, wall_s = time.thread_time(), time.perf_counter()
        yield
        self.took.setdefault(f"{step} cpu", []).append((time.thread_time() - cpu_s) / parts * 1e6)
        self.took.setdefault(f"{step} wall", []).append((time.perf_counter() - wall_s) / parts * 1e6)


def main() -> None:
    match sys.argv[1:]:
        case ["build", path, rows, *folders]:
            build(Path(path), int(rows), folders)
        case ["claim", rounds, *paths]:
            sys.stdout.write(json.dumps(claim([Path(path) for path in paths], int(rounds))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
