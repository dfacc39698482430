"""The server of the status page: who comes in, who cannot do harm, and that it goes on through reloads and hangs."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from heifyd.address import Address, TcpAddress, UnixAddress
from heifyd.observe import app, wire
from heifyd.observe.server import Server, Subject
from heifyd.sandbox import Sandbox
from tests.harness import DaemonProcess, Place, eventually, make_place, need_program, running, sample

TOKEN = "a-token-of-thirty-two-characters"
QUICK = "settle_seconds: 0.3"


def with_page(root: Path, url: str, listen: str = "127.0.0.1:0", **how: str) -> Place:
    return make_place(root, url, settings=f'{QUICK}\nstatus:\n  listen: "{listen}"\n', **how)


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return with_page(tmp_path, sandbox.url)


def address_of(daemon: DaemonProcess, count: int = 1) -> str:
    return f"http://{daemon.await_event('status.listening', count)[-1]['address']}"


def ready(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/readyz").json()
    return found


def metric(url: str, series: str) -> float:
    text = httpx.get(f"{url}/metrics").raise_for_status().text
    return float(re.findall(rf"^{re.escape(series)} (.*)$", text, re.MULTILINE)[0])


# Of the daemon


def test_a_running_daemon_is_alive_ready_and_counts(place: Place) -> None:
    folder = f'folder="{place.calls}"'
    with running(place) as daemon:
        url = address_of(daemon)
        assert httpx.get(f"{url}/healthz").json() == {"status": "alive", "stuck_threads": []}
        assert (httpx.get(f"{url}/readyz").status_code, ready(url)["status"]) == (200, "ready")
        assert metric(url, f'heifyd_recordings_total{{{folder},outcome="failed"}}') == 0
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        (place.calls / "text.wav").write_bytes(b"no audio")
        daemon.await_event("recording.done")
        daemon.await_event("recording.failed")
        assert metric(url, f'heifyd_recordings_total{{{folder},outcome="failed"}}') == 1
        assert metric(url, f'heifyd_recordings_total{{{folder},outcome="done"}}') == 1
        assert metric(url, f"heifyd_recordings_settled_total{{{folder}}}") == 2
        assert metric(url, "heifyd_uploaded_bytes_total") == len(sample(".wav"))
        assert metric(url, 'heifyd_api_requests_total{endpoint="put",status="200"}') == 1
        assert metric(url, 'heifyd_api_requests_total{endpoint="request-upload-url",status="200"}') == 1
        assert metric(url, "heifyd_recording_seconds_count") == 1
        eventually(lambda: metric(url, f"heifyd_failed_recordings{{{folder}}}") == 1, "the failure in the ledger")
        text = httpx.get(f"{url}/metrics").text
    run = subprocess.run(
        [need_program("promtool"), "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_what_is_held_makes_it_unready_with_the_reason_until_it_is_over(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail("402")
    with running(place) as daemon:
        url = address_of(daemon)
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        daemon.await_event("hold.started")
        eventually(lambda: ready(url)["status"] == "held", "the hold")
        assert httpx.get(f"{url}/readyz").status_code == 503
        assert httpx.get(f"{url}/healthz").status_code == 200, "a restart would mend nothing"
        [reason] = ready(url)["reasons"]
        assert (reason["scope"], reason["owner"], reason["reason"]) == ("everything", "account", "out_of_minutes")
        assert reason["what_to_do"]
        assert metric(url, 'heifyd_holds{owner="account",reason="out_of_minutes",scope="everything"}') == 1
        assert metric(url, 'heifyd_api_requests_total{endpoint="request-upload-url",status="402"}') >= 1
        assert "Held: nothing is uploaded" in httpx.get(url).text


def test_a_missing_folder_makes_it_unready_and_names_itself(place: Place) -> None:
    with running(place) as daemon:
        url = address_of(daemon)
        place.calls.rename(place.root / "away")
        eventually(lambda: ready(url)["status"] == "held", "the missing folder")
        assert [(each["scope"], each["owner"]) for each in ready(url)["reasons"]] == [(str(place.calls), "folder")]
        (place.root / "away").rename(place.calls)
        eventually(lambda: ready(url)["status"] == "ready", "the folder's being back")


def test_without_status_listen_nothing_of_it_is_loaded(tmp_path: Path, sandbox: Sandbox) -> None:
    loaded = {}
    for name, place in (
        ("off", make_place(tmp_path / "off", sandbox.url, settings=QUICK)),
        ("on", with_page(tmp_path / "on", sandbox.url)),
    ):
        with running(place, {"PYTHONPROFILEIMPORTTIME": "1"}) as daemon:
            (place.calls / "call.wav").write_bytes(sample(".wav", name))
            daemon.await_event("recording.done")
        modules = set(re.findall(r"\| +([\w.]+)$", daemon.output, re.MULTILINE))
        loaded[name] = modules & {"prometheus_client", "starlette.responses", "uvicorn", "heifyd.observe", "asyncio"}
    assert loaded["off"] - {"asyncio"} == set()
    assert {"prometheus_client", "starlette.responses", "uvicorn", "heifyd.observe"} <= loaded["on"]


def test_a_port_that_is_taken_ends_the_start_with_78_and_is_named(tmp_path: Path, sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        place = with_page(tmp_path, sandbox.url, address)
        with DaemonProcess(place.config) as daemon:
            daemon.wait_for(lambda: daemon.over, "the end")
            [told] = daemon.events("config.invalid")
            assert daemon.end() == 78
    assert told["key"] == "status.listen"
    assert told["file"] == str(place.config)
    assert f"{address} is taken by another program" in told["detail"]


def test_a_reload_leaves_no_moment_in_which_nobody_answers_and_no_counter_begins_anew(place: Place) -> None:
    series = f'heifyd_recordings_total{{folder="{place.calls}",outcome="done"}}'
    with running(place) as daemon:
        url = address_of(daemon)
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        daemon.await_event("recording.done")
        answers: list[int] = []
        over = threading.Event()

        def go_on_asking() -> None:
            while not over.is_set():
                answers.append(httpx.get(f"{url}/healthz").status_code)

        asking = threading.Thread(target=go_on_asking)
        asking.start()
        try:
            for count in (2, 3):
                daemon.send(signal.SIGHUP)
                daemon.await_event("daemon.started", count)
        finally:
            over.set()
            asking.join()
        assert set(answers) == {200}
        eventually(lambda: ready(url)["status"] == "ready", "being ready again")
        assert metric(url, series) == 1
        (place.calls / "later.wav").write_bytes(sample(".wav", "later"))
        daemon.await_event("recording.done", 2)
        assert metric(url, series) == 2
        assert len(daemon.events("status.listening")) == 1


def test_a_reload_moves_the_page_asks_for_a_token_and_takes_it_away(place: Place) -> None:
    sock, token = place.root / "s.sock", place.root / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    text = place.config.read_text()
    with running(place) as daemon:
        first = address_of(daemon)
        place.config.write_text(text.replace("127.0.0.1:0", f"unix:{sock}"))
        daemon.send(signal.SIGHUP)
        daemon.await_event("daemon.started", 2)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(sock)), base_url="http://any.name") as client:
            assert client.get("/healthz").status_code == 200
            with pytest.raises(httpx.ConnectError):
                httpx.get(first)
            with_token = text.replace("127.0.0.1:0", f"unix:{sock}").replace(
                "\nfolders", f"  token_file: {token}\nfolders"
            )
            place.config.write_text(with_token)
            daemon.send(signal.SIGHUP)
            daemon.await_event("daemon.started", 3)
            assert client.get("/healthz").status_code == 401
            assert client.get("/healthz", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
            place.config.write_text(text.replace('listen: "127.0.0.1:0"', ""))
            daemon.send(signal.SIGHUP)
            daemon.await_event("daemon.started", 4)
        assert not sock.exists()
    assert TOKEN not in daemon.output


def test_a_reload_to_an_address_that_is_taken_changes_nothing(place: Place) -> None:
    with running(place) as daemon, socket.create_server(("127.0.0.1", 0)) as taken:
        url = address_of(daemon)
        place.config.write_text(place.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}"))
        daemon.send(signal.SIGHUP)
        [told] = daemon.await_event("config.rejected")
        assert told["key"] == "status.listen"
        assert ready(url)["status"] == "ready"
        (place.calls / "call.wav").write_bytes(sample(".wav"))
        daemon.await_event("recording.done")


def test_what_others_can_reach_is_answered_for_the_token_alone(tmp_path: Path, sandbox: Sandbox) -> None:
    place = with_page(tmp_path, sandbox.url, "0.0.0.0:0")
    with running(place, {"HEIFYD_STATUS_TOKEN": TOKEN}) as daemon:
        url = address_of(daemon).replace("0.0.0.0", "127.0.0.1")
        for path in ("/", "/healthz", "/readyz", "/metrics", "/page.css", "/none"):
            refused = httpx.get(url + path)
            assert refused.status_code == 401
            assert refused.headers["WWW-Authenticate"].startswith("Basic ")
        as_a_person = httpx.get(url, auth=("anybody", TOKEN), headers={"Host": "pbx-1.example:9469"})
        assert (as_a_person.status_code, "All is well" in as_a_person.text) == (200, True)
        assert httpx.get(url, auth=("anybody", TOKEN[:-1])).status_code == 401
        scraped = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert scraped.status_code == 200
        for body in (as_a_person.text, scraped.text):
            assert TOKEN not in body
            assert base64.b64encode(TOKEN.encode()).decode() not in body
    assert TOKEN not in daemon.output


def test_a_token_that_cannot_be_read_ends_the_start_with_78(tmp_path: Path, sandbox: Sandbox) -> None:
    place = with_page(tmp_path, sandbox.url)
    place.config.write_text(place.config.read_text().replace("\nfolders", f"  token_file: {tmp_path}/none\nfolders"))
    with DaemonProcess(place.config) as daemon:
        daemon.wait_for(lambda: daemon.over, "the end")
        [told] = daemon.events("config.invalid")
        assert daemon.end() == 78
    assert told["key"] == "status.token_file"


def test_a_stop_waits_for_nobody_who_looks(place: Place) -> None:
    with DaemonProcess(place.config).started() as daemon, ExitStack() as clients:
        host, port = daemon.await_event("status.listening")[0]["address"].split(":")
        browsers = [clients.enter_context(socket.create_connection((host, int(port)))) for _ in range(3)]
        browsers[0].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in browsers[0].recv(4096)
        browsers[1].sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert daemon.end() == 0
    assert daemon.events("daemon.stuck") == []


# Of the server alone


@contextmanager
def server(
    address: Address, tmp_path: Path, token: str | None = None, alive: Callable[[], list[str]] = list
) -> Iterator[tuple[Server, str]]:
    subject = Subject(tmp_path / "ledger.sqlite", (), 4, is_running=False, since=time.time())
    found = Server(address, token, subject, alive=alive, held=tuple)
    found.start()
    try:
        yield found, f"http://{found.address}"
    finally:
        assert found.stop(), "a thread of it hangs"


ANYWHERE = TcpAddress("127.0.0.1", 0)


def connected(served: Server) -> socket.socket:
    assert isinstance(served.address, TcpAddress)
    return socket.create_connection((served.address.host, served.address.port), timeout=60)


def test_every_answer_forbids_a_browser_whatever_it_does_not_need(tmp_path: Path) -> None:
    with server(ANYWHERE, tmp_path) as (_, url):
        answers = [httpx.get(url + path) for path in ("/", "/page.js", "/metrics", "/none")]
        answers.append(httpx.get(url, headers={"Host": "evil.example"}))
    assert [each.status_code for each in answers] == [200, 200, 200, 404, 421]
    for each in answers:
        policy = each.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert (each.headers["X-Content-Type-Options"], each.headers["X-Frame-Options"]) == ("nosniff", "DENY")
        assert each.headers["Referrer-Policy"] == "no-referrer"
        assert each.headers["Date"]
        assert "server" not in each.headers
        assert "access-control-allow-origin" not in each.headers


def test_the_page_is_never_kept_and_its_files_are_for_ever(tmp_path: Path) -> None:
    with server(ANYWHERE, tmp_path) as (_, url):
        page = httpx.get(url)
        names = re.findall(r'(?:href|src)="(/[^"]+\?[^"]+)"', page.text)
        files = [httpx.get(url + name) for name in names]
    assert page.headers["Cache-Control"] == "no-store"
    assert {name.partition("?")[0] for name in names} == {"/icon-unknown.svg", "/page.css", "/page.js"}
    assert {each.status_code for each in files} == {200}
    assert {each.headers["Content-Type"].partition(";")[0] for each in files} == {
        "text/css", "text/javascript", "image/svg+xml",
    }  # fmt: skip
    assert all("immutable" in each.headers["Cache-Control"] for each in files)


def test_head_is_get_without_the_body(tmp_path: Path) -> None:
    with server(ANYWHERE, tmp_path) as (_, url):
        got, headed = httpx.get(f"{url}/page.css"), httpx.head(f"{url}/page.css")
    assert (headed.status_code, headed.content) == (200, b"")
    assert headed.headers["Content-Length"] == str(len(got.content))


@pytest.mark.parametrize("alive", [[], ["upload-1"]])
def test_health_is_what_the_threads_say(tmp_path: Path, alive: list[str]) -> None:
    with server(ANYWHERE, tmp_path, alive=lambda: alive) as (_, url):
        found = httpx.get(f"{url}/healthz")
        page = httpx.get(url).text
        assert metric(url, "heifyd_stuck_threads") == len(alive)
    assert found.json()["stuck_threads"] == alive
    assert found.status_code == (503 if alive else 200)
    assert ("Stuck: heifyd does not get on" in page) is bool(alive)


def test_a_body_is_not_read_and_ends_its_connection(tmp_path: Path) -> None:
    with server(ANYWHERE, tmp_path) as (served, _), connected(served) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "said",
    [
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000,
        b"\0\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_nothing_is_logged_of_it(
    tmp_path: Path, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with server(ANYWHERE, tmp_path) as (served, url), connected(served) as client:
        client.sendall(said)
        try:
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        except ConnectionResetError:  # it was closed before all that was sent was read
            answer = b""
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 421 "))
        assert httpx.get(f"{url}/healthz").status_code == 200
    assert [each for each in caplog.records if each.name.startswith(("uvicorn", "heifyd", "asyncio"))] == []


def test_a_request_that_does_not_come_to_its_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "REQUEST_S", 0.2)
    monkeypatch.setattr("heifyd.observe.server.IDLE_S", 0.2)
    with server(ANYWHERE, tmp_path) as (served, _), ExitStack() as clients:
        slow = [clients.enter_context(connected(served)) for _ in range(3)]
        slow[0].sendall(b"GET / HTTP/1.1\r\nHost: loc")
        slow[1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTT")
        for each in slow:
            ended = False
            while not ended:
                try:
                    ended = each.recv(65536) == b""
                except ConnectionResetError:
                    ended = True


def test_who_does_not_read_the_answer_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "REQUEST_S", 0.5)
    with server(ANYWHERE, tmp_path) as (served, url), connected(served) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        asked = b"GET /page.css HTTP/1.1\r\nHost: localhost\r\n\r\n"
        try:
            for _ in range(3000):
                client.sendall(asked)
        except (ConnectionResetError, BrokenPipeError):
            pass  # which is what is waited for below
        eventually(lambda: not served._state.connections, "the connection's end")
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_however_many_connections_are_left_open_a_new_one_gets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "REQUEST_S", 1e6)
    with server(ANYWHERE, tmp_path) as (served, url), ExitStack() as clients:
        idle = [clients.enter_context(connected(served)) for _ in range(3 * wire.MOST_CONNECTIONS)]
        for _ in range(3):
            assert httpx.get(f"{url}/healthz").status_code == 200
        eventually(lambda: len(served._state.connections) <= wire.MOST_CONNECTIONS, "the limit")
        with suppress(ConnectionResetError):
            assert idle[0].recv(1) == b"", "the one that was opened first has gone"


def test_a_stop_waits_for_no_client_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("REQUEST_S", "IDLE_S"):
        monkeypatch.setattr(wire, limit, 1e6)
    with ExitStack() as clients:
        with server(ANYWHERE, tmp_path) as (served, _):
            half, idle = (clients.enter_context(connected(served)) for _ in range(2))
            half.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        assert (half.recv(1), idle.recv(65536)[:0]) == (b"", b"")


def test_while_a_disk_hangs_health_is_told_and_the_page_says_that_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ANSWER_S", 0.2)
    hanging = threading.Event()
    with server(ANYWHERE, tmp_path) as (served, url):
        read = served._looking._read

        def hang(subject: Subject) -> Any:
            hanging.wait(60)
            return read(subject)

        served._looking._read = hang
        try:
            assert httpx.get(f"{url}/healthz").status_code == 200
            page = httpx.get(url)
            found = httpx.get(f"{url}/readyz")
            assert httpx.get(f"{url}/metrics").status_code == 200
        finally:
            hanging.set()
    assert (page.status_code, found.status_code) == (200, 503)
    assert "does not answer" in page.text
    assert [each["reason"] for each in found.json()["reasons"]] == ["starting", "unreadable"]


def test_a_thread_that_dies_is_told_of_as_any_other_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died: list[str | None] = []
    monkeypatch.setattr(app, "ANSWER_S", 0.2)
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.thread and args.thread.name))
    with server(ANYWHERE, tmp_path) as (served, url):

        def fail(_subject: Subject) -> Any:
            raise ZeroDivisionError

        served._looking._read = fail
        httpx.get(f"{url}/readyz")
        eventually(lambda: died == ["status-look"], "the thread's end")


def test_a_server_on_a_unix_socket_answers_for_any_host_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with (
        server(UnixAddress(str(path)), tmp_path),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://pbx-1.example") as client,
    ):
        assert json.loads(client.get("/healthz").text)["status"] == "alive"
    assert os.listdir(tmp_path) == []


def test_asking_without_end_takes_a_part_of_the_processor_only(tmp_path: Path) -> None:
    """Answers keep apart by at least `_APART_S`: whoever asks in a closed loop gets so many a second and no more."""
    with server(ANYWHERE, tmp_path) as (_, url), httpx.Client(base_url=url) as client:
        client.get("/healthz")
        before_s = time.monotonic()
        for _ in range(100):
            client.get("/healthz")
        took_s = time.monotonic() - before_s
    assert took_s > 90 * app._APART_S
