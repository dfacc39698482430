"""What the sandbox has answered so far, counted."""

import threading
from dataclasses import dataclass, field

_TOO_MANY = "429"


@dataclass(frozen=True, slots=True)
class Counters:
    """A look at the counts since the sandbox was made.

    `requests` is endpoint → outcome → count, where an outcome is the status as text or, where no status was
    answered, the fault that came instead (``reset``, ``stall`` …) or ``gone`` (the client left first).
    `bytes_received` is what arrived in bodies of uploads, complete or not.
    """

    requests: dict[str, dict[str, int]] = field(default_factory=dict)
    too_many_requests: int = 0
    bytes_received: int = 0


class Tally:
    """Counts requests and bytes; any thread may look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[str, dict[str, int]] = {}
        self._bytes = 0

    def count(self, endpoint: str, outcome: str) -> None:
        """Count one request to `endpoint` that ended in `outcome`."""
        with self._lock:
            outcomes = self._requests.setdefault(endpoint, {})
            outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def received(self, size_bytes: int) -> None:
        """Count bytes of an upload's body."""
        with self._lock:
            self._bytes += size_bytes

    def look(self) -> Counters:
        """Return the counts as they are now."""
        with self._lock:
            requests = {endpoint: dict(outcomes) for endpoint, outcomes in self._requests.items()}
            too_many = sum(outcomes.get(_TOO_MANY, 0) for outcomes in requests.values())
            return Counters(requests, too_many, self._bytes)
