"""Recordings for the daemon and the rival to carry: valid little WAVs, written fast."""

import os
import random
import struct
from pathlib import Path
from typing import Final

_HEADER_BYTES: Final = 44
_RATE: Final = 16_000


def wav(size_bytes: int, seed: int = 0) -> bytes:
    """Make a WAV (16 kHz, 16 bit, mono) of so many bytes."""
    data_bytes = size_bytes - _HEADER_BYTES
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", size_bytes - 8, b"WAVE", b"fmt ", 16, 1, 1, _RATE, 2 * _RATE, 2, 16, b"data", data_bytes),
    )
    return header + random.Random(seed).randbytes(data_bytes)


def name(number: int) -> str:
    return f"call-{number:06}.wav"


def write(folder: Path, first: int, end: int, content: bytes) -> None:
    """Write recordings as a recorder does: open, write, close, one after another, in the folder itself."""
    folder.mkdir(parents=True, exist_ok=True)
    where = os.fspath(folder)
    for number in range(first, end):
        fd = os.open(f"{where}/{name(number)}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(fd, content)
        os.close(fd)


def number_in(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(1 for _ in entries)
    except FileNotFoundError:
        return 0


def last_moved_in(folder: Path) -> float:
    """Return when the last file was moved into a folder (wall clock): a rename sets a file's ctime."""
    with os.scandir(folder) as entries:
        return max(entry.stat().st_ctime_ns for entry in entries) / 1e9
