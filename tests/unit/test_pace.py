"""How fast requests may go: never faster than the account's rate, and slower when Heify says so."""

import heapq
import threading
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from heifyd.pace import Bandwidth, Pace, Timetable, TokenBucket, next_piece_bytes

SLACK = 1e-6


@given(
    st.floats(1, 6000),
    st.integers(1, 50),
    st.lists(st.floats(0, 30) | st.just(0.0), min_size=1, max_size=80),
)
def test_in_no_window_do_more_requests_go_than_burst_and_rate_allow(
    per_minute: float, burst: int, pauses_s: list[float]
) -> None:
    bucket = TokenBucket.full(per_minute, burst, 0.0)
    now_s, gone_s = 0.0, []

    for pause_s in pauses_s:
        now_s += pause_s
        gone_s.append(now_s + bucket.take(now_s))

    assert gone_s == sorted(gone_s), "who asked first goes first"
    for first, from_s in enumerate(gone_s):
        for last in range(first, len(gone_s)):
            allowed = burst + per_minute / 60 * (gone_s[last] - from_s)
            assert last - first + 1 <= allowed + SLACK * (1 + allowed)


@given(st.floats(1, 6000), st.integers(1, 50), st.integers(1, 200))
def test_nobody_waits_longer_than_the_rate_makes_necessary(per_minute: float, burst: int, number: int) -> None:
    bucket = TokenBucket.full(per_minute, burst, 0.0)

    waits_s = [bucket.take(0.0) for _ in range(number)]

    free = max(1, burst - 1)
    assert waits_s[:free] == [0.0] * min(free, number)
    assert waits_s[-1] <= max(0, number - free) * 60 / per_minute * (1 + SLACK)


@given(st.floats(0, 100), st.floats(0.1, 60), st.floats(0, 3600), st.floats(0, 3600), st.integers(1, 40))
def test_after_a_429_nothing_goes_before_the_time_it_gives(
    idle_s: float, answer_s: float, wait_s: float, later_s: float, taken: int
) -> None:
    bucket = TokenBucket.full(500, 17, 0.0)
    for _ in range(taken):
        bucket.take(idle_s)
    told_s = idle_s + answer_s

    bucket.slow_down(told_s, wait_s)

    now_s = told_s + min(later_s, wait_s)
    assert now_s + bucket.take(now_s) >= told_s + wait_s - 1e-3


def test_after_a_429_requests_go_at_half_the_rate() -> None:
    bucket = TokenBucket.full(600, 17, 0.0)
    bucket.take(0.0)
    bucket.slow_down(0.0, 1.0)

    gone_s = [bucket.take(1.0) for _ in range(10)]

    gaps_s = [later - earlier for earlier, later in pairwise(gone_s)]
    assert all(abs(gap_s - 0.2) < 1e-6 for gap_s in gaps_s)


def test_many_429s_of_one_moment_slow_down_once() -> None:
    bucket = TokenBucket.full(600, 17, 0.0)

    for _ in range(10):
        bucket.slow_down(100.0, 1.0)

    assert bucket.factor == 0.5


@given(st.lists(st.floats(1, 100), min_size=1, max_size=60))
def test_however_often_heify_refuses_the_rate_never_falls_to_nothing_and_recovers(gaps_s: list[float]) -> None:
    bucket = TokenBucket.full(600, 17, 0.0)
    now_s = 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        bucket.slow_down(now_s, 1.0)
        assert bucket.factor >= 1 / 16

    for _ in range(5):
        now_s += 62.0
        bucket.take(now_s)
    assert bucket.factor == 1.0


def test_a_clock_that_stands_still_or_steps_back_gives_nothing_away() -> None:
    bucket = TokenBucket.full(60, 3, 100.0)
    taken = [bucket.take(now_s) for now_s in (100.0, 99.0, 98.0, 100.0)]

    assert taken.count(0.0) <= 2
    assert taken[-1] >= 2.0


@given(st.floats(1, 6000), st.integers(1, 50), st.floats(0, 1e6))
def test_a_bucket_holds_no_more_than_its_burst_after_any_rest(per_minute: float, burst: int, rest_s: float) -> None:
    bucket = TokenBucket.full(per_minute, burst, 0.0)
    assume(rest_s > 0)

    immediate = sum(bucket.take(rest_s) == 0.0 for _ in range(burst + 1))

    assert immediate <= burst


