"""The durable queue and history: every recording's state, written down before the next step begins."""

import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from heifyd.errors import HeifydError
from heifyd.ledger_rows import (
    Added,
    Claim,
    Ended,
    FolderCounts,
    HoldRow,
    State,
    claim_of,
    ended_of,
    holds_table,
    is_active,
    metadata,
    r,
    recordings,
)
from heifyd.recording import Identity, Ticket

__all__ = [
    "Added",
    "Claim",
    "Ended",
    "FolderCounts",
    "HoldRow",
    "Ledger",
    "LedgerError",
    "LedgerInUseError",
    "State",
]

SCHEMA: Final = 1
CRASHES: Final = 3
CRASH_WAIT_S: Final = 10.0
"""A recording that was in work each time heifyd ended abruptly may be why: it lets others go first."""

FAR_S: Final = 3600.0
"""No wait that heifyd sets is longer, so a later `not_before` comes from a clock that was moved, and is void."""


class LedgerError(HeifydError):
    """The ledger cannot be used."""


class LedgerInUseError(LedgerError):
    """Another heifyd is using this ledger."""


class Ledger:
    """One ledger file. Thread-safe; a daemon also calls `lock`, which keeps other daemons out of it."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the ledger at `path`; make it where there is none, unless `create` is False. Raises LedgerError."""
        self.path = path
        self._lock = threading.Lock()
        self._work = threading.Condition()
        self._wakes = 0
        self._lock_fd = -1
        self._engine = _engine(path)
        if not create and not path.exists():
            raise LedgerError(f"{path}: there is no ledger yet; `heifyd run` makes it")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._prepare()
        except (OSError, LedgerError, sa.exc.DatabaseError) as error:
            self.close()
            if isinstance(error, LedgerError):
                raise
            cause = error.orig if isinstance(error, sa.exc.DatabaseError) else error
            raise LedgerError(
                f"{path}: the ledger cannot be opened ({cause}); give `ledger:` a path heifyd can write to"
            ) from None

    def lock(self) -> None:
        """Keep every other daemon out of this ledger until `close`. Raises LedgerInUseError."""
        fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LedgerInUseError(
                f"{self.path}: another heifyd is using this ledger; stop it, or give this one its own `ledger:`"
            ) from None
        self._lock_fd = fd
        now = time.time()
        again = sa.case((r.attempts >= CRASHES, now + CRASH_WAIT_S), else_=0.0)
        with self._begin() as db:
            db.execute(recordings.update().where(is_active, r.not_before > 0).values(not_before=0.0))
            cut_off = recordings.update().where(is_active, r.claimed)
            db.execute(cut_off.values(claimed=False, attempts=r.attempts + 1, not_before=again))
            db.execute(holds_table.delete())

    def is_in_use(self) -> bool:
        """Tell whether a daemon has this ledger locked."""
        with suppress(FileNotFoundError):
            fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(fd)
        return False

    def close(self) -> None:
        """Close the file and let others in."""
        self._engine.dispose()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _prepare(self) -> None:
        with self._begin() as db:
            version = db.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version == 0:
                metadata.create_all(db)
                db.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
            elif version != SCHEMA:
                raise LedgerError(
                    f"{self.path}: written by another version of heifyd (schema {version}, this one is {SCHEMA})"
                )

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        """Begin a transaction that writes, one at a time in this process: SQLite itself waits by sleeping."""
        with self._lock, self._engine.execution_options(writes=True).begin() as db:
            yield db

    # The way in: intake

    def unsettled(self, found: Sequence[Identity]) -> list[Identity]:
        """Return those identities, all of one folder, that are not active in the ledger already."""
        if not found:
            return []
        statement = sa.select(r.path, r.size_bytes, r.mtime_ns).where(
            r.folder == found[0].folder, r.path.in_([identity.path for identity in found]), is_active
        )
        with self._engine.connect() as db:
            active = {tuple(row) for row in db.execute(statement)}
        return [i for i in found if (i.path, i.size_bytes, i.mtime_ns) not in active]

    def add(self, finished: Sequence[Identity], now: float) -> list[Added]:
        """Queue finished recordings, all of one folder; return what became of each, in the same order.

        A recording that was done before is queued for filing only (SENT_BEFORE); one that failed or vanished starts
        again where it stood. An earlier content of the same path that still waits is superseded; while a worker has it
        the answer is BUSY, and the recording is to be offered again later.
        """
        if not finished:
            return []
        with self._begin() as db:
            outcome = [_add(db, identity, now) for identity in finished]
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

    def claim(self, folder: str, now: float, *, only_uploaded: bool = False) -> Claim | None:
        """Take on the folder's oldest recording that is due, or, while it is held, only one that needs but filing."""
        due = (r.not_before <= now) | (r.not_before > now + FAR_S)
        query = sa.select(recordings).where(r.folder == folder, is_active, r.claimed.is_(sa.false()), due)
        if only_uploaded:
            query = query.where(r.state == State.UPLOADED)
        with self._begin() as db:
            row = db.execute(query.order_by(r.mtime_ns).limit(1)).one_or_none()
            if row is None:
                return None
            db.execute(recordings.update().where(r.id == row.id).values(claimed=True))
        return claim_of(row)

    def next_due(self, folders: Iterable[str], now: float) -> float | None:
        """Return the earliest time (wall clock) from which a recording of these folders may be claimed, or None."""
        query = sa.select(sa.func.min(r.not_before)).where(
            r.folder.in_(list(folders)), is_active, r.claimed.is_(sa.false()), r.not_before > now
        )
        with self._engine.connect() as db:
            due: float | None = db.execute(query).scalar_one()
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
        self._update(claim, state=State.UPLOADED, upload_url=None, not_before=0.0, failing_since=None)

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
        """End a journey."""
        self._update(
            claim,
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
        not_before: float,
        *,
        attempts: int,
        failing_since: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Give a claim back, to be taken on again from `not_before` (wall clock); its state stays."""
        self._update(
            claim, claimed=False, not_before=not_before, attempts=attempts, failing_since=failing_since, reason=reason
        )
        self.wake()

    def hold_began(self, folder: str | None) -> None:
        """Forget how long recordings (of one folder, or all) have been failing: what holds them is not their fault."""
        self._update_active(folder, r.failing_since.is_not(None), failing_since=None)

    def hold_ended(self, folder: str | None) -> None:
        """Let recordings (of one folder, or all) be claimed at once that were put back while they were held."""
        self._update_active(folder, r.not_before > 0, not_before=0.0)
        self.wake()

    def _update_active(self, folder: str | None, which: sa.ColumnElement[bool], **values: Any) -> None:
        statement = recordings.update().where(is_active, which).values(**values)
        with self._begin() as db:
            db.execute(statement if folder is None else statement.where(r.folder == folder))

    def _update(self, claim: Claim, **values: Any) -> None:
        with self._begin() as db:
            db.execute(recordings.update().where(r.id == claim.row).values(**values))

    # Holds, history and counts

    def show_holds(self, holds: Sequence[HoldRow]) -> None:
        """Write down the holds in force, for `heifyd status`."""
        with self._begin() as db:
            db.execute(holds_table.delete())
            for hold in holds:
                db.execute(
                    holds_table.insert().values(
                        scope=hold.scope,
                        owner=hold.owner,
                        reason=hold.reason,
                        detail=hold.detail,
                        advice=hold.advice,
                        since=hold.since,
                    )
                )

    def holds(self) -> list[HoldRow]:
        """Return the holds in force."""
        with self._engine.connect() as db:
            return [HoldRow(*row) for row in db.execute(sa.select(holds_table).order_by(holds_table.c.since))]

    def counts(self, folder: str, since: float) -> FolderCounts:
        """Count a folder's recordings; those done count from `since` (wall clock)."""
        in_folder = r.folder == folder
        active = (
            sa.select(r.claimed, sa.func.count(), sa.func.min(r.settled_at))
            .where(in_folder, is_active)
            .group_by(r.claimed)
        )
        ended = sa.select(sa.func.count()).select_from(recordings).where(in_folder)
        with self._engine.connect() as db:
            by_claim = {claimed: (number, oldest) for claimed, number, oldest in db.execute(active)}
            done = db.execute(ended.where(r.state == State.DONE, r.ended_at >= since)).scalar_one()
            failed = db.execute(ended.where(r.state == State.FAILED)).scalar_one()
        oldest = min((at for _, at in by_claim.values()), default=None)
        return FolderCounts(by_claim.get(False, (0,))[0], by_claim.get(True, (0,))[0], done, failed, oldest)

    def folders(self) -> list[str]:
        """Return every folder that has recordings in the ledger."""
        with self._engine.connect() as db:
            return list(db.execute(sa.select(r.folder).distinct().order_by(r.folder)).scalars())

    def failed(self, folder: str) -> list[Ended]:
        """Return a folder's failed recordings, the last first."""
        query = sa.select(recordings).where(r.folder == folder, r.state == State.FAILED).order_by(r.ended_at.desc())
        with self._engine.connect() as db:
            return [ended_of(row) for row in db.execute(query)]

    def brought_back(self, found: Identity) -> None:
        """Note that a failed recording lies in its folder again: it is no longer counted as failed."""
        with self._begin() as db:
            db.execute(
                recordings.update()
                .where(
                    r.folder == found.folder,
                    r.path == found.path,
                    r.size_bytes == found.size_bytes,
                    r.mtime_ns == found.mtime_ns,
                )
                .where(r.state == State.FAILED)
                .values(state=State.VANISHED, filed_at=None)
            )

    def prune(self, before: float) -> int:
        """Delete the history that ended before `before` (wall clock), and return how many rows that were."""
        with self._begin() as db:
            return int(db.execute(recordings.delete().where(r.ended_at < before)).rowcount)


def _engine(path: Path) -> Engine:
    engine = sa.create_engine(sa.URL.create("sqlite", database=os.fspath(path)), connect_args={"timeout": 30.0})

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # so that transactions begin where SQLAlchemy begins them, see below
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


def _add(db: Connection, identity: Identity, now: float) -> Added:
    rows = db.execute(sa.select(recordings).where(r.folder == identity.folder, r.path == identity.path)).all()
    active = next((row for row in rows if row.ended_at is None), None)
    same = next(
        (row for row in rows if (row.size_bytes, row.mtime_ns) == (identity.size_bytes, identity.mtime_ns)), None
    )
    if active is not None and active is same:
        return Added.KNOWN
    if active is not None:
        if active.claimed:
            return Added.BUSY
        db.execute(
            recordings.update().where(r.id == active.id).values(state=State.SUPERSEDED, ended_at=now, upload_url=None)
        )
    if same is None:
        db.execute(
            recordings.insert().values(
                folder=identity.folder,
                path=identity.path,
                size_bytes=identity.size_bytes,
                mtime_ns=identity.mtime_ns,
                state=State.WAITING,
                settled_at=now,
            )
        )
        return Added.QUEUED
    sent = same.state == State.DONE
    state = State.UPLOADED if sent else State.UPLOADING if same.transcription_id else State.WAITING
    db.execute(
        recordings.update()
        .where(r.id == same.id)
        .values(
            state=state,
            settled_at=now,
            ended_at=None,
            claimed=False,
            not_before=0.0,
            attempts=0,
            failing_since=None,
            filed_at=None,
            reason=None,
            detail=None,
        )
    )
    return Added.SENT_BEFORE if sent else Added.QUEUED
