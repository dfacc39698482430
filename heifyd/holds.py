"""What is held back and until when: one fault of the account, a mapping or the service holds all that shares it."""

from dataclasses import dataclass
from typing import Final

from heifyd.faults import Fault, Owner

EVERYTHING: Final = ""
"""The scope of a hold that stops every folder; any other scope is a folder's path."""

SERVICE_FAULTS: Final = 3
"""So many failures of the service in a row, with no success between, are an outage and no accident."""

_FIRST_PROBE_S: Final = {Owner.SERVICE: 1.0, Owner.FOLDER: 5.0, Owner.ACCOUNT: 15.0, Owner.MAPPING: 15.0}
_MOST_PROBE_S: Final = {Owner.SERVICE: 60.0, Owner.FOLDER: 60.0, Owner.ACCOUNT: 300.0, Owner.MAPPING: 300.0}


@dataclass(slots=True)
class Hold:
    """One hold: what it covers, why, since when (wall clock, monotonic), and when its next probe may go (monotonic)."""

    scope: str
    fault: Fault
    since_s: float
    started_s: float
    interval_s: float
    probe_at_s: float
    probing: bool = False


class Holds:
    """All holds of a daemon. Times come in as arguments; the caller sees to it that one thread at a time is in here.

    While a hold lasts, one recording at a time goes as its probe. `probe` tells the methods below whether the recording
    they are about is one: what was under way before the hold began neither ends nor prolongs it.
    """

    def __init__(self) -> None:
        self._holds: dict[tuple[str, Owner], Hold] = {}
        self._service_faults = 0

    def all(self) -> list[Hold]:
        """Return the holds, oldest first."""
        return sorted(self._holds.values(), key=lambda hold: hold.started_s)

    def over(self, folder: str) -> list[Hold]:
        """Return the holds that cover a folder."""
        return [hold for hold in self._holds.values() if hold.scope in (EVERYTHING, folder)]

    def admits(self, folder: str, now_s: float) -> bool:
        """Tell whether the folder's next recording may go: nothing holds it, or it would be the probe."""
        return all(not hold.probing and now_s >= hold.probe_at_s for hold in self.over(folder))

    def admitted(self, folder: str) -> bool:
        """Note that a recording of the folder goes; return whether it is a probe."""
        covering = self.over(folder)
        for hold in covering:
            hold.probing = True
        return bool(covering)

    def next_probe_s(self) -> float:
        """Return when the next probe may go (monotonic), infinity where none is due."""
        return min((hold.probe_at_s for hold in self._holds.values() if not hold.probing), default=float("inf"))

    def failed(self, folder: str, fault: Fault, now_s: float, wall_s: float, *, probe: bool) -> Hold | None:
        """Take in a failure of a recording of `folder`; return the hold that it starts, if it starts one.

        One that is in force already shows the latest fault from then on.
        """
        if probe:
            for hold in self.over(folder):
                hold.probing = False
                hold.interval_s = min(hold.interval_s * 2, _MOST_PROBE_S[hold.fault.owner])
                hold.probe_at_s = now_s + max(hold.interval_s, fault.retry_after_s or 0.0)
        scope = folder if fault.owner in (Owner.MAPPING, Owner.FOLDER) else EVERYTHING
        if (held := self._holds.get((scope, fault.owner))) is not None:
            held.fault = fault
            return None
        if fault.owner is Owner.SERVICE:
            self._service_faults += 1
            if self._service_faults < SERVICE_FAULTS:
                return None
        first_s = _FIRST_PROBE_S[fault.owner]
        started = Hold(scope, fault, wall_s, now_s, first_s, now_s + max(first_s, fault.retry_after_s or 0.0))
        self._holds[scope, fault.owner] = started
        return started

    def url_given(self, folder: str) -> list[Hold]:
        """Take in that the API gave an upload URL: key, minutes and ids are in order; return the holds that ends."""
        return self._end(folder, Owner.ACCOUNT, Owner.MAPPING)

    def succeeded(self, folder: str, *, probe: bool) -> list[Hold]:
        """Take in that a recording of `folder` is stored; return the holds that ends."""
        if not probe:
            if (EVERYTHING, Owner.SERVICE) not in self._holds:
                self._service_faults = 0
            return []
        self._service_faults = 0
        self.inconclusive(folder, probe=probe)
        return self._end(folder, Owner.SERVICE)

    def filed(self, folder: str) -> list[Hold]:
        """Take in that a file of `folder` was moved; return the holds that ends."""
        return self._end(folder, Owner.FOLDER)

    def inconclusive(self, folder: str, *, probe: bool) -> None:
        """Take in that a recording ended without saying anything about the holds: the next may probe at once."""
        if probe:
            for hold in self.over(folder):
                hold.probing = False

    def _end(self, folder: str, *owners: Owner) -> list[Hold]:
        ended = [hold for hold in self.over(folder) if hold.fault.owner in owners]
        for hold in ended:
            del self._holds[hold.scope, hold.fault.owner]
        return ended
