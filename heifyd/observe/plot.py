"""The last hours as a plot: inline SVG that stretches, its words in HTML around it, and the same as a table."""

from collections.abc import Sequence
from typing import Final

from heifyd.ledger_history import HOUR_S, Hour
from heifyd.observe.markup import hour_of

_WIDTH: Final = 24
_UP: Final = 100.0
_DOWN: Final = 36.0
_GAP: Final = 2.0
_LEAST: Final = 3.0
_EVERY: Final = 6


def plot(hours: Sequence[Hour]) -> str:
    """Draw what was done upwards and what failed downwards, each to a scale of its own: one failure must be seen."""
    most_done = max((each.done for each in hours), default=0)
    most_failed = max((each.failed for each in hours), default=0)
    done, failed = sum(each.done for each in hours), sum(each.failed for each in hours)
    width, height = len(hours) * _WIDTH, _UP + _GAP + _DOWN
    bars = "".join(_bar(at, hour, most_done, most_failed) for at, hour in enumerate(hours))
    ticks = "".join(f"<li>{hour_of(hour.began_at)}</li>" for hour in hours[::_EVERY])
    return f"""<figure class="plot">
<p class="scale"><span class="key done"></span> {_scale("done", most_done)}</p>
<svg viewBox="0 0 {width} {height:g}" preserveAspectRatio="none" role="img" aria-labelledby="plot-title plot-desc">
<title id="plot-title">Recordings done and failed, by the hour</title>
<desc id="plot-desc">{done:,} done and {failed:,} failed in the last {len(hours)} hours; the table has each hour.</desc>
<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse">\
<rect class="failed" width="6" height="6"/><path class="hatch" d="M-1 1 1 -1M0 6 6 0M5 7 7 5"/></pattern></defs>
{bars}<rect class="axis" x="0" y="{_UP:g}" width="{width}" height="{_GAP:g}"/>
</svg>
<p class="scale"><span class="key failed"></span> {_scale("failed", most_failed)}</p>
<ol class="ticks" aria-hidden="true">{ticks}</ol>
<details><summary>Each hour as a table</summary>
<table><thead><tr><th scope="col">From</th><th scope="col">Done</th><th scope="col">Failed</th></tr></thead>
<tbody>{"".join(map(_row, reversed(hours)))}</tbody></table></details>
</figure>
"""


def _bar(at: int, hour: Hour, most_done: int, most_failed: int) -> str:
    x, wide = at * _WIDTH, _WIDTH - 4
    up, down = _high(hour.done, most_done, _UP), _high(hour.failed, most_failed, _DOWN)
    rest = f": {hour.done:,} done, {hour.failed:,} failed"
    parts = [
        f'<g><title data-hour="{hour.began_at}" data-rest="{rest}">{hour_of(hour.began_at, plain=True)}{rest}</title>'
    ]
    parts.append(f'<rect class="ground" x="{x}" y="0" width="{_WIDTH}" height="{_UP + _GAP + _DOWN:g}"/>')
    if up:
        parts.append(f'<rect class="done" x="{x + 2}" y="{_UP - up:.1f}" width="{wide}" height="{up:.1f}"/>')
    if down:
        y = _UP + _GAP
        parts.append(f'<rect fill="url(#hatch)" x="{x + 2}" y="{y:g}" width="{wide}" height="{down:.1f}"/>')
    return "".join((*parts, "</g>\n"))


def _scale(what: str, most: int) -> str:
    return f"{what}, at most {most:,} an hour" if most else f"none {what}"


def _high(count: int, most: int, full: float) -> float:
    return max(_LEAST, count / most * full) if count else 0.0


def _row(hour: Hour) -> str:
    until = hour_of(hour.began_at + HOUR_S)
    return (
        f"<tr><th scope=row>{hour_of(hour.began_at)} to {until}</th><td>{hour.done:,}</td><td>{hour.failed:,}</td></tr>"
    )
