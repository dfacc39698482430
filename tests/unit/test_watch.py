"""Which paths may have changed: the scan that is the truth, and the hints between two scans."""

import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from heifyd import tree, watch
from heifyd.mounts import Mount
from heifyd.watch import MOST_HINTS, SCAN_CHUNK, Entry, Hints, Observing, Walk, plan

DEADLINE_S = 10.0


def everything(_path: str) -> bool:
    return True


def a_wav(path: str) -> bool:
    return path.endswith(".wav")


def nobody(path: str, error: OSError) -> None:
    raise AssertionError(path) from error


def scanned(
    folder: Path,
    *,
    recursive: bool = True,
    wanted: Callable[[str], bool] = a_wav,
    enter: Callable[[str], bool] = everything,
) -> list[Entry]:
    """Scan a folder whole."""
    with tree.opened(tree.open_root(folder)) as root:
        walk = Walk(recursive, wanted, enter, nobody)
        chunks = watch.scan(root, walk)
        return [entry for chunk in chunks for entry in chunk]


def paths(entries: list[Entry]) -> list[str]:
    return sorted(entry.path for entry in entries)


def test_a_scan_finds_every_recording_with_its_stamp_whatever_its_name(tmp_path: Path, odd_name: str) -> None:
    (tmp_path / odd_name).write_bytes(b"RIFF")
    (tmp_path / "2026" / "07").mkdir(parents=True)
    (tmp_path / "2026" / "07" / odd_name).write_bytes(b"RIFF!")

    found = {entry.path: entry for entry in scanned(tmp_path)}

    assert sorted(found) == sorted([odd_name, f"2026/07/{odd_name}"])
    assert found[odd_name].stamp.size_bytes == 4
    assert found[f"2026/07/{odd_name}"].stamp.mtime_ns == (tmp_path / "2026" / "07" / odd_name).stat().st_mtime_ns
    assert all(watch.is_regular(entry) for entry in found.values())


def test_a_large_folder_comes_in_chunks_that_lose_nothing(tmp_path: Path) -> None:
    names = {f"{number}.wav" for number in range(2 * SCAN_CHUNK + 3)}
    for name in names:
        (tmp_path / name).touch()

    with tree.opened(tree.open_root(tmp_path)) as root:
        chunks = list(watch.scan(root, Walk(False, everything, everything, nobody)))

    assert [len(chunk) for chunk in chunks] == [SCAN_CHUNK, SCAN_CHUNK, 3]
    assert {entry.path for chunk in chunks for entry in chunk} == names


