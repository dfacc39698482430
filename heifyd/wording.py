"""Names, ages and amounts as people read them. Pure."""

from typing import Final

_UNITS: Final = (("d", 86400), ("h", 3600), ("min", 60))


def printable(name: str) -> str:
    """Make a file name fit to be read: bytes that are not UTF-8, control and format characters are written as escapes.

    What is left has no character that hides, moves or turns around another one.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in name)


def age(seconds: float) -> str:
    """Write an age for reading, such as ``5 s``, ``12 min`` or ``3 d``."""
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def amount(size_bytes: float) -> str:
    """Write a number of bytes for reading, in powers of ten as Heify does: ``480 kB``, ``12.1 MB``."""
    size, unit = size_bytes, "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 (the unit at which it stops is the answer)
        if size < 999.5:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit in ("B", "kB") or size >= 100 else f"{size:.1f} {unit}"
