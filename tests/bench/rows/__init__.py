"""The rows: each module measures one, or two that come of the same work."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tests.bench.bench import Bench
from tests.bench.report import Result
from tests.bench.rows import backlog, bandwidth, history, idle, large, latency, memory, pace, small

ROWS: Final[Mapping[tuple[str, ...], Callable[[Bench], Sequence[Result]]]] = {
    ("small", "cpu"): small.run,
    ("large",): large.run,
    ("latency",): latency.run,
    ("backlog",): backlog.run,
    ("memory",): memory.run,
    ("idle",): idle.run,
    ("pace",): pace.run,
    ("bandwidth",): bandwidth.run,
    ("status", "history"): history.run,
}
"""By the names of the rows that come out."""
