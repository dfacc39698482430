"""The second journey: from the ledger through the upload to its place in `done/` or `failed/`."""

import os
import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from anyascii import anyascii

from heifyd import faults, filing, mounts, preflight, probe, tree
from heifyd.answers import Arrival
from heifyd.errors import HeifydError
from heifyd.faults import Fault, FaultError, Owner
from heifyd.heify import Heify, TruncatedError, UrlExpiredError, boot_clock_s, boot_id
from heifyd.ledger import Claim, Ledger, LedgerUnwritableError, State
from heifyd.log import Log
from heifyd.pace import Pace
from heifyd.preflight import Facts
from heifyd.recording import Identity, Ids, Stamp, Ticket
from heifyd.turns import Turn, Turns

MOST_NAME_CHARS: Final = 200
_LONGEST_WRITER_WAIT_S: Final = 30.0
_URLS_IN_A_ROW: Final = 3
_LAST_TIME_S: Final = 253_000_000_000.0
_NOT_NAMES: Final = re.compile(r"[^\x20-\x7e]+")


class UploadFolder(Protocol):
    """What this journey needs to know of a watched folder."""

    @property
    def done(self) -> Path: ...  # noqa: D102 (the protocol's members are the configuration's)
    @property
    def failed(self) -> Path: ...  # noqa: D102
    def ids_for(self, relative_path: str) -> Ids: ...  # noqa: D102
    def name_for(self, relative_path: str, modified: datetime) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class _Sent:
    """What an upload came to: under which ticket, and how long its two steps took (milliseconds)."""

    ticket: Ticket
    url_ms: int
    put_ms: int


class _SupersededError(HeifydError):
    """The file is no longer the recording that was claimed; the way in has it again."""

    def __init__(self, event: str, state: State, detail: str) -> None:
        super().__init__(detail)
        self.event = event
        self.state = state


class _VanishedError(_SupersededError):
    """Nothing has the recording's name any more."""


class _StoppingError(Exception):
    """The daemon is stopping, and nothing has been begun that would be lost."""


