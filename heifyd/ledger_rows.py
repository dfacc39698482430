"""What the ledger holds: its tables, and their rows as values."""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from heifyd.faults import Fault, Owner
from heifyd.recording import Identity, Ids, Ticket


class State(StrEnum):
    """Where a recording is on its way. The first four are active, the others have ended.

    REFUSED is one that cannot be uploaded and is yet to be moved to its failed directory, as UPLOADED is one that Heify
    has and that is yet to be moved to done.
    """

    WAITING = "waiting"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    REFUSED = "refused"
    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    VANISHED = "vanished"


class Added(StrEnum):
    """What became of a finished recording that was offered to the ledger."""

    QUEUED = "queued"
    SENT_BEFORE = "sent_before"
    KNOWN = "known"
    BUSY = "busy"


class FileName(sa.TypeDecorator[str]):
    """A path as the bytes it is on disk: names need not be UTF-8."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> bytes | None:  # noqa: ARG002 (SQLAlchemy's)
        """Turn a name into what is stored."""
        return None if value is None else os.fsencode(value)

    def process_result_value(self, value: bytes | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002 (likewise)
        """Turn what is stored into a name."""
        return None if value is None else os.fsdecode(value)


metadata = sa.MetaData()

recordings = sa.Table(
    "recordings",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("folder", FileName, nullable=False),
    sa.Column("path", FileName, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("mount", FileName, nullable=False),
    sa.Column("settled_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("claimed", sa.Boolean, nullable=False),
    sa.Column("not_before", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failing_s", sa.Float, nullable=False),
    sa.Column("configuration_id", sa.String(36)),
    sa.Column("evaluator_id", sa.String(36)),
    sa.Column("participant_id", sa.String(36)),
    sa.Column("transcription_id", sa.String(64)),
    sa.Column("name", sa.Text),
    sa.Column("upload_url", sa.Text),
    sa.Column("url_good_until", sa.Float),
    sa.Column("boot_id", sa.String(36)),
    sa.Column("put_began_at", sa.Float),
    sa.Column("sent_bytes", sa.BigInteger),
    sa.Column("filed_at", FileName),
    sa.Column("reason", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("advice", sa.Text),
)
r = recordings.c
is_active = r.ended_at.is_(None)
has_ended = r.ended_at.is_not(None)
"""What a query must ask for, too, that is to be answered by the index `ended`."""

sa.Index("one_row_an_identity", r.folder, r.path, r.size_bytes, r.mtime_ns, unique=True)
sa.Index("one_active_a_path", r.folder, r.path, unique=True, sqlite_where=is_active, postgresql_where=is_active)
sa.Index("next_claim", r.folder, r.claimed, r.mtime_ns, sqlite_where=is_active, postgresql_where=is_active)
sa.Index(
    "ended",
    r.folder,
    r.state,
    r.ended_at,
    sqlite_where=has_ended,
    postgresql_where=has_ended,
)

holds_table = sa.Table(
    "holds",
    metadata,
    sa.Column("scope", FileName, primary_key=True),
    sa.Column("owner", sa.String(12), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("advice", sa.Text, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A recording that one worker has taken on, as the ledger has it.

    `mount` is the mount point that its folder was on when it settled, `settled_at` when that was (wall-clock seconds),
    `failing_s` for how many seconds its own failures have gone on, `refusal` why it is REFUSED.
    """

    row: int
    identity: Identity
    state: State
    mount: str
    settled_at: float
    attempts: int
    failing_s: float
    ticket: Ticket | None
    refusal: Fault | None


@dataclass(frozen=True, slots=True)
class HoldRow:
    """A hold as `heifyd status` shows it; scope "" is everything, else a folder; `since` None where nobody noted it."""

    scope: str
    owner: str
    reason: str
    detail: str
    advice: str
    since: float | None


@dataclass(frozen=True, slots=True)
class UploadRow:
    """An upload that goes on; `began_at` is when its PUT began (wall-clock seconds)."""

    folder: str
    path: str
    size_bytes: int
    sent_bytes: int
    began_at: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A recording whose journey has ended; `filed_at` is where it lies now."""

    identity: Identity
    state: State
    ended_at: float
    transcription_id: str | None
    filed_at: str | None
    reason: str | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class FolderCounts:
    """What the ledger holds of one folder; `oldest_settled_at` is of the recordings not yet done."""

    waiting: int
    uploading: int
    done_since: int
    failed: int
    oldest_settled_at: float | None


def identity_of(row: Any) -> Identity:
    """Read a row of `recordings` as which recording it is."""
    return Identity(row.folder, row.path, row.size_bytes, row.mtime_ns)


def claim_of(row: Any) -> Claim:
    """Read a row of `recordings` as a claim."""
    ticket = None
    if row.transcription_id:
        ids = Ids(row.configuration_id, row.evaluator_id, row.participant_id)
        ticket = Ticket(row.transcription_id, row.upload_url or "", ids, row.name, row.url_good_until, row.boot_id)
    state = State(row.state)
    refusal = Fault(Owner.FILE, row.reason, row.detail, row.advice) if state is State.REFUSED else None
    return Claim(
        row.id,
        identity_of(row),
        state,
        row.mount,
        row.settled_at,
        row.attempts,
        row.failing_s,
        ticket,
        refusal,
    )


def ended_of(row: Any) -> Ended:
    """Read a row of `recordings` whose journey has ended."""
    return Ended(
        identity_of(row), State(row.state), row.ended_at, row.transcription_id, row.filed_at, row.reason, row.detail
    )
