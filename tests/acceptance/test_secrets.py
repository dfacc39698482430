"""The API key and the signatures of upload URLs, as canaries through every path: no output holds either.

The Heify here is a fake of the tests' own, since its URLs need a signature that is known beforehand, and its answers
are worse than any sandbox's: they say back whatever secret they were sent.
"""

import json
import os
import pty
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from urllib.parse import quote

import pytest

from heifyd.sandbox import CONFIGURATION_ID, EVALUATOR_ID, PARTICIPANT_ID
from tests.harness import LIMIT_S, ROOT, DaemonProcess, Place, Process, eventually, make_place, running, sample

KEY: Final = "hfy-KEYCANARY7f3a9b2c4d5e6f"
SIGNATURE: Final = "c0ffee5160a7e3b1" * 4
OLD_SIGNATURE: Final = "CanarySignature+of/Version2="
TOKEN: Final = "IQoJCANARYTOKEN00b3JpZ2luX2Vj"
ACCESS_KEY: Final = "AKIACANARYQ7W5E3R1T9"
PROXY_PASSWORD: Final = "proxy-CANARY-55e1"

SECRETS: Final = {
    "the key": KEY,
    "the signature": SIGNATURE,
    "a version 2 signature": OLD_SIGNATURE,
    "a version 2 signature, quoted": quote(OLD_SIGNATURE, safe=""),
    "the session token": TOKEN,
    "the credential": ACCESS_KEY,
    "the proxy's password": PROXY_PASSWORD,
}
QUICK: Final = "settle_seconds: 0.3\nworkers: 1"
FAST: Final = {"REHEARSAL_SPEED": "30"}

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


