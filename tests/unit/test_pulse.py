"""Who is late: each thread by what it said of itself, and by no other's word."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from heifyd.pulse import STEP_S, PatientLock, Pulses


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulses(clock: Clock) -> Pulses:
    return Pulses(clock)


def late(pulses: Pulses) -> list[tuple[str, str | None]]:
    return [(each.thread, each.folder) for each in pulses.late()]


@contextmanager
def another_thread(pulses: Pulses, name: str, folder: str | None = None) -> Iterator[None]:
    """Have a thread that begins to be watched, and then says nothing until the block is over."""
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        pulses.begin(name, folder)
        begun.set()
        over.wait()
        pulses.end()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_thread_is_late_when_a_step_takes_longer_than_any_may(pulses: Pulses, clock: Clock) -> None:
    pulses.begin("upload-1")
    clock.now_s += STEP_S
    assert late(pulses) == []

    clock.now_s += 1
    assert [(each.thread, each.late_s) for each in pulses.late()] == [("upload-1", 1.0)]


def test_a_beat_makes_up_for_lateness(pulses: Pulses, clock: Clock) -> None:
    pulses.begin("upload-1")
    clock.now_s += STEP_S + 1

    pulses.beat()

    assert late(pulses) == []


def test_a_wait_that_was_told_of_is_given_its_time_and_no_more(pulses: Pulses, clock: Clock) -> None:
    pulses.begin("upload-1")
    pulses.beat(3600.0)

    clock.now_s += 3600.0 + STEP_S
    assert late(pulses) == []
    clock.now_s += 1
    assert late(pulses) == [("upload-1", None)]


def test_the_next_beat_ends_the_time_that_was_given_for_a_wait(pulses: Pulses, clock: Clock) -> None:
    pulses.begin("upload-1")
    pulses.beat(3600.0)
    pulses.beat()

    clock.now_s += STEP_S + 1

    assert late(pulses) == [("upload-1", None)]


def test_one_thread_s_beat_says_nothing_of_another(pulses: Pulses, clock: Clock) -> None:
    pulses.begin("upload-1")
    with another_thread(pulses, "intake", "/calls"):
        clock.now_s += STEP_S + 1
        pulses.beat()

        assert late(pulses) == [("intake", "/calls")]


def test_a_thread_that_has_ended_or_was_never_watched_is_not_late(pulses: Pulses, clock: Clock) -> None:
    pulses.beat()
    with another_thread(pulses, "upload-1"):
        pass

    clock.now_s += STEP_S + 1

    assert late(pulses) == []


def test_who_waits_for_a_lock_goes_on_beating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heifyd.pulse.STEP_S", 0.01)
    third_beat = threading.Event()
    beats: list[float] = []

    def beat(wait_s: float) -> None:
        beats.append(wait_s)
        if len(beats) == 3:
            third_beat.set()

    lock, holder = PatientLock(beat), PatientLock(lambda _wait_s: None)
    holder._lock = lock._lock
    entered = threading.Event()

    def wait() -> None:
        with lock:
            entered.set()

    waiting = threading.Thread(target=wait)
    with holder:
        waiting.start()
        assert third_beat.wait(60)
        assert not entered.is_set()
    waiting.join(60)
    assert entered.is_set()
