"""Whatever lies in a folder, or happens to it: nothing outside is touched, no worker hangs, good recordings pass."""

import ctypes
import json
import os
import random
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from heifyd.sandbox import Sandbox
from tests.acceptance.test_writers import assert_done_as, lent_to_nobody, stored, wav
from tests.harness import DaemonProcess, Place, eventually, files_below, make_place, need_root, running, sha256

QUICK = "settle_seconds: 0.3\nrescan_seconds: 0.5"
RECURSIVE = "recursive: true"
FAST = {"REHEARSAL_SPEED": "30"}
CANARY = wav(666)
NOT_AUDIO = b"this is not a recording " * 50

IN_OPEN, IN_ACCESS = 0x20, 0x1


@pytest.fixture
def place(tmp_path: Path, sandbox: Sandbox) -> Place:
    return make_place(tmp_path, sandbox.url, settings=QUICK, folder=RECURSIVE)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Give a directory beside the watched folder with a recording that is none of heifyd's business."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for path in (outside / "canary.wav", outside / "deep" / "canary.wav"):
        path.write_bytes(CANARY)
        os.utime(path, (1e9, 1e9))
    return outside


@contextmanager
def nobody_opens(path: Path) -> Iterator[None]:
    """Fail where a file, or a file right in a directory, is opened or read within the block (inotify(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    instance = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert instance >= 0
        assert libc.inotify_add_watch(instance, os.fsencode(path), IN_OPEN | IN_ACCESS) >= 0
        yield
        with suppress(BlockingIOError):
            assert os.read(instance, 4096) == b"", f"{path} was opened"
    finally:
        os.close(instance)


def by_file(daemon: DaemonProcess, event: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in daemon.events(event):
        found[each["file"]] = found.get(each["file"], 0) + 1
    return found


# What is no regular file


def device(path: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: reading it would never end


def block_device(path: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFBLK, os.makedev(7, 200))


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))


def put_traps(folder: Path, outside: Path) -> dict[str, str]:
    """Put into a folder what is no regular file but has a recording's name; return what each is, by its name."""
    inside = folder / "good.wav"
    (folder / "to-inside.wav").symlink_to(inside)
    (folder / "to-outside.wav").symlink_to(outside / "canary.wav")
    (folder / "to-outside-upwards.wav").symlink_to("../outside/canary.wav")
    (folder / "to-a-directory.wav").symlink_to(outside)
    (folder / "dangling.wav").symlink_to(folder / "nothing")
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "to-done.wav").symlink_to("done")
    os.mkfifo(folder / "fifo.wav")
    unix_socket(folder / "socket.wav")
    device(folder / "device.wav")
    block_device(folder / "block.wav")
    kinds = dict.fromkeys((path.name for path in folder.iterdir() if path.is_symlink()), "symlink")
    return kinds | {
        "fifo.wav": "FIFO",
        "socket.wav": "socket",
        "device.wav": "character device",
        "block.wav": "block device",
    }


@pytest.mark.parametrize("while_it_runs", [False, True], ids=["there-at-the-start", "made-while-it-runs"])
@pytest.mark.parametrize("recursive", [False, True], ids=["flat", "recursive"])
def test_what_is_no_regular_file_is_left_alone_and_told_of_and_what_lies_beside_it_passes(
    tmp_path: Path,
    sandbox: Sandbox,
    outside: Path,
    while_it_runs: bool,  # noqa: FBT001
    recursive: bool,  # noqa: FBT001
) -> None:
    need_root()
    place = make_place(tmp_path, sandbox.url, settings=QUICK, folder=RECURSIVE if recursive else "")
    expected = {"good.wav": wav(1), "later.wav": wav(2)}
    traps: dict[str, str] = {}

    def lay_out() -> None:
        traps.update(put_traps(place.calls, outside))
        (place.calls / "linked-sub-folder").symlink_to(outside)
        (place.calls / "directory.wav").mkdir()
        (place.calls / "directory.wav" / "inner.wav").write_bytes(wav(3))
        (place.calls / "good.wav").write_bytes(expected["good.wav"])

    if recursive:
        expected["directory.wav/inner.wav"] = wav(3)
    else:
        traps["directory.wav"] = "directory"
    if not while_it_runs:
        lay_out()
    with nobody_opens(outside), nobody_opens(outside / "deep"), running(place) as daemon:
        if while_it_runs:
            lay_out()
        for name in traps:
            daemon.await_event("recording.refused", file=name)
        daemon.send(signal.SIGUSR1)
        (place.calls / "later.wav").write_bytes(expected["later.wav"])
        for name in expected:
            daemon.await_event("recording.done", file=name)
        assert by_file(daemon, "recording.refused") == dict.fromkeys(traps, 1)
        assert {each["file"]: traps[each["file"]] in each["detail"] for each in daemon.events("recording.refused")} == (
            dict.fromkeys(traps, True)
        )
        assert_done_as(daemon, sandbox, expected)
    assert sorted(map(str, stored(sandbox))) == sorted(map(sha256, expected.values()))
    assert {path.name for path in place.calls.iterdir() if path.name in traps} == set(traps)
    assert sorted(files_below(outside)) == ["canary.wav", "deep/canary.wav"]