class Uploads:
    """What all upload threads share; each thread runs `work`."""

    def __init__(
        self,
        folders: Mapping[str, UploadFolder],
        ledger: Ledger,
        heify: Heify,
        pace: Pace,
        log: Log,
        *,
        retry_for_s: float,
    ) -> None:
        self._folders = folders
        self._turns = Turns(folders, ledger, log)
        self._ledger = ledger
        self._heify = heify
        self._pace = pace
        self._log = log
        self._retry_for_s = retry_for_s
        self._stopping = threading.Event()
        self._abandoned = threading.Event()

    def stop(self) -> None:
        """Let no thread take on another recording."""
        self._stopping.set()
        self._ledger.wake()

    def abandon(self) -> None:
        """Leave running uploads where they are, for the next start; this may be called again and again."""
        self._abandoned.set()
        self._heify.cut_off()

    def work(self) -> None:
        """Carry one recording after another until `stop`."""
        try:
            wakes = self._ledger.wakes
            while not self._stopping.is_set():
                turn = self._turns.next()
                if turn is None:
                    self._ledger.wait(wakes, self._turns.patience_s())
                else:
                    self._carry(turn)
                wakes = self._ledger.wakes
        except LedgerUnwritableError:
            if not self._stopping.is_set():
                raise
            # What the ledger has of the recording in work is what the next start goes on from.

    def _carry(self, turn: Turn) -> None:
        """Carry one recording as far as it gets, and see to it that the ledger and the log know."""
        claim, found = turn.claim, turn.claim.identity
        try:
            try:
                self._go_on(turn)
            except FaultError as error:
                if self._abandoned.is_set():
                    self._log.info("upload.left", **_file(found), detail="it goes on at the next start")
                elif error.fault.owner is Owner.FILE:
                    self._refuse(turn, error.fault)
                else:
                    self._put_back(turn, error.fault)
            except _StoppingError:
                self._ledger.put_back(claim, 0.0, attempts=claim.attempts, failing_s=claim.failing_s)
        except _SupersededError as superseded:
            detail = str(superseded)
            self._log.warning(superseded.event, **_file(found), detail=detail, **_ids(claim.ticket))
            self._ledger.ended(claim, superseded.state, time.time(), reason=superseded.event, detail=detail)
        finally:
            self._turns.over(turn)

    def _go_on(self, turn: Turn) -> None:
        """Go on where the ledger says that the recording is."""
        if turn.claim.state is State.UPLOADED:
            self._file_done(turn)
        elif turn.claim.refusal is not None:
            self._file_failed(turn, turn.claim.refusal)
        else:
            self._send_and_file(turn)

    # Sending

    def _send_and_file(self, turn: Turn) -> None:
        claim, found = turn.claim, turn.claim.identity
        wait_ms = _ms(time.time() - claim.settled_at)
        with tree.opened(self._open(claim)) as fd:
            if probe.writers(fd).open:
                detail = "it is open for writing again; it settles anew"
                raise _SupersededError("recording.reopened", State.SUPERSEDED, detail)
            _must_still_be(fd, found)
            facts = preflight.examine(fd, found.path, found.size_bytes)
            sent = self._send(turn, fd, facts)
            self._turns.stored(turn)
            _must_still_be(fd, found, sent.ticket)
        self._ledger.uploaded(claim)
        self._file_done(turn, sent, facts, wait_ms=wait_ms)

    def _open(self, claim: Claim) -> int:
        found = claim.identity
        try:
            root = tree.open_root(found.folder)
        except OSError as error:
            raise FaultError(
                faults.of_folder("folder_missing", f"{found.folder} cannot be opened: {error.strerror}")
            ) from None
        with tree.opened(root):
            try:
                return tree.open_recording(root, found.path)
            except FileNotFoundError:
                raise _absence(claim) from None
            except tree.NotARegularFileError as error:
                raise _SupersededError("recording.refused", State.VANISHED, str(error)) from None
            except PermissionError as error:
                detail = f"it cannot be opened: {error.strerror}"
                raise _SupersededError("recording.refused", State.VANISHED, detail) from None
            except OSError as error:
                detail = f"{found.path} cannot be opened: {error.strerror}"
                raise FaultError(faults.of_folder("unreadable", detail)) from None

    def _send(self, turn: Turn, fd: int, facts: Facts) -> _Sent:
        """Get the recording to Heify: to the URL it has, if that lives, else to a new one."""
        found = turn.claim.identity
        ticket, may_have_arrived, url_ms = turn.claim.ticket, True, 0
        for attempt in range(1, _URLS_IN_A_ROW + 1):
            if ticket is not None and not ticket.is_good(boot_clock_s(), boot_id()):
                if may_have_arrived and self._has_arrived(found, ticket):
                    return _Sent(ticket, url_ms, 0)
                ticket = None
            if ticket is None:
                began_s = time.monotonic()
                ticket, may_have_arrived = self._new_ticket(turn), False
                url_ms = _ms(time.monotonic() - began_s)
            self._log.info(
                "upload.started",
                **_file(found),
                size_bytes=found.size_bytes,
                content_type=facts.content_type,
                **_ids(ticket),
            )
            began_s = time.monotonic()
            try:
                self._heify.put(ticket, fd, found.size_bytes, facts.content_type)
            except TruncatedError as error:
                raise _SupersededError("recording.changed", State.SUPERSEDED, f"{error}; it settles anew") from None
            except UrlExpiredError:
                if attempt == _URLS_IN_A_ROW:
                    raise
                ticket = replace(ticket, url="")
            else:
                break
        assert ticket is not None  # noqa: S101 (narrows the type: the loop ends by a ticket that was used, or raises)
        return _Sent(ticket, url_ms, _ms(time.monotonic() - began_s))

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
                "upload.repeated", **_file(found), transcription_id=ticket.transcription_id, detail=detail
            )
        return status.arrival is Arrival.ARRIVED

    def _take_turn(self) -> None:
        if not self._pace.wait(self._stopping):
            raise _StoppingError

    # Filing

    def _file_done(
        self, turn: Turn, sent: _Sent | None = None, facts: Facts | None = None, *, wait_ms: int | None = None
    ) -> None:
        """Move an uploaded recording to `done/`, but not from under a writer that has opened it again."""
        claim, found = turn.claim, turn.claim.identity
        filed_at = None
        try:
            if self._has_writer(claim):
                wait_s = faults.backoff_s(claim.attempts + 1, _jitter(), most_s=_LONGEST_WRITER_WAIT_S)
                self._ledger.put_back(claim, time.monotonic() + wait_s, attempts=claim.attempts + 1)
                return
            filed_at = self._move(turn, self._folders[found.folder].done)
        except filing.ChangedError as error:
            detail = f"{error}; what was sent is its earlier content"
            raise _SupersededError("recording.changed", State.SUPERSEDED, detail) from None
        except _VanishedError:
            pass  # a person took it: Heify has it all the same
        # The line comes first: cut off between the two, heifyd repeats it at the next start rather than lose it.
        self._log.info(
            "recording.done",
            **_file(found),
            size_bytes=found.size_bytes,
            duration_s=None if facts is None or facts.duration_s is None else round(facts.duration_s, 3),
            **_ids(sent.ticket if sent else claim.ticket),
            attempts=claim.attempts + 1,
            wait_ms=wait_ms,
            url_ms=sent.url_ms if sent else None,
            put_ms=sent.put_ms if sent else None,
            filed_at=filed_at,
        )
        self._ledger.ended(claim, State.DONE, time.time(), filed_at=filed_at)

    def _has_writer(self, claim: Claim) -> bool:
        """Tell whether somebody has the recording open for writing; nobody has, where it was moved already."""
        try:
            with tree.opened(self._open(claim)) as fd:
                return bool(probe.writers(fd).open)
        except _VanishedError:
            return False

    def _refuse(self, turn: Turn, fault: Fault) -> None:
        """Give a recording up, which `fault` says why, and move it to `failed/`."""
        self._ledger.refused(turn.claim, fault)
        try:
            self._file_failed(turn, fault)
        except FaultError as error:
            self._put_back(turn, error.fault)

    def _file_failed(self, turn: Turn, fault: Fault) -> None:
        """Move a recording that cannot be uploaded to `failed/`, with the reason beside it."""
        claim, found = turn.claim, turn.claim.identity
        about = {"reason": fault.reason, "detail": fault.detail, "what_to_do": fault.advice}
        try:
            filed_at = self._move(turn, self._folders[found.folder].failed)
        except filing.ChangedError as error:
            raise _SupersededError("recording.changed", State.SUPERSEDED, str(error)) from None
        try:
            filing.explain(
                filed_at,
                {
                    **_file(found),
                    **about,
                    "attempts": claim.attempts + 1,
                    "transcription_id": claim.ticket.transcription_id if claim.ticket else None,
                    "failed_at": datetime.now().astimezone().isoformat(timespec="seconds"),
                },
            )
        except OSError as error:
            self._log.warning("filing.unexplained", **_file(found), detail=f"{filed_at}: {error.strerror}")
        self._log.error("recording.failed", **_file(found), **about, filed_at=filed_at)
        reason = {"reason": fault.reason, "detail": fault.detail}
        self._ledger.ended(claim, State.FAILED, time.time(), filed_at=filed_at, **reason)

    def _move(self, turn: Turn, target: Path) -> str:
        """Move the file. Raises FaultError for a folder that does not let it, _VanishedError, filing.ChangedError."""
        found = turn.claim.identity
        try:
            filed_at = filing.move(found, target)
        except FileNotFoundError:
            raise _absence(turn.claim) from None
        except tree.NotARegularFileError as error:
            raise filing.ChangedError(str(error)) from None
        except OSError as error:
            detail = f"{found.path} cannot be moved to {target}: {error.strerror}"
            raise FaultError(faults.of_folder("filing", detail)) from None
        self._turns.filed(turn)
        return filed_at

    # Failing

    def _put_back(self, turn: Turn, fault: Fault) -> None:
        """Give a claim back after a failure that is not the file's; its own retries may end with it."""
        claim, found = turn.claim, turn.claim.identity
        if fault.reason == "rate_limited":
            self._pace.slow_down(fault.retry_after_s)
        now_s = time.monotonic()
        wait_s = self._turns.failed(turn, fault)
        failing_s = 0.0
        if wait_s is None:
            # Counted from what it took and what it waited, so that no change of the date ends it.
            failing_s = claim.failing_s + now_s - turn.began_s
            if failing_s > self._retry_for_s:
                detail = f"tried {claim.attempts + 1} times, last: {fault.detail}"
                self._refuse(turn, replace(fault, owner=Owner.FILE, reason="retries_ended", detail=detail))
                return
            wait_s = max(faults.backoff_s(claim.attempts + 1, _jitter()), fault.retry_after_s or 0.0)
            failing_s += wait_s
            self._log.warning(
                "upload.retrying",
                **_file(found),
                reason=fault.reason,
                detail=fault.detail,
                retry_in_s=round(wait_s, 1),
            )
        self._ledger.put_back(claim, now_s + wait_s, attempts=claim.attempts + 1, failing_s=failing_s)


