"""What every test stands on: the process is set up as the daemon's is, and no thread outlives the test that made it."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from heifyd.sandbox import Sandbox

settings.register_profile("heifyd", deadline=None)  # a disk that is busy with other things breaks no promise
settings.load_profile("heifyd")


@pytest.fixture(scope="session", autouse=True)
def sigio_is_ignored() -> Iterator[None]:
    """Ignore SIGIO as `service.signals_to` does: the kernel sends it to whoever holds a lease that is being broken."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


@pytest.fixture(scope="session", autouse=True)
def sigint_is_heeded() -> None:
    """Let the programs under test be ended by SIGINT also where the tests run in the background of a shell.

    What is ignored stays ignored in a program that is started (signal(7)).
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a test that leaves a thread running: who starts one stops it and joins it."""
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    if left:
        pytest.fail(f"threads were left running: {', '.join(left)}")


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """Run a local Heify that allows any rate, in this process."""
    with Sandbox(tmp_path / "heify", rate_limit=None) as sandbox:
        yield sandbox


@pytest.fixture(
    params=[
        pytest.param("a line\nbreak.wav", id="newline"),
        pytest.param("quo\"te's \\ & <b>.wav", id="quotes"),
        pytest.param(os.fsdecode(b"\xff\xfe.wav"), id="not-utf-8"),
        pytest.param("x" * 251 + ".wav", id="255-bytes"),
        pytest.param(os.fsdecode("ü".encode() * 125 + b"\xff.wav"), id="255-bytes-not-ascii"),
        pytest.param("-rf ~ {stem}*?.wav", id="shell"),
    ]
)
def odd_name(request: pytest.FixtureRequest) -> str:
    """Give a file name that a file system allows and a program may stumble over."""
    name: str = request.param
    return name
