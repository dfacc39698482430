"""What is said of a heifyd, and to whom: pure judgements and words, the thread that looks, the socket."""

import base64
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heifyd.address import TcpAddress, UnixAddress
from heifyd.ledger import FolderCounts, HoldRow, Ledger, LedgerInUseError, State, UploadRow
from heifyd.ledger_history import Failure, Hour
from heifyd.observe import health, listening
from heifyd.observe.guard import Guard
from heifyd.observe.look import Look, Looking, Reader, Subject
from heifyd.observe.metrics import Metrics, label
from heifyd.observe.page import render
from heifyd.observe.verdict import verdict
from heifyd.overview import FolderStatus, Overview
from heifyd.recording import Identity
from heifyd.wording import printable
from tests.harness import eventually

NOW = 1_800_000_000.0
TOKEN = "0123456789abcdef-token"
SUBJECT = Subject(Path("/var/lib/heifyd/ledger.sqlite"), ("/calls/a", "/calls/b"), 4, is_running=True, since=NOW)
EVERYTHING = HoldRow("", "account", "out_of_minutes", "Heify answered 402", "top it up", NOW - 60)
ONE = HoldRow("/calls/a", "mapping", "mapping_refused", "no such id", "correct it", None)


def seen(**other: Any) -> Look:
    counts = FolderCounts(0, 0, 5, 0, None)
    folders = [FolderStatus(each, configured=True, counts=counts) for each in SUBJECT.folders]
    overview = Overview(running=True, alive=True, ledger="", holds=[], folders=folders, uploads=[])
    given: dict[str, Any] = {"subject": SUBJECT, "at": NOW, "overview": overview}
    return Look(**(given | other))


def judged(look: Look, *stuck: str) -> tuple[str, str]:
    found = verdict(look, [*health.reasons(look)], stuck)
    return found.level, found.headline


# How things stand


def test_what_is_worst_is_said_first() -> None:
    failed = (Hour(0, 5, 2), Hour(3600, 0, 1))
    away = Subject(SUBJECT.ledger, SUBJECT.folders, 4, is_running=False, since=NOW)

    assert judged(seen()) == ("well", "All is well")
    assert judged(seen(hours=failed)) == ("notice", "Working, but 3 failed in the last 24 hours")
    assert judged(seen(hours=failed, holds=[ONE])) == ("held", "Held: 1 of 2 folders")
    assert judged(seen(holds=[ONE, EVERYTHING])) == ("held", "Held: nothing is uploaded")
    assert judged(seen(overview=None, trouble="it is damaged"))[0] == "unknown"
    assert judged(seen(trouble="no answer"))[0] == "unknown"
    assert judged(seen(subject=away)) == ("unknown", "heifyd is starting")
    assert judged(seen(holds=[EVERYTHING]), "upload-1") == ("held", "Stuck: heifyd does not get on")


def test_ready_is_who_is_held_by_nothing() -> None:
    assert health.readiness([*health.reasons(seen())]) == (200, {"status": "ready", "reasons": []})
    status, said = health.readiness([*health.reasons(seen(holds=[EVERYTHING]))])
    assert (status, said["status"]) == (503, "held")
    assert said["reasons"] == [
        {
            "scope": "everything",
            "owner": "account",
            "reason": "out_of_minutes",
            "detail": "Heify answered 402",
            "what_to_do": "top it up",
            "since": NOW - 60,
        }
    ]
    for look in (seen(overview=None, trouble="gone"), seen(subject=Subject(Path("/l"), (), 1, False, NOW))):
        assert health.readiness([*health.reasons(look)])[0] == 503


def test_alive_is_whose_threads_all_get_on() -> None:
    assert health.liveness([]) == (200, {"status": "alive", "stuck_threads": []})
    assert health.liveness(["upload-1"]) == (503, {"status": "stuck", "stuck_threads": ["upload-1"]})


# Who may look


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(b"anybody:" + password.encode()).decode()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9469", "127.8.8.8", "[::1]:9469", "[::1]"])
def test_a_host_that_is_this_machine_is_answered(host: str) -> None:
    assert Guard(None, is_loopback=True).refusal("GET", {"host": host}) is None


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:9469", "10.0.0.1", "[::2]",
     "0.0.0.0", "[::ffff:10.0.0.1]", "127.0.0.1@evil.example", "::1"],
)  # fmt: skip
def test_any_other_host_is_a_page_elsewhere_that_asks(host: str) -> None:
    refusal = Guard(None, is_loopback=True).refusal("GET", {"host": host})

    assert refusal is not None
    assert refusal.status == 421


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {TOKEN} ", basic(TOKEN), basic(TOKEN).lower()])
def test_the_token_lets_in_as_a_bearer_token_and_as_a_password(authorization: str) -> None:
    is_case_changed = authorization == basic(TOKEN).lower()
    found = Guard(TOKEN, is_loopback=False).refusal("GET", {"authorization": authorization})

    assert (found is None) is not is_case_changed


@pytest.mark.parametrize(
    "authorization",
    [
        *(
            "",
            "Bearer",
            "Bearer ",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Token {TOKEN}",
            TOKEN,
            "Basic ",
            "Basic !",
        ),
        *(basic(""), basic(TOKEN + "x"), "Basic " + base64.b64encode(TOKEN.encode()).decode(), "Bearer \xff\u20ac"),
    ],
)
def test_without_the_token_nobody_gets_in(authorization: str) -> None:
    for method in ("GET", "POST"):
        refusal = Guard(TOKEN, is_loopback=False).refusal(method, {"authorization": authorization})

        assert refusal is not None
        assert (refusal.status, refusal.headers["WWW-Authenticate"][:5]) == (401, "Basic")
        assert TOKEN not in refusal.why


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO"])
def test_nothing_is_to_be_done_here(method: str) -> None:
    refusal = Guard(None, is_loopback=False).refusal(method, {})
    assert refusal is not None
    assert (refusal.status, refusal.headers) == (405, {"Allow": "GET, HEAD"})


@pytest.mark.parametrize("headers", [{"content-length": "1"}, {"transfer-encoding": "chunked"}])
def test_a_request_with_a_body_ends_its_connection(headers: dict[str, str]) -> None:
    refusal = Guard(None, is_loopback=False).refusal("GET", headers)
    assert refusal is not None
    assert (refusal.status, refusal.headers) == (413, {"Connection": "close"})


# What is counted


def values(metrics: Metrics, look: Look) -> dict[str, float]:
    text, _ = metrics.text(look, [], "")
    lines = [line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_counters_say_what_the_log_and_the_requests_said() -> None:
    metrics = Metrics()
    metrics.know(["/calls/a"])
    before = values(metrics, seen())
    for event in ("settled", "settled", "done", "failed", "vanished", "refused", "sent_before"):
        metrics.tell({"event": f"recording.{event}", "folder": "/calls/a", "total_ms": 2000})
    metrics.tell({"event": "daemon.started", "folders": 1})
    metrics.sent(1000)
    metrics.sent(24)
    metrics.answered("put", "503")
    after = values(metrics, seen())

    assert before['heifyd_recordings_total{folder="/calls/a",outcome="failed"}'] == 0, "or the first is no increase"
    changed = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name)}
    changed = {
        name: value
        for name, value in changed.items()
        if not name.startswith(("process_", "heifyd_recording_seconds_b"))
    }
    assert changed == {
        'heifyd_recordings_settled_total{folder="/calls/a"}': 2,
        'heifyd_recordings_total{folder="/calls/a",outcome="done"}': 1,
        'heifyd_recordings_total{folder="/calls/a",outcome="failed"}': 1,
        'heifyd_recordings_total{folder="/calls/a",outcome="vanished"}': 1,
        "heifyd_recording_seconds_count": 1,
        "heifyd_recording_seconds_sum": 2,
        "heifyd_uploaded_bytes_total": 1024,
        'heifyd_api_requests_total{endpoint="put",status="503"}': 1,
    }
    assert after['heifyd_recording_seconds_bucket{le="1.0"}'] == 0
    assert after['heifyd_recording_seconds_bucket{le="2.5"}'] == 1


def test_gauges_say_what_the_look_saw() -> None:
    counts = FolderCounts(7, 3, 5, 2, NOW - 90)
    folder = FolderStatus("/calls/a", configured=True, counts=counts)
    overview = Overview(running=True, alive=True, ledger="", holds=[], folders=[folder], uploads=[])

    found = values(Metrics(), seen(overview=overview, holds=[EVERYTHING, ONE], free_bytes=12345))

    about = '{folder="/calls/a"}'
    assert found[f"heifyd_waiting_recordings{about}"] == 7
    assert found[f"heifyd_uploading_recordings{about}"] == 3
    assert found[f"heifyd_failed_recordings{about}"] == 2
    assert found[f"heifyd_oldest_waiting_seconds{about}"] == 90
    assert found['heifyd_holds{owner="account",reason="out_of_minutes",scope="everything"}'] == 1
    assert found['heifyd_holds{owner="mapping",reason="mapping_refused",scope="/calls/a"}'] == 1
    assert (found["heifyd_workers"], found["heifyd_workers_busy"]) == (4, 3)
    assert (found["heifyd_ledger_readable"], found["heifyd_ledger_disk_free_bytes"]) == (1, 12345)


def test_of_a_ledger_that_cannot_be_read_nothing_is_made_up() -> None:
    found = values(Metrics(), seen(overview=None, trouble="gone", holds=[EVERYTHING]))

    assert found["heifyd_ledger_readable"] == 0
    assert not [name for name in found if name.startswith(("heifyd_waiting", "heifyd_oldest", "heifyd_workers_busy"))]
    assert [name for name in found if name.startswith("heifyd_holds")]


@given(st.lists(st.binary(min_size=1, max_size=12).map(os.fsdecode), unique=True, max_size=6))
def test_different_folders_have_different_labels_that_any_scraper_reads(folders: list[str]) -> None:
    labels = [label(folder) for folder in folders]

    assert len(set(labels)) == len(folders)
    assert all(each.isprintable() and each.encode("utf-8") for each in labels)


# The page


class Reading(HTMLParser):
    """Takes a page apart: its elements, and what a person reads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "wbr":
            self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def shown(look: Look, *stuck: str) -> str:
    return render(look, stuck, "pbx-1", lambda name: f"/{name}?1")


HOSTILE = [
    "<img src=x onerror=alert(1)>.wav",
    '"><script>alert(1)</script>.wav',
    "' onmouseover='alert(1).wav",
    "</title></svg></progress><script>.wav",
    "&lt;b&gt;&amp;.wav",
    "javascript:alert(1).wav",
    "gpj.\u202eexe.wav",
    "new\nline\r\tand\x1b[31m\0.wav",
    os.fsdecode(b"\xff\xfe<i>.wav"),
    "x" * 251 + ".wav",
    "{braces} {0} %s ${x}.wav",
]


def page_full_of(name: str) -> str:
    folder = f"/calls/{name}"
    counts = FolderCounts(1, 1, 1, 1, NOW - 9)
    overview = Overview(
        running=True,
        alive=True,
        ledger="",
        holds=[],
        folders=[
            FolderStatus(folder, configured=True, counts=counts),
            FolderStatus("/calls/b", configured=False, counts=counts),
        ],
        uploads=[UploadRow(folder, name, 1000, 250, NOW - 2)],
    )
    hold = HoldRow(folder, "folder", name, f"detail {name}", f"advice `{name}`", NOW)
    failure = Failure(folder, name, NOW, f"{folder}/failed/{name}", name, f"detail {name}", f"advice {name}")
    subject = Subject(Path(folder) / "ledger.sqlite", (folder,), 4, is_running=True, since=NOW)
    return shown(Look(subject, NOW, [hold], overview, [Hour(0, 1, 1)], [failure], None, 10**9, name), name)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_becomes_markup_or_hides_a_character(name: str) -> None:
    page, plain = Reading(page_full_of(name)), Reading(page_full_of("call.wav"))

    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert [list(attributes) for _, attributes in page.elements] == [
        list(attributes) for _, attributes in plain.elements
    ]
    assert re.findall(r"[^\n\x20-\x7e\xa1-\u1fff]", page.words.replace("\N{EN DASH}", "")) == []
    assert page_full_of(name).encode("utf-8")


def test_a_folder_that_is_named_by_its_last_part_is_named_in_full_above() -> None:
    page = Reading(shown(seen()))

    assert "below /calls/" in page.words
    assert Reading(shown(seen(holds=[ONE]))).words.count("/calls/a") == 1


def test_a_hold_is_shown_with_whose_it_is_since_when_and_what_to_do() -> None:
    words = Reading(shown(seen(holds=[EVERYTHING, ONE]))).words

    assert "Held: nothing is uploaded" in words
    assert "Everythingaccount: out_of_minutes, since" in re.sub(r"\n+", "", words)
    assert "for 1 min" in words
    assert words.count("What to do:") == 2
    assert "top it up" in words


def test_the_plot_has_words_and_a_table_for_who_does_not_see_it() -> None:
    page = shown(seen(hours=[Hour(at * 3600, at, at % 5) for at in range(24)]))
    reading = Reading(page)

    [svg] = [attributes for tag, attributes in reading.elements if tag == "svg" and attributes.get("role") == "img"]
    ids = {attributes.get("id") for _, attributes in reading.elements}
    assert set(str(svg["aria-labelledby"]).split()) <= ids
    assert "276 done and 46 failed in the last 24 hours" in page
    assert len(re.findall(r"<tr><th scope", page)) == 25
    bars = [float(height) for height in re.findall(r'<rect class="done"[^>]* height="([\d.]+)"', page)]
    assert len(bars) == 23, "an hour of nothing has no bar"
    assert max(bars) == 100


def test_an_hour_in_which_little_happened_is_seen_beside_one_in_which_much_did() -> None:
    page = shown(seen(hours=[Hour(0, 1, 1), Hour(3600, 100_000, 5000)]))

    assert re.findall(r'<rect class="done"[^>]* height="([\d.]+)"', page) == ["3.0", "100.0"]
    assert re.findall(r'<rect fill="url\(#hatch\)"[^>]* height="([\d.]+)"', page) == ["3.0", "36.0"]


def test_a_page_of_which_nothing_is_known_says_so_and_shows_no_numbers() -> None:
    words = Reading(shown(seen(overview=None, trouble="the ledger is damaged"))).words

    assert "How things stand cannot be told" in words
    assert "the ledger is damaged" in words
    assert "Done today" not in words


def test_every_style_and_script_is_a_file_of_its_own() -> None:
    page = page_full_of("call.wav")
    elements = Reading(page).elements

    assert not [
        tag for tag, attributes in elements if "style" in attributes or any(key.startswith("on") for key in attributes)
    ]
    assert [attributes["src"] for tag, attributes in elements if tag == "script"] == ["/page.js?1"]
    assert "style" not in [tag for tag, _ in elements]
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page)


@given(st.text())
def test_whatever_is_said_can_be_read_back(said: str) -> None:
    page = Reading(shown(seen(holds=[HoldRow("", "account", "reason", said, "advice", NOW)])))

    assert printable(said) in page.words


# The thread that looks


@contextmanager
def looking(read: Any) -> Iterator[Looking]:
    found = Looking(SUBJECT, read)
    thread = threading.Thread(target=found.work)
    thread.start()
    try:
        yield found
    finally:
        found.stop()
        thread.join()


def test_however_many_look_at_a_time_it_is_read_once() -> None:
    may_go_on, reads = threading.Event(), []

    def read(subject: Subject) -> Look:
        reads.append(subject)
        may_go_on.wait(60)
        return Look(subject, NOW)

    with looking(read) as found:
        asked = [found.ask() for _ in range(50)]
        eventually(lambda: reads, "a look")
        asked += [found.ask() for _ in range(50)]
        may_go_on.set()
        looks = {id(each.result(60)) for each in asked}
        looks.add(id(found.ask().result(60)))

    assert (len(looks), len(reads)) == (1, 1)


def test_while_nobody_looks_nothing_is_read() -> None:
    reads: list[Subject] = []

    def read(subject: Subject) -> Look:
        reads.append(subject)
        return Look(subject, NOW)

    with looking(read):
        pass
    assert reads == []


def test_what_takes_long_to_read_is_read_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reads = []

    def read(subject: Subject) -> Look:
        reads.append(now[0])
        now[0] += 0.5
        return Look(subject, NOW)

    with looking(read) as found:
        for step_s in (0.0, 9.9, 0.2, 5.0):
            now[0] += step_s
            found.ask().result(60)

    assert reads == [1000.0, 1000.5 + 10.1], "0.5 s of work is had every 10 s at most"


def test_another_heifyd_is_looked_at_at_once() -> None:
    other = Subject(Path("/other"), (), 1, is_running=True, since=NOW)
    with looking(lambda subject: Look(subject, NOW)) as found:
        assert found.ask().result(60).subject is SUBJECT
        found.at(other)
        assert found.ask().result(60).subject is other


def test_a_look_tells_all_there_is_in_the_ledger_and_changes_nothing(tmp_path: Path, odd_name: str) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    hour = int(time.time()) // 3600 * 3600
    with closing(Ledger.of_daemon(tmp_path / "ledger.sqlite", lambda _: None)) as ledger:
        for path, state in (("done.wav", State.DONE), (odd_name, State.FAILED), ("waits.wav", None)):
            ledger.add([Identity(str(folder), path, 1, 1)], time.time())
            if state is not None:
                claim = ledger.claim(str(folder), time.monotonic())
                assert claim is not None
                ledger.ended(claim, state, hour + 1.0, reason="why")
        subject = Subject(tmp_path / "ledger.sqlite", (str(folder),), 4, is_running=True, since=NOW)
        look = Reader(lambda: [EVERYTHING]).read(subject)

        with pytest.raises(LedgerInUseError):
            Ledger.of_daemon(tmp_path / "ledger.sqlite", lambda _: None)
    assert look.trouble is None
    assert look.overview is not None
    assert look.overview.folders[0].counts.waiting == 1
    assert (look.hours[-1], len(look.hours)) == (Hour(hour, 1, 1), 24)
    assert [each.path for each in look.failures] == [odd_name]
    assert look.last_done == hour + 1.0
    assert look.holds == [EVERYTHING]
    assert look.free_bytes


@pytest.mark.parametrize("content", [None, b"no database at all, but longer than a page's least size" * 99])
def test_a_ledger_that_cannot_be_read_is_told_of(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ledger.sqlite"
    if content is not None:
        path.write_bytes(content)

    look = Reader(lambda: [EVERYTHING]).read(Subject(path, (), 4, is_running=True, since=NOW))

    assert str(path) in str(look.trouble)
    assert (look.overview, look.holds) == (None, [EVERYTHING])


def test_the_ledger_of_a_heifyd_that_starts_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    look = Reader(lambda: [EVERYTHING]).read(Subject(path, (), 4, is_running=False, since=NOW))

    assert (look.overview, look.trouble, look.holds) == (None, None, [EVERYTHING])
    assert os.listdir(tmp_path) == []


# The socket


def test_a_unix_socket_is_for_its_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    found = listening.bound(UnixAddress(str(path)))

    assert path.stat().st_mode & 0o777 == 0o660
    assert os.listdir(tmp_path) == ["status.sock"]
    found.close()
    assert not path.exists()


def test_a_socket_that_a_killed_heifyd_left_behind_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "status.sock"))
    left = socket.socket(socket.AF_UNIX)
    left.bind(address.path)
    left.close()

    found = listening.bound(address)
    with pytest.raises(listening.CannotListenError, match=re.escape(f"{address} is taken by another program")):
        listening.bound(address)
    found.close()


def test_the_path_of_a_socket_that_has_been_replaced_is_left_alone(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "status.sock"))
    mine = listening.bound(address)
    os.unlink(address.path)
    other = listening.bound(address)

    mine.close()

    assert os.path.exists(address.path)
    other.close()


def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    path.write_text("precious")
    with pytest.raises(listening.CannotListenError, match="is there and is no socket"):
        listening.bound(UnixAddress(str(path)))
    assert path.read_text() == "precious"


def test_an_address_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = TcpAddress("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(listening.CannotListenError, match=re.escape(f"{address} is taken by another program")):
            listening.bound(address)
    with pytest.raises(listening.CannotListenError, match=r"192\.0\.2\.1:9469 cannot be listened on"):
        listening.bound(TcpAddress("192.0.2.1", 9469))
    with pytest.raises(listening.CannotListenError, match="No such file or directory"):
        listening.bound(UnixAddress(str(tmp_path / "none" / "status.sock")))
