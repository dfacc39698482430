"""What can be told of a recording before a byte of it is sent: its format, and that Heify will take it."""

import io
import os
from dataclasses import dataclass
from typing import BinaryIO, Final

from tinytag import TinyTag

from heifyd import faults
from heifyd.faults import FaultError
from heifyd.recording import (
    CONTENT_TYPES,
    HEAD_BYTES,
    MAX_BYTES,
    MAX_DURATION_S,
    content_type,
    extension,
    plausible_duration_s,
    sniff,
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a recording is sent as; `duration_s` is None where nothing tells it."""

    content_type: str
    duration_s: float | None


def examine(fd: int, name: str, size_bytes: int) -> Facts:
    """Look at the file behind `fd`, called `name`. Raises FaultError, the file's, for what Heify is known to refuse."""
    if extension(name) not in CONTENT_TYPES:
        raise FaultError(
            faults.of_file("unsupported_format", f"Heify takes no {extension(name) or 'files without an extension'}")
        )
    if size_bytes > MAX_BYTES:
        raise FaultError(faults.of_file("too_large", f"it has {size_bytes:,} bytes, and Heify takes at most 200 MB"))
    found = sniff(os.pread(fd, HEAD_BYTES, 0))
    if found is None:
        raise FaultError(
            faults.of_file(
                "not_audio", f"its content is none of the formats that Heify takes, whatever its name {name!r} says"
            )
        )
    duration_s = _duration_s(fd, found, size_bytes)
    if duration_s is not None and duration_s > MAX_DURATION_S:
        raise FaultError(
            faults.of_file("too_long", f"it lasts {duration_s:,.0f} s, and Heify takes at most {MAX_DURATION_S:,.0f} s")
        )
    return Facts(content_type(name, found), None if duration_s is None else round(duration_s, 3))


_LENGTH_UNTOLD: Final = frozenset((".aac", ".amr", ".webm"))
"""Formats that tinytag does not know; it would read them to their end all the same."""

_WAV_HEAD_BYTES: Final = 1024 * 1024


def _headers(fd: int, found: str) -> BinaryIO:
    """Give what tinytag is to read: of a WAV the head alone, as it would walk through all that follows the data."""
    if found == ".wav":
        return io.BytesIO(os.pread(fd, _WAV_HEAD_BYTES, 0))
    file = os.fdopen(os.dup(fd), "rb")
    file.seek(0)
    return file


def _duration_s(fd: int, found: str, size_bytes: int) -> float | None:
    """Ask tinytag, which reads headers only. None for formats that it does not know, and for headers that lie."""
    if found in _LENGTH_UNTOLD:
        return None
    with _headers(fd, found) as file:
        try:
            claimed_s = TinyTag.get(filename=f"call{found}", file_obj=file, tags=False).duration
        except Exception:  # noqa: BLE001 (a parser before hostile bytes: whatever it trips over, the length is just not known)
            return None
    return plausible_duration_s(claimed_s, size_bytes)
