"""What is read out of Heify's and its storage's answers, none of which is trusted."""

import json
import os
from pathlib import Path

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heifyd import heify
from heifyd.answers import Arrival, api_message, arrival, storage_error
from heifyd.faults import FaultError, Owner
from heifyd.heify import Heify, boot_clock_s, boot_id
from heifyd.pace import Bandwidth, Timetable
from heifyd.recording import Ids, Ticket, is_loopback
from heifyd.urls import must_be_safe, signed_headers, url_lifetime_s

CONFIGURATION = "a1b2c3d4-e5f6-7890-1234-567890abcdef"
EVALUATOR = "2abb5563-dd64-47bb-bb17-94252e168b06"
PARTICIPANT = "9c5b94b1-35ad-49bb-b118-8e8fc24abf80"
STORAGE = "https://storage.heify.com/upload/client/t-1"
BASE = "https://api.heify.com"


def ticket(query: str, ids: Ids | None = None, name: str = "call 1") -> Ticket:
    ids = ids or Ids(CONFIGURATION, EVALUATOR, PARTICIPANT)
    return Ticket("t-1", f"{STORAGE}?{query}", ids, name, 500.0, "boot")


# The signature is obeyed


def test_exactly_the_headers_that_are_signed_are_sent() -> None:
    listed = "content-type%3Bhost%3Bx-amz-meta-configuration_id%3Bx-amz-meta-evaluator_id"

    headers = signed_headers(ticket(f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-SignedHeaders={listed}&X-Amz-Expires=300"))

    assert headers == {"x-amz-meta-configuration_id": CONFIGURATION, "x-amz-meta-evaluator_id": EVALUATOR}


def test_an_older_edition_signs_the_name_and_gets_it() -> None:
    headers = signed_headers(ticket("X-Amz-SignedHeaders=host;X-Amz-Meta-Configuration_Id;x-amz-meta-name"))

    assert headers == {"x-amz-meta-configuration_id": CONFIGURATION, "x-amz-meta-name": "call 1"}


def test_where_only_the_host_is_signed_no_metadata_is_sent() -> None:
    assert signed_headers(ticket("X-Amz-SignedHeaders=host")) == {}


def test_a_version_2_url_gets_the_metadata_that_there_is() -> None:
    query = "AWSAccessKeyId=AKIA&Signature=s&Expires=1800000000"

    assert signed_headers(ticket(query)) == {
        "x-amz-meta-configuration_id": CONFIGURATION,
        "x-amz-meta-evaluator_id": EVALUATOR,
        "x-amz-meta-participant_id": PARTICIPANT,
    }
    assert signed_headers(ticket(query, Ids(CONFIGURATION))) == {"x-amz-meta-configuration_id": CONFIGURATION}


@pytest.mark.parametrize("header", ["x-amz-meta-participant_id", "x-amz-acl", "x-amz-server-side-encryption"])
def test_a_signed_header_without_a_value_is_an_error_that_names_it(header: str) -> None:
    wanting = ticket(f"X-Amz-SignedHeaders=host;{header}", Ids(CONFIGURATION, EVALUATOR))

    with pytest.raises(FaultError, match=header) as raised:
        signed_headers(wanting)
    assert raised.value.fault.owner is Owner.SERVICE


@given(
    st.text(), st.text(), st.none() | st.text(min_size=1), st.sampled_from(["name", "configuration_id", "evaluator_id"])
)
@example("Jürgen", CONFIGURATION, None, "name")
@example("two\r\nx-amz-acl: public-read", CONFIGURATION, None, "name")
def test_what_heify_answers_makes_a_header_that_can_be_sent_or_a_fault(
    name: str, configuration: str, evaluator: str | None, signed: str
) -> None:
    answered = ticket(f"X-Amz-SignedHeaders=host;x-amz-meta-{signed}", Ids(configuration, evaluator), name)

    try:
        headers = signed_headers(answered)
    except FaultError as error:
        assert error.fault.owner is Owner.SERVICE  # noqa: PT017 (either outcome is right)
    else:
        for value in headers.values():
            assert value.isascii()
            assert value.isprintable()


@pytest.mark.parametrize(
    ("query", "lifetime_s"),
    [
        ("X-Amz-Expires=60", 60.0),
        ("X-Amz-Expires=", 300.0),
        ("AWSAccessKeyId=A&Expires=1800000000", 300.0),
        ("X-Amz-Expires=-1", 300.0),
        ("X-Amz-Expires=soon", 300.0),
        ("X-Amz-Expires=%C2%B2", 300.0),
    ],
)
def test_a_url_lives_as_long_as_it_says_or_five_minutes(query: str, lifetime_s: float) -> None:
    assert url_lifetime_s(f"{STORAGE}?{query}") == lifetime_s


@given(st.text())
def test_whatever_a_url_says_of_its_life_is_a_number_of_seconds(text: str) -> None:
    assert url_lifetime_s(f"{STORAGE}?X-Amz-Expires={text}") >= 0


# https only, and nothing that cannot be sent to


@pytest.mark.parametrize(
    "url",
    [
        "http://storage.heify.com/x",
        "http://127.0.0.1/x",
        "ftp://storage.heify.com/x",
        "file:///etc/passwd",
        "//storage.heify.com/x",
        "storage.heify.com/x",
        "https:///x",
        "https://user:password@storage.heify.com/x",
        "https://[::1/x",
        "",
    ],
)
def test_a_url_that_is_not_plainly_https_gets_no_recording(url: str) -> None:
    with pytest.raises(FaultError, match="not https") as raised:
        must_be_safe(url, BASE)
    assert raised.value.fault.owner is Owner.SERVICE


def test_only_a_heify_on_this_machine_may_give_http_urls_and_only_to_this_machine() -> None:
    must_be_safe("http://127.0.0.1:8080/x", "http://127.0.0.1:8080")
    must_be_safe("http://[::1]:8080/x", "http://localhost:8080")
    for url in ("http://storage.heify.com/x", "http://127.0.0.1.example.com/x", "http://127.example.com/x"):
        with pytest.raises(FaultError):
            must_be_safe(url, "http://127.0.0.1:8080")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "127.evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1"]
)
def test_a_name_that_only_begins_like_this_machine_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Z", "Cc"]), max_size=40))
@example("storage.heify.com:99999/x")
@example("storage.heify.com:port/x")
@example("exa mple.com/x")
@example("storage.heify.com/a\x7fb")
@example("storage.heify.com\\@evil.example/x")
def test_a_url_that_is_accepted_can_be_sent_to_and_goes_where_it_was_judged_to_go(rest: str) -> None:
    url = f"https://{rest}"
    try:
        must_be_safe(url, BASE)
    except FaultError:
        return

    assert httpx.URL(url).scheme == "https"
    assert httpx.URL(url).host


