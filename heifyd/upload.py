"""The second journey: from the ledger through the upload to its place in `done/` or `failed/`."""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from anyascii import anyascii

from heifyd import faults, filing, preflight, probe, tree
from heifyd.faults import Fault, FaultError, Owner
from heifyd.heify import Arrival, Heify, TruncatedError, UrlExpiredError, boot_clock_s, boot_id
from heifyd.holds import Hold, Holds
from heifyd.ledger import Claim, HoldRow, Ledger, State
from heifyd.log import Log
from heifyd.pace import Pace
from heifyd.preflight import Facts
from heifyd.recording import Identity, Ids, Stamp, Ticket

MOST_NAME_CHARS: Final = 200
_IDLE_S: Final = 300.0
_LONGEST_WRITER_WAIT_S: Final = 30.0
_EXPIRED_IN_A_ROW: Final = 3
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


class _SupersededError(Exception):
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
        self._order = list(folders)
        self._ledger = ledger
        self._heify = heify
        self._pace = pace
        self._log = log
        self._retry_for_s = retry_for_s
        self._holds = Holds()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._abandoned = threading.Event()

    def stop(self) -> None:
        """Let no thread take on another recording."""
        self._stopping.set()
        self._ledger.wake()

    def abandon(self) -> None:
        """Leave running uploads where they are, for the next start."""
        self._abandoned.set()
        self._heify.cut_off()

    def work(self) -> None:
        """Carry one recording after another until `stop`."""
        wakes = self._ledger.wakes
        while not self._stopping.is_set():
            taken = self._take()
            if taken is None:
                self._ledger.wait(wakes, self._patience_s())
            else:
                self._carry(*taken)
            wakes = self._ledger.wakes

    def _take(self) -> tuple[Claim, bool] | None:
        """Claim the next recording, folders in turn; say whether it is the probe of a hold."""
        with self._lock:
            for at, folder in enumerate(self._order):
                claim, is_probe = self._take_from(folder)
                if claim is not None:
                    self._order = self._order[at + 1 :] + self._order[: at + 1]
                    return claim, is_probe
        return None

    def _take_from(self, folder: str) -> tuple[Claim | None, bool]:
        now = time.time()
        held = self._holds.over(folder)
        admitted = self._holds.admits(folder, time.monotonic())
        claim = None
        if held and (admitted or all(hold.fault.owner is not Owner.FOLDER for hold in held)):
            claim = self._ledger.claim(folder, now, only_uploaded=True)  # filing needs nothing of Heify
        if claim is None and admitted:
            claim = self._ledger.claim(folder, now)
        if claim is None or not admitted:
            return claim, False
        return claim, self._holds.admitted(folder)

    def _patience_s(self) -> float:
        """Return how many seconds there is nothing to do, unless the ledger is given something before that."""
        now = time.time()
        with self._lock:
            probe_s = self._holds.next_probe_s() - time.monotonic()
        due = self._ledger.next_due(self._order, now)
        due_s = _IDLE_S if due is None else due - now
        return max(0.0, min(_IDLE_S, due_s, probe_s if probe_s > 0 else _IDLE_S))

    def _carry(self, claim: Claim, is_probe: bool) -> None:  # noqa: FBT001 (a pair with the claim)
        """Carry one recording as far as it gets, and see to it that the ledger and the holds know."""
        found = claim.identity
        try:
            if claim.state is State.UPLOADED:
                self._file_done(claim)
            else:
                self._send_and_file(claim, is_probe=is_probe)
            self._note(lambda: self._holds.inconclusive(found.folder, probe=is_probe))
        except FaultError as error:
            if self._abandoned.is_set():
                self._log.info(
                    "upload.left", file=found.path, folder=found.folder, detail="it goes on at the next start"
                )
            elif error.fault.owner is Owner.FILE:
                self._note(lambda: self._holds.inconclusive(found.folder, probe=is_probe))
                self._file_failed(claim, error.fault)
            else:
                self._put_back(claim, error.fault, is_probe=is_probe)
        except _StoppingError:
            self._ledger.put_back(claim, 0.0, attempts=claim.attempts, failing_since=claim.failing_since)
        except _SupersededError as superseded:
            self._note(lambda: self._holds.inconclusive(found.folder, probe=is_probe))
            self._ledger.ended(claim, superseded.state, time.time(), reason=superseded.event, detail=str(superseded))
            self._log.warning(
                superseded.event, file=found.path, folder=found.folder, detail=str(superseded), **_ids(claim.ticket)
            )

    # Sending

    def _send_and_file(self, claim: Claim, *, is_probe: bool) -> None:
        found = claim.identity
        began_s = time.time()
        with tree.opened(self._open(found)) as fd:
            if probe.writers(fd).open:
                raise _SupersededError(
                    "recording.reopened", State.SUPERSEDED, "it is open for writing again; it settles anew"
                )
            _must_still_be(fd, found)
            facts = preflight.examine(fd, found.path, found.size_bytes)
            sent = self._send(claim, fd, facts)
            self._note(lambda: self._holds.succeeded(found.folder, probe=is_probe))
            _must_still_be(fd, found, sent.ticket)
        self._ledger.uploaded(claim)
        self._file_done(claim, sent, facts, wait_ms=_ms(began_s - claim.settled_at))

    def _open(self, found: Identity) -> int:
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
                raise _VanishedError("recording.vanished", State.VANISHED, "it is not there any more") from None
            except tree.NotARegularFileError as error:
                raise _SupersededError("recording.refused", State.VANISHED, str(error)) from None
            except OSError as error:
                raise FaultError(
                    faults.of_folder("unreadable", f"{found.path} cannot be opened: {error.strerror}")
                ) from None

    def _send(self, claim: Claim, fd: int, facts: Facts) -> _Sent:
        """Get the recording to Heify: to the URL it has, if that lives, else to a new one."""
        ticket, url_ms, expired = claim.ticket, 0, 0
        while True:
            if ticket is not None and not ticket.is_good(boot_clock_s(), boot_id()):
                if ticket is claim.ticket and self._has_arrived(claim, ticket):
                    return _Sent(ticket, url_ms, 0)
                ticket = None
            if ticket is None:
                began_s = time.monotonic()
                ticket = self._new_ticket(claim)
                url_ms = _ms(time.monotonic() - began_s)
            found = claim.identity
            self._log.info(
                "upload.started",
                file=found.path,
                folder=found.folder,
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
                expired += 1
                if expired >= _EXPIRED_IN_A_ROW:
                    raise
                spent = replace(ticket, url="")
                claim = replace(claim, ticket=spent) if ticket is claim.ticket else claim
                ticket = spent
            else:
                return _Sent(ticket, url_ms, _ms(time.monotonic() - began_s))

    def _new_ticket(self, claim: Claim) -> Ticket:
        """Ask for an upload URL and write it down before it is used."""
        found = claim.identity
        folder = self._folders[found.folder]
        self._take_turn()
        name = ascii_name(folder.name_for(found.path, datetime.fromtimestamp(found.mtime_ns / 1e9).astimezone()))
        ticket = self._heify.request_upload(folder.ids_for(found.path), name)
        self._ledger.uploading(claim, ticket)
        self._note(lambda: self._holds.url_given(found.folder))
        return ticket

    def _has_arrived(self, claim: Claim, ticket: Ticket) -> bool:
        """Ask Heify whether an upload that was cut off, and whose URL is spent, has arrived."""
        self._take_turn()
        status = self._heify.transcription(ticket.transcription_id)
        if status.arrival is Arrival.UNCLEAR:
            self._log.warning(
                "upload.repeated",
                file=claim.identity.path,
                folder=claim.identity.folder,
                transcription_id=ticket.transcription_id,
                detail=f"Heify says {status.said!r}, which does not tell whether it arrived; it is sent under a new id",
            )
        return status.arrival is Arrival.ARRIVED

    def _take_turn(self) -> None:
        if not self._pace.wait(self._stopping):
            raise _StoppingError

    # Filing

    def _file_done(
        self, claim: Claim, sent: _Sent | None = None, facts: Facts | None = None, *, wait_ms: int | None = None
    ) -> None:
        """Move an uploaded recording to `done/`, but not from under a writer that has opened it again."""
        found = claim.identity
        try:
            with tree.opened(self._open(found)) as fd:
                has_writer = probe.writers(fd).open
            if has_writer:
                wait_s = faults.backoff_s(claim.attempts + 1, random.random(), most_s=_LONGEST_WRITER_WAIT_S)  # noqa: S311 (jitter)
                self._ledger.put_back(
                    claim, time.time() + wait_s, attempts=claim.attempts + 1, reason="recording.reopened"
                )
                return
            filed_at = self._move(claim, self._folders[found.folder].done)
        except filing.ChangedError as error:
            raise _SupersededError(
                "recording.changed", State.SUPERSEDED, f"{error}; what was sent is its earlier content"
            ) from None
        except (FileNotFoundError, _VanishedError):
            filed_at = None  # it was moved before heifyd was cut off, or a person took it: Heify has it either way
        self._ledger.ended(claim, State.DONE, time.time(), filed_at=filed_at)
        self._log.info(
            "recording.done",
            file=found.path,
            folder=found.folder,
            size_bytes=found.size_bytes,
            duration_s=None if facts is None or facts.duration_s is None else round(facts.duration_s, 3),
            **_ids(sent.ticket if sent else claim.ticket),
            attempts=claim.attempts + 1,
            wait_ms=wait_ms,
            url_ms=sent.url_ms if sent else None,
            put_ms=sent.put_ms if sent else None,
            filed_at=filed_at,
        )

    def _file_failed(self, claim: Claim, fault: Fault) -> None:
        """Move a recording that cannot be uploaded to `failed/`, with the reason beside it."""
        found = claim.identity
        try:
            filed_at = self._move(claim, self._folders[found.folder].failed)
            filing.explain(
                filed_at,
                {
                    "file": found.path,
                    "folder": found.folder,
                    "reason": fault.reason,
                    "detail": fault.detail,
                    "what_to_do": fault.advice,
                    "attempts": claim.attempts + 1,
                    "transcription_id": claim.ticket.transcription_id if claim.ticket else None,
                    "failed_at": datetime.now().astimezone().isoformat(timespec="seconds"),
                },
            )
        except (FaultError, OSError) as error:
            trouble = (
                error.fault
                if isinstance(error, FaultError)
                else faults.of_folder("filing", f"{found.path}: {error.strerror}")
            )
            self._put_back(claim, trouble, is_probe=False)
            return
        except (filing.ChangedError, tree.NotARegularFileError) as error:
            self._ledger.ended(claim, State.SUPERSEDED, time.time(), reason="recording.changed", detail=str(error))
            self._log.warning("recording.changed", file=found.path, folder=found.folder, detail=str(error))
            return
        self._ledger.ended(
            claim, State.FAILED, time.time(), filed_at=filed_at, reason=fault.reason, detail=fault.detail
        )
        self._log.error(
            "recording.failed",
            file=found.path,
            folder=found.folder,
            reason=fault.reason,
            detail=fault.detail,
            what_to_do=fault.advice,
            filed_at=filed_at,
        )

    def _move(self, claim: Claim, target: Path) -> str:
        """Move the claimed file. Raises FaultError for a folder that does not let it, else what filing.move raises."""
        found = claim.identity
        try:
            filed_at = filing.move(found, target)
        except FileNotFoundError:
            if Path(found.folder).is_dir():
                raise
            raise FaultError(faults.of_folder("folder_missing", f"{found.folder} is not there")) from None
        except OSError as error:
            raise FaultError(
                faults.of_folder("filing", f"{found.path} cannot be moved to {target}: {error.strerror}")
            ) from None
        self._note(lambda: self._holds.filed(found.folder))
        return filed_at

    # Failing

    def _put_back(self, claim: Claim, fault: Fault, *, is_probe: bool) -> None:
        """Give a claim back after a failure that is not the file's; begin a hold where that is called for."""
        found = claim.identity
        if fault.reason == "rate_limited":
            self._pace.slow_down(fault.retry_after_s)
        with self._lock:
            started = self._holds.failed(found.folder, fault, time.monotonic(), time.time(), probe=is_probe)
            held = self._holds.over(found.folder)
            wait_s = max((1.25 * hold.interval_s for hold in held), default=0.0)
        if started is not None:
            self._hold_started(started)
        now = time.time()
        failing_since = None if held else claim.failing_since or now
        if failing_since is not None and now - failing_since > self._retry_for_s:
            self._file_failed(
                claim,
                replace(
                    fault,
                    owner=Owner.FILE,
                    reason="retries_ended",
                    detail=f"tried {claim.attempts + 1} times, last: {fault.detail}",
                ),
            )
            return
        if not held:
            wait_s = max(faults.backoff_s(claim.attempts + 1, random.random()), fault.retry_after_s or 0.0)  # noqa: S311 (jitter)
            self._log.warning(
                "upload.retrying",
                file=found.path,
                folder=found.folder,
                reason=fault.reason,
                detail=fault.detail,
                retry_in_s=round(wait_s, 1),
            )
        self._ledger.put_back(
            claim, now + wait_s, attempts=claim.attempts + 1, failing_since=failing_since, reason=fault.reason
        )

    def _note(self, change: Callable[[], Sequence[Hold] | None]) -> None:
        """Let the holds take something in, and tell of those that it ends."""
        with self._lock:
            ended = change() or ()
        for hold in ended:
            self._ledger.hold_ended(hold.scope or None)
            lasted_s = round(time.monotonic() - hold.started_s, 1)
            self._log.info(
                "hold.ended",
                scope=hold.scope or "everything",
                owner=hold.fault.owner,
                reason=hold.fault.reason,
                lasted_s=lasted_s,
            )
        if ended:
            self._show_holds()

    def _hold_started(self, hold: Hold) -> None:
        fault = hold.fault
        self._ledger.hold_began(hold.scope or None)
        self._show_holds()
        self._log.error(
            "hold.started",
            scope=hold.scope or "everything",
            owner=fault.owner,
            reason=fault.reason,
            detail=fault.detail,
            what_to_do=fault.advice,
        )

    def _show_holds(self) -> None:
        with self._lock:
            rows = [
                HoldRow(h.scope, h.fault.owner, h.fault.reason, h.fault.detail, h.fault.advice, h.since_s)
                for h in self._holds.all()
            ]
        self._ledger.show_holds(rows)


def ascii_name(name: str) -> str:
    """Turn a label into readable ASCII on one line, never empty: Heify strips every other character."""
    printable = name.encode("utf-8", "replace").decode("utf-8")
    return " ".join(_NOT_NAMES.sub(" ", anyascii(printable)).split())[:MOST_NAME_CHARS].strip() or "recording"


def _must_still_be(fd: int, found: Identity, ticket: Ticket | None = None) -> None:
    if Stamp.of(os.fstat(fd)).identity(found.folder, found.path) != found:
        sent = f"; an earlier content of it is in Heify as {ticket.transcription_id}" if ticket else ""
        raise _SupersededError(
            "recording.changed", State.SUPERSEDED, f"it was written to after it had settled; it settles anew{sent}"
        )


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
