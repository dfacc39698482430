"""The ledger's file: opened, kept for one daemon, set aside if it is damaged, waited for while it cannot be written."""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from heifyd.ledger_errors import LedgerDamagedError, LedgerError, LedgerUnwritableError, meaning
from heifyd.ledger_sql import Transaction
from heifyd.pulse import Beat, PatientLock, unwatched

T = TypeVar("T")

APPLICATION_ID: Final = 0x48656966
"""What marks a SQLite file as heifyd's ("Heif", PRAGMA application_id)."""

SCHEMA: Final = 1
_AGAIN_S: Final = 1.0
_BUSY_S: Final = 30.0
_SMALLEST_PAGE_BYTES: Final = 512
_CACHE_KIB: Final = 512
_LOG_PAGES: Final = 4000
"""Pages of 4 KiB after which the log goes into the file. A recording writes to some dozen, and mostly to the same ones
as the one before: the longer the log, the fewer of them are written twice."""


class LedgerFile:
    """A ledger's SQLite file. Thread-safe.

    After `be_patient`, what cannot be read or written is tried again until it can, or until `give_up`.
    """

    def __init__(
        self, path: Path, metadata: sa.MetaData, *, create: bool, frozen: bool = False, beat: Beat = unwatched
    ) -> None:
        """Open the file, with `create` made where there is none, `frozen` on a disk that takes no byte more.

        Raises LedgerError.
        """
        self.path = path
        self._beat = beat
        self._lock = PatientLock(beat)
        self._given_up = threading.Event()
        self._report: Callable[[str | None], None] | None = None
        self._trouble = threading.Lock()
        self._is_troubled = False
        self._writer: sqlite3.Connection | None = None
        self._is_synced = True
        if create:
            _make(path)
        else:
            _find(path)
        is_new = _is_new(path)
        if is_new and not create:  # a daemon that is just starting will lay it out
            raise _none_yet(path)
        self._engine = _engine(partial(_only_to_look if frozen else _connect, path))
        if is_new:
            try:
                self.write(lambda do: _lay_out(do, metadata))
            except LedgerError:
                self.close()
                raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._drop_writer()
        self._engine.dispose()

    def be_patient(self, report: Callable[[str | None], None]) -> None:
        """From now on wait where the file cannot be used; `report` is told why, and None when that is over."""
        self._report = report

    def give_up(self) -> None:
        """Wait for nothing any more: whoever waits, and what cannot be done from now on, gets LedgerUnwritableError."""
        self._given_up.set()

    def read(self, do: Callable[[Connection], T]) -> T:
        """Return what `do` reads in one transaction. Raises LedgerError."""
        return self._patiently(lambda: self._read(do))

    def write(self, do: Callable[[Transaction], T], *, synced: bool = True) -> T:
        """Return what `do` returns, when all that it wrote is on disk. Raises LedgerError; then nothing is written.

        Without `synced` a power cut may undo it, but never what came before it and not what comes after: what is synced
        next takes it along (sqlite.org/pragma, "synchronous").
        """
        result = self._patiently(lambda: self._write(do, synced=synced))
        self._trouble_is_over()
        return result

    def try_to_read(self, do: Callable[[Connection], T]) -> T:
        """Do as `read` does, but wait for nothing. Raises LedgerUnwritableError, or another LedgerError."""
        return self._read(do)

    def try_to_write(self, do: Callable[[Transaction], T]) -> T:
        """Do as `write` does, but wait for nothing. Raises LedgerUnwritableError, or another LedgerError."""
        return self._write(do, synced=True)

    def write_at_once(self, do: Callable[[Transaction], object]) -> bool:
        """Do as an unsynced `write` does, and tell whether that could be done without waiting for anybody or anything.

        Whatever is wrong with the file, who writes what matters is told of it.
        """
        if not self._lock.acquire_at_once():
            return False
        try:
            driver = self._writer_for(synced=False)
            driver.execute("PRAGMA busy_timeout = 0")
            try:
                _transact(driver, do)
            finally:
                driver.execute(f"PRAGMA busy_timeout = {_BUSY_S * 1000:.0f}")
        except sqlite3.Error:
            self._drop_writer()
            return False
        finally:
            self._lock.release()
        return True

    def _read(self, do: Callable[[Connection], T]) -> T:
        try:
            with self._engine.begin() as db:
                return do(db)
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            raise meaning(self.path, error) from error

    def _write(self, do: Callable[[Transaction], T], *, synced: bool) -> T:
        """Write by the one connection that writes, one thread at a time: SQLite itself waits by sleeping.

        Another connection would have to read anew what this one has in memory.
        """
        with self._lock:
            try:
                return _transact(self._writer_for(synced=synced), do)
            except sqlite3.Error as error:
                self._drop_writer()
                raise meaning(self.path, error) from error

    def _writer_for(self, *, synced: bool) -> sqlite3.Connection:
        if self._writer is None:
            self._writer = _connect(self.path)
            self._is_synced = True
        if synced != self._is_synced:
            self._writer.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            self._is_synced = synced
        return self._writer

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _patiently(self, do: Callable[[], T]) -> T:
        while True:
            self._beat(_AGAIN_S)
            try:
                return do()
            except LedgerUnwritableError as error:
                if self._report is None or self._given_up.is_set():
                    raise
                with self._trouble:
                    if not self._is_troubled:
                        self._is_troubled = True
                        self._report(str(error))
                if self._given_up.wait(_AGAIN_S):
                    raise

    def _trouble_is_over(self) -> None:
        if self._is_troubled:
            with self._trouble:
                if self._is_troubled and self._report is not None:
                    self._is_troubled = False
                    self._report(None)


