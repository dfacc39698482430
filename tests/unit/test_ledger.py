"""The durable queue and history: nothing lost, nothing twice, whatever happens between two steps."""

import os
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from heifyd import ledger_lock
from heifyd.ledger import (
    Added,
    Claim,
    FolderCounts,
    HoldRow,
    Ledger,
    LedgerError,
    LedgerInUseError,
    State,
)
from heifyd.ledger_file import APPLICATION_ID
from heifyd.recording import Identity, Ids, Ticket

FOLDER = "/var/spool/calls"
NOW = 1_800_000_000.0
IDS = Ids("a1b2c3d4-e5f6-7890-1234-567890abcdef", "2abb5563-dd64-47bb-bb17-94252e168b06")
TICKET = Ticket("t-1", "https://storage.heify.com/t-1?X-Amz-Signature=s", IDS, "call", 500.0, "boot")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(daemons(tmp_path / "ledger.sqlite")) as opened:
        yield opened


def daemons(path: Path) -> Ledger:
    return Ledger.of_daemon(path, lambda _trouble: None)


def call(path: str = "call.wav", *, version: int = 1, folder: str = FOLDER) -> Identity:
    return Identity(folder, path, 1000 * version, version)


def queued(ledger: Ledger, identity: Identity, now: float = NOW) -> None:
    assert ledger.add([identity], now) == [Added.QUEUED]


def claimed(ledger: Ledger, now: float = NOW) -> Claim:
    claim = ledger.claim(FOLDER, now)
    assert claim is not None
    return claim


def restarted(ledger: Ledger) -> Ledger:
    """Leave a ledger as a killed daemon does, and open it as the next one does."""
    ledger.close()
    return daemons(ledger.path)


# The file


def test_the_ledger_is_its_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with closing(daemons(tmp_path / "state" / "ledger.sqlite")) as ledger:
            ledger.add([call()], NOW)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "state").iterdir()}
    finally:
        os.umask(umask)

    assert set(modes.values()) == {0o600}
    assert "ledger.sqlite-wal" in modes
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_second_daemon_is_kept_out_until_the_first_is_gone(ledger: Ledger) -> None:
    with closing(Ledger(ledger.path)):
        with pytest.raises(LedgerInUseError, match="another heifyd"):
            daemons(ledger.path)
        assert ledger_lock.is_in_use(ledger.path)
        ledger.close()
        assert not ledger_lock.is_in_use(ledger.path)
        daemons(ledger.path).close()


def test_a_second_daemon_that_is_kept_out_takes_nothing_from_the_first(ledger: Ledger) -> None:
    queued(ledger, call())
    claimed(ledger)

    with pytest.raises(LedgerInUseError):
        daemons(ledger.path)
    with closing(Ledger(ledger.path)) as second:
        assert second.claim(FOLDER, NOW) is None


