"""When a file is a finished recording: never while it changes or has a writer, and then soon."""

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heifyd.names import is_temporary
from heifyd.recording import Stamp
from heifyd.settle import MOST_TRACKED, Rule, Settling

CALL = "call.wav"
LOCAL = Rule(2.0)
SHARE = Rule(30.0, least_looks=2, trust_age=False)


def stamp(version: int) -> Stamp:
    return Stamp(1000 + version, version, version)


def look(settling: Settling, at: Stamp, now_s: float, *, age_s: float, has_writer: bool, stirred: bool = False) -> bool:
    """Look at the one file the way intake does, and tell whether it is finished."""
    if not settling.quiet(CALL, at, now_s, age_s=age_s, stirred=stirred):
        return False
    if has_writer:
        settling.written_to(CALL)
        return False
    if settling.writer_gone(CALL, now_s):
        settling.look_again(CALL, now_s + settling.rule.settle_seconds)
        return False
    return True


@dataclass
class Story:
    """A file that is opened, written, closed and looked at; times are whole seconds, so that sums are exact."""

    settling: Settling
    now_s: int = 1000
    version: int = 0
    writers: int = 0
    changed_s: int = 1000
    restless_s: list[int] = field(default_factory=list)
    """When an event named the file, and when a look found a writer."""
    looks: list[tuple[int, int]] = field(default_factory=list)
    """When which version was looked at."""

    def tell(self, step: str | int, *, age_s: int | None = None) -> bool:
        """Let one thing happen; tell whether the file was found to be finished."""
        if isinstance(step, int):
            self.now_s += step
        elif step == "open":
            self.writers += 1
        elif step == "close":
            self.writers = max(0, self.writers - 1)
        elif step == "write":
            self.version, self.changed_s = self.version + 1, self.now_s
        else:
            return self._look(age_s, stirred=step == "event")
        return False

    def _look(self, age_s: int | None, *, stirred: bool) -> bool:
        self.looks.append((self.now_s, self.version))
        age_s = self.now_s - self.changed_s if age_s is None else age_s
        finished = look(
            self.settling, stamp(self.version), self.now_s, age_s=age_s, has_writer=self.writers > 0, stirred=stirred
        )
        seen = self.settling._seen.get(CALL)
        if stirred or (seen is not None and seen.had_writer):
            self.restless_s.append(self.now_s)
        return finished


STEPS = st.lists(st.sampled_from(["open", "close", "write", "look", "look", "event", 1, 1, 2, 5]), max_size=60)


@given(STEPS, st.integers(0, 4))
@example(["look", 1, "event", 1, "look", 1, "look"], 2)
@example(["open", 2, "look", 1, "close", "look", 1, "look"], 2)
def test_a_local_file_is_finished_only_after_its_quiet_time_and_without_a_writer(
    steps: list[str | int], settle_seconds: int
) -> None:
    story = Story(Settling(Rule(float(settle_seconds))))

    for step in steps:
        if story.tell(step):
            assert story.writers == 0
            assert story.now_s - story.changed_s >= settle_seconds
            assert all(story.now_s - at_s >= settle_seconds for at_s in story.restless_s)
            break


@given(STEPS, st.integers(0, 4), st.integers(-(10**6), 10**6))
@example(["look"], 0, 10**6)
def test_on_a_share_only_what_was_watched_counts_whatever_the_files_times_say(
    steps: list[str | int], settle_seconds: int, age_s: int
) -> None:
    story = Story(Settling(Rule(float(settle_seconds), least_looks=2, trust_age=False)))

    for step in steps:
        if story.tell(step, age_s=age_s):
            at_this = [at_s for at_s, version in story.looks if version == story.version]
            assert len(at_this) >= 2
            assert story.now_s - at_this[0] >= settle_seconds
            break


@given(st.floats(0, 100), st.floats(-50, 1e7), st.floats(0, 1e7), st.integers(1, 3), st.booleans(), st.booleans())
@example(0.1, 0.0, 0.7, 1, True, True)
def test_a_quiet_file_is_finished_by_the_looks_it_asks_for_and_not_a_moment_late(
    settle_seconds: float,
    age_s: float,
    begin_s: float,
    least_looks: int,
    trust_age: bool,  # noqa: FBT001
    stirred: bool,  # noqa: FBT001
) -> None:
    settling = Settling(Rule(settle_seconds, least_looks, trust_age))
    finished = look(settling, stamp(0), begin_s, age_s=age_s, has_writer=False, stirred=stirred)
    now_s = begin_s

    for _ in range(least_looks + 2):
        if finished:
            break
        now_s = settling.next_due_s()
        assert settling.due(now_s) == [CALL]
        finished = look(settling, stamp(0), now_s, age_s=age_s, has_writer=False)

    assert finished
    assert now_s <= begin_s + settle_seconds + 0.01 * least_looks + 1e-6


