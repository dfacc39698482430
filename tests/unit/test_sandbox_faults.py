"""The text of a fault, and which request meets it."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heifyd.errors import HeifydError
from heifyd.sandbox.answers import S3_CODES
from heifyd.sandbox.faults import Endpoint, Fault, FaultSchedule, FaultSpecError, Kind, parse_fault
from heifyd.sandbox.limits import TokenBucket

STEP_1 = frozenset({Endpoint.REQUEST_UPLOAD_URL})
PUT = frozenset({Endpoint.PUT})
API = frozenset(Endpoint) - PUT


@pytest.mark.parametrize(
    ("spec", "where", "kind"),
    [
        ("503", STEP_1, Kind.STATUS),
        ("put 503", PUT, Kind.STATUS),
        ("all 500", frozenset(Endpoint), Kind.STATUS),
        ("list 429", frozenset({Endpoint.LIST}), Kind.STATUS),
        ("get-transcription html", frozenset({Endpoint.GET_TRANSCRIPTION}), Kind.HTML),
        ("SlowDown", PUT, Kind.S3_ERROR),
        ("api not-json", API, Kind.NOT_JSON),
        ("not-json", STEP_1, Kind.NOT_JSON),
        ("huge", STEP_1, Kind.HUGE),
        ("cut-answer", PUT, Kind.CUT_ANSWER),
        ("request-upload-url cut-answer", STEP_1, Kind.CUT_ANSWER),
        ("reset", PUT, Kind.RESET),
        ("stall", PUT, Kind.STALL),
        ("api stall", API, Kind.STALL),
        ("expired-url", STEP_1, Kind.EXPIRED_URL),
    ],
)
def test_a_fault_is_met_where_it_says_or_where_it_usually_is(spec: str, where: frozenset[Endpoint], kind: Kind) -> None:
    fault = parse_fault(spec)

    assert (fault.where, fault.kind) == (where, kind)
    assert (fault.times, fault.lasts_s) == (None, None)


@pytest.mark.parametrize(
    ("spec", "times", "lasts_s"),
    [
        ("503 x3", 3, None),
        ("put SlowDown for 30s", None, 30.0),
        ("put stall for 1.5m", None, 90.0),
        ("drip for 250ms", None, 0.25),
        ('400 "Unsupported audio format" x1', 1, None),
        ("retry-after 7 for 2h", None, 7200.0),
    ],
)
def test_a_fault_ends_after_so_many_requests_or_so_long(spec: str, times: int | None, lasts_s: float | None) -> None:
    fault = parse_fault(spec)

    assert (fault.times, fault.lasts_s) == (times, lasts_s)


def test_a_message_may_hold_words_of_the_grammar() -> None:
    fault = parse_fault('request-upload-url 400 "wait for 30s x3" x2')

    assert (fault.status, fault.message, fault.times) == (400, "wait for 30s x3", 2)


def test_a_code_of_s3_and_seconds_to_wait_are_kept() -> None:
    assert parse_fault("put ExpiredToken").code == "ExpiredToken"
    assert parse_fault("put retry-after 12").retry_after_s == 12


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ("", "put SlowDown x3"),
        ("put", "put 503"),
        ("stal", "`stall`"),
        ("put slowdown", "`SlowDown`"),
        ("200", "400 to 599"),
        ("0503", "400 to 599"),
        ("503 x0", "`x1`"),
        ("503 3", "`x3`"),
        ("503 for 30", "`for 30s`"),
        ("503 for", "`for 30s`"),
        ("503 for 30s x3", "`for 30s`"),
        ("503 x3 for 30s", "`x3`"),
        ("retry-after", "`retry-after 30`"),
        ("retry-after soon", "`retry-after 30`"),
        ('400 "never closed', "quote"),
        ("api SlowDown", "`put SlowDown`"),
        ("all wrong-shape", "`api wrong-shape`"),
        ("put expired-url", "`request-upload-url expired-url`"),
        ('stall "why"', "cannot read"),
        ("x3", "Write a status"),
        ("for 30s", "Write a status"),
    ],
)
def test_a_text_that_is_no_fault_is_answered_with_what_to_write(spec: str, advice: str) -> None:
    with pytest.raises(FaultSpecError) as caught:
        parse_fault(spec)

    assert advice in str(caught.value)


@given(
    st.text() | st.lists(st.sampled_from(["put", "503", "x3", "for", "30s", '"', "stall", "retry-after"])).map(" ".join)
)
def test_any_text_is_a_fault_or_a_clear_error(text: str) -> None:
    try:
        fault = parse_fault(text)
    except HeifydError as error:
        assert str(error)  # noqa: PT017 (either outcome keeps the promise)
    else:
        assert fault.where


@pytest.mark.parametrize("code", sorted(S3_CODES))
def test_what_is_kept_of_a_fault_reads_as_the_same_fault(code: str) -> None:
    fault = parse_fault(f"  put   {code}  x2 ")

    assert parse_fault(fault.spec) == fault


def schedule_of(*specs: str) -> FaultSchedule:
    schedule = FaultSchedule()
    for spec in specs:
        schedule.add(parse_fault(spec), 100.0)
    return schedule


def spec_of(fault: Fault | None) -> str | None:
    return None if fault is None else fault.spec


def test_the_next_three_requests_meet_it_and_the_fourth_does_not() -> None:
    schedule = schedule_of("put SlowDown x3")

    met = [spec_of(schedule.take(Endpoint.PUT, 100.0)) for _ in range(4)]

    assert met == ["put SlowDown x3"] * 3 + [None]
    assert schedule.pending(100.0) == []


def test_a_request_to_another_endpoint_neither_meets_a_fault_nor_uses_it_up() -> None:
    schedule = schedule_of("put SlowDown x1")

    assert schedule.take(Endpoint.REQUEST_UPLOAD_URL, 100.0) is None
    assert schedule.take(Endpoint.PUT, 100.0) is not None


def test_its_time_counts_from_when_it_was_set() -> None:
    schedule = schedule_of("503 for 30s")

    assert schedule.take(Endpoint.REQUEST_UPLOAD_URL, 129.9) is not None
    assert schedule.take(Endpoint.REQUEST_UPLOAD_URL, 130.0) is None


def test_a_fault_without_an_end_stays_until_it_is_cleared() -> None:
    schedule = schedule_of("503")

    assert all(schedule.take(Endpoint.REQUEST_UPLOAD_URL, 100.0 + s) for s in range(0, 100_000, 1000))
    schedule.clear()
    assert schedule.take(Endpoint.REQUEST_UPLOAD_URL, 100.0) is None


def test_faults_are_met_in_the_order_they_were_set() -> None:
    schedule = schedule_of("503 x1", "402 x1", "all 500")

    met = [spec_of(schedule.take(Endpoint.REQUEST_UPLOAD_URL, 100.0)) for _ in range(3)]

    assert met == ["503 x1", "402 x1", "all 500"]


def test_what_is_left_of_each_fault_is_told() -> None:
    schedule = schedule_of("503 x3", "put stall for 30s")
    schedule.take(Endpoint.REQUEST_UPLOAD_URL, 110.0)

    left = [(one.spec, one.times_left, one.seconds_left) for one in schedule.pending(110.0)]

    assert left == [("503 x3", 2, None), ("put stall for 30s", None, 20.0)]


def test_threads_share_out_a_fault_without_one_too_many() -> None:
    schedule = schedule_of("put SlowDown x500")
    met: list[int] = []

    def take() -> None:
        met.append(sum(schedule.take(Endpoint.PUT, 100.0) is not None for _ in range(400)))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(met) == 500


def test_a_bucket_gives_its_burst_at_once_and_then_keeps_the_pace() -> None:
    bucket = TokenBucket(per_minute=60, burst=3)

    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.5), bucket.take(1.0), bucket.take(1.0)] == [False, True, False]
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]