def secrets_in(text: str) -> list[str]:
    """Return which secrets, or the most of which, a text holds, also where they run over the end of a line."""
    plain = _COLOURS.sub("", text)
    squeezed = "".join(plain.split())
    mostly = {name: secret[: len(secret) * 3 // 4] for name, secret in SECRETS.items()}
    return [name for name, secret in mostly.items() if secret in plain or secret in squeezed]


# The fake Heify


RESET: Final = b""
"""In an answer's stead: the connection is reset."""

STALL: Final = b"..."
"""In an answer's stead: nothing, until the fake stops."""


@dataclass(frozen=True)
class Request:
    """What came in at a server."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def all_text(self) -> str:
        return "\n".join((self.method, self.path, *(f"{k}: {v}" for k, v in self.headers.items())))


class Server:
    """An HTTP server on loopback that keeps what it was asked and answers with the bytes that `answer` makes of it."""

    def __init__(self, answer: Callable[[Request], bytes]) -> None:
        self.requests: list[Request] = []
        self.leaving = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            timeout: ClassVar[float] = LIMIT_S

            def any_method(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, dict(self.headers.items()), body)
                server.requests.append(request)
                raw = answer(request)
                if raw == STALL:
                    server.leaving.wait(LIMIT_S)
                elif raw == RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                else:
                    self.wfile.write(raw)

            do_GET = do_POST = do_PUT = do_CONNECT = any_method  # noqa: N815 (http.server's names)

            def finish(self) -> None:
                try:
                    super().finish()
                except OSError:
                    return  # it was reset on purpose, or the daemon was killed

            def log_message(self, *_: Any) -> None:
                return

        class Listener(ThreadingHTTPServer):
            daemon_threads = False

            def handle_error(self, *_: Any) -> None:
                return  # a client that was killed

        self._listener = Listener(("127.0.0.1", 0), Handler)
        self.port: int = self._listener.server_address[1]
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), name="test-server")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()


def answer(status: str, body: str = "", *headers: str) -> bytes:
    """Write an answer; the status goes with its reason phrase."""
    raw = body.encode()
    head = (f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(raw)}", "Connection: close", "", "")
    return "\r\n".join(head).encode("latin-1") + raw


def as_json(value: object, status: str = "200 OK") -> bytes:
    return answer(status, json.dumps(value), "Content-Type: application/json")


def s3(code: str, message: str, status: str = "403 Forbidden", **more: str) -> bytes:
    """Write an error as S3 does."""
    fields = {"Code": code, "Message": message, **more}
    inner = "".join(f"<{k}>{v.replace('&', '&amp;')}</{k}>" for k, v in fields.items())
    return answer(
        status, f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>', "Content-Type: application/xml"
    )


def said_back(url: str) -> str:
    """Return a text that says every secret back: bare, by its name and as the whole URL.

    S3's SignatureDoesNotMatch does so in SignatureProvided and StringToSign.
    """
    return f"{KEY} {bare(url)} {url}"


def bare(url: str) -> str:
    """Return the URL's secrets without the names that they have in it, quoted as there and not."""
    if "X-Amz-Signature" in url:
        return f"{SIGNATURE} ({TOKEN})"
    return f"{OLD_SIGNATURE} {quote(OLD_SIGNATURE, safe='')}"


def first(url: str) -> str:
    return bare(url).partition(" ")[0]


Way = Callable[[str, str], bytes]
"""Makes an answer from the URL that is, or would be, the upload's, and a URL of the trap."""


def refused(message: str, status: str) -> bytes:
    return as_json({"error": {"message": message, "code": int(status[:3])}}, status)


PUT_WAYS: Final[dict[str, Way]] = {
    "put-reset": lambda _url, _trap: RESET,
    "put-illegal-status-line": lambda url, _: f"NO-HTTP {said_back(url)}\r\n\r\n".encode(),
    "put-illegal-header": lambda url, _: f"HTTP/1.1 500 Oh\r\nEcho {bare(url)} {KEY}\r\n\r\n".encode(),
    "put-illegal-length": lambda url, _: f"HTTP/1.1 500 Oh\r\nContent-Length: {bare(url)} {KEY}\r\n\r\n".encode(),
    "put-reason-phrase": lambda url, _: answer(f"500 {said_back(url)}"),
    "put-headers": lambda url, _: answer("503 Slow", "", f"Retry-After: {bare(url)}", f"ETag: {url}", f"X-Key: {KEY}"),
    "put-s3-url": lambda url, _: s3("SignatureDoesNotMatch", f"The request for {url} is not signed so"),
    "put-s3-signature": lambda url, _: s3(
        "SignatureDoesNotMatch", f"We calculated another signature than {bare(url)}", SignatureProvided=bare(url)
    ),
    "put-s3-key": lambda _url, _trap: s3("InvalidAccessKeyId", f"There is no {KEY} in our records"),
    "put-s3-code": lambda url, _: s3(bare(url), "", "500 Internal"),
    "put-s3-all": lambda url, _: s3("AccessDenied", said_back(url), StringToSign=said_back(url)),
    "put-s3-message-cut-short": lambda url, _: s3(
        "AccessDenied", f"{'x' * (501 - len(first(url)))}{first(url)} is not it"
    ),
    "put-s3-code-cut-short": lambda url, _: s3(f"{'x' * (101 - len(first(url)))}{first(url)}", ""),
    "put-s3-refusal": lambda url, _: s3("EntityTooLarge", said_back(url), "400 Bad Request"),
    "put-plain-refusal": lambda _url, _trap: s3("EntityTooLarge", "It is too large", "400 Bad Request"),
    "put-page": lambda url, _: answer("502 Bad Gateway", f"<html>{said_back(url)}</html>"),
    "put-redirect": lambda url, trap: answer("307 Temporary Redirect", "", f"Location: {trap}?{url.partition('?')[2]}"),
    "put-bad-redirect": lambda url, _: answer("302 Found", "", f"Location: http://[{bare(url)}/?{url} {KEY}"),
}
"""How a PUT may go wrong."""

API_WAYS: Final[dict[str, Way]] = {
    "api-reset": lambda _url, _trap: RESET,
    "api-illegal-status-line": lambda url, _: f"NO-HTTP {KEY} {url}\r\n\r\n".encode(),
    "api-illegal-header": lambda _url, _trap: f"HTTP/1.1 200 OK\r\nEcho {KEY}\r\n\r\n".encode(),
    "api-reason-phrase": lambda url, _: answer(f"500 {KEY} {url}"),
    "api-error": lambda url, _: refused(f"no good: {KEY} {url}", "500 Internal Server Error"),
    "api-old-error": lambda url, _: as_json({"message": f"{KEY} {url}"}, "503 Service Unavailable"),
    "api-error-cut-short": lambda _url, _trap: refused(f"{'x' * (501 - len(KEY))}{KEY} is no key", "500 Oh"),
    "api-refusal": lambda url, _: refused(f"Unsupported audio format: {KEY} {url}", "400 Bad Request"),
    "api-no-json": lambda url, _: answer("200 OK", f"{KEY} {url}"),
    "api-wrong-shape": lambda url, _: as_json({"data": {f"{KEY} {url}": url, "upload_url": [url], "key": KEY}}),
    "api-unsafe-url": lambda url, _: as_json(
        given("t-unsafe", url.replace("http://127.0.0.1", "http://heify.invalid"))
    ),
    "api-redirect": lambda _url, trap: answer("307 Temporary Redirect", "", f"Location: {trap}?key={KEY}"),
}
"""How the request for an upload URL may go wrong."""

ASKED: Final = "asked-whether-it-arrived"
"""The PUT's answer is lost, the URL is spent, and what Heify says of the upload is a secret."""

REFUSED: Final = {"put-s3-refusal", "put-plain-refusal", "api-refusal"}
WAYS: Final = (*PUT_WAYS, *API_WAYS, ASKED)


def given(transcription_id: str, url: str) -> dict[str, object]:
    """Return what Heify answers to the request for an upload URL."""
    return {
        "data": {
            "transcription_id": transcription_id,
            "upload_url": url,
            "configuration_id": CONFIGURATION_ID,
            "evaluator_id": EVALUATOR_ID,
            "participant_id": PARTICIPANT_ID,
            "name": "call",
        }
    }


@dataclass
class Fake:
    """A Heify whose upload URLs bear the canaries.

    A recording's name says what goes wrong with it, the first time: one of `WAYS`, else nothing. `always` answers every
    request of that path (`/request-upload-url`, `/get-transcription`, `/upload`).
    """

    edition: str = "current"
    lifetime_s: int = 300
    trap: str = "http://127.0.0.1:1/"
    storage: str = ""
    always: dict[str, bytes] = field(default_factory=dict)
    met: Counter[str] = field(default_factory=Counter)
    seen: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> bytes:
        self.seen.append(request)
        path, _, _ = request.path.partition("?")
        for prefix, raw in self.always.items():
            if path.startswith(prefix):
                self.met[prefix] += 1
                return raw
        if path == "/request-upload-url":
            return self._request_upload(json.loads(request.body)["name"], request)
        if path == "/get-transcription":
            way = json.loads(request.body)["transcription_id"].partition(".")[2]
            return as_json({"data": {"status": f"{KEY} {self.url_of(f't.{way}', request)}"}})
        if path.startswith("/list-"):
            what = path.removeprefix("/list-").removesuffix("s")
            ids = {"configuration": CONFIGURATION_ID, "evaluator": EVALUATOR_ID, "participant": PARTICIPANT_ID}
            return as_json({"data": {"items": [{f"{what}_id": ids[what], "tag": f"tag {KEY}"}], "count": 1}})
        return self._put(path.rpartition(".")[2], f"{self._origin(request)}{request.path}")

    def _request_upload(self, way: str, request: Request) -> bytes:
        self.met[way] += 1
        url = self.url_of(f"t-{self.met[way]}.{way}", request)
        if way in API_WAYS and self.met[way] == 1:
            return API_WAYS[way](url, self.trap)
        return as_json(given(f"t-{self.met[way]}.{way}", url))

    def _put(self, way: str, url: str) -> bytes:
        self.met[f"{way} put"] += 1
        if self.met[f"{way} put"] == 1 and way == ASKED:
            return RESET
        if self.met[f"{way} put"] == 1 and way in PUT_WAYS:
            return PUT_WAYS[way](url, self.trap)
        return answer("200 OK")

    def url_of(self, transcription_id: str, request: Request) -> str:
        lifetime_s = 0 if transcription_id.endswith(ASKED) else self.lifetime_s
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{ACCESS_KEY}/20261124/us-east-1/s3/aws4_request",
            "X-Amz-Date": "20261124T080000Z",
            "X-Amz-Expires": str(lifetime_s),
            "X-Amz-Security-Token": TOKEN,
            "X-Amz-SignedHeaders": "host",
            "X-Amz-Signature": SIGNATURE,
        }
        if self.edition == "v2":
            query = {"AWSAccessKeyId": ACCESS_KEY, "Signature": OLD_SIGNATURE, "Expires": "1800000000"}
            if lifetime_s == 0:
                query["X-Amz-Expires"] = "0"  # heifyd's own five minutes for such URLs would be long to wait for
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        return f"{self._origin(request)}/upload/client/{transcription_id}?{text}"

    def _origin(self, request: Request) -> str:
        return self.storage or f"http://{request.headers['Host']}"


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def heify(fake: Fake) -> Iterator[Server]:
    with Server(fake) as server:
        yield server


def trap() -> Server:
    """Make a server that nothing should ever be sent to."""
    return Server(lambda _: answer("200 OK"))


def place_for(root: Path, url: str, settings: str = "", folder: str = "") -> Place:
    place = make_place(root, url, settings=f"{QUICK}\n{settings}", folder=folder)
    (root / "key").write_text(KEY)
    return place


@pytest.fixture
def place(tmp_path: Path, heify: Server) -> Place:
    return place_for(tmp_path, heify.url)


def put_calls(place: Place, *names: str) -> None:
    """Write recordings whose order, oldest first, is the names'."""
    now = time.time()
    for at, name in enumerate(names):
        path = place.calls / f"{name}.wav"
        path.write_bytes(sample(".wav", name))
        os.utime(path, (now, now - 1000 + at))


def files_told(place: Place) -> dict[str, str]:
    """Return the text of every file below a place but recordings, the key and the ledger."""
    return {
        os.fspath(path.relative_to(place.root)): path.read_text("utf-8", "backslashreplace")
        for path in place.root.rglob("*")
        if path.is_file() and path.name != "key" and not path.name.startswith("ledger.sqlite") and path.suffix != ".wav"
    }


def ledger_bytes(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.root.glob("ledger.sqlite*")}


def ledger_tells(place: Place) -> list[str]:
    """Return which secrets lie in the bytes of the ledger's files."""
    return sorted({name for raw in ledger_bytes(place).values() for name in secrets_in(raw.decode("latin-1"))})


def heifyd(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", environ.pop("module", "heifyd"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        env={**os.environ, **environ},
        timeout=LIMIT_S,
        check=False,
    )


# Everything that can go wrong on the wire


@dataclass(frozen=True)
class Journey:
    """What came of a run in which each recording met what its name says."""

    output: str
    files: dict[str, str]
    met: Counter[str]
    trapped: list[Request]
    seen: list[Request]


@pytest.fixture(
    scope="module",
    params=[("json", "current"), ("text", "current"), ("json", "v2")],
    ids=["json", "text", "json-of-version-2-urls"],
)
def journey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """Run the daemon through `WAYS`; between two that fail is one that does not, so that nothing comes to be held."""
    log, edition = request.param
    with trap() as away:
        fake = Fake(edition, trap=f"{away.url}/")
        with Server(fake) as server:
            place = place_for(tmp_path_factory.mktemp(log), server.url)
            put_calls(place, *(name for way in WAYS for name in (way, f"good-{way}")))
            arguments = "run", "--config", str(place.config), "--log", log
            with Process(*arguments, environ=FAST, module="tests.rehearsal") as daemon:
                ends = re.compile(r"recording\.(done|failed)\b")
                daemon.wait_for(lambda: len(ends.findall(daemon.output)) == 2 * len(WAYS), "every recording's end")
                assert daemon.end() == 0
        return Journey(_COLOURS.sub("", daemon.output), files_told(place), fake.met, away.requests, fake.seen)


@pytest.mark.parametrize("way", WAYS)
def test_whatever_goes_wrong_on_the_wire_the_log_tells_no_secret(journey: Journey, way: str) -> None:
    lines = [line for line in journey.output.splitlines() if re.search(rf"\b(?<!good-){way}\.wav", line)]
    told = "upload.repeated" if way == ASKED else "recording.failed" if way in REFUSED else "upload.retrying"

    assert journey.met[way if way in API_WAYS else f"{way} put"] >= 1
    assert [line for line in lines if told in line], "it was to go wrong"
    assert {name: line for line in lines for name in secrets_in(line)} == {}


def test_no_line_of_such_a_run_tells_a_secret_of_any_recording(journey: Journey) -> None:
    of_no_way = [line for line in journey.output.splitlines() if not any(f"{way}.wav" in line for way in WAYS)]

    assert of_no_way
    assert [line for line in of_no_way if secrets_in(line)] == []


@pytest.mark.parametrize("way", sorted(REFUSED))
def test_the_explanation_beside_a_failed_recording_tells_no_secret(journey: Journey, way: str) -> None:
    explanation = journey.files[f"calls/failed/{way}.wav.error.json"]

    assert json.loads(explanation)["detail"]
    assert secrets_in(explanation) == []


def test_no_other_file_of_heifyds_tells_a_secret(journey: Journey) -> None:
    others = {name: text for name, text in journey.files.items() if not name.endswith(".error.json")}

    assert others.keys() == {"config.yaml"}
    assert secrets_in("".join(others.values())) == []


def test_the_key_goes_with_every_call_of_the_api_and_never_with_a_put_or_to_where_it_is_redirected(
    journey: Journey,
) -> None:
    puts = [request for request in journey.seen if request.method == "PUT"]
    calls = [request for request in journey.seen if request.method == "POST"]

    assert len(puts) > len(WAYS)
    assert [request.path for request in puts if KEY in request.all_text or KEY.encode() in request.body] == []
    assert {request.headers.get("x-api-key") for request in calls} == {KEY}
    assert [request.path for request in calls if KEY in request.path or KEY.encode() in request.body] == []
    assert journey.met["put-redirect put"] >= 2
    assert journey.met["api-redirect"] >= 2
    assert journey.trapped == []


def test_the_key_goes_to_the_api_and_not_to_a_storage_of_another_origin(
    tmp_path: Path, fake: Fake, heify: Server
) -> None:
    with trap() as storage:
        fake.storage = storage.url
        place = place_for(tmp_path, heify.url)
        put_calls(place, "call")
        with running(place) as daemon:
            daemon.await_event("recording.done")
        assert [request.method for request in storage.requests] == ["PUT"]
        assert KEY not in storage.requests[0].all_text


def test_an_upload_url_that_no_two_programs_read_alike_ends_no_thread_and_is_not_told(place: Place, fake: Fake) -> None:
    odd = given("t-odd", f"https://[http://127.0.0.1/?X-Amz-Signature={SIGNATURE}&{KEY}")
    fake.always = {"/request-upload-url": as_json(odd)}
    put_calls(place, "call")
    with running(place, FAST, module="tests.rehearsal") as daemon:
        daemon.wait_for(lambda: bool(daemon.events("upload.retrying", "thread.died")), "what comes of it")
        assert daemon.events("thread.died") == []
        fake.always = {}
        daemon.await_event("recording.done")
    assert secrets_in(daemon.output) == []


# Proxies


def test_no_proxy_of_the_environment_sees_a_key_that_would_go_in_the_clear(place: Place, heify: Server) -> None:
    with trap() as proxy:
        environ = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), proxy.url)
        put_calls(place, "call")
        with running(place, {**environ, "NO_PROXY": "", "no_proxy": ""}) as daemon:
            daemon.await_event("recording.done")
        online = heifyd("check", "--online", "--config", str(place.config), NO_PROXY="", no_proxy="", **environ)
        assert online.returncode == 0
        assert [request.path for request in heify.requests].count("/list-configurations") == 1
        assert proxy.requests == []


