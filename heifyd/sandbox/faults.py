"""Faults on demand: the text that asks for one, read, and a schedule that says which request meets which fault.

A fault is written ``[WHERE] WHAT [xN | for DURATION]``.

WHERE is ``request-upload-url``, ``put``, ``get-transcription``, ``list``, ``api`` (all four kinds of POST) or ``all``.
Without it a fault of the storage or of the connection (marked + below) is met by ``put``, any other by
``request-upload-url``.

WHAT is one of

- a status from 400 to 599, with a message in quotes if it matters: ``402``, ``400 "Unsupported audio format"``
- one of S3's error codes +, by ``put`` only, with a message in quotes if it matters: ``SlowDown``
- ``html`` (502 and a page), ``redirect`` (307), ``retry-after SECONDS`` (429 and the header; 503 by ``put``),
  ``huge`` (10 MB of answer), ``endless`` (an answer without end)
- by POST only: ``not-json``, ``wrong-shape`` (both 200)
- by ``request-upload-url`` only: ``http-url`` (no TLS, not loopback), ``foreign-host``, ``unknown-signed-header``,
  ``expired-url``, ``no-upload-url``
- ``reset`` + (before anything is done), ``cut-body`` + (part of the body is read, then a reset), ``cut-answer`` + (all
  is done, then the connection closes without an answer), ``stall`` + (nothing is read or answered), ``drip`` + (the
  body is read at 20 kB a second)

``x3`` is for the next three requests, ``for 30s`` (also ``ms``, ``m``, ``h``) for the time since it was set, neither is
until it is cleared. Where several faults are set for a request, it meets the one that was set first.
"""

import difflib
import re
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from heifyd.errors import HeifydError
from heifyd.sandbox.answers import S3_CODES


class FaultSpecError(HeifydError):
    """A fault is written `[WHERE] WHAT [xN | for DURATION]`, such as `put SlowDown x3`."""


class Endpoint(StrEnum):
    """What a request asks for, as far as faults tell requests apart."""

    REQUEST_UPLOAD_URL = "request-upload-url"
    PUT = "put"
    GET_TRANSCRIPTION = "get-transcription"
    LIST = "list"


class Kind(StrEnum):
    """What goes wrong; the value is the word for it in a fault's text, but for the first two."""

    STATUS = "status"
    S3_ERROR = "s3-error"
    HTML = "html"
    NOT_JSON = "not-json"
    WRONG_SHAPE = "wrong-shape"
    HUGE = "huge"
    ENDLESS = "endless"
    REDIRECT = "redirect"
    RETRY_AFTER = "retry-after"
    RESET = "reset"
    CUT_BODY = "cut-body"
    CUT_ANSWER = "cut-answer"
    STALL = "stall"
    DRIP = "drip"
    HTTP_URL = "http-url"
    FOREIGN_HOST = "foreign-host"
    UNKNOWN_SIGNED_HEADER = "unknown-signed-header"
    EXPIRED_URL = "expired-url"
    NO_UPLOAD_URL = "no-upload-url"


_PUT: Final = frozenset({Endpoint.PUT})
_STEP_1: Final = frozenset({Endpoint.REQUEST_UPLOAD_URL})
_ALL: Final = frozenset(Endpoint)
_API: Final = _ALL - _PUT

_WHERE: Final = {**{str(endpoint): frozenset({endpoint}) for endpoint in Endpoint}, "api": _API, "all": _ALL}
_WORDS: Final = {str(kind): kind for kind in Kind if kind not in (Kind.STATUS, Kind.S3_ERROR)}
_ON_PUT: Final = frozenset({Kind.S3_ERROR, Kind.RESET, Kind.CUT_BODY, Kind.CUT_ANSWER, Kind.STALL, Kind.DRIP})
_ONLY: Final = {
    Kind.S3_ERROR: ("put", _PUT),
    Kind.NOT_JSON: ("api", _API),
    Kind.WRONG_SHAPE: ("api", _API),
    Kind.HTTP_URL: ("request-upload-url", _STEP_1),
    Kind.FOREIGN_HOST: ("request-upload-url", _STEP_1),
    Kind.UNKNOWN_SIGNED_HEADER: ("request-upload-url", _STEP_1),
    Kind.EXPIRED_URL: ("request-upload-url", _STEP_1),
    Kind.NO_UPLOAD_URL: ("request-upload-url", _STEP_1),
}

