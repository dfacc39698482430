"""What the ledger tells of many ended recordings at once."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from heifyd.faults import of_file
from heifyd.ledger import Ledger, State
from heifyd.ledger_history import Failure, Hour
from heifyd.recording import Identity

SALES, SUPPORT = "/srv/sales", "/srv/support"
HOUR = 3600
NOON = 500_000 * HOUR


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        yield ledger


def end(ledger: Ledger, folder: str, path: str, state: State, at: float) -> None:
    ledger.add([Identity(folder, path, 1, 1)], at)
    claim = ledger.claim(folder, at)
    assert claim is not None
    fault = of_file("too_large", "it is large")
    if state is State.FAILED:
        ledger.refused(claim, fault)
    ledger.ended(claim, state, at, filed_at=f"{folder}/{state}/{path}", reason=fault.reason, detail=fault.detail)


def test_each_hour_counts_what_was_done_and_what_failed_in_it_and_nothing_else(ledger: Ledger) -> None:
    ends = [
        (SALES, State.DONE, NOON - 0.1),
        (SALES, State.DONE, NOON),
        (SUPPORT, State.DONE, NOON + 1800.5),
        (SUPPORT, State.FAILED, NOON + HOUR - 0.001),
        (SALES, State.VANISHED, NOON + 1),
        (SALES, State.SUPERSEDED, NOON + 2),
        ("/srv/other", State.DONE, NOON + 3),
        (SALES, State.FAILED, NOON + 2 * HOUR),
        (SALES, State.DONE, NOON + 3 * HOUR),
    ]
    for number, (folder, state, at) in enumerate(ends):
        end(ledger, folder, f"{number}.wav", state, at)
    ledger.add([Identity(SALES, "waits.wav", 1, 1)], NOON)

    assert ledger.history.by_hour([SALES, SUPPORT], NOON, NOON + 3 * HOUR) == [
        Hour(NOON, 2, 1),
        Hour(NOON + HOUR, 0, 0),
        Hour(NOON + 2 * HOUR, 0, 1),
    ]


def test_the_last_failures_of_all_folders_come_with_their_reasons_the_latest_first(
    ledger: Ledger, odd_name: str
) -> None:
    end(ledger, SALES, "first.wav", State.FAILED, NOON)
    end(ledger, SUPPORT, odd_name, State.FAILED, NOON + 2)
    end(ledger, SALES, "between.wav", State.FAILED, NOON + 1)
    end(ledger, SALES, "done.wav", State.DONE, NOON + 3)
    end(ledger, "/srv/other", "other.wav", State.FAILED, NOON + 4)

    last, between = ledger.history.last_failures([SALES, SUPPORT], 2)

    advice = of_file("too_large", "").advice
    filed_at = f"{SUPPORT}/failed/{odd_name}"
    assert last == Failure(SUPPORT, odd_name, NOON + 2, filed_at, "too_large", "it is large", advice)
    assert between.path == "between.wav"


def test_the_last_recording_that_was_done_is_the_last_of_all_folders(ledger: Ledger) -> None:
    assert ledger.history.last_done([SALES, SUPPORT]) is None
    end(ledger, SALES, "first.wav", State.DONE, NOON)
    end(ledger, SUPPORT, "last.wav", State.DONE, NOON + 2)
    end(ledger, SALES, "failed.wav", State.FAILED, NOON + 3)
    end(ledger, "/srv/other", "other.wav", State.DONE, NOON + 4)

    assert ledger.history.last_done([SALES, SUPPORT]) == NOON + 2


def test_no_look_at_the_history_reads_more_of_it_than_it_tells_of(ledger: Ledger) -> None:
    """The plan of each query is one that searches by the right index: others read a million rows at every look."""
    said: list[str] = []

    def note(statement: str) -> None:
        if statement.lstrip().startswith(("SELECT", "WITH")):
            said.append(statement)

    end(ledger, SALES, "call.wav", State.FAILED, NOON)
    ledger._file.read(lambda db: _raw(db).set_trace_callback(note))
    ledger.folders()
    ledger.counts(SALES, NOON)
    ledger.history.by_hour([SALES, SUPPORT], NOON, NOON + HOUR)
    ledger.history.last_failures([SALES, SUPPORT], 20)
    ledger.history.last_done([SALES])
    ledger.failed(SALES)
    ledger._file.read(lambda db: _raw(db).set_trace_callback(None))

    assert len(said) == 8
    quick = re.compile(
        r"^SEARCH recordings USING (COVERING INDEX ended|INDEX ended|INDEX next_claim|INTEGER PRIMARY KEY"
        r"|COVERING INDEX one_row_an_identity \(folder>\?\)|COVERING INDEX one_row_an_identity$)"
    )
    with closing(sqlite3.connect(ledger.path)) as db:
        for statement in said:
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}")]
            steps = [step for step in plan if "recordings" in step]
            assert steps
            assert all(quick.search(step) for step in steps), (statement, plan)


def _raw(db: object) -> sqlite3.Connection:
    raw = db.connection.driver_connection  # type: ignore[attr-defined]
    assert isinstance(raw, sqlite3.Connection)
    return raw
