"""From a claimed recording to its object in Heify: the URL, the PUT, and whether an earlier one has arrived."""

import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

from anyascii import anyascii

from heifyd import faults, preflight, probe, tree
from heifyd.answers import Arrival
from heifyd.claimed import SupersededError, must_still_be, open_claimed
from heifyd.faults import FaultError
from heifyd.heify import Heify, TruncatedError, UrlExpiredError, boot_clock_s, boot_id
from heifyd.ledger import Ledger, State
from heifyd.log import Log
from heifyd.pace import Pace
from heifyd.preflight import Facts
from heifyd.progress import Progress
from heifyd.recording import Identity, Ids, Stamp, Ticket
from heifyd.turns import Turn, Turns

MOST_NAME_CHARS: Final = 200
_URLS_IN_A_ROW: Final = 3
_LAST_TIME_S: Final = 253_000_000_000.0
_NOT_NAMES: Final = re.compile(r"[^\x20-\x7e]+")


class SendFolder(Protocol):
    """What sending needs to know of a watched folder."""

    def ids_for(self, relative_path: str) -> Ids: ...  # noqa: D102 (the protocol's members are the configuration's)
    def name_for(self, relative_path: str, modified: datetime) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Sent:
    """What an upload came to: under which ticket, what the recording is, and how long each step took (milliseconds).

    `wait_ms` is from settled to taken on.
    """

    ticket: Ticket
    facts: Facts
    wait_ms: int
    url_ms: int
    put_ms: int


class StoppingError(Exception):
    """The daemon is stopping, and nothing has been begun that would be lost."""


