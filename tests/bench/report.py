"""What the rows find, and the one table that shows it."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

_HEADER: Final = ("row", "what", "heifyd", "rival", "ratio", "bound", "met")
_LEFT: Final = 2


class BenchError(Exception):
    """A row could not be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; `met` is None where the line is there for orientation and has no bound."""

    what: str
    heifyd: str
    rival: str = ""
    ratio: str = ""
    bound: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What one row found; `notes` are lines that explain it, below the table."""

    row: str
    figures: Sequence[Figure]
    notes: Sequence[str] = field(default=())


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * percent // 100).__int__() - 1)]


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Write the values from least to greatest, as a note has them."""
    return " ".join(f"{value:{form}}" for value in sorted(values))


def table(results: Iterable[Result]) -> str:
    """Lay out every figure as one table of plain text."""
    lines = [_HEADER]
    for result in results:
        for at, figure in enumerate(result.figures):
            met = {True: "yes", False: "NO", None: ""}[figure.met]
            row = result.row if at == 0 else ""
            lines.append((row, figure.what, figure.heifyd, figure.rival, figure.ratio, figure.bound, met))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (lines[0], rule, *lines[1:])
    )


def notes(results: Iterable[Result]) -> str:
    return "\n".join(f"{result.row}: {note}" for result in results for note in result.notes)
