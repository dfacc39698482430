"""A pre-signed S3 PUT by signature version 2, which an older edition of Heify's pages shows. Pure.

Source: Amazon S3 Developer Guide, "Signing and Authenticating REST Requests", section "Query String Request
Authentication Alternative". One step aside from it: the Content-Type is left out of what is signed, as Heify cannot
know it when it makes the URL and yet asks for it on the PUT.
"""

import base64
import hmac
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import parse_qs, quote

from heifyd.sandbox.sigv4 import Credentials, Refusal


def presign_put(
    origin: str,
    path: str,
    headers: Mapping[str, str],
    credentials: Credentials,
    *,
    at_s: float,
    expires_s: int,
) -> str:
    """Return the URL that lets whoever holds it PUT one object with exactly these ``x-amz-*`` headers.

    The arguments are those of `heifyd.sandbox.sigv4.presign_put`.
    """
    expires = int(at_s) + expires_s
    encoded = quote(path, safe="/")
    given = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    signature = _signature("PUT", encoded, str(expires), given, credentials)
    key = quote(credentials.access_key, safe="")
    return f"{origin}{encoded}?AWSAccessKeyId={key}&Signature={quote(signature, safe='')}&Expires={expires}"


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

    The arguments are those of `heifyd.sandbox.sigv4.check`.
    """
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    parts = [given.get(name, []) for name in ("AWSAccessKeyId", "Signature", "Expires")]
    if any(len(part) != 1 for part in parts):
        return Refusal("AccessDenied", "Query-string authentication requires the Signature, Expires and AWSAccessKeyId")
    access_key, signature, expires = (part[0] for part in parts)
    if access_key != credentials.access_key:
        return Refusal("InvalidAccessKeyId")
    if not (expires.isascii() and expires.isdecimal()):
        return Refusal("AccessDenied", "Invalid date (should be seconds since epoch)")
    if now_s > int(expires):
        return Refusal("AccessDenied", "Request has expired")
    expected = _signature(method, raw_path.decode("latin-1"), expires, headers, credentials)
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        return Refusal("SignatureDoesNotMatch")
    return None


def _signature(
    method: str,
    path: str,
    expires: str,
    headers: Iterable[tuple[bytes, bytes]],
    credentials: Credentials,
) -> str:
    amz: dict[bytes, bytes] = {}
    for name, value in headers:
        if name.startswith(b"x-amz-"):
            amz[name] = amz[name] + b"," + value.strip() if name in amz else value.strip()
    lines = [
        method.encode(),
        b"",  # Content-MD5
        b"",  # Content-Type
        expires.encode(),
        *(name + b":" + value for name, value in sorted(amz.items())),
        path.encode("latin-1"),
    ]
    return base64.b64encode(hmac.digest(credentials.secret.encode(), b"\n".join(lines), "sha1")).decode()
