"""The rival: a shell script as most people would write it, run beside heifyd on the same work."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from heifyd.sandbox import API_KEY, CONFIGURATION_ID, EVALUATOR_ID
from tests.bench.measure import Accounted, await_that
from tests.bench.report import BenchError

PARALLEL: Final = 4
SCRIPT: Final = Path(__file__).with_name("rival.sh")
PROGRAMS: Final = ("bash", "inotifywait", "curl", "jq")


@contextmanager
def running(root: Path, url: str) -> Iterator[Accounted]:
    """Run the rival on the folder `root`/calls for the block; it watches when the block begins."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise BenchError(f"the rival takes {program}")
    output = root / "rival.out"
    env = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "FOLDER": os.fspath(root / "calls"),
        "API": url,
        "KEY": API_KEY,
        "CONFIGURATION_ID": CONFIGURATION_ID,
        "EVALUATOR_ID": EVALUATOR_ID,
        "PARALLEL": str(PARALLEL),
    }
    with output.open("wb") as out, Accounted(["bash", os.fspath(SCRIPT)], env=env, out=out) as rival:
        await_that(lambda: rival.is_over or b"Watches established" in output.read_bytes(), "the rival's watch")
        yield rival
        said = [line for line in output.read_text("utf-8", "replace").splitlines() if "atches" not in line]
        if said:
            raise BenchError(f"the rival met with errors: {said[:3]}")


def put_alone(source: Path, url: str) -> float:
    """Send one file with a bare `curl -T`, and return the CPU seconds that this took in all."""
    command = ["curl", "-sS", "-f", "-o", "/dev/null", "-T", os.fspath(source), "-H", "Content-Type: audio/wav"]
    command += ["-H", f"x-amz-meta-configuration_id: {CONFIGURATION_ID}"]
    command += ["-H", f"x-amz-meta-evaluator_id: {EVALUATOR_ID}"]
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    with Accounted([*command, f"{url}/upload/alone"], env=env, out=subprocess.DEVNULL) as curl:
        if curl.wait() != 0:
            raise BenchError("curl could not send the file")
        return curl.cpu_s()
