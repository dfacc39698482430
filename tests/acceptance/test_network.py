"""Connections that break, stall, crawl or lead elsewhere: nothing moves, nothing is lost or sent twice, and it ends."""

import ctypes
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import trustme

from heifyd.sandbox import API_KEY, Sandbox
from tests.harness import (
    LIMIT_S,
    DaemonProcess,
    Place,
    asked,
    assert_all_in_heify_once,
    eventually,
    files_below,
    holds,
    hurrying,
    lay_out,
    make_place,
    need,
    need_program,
    need_root,
    sha256,
)

ONE_AT_A_TIME = "settle_seconds: 0.3\nworkers: 1"
"""With one worker, whatever is asked after a hold began is a probe."""

NAMES = ("a.wav", "b.mp3", "c.flac")
"""As many recordings as it takes failures to tell an outage from an accident."""

Hold = dict[str, Any]


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=ONE_AT_A_TIME)


def assert_held(daemon: DaemonProcess, place: Place, recordings: Mapping[str, str], *reasons: str) -> None:
    """Wait for the one hold, of the service: the log and the status tell of it, and every file is in its place."""
    (started,) = daemon.await_event("hold.started")
    (shown,) = holds(place)
    assert (started["scope"], started["owner"]) == (shown["scope"], shown["owner"]) == ("everything", "service")
    assert started["reason"] in reasons
    assert shown["reason"] in reasons
    assert {name: sha256(file) for name, file in files_below(place.calls).items()} == recordings


def assert_over(daemon: DaemonProcess, place: Place, recordings: Mapping[str, str]) -> None:
    """Wait until all is done and the hold has ended: it began once and ended once, nothing failed or was repeated."""
    daemon.await_event("recording.done", len(recordings))
    daemon.await_event("hold.ended")
    eventually(lambda: not holds(place), "a status without a hold")
    assert len(daemon.events("recording.done")) == len(recordings)
    assert [each["owner"] for each in daemon.events("hold.started", "hold.ended")] == ["service", "service"]
    assert not daemon.events("recording.failed", "upload.repeated")


# A server of one's own


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Answer = tuple[int, Mapping[str, str], bytes]


class _Listener(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, answer: Callable[[Seen], Answer], context: ssl.SSLContext | None) -> None:
        self.answer = answer
        self.context = context
        self.connections = 0
        self.seen: list[Seen] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        opened, address = super().get_request()
        self.connections += 1
        opened.settimeout(LIMIT_S)
        return (self.context.wrap_socket(opened, server_side=True) if self.context else opened), address


class _Handler(BaseHTTPRequestHandler):
    server: _Listener

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        seen = Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.server.seen.append(seen)
        status, headers, answer = self.server.answer(seen)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_CONNECT = handle_any  # noqa: N815 (http.server finds its methods by these names)

    def log_message(self, *_: object) -> None:
        pass


class Server:
    """A small HTTP server on loopback that remembers what it was sent, over TLS where there is a context."""

    def __init__(self, answer: Callable[[Seen], Answer], context: ssl.SSLContext | None = None) -> None:
        self._listener = _Listener(answer, context)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), name="test-server")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()

    @property
    def port(self) -> int:
        return int(self._listener.server_address[1])

    @property
    def connections(self) -> int:
        return self._listener.connections

    @property
    def seen(self) -> list[Seen]:
        return list(self._listener.seen)


def fine(_: Seen) -> Answer:
    return 200, {}, b""


def relay(sandbox: Sandbox, seen: Seen) -> Answer:
    """Let the sandbox answer; it makes upload URLs for the host that the client named."""
    with httpx.Client(trust_env=False) as client:
        answer = client.request(seen.method, sandbox.url + seen.path, headers=dict(seen.headers), content=seen.body)
    return answer.status_code, {"Content-Type": answer.headers.get("content-type", "")}, answer.content


def over_tls(sandbox: Sandbox, seen: Seen) -> Answer:
    """Let the sandbox answer, with upload URLs that are https."""
    status, headers, body = relay(sandbox, seen)
    host = seen.headers["host"].encode()
    return status, headers, body.replace(b"http://" + host, b"https://" + host)


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def trusting(authority: trustme.CA, root: Path) -> dict[str, str]:
    authority.cert_pem.write_to_path(str(root / "ca.pem"))
    return {"SSL_CERT_FILE": str(root / "ca.pem")}


