"""What is on the disk when the power goes: the order of writes, a torn ledger, one that is damaged or none at all."""

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from heifyd.ledger import Ledger, State
from heifyd.ledger_file import APPLICATION_ID
from heifyd.recording import Identity, Ids, Ticket
from heifyd.sandbox import API_KEY, Sandbox
from tests.harness import (
    LIMIT_S,
    ROOT,
    DaemonProcess,
    Event,
    Place,
    eventually,
    files_below,
    make_place,
    need,
    need_program,
    running,
    sample,
    sha256,
)

QUICK: Final = "settle_seconds: 0.3"
FAST: Final = {"REHEARSAL_SPEED": "30"}
NOW: Final = 1_800_000_000.0


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=QUICK)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Give a directory on another file system than the tests' own."""
    need(Path("/dev/shm").is_dir() and os.stat("/dev/shm").st_dev != tmp_path.stat().st_dev, "another file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="heifyd-test-") as directory:
        yield Path(directory)


def put_calls(place: Place, number: int, prefix: str = "call") -> dict[str, bytes]:
    """Write recordings and return them by name."""
    calls = {f"{prefix}-{at}.wav": sample(".wav", f"{prefix} {at}") for at in range(number)}
    for name, content in calls.items():
        (place.calls / name).write_bytes(content)
    return calls


def contents(files: dict[str, Path]) -> list[str]:
    return sorted(sha256(file) for file in files.values())


def assert_delivered(calls: dict[str, bytes], place: Place, sandbox: Sandbox) -> None:
    """Each recording is in Heify and in done/, and nothing is left in the folder."""
    hashes = sorted(sha256(content) for content in calls.values())
    assert contents(files_below(place.done)) == hashes
    assert [path for path in files_below(place.calls) if not path.startswith("done/")] == []
    assert sorted({each.sha256 or "" for each in sandbox.transcriptions() if each.stored}) == hashes


# The order of writes


@dataclass(frozen=True)
class SystemCall:
    """One system call of a trace; `began` and `ended` count the trace's lines, which are in the kernel's order."""

    name: str
    arguments: str
    result: str
    began: int
    ended: int

    def is_on(self, path: object) -> bool:
        """Tell whether its first argument is a descriptor of that file."""
        return re.match(rf"\d+<{re.escape(str(path))}>", self.arguments) is not None

    def sends(self, what: str) -> bool:
        return (
            self.name in ("sendto", "sendmsg", "write")
            and re.match(rf'\d+<[^>]*>, "{what}', self.arguments) is not None
        )

    def receives(self, what: str) -> bool:
        return self.name == "recvfrom" and f'"{what}' in self.arguments


TRACED: Final = (
    "write,writev,pwrite64,?pwritev,sendto,sendmsg,recvfrom,fsync,fdatasync,?renameat2,?renameat,?rename,unlinkat,"
    "?unlink,?copy_file_range,?sendfile,ftruncate"
)
_WHOLE: Final = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\w+.*)$")
_BEGUN: Final = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*?),? *<unfinished \.\.\.>$")
_RESUMED: Final = re.compile(
    r"^(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>(?P<arguments>.*)\) += (?P<result>-?\w+.*)$"
)


def read_trace(text: str) -> list[SystemCall]:
    """Read what `strace -f -y` wrote; a call that another thread's line interrupted is put together again."""
    calls: list[SystemCall] = []
    begun: dict[tuple[str, str], tuple[str, int]] = {}
    for at, line in enumerate(text.splitlines()):
        if found := _BEGUN.match(line):
            begun[found["pid"], found["name"]] = (found["arguments"], at)
        elif found := _RESUMED.match(line):
            before, began = begun.pop((found["pid"], found["name"]), ("", at))
            calls.append(SystemCall(found["name"], before + found["arguments"], found["result"], began, at))
        elif found := _WHOLE.match(line):
            calls.append(SystemCall(found["name"], found["arguments"], found["result"], at, at))
    return [call for call in calls if not call.result.startswith("-1")]


