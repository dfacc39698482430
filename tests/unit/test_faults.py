"""What a failure means: whose it is, and when to try again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heifyd import faults
from heifyd.faults import FaultError, Owner, backoff_s

statuses = st.integers(100, 599)


@pytest.mark.parametrize(
    ("status", "message", "owner"),
    [
        (400, "Unsupported audio format", Owner.FILE),
        (400, "Audio duration exceeds 7200 seconds", Owner.FILE),
        (400, "Configuration not found or does not belong to your account", Owner.MAPPING),
        (404, "Configuration not found or does not belong to your account", Owner.MAPPING),
        (404, "Evaluator not found or does not belong to your account", Owner.MAPPING),
        (400, "participant_id must be a valid UUID", Owner.MAPPING),
        (400, "configuration_id has an invalid format", Owner.MAPPING),
        (400, "Invalid evaluator_id format", Owner.MAPPING),
        (400, "You have reached the limit of queued transcriptions", Owner.ACCOUNT),
        (402, "", Owner.ACCOUNT),
        (402, "No transcription minutes are left for this audio", Owner.ACCOUNT),
        (401, "Unauthorized", Owner.ACCOUNT),
        (403, "Forbidden", Owner.ACCOUNT),
        (429, "Monthly quota exceeded", Owner.SERVICE),
        (500, "Unsupported audio format", Owner.SERVICE),
        (301, "", Owner.SERVICE),
    ],
)
def test_the_api_s_answer_says_whose_fault_it_is(status: int, message: str, owner: Owner) -> None:
    fault = faults.of_api(status, message)

    assert fault.owner is owner
    assert str(status) in fault.detail
    assert message in fault.detail


@given(st.one_of(st.just(429), st.integers(500, 599), st.integers(300, 399)), st.text(), st.text())
def test_an_outage_is_never_the_files_whatever_the_answer_says(status: int, code: str, message: str) -> None:
    assert faults.of_api(status, message).owner is Owner.SERVICE
    if code != "EntityTooLarge":
        assert faults.of_storage(status, code, message).owner is Owner.SERVICE


@given(statuses, st.text(), st.text())
def test_every_fault_says_what_was_seen_and_what_to_do(status: int, code: str, message: str) -> None:
    for fault in (faults.of_api(status, message), faults.of_storage(status, code, message)):
        assert fault.reason
        assert fault.advice
        assert str(status) in fault.detail
        assert str(FaultError(fault)) == f"{fault.detail}; {fault.advice}"


@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_heify_asks_for_is_kept(status: int) -> None:
    assert faults.of_api(status, "", 17.0).retry_after_s == 17.0


@pytest.mark.parametrize(
    ("status", "code", "owner", "reason"),
    [
        (400, "EntityTooLarge", Owner.FILE, "too_large"),
        (403, "SignatureDoesNotMatch", Owner.SERVICE, "storage_SignatureDoesNotMatch"),
        (403, "AccessDenied", Owner.SERVICE, "storage_AccessDenied"),
        (400, "RequestTimeout", Owner.SERVICE, "storage_RequestTimeout"),
        (503, "SlowDown", Owner.SERVICE, "storage_slow_down"),
        (502, "", Owner.SERVICE, "storage_502"),
    ],
)
def test_the_storages_answer_says_whose_fault_it_is(status: int, code: str, owner: Owner, reason: str) -> None:
    fault = faults.of_storage(status, code, "")

    assert (fault.owner, fault.reason) == (owner, reason)


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0.01, 100), st.floats(1, 10_000))
def test_a_wait_is_within_its_bounds_and_does_not_shrink(
    attempt: int, jitter: float, first_s: float, most_s: float
) -> None:
    wait_s = backoff_s(attempt, jitter, first_s=first_s, most_s=most_s)
    next_s = backoff_s(attempt + 1, jitter, first_s=first_s, most_s=most_s)

    assert 0 < wait_s <= most_s
    assert min(first_s, most_s) / 2 <= wait_s <= next_s <= max(2 * wait_s, wait_s)


def test_waits_double_up_to_ten_minutes_and_are_spread_over_their_upper_half() -> None:
    assert [backoff_s(attempt, 1.0) for attempt in range(1, 12)] == [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
    assert [backoff_s(3, jitter) for jitter in (0.0, 0.5, 1.0)] == [4, 6, 8]
