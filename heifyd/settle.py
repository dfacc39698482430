"""When a file is a finished recording: decided from what was seen of it and when. No I/O, no clock, no threads."""

from dataclasses import dataclass
from typing import Final

from heifyd.recording import Stamp

MOST_TRACKED: Final = 10_000
"""Unfinished files remembered for one folder; the next scan finds what did not fit, so memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How long a file must have been quiet, in seconds, and over how many looks at least.

    `trust_age` says that the file's own times may be believed at first sight: they come from this machine's kernel,
    and the open-writer check backs them. On a share they do not, and only what was watched counts.
    """

    settle_seconds: float
    least_looks: int = 1
    trust_age: bool = True


@dataclass(slots=True)
class _Seen:
    stamp: Stamp
    quiet_since_s: float
    due_s: float
    looks: int = 1
    had_writer: bool = False


class Settling:
    """The files of one folder that are not known to be finished yet."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._seen: dict[str, _Seen] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def quiet(self, path: str, stamp: Stamp, now_s: float, *, age_s: float, stirred: bool = False) -> bool:
        """Take in one look at a file and tell whether it has been quiet for long enough.

        `now_s` is a monotonic clock's, `age_s` the seconds since the file's last change by the wall clock.
        `stirred` says that an event named the file, which begins its quiet time anew whatever its times say: a writer
        that closes a file often opens it once more to complete the header. Quiet alone is not finished: ask for
        writers, and then call `written_to`, `writer_gone` or `forget`.
        """
        seen = self._seen.get(path)
        if seen is None:
            known_quiet_s = max(age_s, 0.0) if self.rule.trust_age and not stirred else 0.0
            seen = _Seen(stamp, now_s - known_quiet_s, 0.0)
            if len(self._seen) < MOST_TRACKED:
                self._seen[path] = seen
        elif seen.stamp != stamp or stirred:
            seen.stamp, seen.quiet_since_s, seen.looks, seen.had_writer = stamp, now_s, 1, False
        else:
            seen.looks += 1
        ready_s = seen.quiet_since_s + self.rule.settle_seconds
        if now_s >= ready_s and seen.looks >= self.rule.least_looks:
            seen.due_s = float("inf")
            return True
        seen.due_s = max(ready_s, now_s + 0.01)
        return False

    def written_to(self, path: str) -> None:
        """Note that a quiet file turned out to have a writer: its closing, or the next scan, will be the next look."""
        if path in self._seen:
            self._seen[path].had_writer = True

    def writer_gone(self, path: str, now_s: float) -> bool:
        """Tell whether a quiet file had a writer at an earlier look; if so, its quiet time begins only now."""
        seen = self._seen.get(path)
        if seen is None or not seen.had_writer:
            return False
        seen.had_writer, seen.quiet_since_s, seen.due_s = False, now_s, now_s + self.rule.settle_seconds
        return self.rule.settle_seconds > 0

    def quiet_s(self, path: str, now_s: float) -> float:
        """Return for how many seconds a file has been quiet as far as is known; 0 where nothing is."""
        seen = self._seen.get(path)
        return 0.0 if seen is None else now_s - seen.quiet_since_s

    def look_again(self, path: str, due_s: float) -> None:
        """Ask for another look at a file at `due_s`."""
        if path in self._seen:
            self._seen[path].due_s = due_s

    def forget(self, path: str) -> None:
        """Drop a file that is finished, gone or refused."""
        self._seen.pop(path, None)

    def due(self, now_s: float) -> list[str]:
        """Return the files whose next look is due."""
        return [path for path, seen in self._seen.items() if seen.due_s <= now_s]

    def next_due_s(self) -> float:
        """Return when the next look is due, infinity where none is."""
        return min((seen.due_s for seen in self._seen.values()), default=float("inf"))
