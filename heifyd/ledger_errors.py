"""What may be wrong with a ledger, and what an error of the system or of SQLite says of it."""

import errno
import sqlite3
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from heifyd.errors import HeifydError

_PRIMARY: Final = 0xFF
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


def meaning(path: Path, error: Exception) -> LedgerError:
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
