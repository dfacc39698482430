"""Whose turn it is: folders in turn, oldest first, and one probe at a time while something holds."""

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from heifyd import log
from heifyd.faults import Fault, Owner
from heifyd.ledger import HoldRow, Ledger
from heifyd.log import Redactor
from heifyd.recording import Identity, Ids, Ticket
from heifyd.turns import Turn, Turns

SALES, SUPPORT = "/calls/sales", "/calls/support"
TICKET = Ticket("t-1", "https://storage.heify.com/t-1", Ids("c"), "call", 500.0, "boot")


class Place:
    """A ledger, the turns over it, and what they logged."""

    def __init__(self, path: Path) -> None:
        self._out = os.memfd_create("log")
        self.ledger = Ledger(path)
        self.turns = self.turns_with(stagger_s=0.0)

    def turns_with(self, *, stagger_s: float) -> Turns:
        logger = log.make(Redactor(), self._out, for_reading=False)
        return Turns([SALES, SUPPORT], self.ledger, logger, stagger_s=stagger_s)

    def queue(self, folder: str, number: int) -> None:
        self.ledger.add([Identity(folder, f"{version}.wav", 1, version) for version in range(number)], 0.0)

    def next(self) -> Turn:
        turn = self.turns.next()
        assert turn is not None
        return turn

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in os.pread(self._out, 1_000_000, 0).splitlines()]
        return [line for line in lines if line["event"] == name]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "ledger.sqlite")
    with closing(made.ledger):
        yield made
    os.close(made._out)


def fault(owner: Owner) -> Fault:
    return Fault(owner, "seen", "what was seen", "what to do")


def test_a_recording_that_is_carried_quickly_has_none_beside_it(place: Place) -> None:
    place.turns = place.turns_with(stagger_s=3600.0)
    place.queue(SALES, 2)
    first = place.next()

    assert place.turns.next() is None
    assert 3000 < place.turns.patience_s() <= 3600
    assert 4 * 3000 < place.turns.patience_s(looks=2) <= 4 * 3600, "who has looked in vain twice looks less often"
    assert 8 * 3000 < place.turns.patience_s(looks=100) <= 8 * 3600
    place.turns.over(first)

    assert place.next().claim.identity.path == "1.wav"


def test_a_recording_that_takes_its_time_has_others_beside_it(place: Place) -> None:
    place.turns = place.turns_with(stagger_s=0.001)
    place.queue(SALES, 2)
    first = place.next()

    second = None
    while second is None:
        place.ledger.wait(place.ledger.wakes, place.turns.patience_s())
        second = place.turns.next()

    assert {first.claim.identity.path, second.claim.identity.path} == {"0.wav", "1.wav"}


def test_one_folders_backlog_starves_no_other_and_the_oldest_goes_first(place: Place) -> None:
    place.queue(SALES, 5)
    place.queue(SUPPORT, 2)

    served = [place.next().claim.identity for _ in range(7)]

    assert [each.folder for each in served] == [SALES, SUPPORT, SALES, SUPPORT, SALES, SALES, SALES]
    assert [each.mtime_ns for each in served if each.folder == SALES] == [0, 1, 2, 3, 4]
    assert place.turns.next() is None


def test_a_held_mapping_stops_its_folder_and_no_other_and_is_told_of_once(place: Place) -> None:
    place.queue(SALES, 3)
    place.queue(SUPPORT, 2)
    first, support, second = place.next(), place.next(), place.next()

    assert place.turns.failed(first, fault(Owner.MAPPING)) is not None
    assert place.turns.failed(second, fault(Owner.MAPPING)) is not None
    place.turns.over(support)

    assert place.next().folder == SUPPORT
    assert place.turns.next() is None
    [told] = place.events("hold.started")
    assert (told["scope"], told["owner"], told["what_to_do"]) == (SALES, "mapping", "what to do")
    assert [hold.scope for hold in place.ledger.holds()] == [SALES]


def test_a_held_account_stops_everything_but_filing_what_heify_has(place: Place) -> None:
    place.queue(SALES, 2)
    sent = place.next()
    place.ledger.uploading(sent.claim, TICKET)
    place.ledger.uploaded(sent.claim)
    place.turns.failed(place.next(), fault(Owner.ACCOUNT))
    place.queue(SUPPORT, 1)
    assert place.turns.next() is None

    place.ledger.put_back(sent.claim, 0.0, attempts=0)

    turn = place.next()
    assert turn.claim.row == sent.claim.row
    assert not turn.is_probe


def test_a_folder_that_cannot_be_used_is_not_filed_into_either(place: Place) -> None:
    place.queue(SALES, 2)
    sent = place.next()
    place.ledger.uploading(sent.claim, TICKET)
    place.ledger.uploaded(sent.claim)
    place.turns.failed(sent, fault(Owner.FOLDER))
    place.ledger.put_back(sent.claim, 0.0, attempts=1)

    assert place.turns.next() is None


def test_a_hold_that_ends_lets_everything_go_on_at_once_and_is_told_of_once(place: Place) -> None:
    place.queue(SALES, 2)
    first, second = place.next(), place.next()
    wait_s = place.turns.failed(first, fault(Owner.ACCOUNT))
    assert wait_s is not None
    place.ledger.put_back(first.claim, wait_s, attempts=1)

    place.turns.url_given(second)
    place.turns.url_given(second)

    assert place.next().claim.row == first.claim.row
    assert [told["scope"] for told in place.events("hold.ended")] == ["everything"]
    assert place.ledger.holds() == []


def test_a_single_failure_of_the_service_holds_nothing(place: Place) -> None:
    place.queue(SALES, 2)

    assert place.turns.failed(place.next(), fault(Owner.SERVICE)) is None
    assert place.next().is_probe is False
    assert place.events("hold.started") == []


def test_nobody_is_to_wait_longer_than_until_the_next_probe_or_the_next_recording_that_is_due(place: Place) -> None:
    assert place.turns.patience_s() == 300.0
    place.queue(SALES, 1)

    place.turns.failed(place.next(), fault(Owner.ACCOUNT))

    assert 0 <= place.turns.patience_s() <= 15.0


def test_a_folder_that_is_left_out_counts_as_held_and_is_taken_up_where_it_stood(place: Place) -> None:
    place.queue(SALES, 2)
    place.queue(SUPPORT, 2)
    silent = HoldRow(SALES, Owner.FOLDER, "folder_unresponsive", "it does not answer", "see to it", 1.0)

    place.turns.leave_out({SALES: silent})

    assert [place.next().folder for _ in range(2)] == [SUPPORT, SUPPORT]
    assert place.turns.next() is None
    assert place.ledger.holds() == place.turns.held == [silent]
    assert place.turns.patience_s() > 60

    place.turns.leave_out({})
    assert [place.next().folder for _ in range(2)] == [SALES, SALES]
    assert place.ledger.holds() == []
