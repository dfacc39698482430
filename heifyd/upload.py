"""The second journey: from the ledger through the upload to its place in `done/` or `failed/`."""

import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Final, Protocol

from heifyd import faults, filing, probe, tree
from heifyd.claimed import SupersededError, VanishedError, absence, open_claimed
from heifyd.faults import Fault, FaultError, Owner
from heifyd.heify import Heify
from heifyd.ledger import Claim, HoldRow, Ledger, LedgerUnwritableError, State
from heifyd.log import Log
from heifyd.pace import Pace
from heifyd.pulse import Beat
from heifyd.sending import Sender, SendFolder, Sent, StoppingError, about_file, about_ticket
from heifyd.turns import Turn, Turns

_LONGEST_WRITER_WAIT_S: Final = 30.0
_SLOWEST_COPY_BYTES_PER_S: Final = 100_000.0
"""A disk to which files are copied slower than this may be taken for a thread that hangs."""


class UploadFolder(SendFolder, Protocol):
    """What this journey needs to know of a watched folder."""

    @property
    def done(self) -> Path: ...  # noqa: D102 (the protocol's members are the configuration's)
    @property
    def failed(self) -> Path: ...  # noqa: D102


class Uploads:
    """What all upload threads share; each thread runs `work`."""

    def __init__(
        self,
        folders: Mapping[str, UploadFolder],
        ledger: Ledger,
        heify: Heify,
        pace: Pace,
        log: Log,
        beat: Beat,
        *,
        retry_for_s: float,
    ) -> None:
        self._folders = folders
        self._beat = beat
        self._turns = Turns(folders, ledger, log, beat)
        self._ledger = ledger
        self._heify = heify
        self._pace = pace
        self._log = log
        self._retry_for_s = retry_for_s
        self._stopping = threading.Event()
        self._line = threading.Lock()
        self._sender = Sender(folders, ledger, heify, pace, self._turns, log, self._stopping)
        self._abandoned = threading.Event()

    def stop(self) -> None:
        """Let no thread take on another recording."""
        self._stopping.set()
        self._ledger.wake()

    def abandon(self) -> None:
        """Leave running uploads where they are, for the next start; this may be called again and again."""
        self._abandoned.set()
        self._heify.cut_off()

    @property
    def held(self) -> Sequence[HoldRow]:
        """What is held; waits for nothing."""
        return self._turns.held

    def leave_out(self, away: Mapping[str, HoldRow]) -> None:
        """Touch none of these folders from now on. Waits for nothing."""
        self._turns.leave_out(away)

    def work(self) -> None:
        """Carry one recording after another until `stop`."""
        try:
            while not self._stopping.is_set() and (turn := self._turns.next() or self._awaited()) is not None:
                self._beat(0.0)
                self._carry(turn)
        except LedgerUnwritableError:
            if not self._stopping.is_set():
                raise
            # What the ledger has of the recording in work is what the next start goes on from.

    def _awaited(self) -> Turn | None:
        """Wait in line for the next recording; None at the end. One at a time is woken, and lets the one behind it in.

        Who comes from carrying one need not stand in line: its thread is awake already.
        """
        self._beat(math.inf)
        with self._line:
            for looks in count():
                if self._stopping.is_set():
                    break
                wakes = self._ledger.wakes
                self._beat(0.0)
                if (turn := self._turns.next()) is not None:
                    return turn
                patience_s = self._turns.patience_s(looks)
                self._beat(patience_s)
                self._ledger.wait(wakes, patience_s)
        return None

    def _carry(self, turn: Turn) -> None:
        """Carry one recording as far as it gets, and see to it that the ledger and the log know."""
        claim, found = turn.claim, turn.claim.identity
        try:
            try:
                self._go_on(turn)
            except FaultError as error:
                if self._abandoned.is_set():
                    self._log.info("upload.left", **about_file(found), detail="it goes on at the next start")
                elif error.fault.owner is Owner.FILE:
                    self._refuse(turn, error.fault)
                else:
                    self._put_back(turn, error.fault)
            except StoppingError:
                self._ledger.put_back(claim, 0.0, attempts=claim.attempts, failing_s=claim.failing_s)
        except SupersededError as superseded:
            detail = str(superseded)
            self._log.warning(superseded.event, **about_file(found), detail=detail, **about_ticket(claim.ticket))
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
            self._file_done(turn, self._sender.send(turn))

    # Filing

    def _file_done(self, turn: Turn, sent: Sent | None = None) -> None:
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
            raise SupersededError("recording.changed", State.SUPERSEDED, detail) from None
        except VanishedError:
            pass  # a person took it: Heify has it all the same
        # The line comes first: cut off between the two, heifyd repeats it at the next start rather than lose it.
        self._log.info(
            "recording.done",
            **about_file(found),
            size_bytes=found.size_bytes,
            duration_s=sent.facts.duration_s if sent else None,
            **about_ticket(sent.ticket if sent else claim.ticket),
            attempts=claim.attempts + 1,
            wait_ms=sent.wait_ms if sent else None,
            url_ms=sent.url_ms if sent else None,
            put_ms=sent.put_ms if sent else None,
            total_ms=max(0, round((time.time() - claim.settled_at) * 1000)),
            filed_at=filed_at,
        )
        self._ledger.ended(claim, State.DONE, time.time(), filed_at=filed_at)

    def _has_writer(self, claim: Claim) -> bool:
        """Tell whether somebody has the recording open for writing; nobody has, where it was moved already."""
        try:
            with tree.opened(open_claimed(claim)) as fd:
                return bool(probe.writers(fd).open)
        except VanishedError:
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
            raise SupersededError("recording.changed", State.SUPERSEDED, str(error)) from None
        try:
            filing.explain(
                filed_at,
                {
                    **about_file(found),
                    **about,
                    "attempts": claim.attempts + 1,
                    "transcription_id": claim.ticket.transcription_id if claim.ticket else None,
                    "failed_at": datetime.now().astimezone().isoformat(timespec="seconds"),
                },
            )
        except OSError as error:
            self._log.warning("filing.unexplained", **about_file(found), detail=f"{filed_at}: {error.strerror}")
        self._log.error("recording.failed", **about_file(found), **about, filed_at=filed_at)
        reason = {"reason": fault.reason, "detail": fault.detail}
        self._ledger.ended(claim, State.FAILED, time.time(), filed_at=filed_at, **reason)

    def _move(self, turn: Turn, target: Path) -> str:
        """Move the file. Raises FaultError for a folder that does not let it, VanishedError, filing.ChangedError."""
        found = turn.claim.identity
        self._beat(found.size_bytes / _SLOWEST_COPY_BYTES_PER_S)
        try:
            filed_at = filing.move(found, target)
        except FileNotFoundError:
            raise absence(turn.claim) from None
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
                **about_file(found),
                reason=fault.reason,
                detail=fault.detail,
                retry_in_s=round(wait_s, 1),
            )
        self._ledger.put_back(claim, now_s + wait_s, attempts=claim.attempts + 1, failing_s=failing_s)


def _jitter() -> float:
    return random.random()  # noqa: S311 (it spreads retries, it hides nothing)
