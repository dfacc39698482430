"""Patterns for paths below a folder, the same on every Python that heifyd runs on. Pure."""

import fnmatch
import re
from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> tuple[Callable[[str], object] | None, ...]:
    """Return a matcher for each part of a pattern; None stands for ``**``. Raises re.error for one that is none."""
    parts = pattern.split("/") if "/" in pattern else ["**", pattern]
    return tuple(None if part == "**" else re.compile(fnmatch.translate(part)).match for part in parts)


def matches(pattern: str, relative_path: str) -> bool:
    """Tell whether a path matches: `*` stays within a name, `**` crosses directories.

    With a "/" in it, the pattern is for the whole path, as in Python 3.13's `PurePath.full_match`; without one, it is
    for the last name, however deep, as in .gitignore.
    """
    wanted = compiled(pattern)
    names = relative_path.split("/")
    at = part = begun_at = 0
    crossing: int | None = None
    while at < len(names):
        match = wanted[part] if part < len(wanted) else None
        if part < len(wanted) and match is None:
            crossing, begun_at, part = part, at, part + 1
        elif match is not None and match(names[at]):
            at, part = at + 1, part + 1
        elif crossing is not None:
            begun_at += 1
            at, part = begun_at, crossing + 1
        else:
            return False
    return all(match is None for match in wanted[part:])