def test_a_proxy_is_asked_for_a_tunnel_without_the_key_and_its_own_password_is_told_nowhere(tmp_path: Path) -> None:
    with Server(lambda _: answer("502 Bad Gateway")) as proxy:
        place = place_for(tmp_path / "place", "https://heify.test")
        environ = {
            "HTTPS_PROXY": f"http://user:{PROXY_PASSWORD}@127.0.0.1:{proxy.port}",
            "NO_PROXY": "",
        }
        put_calls(place, "call")
        with running(place, {**FAST, **environ}, module="tests.rehearsal") as daemon:
            daemon.await_event("upload.retrying")
        assert {(request.method, request.path) for request in proxy.requests} == {("CONNECT", "heify.test:443")}
        assert [request for request in proxy.requests if KEY in request.all_text] == []
        assert secrets_in(daemon.output) == []


# The commands


ANY_URL: Final = Fake().url_of("t.call", Request("POST", "/", {"Host": "heify.test"}, b""))
SAYING_ALL: Final = f"{KEY} {ANY_URL}"


@pytest.mark.parametrize(
    ("raw", "scope"),
    [
        (refused(SAYING_ALL, "403 Forbidden"), "everything"),
        (refused(f"Configuration not found: {SAYING_ALL}", "404 Not Found"), "calls"),
        (f"NO-HTTP {SAYING_ALL}\r\n\r\n".encode(), "everything"),
    ],
    ids=["key-refused", "mapping-refused", "no-http"],
)
def test_no_command_tells_a_secret_of_what_holds(
    place: Place, fake: Fake, tmp_path: Path, raw: bytes, scope: str
) -> None:
    fake.always = {"/": raw}
    put_calls(place, "call", "another", "third")
    (tmp_path / "elsewhere.wav").write_bytes(sample(".wav"))
    config = "--config", str(place.config)
    with running(place, FAST, module="tests.rehearsal") as daemon:
        (hold,) = daemon.await_event("hold.started")
        assert hold["scope"] == (str(place.calls) if scope == "calls" else scope)
        outputs = {
            "status": heifyd("status", *config),
            "status --json": heifyd("status", "--json", *config),
            "check --online": heifyd("check", "--online", *config),
            "upload": heifyd("upload", str(tmp_path / "elsewhere.wav"), "--like", str(place.calls), *config),
        }
    told = {name: run.stdout for name, run in outputs.items()} | {"log": daemon.output} | files_told(place)

    assert "held" in told["status"]
    assert json.loads(told["status --json"])["holds"]
    assert outputs["check --online"].returncode == outputs["upload"].returncode == 1
    assert {name: secrets_in(text) for name, text in told.items() if secrets_in(text)} == {}