class Sender:
    """Sends recordings; all upload threads share it."""

    def __init__(
        self,
        folders: Mapping[str, SendFolder],
        ledger: Ledger,
        heify: Heify,
        pace: Pace,
        turns: Turns,
        log: Log,
        stopping: threading.Event,
    ) -> None:
        self._folders = folders
        self._ledger = ledger
        self._heify = heify
        self._pace = pace
        self._turns = turns
        self._log = log
        self._stopping = stopping

    def send(self, turn: Turn) -> Sent:
        """Bring a recording to Heify, and return once the ledger knows that it is there.

        Raises SupersededError where the file is not the recording any more, StoppingError, or FaultError.
        """
        try:
            return self._send_open(turn)
        except OSError as error:  # the disk, or the share it is on, has gone from under the open file
            detail = f"{turn.claim.identity.path} cannot be read: {error.strerror}"
            raise FaultError(faults.of_folder("unreadable", detail)) from None

    def _send_open(self, turn: Turn) -> Sent:
        claim, found = turn.claim, turn.claim.identity
        wait_ms = _ms(time.time() - claim.settled_at)
        with tree.opened(open_claimed(claim)) as fd:
            if probe.writers(fd).open:
                detail = "it is open for writing again; it settles anew"
                raise SupersededError("recording.reopened", State.SUPERSEDED, detail)
            must_still_be(fd, found)
            facts = preflight.examine(fd, found.path, found.size_bytes)
            stamp = Stamp.of(os.fstat(fd))
            progress = Progress(self._ledger, claim)
            ticket, url_ms, put_ms = self._send(turn, claim.ticket, fd, facts, progress)
            must_still_be(fd, found, ticket)
            while (after := Stamp.of(os.fstat(fd))) != stamp:
                # Written to with its time set back, or only renamed: the same URL makes it whole either way. Once that
                # has expired, what arrived there cannot be trusted, and Heify is not asked for it.
                stamp = after
                alive = ticket if ticket.is_good(boot_clock_s(), boot_id()) else None
                ticket, _, put_ms = self._send(turn, alive, fd, facts, progress)
                must_still_be(fd, found, ticket)
            self._turns.stored(turn)
        self._ledger.uploaded(claim)
        return Sent(ticket, facts, wait_ms, url_ms, put_ms)

    def _send(
        self, turn: Turn, ticket: Ticket | None, fd: int, facts: Facts, progress: Progress
    ) -> tuple[Ticket, int, int]:
        """Get the recording to Heify: to the URL it has, if that lives, else to a new one; return what each took."""
        found = turn.claim.identity
        may_have_arrived, url_ms = True, 0
        for attempt in range(1, _URLS_IN_A_ROW + 1):
            if ticket is not None and not ticket.is_good(boot_clock_s(), boot_id()):
                if may_have_arrived and self._has_arrived(found, ticket):
                    return ticket, url_ms, 0
                ticket = None
            if ticket is None:
                began_s = time.monotonic()
                ticket, may_have_arrived = self._new_ticket(turn), False
                url_ms = _ms(time.monotonic() - began_s)
            self._log.info(
                "upload.started",
                **about_file(found),
                size_bytes=found.size_bytes,
                content_type=facts.content_type,
                **about_ticket(ticket),
            )
            began_s = time.monotonic()
            progress.begin()
            try:
                self._heify.put(ticket, fd, found.size_bytes, facts.content_type, sent=progress.sent)
            except TruncatedError as error:
                raise SupersededError("recording.changed", State.SUPERSEDED, f"{error}; it settles anew") from None
            except UrlExpiredError:
                if attempt == _URLS_IN_A_ROW:
                    raise
                ticket = replace(ticket, url="")
            else:
                break
        assert ticket is not None  # noqa: S101 (narrows the type: the loop ends by a ticket that was used, or raises)
        return ticket, url_ms, _ms(time.monotonic() - began_s)

    def _new_ticket(self, turn: Turn) -> Ticket:
        """Ask for an upload URL and write it down before it is used."""
        found = turn.claim.identity
        folder = self._folders[found.folder]
        self._take_turn()
        name = ascii_name(folder.name_for(found.path, _local_time(found.mtime_ns)))
        ticket = self._heify.request_upload(folder.ids_for(found.path), name)
        self._ledger.uploading(turn.claim, ticket)
        self._turns.url_given(turn)
        return ticket

    def _has_arrived(self, found: Identity, ticket: Ticket) -> bool:
        """Ask Heify whether an upload that was cut off, and whose URL is spent, has arrived."""
        self._take_turn()
        status = self._heify.transcription(ticket.transcription_id)
        if status.arrival is Arrival.UNCLEAR:
            detail = f"Heify says {status.said!r}, which does not tell whether it arrived; it is sent under a new id"
            self._log.warning(
                "upload.repeated", **about_file(found), transcription_id=ticket.transcription_id, detail=detail
            )
        return status.arrival is Arrival.ARRIVED

    def _take_turn(self) -> None:
        if not self._pace.wait(self._stopping):
            raise StoppingError


def ascii_name(name: str) -> str:
    """Turn a label into readable ASCII on one line, never empty: Heify strips every other character."""
    printable = name.encode("utf-8", "replace").decode("utf-8")
    return " ".join(_NOT_NAMES.sub(" ", anyascii(printable)).split())[:MOST_NAME_CHARS].strip() or "recording"


def _local_time(mtime_ns: int) -> datetime:
    """Return a file's time; of one that the calendar does not have (a file may claim any), the nearest."""
    return datetime.fromtimestamp(min(max(mtime_ns / 1e9, 0.0), _LAST_TIME_S)).astimezone()


def about_file(found: Identity) -> dict[str, str]:
    """Return what the log calls a recording."""
    return {"file": found.path, "folder": found.folder}


def about_ticket(ticket: Ticket | None) -> dict[str, str | None]:
    """Return the ids that a recording is sent under, as the log has them."""
    if ticket is None:
        return {}
    return {
        "transcription_id": ticket.transcription_id,
        "configuration_id": ticket.ids.configuration_id,
        "evaluator_id": ticket.ids.evaluator_id,
        "participant_id": ticket.ids.participant_id,
    }


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
