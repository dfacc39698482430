"""`python -m tests.bench [ROW …] [--quick]`: one table of what heifyd costs, beside a rival's cost of the same."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import machine, report
from tests.bench.bench import Bench
from tests.bench.measure import kind_of_account
from tests.bench.program import ROOT, Program
from tests.bench.report import BenchError, Figure, Result
from tests.bench.rows import ROWS
from tests.bench.server import serving


def main() -> int:
    names = [name for group in ROWS for name in group]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which rows ({' '.join(names)}); all where left out")
    parser.add_argument("--quick", action="store_true", help="do less: does it work, and roughly what comes out?")
    parser.add_argument(
        "--work", type=Path, help="a directory on the disk that is to be measured; $TMPDIR's by default"
    )
    parser.add_argument("--package", type=Path, default=ROOT / "heifyd", help="another heifyd package to measure")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(names):
        parser.error(f"there is no row {' '.join(sorted(unknown))}; the rows are {' '.join(names)}")
    wanted = options.rows or names
    began_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="heifyd-bench-", dir=options.work) as directory,
        serving() as server,
    ):
        work = Path(directory)
        about = machine.describe(work)
        bench = Bench(work, options.quick, server, Program(options.package, work))
        results = [result for group in ROWS if set(group) & set(wanted) for result in _measured(bench, group)]
    results = [result for result in results if result.row in wanted]
    lines = [
        *about,
        f"CPU by {kind_of_account()}; the rival: tests/bench/rival.sh, 4 uploads at once"
        + ("; --quick: less of everything, for a look only" if options.quick else ""),
        "",
        report.table(results),
        "",
        report.notes(results),
        f"\nall in {time.monotonic() - began_s:.0f} s, load {os.getloadavg()[0]:.1f} at the end",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if any(figure.met is False for result in results for figure in result.figures) else 0


def _measured(bench: Bench, group: tuple[str, ...]) -> Sequence[Result]:
    """Measure the rows of one group; what cannot be measured is a line of the table, and no end to the others."""
    try:
        return ROWS[group](bench)
    except BenchError as error:
        return [Result(row, [Figure("not measured", "", met=False)], [str(error)]) for row in group]


if __name__ == "__main__":
    sys.exit(main())
