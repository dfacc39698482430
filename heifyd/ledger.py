"""The durable queue and history: every recording's state, written down before the next step begins."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from heifyd import ledger_lock
from heifyd.faults import Fault
from heifyd.ledger_errors import LedgerDamagedError, LedgerError, LedgerInUseError, LedgerUnwritableError
from heifyd.ledger_file import LedgerFile, set_aside
from heifyd.ledger_history import History
from heifyd.ledger_rows import (
    Added,
    Claim,
    Ended,
    FolderCounts,
    HoldRow,
    State,
    UploadRow,
    claim_of,
    ended_of,
    has_ended,
    holds_table,
    is_active,
    metadata,
    r,
    recordings,
)
from heifyd.ledger_sql import Transaction
from heifyd.pulse import Beat, unwatched
from heifyd.recording import Identity, Ticket

__all__ = [
    "Added",
    "Claim",
    "Ended",
    "FolderCounts",
    "HoldRow",
    "Ledger",
    "LedgerDamagedError",
    "LedgerError",
    "LedgerInUseError",
    "LedgerUnwritableError",
    "State",
    "UploadRow",
    "set_aside",
]

CRASHES: Final = 3
CRASH_WAIT_S: Final = 10.0
"""A recording that was in work each time heifyd ended abruptly may be why: it lets others go first."""


class Ledger:
    """One ledger. Thread-safe. Its methods raise LedgerError.

    `not_before`, and every `now_s` that it is compared with, is a monotonic clock's, of the daemon that runs.
    """

    def __init__(self, path: Path, *, create: bool = True, frozen: bool = False, beat: Beat = unwatched) -> None:
        """Open the ledger at `path`; make it where there is none, unless `create` is False. Raises LedgerError.

        A `frozen` one is only read, also where its disk is full or read-only.
        """
        self.path = path
        self._work = threading.Condition()
        self._wakes = 0
        self._lock_fd = -1
        self._file = LedgerFile(path, metadata, create=create, frozen=frozen, beat=beat)
        self.history = History(self._file)

    @classmethod
    def of_daemon(cls, path: Path, report: Callable[[str | None], None], beat: Beat = unwatched) -> Self:
        """Open the ledger as a daemon's: no other may use it until `close`; what was cut off is to be taken on again.

        Where the file cannot be used for a time, later on, `report` is told why, and None when that is over; the
        methods wait meanwhile, but for `forget_urls` and `prune`. Raises LedgerError.
        """
        lock_fd = ledger_lock.lock(path)
        try:
            ledger = cls(path, beat=beat)
            try:
                ledger._begin_anew(time.monotonic())
                ledger._file.be_patient(report)
            except BaseException:
                ledger.close()
                raise
        except BaseException:
            os.close(lock_fd)
            raise
        ledger._lock_fd = lock_fd
        return ledger

    def _begin_anew(self, now_s: float) -> None:
        again = sa.case((r.attempts >= CRASHES, now_s + CRASH_WAIT_S), else_=0.0)
        cut_off = recordings.update().where(is_active, r.claimed)

        def write(do: Transaction) -> None:
            do.change(recordings.update().where(is_active, r.not_before > 0).values(not_before=0.0))
            do.change(cut_off.values(claimed=False, put_began_at=None, attempts=r.attempts + 1, not_before=again))
            do.change(holds_table.delete())

        self._file.write(write)

    def beat(self, now_s: float) -> None:
        """Leave the daemon's heartbeat of `now_s` (CLOCK_BOOTTIME). Raises OSError."""
        ledger_lock.beat(self._lock_fd, now_s)

    def give_up(self) -> None:
        """Let nobody wait for the file any more; who does gets LedgerUnwritableError."""
        self._file.give_up()

    def close(self) -> None:
        """Close the file and let others in."""
        self._file.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # The way in: intake

    def unsettled(self, found: Sequence[Identity]) -> list[Identity]:
        """Return those identities, all of one folder, that are not active in the ledger already."""
        if not found:
            return []
        statement = sa.select(r.path, r.size_bytes, r.mtime_ns).where(
            r.folder == found[0].folder, r.path.in_([identity.path for identity in found]), is_active
        )
        active = self._file.read(lambda db: {tuple(row) for row in db.execute(statement)})
        return [i for i in found if (i.path, i.size_bytes, i.mtime_ns) not in active]

    def add(self, finished: Sequence[Identity], now: float, *, mount: str = "") -> list[Added]:
        """Queue finished recordings, all of one folder; return what became of each, in the same order.

        `now` is the wall clock's, `mount` the mount point that the folder is on. A recording that was done before is
        queued for filing only (SENT_BEFORE); one that failed or vanished starts again where it stood. An earlier
        content of the same path that still waits is superseded; while a worker has it, or is yet to file it, the answer
        is BUSY, and the recording is to be offered again later.
        """
        if not finished:
            return []
        # A power cut may undo it: the recordings lie in their folder, and the next start finds them.
        outcome = self._file.write(lambda do: [_add(do, identity, now, mount) for identity in finished], synced=False)
        if Added.QUEUED in outcome or Added.SENT_BEFORE in outcome:
            self.wake()
        return outcome

    # The way through: workers

    def wake(self) -> None:
        """Let the workers look again: there may be something to do."""
        with self._work:
            self._wakes += 1
            self._work.notify_all()

    @property
    def wakes(self) -> int:
        """How often `wake` was called: read it before looking for work, and hand it to `wait`."""
        with self._work:
            return self._wakes

    def wait(self, wakes: int, timeout_s: float) -> None:
        """Wait until `wake` is called, or was called since `wakes` was read; at most `timeout_s` seconds."""
        with self._work:
            self._work.wait_for(lambda: self._wakes != wakes, timeout_s)

    def claim(self, folder: str, now_s: float, *, only_to_file: bool = False) -> Claim | None:
        """Take on the folder's oldest recording that is due, or, while it is held, only one that needs but filing."""
        query = _NEXT_TO_FILE if only_to_file else _NEXT

        def write(do: Transaction) -> Claim | None:
            rows = do.rows(query, {"in_folder": folder, "now_s": now_s})
            if not rows:
                return None
            do.change(_update_of(("claimed",)), {"row": rows[0].id, "new_claimed": True})
            return claim_of(rows[0])

        return self._file.write(write, synced=False)  # a power cut gives every claim back

    def next_due(self, folders: Iterable[str], now_s: float) -> float | None:
        """Return the earliest time after `now_s` from which a recording of these folders may be claimed, or None."""
        query = sa.select(sa.func.min(r.not_before)).where(
            r.folder.in_(list(folders)), is_active, r.claimed.is_(sa.false()), r.not_before > now_s
        )
        due: float | None = self._file.read(lambda db: db.execute(query).scalar_one())
        return due

    def uploading(self, claim: Claim, ticket: Ticket) -> None:
        """Write down the URL before a byte is sent to it."""
        self._update(
            claim,
            state=State.UPLOADING,
            transcription_id=ticket.transcription_id,
            upload_url=ticket.url,
            url_good_until=ticket.good_until_s,
            boot_id=ticket.boot_id,
            name=ticket.name,
            configuration_id=ticket.ids.configuration_id,
            evaluator_id=ticket.ids.evaluator_id,
            participant_id=ticket.ids.participant_id,
        )

    def uploaded(self, claim: Claim) -> None:
        """Write down that Heify has the recording, before the file is moved; the URL is forgotten."""
        self._update(claim, state=State.UPLOADED, upload_url=None, not_before=0.0, failing_s=0.0)

    def refused(self, claim: Claim, fault: Fault) -> None:
        """Write down why a recording cannot be uploaded, before the file is moved."""
        self._update(
            claim,
            state=State.REFUSED,
            upload_url=None,
            not_before=0.0,
            failing_s=0.0,
            reason=fault.reason,
            detail=fault.detail,
            advice=fault.advice,
        )

    def ended(
        self,
        claim: Claim,
        state: State,
        now: float,
        *,
        filed_at: str | None = None,
        reason: str | None = None,
        detail: str | None = None,
    ) -> None:
        """End a journey. A power cut may undo that: what was done before is found done, and ended again."""
        self._update(
            claim,
            synced=False,
            state=state,
            ended_at=now,
            claimed=False,
            upload_url=None,
            filed_at=filed_at,
            reason=reason,
            detail=detail,
        )

    def put_back(
        self,
        claim: Claim,
        not_before_s: float,
        *,
        attempts: int,
        failing_s: float = 0.0,
    ) -> None:
        """Give a claim back, to be taken on again from `not_before_s`; its state stays."""
        self._update(
            claim,
            synced=False,
            claimed=False,
            put_began_at=None,
            not_before=not_before_s,
            attempts=attempts,
            failing_s=failing_s,
        )
        self.wake()

    def hold_began(self, folder: str | None) -> None:
        """Forget how long recordings (of one folder, or all) have been failing: what holds them is not their fault."""
        self._update_active(folder, r.failing_s > 0, failing_s=0.0)

    def hold_ended(self, folder: str | None) -> None:
        """Let recordings (of one folder, or all) be claimed at once that were put back while they were held."""
        self._update_active(folder, r.not_before > 0, not_before=0.0)
        self.wake()

    def _update_active(self, folder: str | None, which: sa.ColumnElement[bool], **values: Any) -> None:
        statement = recordings.update().where(is_active, which).values(**values)
        self._execute(statement if folder is None else statement.where(r.folder == folder))

    def _update(self, claim: Claim, *, synced: bool = True, **values: Any) -> None:
        statement = _update_of(tuple(values))
        new = {"row": claim.row, **{f"new_{column}": value for column, value in values.items()}}
        self._file.write(lambda do: do.change(statement, new), synced=synced)

    def _execute(self, statement: sa.Update) -> None:
        self._file.write(lambda do: do.change(statement))

    # Progress, holds, history and counts

    def note_progress(self, claim: Claim, sent_bytes: int, began_at: float) -> bool:
        """Note how much of a recording its PUT, begun at `began_at` (wall clock), has sent; for show alone.

        Where that would take waiting for the file or for another thread, nothing is noted, and the answer is False.
        """
        new = {"row": claim.row, "new_put_began_at": began_at, "new_sent_bytes": sent_bytes}
        return self._file.write_at_once(lambda do: do.change(_update_of(("put_began_at", "sent_bytes")), new))

    def uploads(self) -> list[UploadRow]:
        """Return the uploads that go on and have had progress noted, the largest first."""
        query = (
            sa.select(r.folder, r.path, r.size_bytes, r.sent_bytes, r.put_began_at)
            .where(is_active, r.claimed, r.state == State.UPLOADING, r.put_began_at.is_not(None))
            .order_by(r.size_bytes.desc(), r.id)
        )
        return self._file.read(lambda db: [UploadRow(*row) for row in db.execute(query)])

    def show_holds(self, holds: Sequence[HoldRow]) -> None:
        """Write down the holds in force, for `heifyd status`."""

        def write(do: Transaction) -> None:
            do.change(holds_table.delete())
            for hold in holds:
                do.change(holds_table.insert().values(asdict(hold)))

        self._file.write(write)

    def holds(self) -> list[HoldRow]:
        """Return the holds in force."""
        query = sa.select(holds_table).order_by(holds_table.c.since)
        return self._file.read(lambda db: [HoldRow(*row) for row in db.execute(query)])

    def counts(self, folder: str, since: float) -> FolderCounts:
        """Count a folder's recordings; those done count from `since` (wall clock)."""
        in_folder = r.folder == folder
        active = (
            sa.select(r.claimed, sa.func.count(), sa.func.min(r.settled_at))
            .where(in_folder, is_active)
            .group_by(r.claimed)
        )
        ended = sa.select(sa.func.count()).select_from(recordings).where(in_folder)

        def read(db: Connection) -> FolderCounts:
            by_claim = {claimed: (number, oldest) for claimed, number, oldest in db.execute(active)}
            done = db.execute(ended.where(r.state == State.DONE, r.ended_at >= since)).scalar_one()
            failed = db.execute(ended.where(r.state == State.FAILED, has_ended)).scalar_one()
            oldest = min((at for _, at in by_claim.values()), default=None)
            return FolderCounts(by_claim.get(False, (0,))[0], by_claim.get(True, (0,))[0], done, failed, oldest)

        return self._file.read(read)

    def load(self) -> tuple[int, int]:
        """Count the recordings that wait and those that are in work, of all folders; waits for nothing."""
        query = sa.select(r.claimed, sa.func.count()).where(is_active).group_by(r.claimed)
        number = self._file.try_to_read(lambda db: {row[0]: row[1] for row in db.execute(query)})
        return number.get(False, 0), number.get(True, 0)

    def folders(self) -> list[str]:
        """Return every folder that has recordings in the ledger."""
        return self._file.read(lambda db: list(db.execute(_FOLDERS).scalars()))

    def failed(self, folder: str) -> list[Ended]:
        """Return a folder's failed recordings, the last first."""
        which = (r.folder == folder, r.state == State.FAILED, has_ended)
        query = sa.select(recordings).where(*which).order_by(r.ended_at.desc())
        return self._file.read(lambda db: [ended_of(row) for row in db.execute(query)])

    def brought_back(self, found: Identity) -> None:
        """Note that a failed recording lies in its folder again: it is no longer counted as failed."""
        itself = recordings.update().where(
            r.folder == found.folder,
            r.path == found.path,
            r.size_bytes == found.size_bytes,
            r.mtime_ns == found.mtime_ns,
            r.state == State.FAILED,
        )
        self._execute(itself.values(state=State.VANISHED, filed_at=None))

    def forget_urls(self, now_s: float, boot_id: str) -> None:
        """Forget the upload URLs that no longer live at `now_s` (CLOCK_BOOTTIME) of the boot `boot_id`."""
        spent = (r.url_good_until < now_s) | (r.boot_id != boot_id)
        statement = recordings.update().where(is_active, r.upload_url.is_not(None), spent).values(upload_url=None)
        self._file.try_to_write(lambda do: do.change(statement))

    def prune(self, before: float) -> int:
        """Delete the history that ended before `before` (wall clock), and return how many rows that were."""
        statement = recordings.delete().where(r.ended_at < before)
        return self._file.try_to_write(lambda do: do.change(statement))