def test_whoever_waits_for_its_turn_is_let_go_when_the_daemon_stops() -> None:
    pace = Pace(TokenBucket.full(1, 1, 0.0), clock=lambda: 0.0)
    stopping = threading.Event()
    assert pace.wait(stopping)
    answers: list[bool] = []
    waiter = threading.Thread(target=lambda: answers.append(pace.wait(stopping)))
    waiter.start()

    stopping.set()
    waiter.join(10)

    assert answers == [False]


def test_without_a_limit_nobody_waits_and_stopping_still_stops() -> None:
    pace = Pace(None)
    stopping = threading.Event()
    pace.slow_down(3600.0)
    assert pace.wait(stopping)
    stopping.set()
    assert not pace.wait(stopping)


@pytest.mark.parametrize(
    ("bytes_per_s", "sizes_kib"),
    [
        pytest.param(1e9, [256, 512, 1024, 1024], id="fast"),
        pytest.param(1e6, [256, 256, 256], id="in-between"),
        pytest.param(125_000, [256, 128, 64, 64], id="slow"),
    ],
)
def test_pieces_are_as_large_as_the_link_takes_within_a_moment(bytes_per_s: float, sizes_kib: list[int]) -> None:
    sizes = [256 * 1024]
    while len(sizes) < len(sizes_kib):
        sizes.append(next_piece_bytes(sizes[-1], sizes[-1] / bytes_per_s, 1024 * 1024))

    assert [size // 1024 for size in sizes] == sizes_kib


# Bandwidth

DAY = Timetable(((8 * 60, 2_000_000.0), (12 * 60 + 30, 500_000.0), (19 * 60, None)))


@pytest.mark.parametrize(
    ("time", "bytes_per_s"),
    [
        ("00:00", None),
        ("07:59", None),
        ("08:00", 2_000_000.0),
        ("12:29", 2_000_000.0),
        ("12:30", 500_000.0),
        ("18:59", 500_000.0),
        ("19:00", None),
        ("23:59", None),
    ],
)
def test_each_limit_holds_from_its_time_on_and_the_last_one_over_midnight(time: str, bytes_per_s: float | None) -> None:
    hours, minutes = time.split(":")

    assert DAY.at(int(hours) * 60 + int(minutes)) == bytes_per_s


@given(
    rate=st.sampled_from([10_000.0, 500_000.0, 2_000_000.0]),
    workers=st.integers(1, 8),
    speeds=st.lists(st.floats(0.0, 0.05), min_size=8, max_size=8),
)
def test_all_threads_together_send_as_much_as_is_allowed_smoothly_and_exactly(
    rate: float, workers: int, speeds: list[float]
) -> None:
    """Ten seconds of virtual time: each worker books a piece, waits for its turn, and takes a while to send it."""
    now_s = [0.0]
    bandwidth = Bandwidth(Timetable(((0, rate),)), clock=lambda: now_s[0])
    piece = bandwidth.piece_bytes(1024 * 1024)
    sent: list[float] = []
    ready = [(0.0, worker) for worker in range(workers)]
    while ready[0][0] < 10.0:
        now_s[0], worker = heapq.heappop(ready)
        begins_s = now_s[0] + bandwidth._bucket.take(piece, rate, now_s[0])
        sent.append(begins_s)
        heapq.heappush(ready, (begins_s + min(speeds[worker], workers * piece / rate / 2), worker))

    in_ten_s = sum(piece for at in sent if at < 10.0)
    assert in_ten_s <= 1.05 * rate * 10.0
    assert in_ten_s >= 0.95 * rate * 10.0
    for begin in range(0, 100, 7):
        window = sum(piece for at in sent if begin / 10 <= at < begin / 10 + 0.1)
        assert window <= 0.1 * rate + 2 * piece


def test_a_wait_for_bandwidth_ends_when_the_connection_is_cut() -> None:
    bandwidth = Bandwidth(Timetable(((0, 1.0),)), clock=lambda: 0.0)
    cut = threading.Event()
    bandwidth.wait(3600, cut)
    waiter = threading.Thread(target=bandwidth.wait, args=(1, cut))
    waiter.start()

    cut.set()
    waiter.join(10)

    assert not waiter.is_alive()


def test_without_a_limit_a_piece_is_as_large_as_it_may_be_and_goes_at_once() -> None:
    bandwidth = Bandwidth(None)

    bandwidth.wait(10**12, threading.Event())

    assert bandwidth.piece_bytes(1024 * 1024) == 1024 * 1024