# Error bodies


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "Unsupported audio format", "code": 400}}, "Unsupported audio format"),
        ({"message": "Forbidden"}, "Forbidden"),
        ({"error": "Forbidden", "message": "no"}, "no"),
        ({"error": {"message": ["x"]}}, ""),
        ({"message": None}, ""),
        (["message"], ""),
        ({"message": "x" * 10_000}, "x" * 10_000),
    ],
)
def test_heifys_message_is_found_in_either_shape(body: object, message: str) -> None:
    assert api_message(json.dumps(body).encode()) == message


@given(st.binary())
@example(b"[" * 200_000)
@example(b'{"error":' * 100_000)
@example(b'{"message": ' + b"9" * 10_000 + b"}")
@example(b"\xff\xfe\x00")
@example(b'{"message": "\\ud800"}')
def test_no_error_body_of_the_api_is_worse_than_no_message(answer: bytes) -> None:
    assert len(api_message(answer)) <= len(answer)


def test_code_and_message_are_taken_out_of_the_storages_xml() -> None:
    answer = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"

    assert storage_error(b'<?xml version="1.0" encoding="UTF-8"?>\n' + answer) == (
        "AccessDenied",
        "Request has expired",
    )
    assert storage_error(b"<html><body>Bad gateway</body></html>") == ("", "")


LAUGHS = '<!DOCTYPE e [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><Error><Code>&b;</Code></Error>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_entities_in_the_storages_answer_are_not_expanded(encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{encoding}"?>' if encoding == "utf-16" else ""

    assert "ha" not in storage_error((head + LAUGHS).encode(encoding))[0]


@given(st.binary())
@example(b"<a>" * 100_000)
@example(b"<a>" * 60_000 + b"</a>" * 60_000)
@example(b'<?xml version="1.0" encoding="no-such"?><Error/>')
@example(b'<?xml version="1.0" encoding="utf-7"?><Error/>')
@example(b"<Error><Code>" + b"x" * 10_000 + b"</Code></Error>")
def test_no_error_body_of_the_storage_is_worse_than_no_code(answer: bytes) -> None:
    code, message = storage_error(answer)

    assert len(code) + len(message) <= len(answer)