# Statements that each recording needs are built once: only then are they compiled once, too.

_NEXT: Final = (
    sa.select(recordings)
    .where(
        r.folder == sa.bindparam("in_folder"),
        is_active,
        r.claimed.is_(sa.false()),
        r.not_before <= sa.bindparam("now_s"),
    )
    .order_by(r.mtime_ns)
    .limit(1)
)
_NEXT_TO_FILE: Final = _NEXT.where((r.state == State.UPLOADED) | (r.state == State.REFUSED))
_AT_PATH: Final = sa.select(recordings).where(r.folder == sa.bindparam("in_folder"), r.path == sa.bindparam("at_path"))
_GIVEN: Final = ("folder", "path", "size_bytes", "mtime_ns", "state", "mount", "settled_at")
_INSERT: Final = recordings.insert().values(
    **{column: sa.bindparam(column, type_=recordings.c[column].type) for column in _GIVEN},
    claimed=False,
    not_before=0.0,
    attempts=0,
    failing_s=0.0,
)


def _each_folder() -> sa.Select[Any]:
    """Go from each folder to the next by an index; DISTINCT would read all of it."""
    known = sa.select(sa.func.min(r.folder, type_=r.folder.type).label("folder")).cte("known", recursive=True)
    following = sa.select(sa.func.min(r.folder)).where(r.folder > known.c.folder).scalar_subquery()
    known = known.union_all(sa.select(following).where(known.c.folder.is_not(None)))
    return sa.select(known.c.folder).where(known.c.folder.is_not(None))


