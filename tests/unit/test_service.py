"""The signals that are calls, which the main thread alone takes; and what the service manager is told."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from heifyd.service import Call, Calls, Manager, for_other_threads, signals_to


def test_a_thread_that_is_started_for_the_work_takes_no_call() -> None:
    masks: list[set[int]] = []
    with for_other_threads():
        thread = threading.Thread(target=lambda: masks.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
        thread.start()
    thread.join()

    assert masks[0] >= {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_what_is_called_while_threads_are_started_is_taken_after_that() -> None:
    calls = Calls()
    with signals_to(calls):
        with for_other_threads():
            signal.raise_signal(signal.SIGUSR1)
            assert calls.take(0.01) is None
        assert calls.take(60) is Call.RESCAN


# The service manager


class Listener:
    """A service manager's socket, a path or, where it begins with "@", an abstract name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self._socket.settimeout(60)

    def heard(self) -> list[str]:
        """Wait for one message and return its lines."""
        return self._socket.recv(65536).decode().split("\n")

    def hears_nothing(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(65536)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(60)
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@heifyd-test-{os.getpid()}"
    with closing(Listener(address)) as listener:
        yield listener


def managed(listener: Listener, **environ: str) -> tuple[Manager, list[str]]:
    failures: list[str] = []
    return Manager({"NOTIFY_SOCKET": listener.address, **environ}, failures.append), failures


def test_each_stage_is_told_as_sd_notify_has_it(listener: Listener) -> None:
    manager, failures = managed(listener)
    with closing(manager):
        manager.ready("2 folders")
        assert listener.heard() == ["READY=1", "STATUS=2 folders"]

        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        manager.reloading()
        reloading, monotonic = listener.heard()
        assert reloading == "RELOADING=1"
        assert (
            before_us
            <= int(monotonic.removeprefix("MONOTONIC_USEC="))
            <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        )

        manager.stopping("stopping")
        assert listener.heard() == ["STOPPING=1", "STATUS=stopping"]
    assert not failures


def test_a_status_is_sent_only_when_it_is_news(listener: Listener) -> None:
    manager, _ = managed(listener)
    with closing(manager):
        manager.ready("idle")
        listener.heard()
        manager.alive("idle")
        assert listener.hears_nothing()
        manager.alive("busy")
        assert listener.heard() == ["STATUS=busy"]


def test_a_watchdog_is_fed_and_more_time_is_asked_for(listener: Listener) -> None:
    manager, _ = managed(listener, WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
    with closing(manager):
        assert manager.watchdog_s == 3.0
        manager.alive(for_s=1.5)
        assert listener.heard() == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000"]


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}])
def test_a_watchdog_that_is_not_this_process_s_is_not_fed(listener: Listener, environ: dict[str, str]) -> None:
    manager, _ = managed(listener, **environ)
    with closing(manager):
        assert manager.watchdog_s is None
        manager.alive()
        assert listener.hears_nothing()


def test_a_name_in_a_status_can_say_nothing_of_its_own(listener: Listener) -> None:
    manager, _ = managed(listener)
    with closing(manager):
        manager.ready("held: /calls\nSTOPPING=1\x00\x7f\udcff")
        assert listener.heard() == ["READY=1", r"STATUS=held: /calls STOPPING=1 \udcff"]


def test_without_a_manager_nothing_is_said() -> None:
    failures: list[str] = []
    with closing(Manager({}, failures.append)) as manager:
        manager.ready("")
        manager.reloading()
        manager.alive("x", for_s=1)
        manager.stopping("x")
        assert not manager.is_there
    assert not failures


def test_the_manager_s_variables_are_taken_out_of_the_environment(listener: Listener) -> None:
    environ = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Manager(environ, pytest.fail).close()
    assert environ == {"HOME": "/"}


def test_a_manager_that_has_gone_is_told_of_once_until_it_is_back(tmp_path: Path) -> None:
    gone = Listener(str(tmp_path / "notify"))
    manager, failures = managed(gone)
    with closing(manager):
        gone.close()
        manager.ready("a")
        manager.ready("b")
        assert len(failures) == 1
        (tmp_path / "notify").unlink()
        with closing(Listener(str(tmp_path / "notify"))) as back:
            manager.ready("c")
            assert back.heard() == ["READY=1", "STATUS=c"]
        manager.ready("d")
        assert len(failures) == 2


def test_a_socket_of_another_kind_is_told_of() -> None:
    failures: list[str] = []
    with closing(Manager({"NOTIFY_SOCKET": "vsock:2:1234"}, failures.append)) as manager:
        manager.ready("")
    assert "vsock:2:1234" in failures[0]