# Whether a recording has arrived


@pytest.mark.parametrize(
    ("status", "duration", "expected"),
    [
        ("COMPLETED", 12.5, Arrival.ARRIVED),
        ("COMPLETED", None, Arrival.ARRIVED),
        ("processing", None, Arrival.ARRIVED),
        ("QUEUED", None, Arrival.ARRIVED),
        ("SOMETHING_ELSE", 12.5, Arrival.ARRIVED),
        ("PENDING_UPLOAD", None, Arrival.NOT_ARRIVED),
        ("WAITING_FOR_UPLOAD", 0, Arrival.NOT_ARRIVED),
        ("CREATED", None, Arrival.UNCLEAR),
        ("FAILED", None, Arrival.UNCLEAR),
        ("PENDING", None, Arrival.UNCLEAR),
        ("", None, Arrival.UNCLEAR),
        ("SOMETHING_ELSE", "12", Arrival.UNCLEAR),
    ],
)
def test_a_status_says_whether_the_recording_has_arrived(status: str, duration: object, expected: Arrival) -> None:
    assert arrival(status, duration) is expected


def test_a_word_that_may_mean_it_arrived_never_makes_heifyd_send_it_twice_in_silence() -> None:
    assert arrival("UPLOADED", None) is not Arrival.NOT_ARRIVED


@pytest.mark.parametrize("status", ["INCOMPLETE", "NOT_COMPLETED", "UNPROCESSED"])
def test_a_word_that_denies_is_not_taken_for_what_it_denies(status: str) -> None:
    assert arrival(status, None) is not Arrival.ARRIVED


@given(st.text(), st.none() | st.floats() | st.integers() | st.text() | st.booleans() | st.lists(st.integers()))
def test_any_status_and_duration_are_judged(status: str, duration: object) -> None:
    assert isinstance(arrival(status, duration), Arrival)


# The clock that expiry counts on


def test_the_clock_of_expiry_runs_forward_and_the_boot_has_one_name() -> None:
    assert 0 < boot_clock_s() <= boot_clock_s()
    assert len(boot_id()) == 36
    assert boot_id() == boot_id()


# The bytes of a recording


def client() -> heify.Heify:
    return heify.Heify("https://api.heify.com", lambda: "key", connections=1)


def test_a_recording_is_sent_in_pieces_that_are_the_whole_of_it(tmp_path: os.PathLike[str]) -> None:
    content = os.urandom(2 * heify.PIECE_BYTES + 17)
    path = os.path.join(tmp_path, "call.wav")
    with open(path, "wb") as file:
        file.write(content)
    told: list[int] = []

    with open(path, "rb") as file:
        pieces = list(client()._pieces(file.fileno(), len(content), told.append))

    assert b"".join(pieces) == content
    assert told == [len(piece) for piece in pieces]
    assert told[0] == heify.FIRST_PIECE_BYTES
    assert max(told) <= heify.PIECE_BYTES


def test_a_file_that_ends_early_is_noticed_and_one_that_grows_is_sent_as_it_was(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "call.wav")
    with open(path, "wb") as file:
        file.write(b"12345678")

    with open(path, "rb") as file:
        assert b"".join(client()._pieces(file.fileno(), 5, lambda _: None)) == b"12345"
        with pytest.raises(heify.TruncatedError, match="8 of 9 bytes"):
            list(client()._pieces(file.fileno(), 9, lambda _: None))


@pytest.mark.parametrize("limit", [None, 100_000.0, 2_000_000.0])
def test_under_a_limit_a_body_goes_in_pieces_of_a_moment_each_and_is_whole(tmp_path: Path, limit: float | None) -> None:
    content = os.urandom(20_000 if limit == 100_000.0 else 700_000)
    (tmp_path / "call.wav").write_bytes(content)
    limited = Heify(BASE, lambda: "key", connections=1, bandwidth=Bandwidth(Timetable(((0, limit),))))
    sent: list[int] = []
    with (tmp_path / "call.wav").open("rb") as file:
        pieces = list(limited._pieces(file.fileno(), len(content), sent.append))
    limited.close()

    assert b"".join(pieces) == content
    assert [len(piece) for piece in pieces] == sent
    moment = 256 * 1024 if limit is None else int(limit * 0.02)
    assert sent[0] == moment
    assert limit is None or len(sent) == -(-len(content) // moment)