def test_sub_folders_are_entered_only_when_recursive(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.wav").touch()
    (tmp_path / "b.wav").touch()

    assert paths(scanned(tmp_path, recursive=False)) == ["b.wav"]
    assert paths(scanned(tmp_path)) == ["b.wav", "sub/a.wav"]


def test_sub_folders_that_are_not_to_be_entered_are_passed_over_whole(tmp_path: Path) -> None:
    for sub in (".hidden/deep", "done/2026", "sales/done", "sales"):
        (tmp_path / sub).mkdir(parents=True, exist_ok=True)
        (tmp_path / sub / "a.wav").touch()
    asked: list[str] = []

    def enter(path: str) -> bool:
        asked.append(path)
        return path != "done" and not path.rpartition("/")[2].startswith(".")

    assert paths(scanned(tmp_path, enter=enter)) == ["sales/a.wav", "sales/done/a.wav"]
    assert sorted(asked) == [".hidden", "done", "sales", "sales/done"]


def test_symlinks_and_other_kinds_are_told_of_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.wav").touch()
    (tmp_path / "link.wav").symlink_to("real", target_is_directory=True)
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe.wav")

    found = {entry.path: entry for entry in scanned(tmp_path)}

    assert sorted(found) == ["link.wav", "pipe.wav", "real/a.wav"]
    assert [path for path, entry in found.items() if watch.is_regular(entry)] == ["real/a.wav"]


def test_what_vanishes_during_the_walk_is_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.wav").touch()
    (tmp_path / "gone.wav").touch()
    (tmp_path / "stays.wav").touch()

    def wanted(path: str) -> bool:
        (tmp_path / "gone.wav").unlink(missing_ok=True)
        if path == "gone.wav":
            (tmp_path / "b" / "x.wav").unlink()
            (tmp_path / "b").rmdir()
        return path.endswith(".wav")

    assert paths(scanned(tmp_path, wanted=wanted)) == ["a/x.wav", "stays.wav"]


def test_a_sub_folder_that_becomes_a_symlink_during_the_walk_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "calls" / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.wav").touch()

    def enter(path: str) -> bool:
        (tmp_path / "calls" / path).rmdir()
        (tmp_path / "calls" / path).symlink_to(tmp_path / "outside")
        return True

    assert scanned(tmp_path / "calls", enter=enter) == []


@contextmanager
def as_nobody() -> Iterator[None]:
    """Do without root's right to read everything, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_sub_folder_that_cannot_be_read_is_told_of_and_hides_no_other() -> None:
    told: list[tuple[str, int | None]] = []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        for sub in ("a", "locked", "z"):
            (folder / sub).mkdir()
            (folder / sub / "call.wav").touch()
        (folder / "locked").chmod(0)
        walk = Walk(True, everything, everything, lambda path, error: told.append((path, error.errno)))

        with as_nobody(), tree.opened(tree.open_root(folder)) as root:
            found = [entry for chunk in watch.scan(root, walk) for entry in chunk]

    assert [path for path in paths(found) if a_wav(path)] == ["a/call.wav", "z/call.wav"]
    assert told == [("locked", errno.EACCES)]


def test_a_scan_that_is_given_up_leaves_no_descriptor_open(tmp_path: Path) -> None:
    for number in range(SCAN_CHUNK + 1):
        (tmp_path / f"{number}.wav").touch()
    before = len(os.listdir("/proc/self/fd"))

    with tree.opened(tree.open_root(tmp_path)) as root:
        scan = watch.scan(root, Walk(True, everything, everything, nobody))
        next(scan)
        del scan

    assert len(os.listdir("/proc/self/fd")) == before


def test_hints_are_given_once_each_in_their_order() -> None:
    hints = Hints()
    for path in ("b.wav", "a.wav", "b.wav"):
        hints.stir(path)

    assert hints.take(0.0) == (["b.wav", "a.wav"], False)
    assert hints.take(0.0) == ([], False)


def test_more_hints_than_memory_is_set_aside_for_become_a_scan() -> None:
    hints = Hints()
    for number in range(MOST_HINTS + 5):
        hints.stir(f"{number}.wav")

    taken, is_scan_asked = hints.take(0.0)

    assert len(taken) == MOST_HINTS
    assert is_scan_asked
    assert hints.take(0.0) == ([], False)


@pytest.mark.parametrize("act", [Hints.scan, Hints.close, lambda hints: hints.stir("a.wav")])
def test_whoever_waits_for_hints_is_woken(act: object) -> None:
    assert callable(act)
    hints = Hints()
    began_s = time.monotonic()
    waker = threading.Thread(target=act, args=(hints,))
    waker.start()
    hints.take(DEADLINE_S)
    waker.join()

    assert time.monotonic() - began_s < DEADLINE_S


@pytest.fixture
def observing() -> Iterator[Observing]:
    made = Observing()
    made.start()
    yield made
    made.stop()


def wait_for(hints: Hints, path: str) -> None:
    """Wait until `path` is hinted at."""
    until_s = time.monotonic() + DEADLINE_S
    seen: list[str] = []
    while path not in seen:
        assert time.monotonic() < until_s, f"no hint of {path!r}, only of {seen}"
        seen += hints.take(until_s - time.monotonic())[0]


def test_a_file_that_is_written_is_hinted_at_whatever_its_name(
    tmp_path: Path, observing: Observing, odd_name: str
) -> None:
    hints = Hints()
    observing.watch(os.fspath(tmp_path), hints, recursive=False)

    (tmp_path / odd_name).write_bytes(b"RIFF")

    wait_for(hints, odd_name)


def test_a_file_that_is_moved_into_place_is_hinted_at_under_its_new_name(tmp_path: Path, observing: Observing) -> None:
    (tmp_path / "calls").mkdir()
    (tmp_path / "outside.part").write_bytes(b"RIFF")
    (tmp_path / "calls" / "inside.part").write_bytes(b"RIFF")
    hints = Hints()
    observing.watch(os.fspath(tmp_path / "calls"), hints, recursive=True)

    (tmp_path / "outside.part").rename(tmp_path / "calls" / "a.wav")
    wait_for(hints, "a.wav")
    (tmp_path / "calls" / "inside.part").rename(tmp_path / "calls" / "b.wav")
    wait_for(hints, "b.wav")


@pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")  # watchdog 7.1 meets a new sub-folder twice
def test_a_sub_folder_that_is_made_later_is_watched_too(tmp_path: Path, observing: Observing) -> None:
    hints = Hints()
    observing.watch(os.fspath(tmp_path), hints, recursive=True)

    (tmp_path / "2026" / "07").mkdir(parents=True)
    (tmp_path / "2026" / "07" / "first.wav").write_bytes(b"RIFF")

    wait_for(hints, "2026/07/first.wav")


def test_a_folder_that_comes_back_is_watched_anew(tmp_path: Path, observing: Observing) -> None:
    folder = tmp_path / "calls"
    hints = Hints()
    folder.mkdir()
    observing.watch(os.fspath(folder), hints, recursive=True)
    folder.rmdir()
    folder.mkdir()
    observing.watch(os.fspath(folder), hints, recursive=True)

    (folder / "a.wav").write_bytes(b"RIFF")

    wait_for(hints, "a.wav")


def test_a_folder_that_is_not_there_cannot_be_watched_and_can_be_later(tmp_path: Path, observing: Observing) -> None:
    folder = tmp_path / "calls"
    hints = Hints()
    with pytest.raises(FileNotFoundError):
        observing.watch(os.fspath(folder), hints, recursive=True)

    folder.mkdir()
    observing.watch(os.fspath(folder), hints, recursive=True)
    (folder / "a.wav").write_bytes(b"RIFF")

    wait_for(hints, "a.wav")


def test_a_folder_whose_sub_folders_got_no_watch_is_not_taken_for_watched(
    tmp_path: Path, observing: Observing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "no_watches_left", lambda: True)

    with pytest.raises(OSError, match="watch limit") as raised:
        observing.watch(os.fspath(tmp_path), Hints(), recursive=True)
    assert raised.value.errno == errno.ENOSPC
    observing.watch(os.fspath(tmp_path), Hints(), recursive=False)


def test_asking_whether_watches_are_left_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))

    assert not watch.no_watches_left()
    assert len(os.listdir("/proc/self/fd")) == before


MOUNTS = [Mount("/", "ext4"), Mount("/srv/share", "cifs")]


def test_a_share_is_polled_and_a_local_folder_is_not() -> None:
    assert plan("/srv/share/calls", "auto", MOUNTS).kind == "poll"
    assert plan("/srv/share/calls", "auto", MOUNTS).remote
    assert plan("/srv/calls", "auto", MOUNTS).kind == "events"
    assert not plan("/srv/calls", "auto", MOUNTS).remote


def test_the_configuration_decides_how_to_watch_but_not_whether_it_is_a_share() -> None:
    assert (plan("/srv/share", "events", MOUNTS).kind, plan("/srv/share", "events", MOUNTS).remote) == ("events", True)
    assert (plan("/srv/calls", "poll", MOUNTS).kind, plan("/srv/calls", "poll", MOUNTS).remote) == ("poll", False)
