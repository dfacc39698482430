"""A pre-signed S3 PUT by signature version 4: made, and checked as S3 checks it. Pure.

Source: Amazon S3 API Reference, "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)".
"""

import calendar
import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

ALGORITHM: Final = "AWS4-HMAC-SHA256"

_STAMP: Final = "%Y%m%dT%H%M%SZ"
_SERVICE: Final = "s3"
_LONGEST_LIFE_S: Final = 604_800
_MOST_SKEW_S: Final = 900.0
_PARAMETERS: Final = ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The key pair that URLs are signed with, and the region they are good for."""

    access_key: str
    secret: str = field(repr=False)
    region: str = "us-east-1"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused: S3's error code, and its message where it differs from the code's usual one."""

    code: str
    message: str | None = None
    details: tuple[tuple[str, str], ...] = ()


def presign_put(
    origin: str,
    path: str,
    headers: Mapping[str, str],
    credentials: Credentials,
    *,
    at_s: float,
    expires_s: int,
) -> str:
    """Return the URL that lets whoever holds it PUT one object with exactly these headers.

    `origin` is ``scheme://host[:port]``, `path` the decoded path with its leading slash, `headers` what is signed
    besides ``host``. `at_s` is seconds since the epoch, `expires_s` the URL's life from then on.
    """
    signed = {name.lower(): value.encode() for name, value in headers.items()}
    signed["host"] = urlsplit(origin).netloc.encode()
    stamp = time.strftime(_STAMP, time.gmtime(at_s))
    query = [
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{credentials.access_key}/{_scope(stamp, credentials.region)}"),
        ("X-Amz-Date", stamp),
        ("X-Amz-Expires", str(expires_s)),
        ("X-Amz-SignedHeaders", ";".join(sorted(signed))),
    ]
    encoded = [(name, quote(value, safe="")) for name, value in query]
    canonical = _canonical_request("PUT", quote(path, safe="/"), encoded, sorted(signed.items()))
    signature = _signature(canonical, stamp, credentials)
    text = "&".join(f"{name}={value}" for name, value in encoded)
    return f"{origin}{quote(path, safe='/')}?{text}&X-Amz-Signature={signature}"


def check(
    method: str,
    raw_path: bytes,
    query: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    credentials: Credentials,
    *,
    now_s: float,
) -> Refusal | None:
    """Return why S3 would refuse the request, or None when its signature holds.

    `raw_path` and `query` are as they stand in the request line; `headers` as they arrived, names in lower case.
    `now_s` is when the request arrived, in seconds since the epoch: expiry is judged then, not when the body ends.
    """
    pairs = [_decoded(pair) for pair in query.decode("latin-1").split("&") if pair]
    given = dict(pairs)
    wanted = [f"X-Amz-{name}" for name in _PARAMETERS]
    if any(name not in given for name in wanted) or len(given) != len(pairs):
        return _malformed("Query-string authentication version 4 requires each of its parameters, once.")
    stamp = given["X-Amz-Date"].decode("latin-1")
    refusal = _check_parameters(given, stamp, credentials) or _check_time(given, stamp, now_s)
    if refusal is not None:
        return refusal
    names = given["X-Amz-SignedHeaders"].split(b";")
    arrived = _joined(headers)
    unsigned = sorted(name for name in arrived if name.startswith(b"x-amz-") and name not in names)
    if unsigned:
        listed = b", ".join(unsigned).decode("latin-1")
        message = "There were headers present in the request which were not signed"
        return Refusal("AccessDenied", message, (("HeadersNotSigned", listed),))
    if any(name not in arrived for name in names):
        return Refusal("SignatureDoesNotMatch")
    canonical = _canonical_request(
        method,
        quote(unquote_to_bytes(raw_path), safe="/"),
        [(quote(name, safe=""), quote(value, safe="")) for name, value in pairs if name != "X-Amz-Signature"],
        [(name.decode("latin-1"), arrived[name]) for name in names],
    )
    expected = _signature(canonical, stamp, credentials).encode()
    if not hmac.compare_digest(expected, given["X-Amz-Signature"]):
        return Refusal("SignatureDoesNotMatch")
    return None


def _decoded(pair: str) -> tuple[str, bytes]:
    name, _, value = pair.partition("=")
    return unquote_to_bytes(name).decode("latin-1"), unquote_to_bytes(value)


def _malformed(message: str) -> Refusal:
    return Refusal("AuthorizationQueryParametersError", message)


def _check_parameters(given: Mapping[str, bytes], stamp: str, credentials: Credentials) -> Refusal | None:
    """Judge what the parameters say of themselves, before any signature is computed."""
    if given["X-Amz-Algorithm"] != ALGORITHM.encode():
        return _malformed(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    access_key, _, scope = given["X-Amz-Credential"].decode("latin-1").partition("/")
    if access_key != credentials.access_key:
        return Refusal("InvalidAccessKeyId")
    if scope != _scope(stamp, credentials.region):
        return _malformed("Error parsing the X-Amz-Credential parameter; its date, region or service is wrong.")
    if b"host" not in given["X-Amz-SignedHeaders"].split(b";"):
        return _malformed("X-Amz-SignedHeaders must include host.")
    return None


def _check_time(given: Mapping[str, bytes], stamp: str, now_s: float) -> Refusal | None:
    try:
        from_s = calendar.timegm(time.strptime(stamp, _STAMP))
        life_s = int(given["X-Amz-Expires"])
    except ValueError:
        return _malformed("X-Amz-Date must be in the ISO8601 Long Format, and X-Amz-Expires a number.")
    if not 0 < life_s <= _LONGEST_LIFE_S:
        return _malformed(f"X-Amz-Expires must be between 1 and {_LONGEST_LIFE_S} seconds.")
    if now_s < from_s - _MOST_SKEW_S:
        return Refusal("AccessDenied", "Request is not yet valid")
    if now_s > from_s + life_s:
        details = (
            ("X-Amz-Expires", str(life_s)),
            ("Expires", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(from_s + life_s))),
            ("ServerTime", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))),
        )
        return Refusal("AccessDenied", "Request has expired", details)
    return None


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers by name; a header that came more than once has its values joined by commas."""
    joined: dict[bytes, bytes] = {}
    for name, value in headers:
        joined[name] = joined[name] + b"," + value if name in joined else value
    return joined


def _canonical_request(
    method: str,
    path: str,
    query: Iterable[tuple[str, str]],
    headers: Iterable[tuple[str, bytes]],
) -> bytes:
    lines = [(name, b" ".join(value.split())) for name, value in headers]
    return b"\n".join(
        [
            method.encode(),
            path.encode(),
            "&".join(f"{name}={value}" for name, value in sorted(query)).encode(),
            *(name.encode("latin-1") + b":" + value for name, value in lines),
            b"",
            ";".join(name for name, _ in lines).encode("latin-1"),
            b"UNSIGNED-PAYLOAD",
        ]
    )


def _scope(stamp: str, region: str) -> str:
    return f"{stamp[:8]}/{region}/{_SERVICE}/aws4_request"


def _signature(canonical: bytes, stamp: str, credentials: Credentials) -> str:
    digest = hashlib.sha256(canonical).hexdigest()
    to_sign = f"{ALGORITHM}\n{stamp}\n{_scope(stamp, credentials.region)}\n{digest}"
    return _mac(_signing_key(credentials.secret, stamp[:8], credentials.region), to_sign).hex()


@lru_cache(maxsize=16)
def _signing_key(secret: str, date: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, _SERVICE, "aws4_request"):
        key = _mac(key, part)
    return key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
