"""How far an upload is: seen from another process, never waited for, and nothing at all for what takes no time."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from heifyd import overview
from heifyd.ledger import Claim, Ledger, LedgerUnwritableError, State, UploadRow
from heifyd.progress import Progress
from heifyd.recording import Identity, Ids, Ticket

FOLDER = "/var/spool/calls"
NOW = 1_800_000_000.0
TICKET = Ticket("t-1", "https://storage.heify.com/t-1?X-Amz-Signature=s", Ids("c"), "call", 500.0, "boot")


class Clock:
    """A clock that stands until it is moved on."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger.of_daemon(tmp_path / "ledger.sqlite", lambda _trouble: None)) as opened:
        yield opened


def upload_begun(ledger: Ledger, path: str = "call.wav", size_bytes: int = 1000) -> Claim:
    ledger.add([Identity(FOLDER, path, size_bytes, 1)], NOW)
    claim = ledger.claim(FOLDER, NOW)
    assert claim is not None
    ledger.uploading(claim, TICKET)
    return claim


def seen(ledger: Ledger) -> list[tuple[str, int, int]]:
    """Return what another process sees."""
    with closing(Ledger(ledger.path, create=False)) as other:
        return [(row.path, row.sent_bytes, row.size_bytes) for row in overview.of(other, []).uploads]


def test_what_takes_less_than_a_second_is_not_written_down(ledger: Ledger) -> None:
    clock = Clock()
    written: list[str] = []
    progress = Progress(ledger, upload_begun(ledger), clock)
    sa.event.listen(ledger._file._engine, "before_cursor_execute", lambda *args: written.append(args[2]))

    progress.begin()
    for _ in range(99):
        clock.now_s += 0.01
        progress.sent(10)

    assert written == []


def test_an_upload_that_takes_longer_is_noted_every_two_seconds_and_not_more_often(ledger: Ledger) -> None:
    clock = Clock()
    noted: list[tuple[float, int]] = []
    progress = Progress(ledger, upload_begun(ledger), clock)

    progress.begin()
    for _ in range(28):
        clock.now_s += 0.25
        progress.sent(25)
        ((_, sent_bytes, _),) = seen(ledger) or [("", 0, 0)]
        if sent_bytes and (not noted or noted[-1][1] != sent_bytes):
            noted.append((clock.now_s, sent_bytes))

    assert noted == [(1.0, 100), (3.0, 300), (5.0, 500), (7.0, 700)]


def test_each_upload_tells_its_file_its_size_and_when_it_began_and_the_largest_comes_first(ledger: Ledger) -> None:
    small, large = upload_begun(ledger, "small.wav", 1000), upload_begun(ledger, "large.wav", 2000)

    assert ledger.note_progress(small, 10, NOW + 1)
    assert ledger.note_progress(large, 20, NOW + 2)

    assert ledger.uploads() == [
        UploadRow(FOLDER, "large.wav", 2000, 20, NOW + 2),
        UploadRow(FOLDER, "small.wav", 1000, 10, NOW + 1),
    ]


def test_another_put_of_the_same_recording_begins_at_nothing(ledger: Ledger) -> None:
    clock = Clock()
    progress = Progress(ledger, upload_begun(ledger), clock)
    progress.begin()
    clock.now_s += 2
    progress.sent(500)
    (before,) = ledger.uploads()

    progress.begin()

    (after,) = ledger.uploads()
    assert (before.sent_bytes, after.sent_bytes) == (500, 0)
    assert after.began_at > before.began_at


@pytest.mark.parametrize("end", [State.DONE, State.FAILED, "put back", "uploaded"])
def test_an_upload_that_is_over_is_shown_no_more_also_when_the_recording_is_taken_on_again(
    ledger: Ledger, end: str
) -> None:
    claim = upload_begun(ledger)
    assert ledger.note_progress(claim, 500, NOW)
    assert len(seen(ledger)) == 1

    if isinstance(end, State):
        ledger.ended(claim, end, NOW)
        ledger.add([claim.identity], NOW)
    elif end == "uploaded":
        ledger.uploaded(claim)
    else:
        ledger.put_back(claim, 0.0, attempts=1)
    ledger.claim(FOLDER, NOW)

    assert seen(ledger) == []


def test_what_a_killed_daemon_was_sending_is_not_shown_nor_is_it_after_the_next_start(ledger: Ledger) -> None:
    claim = upload_begun(ledger)
    assert ledger.note_progress(claim, 500, NOW)

    ledger.close()
    assert seen(ledger) == []
    with closing(Ledger.of_daemon(ledger.path, lambda _trouble: None)) as again:
        again_claimed = again.claim(FOLDER, NOW)
        assert again_claimed is not None
        assert again_claimed == replace(claim, state=State.UPLOADING, attempts=1, ticket=TICKET)
        assert seen(again) == []
        assert again.note_progress(again_claimed, 10, NOW + 1)
        assert seen(again) == [("call.wav", 10, 1000)]


def test_a_ledger_that_another_process_has_locked_is_not_waited_for(ledger: Ledger) -> None:
    claim = upload_begun(ledger)
    waited: list[object] = []
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sa.event.listen(ledger._file._engine, "handle_error", lambda context: waited.append(_busy_timeout(context)))
        assert not ledger.note_progress(claim, 500, NOW)
        other.execute("ROLLBACK")

    assert waited == [0]
    ledger.put_back(claim, 0.0, attempts=1)
    assert _timeout_of(ledger) == 30_000, "what matters is waited for as before"


def _busy_timeout(context: Any) -> object:
    return context.connection.connection.driver_connection.execute("PRAGMA busy_timeout").fetchone()[0]


def _timeout_of(ledger: Ledger) -> int:
    writer: Any = ledger._file._writer
    timeout_ms: int = writer.connection.driver_connection.execute("PRAGMA busy_timeout").fetchone()[0]
    return timeout_ms


def test_waiting_is_as_patient_after_a_note_as_before(ledger: Ledger) -> None:
    assert ledger.note_progress(upload_begun(ledger), 500, NOW)

    assert _timeout_of(ledger) == 30_000


def test_a_thread_that_writes_something_that_matters_is_not_waited_for(ledger: Ledger) -> None:
    claim = upload_begun(ledger)
    begun, end = threading.Event(), threading.Event()

    def slowly(_db: object) -> None:
        begun.set()
        assert end.wait(60)

    writing = threading.Thread(target=lambda: ledger._file.write(slowly))
    writing.start()
    try:
        assert begun.wait(60)
        assert not ledger.note_progress(claim, 500, NOW)
    finally:
        end.set()
        writing.join()
    assert ledger.note_progress(claim, 500, NOW)


def test_a_ledger_that_takes_nothing_fails_no_upload_and_is_not_waited_for(ledger: Ledger) -> None:
    claim, clock = upload_begun(ledger), Clock()
    takes_nothing = [True]

    def limit(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA query_only = {int(takes_nothing[0])}")  # then SQLite answers SQLITE_READONLY

    sa.event.listen(ledger._file._engine, "checkout", limit)
    ledger._file._drop_writer()
    with pytest.raises(LedgerUnwritableError):
        ledger.prune(NOW)
    progress = Progress(ledger, claim, clock)

    progress.begin()
    for _ in range(3):
        clock.now_s += 2
        progress.sent(100)

    assert ledger.uploads() == []
    takes_nothing[0] = False
    ledger.put_back(claim, 0.0, attempts=1)
    assert ledger.claim(FOLDER, NOW) is not None
    clock.now_s += 2
    progress.sent(100)
    assert [row.sent_bytes for row in ledger.uploads()] == [400]