def _transact(driver: sqlite3.Connection, do: Callable[[Transaction], T]) -> T:
    """Return what `do` returns, when it is committed; what it raises undoes all of it. Raises sqlite3.Error, too."""
    driver.execute("BEGIN IMMEDIATE")
    try:
        result = do(Transaction(driver))
    except BaseException:
        if driver.in_transaction:  # a full disk has ended it already (sqlite.org/lang_transaction)
            driver.execute("ROLLBACK")
        raise
    driver.execute("COMMIT")
    return result


def set_aside(path: Path) -> Path:
    """Give a damaged file a name of its own beside its place, and return it. Raises LedgerError.

    Its log goes first: SQLite would take a log that lies beside a new file for the new file's (sqlite.org/walformat).
    """
    kept = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    try:
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{kept}{suffix}")
        _sync(path.parent)
    except OSError as error:
        raise meaning(path, error) from None
    return kept


def _find(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        raise _none_yet(path) from None
    except OSError as error:
        raise meaning(path, error) from None


def _none_yet(path: Path) -> LedgerError:
    return LedgerError(f"{path}: there is no ledger yet; `heifyd run` makes it")


def _make(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        else:
            _sync(path.parent)
    except OSError as error:
        raise meaning(path, error) from None


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_new(path: Path) -> bool:
    """Tell whether the file is still without tables; only looks, as it may be another program's. Raises LedgerError."""
    if 0 < path.stat().st_size < _SMALLEST_PAGE_BYTES:  # which SQLite itself would take for an empty one
        raise LedgerDamagedError(f"{path}: it is no ledger, nor any other database")
    try:
        with closing(_only_to_look(path)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        raise meaning(path, error) from error
    if application == 0 and version == 0 and tables == 0:
        return True
    if application != APPLICATION_ID:
        raise LedgerDamagedError(f"{path}: it is another program's database, not a ledger of heifyd")
    if version != SCHEMA:
        raise LedgerError(
            f"{path}: written by another version of heifyd (schema {version}, this one is {SCHEMA}); "
            "run that version, or give `ledger:` another path"
        )
    return False


def _only_to_look(path: Path) -> sqlite3.Connection:
    """Open a file so that nothing in or beside it changes.

    Who may write and is the last to close takes in the file's log, or drops it; who reads a log makes an index of it.
    Without a log the file alone says all (sqlite.org/uri).
    """
    has_log = os.path.exists(f"{path}-wal") and os.path.getsize(f"{path}-wal") > 0
    how = "mode=ro" if has_log else "immutable=1"
    uri = f"{path.absolute().as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


def _lay_out(do: Transaction, metadata: sa.MetaData) -> None:
    do.create(metadata)
    do.run(f"PRAGMA application_id = {APPLICATION_ID}")
    do.run(f"PRAGMA user_version = {SCHEMA}")


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file to read and to write. Transactions begin where they are begun, not where Python guesses."""
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    connection.execute("PRAGMA secure_delete = ON")  # a URL that was forgotten leaves no bytes behind
    return connection


def _engine(connect: Callable[[], sqlite3.Connection]) -> Engine:
    """Return what reads: each transaction sees the file as it was when that began."""
    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.QueuePool, hide_parameters=True)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine
