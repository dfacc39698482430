"""The log: one JSON object a line, and nothing secret in it."""

import fcntl
import json
import logging
import os
import weakref
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from heifyd import log
from heifyd.log import Log, Redactor

KEY = "ak_live_0123456789abcdef"
URL = (
    "https://storage.heify.com/upload/c/t-1?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA1234%2F20260701"
    "&X-Amz-Expires=300&X-Amz-SignedHeaders=host&X-Amz-Security-Token=IQoJb3JpZ2lu&X-Amz-Signature=deadbeef0123"
)
OLD_URL = (
    "https://heify.s3.amazonaws.com/upload/t-1?AWSAccessKeyId=AKIA1234&Signature=dead%2Bbeef%3D&Expires=1800000000"
)
PARTS = ("AKIA1234", "IQoJb3JpZ2lu", "deadbeef0123", "dead%2Bbeef", "beef%3D")


class Page:
    """A log, and what was written to it."""

    def __init__(self, *, for_reading: bool) -> None:
        self._out = os.memfd_create("log")
        weakref.finalize(self, os.close, self._out)
        self.redact = Redactor()
        self.log: Log = log.make(self.redact, self._out, for_reading=for_reading)

    @property
    def raw(self) -> bytes:
        return os.pread(self._out, 1_000_000, 0)

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.raw.splitlines()]


@pytest.fixture
def page() -> Page:
    return Page(for_reading=False)


@pytest.fixture(params=[False, True], ids=["json", "for reading"])
def either(request: pytest.FixtureRequest) -> Page:
    return Page(for_reading=request.param)


def test_a_line_is_a_json_object_that_begins_with_time_level_and_event(page: Page) -> None:
    page.log.bind(folder="/calls").warning("recording.changed", file="call.wav", attempts=2, duration_s=None)

    [line] = page.lines
    assert list(line) == ["timestamp", "level", "event", "folder", "file", "attempts", "duration_s"]
    assert (line["level"], line["event"], line["attempts"], line["duration_s"]) == (
        "warning",
        "recording.changed",
        2,
        None,
    )
    at = datetime.fromisoformat(str(line["timestamp"]))
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60


def test_a_telling_logger_writes_as_the_other_does_and_tells_of_each_event_with_what_was_bound(page: Page) -> None:
    told: list[dict[str, object]] = []
    telling = log.telling(page.log.bind(folder="/calls"), lambda event: told.append(dict(event)))

    telling.bind(file="call.wav").info("recording.done", size_bytes=7)
    telling.debug("recording.debugged")
    page.log.info("daemon.started")

    assert told == [{"event": "recording.done", "folder": "/calls", "file": "call.wav", "size_bytes": 7}]
    done, started = page.lines
    assert (done["event"], done["folder"], done["file"], done["size_bytes"]) == (
        "recording.done",
        "/calls",
        "call.wav",
        7,
    )
    assert (done["level"], started["event"], "folder" in started) == ("info", "daemon.started", False)


def test_any_file_name_makes_one_line_from_which_it_can_be_had_again(page: Page, odd_name: str) -> None:
    page.log.info("recording.settled", file=odd_name)

    assert page.raw.count(b"\n") == 1
    page.raw.decode("utf-8")
    [line] = page.lines
    assert os.fsencode(str(line["file"])) == os.fsencode(odd_name)


def test_a_traceback_is_part_of_its_line(page: Page) -> None:
    try:
        raise RuntimeError("broken\nin two")
    except RuntimeError:
        page.log.critical("thread.died", thread="upload-1", exc_info=True)

    [line] = page.lines
    assert "RuntimeError: broken\nin two" in str(line["exception"])


def test_what_is_only_of_use_while_developing_is_not_logged(page: Page) -> None:
    page.log.debug("noise")

    assert page.raw == b""


Write = Callable[[Page], None]


def in_an_exception(text: str) -> Write:
    def write(page: Page) -> None:
        try:
            raise ValueError(text)
        except ValueError as error:
            page.log.critical("thread.died", exc_info=error)

    return write


def everywhere(text: str) -> list[Write]:
    """Return every way in which a text can get into the log."""
    return [
        lambda page: page.log.info("x", detail=f"before {text} after"),
        lambda page: page.log.info("x", detail=[{"nested": text}]),
        lambda page: page.log.info("x", **{text: 1}),
        lambda page: page.log.info(text),
        lambda page: page.log.bind(bound=text).info("x"),
        lambda page: page.log.info("x", detail=text.encode()),
        in_an_exception(text),
    ]


@pytest.mark.parametrize("way", range(len(everywhere(""))))
def test_no_secret_gets_into_the_log_whichever_way_it_comes(either: Page, way: int) -> None:
    either.redact.hide(KEY)

    for text in (KEY, URL, OLD_URL):
        everywhere(text)[way](either)

    written = either.raw.decode()
    assert KEY not in written
    assert [part for part in PARTS if part in written] == []
    assert "[hidden]" in written