def test_a_paused_writer_is_never_cut_short() -> None:
    settling = Settling(LOCAL)
    for minute in range(10):
        assert not look(settling, stamp(0), 60.0 * minute, age_s=60.0 * minute, has_writer=True)

    assert not look(settling, stamp(0), 600.0, age_s=600.0, has_writer=False), (
        "its quiet begins when the writer has gone"
    )
    assert not look(settling, stamp(0), 601.9, age_s=601.9, has_writer=False)
    assert look(settling, stamp(0), 602.0, age_s=602.0, has_writer=False)


def test_a_file_with_a_writer_is_not_looked_at_over_and_over() -> None:
    settling = Settling(LOCAL)
    look(settling, stamp(0), 100.0, age_s=60.0, has_writer=True)

    assert settling.due(10_000.0) == []
    assert settling.next_due_s() == float("inf")


def test_a_header_that_is_completed_after_the_close_begins_the_quiet_anew() -> None:
    settling = Settling(LOCAL)
    look(settling, stamp(0), 10.0, age_s=0.0, has_writer=False, stirred=True)
    look(settling, stamp(1), 11.5, age_s=0.0, has_writer=False, stirred=True)

    assert not look(settling, stamp(1), 12.0, age_s=0.5, has_writer=False)
    assert look(settling, stamp(1), 13.5, age_s=2.0, has_writer=False)


def test_an_event_begins_the_quiet_anew_although_the_files_times_are_old() -> None:
    settling = Settling(LOCAL)

    assert not look(settling, stamp(0), 10.0, age_s=86_400.0, has_writer=False, stirred=True)
    assert look(settling, stamp(0), 12.0, age_s=86_402.0, has_writer=False)


def test_what_lay_there_before_the_start_is_taken_at_first_sight() -> None:
    assert look(Settling(LOCAL), stamp(0), 10.0, age_s=3600.0, has_writer=False)


def test_a_file_from_the_future_waits_no_longer_than_any_other() -> None:
    settling = Settling(LOCAL)

    assert not look(settling, stamp(0), 10.0, age_s=-3600.0, has_writer=False)
    assert look(settling, stamp(0), 12.0, age_s=-3598.0, has_writer=False)


def test_an_old_file_on_a_share_is_watched_before_it_is_believed() -> None:
    settling = Settling(SHARE)

    assert not look(settling, stamp(0), 10.0, age_s=3600.0, has_writer=False)
    assert not look(settling, stamp(0), 39.9, age_s=3630.0, has_writer=False)
    assert look(settling, stamp(0), 40.0, age_s=3630.0, has_writer=False)


def test_memory_is_bounded_and_what_does_not_fit_is_taken_all_the_same_once_it_is_old() -> None:
    settling = Settling(LOCAL)
    for number in range(MOST_TRACKED + 10):
        assert not settling.quiet(f"{number}.wav", stamp(0), 10.0, age_s=0.0)

    assert len(settling) == MOST_TRACKED
    assert not settling.quiet("one-more.wav", stamp(0), 11.0, age_s=1.0)
    assert settling.quiet("one-more.wav", stamp(0), 12.0, age_s=2.0)


def test_a_file_that_is_forgotten_begins_again() -> None:
    settling = Settling(SHARE)
    look(settling, stamp(0), 10.0, age_s=0.0, has_writer=False)
    settling.forget(CALL)

    assert len(settling) == 0
    assert settling.next_due_s() == float("inf")
    assert not look(settling, stamp(0), 100.0, age_s=90.0, has_writer=False)


@pytest.mark.parametrize(
    "name",
    [".call.wav", "~$call.wav", "call.wav.part", "call.filepart", "c.tmp", "c.CRDOWNLOAD", "c.partial", ".heifyd-part"],
)
def test_names_of_what_is_not_finished_are_temporary(name: str) -> None:
    assert is_temporary(name)


@pytest.mark.parametrize("name", ["call.wav", "part.wav", "call.part.wav", "~call.wav", "a.b.wav", "tmp", "call~$.wav"])
def test_other_names_are_not_temporary(name: str) -> None:
    assert not is_temporary(name)
