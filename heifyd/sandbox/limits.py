"""The account's request limits: token buckets that are told the time. Pure but for what a bucket holds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What an account may ask: requests a minute, and how many at once, for two groups of endpoints.

    The first pair is for /request-upload-url and /get-transcription together, the second for all /list-* together
    (Heify's page "Rate Limits & Quotas").
    """

    per_minute: float = 500.0
    burst: int = 17
    list_per_minute: float = 50.0
    list_burst: int = 3


class TokenBucket:
    """A bucket that holds at most `burst` tokens and gains `per_minute` of them a minute."""

    def __init__(self, per_minute: float, burst: int) -> None:
        self._per_s = per_minute / 60.0
        self._burst = float(burst)
        self._tokens = self._burst
        self._at_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Take one token and say whether there was one; `now_s` is on a monotonic clock."""
        if self._at_s is not None:
            self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