def test_a_trace_is_read_with_its_interrupted_calls_put_together() -> None:
    text = (
        "7 fdatasync(5</tmp/a b/l-wal> <unfinished ...>\n"
        '8 sendto(9<socket:[1]>, "PUT /x"..., 9, 0, NULL, 0) = 9\n'
        "7 <... fdatasync resumed>)        = 0\n"
        "7 recvfrom(9<socket:[1]>,  <unfinished ...>\n"
        "8 fsync(4</tmp>) = -1 EIO (Input/output error)\n"
        '7 <... recvfrom resumed>"HTTP/1.1 200"..., 65536, 0, NULL, NULL) = 12\n'
        "7 --- SIGTERM {si_signo=SIGTERM} ---\n7 +++ exited with 0 +++\n"
    )

    sent, synced, received = read_trace(text)

    assert synced.is_on("/tmp/a b/l-wal")
    assert (synced.began, synced.ended) == (0, 2)
    assert sent.sends("PUT /")
    assert received.receives("HTTP/1.1 200")
    assert (received.began, received.ended) == (3, 5)


def traced(place: Place) -> list[SystemCall]:
    """Run the daemon under strace until one recording is done."""
    strace = need_program("strace")
    trace = place.root / "trace"
    probe = subprocess.run([strace, "-f", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False)
    need(probe.returncode == 0, "leave to trace a process (ptrace)")
    # -D leaves the daemon this process's child, to be sent signals, and strace its child in turn.
    prefix = strace, "-D", "-f", "-y", "-s", "64", "-o", str(trace), "-e", f"trace={TRACED}"
    with running(place, prefix=prefix) as daemon:
        daemon.await_event("recording.done")
    return read_trace(trace.read_text("utf-8", "replace"))


def only(calls: Sequence[SystemCall], which: Callable[[SystemCall], bool], what: str) -> SystemCall:
    found = [call for call in calls if which(call)]
    assert len(found) == 1, f"{what}: {found}"
    return found[0]


def writes_to(calls: Sequence[SystemCall], path: object) -> list[SystemCall]:
    names = "write", "writev", "pwrite64", "pwritev", "copy_file_range", "sendfile", "ftruncate"
    return [call for call in calls if call.name in names and call.is_on(path)]


def assert_written_and_synced(calls: Sequence[SystemCall], path: object, after: SystemCall, before: SystemCall) -> None:
    """Between two calls the file is written to, and nothing of that is left to be synced when the second begins."""
    between = [call for call in calls if call.began > after.ended and call.ended < before.began]
    written = writes_to(between, path)
    assert written, "nothing was written down"
    synced = [call for call in between if call.name in ("fsync", "fdatasync") and call.is_on(path)]
    assert [sync for sync in synced if sync.began > written[-1].ended], "what was written was not synced"
    late = [call for call in writes_to(calls, path) if call.began < before.began <= call.ended]
    assert late == []


def journey_of(calls: Sequence[SystemCall]) -> tuple[SystemCall, SystemCall, SystemCall]:
    """Return the answer with the URL, the first send of the PUT, and its answer."""
    asked = only(calls, lambda call: call.sends("POST /request-upload-url"), "one request for a URL")
    put = only(calls, lambda call: call.sends("PUT /upload/"), "one PUT")
    answers = [call for call in calls if call.receives("HTTP/1.1 200")]
    (given,) = [call for call in answers if asked.ended < call.ended < put.began]
    (stored,) = [call for call in answers if call.ended > put.ended]
    return given, put, stored


def test_each_step_is_synced_into_the_ledger_before_the_next_begins(place: Place) -> None:
    place.config.write_text(f"workers: 1\n{place.config.read_text()}")
    put_calls(place, 1)

    calls = traced(place)

    given, put, stored = journey_of(calls)
    log = f"{place.ledger}-wal"
    moved = only(calls, lambda call: call.name.startswith("rename") and '"call-0.wav"' in call.arguments, "one move")
    assert f"<{place.done}>" in moved.arguments
    assert_written_and_synced(calls, log, given, put)
    assert_written_and_synced(calls, log, stored, moved)
    assert [call for call in writes_to(calls, log) if call.began > moved.ended], "its end is written down, too"


def test_a_copy_to_another_file_system_is_synced_before_it_has_its_name_and_named_before_the_original_goes(
    tmp_path: Path, sandbox: Sandbox, elsewhere: Path
) -> None:
    done = elsewhere / "sent" / "away"
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nworkers: 1", folder=f"done: {done}")
    put_calls(place, 1)

    calls = traced(place)

    _, _, stored = journey_of(calls)
    named = only(
        calls, lambda call: call.name.startswith("rename") and '"call-0.wav"' in call.arguments, "one name given"
    )
    part = re.search(r'"([^"]+heifyd-part)"', named.arguments)
    assert part is not None, named
    copy = done / part[1]
    unlinked = only(calls, lambda call: call.name == "unlinkat" and '"call-0.wav"' in call.arguments, "one unlink")
    assert unlinked.is_on(place.calls)
    first_written = writes_to(calls, copy)[0]
    assert_written_and_synced(calls, f"{place.ledger}-wal", stored, first_written)
    assert_written_and_synced(calls, copy, stored, named)
    between = [call for call in calls if call.began > named.ended and call.ended < unlinked.began]
    assert [call for call in between if call.name == "fsync" and call.is_on(done)], "its directory was not synced"
    for made_in in (elsewhere, elsewhere / "sent"):
        synced = [
            call for call in calls if call.name == "fsync" and call.is_on(made_in) and call.ended < unlinked.began
        ]
        assert synced, f"the directory made in {made_in} was not synced"
    assert sha256(done / "call-0.wav") == sha256(sample(".wav", "call 0"))


# A torn ledger

FOLDER: Final = "/var/spool/calls"
IDS: Final = Ids("a1b2c3d4-e5f6-7890-1234-567890abcdef", "2abb5563-dd64-47bb-bb17-94252e168b06")
WAL_HEADER: Final = 32
FRAME_HEADER: Final = 24

Rows = list[tuple[Any, ...]]


def rows_of(path: Path) -> Rows:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT * FROM recordings ORDER BY id").fetchall()


def commits_in(log: bytes) -> list[int]:
    """Return where in a write-ahead log each commit ends (sqlite.org/fileformat, "The Write-Ahead Log")."""
    page = int.from_bytes(log[8:12], "big")
    ends = []
    for at in range(WAL_HEADER, len(log) - FRAME_HEADER - page + 1, FRAME_HEADER + page):
        if log[at + 8 : at + 16] != log[16:24]:  # its salts are of an earlier log in the same file
            break
        if log[at + 4 : at + 8] != bytes(4):
            ends.append(at + FRAME_HEADER + page)
    return ends


@dataclass(frozen=True)
class Image:
    """The files of a ledger as a power cut leaves them, and its rows after each commit that its log holds.

    `states[n]` is what is to be found where the first n commits of the log are whole.
    """

    main: bytes
    log: bytes
    ends: list[int]
    states: list[Rows]

    def expected(self, whole_bytes: int) -> Rows:
        return self.states[sum(end <= whole_bytes for end in self.ends)]


def keep_ledger(path: Path, recordings: int) -> tuple[list[Rows], bytes, bytes]:
    """Let a ledger take recordings through all steps; return its rows after each commit, and its files at the end."""
    states: list[Rows] = []

    with closing(Ledger.of_daemon(path, lambda _: None)) as ledger:
        states.append(rows_of(path))
        for at in range(recordings):
            steps: list[Callable[[], object]] = []
            ledger.add([Identity(FOLDER, f"{at}.wav", 1000, at)], NOW, mount="/")
            states.append(rows_of(path))
            claim = ledger.claim(FOLDER, 0.0)
            assert claim is not None
            states.append(rows_of(path))
            url = f"https://storage.heify.com/{at}?{'x' * 200}"
            ticket = Ticket(f"t-{at}", url, IDS, f"call {at}", 500.0, "boot")
            steps = [
                lambda c=claim, t=ticket: ledger.uploading(c, t),  # type: ignore[misc]
                lambda c=claim: ledger.uploaded(c),  # type: ignore[misc]
                lambda c=claim, a=at: ledger.ended(c, State.DONE, NOW, filed_at=f"/done/{a}.wav"),  # type: ignore[misc]
            ]
            for step in steps[: 3 if at % 4 else 1 + at // 4 % 3]:
                step()
                states.append(rows_of(path))
        return states, path.read_bytes(), Path(f"{path}-wal").read_bytes()


@pytest.fixture(scope="module", params=[12, 150], ids=["young", "after-checkpoints"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Image:
    states, main, log = keep_ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite", request.param)
    ends = commits_in(log)
    in_log = states[-len(ends) :]
    if len(ends) >= len(states):  # the log goes back to before there were tables
        in_log = [[] for _ in range(len(ends) - len(states))] + states
        return Image(main, log, ends, [[], *in_log])
    return Image(main, log, ends, [states[-len(ends) - 1], *in_log])


def reopened(directory: Path, main: bytes, log: bytes) -> Rows:
    """Open a ledger of these bytes as the next start does, and return its rows."""
    path = directory / "ledger.sqlite"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(main)
    Path(f"{path}-wal").write_bytes(log)
    with closing(Ledger(path)) as ledger:
        assert ledger.counts(FOLDER, 0.0) is not None
    return rows_of(path)


def positions(image: Image, seed: int, number: int) -> list[int]:
    """Choose places in the log: some anywhere, some beside a commit's end, and the ends of it all."""
    chance = random.Random(seed)
    anywhere = [chance.randrange(len(image.log)) for _ in range(number)]
    beside = [end + chance.choice((-1, 0, 1)) for end in chance.sample(image.ends, min(number, len(image.ends)))]
    ends = [0, 1, WAL_HEADER - 1, WAL_HEADER, len(image.log) - 1]
    return [at for at in (*ends, *anywhere, *beside) if at < len(image.log)]


def test_an_image_of_a_ledger_opens_as_what_it_was(image: Image, tmp_path: Path) -> None:
    assert len(image.ends) > 20
    assert reopened(tmp_path, image.main, image.log) == image.states[-1]
    assert image.states[0] != image.states[-1]


def test_a_log_that_is_cut_anywhere_opens_as_the_last_state_that_was_whole(image: Image, tmp_path: Path) -> None:
    wrong = [
        at for at in positions(image, 1, 40) if reopened(tmp_path, image.main, image.log[:at]) != image.expected(at)
    ]
    assert wrong == []


def test_a_log_with_a_byte_that_is_not_as_it_was_opens_as_the_state_before_it(image: Image, tmp_path: Path) -> None:
    chance = random.Random(2)
    wrong = []
    for at in positions(image, 3, 40):
        flipped = bytearray(image.log)
        flipped[at] ^= 1 << chance.randrange(8)
        expected = image.states[0] if at < WAL_HEADER else image.expected(at)
        if reopened(tmp_path, image.main, bytes(flipped)) != expected:
            wrong.append(at)
    assert wrong == []


def test_a_log_whose_end_was_never_written_opens_as_the_last_state_that_was_whole(image: Image, tmp_path: Path) -> None:
    """After a power cut a file may have its length, and zeros where its last blocks should be."""
    wrong = []
    for at in [place - place % 512 for place in positions(image, 4, 20)]:
        torn = image.log[:at] + bytes(len(image.log) - at)
        if reopened(tmp_path, image.main, torn) != (image.states[0] if at == 0 else image.expected(at)):
            wrong.append(at)
    assert wrong == []


def torn(log: bytes, how: str) -> bytes:
    """Cut a log after a part of its commits, or inside the last, or flip a bit in its middle."""
    ends = commits_in(log)
    if how == "flipped":
        at = ends[len(ends) // 2] + 100
        return log[:at] + bytes([log[at] ^ 1]) + log[at + 1 :]
    return log[
        : {"all": 0, "most": ends[len(ends) // 4], "half": ends[len(ends) // 2] + 1000, "last": ends[-1] - 1}[how]
    ]


@pytest.mark.parametrize("how", ["all", "most", "half", "flipped", "last"])
def test_what_a_torn_ledger_still_knows_is_not_sent_under_a_second_id(place: Place, sandbox: Sandbox, how: str) -> None:
    calls = put_calls(place, 8)
    with DaemonProcess(place.config, {"REHEARSAL_KILL": "sent:5"}, module="tests.rehearsal") as first:
        first.wait_for(lambda: first.over, "the kill")
        assert first.end() == -9
    log = Path(f"{place.ledger}-wal")
    whole = log.read_bytes()
    log.write_bytes(torn(whole, how))
    Path(f"{place.ledger}-shm").unlink()  # shared memory, which a power cut takes away
    known = {os.fsdecode(path): given for path, given in known_ids(place.ledger) if given}
    before = {each.transcription_id for each in sandbox.transcriptions()}

    with running(place) as second:
        left = {path for path in files_below(place.calls) if not path.startswith("done/")}
        second.wait_for(lambda: left <= {event["file"] for event in second.events("recording.done")}, "all done")

    assert len(whole) > len(torn(whole, how)) or how == "flipped"
    assert len(before) >= 5
    assert_delivered(calls, place, sandbox)
    ids: dict[str, set[str]] = {}
    for each in sandbox.transcriptions():
        ids.setdefault(f"{each.name}.wav", set()).add(each.transcription_id)
    assert {name: ids[name] for name in known} == {name: {given} for name, given in known.items()}
    assert max(len(each) for each in ids.values()) <= 2
    assert second.events("ledger.set_aside") == []
    if how in ("last", "half"):
        assert known, "this much of it was whole"


def known_ids(ledger: Path) -> list[tuple[bytes, str | None]]:
    """Return what a torn ledger knows of transcriptions, from a copy: to look is to mend it."""
    with tempfile.TemporaryDirectory() as directory:
        for suffix in ("", "-wal"):
            shutil.copy(f"{ledger}{suffix}", directory)
        with closing(sqlite3.connect(Path(directory) / ledger.name)) as db:
            if not db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'recordings'").fetchone()[0]:
                return []
            return db.execute("SELECT path, transcription_id FROM recordings").fetchall()


# A ledger that is damaged, or none


def older_ledger(place: Place, recordings: int = 400) -> None:
    """Make a ledger that has seen much, of the folder of the place."""
    with closing(Ledger(place.ledger)) as ledger:
        names = [f"{'old' * 20}-{at}.wav" for at in range(recordings)]
        ledger.add([Identity(str(place.calls), name, 1000, at) for at, name in enumerate(names)], NOW, mount="/")


def foreign_database(path: Path, application: int = 0, version: int = 0) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"PRAGMA application_id = {application}")
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("CREATE TABLE theirs (what TEXT)")
        db.executemany("INSERT INTO theirs VALUES (?)", [(f"row {at}",) for at in range(1000)])


def overwrite(path: Path, start: int, end: int | None = None, seed: int = 7) -> None:
    """Put bytes of no meaning over a part of a file."""
    with path.open("r+b") as file:
        end = end if end is not None else path.stat().st_size
        assert end > start
        file.seek(start)
        file.write(random.Random(seed).randbytes(end - start))


def damage(place: Place, how: str) -> None:
    """Leave something else in the ledger's place than a whole ledger; `how` is one of `DAMAGES`."""
    if how in NEVER_A_LEDGER:
        NEVER_A_LEDGER[how](place.ledger)
        return
    older_ledger(place)
    assert place.ledger.stat().st_size > 30_000
    SPOILED[how](place.ledger)


NEVER_A_LEDGER: Final[dict[str, Callable[[Path], object]]] = {
    "garbage": lambda path: path.write_bytes(random.Random(1).randbytes(50_000)),
    "a-text": lambda path: path.write_text("to do: buy milk\n" * 300),
    "one-byte": lambda path: path.write_bytes(b"x"),
    "anothers-database": foreign_database,
    "a-marked-database-of-anothers": lambda path: foreign_database(path, application=0x1234, version=1),
}
SPOILED: Final[dict[str, Callable[[Path], object]]] = {
    "header-overwritten": lambda path: overwrite(path, 0, 100),
    "first-page-overwritten": lambda path: overwrite(path, 100, 4096),
    "pages-overwritten": lambda path: overwrite(path, 4096),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut-off": lambda path: os.truncate(path, path.stat().st_size // 2 // 4096 * 4096),
}
DAMAGES: Final = [*NEVER_A_LEDGER, *SPOILED]
FOUND_LATER: Final = ("pages-overwritten", "cut-off")
"""Damage in pages that are read only when something is written."""


def assert_set_aside(daemon: DaemonProcess, place: Place) -> Path:
    """One line said so, and the file lies beside the new one; return where."""
    (event,) = daemon.events("ledger.set_aside")
    assert event["level"] == "error"
    assert str(place.ledger) in event["detail"]
    kept = Path(event["kept_as"])
    assert kept.parent == place.ledger.parent
    assert kept != place.ledger
    assert kept.name.startswith("ledger.sqlite")
    assert kept.exists()
    return kept


@pytest.mark.parametrize("how", DAMAGES)
def test_what_is_no_whole_ledger_is_set_aside_and_every_recording_delivered(
    place: Place, sandbox: Sandbox, how: str
) -> None:
    calls = put_calls(place, 3)
    damage(place, how)
    before = place.ledger.read_bytes()

    with running(place) as daemon:
        daemon.await_event("recording.done", 3)

    kept = assert_set_aside(daemon, place)
    if how in FOUND_LATER:
        assert len(kept.read_bytes()) >= len(before)
    else:
        assert kept.read_bytes() == before
    assert_delivered(calls, place, sandbox)
    assert len(sandbox.transcriptions()) == 3
    assert daemon.events("thread.died") == []
    assert len(rows_of(place.ledger)) == 3


@pytest.mark.parametrize("how", ["nothing", "empty"])
def test_where_there_is_no_ledger_or_an_empty_file_a_new_one_is_begun_without_a_word(
    place: Place, sandbox: Sandbox, how: str
) -> None:
    calls = put_calls(place, 2)
    if how == "empty":
        place.ledger.touch()

    with running(place) as daemon:
        daemon.await_event("recording.done", 2)

    assert_delivered(calls, place, sandbox)
    assert [event for event in daemon.events() if event["level"] != "info"] == []
    assert list(place.root.glob("ledger.sqlite.*")) == [Path(f"{place.ledger}.lock")]


def test_what_was_set_aside_before_is_not_overwritten_by_what_is_set_aside_later(
    place: Place, sandbox: Sandbox
) -> None:
    kept: dict[Path, bytes] = {}
    for number in range(3):
        place.ledger.write_bytes(b"no ledger %d" % number)
        Path(f"{place.ledger}-wal").unlink(missing_ok=True)
        calls = put_calls(place, 1, f"call-{number}")
        with running(place) as daemon:
            daemon.await_event("recording.done")
        kept[assert_set_aside(daemon, place)] = b"no ledger %d" % number
        assert {sha256(content) for content in calls.values()} <= set(contents(files_below(place.done)))
    assert len(kept) == 3
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(sandbox.transcriptions()) == 3


def damaged_with_its_log(place: Place, how: str) -> bytes:
    """Leave a ledger whose file is damaged beside its log, as it lies there after a kill, and return the log."""
    log = Path(f"{place.ledger}-wal")
    if how == "garbage":
        place.ledger.write_bytes(random.Random(1).randbytes(50_000))
        log.write_bytes(b"what lay in the log" * 100)
    else:
        older_ledger(place, 50)
        with closing(Ledger(place.ledger)) as ledger:
            ledger.add([Identity(str(place.calls), "late.wav", 1000, 1000)], NOW, mount="/")
            main, content = place.ledger.read_bytes(), log.read_bytes()
        place.ledger.write_bytes(main)
        log.write_bytes(content)
        overwrite(place.ledger, 0, 100)
        assert b"late.wav" in content
    return log.read_bytes()


@pytest.mark.parametrize("how", ["garbage", "header-overwritten"])
def test_a_log_that_lies_beside_is_set_aside_with_its_file(place: Place, sandbox: Sandbox, how: str) -> None:
    calls = put_calls(place, 2)
    log = damaged_with_its_log(place, how)

    with running(place) as daemon:
        daemon.await_event("recording.done", 2)

    kept = assert_set_aside(daemon, place)
    assert_delivered(calls, place, sandbox)
    assert Path(f"{kept}-wal").exists(), "what was only in the log is lost"
    assert Path(f"{kept}-wal").read_bytes() == log


def test_another_programs_database_loses_nothing_that_was_only_in_its_log(place: Place, sandbox: Sandbox) -> None:
    calls = put_calls(place, 1)
    theirs = place.root / "theirs.sqlite"
    with closing(sqlite3.connect(theirs)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        with db:
            db.execute("CREATE TABLE theirs (what TEXT)")
            db.execute("INSERT INTO theirs VALUES ('precious')")
        for suffix in ("", "-wal"):  # as they lie there when the other program is killed
            shutil.copy(f"{theirs}{suffix}", f"{place.ledger}{suffix}")

    with running(place) as daemon:
        daemon.await_event("recording.done")

    kept = assert_set_aside(daemon, place)
    with closing(sqlite3.connect(kept)) as db:
        assert db.execute("SELECT what FROM theirs").fetchall() == [("precious",)]
    assert_delivered(calls, place, sandbox)


def refused_start(place: Place) -> Event:
    """Start the daemon, which must end with 78 and one line of why, and leave all files alone."""
    before = ledger_files(place)
    with DaemonProcess(place.config) as daemon:
        daemon.wait_for(lambda: daemon.over, "its end")
        assert daemon.end() == 78, daemon.output
    (event,) = daemon.events("ledger.unusable", "config.invalid")
    assert daemon.events("ledger.set_aside", "daemon.started") == []
    assert "Traceback" not in daemon.output
    assert ledger_files(place) == before
    return event


def ledger_files(place: Place) -> dict[str, bytes | None]:
    return {
        path.name: path.read_bytes() if path.is_file() else None
        for path in place.root.glob("ledger.sqlite*")
        if not path.name.endswith((".lock", "-shm"))  # neither holds anything
    }


def test_a_directory_in_the_ledgers_place_ends_with_78(place: Place) -> None:
    place.ledger.mkdir()
    (place.ledger / "theirs").write_text("precious")
    put_calls(place, 1)

    event = refused_start(place)

    assert str(place.ledger) in json.dumps(event)
    assert "directory" in event["detail"]
    assert (place.ledger / "theirs").read_text() == "precious"
    assert (place.calls / "call-0.wav").exists()


def test_a_newer_heifyds_ledger_is_left_as_it_is_and_ends_with_78(place: Place) -> None:
    older_ledger(place)
    with closing(sqlite3.connect(place.ledger)) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        db.execute("PRAGMA user_version = 999")
    put_calls(place, 1)

    event = refused_start(place)

    assert "another version of heifyd" in event["detail"]
    assert "999" in event["detail"]
    assert (place.calls / "call-0.wav").exists()


# The commands


def heifyd(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "heifyd", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "300"},
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize(
    "how", ["a-log-beside-garbage", "a-log-beside", "anothers-database", "pages-overwritten", "a-directory", "newer"]
)
def test_a_command_on_a_damaged_ledger_says_one_line_and_moves_nothing(tmp_path: Path, how: str) -> None:
    place = make_place(tmp_path, "http://127.0.0.1:1", settings=QUICK)
    (place.failed).mkdir()
    (place.failed / "old.wav").write_bytes(sample(".wav"))
    if how == "a-directory":
        place.ledger.mkdir()
    elif how == "newer":
        foreign_database(place.ledger, APPLICATION_ID, 999)
    elif how.startswith("a-log"):
        damaged_with_its_log(place, "garbage" if how.endswith("garbage") else "header-overwritten")
    else:
        damage(place, how)
    before, moved_before = ledger_files(place), files_below(place.calls)

    for arguments in (["status"], ["retry", "--all"]):
        run = heifyd(*arguments, "--config", str(place.config))
        assert run.returncode == (78 if how == "a-directory" else 1), arguments
        assert len(run.stderr.splitlines()) == 1, run.stderr
        assert str(place.ledger) in run.stderr
        assert "Traceback" not in run.stdout + run.stderr
        assert API_KEY not in run.stdout + run.stderr
        assert ledger_files(place) == before, arguments
        assert files_below(place.calls) == moved_before, arguments


# Damaged while it runs


@dataclass(frozen=True)
class Service:
    """Runs of the daemon, as its service manager makes them: started again after 70, a few times at the most."""

    runs: list[DaemonProcess]

    def events(self, *names: str) -> list[Event]:
        return [event for run in self.runs for event in run.events(*names)]


def kept_running(place: Place, work: Callable[[DaemonProcess], None], most_starts: int = 4) -> Service:
    """Run the daemon, start it again where it ends with 70, and let `work` go on with it until it has done its work."""
    runs: list[DaemonProcess] = []
    while True:
        assert len(runs) < most_starts, "a crash loop:\n" + runs[-1].output
        with DaemonProcess(place.config, FAST, module="tests.rehearsal") as daemon:
            runs.append(daemon)
            try:
                work(daemon.started())
            except AssertionError:
                if not daemon.over:
                    raise
                assert daemon.end() == 70, daemon.output
                continue
            assert daemon.end() == 0, daemon.output
            return Service(runs)


def damage_running(place: Place, how: str) -> None:
    main, log = place.ledger, Path(f"{place.ledger}-wal")
    if "main" in how:
        overwrite(main, 0)
    if "log" in how:
        overwrite(log, WAL_HEADER)
    if "shm" in how:
        overwrite(Path(f"{place.ledger}-shm"), 0)


@pytest.mark.parametrize("how", ["main-and-log", "log", "main-log-and-shm"])
def test_a_ledger_that_is_damaged_while_the_daemon_runs_ends_up_set_aside_and_work_goes_on(
    place: Place, sandbox: Sandbox, how: str
) -> None:
    calls = put_calls(place, 4)
    more: dict[str, bytes] = {}

    def work(daemon: DaemonProcess) -> None:
        if not more:
            daemon.await_event("recording.done", 4)
            damage_running(place, how)
            more.update(put_calls(place, 4, "more"))
        daemon.wait_for(lambda: len(files_below(place.done)) == 8 or daemon.over, "the rest delivered")
        eventually(lambda: len(files_below(place.done)) == 8 or daemon.over, "the rest delivered")
        assert not daemon.over

    service = kept_running(place, work)

    assert_delivered(calls | more, place, sandbox)
    assert len(service.runs) <= 2
    with running(place) as again:
        last = put_calls(place, 1, "last")
        again.await_event("recording.done")
    # SQLite may have had all that it needed in its memory; then it was found out at the next start, or was healed.
    aside = [*service.events("ledger.set_aside"), *again.events("ledger.set_aside")]
    assert len(aside) <= 1
    assert all(Path(each["kept_as"]).exists() for each in aside)
    assert_delivered(calls | more | last, place, sandbox)
    assert max(Counter(each.sha256 for each in sandbox.transcriptions() if each.stored).values()) <= 2


def test_a_ledger_whose_old_pages_are_damaged_while_it_runs_stops_no_work(place: Place, sandbox: Sandbox) -> None:
    """SQLite reads what its log holds from there: the file below may be damaged without anybody's noticing."""
    calls = put_calls(place, 2)
    more: dict[str, bytes] = {}

    def work(daemon: DaemonProcess) -> None:
        if not more:
            daemon.await_event("recording.done", 2)
            damage_running(place, "main")
            more.update(put_calls(place, 4, "more"))
        eventually(lambda: len(files_below(place.done)) == 6 or daemon.over, "the rest delivered")
        assert not daemon.over

    service = kept_running(place, work)

    assert_delivered(calls | more, place, sandbox)
    assert len(service.events("ledger.set_aside")) <= 1
    with running(place) as again:
        last = put_calls(place, 1, "last")
        again.await_event("recording.done")
    assert_delivered(calls | more | last, place, sandbox)
