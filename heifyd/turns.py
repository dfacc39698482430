"""Whose turn it is: the next recording to carry, folders in turn, but for what is held."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from heifyd.faults import Fault, Owner
from heifyd.holds import Hold, Holds
from heifyd.ledger import Claim, HoldRow, Ledger
from heifyd.log import Log
from heifyd.pulse import Beat, PatientLock, unwatched

_IDLE_S: Final = 300.0
STAGGER_S: Final = 0.01
"""A second thread helps only where the first waits for the network or the disk. Where recordings are carried faster
than this, threads of one interpreter only stand in each other's way."""

_MOST_DOUBLINGS: Final = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """One recording to carry; `is_probe` where it is to find out whether a hold is over.

    `began_s` is when it was taken on (monotonic).
    """

    claim: Claim
    is_probe: bool
    began_s: float

    @property
    def folder(self) -> str:
        """The folder that the recording is in."""
        return self.claim.identity.folder


class Turns:
    """Hands out recordings to the upload threads, and keeps the holds: in force, in the ledger and in the log."""

    def __init__(
        self,
        folders: Iterable[str],
        ledger: Ledger,
        log: Log,
        beat: Beat = unwatched,
        *,
        stagger_s: float = STAGGER_S,
    ) -> None:
        """`stagger_s` is how long a recording is carried before another one is handed out beside it."""
        self._stagger_s = stagger_s
        self._order = list(folders)
        self._ledger = ledger
        self._log = log
        self._holds = Holds()
        self._lock = PatientLock(beat)
        self._running: dict[int, float] = {}
        """When each recording that is being carried was taken on, by its row in the ledger."""
        self._away: Mapping[str, HoldRow] = {}
        self._shown_away: Mapping[str, HoldRow] = self._away
        self._held: Sequence[HoldRow] = ()

    @property
    def held(self) -> Sequence[HoldRow]:
        """What is held, as the ledger shows it; waits for nothing."""
        return self._held

    def leave_out(self, away: Mapping[str, HoldRow]) -> None:
        """Hand out nothing of these folders from now on; they count as held. Waits for nothing."""
        self._away = away
        self._ledger.wake()

    def next(self) -> Turn | None:
        """Claim the next recording, the folder after the last one's first; None where nothing is to be done now."""
        if self._shown_away is not self._away:
            self._show()
        with self._lock:
            if self._to_stagger_s() > 0:
                return None
            for at, folder in enumerate(self._order):
                turn = self._of(folder)
                if turn is not None:
                    self._running[turn.claim.row] = turn.began_s
                    self._order = self._order[at + 1 :] + self._order[: at + 1]
                    return turn
        return None

    def _to_stagger_s(self) -> float:
        """Return for how many seconds the last recording taken on is still to be left alone."""
        return max(self._running.values(), default=-math.inf) + self._stagger_s - time.monotonic()

    def _of(self, folder: str) -> Turn | None:
        if folder in self._away:
            return None
        now_s = time.monotonic()
        held = self._holds.over(folder)
        admitted = self._holds.admits(folder, now_s)
        claim = None
        if held and (admitted or all(hold.fault.owner is not Owner.FOLDER for hold in held)):
            claim = self._ledger.claim(folder, now_s, only_to_file=True)  # filing needs nothing of Heify
        if claim is None and admitted:
            claim = self._ledger.claim(folder, now_s)
        if claim is None:
            return None
        return Turn(claim, is_probe=admitted and self._holds.admitted(folder), began_s=now_s)

    def patience_s(self, looks: int = 0) -> float:
        """Return for how many seconds there is nothing to do, unless the ledger is given something before that.

        Who has looked in vain before, `looks` times in a row, is asked for more patience with what is carried quickly.
        """
        now_s = time.monotonic()
        with self._lock:
            if (stagger_s := self._to_stagger_s()) > 0:
                return stagger_s * (1 << min(looks, _MOST_DOUBLINGS))
            probe_s = self._holds.next_probe_s() - now_s
        due = self._ledger.next_due([folder for folder in self._order if folder not in self._away], now_s)
        due_s = _IDLE_S if due is None else due - now_s
        return max(0.0, min(_IDLE_S, due_s, probe_s if probe_s > 0 else _IDLE_S))

    def url_given(self, turn: Turn) -> None:
        """Take in that the API gave an upload URL."""
        with self._lock:
            ended = self._holds.url_given(turn.folder)
        self._tell_of_end(ended)

    def stored(self, turn: Turn) -> None:
        """Take in that the recording is in Heify."""
        with self._lock:
            ended = self._holds.succeeded(turn.folder, probe=turn.is_probe)
        self._tell_of_end(ended)

    def filed(self, turn: Turn) -> None:
        """Take in that the recording's file was moved."""
        with self._lock:
            ended = self._holds.filed(turn.folder)
        self._tell_of_end(ended)

    def over(self, turn: Turn) -> None:
        """Take in that the turn is over, and says no more about what is held."""
        with self._lock:
            del self._running[turn.claim.row]
            self._holds.inconclusive(turn.folder, probe=turn.is_probe)

    def failed(self, turn: Turn, fault: Fault) -> float | None:
        """Take in a failure; return how many seconds a recording that is held shall wait, None if nothing holds it.

        The wait is longer than the next probe's, so that another recording probes first where there is one.
        """
        with self._lock:
            known = [hold.fault for hold in self._holds.all()]
            started = self._holds.failed(turn.folder, fault, time.monotonic(), time.time(), probe=turn.is_probe)
            wait_s = max((1.25 * hold.interval_s for hold in self._holds.over(turn.folder)), default=None)
            is_news = known != [hold.fault for hold in self._holds.all()]
        if started is not None:
            self._ledger.hold_began(started.scope or None)
        if is_news:
            self._show()
        if started is not None:
            self._log.error("hold.started", **_about(started), detail=fault.detail, what_to_do=fault.advice)
        return wait_s

    def _tell_of_end(self, ended: Sequence[Hold]) -> None:
        for hold in ended:
            if hold.fault.owner is not Owner.MAPPING:  # another recording's ids being right does not mend this one's
                self._ledger.hold_ended(hold.scope or None)
            self._log.info("hold.ended", **_about(hold), lasted_s=round(time.monotonic() - hold.started_s, 1))
        if ended:
            self._show()

    def _show(self) -> None:
        self._shown_away = away = self._away
        with self._lock:
            holds = self._holds.all()
        rows = [_row(hold.scope, hold.fault, hold.since_s) for hold in holds]
        self._held = [*{(row.scope, row.owner): row for row in (*rows, *away.values())}.values()]
        self._ledger.show_holds(self._held)


def _row(scope: str, fault: Fault, since_s: float) -> HoldRow:
    return HoldRow(scope, fault.owner, fault.reason, fault.detail, fault.advice, since_s)


def _about(hold: Hold) -> dict[str, str]:
    return {"scope": hold.scope or "everything", "owner": hold.fault.owner, "reason": hold.fault.reason}
