"""The words in which the two sides refuse: Heify's JSON, the gateway's JSON before it, and S3's XML."""

import secrets
from collections.abc import Iterable, Mapping
from typing import Final
from xml.sax.saxutils import escape

from starlette.responses import JSONResponse, Response

S3_CODES: Final[Mapping[str, tuple[int, str]]] = {
    "AccessDenied": (403, "Access Denied"),
    "AuthorizationQueryParametersError": (400, "Error parsing the query-string authentication parameters"),
    "BadDigest": (400, "The Content-MD5 you specified did not match what we received."),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed size"),
    "ExpiredToken": (400, "The provided token has expired."),
    "IncompleteBody": (400, "You did not provide the number of bytes specified by the Content-Length HTTP header"),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (403, "The AWS Access Key Id you provided does not exist in our records."),
    "InvalidRequest": (400, "Invalid Request"),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NotImplemented": (501, "A header you provided implies functionality that is not implemented"),
    "OperationAborted": (409, "A conflicting conditional operation is currently in progress. Please try again."),
    "RequestTimeTooSkewed": (403, "The difference between the request time and the current time is too large."),
    "RequestTimeout": (
        400,
        "Your socket connection to the server was not read from or written to within the timeout period.",
    ),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
}
"""S3's error codes with the status and message each has (Amazon S3 API Reference, "Error responses")."""

_S3_CODE_OF_STATUS: Final = {
    403: "AccessDenied",
    404: "NoSuchBucket",
    405: "MethodNotAllowed",
    409: "OperationAborted",
    411: "MissingContentLength",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
}

_HEIFY_MESSAGES: Final = {
    400: "Invalid request",
    402: "Your account is out of transcription minutes",
    404: "Resource not found",
    500: "Internal server error",
}

_GATEWAY_MESSAGES: Final = {
    403: "Forbidden",
    413: "Request Too Long",
    429: "Too Many Requests",
    502: "Internal server error",
    503: "Service Unavailable",
    504: "Endpoint request timed out",
}


def heify_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as Heify's current documentation shows it: ``{"error": {"message", "code"}}``."""
    return JSONResponse({"error": {"message": message, "code": status}}, status, headers)


def gateway_error(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as the gateway in front of Heify answers by itself: ``{"message"}``."""
    return JSONResponse({"message": _GATEWAY_MESSAGES[status]}, status, headers)


def usual_error(status: int) -> Response:
    """Return the body that belongs to a status: the gateway's where the gateway gives that answer, else Heify's."""
    if status in _GATEWAY_MESSAGES:
        return gateway_error(status)
    return heify_error(status, _HEIFY_MESSAGES.get(status, "Request failed"))


def s3_error(
    code: str,
    message: str | None = None,
    *,
    status: int | None = None,
    details: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error as S3 answers it, as XML; `message` and `status` default to what `S3_CODES` has for `code`."""
    usual_status, usual_message = S3_CODES.get(code, (400, code))
    elements = [
        ("Code", code),
        ("Message", usual_message if message is None else message),
        *details,
        ("RequestId", secrets.token_hex(8).upper()),
        ("HostId", secrets.token_urlsafe(57)),
    ]
    body = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in elements)
    return Response(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{body}</Error>',
        usual_status if status is None else status,
        headers,
        media_type="application/xml",
    )


def s3_status(status: int, message: str | None = None) -> Response:
    """Return S3's XML for a bare status, under the code that usually comes with it."""
    usual = "InvalidRequest" if status < 500 else "ServiceUnavailable"
    return s3_error(_S3_CODE_OF_STATUS.get(status, usual), message, status=status)
