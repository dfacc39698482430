"""What can be told of a recording before a byte of it is sent."""

import os
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heifyd.faults import FaultError, Owner
from heifyd.preflight import Facts, examine
from heifyd.recording import CONTENT_TYPES, MAX_BYTES

SAMPLES = Path(__file__).parents[2] / "heifyd" / "samples"
ENDINGS = sorted(CONTENT_TYPES)
UNTOLD = {".aac", ".amr", ".webm"}
"""The formats whose length tinytag does not tell."""


def look_at(path: Path, name: str | None = None) -> Facts:
    with path.open("rb") as file:
        return examine(file.fileno(), name or path.name, path.stat().st_size)


def bytes_read() -> int:
    """Return how many bytes this process has read so far (proc_pid_io(5))."""
    return int(Path("/proc/self/io").read_text().split()[1])


def wav(path: Path, *, seconds: float, claimed_bytes: int | None = None, bytes_per_s: int = 8000) -> Path:
    """Make a WAV of silence, without taking up its space on the disk."""
    size = int(seconds * bytes_per_s)
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, bytes_per_s, bytes_per_s, 1, 8,
                         b"data", size if claimed_bytes is None else claimed_bytes)  # fmt: skip
    path.write_bytes(header)
    os.truncate(path, len(header) + size)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_that_heify_takes_goes_under_its_content_type_and_with_its_length(ending: str) -> None:
    facts = look_at(SAMPLES / f"call{ending}")

    assert facts.content_type == CONTENT_TYPES[ending]
    if ending in UNTOLD:
        assert facts.duration_s is None
    else:
        assert facts.duration_s == pytest.approx(2.0, abs=0.2)


def test_the_content_decides_the_content_type_where_the_name_is_wrong() -> None:
    assert look_at(SAMPLES / "call.mp3", "call.wav").content_type == "audio/mpeg"


def test_any_name_with_a_right_ending_is_looked_at(odd_name: str) -> None:
    assert look_at(SAMPLES / "call.wav", odd_name) == Facts("audio/wav", 2.0)


def refused(path: Path, name: str | None = None) -> str:
    with pytest.raises(FaultError) as raised:
        look_at(path, name)
    assert raised.value.fault.owner is Owner.FILE
    return raised.value.fault.reason


@pytest.mark.parametrize("name", ["call.txt", "call", "call.wav.gsm"])
def test_a_file_that_heify_does_not_take_by_its_name_is_refused(name: str) -> None:
    assert refused(SAMPLES / "call.wav", name) == "unsupported_format"


@pytest.mark.parametrize(
    "content", [b"", b"Not found\n", b"<html></html>", b"\x00" * 5000, b"RIFF\x00\x00\x00\x00AVI "]
)
def test_a_file_that_only_has_the_name_of_a_recording_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "call.wav").write_bytes(content)

    assert refused(tmp_path / "call.wav") == "not_audio"


def test_the_largest_recording_that_heify_takes_is_let_through_and_a_byte_more_is_not(tmp_path: Path) -> None:
    call = wav(tmp_path / "call.wav", seconds=(MAX_BYTES - 44) / 44_100, bytes_per_s=44_100)
    assert call.stat().st_size == MAX_BYTES
    assert look_at(call).content_type == "audio/wav"

    os.truncate(call, MAX_BYTES + 1)
    assert refused(call) == "too_large"


def test_two_hours_are_let_through_and_a_second_more_is_not(tmp_path: Path) -> None:
    assert look_at(wav(tmp_path / "call.wav", seconds=7200)).duration_s == 7200.0

    assert refused(wav(tmp_path / "call.wav", seconds=7201)) == "too_long"


@pytest.mark.parametrize("claimed_bytes", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF])
def test_a_header_from_before_the_length_was_known_fails_no_recording(tmp_path: Path, claimed_bytes: int) -> None:
    facts = look_at(wav(tmp_path / "call.wav", seconds=60, claimed_bytes=claimed_bytes))

    assert facts.content_type == "audio/wav"
    assert facts.duration_s is None


@given(st.sampled_from(ENDINGS), st.binary(max_size=200), st.integers(0, 4000), st.integers(0, 10**9))
def test_no_content_however_broken_does_worse_than_be_refused(
    ending: str, noise: bytes, at: int, claimed_size: int
) -> None:
    content = bytearray((SAMPLES / f"call{ending}").read_bytes())
    at = min(at, len(content))
    content[at : at + len(noise)] = noise
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            facts = examine(file.fileno(), f"call{ending}", claimed_size)
        except FaultError as error:
            assert error.fault.owner is Owner.FILE  # noqa: PT017 (either outcome is right)
        else:
            assert facts.content_type in CONTENT_TYPES.values()
            assert facts.duration_s is None or 0 <= facts.duration_s <= 7200


@pytest.mark.parametrize("ending", ENDINGS)
def test_of_a_file_with_much_room_set_aside_only_a_little_is_read(tmp_path: Path, ending: str) -> None:
    padded = tmp_path / f"call{ending}"
    padded.write_bytes((SAMPLES / f"call{ending}").read_bytes())
    os.truncate(padded, MAX_BYTES // 4)
    before = bytes_read()

    with suppress(FaultError):  # an MP3's length is told by its size, so that this one is too long
        look_at(padded)

    assert bytes_read() - before < 4 * 1024 * 1024


def test_the_file_stays_open_for_who_opened_it() -> None:
    with (SAMPLES / "call.wav").open("rb") as file:
        examine(file.fileno(), "call.wav", 32_044)

        assert os.pread(file.fileno(), 4, 0) == b"RIFF"
