"""What is held back and until when: one fault of the account, a mapping or the service holds all that shares it."""

import pytest

from heifyd.faults import Fault, Owner
from heifyd.holds import EVERYTHING, SERVICE_FAULTS, Hold, Holds

SALES, SUPPORT = "/calls/sales", "/calls/support"
WALL = 1_800_000_000.0


def fault(owner: Owner, *, retry_after_s: float | None = None, reason: str = "seen") -> Fault:
    return Fault(owner, reason, "what was seen", "what to do", retry_after_s)


def fail(holds: Holds, owner: Owner, now_s: float, *, folder: str = SALES, probe: bool = False) -> Hold | None:
    return holds.failed(folder, fault(owner), now_s, WALL + now_s, probe=probe)


def outage(holds: Holds, now_s: float = 0.0) -> Hold:
    """Let the service fail until that is a hold."""
    for _ in range(SERVICE_FAULTS - 1):
        assert fail(holds, Owner.SERVICE, now_s) is None
    started = fail(holds, Owner.SERVICE, now_s)
    assert started is not None
    return started


@pytest.mark.parametrize("owner", [Owner.ACCOUNT, Owner.MAPPING, Owner.FOLDER])
def test_one_fault_of_account_mapping_or_folder_is_a_hold_and_is_told_of_once(owner: Owner) -> None:
    holds = Holds()

    started = fail(holds, owner, 10.0)

    assert started is not None
    assert (started.fault.owner, started.since_s, started.started_s) == (owner, WALL + 10.0, 10.0)
    assert fail(holds, owner, 11.0) is None
    assert holds.all() == [started]


def test_an_account_holds_every_folder_and_a_mapping_its_own() -> None:
    holds = Holds()

    fail(holds, Owner.MAPPING, 0.0)
    assert not holds.admits(SALES, 1.0)
    assert holds.admits(SUPPORT, 1.0)

    fail(holds, Owner.ACCOUNT, 1.0)
    assert not holds.admits(SUPPORT, 2.0)
    assert [hold.scope for hold in holds.all()] == [SALES, EVERYTHING]


def test_two_faults_of_the_service_are_an_accident_and_three_in_a_row_an_outage() -> None:
    holds = Holds()

    for now_s in range(SERVICE_FAULTS - 1):
        assert fail(holds, Owner.SERVICE, float(now_s)) is None
        assert holds.admits(SALES, float(now_s))

    started = fail(holds, Owner.SERVICE, 9.0, folder=SUPPORT)
    assert started is not None
    assert started.scope == EVERYTHING


def test_a_success_between_the_faults_prevents_the_hold() -> None:
    holds = Holds()

    for round_s in range(0, 100, 10):
        for _ in range(SERVICE_FAULTS - 1):
            assert fail(holds, Owner.SERVICE, float(round_s)) is None
        assert holds.succeeded(SUPPORT, probe=False) == []


def test_a_success_between_the_faults_counts_although_another_folder_is_held() -> None:
    holds = Holds()
    fail(holds, Owner.MAPPING, 0.0, folder=SUPPORT)

    for round_s in range(0, 100, 10):
        for _ in range(SERVICE_FAULTS - 1):
            assert fail(holds, Owner.SERVICE, float(round_s)) is None
        holds.succeeded(SALES, probe=False)


def test_an_outage_that_begins_again_takes_three_faults_again() -> None:
    holds = Holds()
    outage(holds)
    holds.admitted(SALES)
    holds.succeeded(SALES, probe=True)

    assert fail(holds, Owner.SERVICE, 20.0) is None
    assert holds.admits(SALES, 20.0)


def test_one_probe_at_a_time_goes_when_its_time_has_come() -> None:
    holds = Holds()
    assert holds.admitted(SALES) is False
    started = outage(holds)
    due_s = started.probe_at_s

    assert not holds.admits(SALES, due_s - 0.1)
    assert holds.next_probe_s() == due_s
    assert holds.admits(SALES, due_s)
    assert holds.admitted(SALES) is True
    assert not holds.admits(SALES, due_s + 1e6), "another one is on its way"
    assert not holds.admits(SUPPORT, due_s + 1e6)
    assert holds.next_probe_s() == float("inf")


