"""Moving a file: never over another, never losing a byte, across file systems too, and to its end if it is cut off."""

import ctypes
import errno
import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heifyd import filing
from heifyd.filing import ChangedError
from heifyd.recording import Identity, Stamp

SHARED_MEMORY = Path("/dev/shm")


def identity(folder: Path, path: str) -> Identity:
    return Stamp.of(os.lstat(folder / path)).identity(os.fspath(folder), path)


def put(folder: Path, path: str, content: bytes, *, mtime_ns: int | None = None) -> Identity:
    """Put a recording into a folder."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    if mtime_ns is not None:
        os.utime(file, ns=(mtime_ns, mtime_ns))
    return identity(folder, path)


def files_below(directory: Path) -> dict[str, bytes]:
    """Read everything below a directory, hidden names too."""
    return {
        os.path.relpath(os.path.join(at, name), directory): Path(at, name).read_bytes()
        for at, _, names in os.walk(directory)
        for name in names
    }


def must_differ(one: Path, other: Path) -> None:
    if not other.is_dir() or one.stat().st_dev == other.stat().st_dev:
        pytest.skip(
            f"{other} is not another file system than {one}, so a move across file systems cannot be tested here"
        )


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Path]:
    """Give a directory on another file system."""
    must_differ(tmp_path, SHARED_MEMORY)
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as directory:
        yield Path(directory)


@pytest.fixture(params=["inside", "beside", "far"])
def target(request: pytest.FixtureRequest, calls: Path) -> Path:
    """Give each kind of place that files go to: in the folder, beside it, on another file system."""
    if request.param == "far":
        far: Path = request.getfixturevalue("far")
        return far / "done"
    return calls / "done" if request.param == "inside" else calls.parent / "archive" / "done"


def test_a_file_is_moved_whole_with_its_sub_folders_and_times(calls: Path, target: Path) -> None:
    found = put(calls, "2026/07/call.wav", os.urandom(3_000_000), mtime_ns=1_700_000_000_123_456_789)
    (calls / "2026/07/call.wav").chmod(0o640)
    content = (calls / "2026/07/call.wav").read_bytes()

    filed_at = filing.move(found, target)

    assert filed_at == os.fspath(target / "2026/07/call.wav")
    assert files_below(target) == {"2026/07/call.wav": content}
    assert not (calls / "2026/07/call.wav").exists()
    status = os.stat(filed_at)
    assert (status.st_mtime_ns, stat.S_IMODE(status.st_mode)) == (1_700_000_000_123_456_789, 0o640)


def test_any_name_can_be_filed_twice_and_brought_back(calls: Path, target: Path, odd_name: str) -> None:
    for content in (b"first", b"second"):
        filed_at = filing.move(put(calls, odd_name, content), target)
        assert Path(filed_at).read_bytes() == content
        assert filed_at.endswith(".wav")
    assert sorted(files_below(target).values()) == [b"first", b"second"]

    explained_at = filing.explain(filed_at, {"file": odd_name})
    back = filing.bring_back(filed_at, Identity(os.fspath(calls), odd_name, 0, 0))

    assert back == os.path.join(calls, odd_name)
    assert Path(back).read_bytes() == b"second"
    assert not os.path.lexists(explained_at)


def test_a_name_that_is_taken_gets_a_number_before_its_extension(calls: Path, target: Path) -> None:
    names = [os.path.basename(filing.move(put(calls, "call.wav", str(n).encode()), target)) for n in range(3)]

    assert names == ["call.wav", "call~1.wav", "call~2.wav"]
    assert files_below(target) == {"call.wav": b"0", "call~1.wav": b"1", "call~2.wav": b"2"}


@pytest.mark.parametrize("kind", ["directory", "symlink", "dangling symlink"])
def test_a_name_is_taken_whatever_has_it(calls: Path, target: Path, kind: str) -> None:
    target.mkdir(parents=True)
    (target.parent / "precious").write_bytes(b"precious")
    if kind == "directory":
        (target / "call.wav").mkdir()
    else:
        (target / "call.wav").symlink_to(target.parent / ("precious" if kind == "symlink" else "nothing"))

    filed_at = filing.move(put(calls, "call.wav", b"call"), target)

    assert filed_at == os.fspath(target / "call~1.wav")
    assert (target.parent / "precious").read_bytes() == b"precious"
    assert not (target.parent / "nothing").exists()


NAMES = st.sampled_from(
    ["call.wav", "call~1.wav", "call~2.wav", "a/call.wav", "b/call.wav", "call", "x" * 251 + ".wav"]
)


@given(taken=st.sets(NAMES), moved=st.lists(NAMES, max_size=6), is_far=st.booleans())
@settings(max_examples=60)
def test_nothing_is_overwritten_and_no_byte_is_lost_whatever_names_collide(
    taken: set[str],
    moved: list[str],
    is_far: bool,  # noqa: FBT001
) -> None:
    with (
        tempfile.TemporaryDirectory() as near,
        tempfile.TemporaryDirectory(dir=SHARED_MEMORY if is_far else near) as to,
    ):
        calls, target = Path(near) / "calls", Path(to) / "done"
        calls.mkdir()
        for name in taken:
            put(target, name, b"taken: " + name.encode(), mtime_ns=1)
        before = files_below(target)

        for number, name in enumerate(moved):
            filing.move(put(calls, name, b"call %03d" % number, mtime_ns=1), target)

        after = files_below(target)
        assert {name: after.get(name) for name in before} == before
        expected = [*before.values(), *(b"call %03d" % number for number in range(len(moved)))]
        assert Counter(after.values()) == Counter(expected)
        assert files_below(calls) == {}


def test_a_file_that_is_no_longer_the_recording_is_not_moved(calls: Path, target: Path) -> None:
    found = put(calls, "call.wav", b"what was sent")
    put(calls, "call.wav", b"what was written since")

    with pytest.raises(ChangedError, match=r"call.wav was written to"):
        filing.move(found, target)
    assert (calls / "call.wav").read_bytes() == b"what was written since"
    assert not target.exists()


def test_a_recording_that_is_gone_is_said_to_be(calls: Path, target: Path) -> None:
    with pytest.raises(FileNotFoundError):
        filing.move(Identity(os.fspath(calls), "call.wav", 4, 1), target)


def test_no_symlink_in_the_folder_is_followed(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (calls / "done").symlink_to(tmp_path / "elsewhere")
    found = put(calls, "call.wav", b"call")

    with pytest.raises(OSError, match="Not a directory"):
        filing.move(found, calls / "done")
    assert files_below(tmp_path / "elsewhere") == {}
    assert (calls / "call.wav").read_bytes() == b"call"


def test_a_file_system_that_cannot_refuse_to_overwrite_overwrites_nothing_either(
    calls: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldKernel:
        """One without RENAME_NOREPLACE, as NFS and older FUSE file systems are."""

        @staticmethod
        def renameat2(source: int, _name: bytes, directory: int, _new: bytes, _flags: int) -> int:
            is_across = os.fstat(source).st_dev != os.fstat(directory).st_dev
            ctypes.set_errno(errno.EXDEV if is_across else errno.EINVAL)
            return -1

    monkeypatch.setattr(filing, "_libc", OldKernel)

    for content in (b"first", b"second"):
        filing.move(put(calls, "call.wav", content), target)

    assert files_below(target) == {"call.wav": b"first", "call~1.wav": b"second"}


# Across file systems


def full_disk(*_args: object, **_kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", [(shutil, "copyfileobj"), (os, "utime"), (os, "fsync")], ids=lambda step: step[1])
def test_a_copy_that_fails_leaves_the_recording_where_it_is_and_nothing_behind(
    calls: Path, far: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[object, str]
) -> None:
    found = put(calls, "call.wav", b"call")
    with monkeypatch.context() as patched:
        patched.setattr(*step, full_disk)
        with pytest.raises(OSError, match="No space left"):
            filing.move(found, far)
    assert files_below(far) == {}
    assert files_below(calls) == {"call.wav": b"call"}

    filing.move(found, far)
    assert files_below(far) == {"call.wav": b"call"}


def die_in_the_middle(original: BinaryIO, copy: BinaryIO, _length: int) -> None:
    copy.write(original.read(3))
    copy.flush()
    os._exit(0)


def test_a_copy_that_was_cut_off_in_its_middle_is_begun_anew(
    calls: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = put(calls, "call.wav", b"the whole call")
    killed = os.fork()
    if killed == 0:
        monkeypatch.setattr(shutil, "copyfileobj", die_in_the_middle)
        filing.move(found, far)
    assert os.waitpid(killed, 0)[1] == 0

    filing.move(found, far)

    assert files_below(far)["call.wav"] == b"the whole call"
    assert files_below(calls) == {}
    assert all(name.startswith(".") for name in files_below(far) if name != "call.wav")


def test_a_copy_that_was_cut_off_before_its_original_was_unlinked_is_not_filed_twice(calls: Path, far: Path) -> None:
    found = put(calls, "call.wav", b"call", mtime_ns=1_700_000_000_000_000_000)
    shutil.copy2(calls / "call.wav", far / "call.wav")

    filed_at = filing.move(found, far)

    assert filed_at == os.fspath(far / "call.wav")
    assert files_below(far) == {"call.wav": b"call"}
    assert files_below(calls) == {}


@pytest.mark.parametrize("other", [b"CALL", b"call!"])
def test_a_file_that_is_only_like_the_recording_is_another_one(calls: Path, far: Path, other: bytes) -> None:
    found = put(calls, "call.wav", b"call", mtime_ns=1_700_000_000_000_000_000)
    put(far, "call.wav", other, mtime_ns=1_700_000_000_000_000_000)

    filing.move(found, far)

    assert files_below(far) == {"call.wav": other, "call~1.wav": b"call"}


def test_a_file_that_is_written_to_while_it_is_copied_stays(
    calls: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = put(calls, "call.wav", b"call")
    copy = shutil.copyfileobj

    def copy_and_write(*args: object) -> None:
        copy(*args)  # type: ignore[arg-type]
        with (calls / "call.wav").open("ab") as file:
            file.write(b" goes on")

    monkeypatch.setattr(shutil, "copyfileobj", copy_and_write)

    with pytest.raises(ChangedError, match="while it was copied"):
        filing.move(found, far)
    assert files_below(calls) == {"call.wav": b"call goes on"}
    assert files_below(far) == {}


@pytest.mark.parametrize("name", ["call.wav", "x" * 251 + ".wav"])
def test_two_folders_that_file_into_one_place_at_the_same_time_lose_nothing(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sales, support = put(tmp_path / "sales", name, b"sales" * 1000), put(tmp_path / "support", name, b"support" * 1000)
    copy = shutil.copyfileobj

    def be_overtaken(*args: object) -> None:
        monkeypatch.setattr(shutil, "copyfileobj", copy)
        filing.move(support, far)
        copy(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "copyfileobj", be_overtaken)

    filing.move(sales, far)

    assert sorted(files_below(far).values()) == [b"sales" * 1000, b"support" * 1000]


# What is said of a failed file, and the way back


def test_a_failed_file_has_its_reason_beside_it_as_json(calls: Path, odd_name: str) -> None:
    filed_at = filing.move(put(calls, odd_name, b"call"), calls / "failed")

    explained_at = filing.explain(filed_at, {"file": odd_name, "detail": 'a "quoted"\nreason', "attempts": 3})

    assert os.path.dirname(explained_at) == os.path.dirname(filed_at)
    assert explained_at.endswith(".error.json")
    told = json.loads(Path(explained_at).read_bytes())
    assert told == {"file": odd_name, "detail": 'a "quoted"\nreason', "attempts": 3}
    assert os.fsencode(told["file"]) == os.fsencode(odd_name)


def test_a_reason_is_not_written_through_a_symlink(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    filed_at = filing.move(put(calls, "call.wav", b"call"), calls / "failed")
    Path(f"{filed_at}.error.json").symlink_to(tmp_path / "precious")

    with pytest.raises(OSError, match="symbolic links"):
        filing.explain(filed_at, {"file": "call.wav"})
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_recording_goes_back_under_the_name_it_had_into_a_sub_folder_that_is_gone(calls: Path, target: Path) -> None:
    filing.move(put(calls, "2026/call.wav", b"first"), target)
    found = put(calls, "2026/call.wav", b"second")
    filed_at = filing.move(found, target)
    assert filed_at.endswith("call~1.wav")
    (calls / "2026").rmdir()

    assert filing.bring_back(filed_at, found) == os.fspath(calls / "2026/call.wav")
    assert (calls / "2026/call.wav").read_bytes() == b"second"
    assert files_below(target) == {"2026/call.wav": b"first"}


def test_a_recording_that_goes_back_takes_no_other_ones_name(calls: Path, target: Path) -> None:
    found = put(calls, "call.wav", b"failed")
    filed_at = filing.move(found, target)
    put(calls, "call.wav", b"new")

    assert filing.bring_back(filed_at, found) == os.fspath(calls / "call~1.wav")
    assert (calls / "call.wav").read_bytes() == b"new"
    assert (calls / "call~1.wav").read_bytes() == b"failed"


@pytest.mark.parametrize("taken", [False, True])
def test_a_move_that_was_made_but_not_noted_is_found_again(calls: Path, target: Path, taken: bool) -> None:  # noqa: FBT001
    if taken:
        put(target, "2026/call.wav", b"another")
    recording = put(calls, "2026/call.wav", b"call", mtime_ns=1_800_000_000_123_456_789)

    first = filing.move(recording, target)

    assert filing.move(recording, target) == first
    assert Path(first).name == ("call~1.wav" if taken else "call.wav")


def test_a_recording_that_is_gone_is_not_found_in_one_of_its_name(calls: Path, target: Path) -> None:
    put(target, "call.wav", b"call")
    recording = put(calls, "call.wav", b"call", mtime_ns=1_800_000_000_123_456_789)
    (calls / "call.wav").unlink()

    with pytest.raises(FileNotFoundError):
        filing.move(recording, target)


def test_a_recording_that_is_gone_leaves_no_directory_behind(calls: Path, target: Path) -> None:
    recording = put(calls, "2026/07/call.wav", b"call")
    (calls / "2026/07/call.wav").unlink()

    with pytest.raises(FileNotFoundError):
        filing.move(recording, target)

    assert not (target / "2026").exists()