def test_no_command_tells_a_secret_of_a_failed_recording(place: Place, fake: Fake) -> None:
    put_calls(place, "api-refusal", "put-s3-refusal")
    config = "--config", str(place.config)
    with running(place) as daemon:
        daemon.await_event("recording.failed", 2)
    outputs = {
        "status": heifyd("status", *config),
        "status --json": heifyd("status", "--json", *config),
        "retry": heifyd("retry", "--all", *config),
    }

    assert fake.met["api-refusal"] == fake.met["put-s3-refusal put"] == 1
    assert {run.returncode for run in outputs.values()} == {0}
    assert {name: secrets_in(run.stdout) for name, run in outputs.items() if secrets_in(run.stdout)} == {}


@pytest.mark.parametrize(
    "way", ["put-s3-all", "put-illegal-status-line", "put-bad-redirect", "api-error", "api-refusal"]
)
def test_an_upload_by_hand_that_fails_tells_no_secret(place: Place, fake: Fake, tmp_path: Path, way: str) -> None:
    file = tmp_path / f"{way}.wav"
    file.write_bytes(sample(".wav"))

    run = heifyd("upload", str(file), "--like", str(place.calls), "--config", str(place.config), COLUMNS="300")

    assert run.returncode == 1
    assert "failed" in run.stdout
    assert fake.met[way] == 1
    assert secrets_in(run.stdout) == []