@pytest.mark.parametrize(
    ("owner", "most_s"),
    [(Owner.SERVICE, 60.0), (Owner.FOLDER, 60.0), (Owner.ACCOUNT, 300.0), (Owner.MAPPING, 300.0)],
)
def test_the_intervals_between_probes_double_up_to_their_most(owner: Owner, most_s: float) -> None:
    holds = Holds()
    started = outage(holds) if owner is Owner.SERVICE else fail(holds, owner, 0.0)
    assert started is not None
    intervals_s = [started.probe_at_s]
    now_s = started.probe_at_s

    for _ in range(10):
        assert holds.admits(SALES, now_s)
        assert holds.admitted(SALES)
        fail(holds, owner, now_s, probe=True)
        intervals_s.append(started.probe_at_s - now_s)
        now_s = started.probe_at_s

    doubled = [min(most_s, intervals_s[0] * 2**step) for step in range(len(intervals_s))]
    assert intervals_s == doubled
    assert intervals_s[-1] == most_s


def test_what_was_under_way_before_the_hold_neither_ends_nor_prolongs_it() -> None:
    holds = Holds()
    started = outage(holds)
    due_s, interval_s = started.probe_at_s, started.interval_s

    assert fail(holds, Owner.SERVICE, 0.5) is None
    assert holds.succeeded(SALES, probe=False) == []
    holds.inconclusive(SALES, probe=False)

    assert holds.all() == [started]
    assert (started.probe_at_s, started.interval_s) == (due_s, interval_s)


def test_what_was_under_way_does_not_free_the_way_for_a_second_probe() -> None:
    holds = Holds()
    started = outage(holds)
    holds.admitted(SALES)

    holds.inconclusive(SUPPORT, probe=False)
    fail(holds, Owner.SERVICE, 0.5, folder=SUPPORT)
    holds.succeeded(SUPPORT, probe=False)

    assert not holds.admits(SALES, started.probe_at_s + 100)


def test_the_latest_fault_is_the_one_a_hold_speaks_of() -> None:
    holds = Holds()
    started = fail(holds, Owner.ACCOUNT, 0.0)
    assert started is not None

    holds.failed(SUPPORT, fault(Owner.ACCOUNT, reason="key_refused"), 1.0, WALL, probe=False)

    assert started.fault.reason == "key_refused"


def test_the_wait_that_heify_asks_for_is_waited_by_the_first_probe_and_by_the_next() -> None:
    holds = Holds()
    asked = fault(Owner.SERVICE, retry_after_s=120.0)
    for _ in range(SERVICE_FAULTS):
        started = holds.failed(SALES, asked, 0.0, WALL, probe=False)
    assert started is not None
    assert started.probe_at_s == 120.0

    holds.admitted(SALES)
    holds.failed(SALES, asked, 120.0, WALL, probe=True)
    assert started.probe_at_s == 240.0


def test_a_url_ends_the_holds_of_account_and_mapping_and_no_other() -> None:
    holds = Holds()
    outage(holds)
    for owner in (Owner.ACCOUNT, Owner.MAPPING, Owner.FOLDER):
        fail(holds, owner, 1.0)
    fail(holds, Owner.MAPPING, 2.0, folder=SUPPORT)

    ended = holds.url_given(SALES)

    assert sorted(hold.fault.owner for hold in ended) == [Owner.ACCOUNT, Owner.MAPPING]
    assert sorted((hold.scope, hold.fault.owner) for hold in holds.all()) == [
        (EVERYTHING, Owner.SERVICE),
        (SALES, Owner.FOLDER),
        (SUPPORT, Owner.MAPPING),
    ]


def test_a_stored_recording_ends_the_outage_and_a_filed_one_the_folders_hold() -> None:
    holds = Holds()
    outage(holds)
    fail(holds, Owner.FOLDER, 1.0)
    holds.admitted(SALES)

    assert [hold.fault.owner for hold in holds.succeeded(SALES, probe=True)] == [Owner.SERVICE]
    assert [hold.fault.owner for hold in holds.filed(SALES)] == [Owner.FOLDER]
    assert holds.all() == []
    assert holds.admits(SALES, 1.0)


def test_a_probe_that_tells_nothing_lets_the_next_one_go_at_once() -> None:
    holds = Holds()
    started = outage(holds)
    holds.admitted(SALES)

    holds.inconclusive(SALES, probe=True)

    assert holds.admits(SALES, started.probe_at_s)


def test_a_probe_that_meets_another_fault_leaves_the_first_hold_and_adds_its_own() -> None:
    holds = Holds()
    started = fail(holds, Owner.ACCOUNT, 0.0)
    assert started is not None
    holds.admitted(SALES)

    second = fail(holds, Owner.MAPPING, 15.0, probe=True)

    assert second is not None
    assert holds.all() == [started, second]
    assert not started.probing
    assert started.probe_at_s > 15.0
