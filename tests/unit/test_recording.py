"""What a recording is: its format, its limits, and how long its upload URL is good."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heifyd.recording import (
    CONTENT_TYPES,
    HEAD_BYTES,
    Ids,
    Stamp,
    Ticket,
    content_type,
    extension,
    plausible_duration_s,
    riff_surplus,
    sniff,
)

SAMPLES = Path(__file__).parents[2] / "heifyd" / "samples"
LONGEST_S = 7200.0


@pytest.mark.parametrize("ending", sorted(CONTENT_TYPES))
def test_every_format_that_heify_takes_is_known_by_its_first_bytes(ending: str) -> None:
    head = (SAMPLES / f"call{ending}").read_bytes()[:HEAD_BYTES]

    found = sniff(head)

    assert content_type(f"call{ending}", found) == CONTENT_TYPES[ending]
    assert found == (".mp4" if ending == ".m4a" else ending)


@pytest.mark.parametrize("ending", sorted(CONTENT_TYPES))
def test_the_content_decides_where_the_name_says_otherwise(ending: str) -> None:
    found = sniff((SAMPLES / "call.flac").read_bytes()[:HEAD_BYTES])

    assert content_type(f"call{ending}", found) == "audio/flac"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"RIFF",
        b"RIFF\x00\x00\x00\x00AVI LIST",
        b"%PDF-1.7\n",
        b"PK\x03\x04",
        b"\x00" * HEAD_BYTES,
        b"hello, world\n",
    ],
)
def test_what_is_no_audio_is_taken_for_none(head: bytes) -> None:
    assert sniff(head) is None


def test_an_mp3_is_known_behind_padding() -> None:
    assert sniff(b"\x00" * 1000 + b"\xff\xfb\x90\x64" + b"\x00" * 100) == ".mp3"


@given(st.binary(max_size=HEAD_BYTES))
def test_any_first_bytes_are_a_format_that_heify_takes_or_none(head: bytes) -> None:
    assert sniff(head) in {None, *CONTENT_TYPES}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.wav", ".wav"),
        ("A.WAV", ".wav"),
        ("a.b.Mp3", ".mp3"),
        ("wav", ""),
        (".wav", ""),
        ("a.", "."),
        ("a\n.ogg", ".ogg"),
    ],
)
def test_an_extension_is_the_last_one_in_lower_case(name: str, expected: str) -> None:
    assert extension(name) == expected


@given(st.none() | st.floats(), st.integers(0, 2**40))
def test_a_duration_is_believed_only_where_a_file_of_that_size_can_hold_it(claimed_s: float | None, size: int) -> None:
    believed_s = plausible_duration_s(claimed_s, size)

    assert believed_s in (None, claimed_s)
    assert believed_s is None or 0 <= believed_s <= max(1.0, size / 200)


def test_the_header_of_a_recorder_that_did_not_know_the_length_fails_nothing() -> None:
    assert plausible_duration_s(2**32 / 16_000, 480_044) is None
    assert plausible_duration_s(30.0, 480_044) == 30.0
    assert plausible_duration_s(math.nan, 480_044) is None


def test_two_hours_of_the_leanest_codec_are_believed() -> None:
    assert plausible_duration_s(LONGEST_S + 1, int(LONGEST_S * 594)) == LONGEST_S + 1


def test_a_url_is_good_until_its_time_and_within_its_boot_only() -> None:
    ticket = Ticket("t", "https://storage.heify.com/x", Ids("c"), "call", good_until_s=100.0, boot_id="this boot")

    assert ticket.is_good(99.9, "this boot")
    assert not ticket.is_good(100.0, "this boot")
    assert not ticket.is_good(1.0, "another boot")


def test_a_url_that_is_not_kept_is_not_good() -> None:
    assert not Ticket("t", "", Ids("c"), "call", good_until_s=100.0, boot_id="boot").is_good(1.0, "boot")


def test_writing_to_a_file_changes_its_stamp_even_where_its_mtime_is_put_back(tmp_path: Path) -> None:
    file = tmp_path / "call.wav"
    file.write_bytes(b"one")
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()

    assert Stamp.of(after).identity("f", "call.wav") == Stamp.of(before).identity("f", "call.wav")
    assert Stamp.of(after) != Stamp.of(before)


@pytest.mark.parametrize(
    ("said", "has", "surplus"),
    [
        (1000, 1008, 0),
        (1001, 1010, 0),  # a byte that pads the last chunk
        (1000, 1010, 2),
        (36, 100_044, 100_000),  # the header of a live call, as it is before the recorder comes back to it
        (0, 44, 36),
        (100_036, 60_044, -40_000),  # a copy that is under way
        (0xFFFFFFFF, 44, 36 - 0xFFFFFFFF),
    ],
)
def test_a_wav_file_says_how_long_it_will_be(said: int, has: int, surplus: int) -> None:
    head = b"RIFF" + said.to_bytes(4, "little") + b"WAVEfmt "

    assert riff_surplus(head, has) == surplus


@pytest.mark.parametrize("head", [b"", b"RIFF", b"RIFF\0\0\0\0AVI LIST", b"RF64\xff\xff\xff\xffWAVEds64", b"OggS" * 9])
def test_what_is_no_riff_wave_says_nothing_of_its_length(head: bytes) -> None:
    assert riff_surplus(head, 10_000) == 0