def test_a_ledger_of_another_version_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA user_version = 99")

    with pytest.raises(LedgerError, match="another version of heifyd"):
        Ledger(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(b"RIFF" * 1000)

    with pytest.raises(LedgerError, match="damaged"):
        Ledger(path)
    assert path.read_bytes() == b"RIFF" * 1000


def test_looking_at_a_ledger_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger yet"):
        Ledger(tmp_path / "none" / "ledger.sqlite", create=False)
    assert list(tmp_path.iterdir()) == []


def test_looking_at_a_ledger_that_a_daemon_is_about_to_lay_out_leaves_that_to_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.touch()

    with pytest.raises(LedgerError, match="there is no ledger yet"):
        Ledger(path, create=False)

    assert path.read_bytes() == b""
    with closing(Ledger.of_daemon(path, lambda _trouble: None)) as ledger:
        assert ledger.folders() == []


@pytest.mark.parametrize(("above", "why"), [("a-file", "Not a directory"), ("x" * 300, "File name too long")])
def test_a_ledger_that_cannot_be_looked_for_says_why(tmp_path: Path, above: str, why: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(LedgerError, match=rf"ledger.sqlite: the ledger cannot be used \({why}\)"):
        Ledger(tmp_path / above / "ledger.sqlite", create=False)


def test_a_ledger_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(LedgerError, match=r"cannot be used .*; give `ledger:`"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


# The way in


def test_a_recording_is_queued_once_however_often_it_is_offered(ledger: Ledger) -> None:
    queued(ledger, call())

    assert ledger.add([call()], NOW) == [Added.KNOWN]
    assert ledger.unsettled([call(), call("b.wav"), call(version=2)]) == [call("b.wav"), call(version=2)]
    claimed(ledger)
    assert ledger.add([call()], NOW) == [Added.KNOWN]
    assert ledger.claim(FOLDER, NOW) is None


def test_names_are_bytes_and_come_back_as_they_were(ledger: Ledger, odd_name: str) -> None:
    identity = Identity(f"/srv/{odd_name}", f"{odd_name}/{odd_name}", 1, 1)
    queued(ledger, identity)
    again = restarted(ledger)
    with closing(again):
        found = again.claim(identity.folder, NOW)
        assert found is not None
        again.ended(found, State.FAILED, NOW, filed_at=f"/srv/{odd_name}/failed/{odd_name}")

        assert found.identity == identity
        assert again.folders() == [identity.folder]
        assert [row.filed_at for row in again.failed(identity.folder)] == [f"/srv/{odd_name}/failed/{odd_name}"]


def test_equal_names_in_different_folders_are_different_recordings(ledger: Ledger) -> None:
    elsewhere = call(folder="/srv/other")

    assert ledger.add([call("a/call.wav"), call("b/call.wav"), call()], NOW) == [Added.QUEUED] * 3
    assert ledger.add([elsewhere], NOW) == [Added.QUEUED]


def test_a_newer_content_takes_the_place_of_one_that_still_waits(ledger: Ledger) -> None:
    queued(ledger, call(version=1))
    queued(ledger, call(version=2))

    claim = claimed(ledger)

    assert claim.identity == call(version=2)
    assert ledger.claim(FOLDER, NOW) is None


def test_a_newer_content_is_offered_again_later_while_a_worker_has_the_older_one(ledger: Ledger) -> None:
    queued(ledger, call(version=1))
    claim = claimed(ledger)

    assert ledger.add([call(version=2)], NOW) == [Added.BUSY]
    ledger.ended(claim, State.SUPERSEDED, NOW)
    assert ledger.add([call(version=2)], NOW) == [Added.QUEUED]


def test_a_recording_that_was_done_is_filed_and_not_sent_again(ledger: Ledger) -> None:
    queued(ledger, call())
    claim = claimed(ledger)
    ledger.uploading(claim, TICKET)
    ledger.uploaded(claim)
    ledger.ended(claim, State.DONE, NOW, filed_at="/done/call.wav")

    assert ledger.add([call()], NOW) == [Added.SENT_BEFORE]
    again = claimed(ledger)
    assert again.state is State.UPLOADED
    assert again.ticket is not None
    assert again.ticket.transcription_id == "t-1"


@pytest.mark.parametrize("state", [State.FAILED, State.SUPERSEDED, State.VANISHED])
def test_a_recording_that_comes_back_goes_on_with_the_transcription_it_had(ledger: Ledger, state: State) -> None:
    queued(ledger, call())
    claim = claimed(ledger)
    ledger.uploading(claim, TICKET)
    ledger.put_back(claim, NOW + 60, attempts=7, failing_s=100.0)
    ledger.ended(claimed(ledger, NOW + 60), state, NOW + 60, reason="retries_ended", detail="http_500")

    queued(ledger, call(), NOW + 100)

    again = claimed(ledger, NOW + 100)
    assert again.state is State.UPLOADING
    assert again.ticket is not None
    assert again.ticket.transcription_id == "t-1"
    assert not again.ticket.is_good(0.0, "boot"), "its URL is not kept; Heify is asked whether the first one arrived"
    assert (again.attempts, again.failing_s, again.settled_at) == (0, 0.0, NOW + 100)


def test_a_failed_recording_without_a_transcription_starts_from_the_beginning(ledger: Ledger) -> None:
    queued(ledger, call())
    ledger.ended(claimed(ledger), State.FAILED, NOW, reason="not_audio")

    queued(ledger, call())

    assert (claimed(ledger).state, ledger.failed(FOLDER)) == (State.WAITING, [])


# The way through


def test_the_oldest_recording_goes_first(ledger: Ledger) -> None:
    ledger.add([call(f"{version}.wav", version=version) for version in (3, 1, 2)], NOW)

    assert [claimed(ledger).identity.path for _ in range(3)] == ["1.wav", "2.wav", "3.wav"]


def test_a_recording_waits_until_its_time_and_lets_younger_ones_pass(ledger: Ledger) -> None:
    ledger.add([call("old.wav", version=1), call("young.wav", version=2)], NOW)
    ledger.put_back(claimed(ledger), NOW + 600, attempts=1)

    assert claimed(ledger).identity.path == "young.wav"
    assert ledger.claim(FOLDER, NOW + 599.9) is None
    assert ledger.next_due([FOLDER], NOW) == NOW + 600
    assert ledger.next_due(["/srv/other"], NOW) is None
    assert claimed(ledger, NOW + 600).attempts == 1


def test_a_recording_is_one_workers_alone(ledger: Ledger) -> None:
    ledger.add([call(f"{number}.wav") for number in range(40)], NOW)
    taken: list[str] = []

    def work() -> None:
        while (claim := ledger.claim(FOLDER, NOW)) is not None:
            taken.append(claim.identity.path)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert sorted(taken) == sorted(f"{number}.wav" for number in range(40))


def test_while_a_folder_is_held_only_what_needs_but_filing_is_claimed(ledger: Ledger) -> None:
    ledger.add([call("waits.wav", version=1), call("sent.wav", version=2)], NOW)
    waits, sent = claimed(ledger), claimed(ledger)
    ledger.uploading(sent, TICKET)
    ledger.uploaded(sent)
    for claim in (waits, sent):
        ledger.put_back(claim, 0.0, attempts=0)

    held = ledger.claim(FOLDER, NOW, only_to_file=True)

    assert held is not None
    assert held.identity.path == "sent.wav"
    assert ledger.claim(FOLDER, NOW, only_to_file=True) is None


def test_what_a_killed_daemon_was_at_goes_on_at_once_with_the_same_url(ledger: Ledger) -> None:
    queued(ledger, call())
    ledger.uploading(claimed(ledger), TICKET)

    with closing(restarted(ledger)) as again:
        claim = claimed(again)

        assert claim.state is State.UPLOADING
        assert claim.ticket == TICKET


def test_what_was_uploaded_when_the_daemon_was_killed_is_only_filed_and_its_url_forgotten(ledger: Ledger) -> None:
    queued(ledger, call())
    claim = claimed(ledger)
    ledger.uploading(claim, TICKET)
    ledger.uploaded(claim)

    with closing(restarted(ledger)) as again:
        found = claimed(again)

        assert found.state is State.UPLOADED
        assert found.ticket == replace(TICKET, url="")
    assert b"X-Amz-Signature" not in ledger.path.read_bytes()


def test_a_worker_that_waits_is_woken_by_new_work(ledger: Ledger) -> None:
    began_s = time.monotonic()
    adder = threading.Thread(target=ledger.add, args=([call()], NOW))
    wakes = ledger.wakes
    adder.start()
    ledger.wait(wakes, 60.0)
    adder.join()

    assert time.monotonic() - began_s < 50
    assert claimed(ledger).identity == call()


@pytest.mark.parametrize("step", ["add", "put_back"])
def test_work_that_comes_between_looking_and_waiting_is_not_slept_through(ledger: Ledger, step: str) -> None:
    queued(ledger, call("first.wav"))
    claim = claimed(ledger)
    wakes = ledger.wakes
    assert ledger.claim(FOLDER, NOW) is None
    if step == "add":
        queued(ledger, call())
    else:
        ledger.put_back(claim, NOW, attempts=1)
    began_s = time.monotonic()

    ledger.wait(wakes, 60.0)

    assert time.monotonic() - began_s < 50


def test_how_long_a_recording_has_been_failing_is_kept_until_it_is_uploaded(ledger: Ledger) -> None:
    queued(ledger, call())
    ledger.put_back(claimed(ledger), 0.0, attempts=3, failing_s=100.0)

    with closing(restarted(ledger)) as again:
        claim = claimed(again)
        assert (claim.attempts, claim.failing_s) == (3, 100.0)
        again.uploading(claim, TICKET)
        again.uploaded(claim)
        again.put_back(claim, 0.0, attempts=4)
        assert claimed(again).failing_s == 0.0


@pytest.mark.parametrize(("scope", "is_other_forgiven"), [(FOLDER, False), (None, True)])
def test_a_hold_that_begins_forgives_what_it_holds_and_nothing_else(
    ledger: Ledger,
    scope: str | None,
    is_other_forgiven: bool,  # noqa: FBT001
) -> None:
    for folder in (FOLDER, "/srv/other"):
        queued(ledger, call(folder=folder))
        claim = ledger.claim(folder, NOW)
        assert claim is not None
        ledger.put_back(claim, 0.0, attempts=1, failing_s=50.0)

    ledger.hold_began(scope)

    assert claimed(ledger).failing_s == 0.0
    other = ledger.claim("/srv/other", NOW)
    assert other is not None
    assert (other.failing_s == 0.0) == is_other_forgiven


@pytest.mark.parametrize(("scope", "is_other_freed"), [(FOLDER, False), (None, True)])
def test_a_hold_that_ends_lets_what_it_held_go_at_once_and_nothing_else(
    ledger: Ledger,
    scope: str | None,
    is_other_freed: bool,  # noqa: FBT001
) -> None:
    for folder in (FOLDER, "/srv/other"):
        queued(ledger, call(folder=folder))
        claim = ledger.claim(folder, NOW)
        assert claim is not None
        ledger.put_back(claim, NOW + 300, attempts=1)
    wakes = ledger.wakes

    ledger.hold_ended(scope)

    assert ledger.wakes > wakes
    assert ledger.claim(FOLDER, NOW) is not None
    assert (ledger.claim("/srv/other", NOW) is not None) == is_other_freed


# Holds, history and counts


def test_the_holds_that_are_shown_are_those_in_force_and_end_with_the_daemon(ledger: Ledger) -> None:
    first = HoldRow("", "account", "out_of_minutes", "402", "top up", NOW)
    second = HoldRow(os.fsdecode(b"/srv/\xff"), "mapping", "mapping_refused", "404", "correct it", NOW - 1)
    ledger.show_holds([first, second])
    ledger.show_holds([first, second])

    assert ledger.holds() == [second, first]
    with closing(restarted(ledger)) as again:
        assert again.holds() == []


def test_the_counts_tell_what_waits_what_is_under_way_and_what_has_ended(ledger: Ledger) -> None:
    ledger.add([call(f"{version}.wav", version=version) for version in range(1, 6)], NOW)
    ledger.add([call("late.wav", version=9)], NOW + 50)
    ledger.ended(claimed(ledger), State.DONE, NOW - 100)
    ledger.ended(claimed(ledger), State.DONE, NOW + 100)
    ledger.ended(claimed(ledger), State.FAILED, NOW - 100)
    claimed(ledger)

    assert ledger.counts(FOLDER, NOW) == FolderCounts(
        waiting=2, uploading=1, done_since=1, failed=1, oldest_settled_at=NOW
    )
    assert ledger.counts("/srv/other", NOW) == FolderCounts(0, 0, 0, 0, None)


def test_a_failed_recording_that_was_brought_back_is_no_longer_counted_as_failed(ledger: Ledger) -> None:
    ledger.add([call("a.wav"), call("b.wav")], NOW)
    ledger.ended(claimed(ledger), State.FAILED, NOW)
    ledger.ended(claimed(ledger), State.FAILED, NOW + 1)
    last, first = ledger.failed(FOLDER)

    ledger.brought_back(first.identity)

    assert ledger.failed(FOLDER) == [last]
    assert ledger.counts(FOLDER, NOW).failed == 1


def test_old_history_is_deleted_and_nothing_that_is_under_way(ledger: Ledger) -> None:
    ledger.add([call("old.wav"), call("new.wav"), call("waits.wav")], NOW - 1e6)
    ledger.ended(claimed(ledger), State.DONE, NOW - 10)
    ledger.ended(claimed(ledger), State.FAILED, NOW)

    assert ledger.prune(NOW) == 1
    assert ledger.prune(NOW) == 0
    assert len(ledger.failed(FOLDER)) == 1
    assert ledger.counts(FOLDER, NOW).waiting == 1


# The laws


@dataclass
class Known:
    """What must be true of one identity: the transcription it was last given, and whether Heify has it."""

    transcription_id: str | None = None
    sent: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Any order of steps that intake, workers, restarts and `heifyd retry` can take."""

    claims = Bundle[Claim]("claims")

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.ledger = daemons(Path(self.directory.name) / "ledger.sqlite")
        self.known: dict[Identity, Known] = {}
        self.life = 0
        self.number = 0
        self.life_of: dict[int, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.directory.cleanup()

    def _is_ours(self, claim: Claim) -> bool:
        """Tell whether a claim is of this life of the daemon: the others died with theirs."""
        return self.life_of.get(id(claim)) == self.life

    @rule(path=st.sampled_from(["a.wav", "b.wav"]), version=st.integers(1, 3))
    def offer(self, path: str, version: int) -> None:
        identity = call(path, version=version)
        was_active = identity not in self.ledger.unsettled([identity])

        [added] = self.ledger.add([identity], NOW)

        known = self.known.setdefault(identity, Known())
        assert (added is Added.KNOWN) == was_active
        if added is Added.SENT_BEFORE:
            assert known.sent
        if added is Added.QUEUED:
            assert not known.sent, "it would be sent twice"

    @rule(target=claims, only_to_file=st.booleans())
    def take(self, only_to_file: bool) -> Claim | MultipleResults[Claim]:  # noqa: FBT001
        claim = self.ledger.claim(FOLDER, NOW, only_to_file=only_to_file)
        if claim is None:
            return multiple()
        known = self.known[claim.identity]
        assert claim.state in (State.WAITING, State.UPLOADING, State.UPLOADED)
        assert (claim.ticket.transcription_id if claim.ticket else None) == known.transcription_id
        assert (claim.state is State.UPLOADED) == known.sent
        assert (claim.state is State.WAITING) == (known.transcription_id is None)
        self.life_of[id(claim)] = self.life
        return claim

    @rule(claim=claims)
    def start_upload(self, claim: Claim) -> None:
        known = self.known[claim.identity]
        if self._is_ours(claim) and not known.sent:
            self.number += 1
            known.transcription_id = f"t-{self.number}"
            self.ledger.uploading(claim, replace(TICKET, transcription_id=known.transcription_id))

    @rule(claim=claims)
    def finish_upload(self, claim: Claim) -> None:
        known = self.known[claim.identity]
        if self._is_ours(claim) and known.transcription_id is not None:
            self.ledger.uploaded(claim)
            known.sent = True

    @rule(claim=consumes(claims), failed=st.sampled_from([State.FAILED, State.SUPERSEDED, State.VANISHED]))
    def end(self, claim: Claim, failed: State) -> None:
        known = self.known[claim.identity]
        if self._is_ours(claim):
            self.ledger.ended(claim, State.DONE if known.sent else failed, NOW)

    @rule(claim=consumes(claims), wait_s=st.sampled_from([0.0, 1.0]))
    def give_back(self, claim: Claim, wait_s: float) -> None:
        if self._is_ours(claim):
            self.ledger.put_back(claim, NOW + wait_s, attempts=claim.attempts + 1, failing_s=50.0)

    @rule()
    def bring_back(self) -> None:
        for failed in self.ledger.failed(FOLDER):
            self.ledger.brought_back(failed.identity)

    @rule()
    def restart(self) -> None:
        self.ledger = restarted(self.ledger)
        self.life += 1

    @invariant()
    def one_active_row_a_path(self) -> None:
        if not hasattr(self, "ledger"):
            return
        with closing(sqlite3.connect(self.ledger.path)) as db:
            crowded = db.execute(
                "SELECT path, count(*) FROM recordings WHERE ended_at IS NULL GROUP BY folder, path HAVING count(*) > 1"
            ).fetchall()
            rows = db.execute("SELECT path, size_bytes, mtime_ns, transcription_id FROM recordings").fetchall()
        assert crowded == []
        kept = {Identity(FOLDER, os.fsdecode(path), size, mtime): given for path, size, mtime, given in rows}
        assert len(kept) == len(rows)
        assert {identity: kept.get(identity) for identity in self.known if identity in kept} == {
            identity: known.transcription_id for identity, known in self.known.items() if identity in kept
        }
        assert all(identity in kept for identity, known in self.known.items() if known.transcription_id)


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestNothingIsLostAndNothingTwice = LedgerMachine.TestCase