_FOLDERS: Final = _each_folder()


@cache
def _update_of(columns: tuple[str, ...]) -> sa.Update:
    """Return the statement that gives a row new values; its parameters are `row` and, each, `new_` and the column."""
    new = {column: sa.bindparam(f"new_{column}", type_=recordings.c[column].type) for column in columns}
    return recordings.update().where(r.id == sa.bindparam("row")).values(new)


def _add(do: Transaction, identity: Identity, now: float, mount: str) -> Added:
    rows = do.rows(_AT_PATH, {"in_folder": identity.folder, "at_path": identity.path})
    active = next((row for row in rows if row.ended_at is None), None)
    same = next(
        (row for row in rows if (row.size_bytes, row.mtime_ns) == (identity.size_bytes, identity.mtime_ns)), None
    )
    if active is not None and active is same:
        return Added.KNOWN
    if active is not None:
        if active.claimed or active.state == State.UPLOADED:
            return Added.BUSY
        do.change(
            recordings.update().where(r.id == active.id).values(state=State.SUPERSEDED, ended_at=now, upload_url=None)
        )
    if same is None:
        do.change(_INSERT, {**asdict(identity), "state": State.WAITING, "mount": mount, "settled_at": now})
        return Added.QUEUED
    sent = same.state == State.DONE
    state = State.UPLOADED if sent else State.UPLOADING if same.transcription_id else State.WAITING
    do.change(
        recordings.update()
        .where(r.id == same.id)
        .values(
            state=state,
            mount=mount,
            settled_at=now,
            ended_at=None,
            claimed=False,
            put_began_at=None,
            not_before=0.0,
            attempts=0,
            failing_s=0.0,
            filed_at=None,
            reason=None,
            detail=None,
            advice=None,
        )
    )
    return Added.SENT_BEFORE if sent else Added.QUEUED