def test_check_online_tells_no_secret_that_a_tag_holds(place: Place) -> None:
    run = heifyd("check", "--online", "--config", str(place.config))

    assert run.returncode == 0
    assert CONFIGURATION_ID in run.stdout
    assert secrets_in(run.stdout) == []


@pytest.mark.parametrize("command", ["run", "check", "status", "retry", "upload", "schema", "sandbox", "demo"])
def test_no_help_tells_the_key_that_is_in_the_environment(command: str) -> None:
    run = heifyd(command, "--help", HEIFY_API_KEY=KEY)

    assert run.returncode == 0
    assert secrets_in(run.stdout) == []


# A terminal


def on_terminal(place: Place, until: str, **environ: str) -> str:
    """Run the daemon on a terminal until a text appears there, stop it, and return all that appeared."""
    master, slave = pty.openpty()
    shown = bytearray()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "tests.rehearsal", "run", "--config", str(place.config)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env={**os.environ, **FAST, **environ},
    )
    os.close(slave)
    try:
        until_s = time.monotonic() + LIMIT_S
        is_asked_to_stop = False
        while True:
            assert time.monotonic() < until_s, shown.decode("utf-8", "replace")
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                shown += os.read(master, 65536)
            except OSError:  # EIO: nobody has the other end open any more
                break
            if until.encode() in shown and not is_asked_to_stop:
                is_asked_to_stop = True
                daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(LIMIT_S) == 0
    finally:
        daemon.kill()
        daemon.wait()
        os.close(master)
    return shown.decode("utf-8", "backslashreplace")


