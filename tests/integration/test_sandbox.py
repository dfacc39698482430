"""The sandbox over real sockets: both sides of an upload, what it refuses, its faults, and its restarts."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from heifyd.sandbox import (
    API_KEY,
    CONFIGURATION_ID,
    EVALUATOR_ID,
    PARTICIPANT_ID,
    FaultSpecError,
    RateLimit,
    Sandbox,
    SandboxError,
)

KEY = {"x-api-key": API_KEY}
BODY = b"RIFF....WAVEfmt " * 64
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
DEADLINE_S = 10.0


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "state", rate_limit=None) as running:
        yield running


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=DEADLINE_S, trust_env=False) as client:
        yield client


def until(state: Callable[[], bool]) -> None:
    ends = time.monotonic() + DEADLINE_S
    while not state():
        assert time.monotonic() < ends, "the state never came"
        time.sleep(0.005)


def ask(http: httpx.Client, sandbox: Sandbox, **fields: str | None) -> httpx.Response:
    asked = {"configuration_id": CONFIGURATION_ID, "evaluator_id": EVALUATOR_ID} | fields
    return http.post(f"{sandbox.url}/request-upload-url", headers=KEY, json=asked)


def step_1(http: httpx.Client, sandbox: Sandbox, **fields: str | None) -> dict[str, Any]:
    answer = ask(http, sandbox, **fields)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def meta(data: dict[str, Any], *names: str) -> dict[str, str]:
    wanted = names or ("configuration_id", "evaluator_id", "participant_id")
    return {f"x-amz-meta-{name}": data[name] for name in wanted if data[name] is not None}


def put(
    http: httpx.Client, data: dict[str, Any], body: bytes = BODY, more: dict[str, str] | None = None
) -> httpx.Response:
    headers = meta(data) | {"content-type": "audio/wav"} | (more or {})
    return http.put(data["upload_url"], content=body, headers=headers)


def s3_code(answer: httpx.Response) -> str:
    assert answer.headers["content-type"].startswith("application/xml")
    return answer.text.partition("<Code>")[2].partition("</Code>")[0]


def raw_put(data: dict[str, Any], *, length: int | None, body: bytes, more: str = "") -> socket.socket:
    url = urlsplit(data["upload_url"])
    assert url.hostname
    assert url.port
    lines = [f"PUT {url.path}?{url.query} HTTP/1.1", f"Host: {url.netloc}"]
    lines += [f"{name}: {value}" for name, value in meta(data).items()]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    client = socket.create_connection((url.hostname, url.port), timeout=DEADLINE_S)
    client.sendall("\r\n".join([*lines, more, ""] if more else [*lines, "", ""]).encode() + body)
    return client


def read_all(client: socket.socket) -> bytes:
    with client:
        return b"".join(iter(lambda: client.recv(65_536), b""))


def outcomes(sandbox: Sandbox, endpoint: str = "put") -> dict[str, int]:
    return sandbox.counters().requests.get(endpoint, {})


def test_an_upload_takes_two_steps_and_its_bytes_are_kept(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox, participant_id=PARTICIPANT_ID, name="Müller ü7.wav")

    answer = put(http, data)

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["etag"].startswith('"')
    assert data["name"] == "Mller 7.wav"
    assert sandbox.object_path(data["transcription_id"]).read_bytes() == BODY
    (one,) = sandbox.transcriptions()
    assert one.transcription_id == data["transcription_id"]
    assert (one.configuration_id, one.evaluator_id, one.participant_id) == (
        CONFIGURATION_ID,
        EVALUATOR_ID,
        PARTICIPANT_ID,
    )
    assert (one.stored, one.size_bytes, one.content_type, one.puts) == (True, len(BODY), "audio/wav", 1)
    assert one.sha256 == hashlib.sha256(BODY).hexdigest()


def test_the_url_signs_the_ids_of_the_answer_and_no_absent_one(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox, evaluator_id=None)

    signed = httpx.URL(data["upload_url"]).params["X-Amz-SignedHeaders"]

    assert signed == "host;x-amz-meta-configuration_id"
    assert httpx.URL(data["upload_url"]).params["X-Amz-Expires"] == "300"
    assert put(http, data).status_code == 200


def test_a_second_put_to_the_same_url_writes_the_same_object_again(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox)

    assert [put(http, data).status_code, put(http, data, b"other").status_code] == [200, 200]

    (one,) = sandbox.transcriptions()
    assert (one.puts, one.size_bytes) == (2, 5)
    assert sandbox.object_path(one.transcription_id).read_bytes() == b"other"


def test_a_large_body_arrives_whole(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox)
    body = os.urandom(8_000_000)

    assert put(http, data, body).status_code == 200

    (one,) = sandbox.transcriptions()
    assert (one.size_bytes, one.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert sandbox.counters().bytes_received == len(body)


def test_the_edition_of_2023_signs_configuration_and_name(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path, edition="2023") as sandbox:
        data = step_1(http, sandbox, name="call  7")

        signed = httpx.URL(data["upload_url"]).params["X-Amz-SignedHeaders"]
        assert signed == "host;x-amz-meta-configuration_id;x-amz-meta-name"
        assert s3_code(put(http, data)) == "AccessDenied"
        sent = http.put(data["upload_url"], content=BODY, headers=meta(data, "configuration_id", "name"))
        assert sent.status_code == 200


def test_a_version_2_url_needs_the_metadata_of_step_1(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path, edition="v2") as sandbox:
        data = step_1(http, sandbox)

        assert "AWSAccessKeyId=" in data["upload_url"]
        assert "X-Amz-SignedHeaders" not in data["upload_url"]
        assert s3_code(http.put(data["upload_url"], content=BODY)) == "SignatureDoesNotMatch"
        assert put(http, data).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"configuration_id": UNKNOWN_ID}, 400, "Configuration not found or does not belong to your account"),
        ({"configuration_id": "sales"}, 400, "configuration_id must be a valid UUID"),
        ({"configuration_id": None}, 400, "configuration_id is required"),
        ({"evaluator_id": UNKNOWN_ID}, 404, "Evaluator not found or does not belong to your account"),
        ({"participant_id": UNKNOWN_ID}, 404, "Participant not found or does not belong to your account"),
    ],
)
def test_an_id_that_is_not_the_accounts_is_refused(
    sandbox: Sandbox, http: httpx.Client, fields: dict[str, str | None], status: int, message: str
) -> None:
    answer = ask(http, sandbox, **fields)

    assert answer.status_code == status
    assert answer.json() == {"error": {"message": message, "code": status}}
    assert sandbox.transcriptions() == []


def test_any_uuid_will_do_where_that_is_asked_for(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path, accept_any_id=True) as sandbox:
        assert step_1(http, sandbox, configuration_id=UNKNOWN_ID)["configuration_id"] == UNKNOWN_ID


@pytest.mark.parametrize("key", [{}, {"x-api-key": "another"}])
def test_a_wrong_key_is_refused_as_the_gateway_does(sandbox: Sandbox, http: httpx.Client, key: dict[str, str]) -> None:
    answer = http.post(f"{sandbox.url}/request-upload-url", headers=key, json={})

    assert (answer.status_code, answer.json()) == (403, {"message": "Forbidden"})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(sandbox: Sandbox, http: httpx.Client, body: bytes) -> None:
    answer = http.post(f"{sandbox.url}/request-upload-url", headers=KEY, content=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 400)


def test_unknown_paths_and_methods_have_their_statuses(sandbox: Sandbox, http: httpx.Client) -> None:
    assert http.post(f"{sandbox.url}/submit-nothing", headers=KEY).json()["error"]["code"] == 404
    assert http.get(f"{sandbox.url}/request-upload-url", headers=KEY).json()["error"]["code"] == 405
    assert s3_code(http.get(step_1(http, sandbox)["upload_url"])) == "MethodNotAllowed"


def test_an_upload_that_breaks_its_signature_is_refused_and_not_kept(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox)

    assert s3_code(http.put(data["upload_url"], content=BODY)) == "SignatureDoesNotMatch"
    assert s3_code(put(http, data | {"evaluator_id": UNKNOWN_ID})) == "SignatureDoesNotMatch"
    assert s3_code(put(http, data, more={"x-amz-acl": "private"})) == "AccessDenied"
    assert s3_code(http.put(data["upload_url"].partition("?")[0], content=BODY)) == "AccessDenied"
    assert not sandbox.transcriptions()[0].stored


def test_a_body_needs_a_length_that_is_told_and_allowed(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path, max_bytes=1000) as sandbox:
        data = step_1(http, sandbox)

        chunked = http.put(data["upload_url"], content=iter([BODY]), headers=meta(data))
        assert (chunked.status_code, s3_code(chunked)) == (501, "NotImplemented")
        unsaid = read_all(raw_put(data, length=None, body=b"", more="Connection: close\r\n"))
        assert b" 411 " in unsaid.partition(b"\r\n")[0]
        assert b"<Code>MissingContentLength</Code>" in unsaid
        assert s3_code(put(http, data, b"x" * 1001)) == "EntityTooLarge"
        assert put(http, data, b"x" * 1000).status_code == 200


def test_a_body_that_ends_early_is_answered_and_never_stored(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox)

    client = raw_put(data, length=len(BODY), body=BODY[:-1])
    client.shutdown(socket.SHUT_WR)
    answer = read_all(client)

    assert b"<Code>IncompleteBody</Code>" in answer
    assert not sandbox.transcriptions()[0].stored
    assert not sandbox.object_path(data["transcription_id"]).exists()


def test_a_connection_lost_within_the_body_leaves_nothing_behind(
    sandbox: Sandbox, http: httpx.Client, tmp_path: Path
) -> None:
    data = step_1(http, sandbox)
    incoming = tmp_path / "state" / "incoming"

    with raw_put(data, length=len(BODY), body=BODY[:100]) as client:
        until(lambda: sandbox.counters().bytes_received == 100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    until(lambda: outcomes(sandbox) == {"gone": 1})
    assert not sandbox.transcriptions()[0].stored
    assert list(incoming.iterdir()) == []


def test_a_sender_that_falls_silent_is_told_so(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path, body_timeout_s=0.05) as sandbox:
        data = step_1(http, sandbox)

        assert b"<Code>RequestTimeout</Code>" in read_all(raw_put(data, length=len(BODY), body=BODY[:100]))
        assert not sandbox.transcriptions()[0].stored


def test_a_transcription_is_found_once_its_object_has_arrived(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path, processing_s=3600) as sandbox:
        data = step_1(http, sandbox)
        asked = {"transcription_id": data["transcription_id"]}

        before = http.post(f"{sandbox.url}/get-transcription", headers=KEY, json=asked)
        put(http, data)
        after = http.post(f"{sandbox.url}/get-transcription", headers=KEY, json=asked)

    assert (before.status_code, before.json()["error"]["code"]) == (404, 404)
    assert after.json()["data"]["status"] == "PROCESSING"
    assert after.json()["data"]["details"] is None


def test_a_completed_transcription_has_a_conversation_and_its_tags(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox)
    put(http, data)

    answer = http.post(f"{sandbox.url}/get-transcription", headers=KEY, json=data)

    found = answer.json()["data"]
    assert (found["status"], found["configuration_tag"]) == ("COMPLETED", "Support calls")
    assert (found["evaluator_tag"], found["participant_tag"]) == ("Quality score", None)
    assert found["details"]["conversation"]["segments"][0].keys() == {"text", "speaker"}


def test_a_transcription_without_object_may_have_a_status_of_its_own(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path, unstored_status="PENDING") as sandbox:
        answer = http.post(f"{sandbox.url}/get-transcription", headers=KEY, json=step_1(http, sandbox))

    assert answer.json()["data"]["status"] == "PENDING"


def test_what_the_account_has_is_listed(sandbox: Sandbox, http: httpx.Client) -> None:
    made = step_1(http, sandbox)["transcription_id"]

    def listed(what: str) -> Any:
        return http.post(f"{sandbox.url}/list-{what}", headers=KEY, json={}).json()["data"]

    assert listed("configurations") == {
        "items": [{"configuration_id": CONFIGURATION_ID, "tag": "Support calls"}],
        "count": 1,
    }
    assert listed("evaluators")["items"] == [{"evaluator_id": EVALUATOR_ID, "tag": "Quality score"}]
    assert listed("participants")["items"] == [{"participant_id": PARTICIPANT_ID, "tag": "Sales desk"}]
    assert [item["transcription_id"] for item in listed("transcriptions")["items"]] == [made]


def test_more_than_the_burst_is_too_many(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path, rate_limit=RateLimit(per_minute=0.001, burst=17), retry_after_s=9) as sandbox:
        answers = [ask(http, sandbox) for _ in range(20)]
        listed = http.post(f"{sandbox.url}/list-evaluators", headers=KEY, json={})

        assert [answer.status_code for answer in answers] == [200] * 17 + [429] * 3
        assert answers[-1].json() == {"message": "Too Many Requests"}
        assert answers[-1].headers["retry-after"] == "9"
        assert listed.status_code == 200
        assert sandbox.counters().too_many_requests == 3


def test_the_rate_limit_is_heifys_unless_another_is_given(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path) as sandbox:
        listed = [http.post(f"{sandbox.url}/list-evaluators", headers=KEY, json={}) for _ in range(4)]

    assert [answer.status_code for answer in listed] == [200, 200, 200, 429]
    assert "retry-after" not in listed[-1].headers


@pytest.mark.parametrize(
    ("spec", "status", "body"),
    [
        ("402", 402, {"error": {"message": "Your account is out of transcription minutes", "code": 402}}),
        ("403", 403, {"message": "Forbidden"}),
        ("429", 429, {"message": "Too Many Requests"}),
        ("503", 503, {"message": "Service Unavailable"}),
        ('400 "Unsupported audio format"', 400, {"error": {"message": "Unsupported audio format", "code": 400}}),
        ("wrong-shape", 200, {"result": ["fine"], "data": "see result"}),
    ],
)
def test_a_fault_of_step_1_is_answered_as_heify_would(
    sandbox: Sandbox, http: httpx.Client, spec: str, status: int, body: dict[str, Any]
) -> None:
    sandbox.fail(f"{spec} x1")

    answer = ask(http, sandbox)

    assert (answer.status_code, answer.json()) == (status, body)
    assert sandbox.transcriptions() == []
    assert ask(http, sandbox).status_code == 200


@pytest.mark.parametrize(
    ("spec", "status", "code"),
    [
        ("SlowDown", 503, "SlowDown"),
        ("ExpiredToken", 400, "ExpiredToken"),
        ("put 500", 500, "InternalError"),
        ("put 403", 403, "AccessDenied"),
        ("put retry-after 5", 503, "SlowDown"),
    ],
)
def test_a_fault_of_the_put_is_answered_as_s3_would(
    sandbox: Sandbox, http: httpx.Client, spec: str, status: int, code: str
) -> None:
    data = step_1(http, sandbox)
    sandbox.fail(f"{spec} x1")

    refused = put(http, data, b"x" * 1_000_000)

    assert (refused.status_code, s3_code(refused)) == (status, code)
    assert not sandbox.transcriptions()[0].stored
    assert put(http, data).status_code == 200


def test_answers_that_are_no_answers(sandbox: Sandbox, http: httpx.Client) -> None:
    for spec in ("html x1", "not-json x1", "huge x1", "redirect x1", "retry-after 30 x1"):
        sandbox.fail(spec)

    page, not_json, huge, redirect, too_many = (ask(http, sandbox) for _ in range(5))

    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (502, "text/html")
    with pytest.raises(json.JSONDecodeError):
        not_json.json()
    assert (huge.status_code, len(huge.content) > 10_000_000) == (200, True)
    assert (redirect.status_code, redirect.headers["location"]) == (307, "https://elsewhere.invalid/")
    assert (too_many.status_code, too_many.headers["retry-after"]) == (429, "30")


def test_an_endless_answer_ends_when_the_client_leaves(sandbox: Sandbox, http: httpx.Client) -> None:
    sandbox.fail("endless x1")
    asked = {"configuration_id": CONFIGURATION_ID}

    with http.stream("POST", f"{sandbox.url}/request-upload-url", headers=KEY, json=asked) as answer:
        read = 0
        for chunk in answer.iter_bytes():
            read += len(chunk)
            if read > 20_000_000:
                break

    until(lambda: outcomes(sandbox, "request-upload-url") == {"200": 1})


@pytest.mark.parametrize("spec", ["endless", "api stall"])
def test_stopping_waits_for_no_request_that_never_ends(tmp_path: Path, spec: str) -> None:
    threads = threading.active_count()
    with Sandbox(tmp_path, faults=[spec]) as sandbox:
        client = socket.create_connection(("127.0.0.1", urlsplit(sandbox.url).port or 0), timeout=DEADLINE_S)
        client.sendall(b"POST /request-upload-url HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        if spec == "endless":
            client.recv(1)
        started = time.monotonic()

    assert time.monotonic() - started < 5.0
    assert threading.active_count() == threads
    client.close()


@pytest.mark.parametrize("spec", ["reset", "cut-body"])
def test_a_reset_is_a_reset_and_stores_nothing(sandbox: Sandbox, http: httpx.Client, spec: str) -> None:
    data = step_1(http, sandbox)
    sandbox.fail(f"{spec} x1")

    with raw_put(data, length=1_000_000, body=b"x" * 1000) as client, pytest.raises(ConnectionResetError):
        client.recv(1)

    until(lambda: outcomes(sandbox) == {spec: 1})
    assert not sandbox.transcriptions()[0].stored
    assert put(http, data).status_code == 200


def test_a_cut_answer_comes_after_the_object_was_stored(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox)
    sandbox.fail("cut-answer x1")

    with pytest.raises(httpx.RemoteProtocolError):
        put(http, data)

    assert sandbox.object_path(data["transcription_id"]).read_bytes() == BODY
    assert sandbox.transcriptions()[0].puts == 1


def test_a_stalled_upload_is_not_read(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox)
    sandbox.fail("stall x1")
    offered = 64_000_000

    with raw_put(data, length=offered, body=b"") as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.sendall(b"x" * offered)

    assert sandbox.counters().bytes_received == 0


def test_a_stalled_request_ends_when_the_client_leaves(sandbox: Sandbox, http: httpx.Client) -> None:
    sandbox.fail("api stall x1")

    with pytest.raises(httpx.ReadTimeout):
        http.post(f"{sandbox.url}/request-upload-url", headers=KEY, json={}, timeout=0.1)

    until(lambda: outcomes(sandbox, "request-upload-url") == {"stall": 1})


def test_a_dripping_upload_takes_its_time_and_arrives_whole(sandbox: Sandbox, http: httpx.Client) -> None:
    data = step_1(http, sandbox)
    body = os.urandom(10_000)
    sandbox.fail("drip x1")

    started = time.monotonic()
    answer = put(http, data, body)

    assert answer.status_code == 200
    assert time.monotonic() - started >= len(body) / 20_000
    assert sandbox.object_path(data["transcription_id"]).read_bytes() == body


def test_step_1_may_answer_urls_that_no_client_should_use(sandbox: Sandbox, http: httpx.Client) -> None:
    twists = ("http-url", "foreign-host", "unknown-signed-header", "no-upload-url", "expired-url")
    for spec in twists:
        sandbox.fail(f"{spec} x1")

    plain, foreign, unknown, missing, expired = (step_1(http, sandbox) for _ in twists)

    assert plain["upload_url"].startswith("http://elsewhere.invalid/upload/")
    assert foreign["upload_url"].startswith("https://elsewhere.invalid/upload/")
    assert "x-amz-meta-batch_id" in unknown["upload_url"]
    assert "upload_url" not in missing
    refused = put(http, expired)
    assert (s3_code(refused), "Request has expired" in refused.text) == ("AccessDenied", True)


def test_latency_comes_before_each_answer(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path, latency_s=0.05) as sandbox:
        started = time.monotonic()
        put(http, step_1(http, sandbox))

    assert time.monotonic() - started >= 0.1


def test_faults_are_set_seen_and_cleared_over_http(sandbox: Sandbox, http: httpx.Client) -> None:
    control = f"{sandbox.url}/_sandbox/faults"

    bad = http.post(control, json={"spec": "stal"})
    set_up = http.post(control, json={"spec": "503 x2"})
    assert ask(http, sandbox).status_code == 503
    left = http.get(control).json()
    cleared = http.delete(control).json()

    assert (bad.status_code, "`stall`" in bad.json()["error"]["message"]) == (400, True)
    assert http.post(control, content=b"[]").status_code == 400
    assert set_up.json()["faults"][0]["times_left"] == 2
    assert left["faults"] == [{"spec": "503 x2", "times_left": 1, "seconds_left": None}]
    assert cleared == {"faults": []}
    assert ask(http, sandbox).status_code == 200


def test_what_has_happened_is_seen_over_http(sandbox: Sandbox, http: httpx.Client) -> None:
    put(http, step_1(http, sandbox))
    put(http, step_1(http, sandbox) | {"evaluator_id": UNKNOWN_ID})

    transcriptions = http.get(f"{sandbox.url}/_sandbox/transcriptions").json()
    counters = http.get(f"{sandbox.url}/_sandbox/counters").json()

    assert [(one["stored"], one["puts"]) for one in transcriptions] == [(True, 1), (False, 0)]
    assert counters["requests"] == {"request-upload-url": {"200": 2}, "put": {"200": 1, "403": 1}}
    assert counters["bytes_received"] == len(BODY)


def test_a_sandbox_may_be_stopped_and_started_at_the_same_port(tmp_path: Path, http: httpx.Client) -> None:
    threads = threading.active_count()
    sandbox = Sandbox(tmp_path)
    with sandbox:
        url = sandbox.url
        data = step_1(http, sandbox)
        assert sandbox.alive

    assert not sandbox.alive
    assert threading.active_count() == threads
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    with sandbox:
        assert sandbox.url == url
        assert put(http, data).status_code == 200


def test_an_object_that_arrived_just_before_a_kill_counts_as_stored(tmp_path: Path, http: httpx.Client) -> None:
    with Sandbox(tmp_path) as sandbox:
        data = step_1(http, sandbox)
        sandbox.object_path(data["transcription_id"]).write_bytes(BODY)

    with Sandbox(tmp_path) as again:
        (one,) = again.transcriptions()

    assert (one.stored, one.size_bytes, one.sha256) == (True, len(BODY), hashlib.sha256(BODY).hexdigest())


def test_an_address_that_cannot_be_had_is_a_clear_error(sandbox: Sandbox, tmp_path: Path) -> None:
    port = urlsplit(sandbox.url).port
    assert port

    with pytest.raises(SandboxError, match=f"port {port}"):
        Sandbox(tmp_path / "other", port=port).start()
    with pytest.raises(SandboxError, match="every network"):
        Sandbox(tmp_path / "other", host="")
    with pytest.raises(FaultSpecError):
        Sandbox(tmp_path / "other", faults=["nonsense"])


SERVE = """
import sys
from pathlib import Path
from heifyd.sandbox import Sandbox, serve
serve(Sandbox(Path(sys.argv[1]), port=int(sys.argv[2])), on_ready=lambda url: print(url, flush=True))
"""


def served(state: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVE, str(state), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_a_killed_sandbox_knows_at_its_next_start_what_it_knew(tmp_path: Path, http: httpx.Client) -> None:
    first, url = served(tmp_path, 0)
    asked = {"configuration_id": CONFIGURATION_ID, "evaluator_id": EVALUATOR_ID}
    stored, waiting = (http.post(f"{url}/request-upload-url", headers=KEY, json=asked).json()["data"] for _ in range(2))
    assert put(http, stored).status_code == 200
    half = raw_put(waiting, length=len(BODY), body=BODY[:100])
    until(lambda: http.get(f"{url}/_sandbox/counters").json()["bytes_received"] == len(BODY) + 100)
    first.kill()
    first.communicate()
    half.close()

    second, same_url = served(tmp_path, urlsplit(url).port or 0)
    seen = {one["transcription_id"]: one for one in http.get(f"{url}/_sandbox/transcriptions").json()}
    late = put(http, waiting)
    second.send_signal(signal.SIGTERM)
    _, complaints = second.communicate(timeout=DEADLINE_S)

    assert same_url == url
    assert seen[stored["transcription_id"]]["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert not seen[waiting["transcription_id"]]["stored"]
    assert late.status_code == 200
    assert (second.returncode, complaints) == (0, "")
