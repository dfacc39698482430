"""The answers that faults put in the place of the true ones."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from starlette.responses import JSONResponse, Response, StreamingResponse

from heifyd.sandbox.answers import gateway_error, heify_error, s3_error, s3_status, usual_error
from heifyd.sandbox.faults import Endpoint, Fault, Kind

HUGE_BYTES: Final = 10_000_000
ELSEWHERE: Final = "elsewhere.invalid"
"""A host that never resolves (RFC 6761)."""

_CHUNK: Final = b" " * 65_536
_PAGE: Final = """<html>
<head><title>502 Bad Gateway</title></head>
<body><center><h1>502 Bad Gateway</h1></center></body>
</html>
"""


def staged_answer(fault: Fault, endpoint: Endpoint) -> Response | None:
    """Return the answer that `fault` gives instead of the true one, or None where it is no matter of an answer."""
    by_s3 = endpoint is Endpoint.PUT
    match fault.kind:
        case Kind.STATUS | Kind.S3_ERROR:
            return _refusal(fault, by_s3=by_s3)
        case Kind.HTML:
            return Response(_PAGE, 502, media_type="text/html")
        case Kind.NOT_JSON:
            return Response("upstream says: fine", 200, media_type="application/json")
        case Kind.WRONG_SHAPE:
            return JSONResponse({"result": ["fine"], "data": "see result"})
        case Kind.HUGE:
            return JSONResponse({"data": {"padding": "x" * HUGE_BYTES}}, 500 if by_s3 else 200)
        case Kind.ENDLESS:
            return StreamingResponse(_spaces(), 500 if by_s3 else 200, media_type="application/json")
        case Kind.REDIRECT:
            return Response("", 307, {"location": f"https://{ELSEWHERE}/"})
        case Kind.RETRY_AFTER:
            headers = {"retry-after": str(fault.retry_after_s)}
            return s3_error("SlowDown", headers=headers) if by_s3 else gateway_error(429, headers)
        case _:
            return None


def _refusal(fault: Fault, *, by_s3: bool) -> Response:
    if fault.code is not None:
        return s3_error(fault.code, fault.message)
    status = fault.status or 500
    if by_s3:
        return s3_status(status, fault.message)
    return usual_error(status) if fault.message is None else heify_error(status, fault.message)


async def _spaces() -> AsyncIterator[bytes]:
    while True:
        yield _CHUNK
        # Writing to a client that reads fast, or has left, never waits: others must have their turn.
        await asyncio.sleep(0)
