"""How fast requests and bytes may go: a rate that slows down when Heify says so, a bandwidth by the time of day."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from heifyd.pulse import Beat, unwatched

_SLOWEST: Final = 1 / 16
_RECOVERY_S: Final = 60.0
_LONGEST_PAUSE_S: Final = 60.0
_MOMENT_S: Final = 0.02
_QUICK_S: Final = 0.1
_SLOW_S: Final = 0.5
_LEAST_PIECE_BYTES: Final = 64 * 1024


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

    def __init__(
        self, bucket: TokenBucket | None, clock: Callable[[], float] = time.monotonic, beat: Beat = unwatched
    ) -> None:
        self._bucket = bucket
        self._clock = clock
        self._beat = beat
        self._lock = threading.Lock()

    def wait(self, stopping: threading.Event) -> bool:
        """Wait for this thread's turn; return False if the daemon is stopping instead."""
        if self._bucket is None:
            return not stopping.is_set()
        with self._lock:
            wait_s = self._bucket.take(self._clock())
        self._beat(wait_s)
        return not stopping.wait(wait_s) if wait_s else not stopping.is_set()

    def slow_down(self, retry_after_s: float | None) -> None:
        """Take in that Heify answered 429."""
        if self._bucket is not None:
            with self._lock:
                self._bucket.slow_down(self._clock(), min(retry_after_s or 1.0, _LONGEST_PAUSE_S))


def next_piece_bytes(piece_bytes: int, took_s: float, most_bytes: int) -> int:
    """Return how large a next piece may be, as one of `piece_bytes` took `took_s`.

    Large pieces cost least, but how far a slow upload is, is seen only between two of them.
    """
    if took_s < _QUICK_S:
        return min(most_bytes, 2 * piece_bytes)
    return max(_LEAST_PIECE_BYTES, piece_bytes // 2) if took_s > _SLOW_S else piece_bytes


@dataclass(frozen=True, slots=True)
class Timetable:
    """Bandwidths by the local time of day: from each minute of the day on, so many bytes a second; None for no limit.

    `entries` are in the day's order; the last one reaches over midnight to the first.
    """

    entries: tuple[tuple[int, float | None], ...]

    def at(self, minute: int) -> float | None:
        """Return the bandwidth in force at a minute of the day, in bytes a second."""
        begun = [bytes_per_s for since, bytes_per_s in self.entries if since <= minute]
        return begun[-1] if begun else self.entries[-1][1]


@dataclass(slots=True)
class ByteBucket:
    """Bytes that may go, one after another, at a rate; none are saved up. Pure: times are monotonic seconds."""

    free_at_s: float = 0.0

    def take(self, size_bytes: int, bytes_per_s: float, now_s: float) -> float:
        """Book `size_bytes` and return for how many seconds to wait before sending them."""
        begins_s = max(self.free_at_s, now_s)
        self.free_at_s = begins_s + size_bytes / bytes_per_s
        return begins_s - now_s


class Bandwidth:
    """One limit for all threads together; with `timetable` None there is none."""

    def __init__(
        self,
        timetable: Timetable | None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = datetime.now,
        beat: Beat = unwatched,
    ) -> None:
        """`wall` tells the local time."""
        self._beat = beat
        self._timetable = timetable
        self._clock = clock
        self._wall = wall
        self._bucket = ByteBucket()
        self._lock = threading.Lock()

    def piece_bytes(self, most_bytes: int) -> int:
        """Return how many bytes to send in one go: under a limit, what goes in a moment, so that it goes smoothly."""
        rate = self._rate()
        return most_bytes if rate is None else max(1, min(most_bytes, int(rate * _MOMENT_S)))

    def wait(self, size_bytes: int, stopping: threading.Event) -> None:
        """Wait until `size_bytes` may be sent, or until `stopping`."""
        rate = self._rate()
        if rate is not None:
            with self._lock:
                wait_s = self._bucket.take(size_bytes, rate, self._clock())
            self._beat(wait_s)
            stopping.wait(wait_s)

    def _rate(self) -> float | None:
        if self._timetable is None:
            return None
        now = self._wall()
        return self._timetable.at(now.hour * 60 + now.minute)
