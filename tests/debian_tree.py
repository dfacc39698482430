"""A small Debian in a directory, made once a run: what an image is built on, or a service manager is booted in."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import need, need_program, need_root

SUITE = "bookworm"
PYTHON = ("ca-certificates", "python3", "python3-venv")
"""What heifyd is installed with."""


@contextmanager
def debian_tree(tmp_path_factory: pytest.TempPathFactory, packages: Sequence[str] = PYTHON) -> Iterator[Path]:
    """Give the root of a minimal Debian with these packages, which is not to be written to; or skip the test.

    Who asks for the same packages gets the same tree, in whichever worker.
    """
    need_root()
    mmdebstrap = need_program("mmdebstrap")

    def make(place: Path) -> None:
        left_out = [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("doc", "locale", "man")]
        include = f"--include={','.join(sorted(packages))}"
        run = subprocess.run(
            [mmdebstrap, "--quiet", "--variant=minbase", include, *left_out, SUITE, place],
            capture_output=True,
            text=True,
            check=False,
        )
        need(run.returncode == 0, f"a mirror of Debian; mmdebstrap says: {run.stderr.strip()[-500:]}")

    with made_once(tmp_path_factory, "-".join(("debian", *sorted(packages))), make) as tree:
        yield tree


@contextmanager
def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Give a directory that the first worker who asks for it fills by `make`, and the last who leaves it removes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    place, ready = base / name, base / f"{name}.ready"
    with (base / f"{name}.making").open("w") as making, (base / f"{name}.using").open("w") as using:
        fcntl.flock(making, fcntl.LOCK_EX)
        fcntl.flock(using, fcntl.LOCK_SH)
        if not ready.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make(place)
            ready.touch()
        fcntl.flock(making, fcntl.LOCK_UN)
        try:
            yield place
        finally:
            fcntl.flock(making, fcntl.LOCK_EX)
            try:
                fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # somebody else still does
            else:
                ready.unlink()
                shutil.rmtree(place)
