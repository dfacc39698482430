"""What an upload URL asks for and whether it may be used. Pure."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import httpx

from heifyd import faults
from heifyd.faults import FaultError
from heifyd.recording import Ticket, is_loopback

_META: Final = "x-amz-meta-"
_LIFETIME_S: Final = 300.0


_parsed_at_once: Final = lru_cache(maxsize=64)
"""Each URL is read several times, and in little time; that of the API again and again."""


@_parsed_at_once
def parsed(url: str) -> httpx.URL:
    """Return a URL as httpx reads it. Raises httpx.InvalidURL."""
    return httpx.URL(url)


@_parsed_at_once
def _query(url: str) -> Mapping[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def must_be_safe(url: str, base_url: str) -> None:
    """Raise FaultError for an upload URL that would carry a recording in the clear.

    Plain http is for a Heify on loopback (`base_url`) and for loopback alone. The URL is read as httpx reads it, which
    is what sends to it.
    """
    try:
        parts = parsed(url)
        urlsplit(url)  # which the others here read it with, and which is stricter
        encrypted = parts.scheme == "https" and bool(parts.host)
        local = parts.scheme == "http" and is_loopback(parts.host) and urlsplit(base_url).scheme == "http"
        acceptable = (encrypted or local) and not parts.userinfo
    except (httpx.InvalidURL, ValueError):
        acceptable = False
    if not acceptable:
        detail = "Heify's answer holds an upload URL that is not https; nothing was sent to it"
        raise FaultError(faults.of_network("unsafe_upload_url", detail))


def signed_headers(ticket: Ticket) -> dict[str, str]:
    """Return the headers that a ticket's pre-signed URL wants, with the values of step 1's answer.

    They are those that X-Amz-SignedHeaders names (Amazon S3 API reference, "Authenticating requests: query
    parameters"), but for `host` and the two that every PUT has. A signature-version-2 URL has no such list and gets the
    metadata. Raises FaultError naming a header that has no value, or none that can be sent.
    """
    values = {
        f"{_META}configuration_id": ticket.ids.configuration_id,
        f"{_META}evaluator_id": ticket.ids.evaluator_id,
        f"{_META}participant_id": ticket.ids.participant_id,
        f"{_META}name": ticket.name,
    }
    listed = _query(ticket.url).get("X-Amz-SignedHeaders")
    if listed is None:
        names = [header for header, value in values.items() if value is not None and header != f"{_META}name"]
    else:
        names = [header for header in listed.lower().split(";") if header not in _ALWAYS_SENT]
    return {header: _sendable(header, values.get(header)) for header in names}


_ALWAYS_SENT: Final = ("host", "content-type", "content-length")


def _sendable(header: str, value: str | None) -> str:
    if value is None:
        why = f"is signed with the header {header[:100]!r}, for which Heify's answer gives no value"
    elif not (value.isascii() and value.isprintable()):
        why = f"wants the header {header[:100]!r}, whose value in Heify's answer cannot be sent"
    else:
        return value
    raise FaultError(faults.of_network("unknown_signed_header", f"the upload URL {why}"))


def url_lifetime_s(url: str) -> float:
    """Return for how many seconds an upload URL is good: its X-Amz-Expires, else Heify's documented five minutes."""
    given = _query(url).get("X-Amz-Expires", "")
    return float(given) if given.isascii() and given.isdigit() else _LIFETIME_S
