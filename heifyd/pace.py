"""How fast requests may go: a token bucket that slows down when Heify says so."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_SLOWEST: Final = 1 / 16
_RECOVERY_S: Final = 60.0
_LONGEST_PAUSE_S: Final = 60.0


@dataclass(slots=True)
class TokenBucket:
    """`burst` requests at once, then `per_s` a second. Pure: the time comes in as an argument (monotonic seconds)."""

    per_s: float
    burst: float
    tokens: float
    at_s: float
    factor: float = 1.0
    slowed_at_s: float = 0.0

    @classmethod
    def full(cls, per_minute: float, burst: int, now_s: float) -> "TokenBucket":
        """Make a bucket that is full now.

        It holds one token less than Heify allows: requests that arrive bunched by the network's jitter still find room.
        """
        size = max(1.0, burst - 1.0)
        return cls(per_minute / 60.0, size, size, now_s)

    def take(self, now_s: float) -> float:
        """Take one token and return how many seconds to wait before using it (0 where none)."""
        if self.factor < 1.0 and now_s - self.slowed_at_s >= _RECOVERY_S:
            self.factor, self.slowed_at_s = min(1.0, self.factor * 2), now_s
        rate = self.per_s * self.factor
        self.tokens = min(self.burst, self.tokens + max(0.0, now_s - self.at_s) * rate)
        self.at_s = max(self.at_s, now_s)
        self.tokens -= 1.0
        return max(0.0, self.at_s - now_s) + max(0.0, -self.tokens / rate)

    def slow_down(self, now_s: float, wait_s: float) -> None:
        """Take in a 429: nothing for `wait_s` seconds, then half the rate, which doubles again minute by minute."""
        if now_s - self.slowed_at_s >= 1.0 or self.factor == 1.0:
            self.factor = max(_SLOWEST, self.factor / 2)
        self.slowed_at_s = now_s
        self.tokens = min(self.tokens, 0.0)
        self.at_s = max(self.at_s, now_s + wait_s)  # what time brings in counts from then on


class Pace:
    """One account's request rate, shared by all threads; with `bucket` None there is no limit."""

    def __init__(self, bucket: TokenBucket | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = bucket
        self._clock = clock
        self._lock = threading.Lock()

    def wait(self, stopping: threading.Event) -> bool:
        """Wait for this thread's turn; return False if the daemon is stopping instead."""
        if self._bucket is None:
            return not stopping.is_set()
        with self._lock:
            wait_s = self._bucket.take(self._clock())
        return not stopping.wait(wait_s) if wait_s else not stopping.is_set()

    def slow_down(self, retry_after_s: float | None) -> None:
        """Take in that Heify answered 429."""
        if self._bucket is not None:
            with self._lock:
                self._bucket.slow_down(self._clock(), min(retry_after_s or 1.0, _LONGEST_PAUSE_S))