def unescaped(text: str) -> str:
    for escaped, char in (("\\'", "'"), ('\\"', '"'), ("\\\\", "\\")):
        text = text.replace(escaped, char)
    return text


SECRETS = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="[]"), min_size=4, max_size=40
)


@given(SECRETS, st.text(max_size=20), st.text(max_size=20), st.booleans())
@example('it\'s"secret"', "", "", True)
@example("back\\slash\\", "", "", False)
@example("x'yz", 'a "quoted" ', "", True)
def test_no_key_of_any_characters_survives_in_a_line(
    secret: str,
    before: str,
    after: str,
    for_reading: bool,  # noqa: FBT001
) -> None:
    page = Page(for_reading=for_reading)
    page.redact.hide(secret)

    page.log.info("key.seen", text=before + secret + after)
    written = page.raw.decode()

    frame = Page(for_reading=for_reading)
    frame.log.info("key.seen", text=before + after)
    assume(secret not in frame.raw.decode())
    assume(secret not in "[hidden]")
    assert secret not in written
    assert secret not in unescaped(written)


@given(st.lists(SECRETS, min_size=1, max_size=4), st.data())
def test_no_secret_of_several_survives_in_any_text(secrets: list[str], data: st.DataObject) -> None:
    redact = Redactor()
    for secret in secrets:
        redact.hide(secret)
    text = "".join(data.draw(st.lists(st.sampled_from(secrets) | st.text(max_size=5), max_size=10)))

    shown = redact(text)

    assert [secret for secret in secrets if secret in shown.replace("[hidden]", "")] == [] or all(
        secret in "[hidden]" for secret in secrets if secret in shown
    )


TOKEN = st.text("0123456789abcdefABCDEF%+/=_-", min_size=8, max_size=80)
PARAMETER = st.sampled_from(
    ["X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "Signature", "AWSAccessKeyId", "x-amz-signature"]
)


@given(PARAMETER, TOKEN, st.sampled_from(["", "&X-Amz-Expires=300", '"', "'", " ", "\n", "</a>", "\\n"]), st.booleans())
def test_no_signature_survives_whatever_stands_around_it(
    parameter: str,
    token: str,
    after: str,
    is_quoted: bool,  # noqa: FBT001
) -> None:
    equals = "%3D" if is_quoted else "="

    shown = Redactor()(f"PUT https://storage.heify.com/t?{parameter}{equals}{token}{after}")

    assert token not in shown
    assert shown.endswith(f"{parameter}{equals}[hidden]{after}")


def test_what_is_not_secret_is_left_as_it_is() -> None:
    redact = Redactor()
    redact.hide(KEY)

    assert (
        redact("https://storage.heify.com/t-1?X-Amz-Expires=300&x=1")
        == "https://storage.heify.com/t-1?X-Amz-Expires=300&x=1"
    )
    assert redact(f"key {KEY}!") == "key [hidden]!"


def test_an_empty_secret_does_not_hide_everything() -> None:
    redact = Redactor()
    redact.hide("")

    assert redact("call.wav") == "call.wav"


def test_what_libraries_warn_of_is_in_the_one_log_and_the_urls_they_chat_of_are_not(page: Page) -> None:
    page.redact.hide(KEY)
    library = logging.getLogger("httpx")

    with log.libraries_to(page.log):
        library.info("HTTP Request: PUT %s", URL)
        library.warning("retrying %s with %s", URL, KEY)
    library.warning("afterwards")

    [line] = page.lines
    assert (line["level"], line["event"], line["library"]) == ("warning", "library.warning", "httpx")
    assert str(line["detail"]).startswith("retrying https://storage.heify.com/upload/c/t-1?")
    assert [part for part in (KEY, *PARTS) if part in str(line)] == []


def test_a_log_without_room_stops_nothing_and_tells_how_much_was_lost() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        logger = log.make(Redactor(), writer, for_reading=False)
        for number in range(100):
            logger.info("recording.done", number=number, file="x" * 100)
        first = os.read(reader, 100_000)
        for number in (100, 101):
            logger.info("recording.done", number=number)
        lines = [json.loads(line) for line in (first + os.read(reader, 100_000)).splitlines()]
    finally:
        os.close(reader)
        os.close(writer)

    numbers = [line["number"] for line in lines if line["event"] == "recording.done"]
    [lost] = [line for line in lines if line["event"] == "log.lost"]
    assert numbers == [*range(100 - lost["lines"]), 100, 101]
    assert lost["lines"] > 0
    assert lines.index(lost) == len(lines) - 3


def test_a_log_on_a_full_disk_or_without_a_reader_raises_nothing() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for fd in (full, writer):
            log.make(Redactor(), fd, for_reading=False).error("hold.started")
    finally:
        os.close(full)
        os.close(writer)
