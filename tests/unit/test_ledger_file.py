"""The ledger's file: what heifyd does when it has no room, is damaged, or was never a ledger."""

import fcntl
import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from heifyd.ledger import (
    Added,
    Ledger,
    LedgerDamagedError,
    LedgerError,
    LedgerUnwritableError,
    State,
    set_aside,
)
from heifyd.ledger_file import APPLICATION_ID
from heifyd.ledger_lock import last_beat_s
from heifyd.recording import Identity, Ids, Ticket

FOLDER = "/var/spool/calls"
NOW = 1_800_000_000.0


class Report:
    """What a ledger told of its trouble."""

    def __init__(self) -> None:
        self.told: list[str | None] = []
        self.changed = threading.Event()

    def __call__(self, trouble: str | None) -> None:
        self.told.append(trouble)
        self.changed.set()


def calls(number: int) -> list[Identity]:
    return [Identity(FOLDER, f"{at:04} {'x' * 200}.wav", 1000, at) for at in range(number)]


class Disk:
    """Lets SQLite find its disk full from a number of pages on (PRAGMA max_page_count)."""

    def __init__(self, ledger: Ledger) -> None:
        self.pages = 1
        file = ledger._file
        connect = file._writer_for

        def limited(*, synced: bool) -> sqlite3.Connection:
            connection = connect(synced=synced)
            connection.execute(f"PRAGMA max_page_count = {self.pages}")
            return connection

        file._writer_for = limited  # type: ignore[method-assign]


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def test_a_heartbeat_is_the_last_one_and_ends_with_its_daemon(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert last_beat_s(path) is None
    with closing(Ledger.of_daemon(path, Report())) as ledger:
        assert last_beat_s(path) is None
        for now_s in (0.5, 1.5, 1.7, 86400.9):
            ledger.beat(now_s)
            assert last_beat_s(path) == int(now_s)
    assert last_beat_s(path) is None


def test_a_heartbeat_takes_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger.of_daemon(path, Report())) as ledger:
        before = os.stat(f"{path}.lock")
        ledger.beat(12345.0)
        after = os.stat(f"{path}.lock")
    assert (after.st_size, after.st_mtime_ns) == (0, before.st_mtime_ns)


def test_who_waits_for_the_file_goes_on_beating(tmp_path: Path) -> None:
    report, third_beat = Report(), threading.Event()
    beats: list[float] = []

    def beat(wait_s: float) -> None:
        beats.append(wait_s)
        if report.changed.is_set() and len(beats) > 3:
            third_beat.set()

    with closing(Ledger.of_daemon(tmp_path / "ledger.sqlite", report, beat)) as ledger:
        disk = Disk(ledger)
        waiting = threading.Thread(target=ledger.add, args=(calls(300), NOW))
        waiting.start()
        try:
            assert report.changed.wait(60)
            beats.clear()
            assert third_beat.wait(60)
        finally:
            disk.pages = 10_000
            waiting.join()


def test_what_finds_no_room_waits_is_told_of_once_and_goes_on(tmp_path: Path) -> None:
    report = Report()
    outcome: list[Added] = []
    with closing(Ledger.of_daemon(tmp_path / "ledger.sqlite", report)) as ledger:
        disk = Disk(ledger)
        waiting = threading.Thread(target=lambda: outcome.extend(ledger.add(calls(300), NOW)))
        waiting.start()
        try:
            assert report.changed.wait(60)
            assert outcome == []
            with pytest.raises(LedgerUnwritableError):  # what may wait for later does not hang
                ledger._file.try_to_write(lambda do: do.run("CREATE TABLE large (x)"))
        finally:
            disk.pages = 10_000
            waiting.join()
        assert outcome == [Added.QUEUED] * 300
    assert [bool(trouble) for trouble in report.told] == [True, False]
    assert "full" in str(report.told[0])


def test_nobody_waits_for_room_any_more_once_that_is_given_up(tmp_path: Path) -> None:
    report = Report()
    errors: list[LedgerError] = []

    def add(ledger: Ledger) -> None:
        try:
            ledger.add(calls(300), NOW)
        except LedgerUnwritableError as error:
            errors.append(error)

    with closing(Ledger.of_daemon(tmp_path / "ledger.sqlite", report)) as ledger:
        disk = Disk(ledger)
        waiting = threading.Thread(target=add, args=(ledger,))
        waiting.start()
        assert report.changed.wait(60)
        ledger.give_up()
        waiting.join()
        add(ledger)
        assert len(errors) == 2
        disk.pages = 10_000
        assert ledger.counts(FOLDER, NOW).waiting == 0, "what was not written was not written in part either"


def test_a_ledger_that_is_only_looked_at_waits_for_nothing(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        Disk(ledger)
        with pytest.raises(LedgerUnwritableError):
            ledger.add(calls(300), NOW)


def test_a_damaged_page_is_told_apart_from_other_trouble(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path)) as ledger:
        ledger.add(calls(300), NOW)
    overwrite(path, 4096, os.urandom(path.stat().st_size - 4096))

    with closing(Ledger(path)) as ledger, pytest.raises(LedgerDamagedError, match="damaged"):
        ledger.claim(FOLDER, NOW)


@pytest.mark.parametrize("content", [b"RIFF" * 1000, b"SQLite format 3\0" + b"\xff" * 4096, b"notes"])
def test_what_was_never_a_ledger_is_damaged_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)

    with pytest.raises(LedgerDamagedError):
        Ledger(path)

    assert path.read_bytes() == content


def test_another_programs_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()

    with pytest.raises(LedgerDamagedError, match="another program's"):
        Ledger(path)

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_ledger_says_that_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()

    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


def test_a_file_that_is_set_aside_keeps_all_that_it_had_under_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    files = {"ledger.sqlite": b"main", "ledger.sqlite-wal": b"log", "ledger.sqlite-shm": b"index"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    kept = [set_aside(path)]
    path.write_bytes(b"second")
    kept.append(set_aside(path))

    assert not path.exists()
    assert [each.read_bytes() for each in kept] == [b"main", b"second"]
    assert Path(f"{kept[0]}-wal").read_bytes() == b"log"
    assert Path(f"{kept[0]}-shm").read_bytes() == b"index"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_url_leaves_no_bytes_behind_once_it_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    urls = [f"https://storage.heify.com/{at}?X-Amz-Signature=canary{at:04}" for at in range(20)]
    with closing(Ledger.of_daemon(path, Report())) as ledger:
        ledger.add(calls(20), NOW)
        for at, url in enumerate(urls):
            claim = ledger.claim(FOLDER, NOW)
            assert claim is not None
            ledger.uploading(claim, Ticket(f"t-{at}", url, Ids("c"), "call", 100.0 + at, "boot"))
            if at < 10:
                ledger.uploaded(claim)
                ledger.ended(claim, State.DONE, NOW)
        ledger.forget_urls(115.5, "boot")
        alive = {
            at for at in range(20) if f"canary{at:04}".encode() in path.with_name("ledger.sqlite-wal").read_bytes()
        }
        assert alive >= {16, 17, 18, 19}, "those that live are what a restart goes on with"

    kept = path.read_bytes()

    assert {at for at in range(20) if f"canary{at:04}".encode() in kept} == {16, 17, 18, 19}


def test_who_only_asks_whether_a_ledger_is_in_use_keeps_no_daemon_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.sqlite"
    asking = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(asking, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN))

    with closing(Ledger.of_daemon(path, lambda _: None)):
        pass
    os.close(asking)