_TOKENS: Final = re.compile(r'"[^"]*"|[^\s"]+')
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS_IN: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: which requests meet it (`where`), what they meet, and for how many (`times`) or how long.

    `status` goes with ``STATUS``, `code` with ``S3_ERROR``, `message` with either, `retry_after_s` with
    ``RETRY_AFTER``. `times` and `lasts_s` are None where there is no such end; at most one is set.
    """

    spec: str
    where: frozenset[Endpoint]
    kind: Kind
    status: int | None = None
    code: str | None = None
    message: str | None = None
    retry_after_s: int | None = None
    times: int | None = None
    lasts_s: float | None = None


def parse_fault(spec: str) -> Fault:
    """Return the fault that `spec` asks for; the grammar stands in this module's docstring.

    Raises FaultSpecError, which says what to write instead.
    """
    if spec.count('"') % 2:
        raise FaultSpecError(f'`{spec}` opens a quote and never closes it: write the message as 400 "it\'s wrong".')
    tokens: list[str] = _TOKENS.findall(spec)
    if not tokens:
        raise FaultSpecError
    where = _WHERE.get(tokens[0])
    if where is not None:
        del tokens[0]
    if not tokens:
        raise FaultSpecError(f"`{spec}` says where but not what: write for example `{spec.strip()} 503`.")
    times, lasts_s = _pop_end(spec, tokens)
    kind, status, code = _what(tokens.pop(0))
    retry_after_s = _pop_seconds(spec, tokens) if kind is Kind.RETRY_AFTER else None
    message = None
    if tokens and tokens[0].startswith('"') and kind in (Kind.STATUS, Kind.S3_ERROR):
        message = tokens.pop(0)[1:-1]
    if tokens:
        raise FaultSpecError(
            f"`{spec}`: cannot read `{' '.join(tokens)}`. After the fault comes `x3` (three requests), "
            "`for 30s` (thirty seconds), or nothing (until it is cleared); a message stands in double quotes."
        )
    if where is None:
        where = _PUT if kind in _ON_PUT else _STEP_1
    word, allowed = _ONLY.get(kind, ("all", _ALL))
    if not where <= allowed:
        raise FaultSpecError(f"`{spec}`: `{code or kind}` can only come from `{word}`: write `{word} {code or kind}`.")
    return Fault(" ".join(spec.split()), where, kind, status, code, message, retry_after_s, times, lasts_s)


def _what(word: str) -> tuple[Kind, int | None, str | None]:
    if word.isascii() and word.isdecimal():
        if len(word) != len("503") or not 400 <= int(word) <= 599:
            raise FaultSpecError(f"`{word}` is not the status of an error: write one from 400 to 599, or `redirect`.")
        return Kind.STATUS, int(word), None
    if word in S3_CODES:
        return Kind.S3_ERROR, None, word
    if word in _WORDS:
        return _WORDS[word], None, None
    near = difflib.get_close_matches(word, [*_WORDS, *S3_CODES, *_WHERE], n=1, cutoff=0.5)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    raise FaultSpecError(
        f"No fault is called `{word}`.{hint} Write a status (`503`), one of {', '.join(_WORDS)}, "
        f"or one of S3's codes: {', '.join(S3_CODES)}."
    )


def _pop_end(spec: str, tokens: list[str]) -> tuple[int | None, float | None]:
    """Take `xN` or `for DURATION` off the end of `tokens`."""
    if re.fullmatch(r"x\d+", tokens[-1]) and len(tokens) > 1:
        times = int(tokens.pop()[1:])
        if not times:
            raise FaultSpecError(f"`{spec}` is for no request at all: write `x1` or more.")
        return times, None
    if "for" not in tokens[1:]:
        return None, None
    at = tokens.index("for", 1)
    duration = tokens[at + 1 :]
    found = _DURATION.fullmatch(duration[0]) if len(duration) == 1 else None
    if found is None:
        raise FaultSpecError(f"`{spec}`: after `for` comes a duration with its unit, at the end: `for 30s`, `for 2m`.")
    del tokens[at:]
    return None, float(found[1]) * _SECONDS_IN[found[2]]


def _pop_seconds(spec: str, tokens: list[str]) -> int:
    if not tokens or not (tokens[0].isascii() and tokens[0].isdecimal()):
        raise FaultSpecError(f"`{spec}`: `retry-after` needs a whole number of seconds: write `retry-after 30`.")
    return int(tokens.pop(0))


@dataclass(frozen=True, slots=True)
class PendingFault:
    """A fault that is set: its text, and what is left of it (requests, seconds); None where it has no such end."""

    spec: str
    times_left: int | None
    seconds_left: float | None


@dataclass(slots=True)
class _Entry:
    fault: Fault
    times_left: int | None
    ends_s: float | None


class FaultSchedule:
    """The faults that are set, in the order they were set; any thread may set, take and look.

    Every `now_s` is a reading of one monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []

    def add(self, fault: Fault, now_s: float) -> None:
        """Set a fault; how long it lasts counts from `now_s`."""
        ends_s = None if fault.lasts_s is None else now_s + fault.lasts_s
        with self._lock:
            self._entries.append(_Entry(fault, fault.times, ends_s))

    def take(self, endpoint: Endpoint, now_s: float) -> Fault | None:
        """Return the fault that a request to `endpoint` meets at `now_s`, and count it as met."""
        if not self._entries:
            return None
        with self._lock:
            self._forget_ended(now_s)
            for entry in self._entries:
                if endpoint in entry.fault.where:
                    if entry.times_left is not None:
                        entry.times_left -= 1
                    return entry.fault
        return None

    def pending(self, now_s: float) -> list[PendingFault]:
        """Return what is still set at `now_s`."""
        with self._lock:
            self._forget_ended(now_s)
            return [
                PendingFault(entry.fault.spec, entry.times_left, None if entry.ends_s is None else entry.ends_s - now_s)
                for entry in self._entries
            ]

    def clear(self) -> None:
        """Forget every fault."""
        with self._lock:
            self._entries.clear()

    def _forget_ended(self, now_s: float) -> None:
        self._entries = [
            entry for entry in self._entries if entry.times_left != 0 and (entry.ends_s is None or now_s < entry.ends_s)
        ]