def test_the_log_on_a_terminal_tells_no_secret(place: Place) -> None:
    put_calls(place, "put-s3-url", "put-s3-all", "api-refusal")

    shown = on_terminal(place, "recording.failed")

    assert "\x1b[" in shown, "it was to be coloured for reading"
    assert "upload.retrying" in shown
    assert secrets_in(shown) == []


# Errors that nobody thought of


BROKEN: Final = """
from heifyd import cli, daemon, heify

def put(self, ticket, *_, **__):
    key = self._key()
    raise RuntimeError(f"{ticket.url} and {key}") from ValueError(key)

def housekeeping(_):
    raise RuntimeError("%(key)s X-Amz-Signature=%(signature)s")

where = "%(where)s"
if where == "thread":
    heify.Heify.put = put
elif where == "main":
    daemon.Daemon.housekeeping = housekeeping
cli.main()
"""


def broken(root: Path, where: str) -> dict[str, str]:
    """Write a heifyd that has an error where it says, and return the environment in which it is module `broken`."""
    (root / "modules").mkdir()
    (root / "modules" / "broken.py").write_text(BROKEN % {"key": KEY, "signature": SIGNATURE, "where": where})
    return {"PYTHONPATH": str(root / "modules")}


@pytest.mark.parametrize("log", ["json", "text"])
def test_the_traceback_of_a_thread_that_died_tells_no_secret(place: Place, tmp_path: Path, log: str) -> None:
    environ = broken(tmp_path, "thread")
    put_calls(place, "call")

    arguments = "run", "--config", str(place.config), "--log", log
    with Process(*arguments, environ=environ, module="broken") as daemon:
        daemon.wait_for(lambda: daemon.over, "its end")
        assert daemon.end() == 70

    assert "thread.died" in daemon.output
    assert "RuntimeError" in daemon.output
    assert secrets_in(daemon.output) == []


def test_an_error_that_nobody_caught_in_the_main_thread_tells_no_secret(place: Place, tmp_path: Path) -> None:
    environ = broken(tmp_path, "main")

    with DaemonProcess(place.config, environ, module="broken") as daemon:
        daemon.wait_for(lambda: daemon.over, "its end")
        assert daemon.end() == 70

    assert "RuntimeError" in daemon.output
    assert secrets_in(daemon.output) == []


def test_an_error_that_nobody_caught_in_a_command_tells_no_secret(place: Place, tmp_path: Path) -> None:
    environ = broken(tmp_path, "thread")
    (tmp_path / "elsewhere.wav").write_bytes(sample(".wav"))

    file, like = str(tmp_path / "elsewhere.wav"), str(place.calls)
    run = heifyd("upload", file, "--like", like, "--config", str(place.config), module="broken", **environ)

    assert run.returncode not in (0, 2)
    assert "RuntimeError" in run.stdout
    assert secrets_in(run.stdout) == []


def test_pythons_own_development_mode_tells_no_secret(place: Place) -> None:
    environ = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "always", **FAST}
    put_calls(place, "put-reset", "put-s3-url", "api-refusal", "good")
    with running(place, environ, module="tests.rehearsal") as daemon:
        daemon.await_event("recording.done", 3)
        daemon.await_event("recording.failed")

    assert secrets_in(daemon.output) == []


def test_a_crash_that_python_shows_the_threads_of_tells_no_secret(place: Place, fake: Fake) -> None:
    fake.always = {"/upload": STALL}
    put_calls(place, "call")
    with DaemonProcess(place.config, {"PYTHONFAULTHANDLER": "1"}) as daemon:
        daemon.started().await_event("upload.started")
        eventually(lambda: fake.met["/upload"] == 1, "the PUT")
        assert daemon.end(signal.SIGABRT) == -signal.SIGABRT

    assert "Fatal Python error: Aborted" in daemon.output
    assert "Thread 0x" in daemon.output
    assert secrets_in(daemon.output) == []


# What lies on the disk