def test_two_names_of_one_file_are_two_recordings(place: Place, sandbox: Sandbox, outside: Path) -> None:
    content = wav(1)
    (place.calls / "first.wav").write_bytes(content)
    os.link(place.calls / "first.wav", place.calls / "second.wav")
    os.link(outside / "canary.wav", place.calls / "from-elsewhere.wav")  # no program can tell it from a file of its own
    with running(place) as daemon:
        daemon.await_event("recording.done", 3)
        assert_done_as(daemon, sandbox, {"first.wav": content, "second.wav": content, "from-elsewhere.wav": CANARY})
    assert sorted(files_below(place.calls)) == ["done/first.wav", "done/from-elsewhere.wav", "done/second.wav"]
    assert (outside / "canary.wav").read_bytes() == CANARY


# Directories that are swapped


def swap_for_a_symlink(sub: Path, outside: Path) -> None:
    """Put a symlink to `outside` in a sub-folder's place; a file there looks just like the one that was seen."""
    seen = (sub / "call.wav").stat()
    twin = outside / "call.wav"
    twin.write_bytes(CANARY)
    os.utime(twin, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert twin.stat().st_size == seen.st_size
    sub.rename(outside.parent / "swapped")
    sub.symlink_to(outside)


@pytest.mark.parametrize("moment", ["it waits", "it is sent"])
def test_a_sub_folder_that_is_swapped_for_a_symlink_leads_nowhere(
    place: Place, sandbox: Sandbox, outside: Path, moment: str
) -> None:
    sandbox.fail("request-upload-url 503" if moment == "it waits" else "drip")
    (place.calls / "sub").mkdir()
    content = wav(1, len(CANARY))
    (place.calls / "sub" / "call.wav").write_bytes(content)
    with running(place, FAST, module="tests.rehearsal") as daemon:
        daemon.await_event("hold.started" if moment == "it waits" else "upload.started")
        swap_for_a_symlink(place.calls / "sub", outside)
        assert stored(sandbox) == []
        with nobody_opens(outside):
            sandbox.clear_faults()
            (line,) = daemon.await_event("recording.refused", file="sub/call.wav")
            assert "symlink" in line["detail"]
            (place.calls / "good.wav").write_bytes(wav(2))
            daemon.await_event("recording.done", file="good.wav")
        assert by_file(daemon, "recording.done") == {"good.wav": 1}
        assert sorted(files_below(outside)) == ["call.wav", "canary.wav", "deep/canary.wav"]
        assert sorted(files_below(place.root / "swapped")) == ["call.wav"]
        (place.calls / "sub").unlink()
        (place.root / "swapped").rename(place.calls / "sub")
        daemon.await_event("recording.done", file="sub/call.wav")
        assert_done_as(daemon, sandbox, {"sub/call.wav": content, "good.wav": wav(2)})
    assert sorted(map(str, stored(sandbox))) == sorted(map(sha256, (content, wav(2))))


def test_sub_folders_that_are_renamed_while_their_recordings_wait_are_sent_from_where_they_are(
    place: Place, sandbox: Sandbox
) -> None:
    sandbox.fail("request-upload-url 503")
    names = [f"{number}/deep/call.wav" for number in range(20)]
    for number, name in enumerate(names):
        (place.calls / name).parent.mkdir(parents=True)
        (place.calls / name).write_bytes(wav(number))
    with running(place, FAST, module="tests.rehearsal") as daemon:
        daemon.await_event("hold.started")
        daemon.await_event("recording.settled", len(names))
        for number in range(len(names)):
            (place.calls / f"{number}").rename(place.calls / f"renamed-{number}")
        sandbox.clear_faults()
        expected = {f"renamed-{name}": wav(number) for number, name in enumerate(names)}
        daemon.await_event("recording.done", len(names))
        for name in names:
            daemon.await_event("recording.vanished", file=name)
        assert_done_as(daemon, sandbox, expected)
    assert len(stored(sandbox)) == len(names)
    assert {path: file.read_bytes() for path, file in files_below(place.done).items()} == expected


def test_a_folder_that_another_directory_replaces_is_watched_in_its_new_place(place: Place, sandbox: Sandbox) -> None:
    sandbox.fail("request-upload-url 503")
    (place.calls / "old.wav").write_bytes(wav(1))
    away = place.root / "away"
    with running(place, FAST, module="tests.rehearsal") as daemon:
        daemon.await_event("hold.started")
        place.calls.rename(away)
        place.calls.mkdir()
        daemon.await_event("folder.back")
        sandbox.clear_faults()
        (place.calls / "new.wav").write_bytes(wav(2))
        daemon.await_event("recording.done", file="new.wav")
        daemon.await_event("recording.vanished", file="old.wav")
        assert_done_as(daemon, sandbox, {"new.wav": wav(2)})
    assert sorted(files_below(away)) == ["old.wav"]
    assert stored(sandbox) == [sha256(wav(2))]


# Permissions


def test_what_cannot_be_read_is_told_of_and_passes_by_itself_once_it_can(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    expected = {"locked.wav": wav(1), "locked/call.wav": wav(2), "unlisted/call.wav": wav(3), "good.wav": wav(4)}
    for name, content in expected.items():
        (place.calls / name).parent.mkdir(exist_ok=True)
        (place.calls / name).write_bytes(content)
    how = lent_to_nobody(tmp_path)
    os.chown(place.calls / "locked.wav", 0, 0)
    (place.calls / "locked.wav").chmod(0)
    (place.calls / "locked").chmod(0)
    (place.calls / "unlisted").chmod(0o600)  # its names can be read, and nothing else
    with running(place, **how) as daemon:
        (refused,) = daemon.await_event("recording.refused", file="locked.wav")
        assert "Permission denied" in refused["detail"]
        for name in ("locked", "unlisted"):
            eventually(lambda name=name: name in str(daemon.events("folder.unreadable")), f"a line about {name}")  # type: ignore[misc]
        daemon.await_event("recording.done", file="good.wav")
        assert by_file(daemon, "recording.done") == {"good.wav": 1}
        (place.calls / "locked.wav").chmod(0o644)
        (place.calls / "locked").chmod(0o700)
        (place.calls / "unlisted").chmod(0o700)
        daemon.await_event("recording.done", len(expected))
        assert_done_as(daemon, sandbox, expected)
        assert by_file(daemon, "recording.refused") == {"locked.wav": 1}
    assert len(stored(sandbox)) == len(expected)


# Names

NAMES = [
    b"a line\nbreak.wav",
    b"a return\rand a tab\t.wav",
    b"quo\"te's `and` \\back\\slashes.wav",
    b'","event":"recording.done","file":"forged.wav',
    bytes(range(1, 0x20)) + b"\x7f.wav",
    b"\x1b[31mred\x1b]0;title\x07.wav",
    b"\xff\xfe\x80.wav",
    "latin-1 é.wav".encode("latin-1"),
    b"\xed\xa0\x80 a surrogate as UTF-8.wav",
    b"x" * 251 + b".wav",
    "ü".encode() * 125 + b"\xff.wav",
    b"-rf.wav",
    b"--config=x.wav",
    b"~.wav",
    b"~root.wav",
    b"%s%n{}{0.__class__}{stem}.wav",
    b"$(id) `id` ;id &.wav",
    b"*?[a-z]!.wav",
    b" leading and trailing .wav",
    b"a..wav",
    b"call.wav.wav",
    b"NUL.wav",
    b"<b>&amp;.wav",
    "\u202egnp.wav".encode(),
    "\u2028\u2029\u0085.wav".encode(),
    "\N{PILE OF POO}\N{ZERO WIDTH JOINER}.wav".encode(),
    b"Case.wav",
    b"case.wav",
    b"case.WAV",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}.wav".encode(),
    "cafe\N{COMBINING ACUTE ACCENT}.wav".encode(),
]


@pytest.mark.parametrize("where", ["done", "failed"])
def test_every_name_a_file_system_allows_works_and_is_told_exactly(place: Place, sandbox: Sandbox, where: str) -> None:
    below = [name.replace(b".", b"")[:200] + b"/" + name for name in NAMES]
    content = {
        os.fsdecode(name): wav(number) if where == "done" else NOT_AUDIO + bytes([number])
        for number, name in enumerate([*NAMES, *below])
    }
    for number, (name, data) in enumerate(content.items()):
        if number % 2:
            (place.calls / name).parent.mkdir(exist_ok=True)
            (place.calls / name).write_bytes(data)
    with running(place) as daemon:
        for number, (name, data) in enumerate(content.items()):
            if not number % 2:
                (place.calls / name).parent.mkdir(exist_ok=True)
                (place.calls / name).write_bytes(data)
        events = daemon.await_event(f"recording.{where}", len(content))
        assert {os.fsencode(each["file"]) for each in events} == {*NAMES, *below}
        assert len(events) == len(content)
        for each in events:
            assert os.fsencode(each["filed_at"]) == os.fsencode(place.calls / where / each["file"])
        if where == "done":
            assert_done_as(daemon, sandbox, content)
    assert all(isinstance(json.loads(line), dict) for line in daemon.lines)
    assert not {character for character in daemon.output if character < " " and character != "\n"}
    filed = {path: file for path, file in files_below(place.calls).items() if not path.endswith(".error.json")}
    assert {path: file.read_bytes() for path, file in filed.items()} == {
        f"{where}/{name}": data for name, data in content.items()
    }
    explained = {
        json.loads(file.read_bytes())["file"]
        for path, file in files_below(place.calls).items()
        if path.endswith(".error.json")
    }
    assert explained == (set() if where == "done" else set(content))


def test_a_thousand_recordings_of_one_name_in_as_many_sub_folders_are_a_thousand_recordings(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    place = make_place(tmp_path, sandbox.url, settings=f"{QUICK}\nworkers: 8", folder=RECURSIVE)
    expected = {f"{number // 50}/{number}/call.wav": wav(number, 1000) for number in range(1000)}
    for name, content in expected.items():
        (place.calls / name).parent.mkdir(parents=True)
        (place.calls / name).write_bytes(content)
    with running(place) as daemon:
        daemon.await_event("recording.done", len(expected))
        assert_done_as(daemon, sandbox, expected)
    assert len(stored(sandbox)) == len(expected)
    assert {path: file.read_bytes() for path, file in files_below(place.calls).items()} == {
        f"done/{name}": content for name, content in expected.items()
    }


@pytest.mark.parametrize("part", ["sub", "x" * 100], ids=["short", "longer-than-a-path-may-be"])
def test_a_tree_sixty_deep_is_gone_into_even_where_no_path_can_name_a_recording(
    place: Place, sandbox: Sandbox, part: str
) -> None:
    deep = "/".join([part] * 60)
    is_too_long = len(os.fspath(place.calls / deep)) > os.pathconf(place.calls, "PC_PATH_MAX")
    with running(place) as daemon:
        with ExitStack() as opened:
            at = os.open(place.calls, os.O_RDONLY)
            opened.callback(os.close, at)
            for name in deep.split("/"):
                os.mkdir(name, dir_fd=at)
                at = os.open(name, os.O_RDONLY, dir_fd=at)
                opened.callback(os.close, at)
            for name, content in (("call.wav", wav(1)), ("bad.wav", NOT_AUDIO)):
                with open(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=at), "wb") as file:
                    file.write(content)
        (place.calls / "good.wav").write_bytes(wav(2))
        daemon.await_event("recording.done", file="good.wav")
        daemon.await_event("recording.done", file=f"{deep}/call.wav")
        daemon.await_event("recording.failed", file=f"{deep}/bad.wav")
        assert_done_as(daemon, sandbox, {"good.wav": wav(2), f"{deep}/call.wav": wav(1)})
        assert len(daemon.events("filing.unexplained")) == is_too_long


# Places that files cannot be moved to


def a_file(target: Path, _: Path) -> None:
    target.write_bytes(b"in the way")


def a_symlink(target: Path, outside: Path) -> None:
    target.symlink_to(outside)


def a_dangling_symlink(target: Path, outside: Path) -> None:
    target.symlink_to(outside / "nothing")


def a_fifo(target: Path, _: Path) -> None:
    os.mkfifo(target)


def a_symlink_further_down(target: Path, outside: Path) -> None:
    target.mkdir()
    (target / "sub").symlink_to(outside)


OBSTACLES = (a_file, a_symlink, a_dangling_symlink, a_fifo, a_symlink_further_down)


def clear(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        (target / "sub").unlink()
    else:
        target.unlink()


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda obstacle: obstacle.__name__)
def test_what_is_in_the_way_of_done_and_failed_holds_the_folder_until_it_is_gone(
    place: Place, sandbox: Sandbox, outside: Path, obstacle: Callable[[Path, Path], None]
) -> None:
    good = {f"sub/{number}.wav": wav(number) for number in range(5)}
    with running(place, FAST, module="tests.rehearsal") as daemon:
        for target in (place.done, place.failed):
            obstacle(target, outside)
        (place.calls / "sub").mkdir()
        for name, content in good.items():
            (place.calls / name).write_bytes(content)
        (place.calls / "sub" / "bad.wav").write_bytes(NOT_AUDIO)
        (hold,) = daemon.await_event("hold.started")
        assert (hold["scope"], hold["owner"], hold["reason"]) == (os.fspath(place.calls), "folder", "filing")
        waiting = sorted(files_below(place.calls / "sub"))
        assert waiting == sorted(["bad.wav", *(name.removeprefix("sub/") for name in good)])
        for target in (place.done, place.failed):
            clear(target)
        daemon.await_event("hold.ended", owner="folder")
        daemon.await_event("recording.failed", file="sub/bad.wav")
        daemon.await_event("recording.done", len(good))
        assert_done_as(daemon, sandbox, good)
        assert len(daemon.events("hold.started")) == 1
    assert sorted(map(str, stored(sandbox))) == sorted(map(sha256, good.values()))
    assert [each.puts for each in sandbox.transcriptions()] == [1] * len(good)
    assert sorted(files_below(place.calls)) == sorted(
        [*(f"done/{name}" for name in good), "failed/sub/bad.wav", "failed/sub/bad.wav.error.json"]
    )
    assert sorted(files_below(outside)) == ["canary.wav", "deep/canary.wav"]


def test_while_done_cannot_be_written_to_nothing_is_sent_twice_and_it_ends_by_itself(
    place: Place, sandbox: Sandbox, tmp_path: Path
) -> None:
    good = {f"{number}.wav": wav(number) for number in range(5)}
    for target in (place.done, place.failed):
        target.mkdir()
    how = lent_to_nobody(tmp_path)
    for target in (place.done, place.failed):
        os.chown(target, 0, 0)
    with running(place, FAST, module="tests.rehearsal", **how) as daemon:
        for name, content in good.items():
            (place.calls / name).write_bytes(content)
            os.chown(place.calls / name, 65534, 65534)
        (place.calls / "bad.wav").write_bytes(NOT_AUDIO)
        os.chown(place.calls / "bad.wav", 65534, 65534)
        (hold,) = daemon.await_event("hold.started")
        assert (hold["owner"], hold["reason"]) == ("folder", "filing")
        assert "Permission denied" in hold["detail"]
        for target in (place.done, place.failed):
            os.chown(target, 65534, 65534)
        daemon.await_event("recording.failed", file="bad.wav")
        daemon.await_event("recording.done", len(good))
        assert_done_as(daemon, sandbox, good)
        assert len(daemon.events("hold.started")) == 1
    assert [each.puts for each in sandbox.transcriptions()] == [1] * len(good)


def test_no_name_that_is_taken_in_done_or_failed_is_overwritten(place: Place, sandbox: Sandbox) -> None:
    names = ["call.wav", "x" * 251 + ".wav", "call~1.wav"]
    bad = "bad.wav"
    taken: dict[str, bytes] = {}
    for target in ("done", "failed"):
        (place.calls / target).mkdir()
        for stem in ("call", "bad", "x" * 249, "x" * 248, "x" * 251):
            for number in ("", *(f"~{number}" for number in range(1, 30))):
                name = f"{target}/{stem}{number}.wav"
                if len(name.rpartition("/")[2]) <= 255:
                    taken[name] = f"{name} was there before".encode()
    (place.done / "call~30.wav").mkdir()
    (place.done / "call~31.wav").symlink_to("nowhere")
    for name, content in taken.items():
        (place.calls / name).write_bytes(content)
    expected = {name: wav(number) for number, name in enumerate(names)}
    with running(place) as daemon:
        for name, content in {**expected, bad: NOT_AUDIO}.items():
            (place.calls / name).write_bytes(content)
        daemon.await_event("recording.done", len(expected))
        daemon.await_event("recording.failed", file=bad)
        assert_done_as(daemon, sandbox, expected)
        filed = {each["file"]: Path(each["filed_at"]) for each in daemon.events("recording.done", "recording.failed")}
    assert filed["call.wav"] == place.done / "call~32.wav"
    assert filed[bad] == place.failed / "bad~30.wav"
    assert {name: path.read_bytes() for name, path in filed.items()} == {**expected, bad: NOT_AUDIO}
    assert {name: (place.calls / name).read_bytes() for name in taken} == taken


# Files that vanish


def test_recordings_that_vanish_in_masses_harm_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    place = make_place(tmp_path, sandbox.url, settings="settle_seconds: 0.05", folder=RECURSIVE)
    sandbox.fail("request-upload-url 503")
    good = {f"good-{number}.wav": wav(number, 1000) for number in range(20)}
    content = wav(1000, 1000)
    chance = random.Random(1)

    def come_and_go(numbers: range) -> None:
        living: list[Path] = []
        for number in numbers:
            path = place.calls / f"{number % 7}" / f"gone-{number}.wav"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            living.append(path)
            if len(living) > 300:
                living.pop(chance.randrange(len(living))).unlink()
            if number % 100 == 0:
                daemon.send(signal.SIGUSR1)
            time.sleep(0.0005)  # some of them live for longer than the settle time
        for path in living:
            path.unlink()

    with running(place, FAST, module="tests.rehearsal") as daemon:
        makers = [threading.Thread(target=come_and_go, args=(range(at, at + 1000),)) for at in (0, 1000)]
        for maker in makers:
            maker.start()
        for name, data in good.items():
            (place.calls / name).write_bytes(data)
        for maker in makers:
            maker.join()
        daemon.await_event("hold.started", owner="service")
        sandbox.clear_faults()
        settled = {each["file"] for each in daemon.events("recording.settled")} - set(good)
        assert len(settled) > 100, "hardly any was seen before it vanished"
        daemon.await_event("recording.done", len(good))
        eventually(
            lambda: settled <= {each["file"] for each in daemon.events("recording.vanished")}, "a line about each gone"
        )
        assert_done_as(daemon, sandbox, good)
        assert len(daemon.events("recording.done")) == len(good)
    assert sorted(map(str, stored(sandbox))) == sorted(map(sha256, good.values()))
