"""The storage's side: a pre-signed PUT is judged as S3 judges it, and its body kept."""

import asyncio
import time
from typing import TYPE_CHECKING

from starlette.responses import Response

from heifyd.sandbox import sigv2, sigv4
from heifyd.sandbox.answers import s3_error
from heifyd.sandbox.counters import Tally
from heifyd.sandbox.options import Options
from heifyd.sandbox.store import Incoming, Store

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

PREFIX = "/upload/"
"""The path of every object begins so; then come the client's id and the transcription's."""

_CLOSE = {"connection": "close"}


class Storage:
    """Takes objects into a store."""

    def __init__(self, options: Options, store: Store, tally: Tally) -> None:
        self._options = options
        self._store = store
        self._tally = tally

    async def put(self, scope: "Scope", receive: "Receive") -> Response | None:
        """Answer one PUT, or return None when the client left before its end.

        Expiry is judged now, as the request arrives. An object is stored once its last byte is here, and not before.
        """
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = dict(headers)
        refused = self._refusal(scope, given)
        if refused is not None:
            return refused
        transcription_id = scope["path"].rpartition("/")[2]
        if self._store.get(transcription_id) is None:
            return s3_error("NoSuchKey")
        with self._store.receive(transcription_id) as incoming:
            try:
                if not await self._read_body(receive, incoming):
                    return None
            except TimeoutError:
                return s3_error("RequestTimeout", headers=_CLOSE)
            if incoming.size_bytes < int(given[b"content-length"]):
                return s3_error("IncompleteBody", headers=_CLOSE)
            content_type = given.get(b"content-type", b"binary/octet-stream").decode("latin-1")
            sha256 = incoming.complete(content_type)
        return Response(headers={"etag": f'"{sha256[:32]}"'})

    def _refusal(self, scope: "Scope", given: dict[bytes, bytes]) -> Response | None:
        if scope["method"] != "PUT":
            return s3_error("MethodNotAllowed", headers={"allow": "PUT"})
        return self._refused_by_signature(scope) or self._refused_by_length(given)

    def _refused_by_signature(self, scope: "Scope") -> Response | None:
        query: bytes = scope["query_string"]
        version = sigv2 if b"AWSAccessKeyId=" in query else sigv4
        if version is sigv4 and b"X-Amz-" not in query:
            return s3_error("AccessDenied")
        credentials = self._store.account.credentials
        refusal = version.check("PUT", scope["raw_path"], query, scope["headers"], credentials, now_s=time.time())
        if refusal is not None:
            return s3_error(refusal.code, refusal.message, details=refusal.details)
        return None

    def _refused_by_length(self, given: dict[bytes, bytes]) -> Response | None:
        if b"transfer-encoding" in given:
            return s3_error("NotImplemented", details=[("Header", "Transfer-Encoding")])
        if b"content-length" not in given:
            return s3_error("MissingContentLength")
        size = int(given[b"content-length"])
        if size > self._options.max_bytes:
            details = [("ProposedSize", str(size)), ("MaxSizeAllowed", str(self._options.max_bytes))]
            return s3_error("EntityTooLarge", details=details)
        return None

    async def _read_body(self, receive: "Receive", incoming: Incoming) -> bool:
        """Read to the body's end and return True, or False when the connection was lost; TimeoutError on silence."""
        more = True
        while more:
            async with asyncio.timeout(self._options.body_timeout_s):
                message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk: bytes = message.get("body", b"")
            incoming.write(chunk)
            self._tally.received(len(chunk))
            more = message.get("more_body", False)
        return True
