"""How fast requests may go: never faster than the account's rate, and slower when Heify says so."""

import heapq
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle, pairwise

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


@dataclass
class Link:
    """Threads that send under a limit, in virtual time: each books a piece, waits until it may go, and sends it."""

    bandwidth: Bandwidth
    now_s: float = 0.0
    sent: list[tuple[float, int]] = field(default_factory=list)

    def run(self, until_s: float, takes_s: list[float], late_s: list[float]) -> None:
        """Let as many threads as `takes_s` send; who waits is woken late by one after the other of `late_s`."""
        lateness = cycle(late_s)
        ready = [(self.now_s, thread) for thread in range(len(takes_s))]
        while ready[0][0] < until_s:
            ready_s, thread = heapq.heappop(ready)
            self.now_s = max(self.now_s, ready_s)  # one books at a time
            if early_s := self.bandwidth._bucket.early_s(self.now_s):
                self.now_s += early_s + next(lateness)
            size, wait_s = self.bandwidth._book(1024 * 1024)
            at_s = self.now_s + (wait_s + next(lateness) if wait_s else 0.0)
            self.sent.append((at_s, size))
            heapq.heappush(ready, (at_s + takes_s[thread], thread))
        self.sent.sort()

    def bytes_between(self, begin_s: float, end_s: float) -> int:
        return sum(size for at, size in self.sent if begin_s <= at < end_s)


@given(
    rate=st.sampled_from([10_000.0, 500_000.0, 2_000_000.0, 20_000_000.0]),
    takes_s=st.lists(st.floats(0.0, 0.015), min_size=1, max_size=8),
    late_s=st.lists(st.floats(0.0, 0.03), min_size=1, max_size=8),
)
def test_all_threads_together_send_as_much_as_is_allowed_smoothly_and_exactly(
    rate: float, takes_s: list[float], late_s: list[float]
) -> None:
    link = Link(Bandwidth(Timetable(((0, rate),)), clock=lambda: link.now_s))
    link.run(10.5, takes_s, late_s)

    assert 0.95 * rate * 10.0 <= link.bytes_between(0.1, 10.1) <= 1.05 * rate * 10.0
    for begin in range(0, 100, 7):
        assert link.bytes_between(begin / 10, begin / 10 + 0.1) <= 2 * 0.1 * rate
    assert max(after - before for (before, _), (after, _) in pairwise(link.sent)) <= 0.1


@pytest.mark.parametrize("threads", [1, 4, 64])
def test_a_limit_that_falls_is_kept_from_its_time_on_however_many_are_sending(threads: int) -> None:
    fast, slow = 20_000_000.0, 200_000.0
    noon = datetime(2025, 1, 1, 12)  # noqa: DTZ001 (local time is what a timetable goes by)
    bandwidth = Bandwidth(
        Timetable(((0, fast), (12 * 60, slow))),
        clock=lambda: link.now_s,
        wall=lambda: noon + timedelta(seconds=link.now_s - 2.0),
    )
    link = Link(bandwidth)
    link.run(13.0, [0.001] * threads, [0.0])

    assert 0.95 * fast <= link.bytes_between(0.5, 1.5) <= 1.05 * fast
    assert 0.95 * slow * 10.0 <= link.bytes_between(2.1, 12.1) <= 1.05 * slow * 10.0
    assert link.bytes_between(2.1, 2.2) <= 2 * 0.1 * slow
    assert max(after - before for (before, _), (after, _) in pairwise(link.sent)) <= 0.1


def test_what_was_not_sent_for_a_while_is_not_made_up_for() -> None:
    link = Link(Bandwidth(Timetable(((0, 1_000_000.0),)), clock=lambda: link.now_s))
    link.run(1.0, [0.001], [0.0])
    link.now_s = 61.0
    link.run(62.0, [0.001], [0.0])

    assert link.bytes_between(61.0, 61.1) <= 2 * 0.1 * 1_000_000


def test_a_wait_for_bandwidth_ends_when_the_connection_is_cut_whoever_s_turn_it_is() -> None:
    bandwidth = Bandwidth(Timetable(((0, 0.001),)), clock=lambda: 0.0)
    cut = threading.Event()
    assert bandwidth.take(1024, cut) == 1, "for the next one a thousand seconds would be waited"
    waiters = [threading.Thread(target=bandwidth.take, args=(1024, cut)) for _ in range(3)]
    for waiter in waiters:
        waiter.start()

    cut.set()
    for waiter in waiters:
        waiter.join(10)

    assert not any(waiter.is_alive() for waiter in waiters)


def test_without_a_limit_a_piece_is_as_large_as_it_may_be_and_goes_at_once() -> None:
    bandwidth = Bandwidth(None)

    assert bandwidth.take(1024 * 1024, threading.Event()) == 1024 * 1024