def test_the_ledgers_files_are_their_owners_alone_under_any_umask(tmp_path: Path, heify: Server, fake: Fake) -> None:
    place = place_for(tmp_path, heify.url)
    place.config.write_text(place.config.read_text().replace(f"{tmp_path}/ledger", f"{tmp_path}/state/ledger"))
    fake.always = {"/upload": STALL}
    put_calls(place, "call")
    with DaemonProcess(place.config, prefix=("sh", "-c", 'umask 000; exec "$@"', "sh")) as daemon:
        daemon.started().await_event("upload.started")
        state = tmp_path / "state"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()}
        assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
        fake.always = {}
        heify.leaving.set()
    assert modes == dict.fromkeys((f"ledger.sqlite{end}" for end in ("", "-wal", "-shm", ".lock")), 0o600)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.calls.stat().st_mode) != 0o700, "the directories around it were made under another umask"


def test_a_url_is_in_the_ledger_only_while_it_lives(place: Place, fake: Fake, heify: Server) -> None:
    fake.always = {"/upload": STALL}
    put_calls(place, "call", "put-plain-refusal", "put-reset", "put-page", ASKED)
    with DaemonProcess(place.config) as first:
        first.started().await_event("upload.started")
        eventually(lambda: fake.met["/upload"] == 1, "the PUT")
        assert "the signature" in ledger_tells(place), "a restart is to go on with it"
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert "the signature" in ledger_tells(place)
    fake.always = {}
    heify.leaving.set()

    with running(place, FAST, module="tests.rehearsal") as second:
        second.await_event("recording.done", 4)
        second.await_event("recording.failed")

    assert "ledger.sqlite" in ledger_bytes(place)
    assert ledger_tells(place) == []


def test_what_the_ledger_keeps_of_a_failed_recording_holds_no_secret(place: Place, fake: Fake) -> None:
    put_calls(place, *sorted(REFUSED))
    with running(place) as daemon:
        daemon.await_event("recording.failed", len(REFUSED))

    assert b"Unsupported audio format" in ledger_bytes(place)["ledger.sqlite"]
    assert fake.met["put-s3-refusal put"] == 1
    assert ledger_tells(place) == []


@pytest.mark.parametrize("end", ["vanished", "changed"])
def test_the_url_of_a_recording_that_was_taken_away_or_changed_does_not_stay_in_the_ledger(
    place: Place, fake: Fake, heify: Server, end: str
) -> None:
    fake.always = {"/upload": STALL}
    put_calls(place, "call")
    with DaemonProcess(place.config) as first:
        first.started().await_event("upload.started")
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert "the signature" in ledger_tells(place)
    fake.always = {}
    heify.leaving.set()

    if end == "vanished":
        (place.calls / "call.wav").unlink()
    else:
        (place.calls / "call.wav").write_bytes(sample(".wav", "another"))
    with running(place, FAST, module="tests.rehearsal") as second:
        second.await_event(f"recording.{end}" if end == "vanished" else "recording.done")

    assert ledger_tells(place) == []


def test_a_url_that_has_expired_is_forgotten_by_the_next_start(place: Place, fake: Fake, heify: Server) -> None:
    fake.lifetime_s = 0
    fake.always = {"/upload": STALL}
    put_calls(place, "call")
    with DaemonProcess(place.config) as first:
        first.started().await_event("upload.started")
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert "the signature" in ledger_tells(place)

    fake.always = {"/": refused("out of minutes", "402 Payment Required")}
    heify.leaving.set()
    with running(place, FAST, module="tests.rehearsal") as second:
        second.await_event("hold.started")

    assert fake.met["/"] >= 1
    assert ledger_tells(place) == []
    assert (place.calls / "call.wav").exists()


# The key


def test_the_command_line_of_the_process_holds_no_key(tmp_path: Path, heify: Server) -> None:
    place = place_for(tmp_path, heify.url)
    place.config.write_text(re.sub(r"  key_file: .*\n", "", place.config.read_text()))
    put_calls(place, "call")
    with running(place, {"HEIFY_API_KEY": KEY}) as daemon:
        daemon.await_event("recording.done")
        below = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        lines = {each: Path(f"/proc/{each}/cmdline").read_bytes() for each in (str(daemon.pid), *below)}
    assert b"run" in lines[str(daemon.pid)].split(b"\0")
    assert [each for each, line in lines.items() if KEY.encode() in line] == []
    assert secrets_in(daemon.output) == []


UNFIT_KEYS: Final = {
    "two-lines": f"{KEY}\n{KEY}\n".encode(),
    "a-zero-byte": f"{KEY}\0".encode(),
    "a-byte-order-mark": f"\ufeff{KEY}".encode(),
    "not-ascii": f"{KEY}ü".encode(),
    "an-escape": f"\x1b[31m{KEY}".encode(),
    "too-long": KEY.encode() * 200,
    "not-utf-8": KEY.encode() + b"\xff",
}