# Connections that break


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("request-upload-url reset", "connection_lost"),
        ("request-upload-url cut-body", "connection_lost"),
        ("request-upload-url cut-answer", "connection_lost"),
        ("request-upload-url stall", "read_timeout"),
        ("put reset", "connection_lost"),
        ("put cut-body", "connection_lost"),
        ("put cut-answer", "connection_lost"),
        ("put stall", "read_timeout"),
    ],
)
def test_a_connection_that_breaks_moves_nothing_and_is_made_again(
    place: Place, sandbox: Sandbox, spec: str, reason: str
) -> None:
    recordings = lay_out(place.calls, *NAMES)
    sandbox.fail(spec)
    with hurrying(place, timeout_s=1 if "stall" in spec else None) as daemon:
        assert_held(daemon, place, recordings, reason)
        where, fault = spec.split()
        met = sandbox.counters().requests[where][fault]
        eventually(lambda: sandbox.counters().requests[where][fault] > met, "a probe")
        sandbox.clear_faults()
        assert_over(daemon, place, recordings)
    assert met >= 3
    assert_all_in_heify_once(recordings, place, sandbox)


def test_a_storage_that_takes_no_more_bytes_holds_uploads_until_it_does(place: Place, sandbox: Sandbox) -> None:
    recordings = lay_out(
        place.calls, "a.wav", "b.wav", "c.wav", times=500
    )  # more than the kernel keeps for either side
    sandbox.fail("put stall")
    with hurrying(place, timeout_s=1) as daemon:
        assert_held(daemon, place, recordings, "write_stalled")
        sandbox.clear_faults()
        assert_over(daemon, place, recordings)
    assert_all_in_heify_once(recordings, place, sandbox)


def test_a_heify_that_is_not_there_is_waited_for(place: Place, sandbox: Sandbox) -> None:
    sandbox.stop()
    recordings = lay_out(place.calls, *NAMES)
    with hurrying(place) as daemon:
        assert_held(daemon, place, recordings, "connect")
        sandbox.start()
        assert_over(daemon, place, recordings)
    assert_all_in_heify_once(recordings, place, sandbox)


def test_a_storage_that_reads_slowly_is_no_dead_one(place: Place, sandbox: Sandbox) -> None:
    # What the storage's side has taken in and not yet read, up to 64 KiB and more, nobody here can see: the timeout is
    # longer than the reading of that takes, and much shorter than the whole.
    recordings = lay_out(place.calls, "call.wav", times=8)
    sandbox.fail("put drip")
    with hurrying(place, speed=1, timeout_s=5) as daemon:
        (done,) = daemon.await_event("recording.done", limit_s=40)
    assert done["put_ms"] > 10_000, "it was too fast to show anything"
    assert not daemon.events("upload.retrying", "hold.started")
    assert sandbox.counters().requests["put"] == {"200": 1}
    assert_all_in_heify_once(recordings, place, sandbox)


# Links of their own


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=LIMIT_S)


@contextmanager
def a_network_of_its_own() -> Iterator[str]:
    """Make a network namespace whose one link is its loopback; yield its name."""
    need_root()
    need_program("ip")
    need_program("tc")
    name = f"heifyd-test-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", "lo", "mtu", "1500")
        yield name
    finally:
        ip("netns", "del", name)


