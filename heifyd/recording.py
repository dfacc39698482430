"""What a recording is: its identity, the ids it is sent under, its format and limits. Pure values."""

import ipaddress
import math
import os
from dataclasses import dataclass
from typing import Final

MAX_BYTES: Final = 200 * 1024 * 1024
"""Heify takes at most "200 MB"; the larger reading of it, so that a file in doubt is sent and Heify decides."""

MAX_DURATION_S: Final = 7200.0
"""Heify takes at most two hours (its page "Rate Limits & Quotas")."""

CONTENT_TYPES: Final = {
    ".aac": "audio/aac",
    ".aiff": "audio/aiff",
    ".amr": "audio/amr",
    ".asf": "video/x-ms-asf",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".ogg": "audio/ogg",
    ".wav": "audio/wav",
    ".webm": "audio/webm",
}
"""The eleven extensions that Heify accepts, each with the Content-Type of its PUT."""

HEAD_BYTES: Final = 4096
"""How much of a file's beginning `sniff` wants to see."""

_MIN_BYTES_PER_S: Final = 200.0
"""Slower than any codec Heify accepts (AMR's slowest mode is 594 bytes a second)."""


@dataclass(frozen=True, slots=True)
class Ids:
    """What a recording is sent under; each a UUID as Heify writes it (lower case, with hyphens)."""

    configuration_id: str
    evaluator_id: str | None = None
    participant_id: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Which recording it is: the same path, size and mtime are the same recording, anything else is another.

    `folder` is the watched folder's absolute path, `path` the file's path below it. Names that are not
    UTF-8 are held the way Python holds them (surrogateescape, PEP 383).
    """

    folder: str
    path: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """Heify's leave to upload one recording: the transcription, the URL, and the values the URL is signed with.

    `good_until_s` is CLOCK_BOOTTIME's (seconds; it survives this process and knows no changes of the date) of the boot
    that `boot_id` names. An empty `url` is one that is not kept any longer.
    """

    transcription_id: str
    url: str
    ids: Ids
    name: str
    good_until_s: float
    boot_id: str

    def is_good(self, now_s: float, boot_id: str) -> bool:
        """Tell whether the URL still lives at `now_s` (CLOCK_BOOTTIME)."""
        return bool(self.url) and self.boot_id == boot_id and now_s < self.good_until_s


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written to: size in bytes, mtime and ctime in nanoseconds."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        """Take the stamp from a stat result; a time that 64 bits of nanoseconds cannot hold is taken as their last."""
        return cls(found.st_size, _in_64_bits(found.st_mtime_ns), _in_64_bits(found.st_ctime_ns))

    def identity(self, folder: str, path: str) -> Identity:
        """Return the identity that the file at `path` below `folder` has while it bears this stamp."""
        return Identity(folder, path, self.size_bytes, self.mtime_ns)


def _in_64_bits(ns: int) -> int:
    return max(-(2**63), min(ns, 2**63 - 1))


def extension(name: str) -> str:
    """Return the lower-case extension of a file name with its dot, or "" where it has none."""
    stem, dot, last = name.rpartition(".")
    return f".{last.lower()}" if dot and stem else ""


def sniff(head: bytes) -> str | None:
    """Return the format that a file's first bytes show, as an extension of `CONTENT_TYPES`, or None.

    `head` is the file's first `HEAD_BYTES` bytes (all of them, if it is shorter). MP4 and M4A share a container;
    ``.mp4`` stands for both. Sources: RFC 4867 (AMR), RFC 3533 (Ogg), RFC 9639 (FLAC), ISO 14496-12 (MP4), ISO 13818-7
    (ADTS), Microsoft's "Multimedia Programming Interface" (RIFF), EBU Tech 3306 (RF64), id3.org (ID3v2).
    """
    for magic, offset, found in _MAGIC:
        if head.startswith(magic, offset):
            return found
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return ".wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return ".aiff"
    return _mpeg_frame(head)


_MAGIC: Final = (
    (b"#!AMR", 0, ".amr"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", 0, ".asf"),
    (b"fLaC", 0, ".flac"),
    (b"OggS", 0, ".ogg"),
    (b"\x1a\x45\xdf\xa3", 0, ".webm"),
    (b"ftyp", 4, ".mp4"),
    (b"ID3", 0, ".mp3"),
    (b"ADIF", 0, ".aac"),
)


def _mpeg_frame(head: bytes) -> str | None:
    """Find the first MPEG audio frame header in `head`: encoders may put padding or junk before it."""
    at = head.find(0xFF)
    while 0 <= at < len(head) - 2:
        second, third = head[at + 1], head[at + 2]
        if second & 0xF6 == 0xF0:  # ADTS: 12 bits of sync, layer 0
            if third >> 2 & 0x0F < 13:  # a sampling frequency that exists
                return ".aac"
        elif second & 0xE0 == 0xE0 and second & 0x18 != 0x08 and second & 0x06:  # noqa: SIM102 (reads as the header's fields)
            if third >> 4 not in (0, 15) and third >> 2 & 0x03 != 3:
                return ".mp3"
        at = head.find(0xFF, at + 1)
    return None


def riff_surplus(head: bytes, size_bytes: int) -> int:
    """Return how many bytes a WAV file has beyond what its RIFF header says (negative: how many are missing).

    `head` is the file's beginning. A writer that is not done yet has not got to the last byte, or has not yet put the
    size into the header. 0 where both agree (one padding byte is allowed), and for anything that is no RIFF WAVE: the
    64-bit forms (RF64) keep their size elsewhere.
    """
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return 0
    surplus = size_bytes - 8 - int.from_bytes(head[4:8], "little")
    return 0 if surplus == 1 else surplus


def content_type(name: str, found: str | None) -> str:
    """Return the Content-Type of the PUT: what the content shows (`found`, from `sniff`), else the extension's.

    The extension decides between the two names of one container (.m4a and .mp4).
    """
    named = extension(name)
    if found is None or (found == ".mp4" and named == ".m4a"):
        return CONTENT_TYPES[named]
    return CONTENT_TYPES[found]


def plausible_duration_s(claimed_s: float | None, size_bytes: int) -> float | None:
    """Return a claimed duration in seconds, or None when a file of that size cannot hold it.

    A recorder that writes a WAV's header before it knows the length leaves a size of 4 GiB there; such a claim
    must fail no recording.
    """
    if claimed_s is None or not math.isfinite(claimed_s) or claimed_s < 0:
        return None
    if claimed_s * _MIN_BYTES_PER_S > max(size_bytes, _MIN_BYTES_PER_S):
        return None
    return claimed_s


def is_loopback(host: str) -> bool:
    """Tell whether a URL's host is this machine; a name that only looks like its address is not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
