"""What the ledger remembers of recordings whose journey has ended, for who looks at many of them at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from heifyd.ledger_file import LedgerFile
from heifyd.ledger_rows import State, has_ended, r, recordings

HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Hour:
    """How many recordings were done and failed in the hour from `began_at` (wall clock; a multiple of `HOUR_S`)."""

    began_at: int
    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A recording that lies in a failed directory, and why."""

    folder: str
    path: str
    ended_at: float
    filed_at: str | None
    reason: str | None
    detail: str | None
    advice: str | None


class History:
    """The ended recordings of a ledger. Its methods raise LedgerError.

    They are given the folders to look at because the index `ended` begins with the folder: so no more is read of it
    than is told of.
    """

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def by_hour(self, folders: Sequence[str], since: int, until: int) -> list[Hour]:
        """Count what ended from `since` until before `until`, both full hours, hour by hour; hours of nothing too."""
        hour = sa.cast(r.ended_at / HOUR_S, sa.Integer)
        query = (
            sa.select(hour, r.state, sa.func.count())
            .where(
                r.folder.in_(folders),
                r.state.in_((State.DONE, State.FAILED)),
                r.ended_at >= since,
                r.ended_at < until,
            )
            .group_by(hour, r.state)
        )
        found = self._file.read(lambda db: {(at, state): count for at, state, count in db.execute(query)})
        return [
            Hour(at * HOUR_S, found.get((at, State.DONE), 0), found.get((at, State.FAILED), 0))
            for at in range(since // HOUR_S, until // HOUR_S)
        ]

    def last_done(self, folders: Sequence[str]) -> float | None:
        """Return when a recording was done last (wall clock), None where none was."""
        which = (r.folder == sa.bindparam("in_folder"), r.state == State.DONE, has_ended)
        query = sa.select(sa.func.max(r.ended_at)).where(*which)
        found = self._file.read(lambda db: [db.execute(query, {"in_folder": each}).scalar_one() for each in folders])
        return max((at for at in found if at is not None), default=None)

    def last_failures(self, folders: Sequence[str], most: int) -> list[Failure]:
        """Return the recordings that failed last, the latest first."""
        last = (
            sa.select(r.id)
            .where(r.folder.in_(folders), r.state == State.FAILED, has_ended)
            .order_by(r.ended_at.desc())
            .limit(most)
        )
        query = (
            sa.select(r.folder, r.path, r.ended_at, r.filed_at, r.reason, r.detail, r.advice)
            .select_from(recordings)
            .where(r.id.in_(last))
            .order_by(r.ended_at.desc())
        )
        return self._file.read(lambda db: [Failure(*row) for row in db.execute(query)])
