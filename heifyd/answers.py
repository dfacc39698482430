"""What Heify's and its storage's answers say; any bytes may come. Pure."""

import json
import re
import xml.etree.ElementTree as ET
from enum import Enum
from typing import Final


class Arrival(Enum):
    """What /get-transcription says about whether a recording has reached Heify."""

    ARRIVED = "arrived"
    NOT_ARRIVED = "not_arrived"
    UNCLEAR = "unclear"


_AT_WORK: Final = frozenset(
    (
        *(
            "ANALYSING",
            "ANALYZING",
            "COMPLETE",
            "COMPLETED",
            "DONE",
            "EVALUATING",
            "PROCESSED",
            "PROCESSING",
            "PROGRESS",
        ),
        *("QUEUED", "RUNNING", "SUCCEEDED", "SUCCESS", "TRANSCRIBED", "TRANSCRIBING", "UPLOADED"),
    )
)
_EXPECTED: Final = frozenset(("AWAITING", "EXPECTING", "PENDING", "WAITING"))
_DENIALS: Final = frozenset(("NEVER", "NO", "NOT", "PARTIALLY"))


def arrival(status: str, duration: object) -> Arrival:
    """Judge from a transcription's status, and its duration, whether its recording has arrived.

    Only COMPLETED is documented. A word of work in progress, or a duration, which only the audio can have given, says
    that it arrived; a word of waiting for the upload that it did not; any other leaves it open.
    """
    words = set(re.split(r"[^A-Z]+", status.upper()))
    if words & _EXPECTED and "UPLOAD" in words:
        return Arrival.NOT_ARRIVED
    if isinstance(duration, int | float) and not isinstance(duration, bool) and duration > 0:
        return Arrival.ARRIVED
    return Arrival.ARRIVED if words & _AT_WORK and not words & _DENIALS else Arrival.UNCLEAR


def api_message(answer: bytes) -> str:
    """Take Heify's message out of an error body, in either of its two shapes, or "" where there is none.

    It is as the server made it: of any length, perhaps with half of a pair of surrogates, or an echo of what is secret.
    """
    try:
        body = json.loads(answer)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(body, dict):
        return ""
    inner = body.get("error")
    message = inner.get("message") if isinstance(inner, dict) else body.get("message")
    return message if isinstance(message, str) else ""


def storage_error(answer: bytes) -> tuple[str, str]:
    """Take code and message out of S3's XML error body, "" where there is none; they may echo what is secret.

    S3 sends UTF-8 without a document type; anything else is not given to the parser, which would expand its entities.
    """
    try:
        text = answer.decode("utf-8")
        root = None if "<!" in text or "\0" in text else ET.fromstring(text)  # noqa: S314 (see above; it is bounded too)
    except (ET.ParseError, ValueError, LookupError):
        root = None
    if root is None:
        return "", ""
    return root.findtext("Code") or "", root.findtext("Message") or ""


def retry_after_s(value: str) -> float | None:
    """Read Retry-After where it is a number of seconds (RFC 9110, 10.2.3), an hour at most; a date is passed over."""
    return min(float(value), 3600.0) if value.isascii() and value.isdigit() else None
