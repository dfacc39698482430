"""Files are reached through descriptors: nothing but a regular file is opened, and no symlink is followed."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heifyd import tree
from heifyd.tree import NotARegularFileError


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = tree.open_root(tmp_path)
    yield fd
    os.close(fd)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def link_to_a_recording(path: Path) -> None:
    (path.parent / "real.wav").write_bytes(b"RIFF")
    path.symlink_to("real.wav")


MAKERS: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "socket": bind_socket,
    "directory": Path.mkdir,
    "symlink": link_to_a_recording,
}


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_what_only_has_a_recordings_name_is_refused_by_its_kind(tmp_path: Path, root: int, kind: str) -> None:
    MAKERS[kind](tmp_path / "x.wav")
    before = open_descriptors()

    with pytest.raises(NotARegularFileError, match=f"^x.wav is a {kind}, not a regular file"):
        tree.open_recording(root, "x.wav")
    assert open_descriptors() == before


def test_a_device_is_refused_without_being_opened() -> None:
    with tree.opened(tree.open_root("/dev")) as dev, pytest.raises(NotARegularFileError, match="character device"):
        tree.open_recording(dev, "null")


def test_what_takes_the_name_between_look_and_opening_is_refused_too(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "call.wav").write_bytes(b"RIFF")
    regular = os.stat(tmp_path / "call.wav")
    (tmp_path / "call.wav").unlink()
    os.mkfifo(tmp_path / "call.wav")
    monkeypatch.setattr(os, "stat", lambda *_args, **_kwargs: regular)
    before = open_descriptors()

    with pytest.raises(NotARegularFileError, match="FIFO"):
        tree.open_recording(root, "call.wav")
    assert open_descriptors() == before


def test_no_sub_folder_that_is_a_symlink_is_followed(tmp_path: Path, root: int) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "call.wav").write_bytes(b"RIFF")
    (tmp_path / "link").symlink_to("elsewhere")

    with pytest.raises(NotARegularFileError, match=r"^link/call.wav: a directory on the way is a symlink"):
        tree.open_recording(root, "link/call.wav")
    with pytest.raises(OSError, match="Not a directory"):
        tree.open_directory(root, "link/new", create=True)
    assert not (tmp_path / "elsewhere" / "new").exists()


def test_the_folder_itself_may_be_a_symlink_for_the_operator_named_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "call.wav").write_bytes(b"RIFF")
    (tmp_path / "named").symlink_to("real")

    with (
        tree.opened(tree.open_root(tmp_path / "named")) as root,
        tree.opened(tree.open_recording(root, "call.wav")) as fd,
    ):
        assert os.read(fd, 4) == b"RIFF"


def test_a_recording_is_opened_whatever_its_name_and_its_folders(tmp_path: Path, root: int, odd_name: str) -> None:
    (tmp_path / odd_name).mkdir()
    (tmp_path / odd_name / odd_name).write_bytes(b"RIFF")

    with tree.opened(tree.open_recording(root, f"{odd_name}/{odd_name}")) as fd:
        assert os.read(fd, 4) == b"RIFF"


def test_missing_directories_are_made_only_where_that_is_asked(tmp_path: Path, root: int) -> None:
    with pytest.raises(FileNotFoundError):
        tree.open_directory(root, "a/b")
    with tree.opened(tree.open_directory(root, "a/b", create=True)) as fd:
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "a" / "b"))
    tree_again = tree.open_directory(root, "a/b", create=True)
    os.close(tree_again)


def test_what_fails_on_the_way_leaves_no_descriptor_open(tmp_path: Path, root: int) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    before = open_descriptors()

    for path in ("a/b/none.wav", "a/none/x.wav", "none.wav", "a/b"):
        with pytest.raises((OSError, NotARegularFileError)):
            tree.open_recording(root, path)
    assert open_descriptors() == before
