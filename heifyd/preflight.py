"""What can be told of a recording before a byte of it is sent: its format, and that Heify will take it."""

import os
from dataclasses import dataclass

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
    duration_s = _duration_s(fd, name, size_bytes)
    if duration_s is not None and duration_s > MAX_DURATION_S:
        raise FaultError(
            faults.of_file("too_long", f"it lasts {duration_s:,.0f} s, and Heify takes at most {MAX_DURATION_S:,.0f} s")
        )
    return Facts(content_type(name, found), duration_s)


def _duration_s(fd: int, name: str, size_bytes: int) -> float | None:
    """Ask tinytag, which reads headers only. None for formats that it does not know, and for headers that lie."""
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        try:
            claimed_s = TinyTag.get(filename=name, file_obj=file, tags=False).duration
        except Exception:  # noqa: BLE001 (a parser before hostile bytes: whatever it trips over, the length is just not known)
            return None
    return plausible_duration_s(claimed_s, size_bytes)
