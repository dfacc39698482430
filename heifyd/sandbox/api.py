"""Heify's side: the calls that are answered in JSON."""

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from heifyd.recording import Ids
from heifyd.sandbox import details, sigv2, sigv4
from heifyd.sandbox.answers import gateway_error, heify_error
from heifyd.sandbox.faults import Endpoint, Fault, Kind
from heifyd.sandbox.limits import TokenBucket
from heifyd.sandbox.options import Options
from heifyd.sandbox.staged import ELSEWHERE
from heifyd.sandbox.storage import PREFIX
from heifyd.sandbox.store import Store, Transcription

ENDPOINTS: Final = {
    "/request-upload-url": Endpoint.REQUEST_UPLOAD_URL,
    "/get-transcription": Endpoint.GET_TRANSCRIPTION,
    "/list-configurations": Endpoint.LIST,
    "/list-evaluators": Endpoint.LIST,
    "/list-participants": Endpoint.LIST,
    "/list-transcriptions": Endpoint.LIST,
}

_EXPIRED_AGO_S: Final = 3600.0


class _RefusedError(Exception):
    """A request that is answered with an error: `args` are the status and the message."""


class Api:
    """Answers the calls of one account."""

    def __init__(self, options: Options, store: Store) -> None:
        self._options = options
        self._store = store
        limit = options.rate_limit
        self._upload_bucket = TokenBucket(limit.per_minute, limit.burst) if limit else None
        self._list_bucket = TokenBucket(limit.list_per_minute, limit.list_burst) if limit else None

    def call(
        self, path: str, headers: Mapping[bytes, bytes], body: bytes, *, origin: str, fault: Fault | None
    ) -> Response:
        """Answer one POST to one of `ENDPOINTS`.

        `origin` is where upload URLs point to, ``http://host:port``; `fault` may twist the URL that is answered.
        """
        if headers.get(b"x-api-key") != self._options.api_key.encode():
            return gateway_error(403)
        bucket = self._list_bucket if ENDPOINTS[path] is Endpoint.LIST else self._upload_bucket
        if bucket is not None and not bucket.take(time.monotonic()):
            wait_s = self._options.retry_after_s
            return gateway_error(429, None if wait_s is None else {"retry-after": str(wait_s)})
        try:
            asked = _object(body)
            match path:
                case "/request-upload-url":
                    data = self._request_upload_url(asked, origin, fault)
                case "/get-transcription":
                    data = self._get_transcription(asked)
                case "/list-transcriptions":
                    data = _items([self._summary(one) for one in self._store.all()])
                case _:
                    data = self._list_tags(path)
        except _RefusedError as refused:
            return heify_error(*refused.args)
        return JSONResponse({"data": data})

    def _request_upload_url(self, asked: dict[str, Any], origin: str, fault: Fault | None) -> dict[str, Any]:
        options = self._options
        configuration_id = self._known_id(asked, "configuration", options.configurations, 400)
        if configuration_id is None:
            raise _RefusedError(400, "configuration_id is required")
        ids = Ids(
            configuration_id,
            self._known_id(asked, "evaluator", options.evaluators, 404),
            self._known_id(asked, "participant", options.participants, 404),
        )
        name = asked.get("name")
        if not isinstance(name, str | None):
            raise _RefusedError(400, "name must be a string")
        made = self._store.create(ids, None if name is None else name.encode("ascii", "ignore").decode())
        data = {
            "transcription_id": made.transcription_id,
            "upload_url": self._upload_url(made, origin, None if fault is None else fault.kind),
            "configuration_id": made.configuration_id,
            "participant_id": made.participant_id,
            "evaluator_id": made.evaluator_id,
            "name": made.name,
        }
        if fault is not None and fault.kind is Kind.NO_UPLOAD_URL:
            del data["upload_url"]
        return data

    def _upload_url(self, made: Transcription, origin: str, twist: Kind | None) -> str:
        options = self._options
        at_s = time.time()
        signed = {"configuration_id": made.configuration_id, "evaluator_id": made.evaluator_id}
        signed["participant_id"] = made.participant_id
        if options.edition == "2023":
            signed = {"configuration_id": made.configuration_id, "name": made.name}
        if twist is Kind.UNKNOWN_SIGNED_HEADER:
            signed["batch_id"] = "7"
        if twist is Kind.EXPIRED_URL:
            at_s -= options.url_lifetime_s + _EXPIRED_AGO_S
        presign_put = sigv2.presign_put if options.edition == "v2" else sigv4.presign_put
        url = presign_put(
            origin,
            f"{PREFIX}{self._store.account.client_id}/{made.transcription_id}",
            {f"x-amz-meta-{name}": value for name, value in signed.items() if value is not None},
            self._store.account.credentials,
            at_s=at_s,
            expires_s=options.url_lifetime_s,
        )
        if twist is Kind.HTTP_URL:
            return url.replace(origin, f"http://{ELSEWHERE}", 1)
        if twist is Kind.FOREIGN_HOST:
            return url.replace(origin, f"https://{ELSEWHERE}", 1)
        return url

    def _known_id(self, asked: dict[str, Any], what: str, known: Mapping[str, str], status: int) -> str | None:
        given = asked.get(f"{what}_id")
        if given is None:
            return None
        try:
            found = str(uuid.UUID(given)) if isinstance(given, str) else ""
        except ValueError:
            found = ""
        if not found or found != given.lower():
            raise _RefusedError(400, f"{what}_id must be a valid UUID")
        if found not in known and not self._options.accept_any_id:
            raise _RefusedError(status, f"{what.capitalize()} not found or does not belong to your account")
        return found

    def _get_transcription(self, asked: dict[str, Any]) -> dict[str, Any]:
        wanted = asked.get("transcription_id")
        if not isinstance(wanted, str):
            raise _RefusedError(400, "transcription_id is required")
        found = self._store.get(wanted)
        if found is None or (not found.stored and self._options.unstored_status is None):
            raise _RefusedError(404, "Transcription not found or does not belong to your account")
        answer = self._summary(found)
        completed = answer["status"] == details.COMPLETED
        path = self._store.object_path(found.transcription_id)
        answer["duration"] = details.duration_s(path, found.size_bytes or 0) if completed else None
        answer["details"] = details.details(found, self._options.processing_s) if completed else None
        return answer

    def _summary(self, one: Transcription) -> dict[str, Any]:
        options = self._options
        return {
            "transcription_id": one.transcription_id,
            "status": details.status(one, options.processing_s) or options.unstored_status or "WAITING",
            "configuration_id": one.configuration_id,
            "configuration_tag": options.configurations.get(one.configuration_id),
            "name": one.name,
            "group": None,
            "participant_id": one.participant_id,
            "participant_tag": options.participants.get(one.participant_id or ""),
            "evaluator_id": one.evaluator_id,
            "evaluator_tag": options.evaluators.get(one.evaluator_id or ""),
            "created_at": one.created_at,
        }

    def _list_tags(self, path: str) -> dict[str, Any]:
        options = self._options
        field, tags = {
            "/list-configurations": ("configuration_id", options.configurations),
            "/list-evaluators": ("evaluator_id", options.evaluators),
            "/list-participants": ("participant_id", options.participants),
        }[path]
        return _items([{field: one, "tag": tag} for one, tag in tags.items()])


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise _RefusedError(400, "The request's body is not JSON") from error
    if not isinstance(asked, dict):
        raise _RefusedError(400, "The request's body must be a JSON object")
    return asked


def _items(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"items": items, "count": len(items)}
