"""The ledger's file: opened, kept for one daemon, set aside if it is damaged, waited for while it cannot be written."""

import errno
import fcntl
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from heifyd.errors import HeifydError
from heifyd.ledger_sql import Transaction
from heifyd.pulse import Beat, PatientLock, unwatched

T = TypeVar("T")

APPLICATION_ID: Final = 0x48656966
"""What marks a SQLite file as heifyd's ("Heif", PRAGMA application_id)."""

SCHEMA: Final = 1
_AGAIN_S: Final = 1.0
_BUSY_S: Final = 30.0
_ASKING_S: Final = 0.5
"""Who only asks whether a ledger is in use has its lock for a moment; a daemon that has it keeps it."""

_PRIMARY: Final = 0xFF
_SMALLEST_PAGE_BYTES: Final = 512
_CACHE_KIB: Final = 512
_PASSING: Final = frozenset(
    (
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY),
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM),
    )
)
"""What SQLite answers for the file's surroundings, until those are in order again (sqlite.org/rescode)."""

_DAMAGE: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
_PASSING_ERRNOS: Final = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
)


class LedgerError(HeifydError):
    """The ledger cannot be used."""


class LedgerInUseError(LedgerError):
    """Another heifyd is using this ledger."""


class LedgerUnwritableError(LedgerError):
    """The ledger cannot be read or written at present, as where its disk is full."""


class LedgerDamagedError(LedgerError):
    """The ledger's file is damaged, or was never a ledger."""


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
            raise _meaning(self.path, error) from error

    def _write(self, do: Callable[[Transaction], T], *, synced: bool) -> T:
        """Write by the one connection that writes, one thread at a time: SQLite itself waits by sleeping.

        Another connection would have to read anew what this one has in memory.
        """
        with self._lock:
            try:
                return _transact(self._writer_for(synced=synced), do)
            except sqlite3.Error as error:
                self._drop_writer()
                raise _meaning(self.path, error) from error

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


def lock(path: Path) -> int:
    """Keep every other daemon out of the ledger at `path` until the returned descriptor is closed.

    Raises LedgerInUseError, or another LedgerError.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _meaning(path, error) from None
    until_s = time.monotonic() + _ASKING_S
    while _is_locked(fd):
        if time.monotonic() > until_s:
            os.close(fd)
            raise LedgerInUseError(
                f"{path}: another heifyd is using this ledger; stop it, or give this one its own `ledger:`"
            )
        time.sleep(_ASKING_S / 10)
    return fd


# A daemon's heartbeat is a lock, too, of one byte of its lock file: that of the second in which it was last well. So it
# takes no disk, which may be full, read-only or asleep, and ends with the daemon.

_LOCKED_BYTES: Final = struct.Struct("hhqqi0q")
"""struct flock of fcntl(2): type, whence, start, length, process."""


def beat(lock_fd: int, now_s: float) -> None:
    """Leave the heartbeat of `now_s` (seconds, CLOCK_BOOTTIME), instead of earlier ones. Raises OSError."""
    second = int(now_s)
    for what, start, length in ((fcntl.F_WRLCK, second, 1), (fcntl.F_UNLCK, 0, second)):
        if length:
            fcntl.fcntl(lock_fd, fcntl.F_OFD_SETLK, _LOCKED_BYTES.pack(what, os.SEEK_SET, start, length, 0))


def last_beat_s(path: Path) -> int | None:
    """Return the second of the daemon's heartbeat (CLOCK_BOOTTIME), None where there is none. Raises LedgerError."""
    asked = _LOCKED_BYTES.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    answer = _of_lock_file(path, lambda fd: fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    found, _, start, _, _ = _LOCKED_BYTES.unpack(answer or asked)
    return start if answer and found != fcntl.F_UNLCK else None


def is_in_use(path: Path) -> bool:
    """Tell whether a daemon has the ledger at `path` locked. Raises LedgerError."""
    return bool(_of_lock_file(path, _is_locked))


def _of_lock_file(path: Path, ask: Callable[[int], T]) -> T | None:
    """Return what `ask` finds out of a ledger's lock file, None where there is none."""
    try:
        fd = os.open(f"{path}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _meaning(path, error) from None
    try:
        return ask(fd)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Lock a lock file, and tell whether another process has it locked instead."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


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
        raise _meaning(path, error) from None
    return kept


def _find(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        raise LedgerError(f"{path}: there is no ledger yet; `heifyd run` makes it") from None
    except OSError as error:
        raise _meaning(path, error) from None


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
        raise _meaning(path, error) from None


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
        raise _meaning(path, error) from error
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
    connection.execute("PRAGMA secure_delete = ON")  # a URL that was forgotten leaves no bytes behind
    return connection


def _engine(connect: Callable[[], sqlite3.Connection]) -> Engine:
    """Return what reads: each transaction sees the file as it was when that began."""
    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.QueuePool, hide_parameters=True)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _meaning(path: Path, error: Exception) -> LedgerError:
    """Turn an error of the system or of SQLite into the ledger's own, which says what to do."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    if isinstance(cause, OSError):
        passes, damaged, said = cause.errno in _PASSING_ERRNOS, False, str(cause.strerror)
    else:
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        passes = code & _PRIMARY in _PASSING and code != sqlite3.SQLITE_READONLY_DBMOVED  # which lasts until a restart
        damaged, said = code & _PRIMARY in _DAMAGE, str(cause)
    if damaged:
        return LedgerDamagedError(f"{path}: the ledger is damaged ({said})")
    if passes:
        return LedgerUnwritableError(f"{path}: the ledger cannot be used at present ({said})")
    return LedgerError(f"{path}: the ledger cannot be used ({said}); give `ledger:` a path that heifyd can write to")