@pytest.mark.parametrize("content", UNFIT_KEYS.values(), ids=UNFIT_KEYS.keys())
def test_a_key_that_is_none_ends_the_start_with_78_and_is_not_told(tmp_path: Path, content: bytes) -> None:
    place = place_for(tmp_path, "http://127.0.0.1:1")
    (tmp_path / "key").write_bytes(content)

    with DaemonProcess(place.config) as daemon:
        daemon.wait_for(lambda: daemon.over, "its end")
        assert daemon.end() == 78

    (problem,) = daemon.events("config.invalid")
    assert problem["key"] == "api.key_file"
    assert secrets_in(daemon.output) == []
    assert KEY[4:20] not in daemon.output


def test_a_key_file_that_others_may_read_ends_the_start_with_78_and_the_command_to_run(tmp_path: Path) -> None:
    place = place_for(tmp_path, "http://127.0.0.1:1")
    (tmp_path / "key").chmod(0o644)

    with DaemonProcess(place.config) as daemon:
        daemon.wait_for(lambda: daemon.over, "its end")
        assert daemon.end() == 78

    (problem,) = daemon.events("config.invalid")
    assert f"chmod o-r {tmp_path}/key" in problem["detail"]
    assert secrets_in(daemon.output) == []
    check = heifyd("check", "--config", str(place.config))
    assert check.returncode == 1
    assert "chmod o-r" in check.stdout
    assert secrets_in(check.stdout) == []


def test_a_key_that_becomes_unfit_while_the_daemon_runs_is_not_told_and_holds_everything(place: Place) -> None:
    with running(place, FAST, module="tests.rehearsal") as daemon:
        (place.root / "key").write_bytes(UNFIT_KEYS["two-lines"])
        put_calls(place, "call")
        (hold,) = daemon.await_event("hold.started")
        assert (hold["owner"], hold["reason"]) == ("account", "key_unreadable")
        status = heifyd("status", "--json", "--config", str(place.config))
        (place.root / "key").write_text(KEY)
        daemon.await_event("recording.done")

    assert secrets_in(daemon.output + status.stdout) == []


def test_a_key_that_was_replaced_is_used_at_once_and_neither_is_told(place: Place, fake: Fake, heify: Server) -> None:
    fake.always = {"/request-upload-url": refused(f"not {KEY}", "403 Forbidden")}
    put_calls(place, "call")
    with running(place, FAST, module="tests.rehearsal") as daemon:
        daemon.await_event("hold.started")
        fresh = place.root / "fresh"
        fresh.touch(mode=0o600)
        fresh.write_text(f"{KEY}-second")
        fresh.rename(place.root / "key")
        fake.always = {}
        daemon.await_event("recording.done")

    assert heify.requests[-2].headers["x-api-key"] == f"{KEY}-second"
    assert secrets_in(daemon.output) == []


# The configuration


STRAY: Final = {
    "inline": ("  key_file: KEYFILE", f"  api_key: {KEY}"),
    "as-the-file": ("KEYFILE", KEY),
    "as-the-url": ("  base_url: ", f"  base_url: https://user:{KEY}@heify.test\n  key: "),
    "as-an-id": (CONFIGURATION_ID, KEY),
    "as-a-key-of-the-top": ("folders:", f"HEIFY_API_KEY={KEY}: 1\nfolders:"),
    "as-broken-yaml": ("folders:", f"folders: *{KEY}"),
}


@pytest.mark.parametrize(("before", "after"), STRAY.values(), ids=STRAY.keys())
def test_a_key_that_strayed_into_the_configuration_is_told_neither_by_the_daemon_nor_by_check(
    tmp_path: Path, before: str, after: str
) -> None:
    place = place_for(tmp_path, "http://127.0.0.1:1")
    before = before.replace("KEYFILE", str(tmp_path / "key"))
    text = place.config.read_text()
    assert before in text
    place.config.write_text(text.replace(before, after, 1))

    with DaemonProcess(place.config) as daemon:
        daemon.wait_for(lambda: daemon.over, "its end")
        assert daemon.end() == 78
    check = heifyd("check", "--config", str(place.config))

    assert daemon.events("config.invalid")
    assert check.returncode != 0
    assert secrets_in(daemon.output + check.stdout) == []


@pytest.mark.parametrize("command", [["status"], ["retry", "--all"], ["upload", "x.wav"]], ids=lambda c: c[0])
def test_no_command_tells_a_key_that_is_written_into_the_configuration(tmp_path: Path, command: list[str]) -> None:
    place = place_for(tmp_path, "http://127.0.0.1:1")
    before, after = STRAY["inline"]
    place.config.write_text(place.config.read_text().replace(before.replace("KEYFILE", str(tmp_path / "key")), after))

    run = heifyd(*command, "--config", str(place.config))

    assert run.returncode == 78
    assert "api.key_file" in run.stdout
    assert secrets_in(run.stdout) == []


def test_a_reload_tells_no_key_that_strayed_into_the_configuration(place: Place) -> None:
    good = place.config.read_text()
    with running(place) as daemon:
        place.config.write_text(good.replace("folders:", f"api_key: {KEY}\nfolders:"))
        daemon.send(signal.SIGHUP)
        daemon.await_event("config.rejected")
        place.config.write_text(good)
    assert secrets_in(daemon.output) == []