@contextmanager
def inside(network: str) -> Iterator[None]:
    """Let the sockets that this thread makes in the block belong to a network namespace (setns(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newnet = 0x40000000
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{network}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert libc.setns(there, clone_newnet) == 0
        try:
            yield
        finally:
            assert libc.setns(home, clone_newnet) == 0
    finally:
        os.close(home)
        os.close(there)


def shape(network: str, *how: str) -> None:
    """Let a link send no faster than that; of a burst of one byte, not a packet."""
    command = ["ip", "netns", "exec", network, "tc", "qdisc", "replace", "dev", "lo", "root", "tbf", *how]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    need("kind is unknown" not in run.stderr, "a kernel with the token bucket filter")
    assert run.returncode == 0, run.stderr


def mend(network: str) -> None:
    ip("netns", "exec", network, "tc", "qdisc", "del", "dev", "lo", "root")


DEAD = ("rate", "8bit", "burst", "1", "limit", "1")
SLOW = ("rate", "160kbit", "burst", "3000", "limit", "30000")


def test_a_link_that_swallows_every_byte_loses_nothing_and_sends_nothing_twice(tmp_path: Path) -> None:
    with a_network_of_its_own() as network:
        sandbox = Sandbox(tmp_path / "heify", rate_limit=None, url_lifetime_s=3600)
        with inside(network):
            sandbox.start()
        try:
            place = make_place(tmp_path, sandbox.url, settings="settle_seconds: 0.3")
            recordings = lay_out(place.calls, "under way.wav", times=20)
            sandbox.fail("put drip")
            with hurrying(place, timeout_s=1, prefix=("ip", "netns", "exec", network)) as daemon:
                eventually(lambda: sandbox.counters().bytes_received > 0, "an upload that is under way")
                shape(network, *DEAD)
                recordings |= lay_out(place.calls, *NAMES)
                assert_held(daemon, place, recordings, "connect_timeout", "read_timeout", "write_stalled")
                assert not [each for each in sandbox.transcriptions() if each.stored]
                sandbox.clear_faults()
                mend(network)
                assert_over(daemon, place, recordings)
        finally:
            sandbox.stop()
    assert len(sandbox.transcriptions()) == len(recordings)
    assert_all_in_heify_once(recordings, place, sandbox)


def test_a_link_of_20_kilobytes_a_second_takes_the_time_it_takes(tmp_path: Path) -> None:
    with a_network_of_its_own() as network:
        sandbox = Sandbox(tmp_path / "heify", rate_limit=None)
        with inside(network):
            sandbox.start()
        try:
            place = make_place(tmp_path, sandbox.url, settings=ONE_AT_A_TIME)
            recordings = lay_out(place.calls, "call.wav", times=3)
            shape(network, *SLOW)
            with hurrying(place, speed=1, timeout_s=1.5, prefix=("ip", "netns", "exec", network)) as daemon:
                (done,) = daemon.await_event("recording.done", limit_s=20)
        finally:
            sandbox.stop()
    assert done["put_ms"] > 3000, "it was too fast to show anything"
    assert not daemon.events("upload.retrying", "hold.started")
    assert sandbox.counters().requests["put"] == {"200": 1}
    assert_all_in_heify_once(recordings, place, sandbox)


# Names


def test_an_upload_host_that_has_no_address_holds_uploads_until_another_is_named(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "heify", rate_limit=None, url_lifetime_s=60) as sandbox:
        place = make_place(tmp_path, sandbox.url, settings=ONE_AT_A_TIME)
        recordings = lay_out(place.calls, *NAMES)
        sandbox.fail("foreign-host")
        with hurrying(place) as daemon:
            assert_held(daemon, place, recordings, "dns")
            sandbox.clear_faults()
            assert_over(daemon, place, recordings)
        assert_all_in_heify_once(recordings, place, sandbox)


def test_a_heify_whose_name_has_no_address_is_waited_for(tmp_path: Path, sandbox: Sandbox) -> None:
    need_root()
    need_program("unshare")
    (tmp_path / "hosts").touch()
    (tmp_path / "nsswitch.conf").write_text("hosts: files\n")
    names = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/nsswitch.conf && shift 2 && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", names, "sh", f"{tmp_path}/hosts", f"{tmp_path}/nsswitch.conf")
    authority = trustme.CA()
    context = server_context(authority.issue_cert("heify.invalid"))
    with Server(lambda seen: over_tls(sandbox, seen), context) as server:
        place = make_place(tmp_path, f"https://heify.invalid:{server.port}", settings=ONE_AT_A_TIME)
        recordings = lay_out(place.calls, *NAMES)
        with hurrying(place, trusting(authority, tmp_path), prefix=prefix) as daemon:
            assert_held(daemon, place, recordings, "dns")
            assert server.connections == 0
            (tmp_path / "hosts").write_text("127.0.0.1 heify.invalid\n")
            assert_over(daemon, place, recordings)
    assert_all_in_heify_once(recordings, place, sandbox)


# TLS


def of_another_authority(_: trustme.CA) -> trustme.LeafCert:
    return trustme.CA().issue_cert("127.0.0.1")


def of_another_name(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("elsewhere.invalid")


def expired(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("wrong", [of_another_authority, of_another_name, expired])
def test_a_wrong_certificate_is_told_nothing_and_a_right_one_ends_the_hold(
    tmp_path: Path, sandbox: Sandbox, wrong: Callable[[trustme.CA], trustme.LeafCert]
) -> None:
    authority = trustme.CA()
    context = server_context(wrong(authority))
    with Server(lambda seen: over_tls(sandbox, seen), context) as server:
        place = make_place(tmp_path, f"https://127.0.0.1:{server.port}", settings=ONE_AT_A_TIME)
        recordings = lay_out(place.calls, *NAMES)
        with hurrying(place, trusting(authority, tmp_path)) as daemon:
            assert_held(daemon, place, recordings, "tls")
            assert server.connections >= 3
            assert server.seen == []

            authority.issue_cert("127.0.0.1").configure_cert(context)
            assert_over(daemon, place, recordings)
        assert {seen.headers.get("x-api-key") for seen in server.seen if seen.method == "POST"} == {API_KEY}
    assert_all_in_heify_once(recordings, place, sandbox)


def test_over_tls_nothing_is_sent_to_an_upload_url_without_it(tmp_path: Path, sandbox: Sandbox) -> None:
    authority = trustme.CA()
    answers = [relay]
    context = server_context(authority.issue_cert("127.0.0.1"))
    with Server(lambda seen: answers[-1](sandbox, seen), context) as server:
        place = make_place(tmp_path, f"https://127.0.0.1:{server.port}", settings=ONE_AT_A_TIME)
        recordings = lay_out(place.calls, *NAMES)
        with hurrying(place, trusting(authority, tmp_path)) as daemon:
            assert_held(daemon, place, recordings, "unsafe_upload_url")
            assert {seen.method for seen in server.seen} == {"POST"}

            answers.append(over_tls)
            assert_over(daemon, place, recordings)
    assert_all_in_heify_once(recordings, place, sandbox)


# Ways that lead elsewhere


@pytest.mark.parametrize(
    ("method", "status", "reason"),
    [
        ("POST", 301, "http_301"),
        ("POST", 307, "http_307"),
        ("PUT", 303, "storage_303"),
        ("PUT", 308, "storage_308"),
    ],
)
def test_a_redirect_is_not_followed(tmp_path: Path, sandbox: Sandbox, method: str, status: int, reason: str) -> None:
    redirecting = threading.Event()
    redirecting.set()

    def answer(seen: Seen) -> Answer:
        if redirecting.is_set() and seen.method == method:
            return status, {"Location": f"http://127.0.0.1:{elsewhere.port}{seen.path}"}, b""
        return relay(sandbox, seen)

    with Server(fine) as elsewhere, Server(answer) as server:
        place = make_place(tmp_path, f"http://127.0.0.1:{server.port}", settings=ONE_AT_A_TIME)
        recordings = lay_out(place.calls, *NAMES)
        with hurrying(place) as daemon:
            assert_held(daemon, place, recordings, reason)
            redirecting.clear()
            assert_over(daemon, place, recordings)
        assert elsewhere.connections == 0
    assert_all_in_heify_once(recordings, place, sandbox)


def test_a_storage_on_another_host_gets_the_recording_but_not_the_key(tmp_path: Path, sandbox: Sandbox) -> None:
    def answer(seen: Seen) -> Answer:
        status, headers, body = relay(sandbox, seen)
        return status, headers, body.replace(seen.headers["host"].encode(), f"localhost:{storage.port}".encode())

    with Server(fine) as storage, Server(answer) as api:
        place = make_place(tmp_path, f"http://127.0.0.1:{api.port}", settings=ONE_AT_A_TIME)
        recordings = lay_out(place.calls, "call.wav")
        with hurrying(place) as daemon:
            daemon.await_event("recording.done")
        (put,) = storage.seen
        assert put.method == "PUT"
        assert put.body == (place.done / "call.wav").read_bytes()
        assert API_KEY not in f"{put.path} {put.headers}"
        assert {seen.headers.get("x-api-key") for seen in api.seen} == {API_KEY}
    assert {name: sha256(file) for name, file in files_below(place.done).items()} == recordings


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_what_goes_to_this_machine_goes_through_no_proxy(place: Place, sandbox: Sandbox, variable: str) -> None:
    recordings = lay_out(place.calls, "call.wav")
    with Server(fine) as proxy:
        with hurrying(place, {variable: f"http://127.0.0.1:{proxy.port}", "NO_PROXY": "", "no_proxy": ""}) as daemon:
            daemon.await_event("recording.done")
        assert proxy.connections == 0
    assert not daemon.events("upload.retrying")
    assert_all_in_heify_once(recordings, place, sandbox)


# An outage


def test_an_hour_s_outage_over_500_recordings_moves_none_and_ends_by_itself(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings="settle_seconds: 0.3\nretry_for: 30m")
    recordings = lay_out(place.calls, *(f"{number}.amr" for number in range(500)))
    sandbox.fail("all 503")
    with hurrying(place, speed=240) as daemon:
        daemon.await_event("hold.started")
        # A probe a minute, after a few that came sooner: this many take an hour of the daemon's time.
        eventually(lambda: asked(sandbox) >= 72, "probes at growing intervals")
        assert_held(daemon, place, recordings, "http_503")
        sandbox.clear_faults()
        assert_over(daemon, place, recordings)
    assert daemon.events("hold.ended")[0]["lasted_s"] >= 3600
    assert len(daemon.events("upload.retrying")) < 3
    assert_all_in_heify_once(recordings, place, sandbox)
