"""Who may look: a request is let through or turned away by its head alone. Pure."""

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from heifyd.recording import is_loopback

CHALLENGE: Final = 'Basic realm="heifyd", charset="UTF-8"'


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is turned away: HTTP status, a line for who made it, and further headers."""

    status: int
    why: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Guard:
    """What is asked of a request.

    `token` None asks for none. `is_loopback` asks that the Host is this machine: a page elsewhere, whose name was
    made to stand for this machine, could have a browser here read what is meant for people here (DNS rebinding).
    """

    token: str | None
    is_loopback: bool

    def refusal(self, method: str, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request is turned away, None where it is not; the names of `headers` are in lower case."""
        if self.is_loopback and not is_loopback(_host(headers.get("host", ""))):
            return Refusal(421, "This is not the host that was asked for; use localhost or its address.", {})
        if self.token is not None and not _is_it(self.token, headers.get("authorization", "")):
            return Refusal(
                401, "This takes the token, as a bearer token or as a password.", {"WWW-Authenticate": CHALLENGE}
            )
        if method not in ("GET", "HEAD"):
            return Refusal(405, "Nothing can be changed here.", {"Allow": "GET, HEAD"})
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return Refusal(413, "A request takes no body here.", {"Connection": "close"})
        return None


def _host(header: str) -> str:
    """Take the host, without brackets, out of a Host header."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _is_it(token: str, authorization: str) -> bool:
    """Tell whether an Authorization header (RFC 6750, RFC 7617) has the token; how long that takes tells nothing."""
    scheme, _, given = authorization.partition(" ")
    given = given.strip()
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2].decode("latin-1")
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode("latin-1", "replace"), token.encode("ascii"))
