"""When bytes arrived, and what that says of a limit: how exactly it was kept, and how smoothly."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`at_s` is when each of `sizes` bytes arrived, in that order (seconds of any clock)."""

    at_s: Sequence[float]
    sizes: Sequence[int]

    @classmethod
    def of(cls, noted: Sequence[tuple[float, int]]) -> "Arrivals":
        """Put into order what several threads have noted."""
        ordered = sorted(noted)
        return cls([at for at, _ in ordered], [size for _, size in ordered])

    def between(self, begin_s: float, end_s: float) -> "Arrivals":
        """Return those from `begin_s` until before `end_s`."""
        return Arrivals.of([each for each in zip(self.at_s, self.sizes, strict=True) if begin_s <= each[0] < end_s])

    @property
    def lasted_s(self) -> float:
        return self.at_s[-1] - self.at_s[0]

    def rates(self, window_s: float) -> Iterator[float]:
        """Give the bytes a second in each window that begins with an arrival and ends before the last one."""
        total = [0, *accumulate(self.sizes)]
        end = 0
        for begin, at in enumerate(self.at_s):
            if at + window_s > self.at_s[-1]:
                return
            while self.at_s[end] < at + window_s:
                end += 1
            yield (total[end] - total[begin]) / window_s

    def most_bytes(self, window_s: float) -> int:
        """Return the most that arrived in any window, wherever it begins."""
        most = total = begin = 0
        for at, size in zip(self.at_s, self.sizes, strict=True):
            total += size
            while self.at_s[begin] <= at - window_s:
                total -= self.sizes[begin]
                begin += 1
            most = max(most, total)
        return most

    def longest_pause_s(self, stalls: Iterable[tuple[float, float]] = ()) -> float:
        """Return the longest time between two arrivals, in which `stalls`, each from when to when, do not count."""
        longest = 0.0
        for before, after in pairwise(self.at_s):
            stood_s = sum(max(0.0, min(after, end) - max(before, begin)) for begin, end in stalls)
            longest = max(longest, after - before - stood_s)
        return longest