def ascii_name(name: str) -> str:
    """Turn a label into readable ASCII on one line, never empty: Heify strips every other character."""
    printable = name.encode("utf-8", "replace").decode("utf-8")
    return " ".join(_NOT_NAMES.sub(" ", anyascii(printable)).split())[:MOST_NAME_CHARS].strip() or "recording"


def _local_time(mtime_ns: int) -> datetime:
    """Return a file's time; of one that the calendar does not have (a file may claim any), the nearest."""
    return datetime.fromtimestamp(min(max(mtime_ns / 1e9, 0.0), _LAST_TIME_S)).astimezone()


def _absence(claim: Claim) -> HeifydError:
    """Tell what it means that a recording is not in its folder: it is gone, or the whole folder is."""
    folder = claim.identity.folder
    if not Path(folder).is_dir():
        return FaultError(faults.of_folder("folder_missing", f"{folder} is not there"))
    mount = mounts.mount_of(os.path.realpath(folder), mounts.own_mounts()).point
    if claim.mount not in ("", mount):
        return FaultError(faults.of_folder("folder_missing", f"what was mounted at {claim.mount} is not"))
    return _VanishedError("recording.vanished", State.VANISHED, "it is not there any more")


def _must_still_be(fd: int, found: Identity, ticket: Ticket | None = None) -> None:
    if Stamp.of(os.fstat(fd)).identity(found.folder, found.path) != found:
        sent = f"; an earlier content of it is in Heify as {ticket.transcription_id}" if ticket else ""
        raise _SupersededError(
            "recording.changed", State.SUPERSEDED, f"it was written to after it had settled; it settles anew{sent}"
        )


def _file(found: Identity) -> dict[str, str]:
    return {"file": found.path, "folder": found.folder}


def _jitter() -> float:
    return random.random()  # noqa: S311 (it spreads retries, it hides nothing)


def _ids(ticket: Ticket | None) -> dict[str, str | None]:
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
