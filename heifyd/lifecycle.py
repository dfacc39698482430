"""The process from start to end: makes a daemon, does what it is called for, makes another where that takes one."""

import os
import threading
import time
from collections.abc import Mapping, MutableMapping
from contextlib import closing
from pathlib import Path
from typing import Final

from heifyd import config, faults, pulse
from heifyd.api_key import read_key
from heifyd.config import ConfigError
from heifyd.daemon import Daemon, key_reader, set_aside_ledger
from heifyd.faults import Fault
from heifyd.ledger import HoldRow, Ledger, LedgerError, LedgerInUseError, LedgerUnwritableError
from heifyd.log import Log, Redactor, libraries_to
from heifyd.service import Call, Calls, Exit, Manager, for_other_threads, signals_to
from heifyd.statuspage import StatusPage

_HOUSEKEEPING_S: Final = 3600.0
_AGAIN_S: Final = 1.0
_LONGER_S: Final = 60.0
"""For how long the service manager is asked for patience, again and again while a start, a reload or a stop goes on."""


class LedgerHold:
    """Tells, once when it begins and once when it ends, that nothing goes on because the ledger cannot be written."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._began_s: float | None = None
        self._row: HoldRow | None = None

    @property
    def rows(self) -> list[HoldRow]:
        """The hold, while it lasts."""
        row = self._row
        return [] if row is None else [row]

    def __call__(self, trouble: str | None) -> None:
        """Take in what is wrong, or None where that is over."""
        if trouble is not None and self._began_s is None:
            self._began_s = time.monotonic()
            fault = faults.of_ledger(trouble)
            self._row = HoldRow("", fault.owner, fault.reason, fault.detail, fault.advice, time.time())
            self._log.error("hold.started", **self._about(fault), detail=fault.detail, what_to_do=fault.advice)
        elif trouble is None and self._began_s is not None:
            lasted_s = round(time.monotonic() - self._began_s, 1)
            self._began_s = self._row = None
            self._log.info("hold.ended", **self._about(faults.of_ledger("")), lasted_s=lasted_s)

    @staticmethod
    def _about(fault: Fault) -> dict[str, str]:
        return {"scope": "everything", "owner": fault.owner, "reason": fault.reason}


def _known_before(ledger_path: Path, folder: Path) -> bool:
    """Tell whether the ledger has recordings of a folder: then it is away, and no mistake of the configuration."""
    try:
        history = Ledger(ledger_path, create=False)
    except LedgerError:
        return False
    try:
        return os.fspath(folder) in history.folders()
    except LedgerError:
        return False
    finally:
        history.close()


def run(path: Path, environ: MutableMapping[str, str], log: Log, redact: Redactor) -> Exit:
    """Run the daemon of the configuration at `path` until a signal ends it. Problems are logged, not raised.

    What the service manager has put into `environ` for this process alone is taken out.
    """
    calls = Calls()
    hook_before = threading.excepthook

    def thread_died(args: threading.ExceptHookArgs) -> None:
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        log.critical("thread.died", thread=args.thread.name if args.thread else None, exc_info=error)
        calls.put(Call.DIED)

    def unreachable(detail: str) -> None:
        log.warning("manager.unreachable", detail=detail)

    threading.excepthook = thread_died
    try:
        with signals_to(calls), libraries_to(log), closing(Manager(environ, unreachable)) as manager:
            return Runner(path, environ, log, redact, calls, manager).run()
    except Exception:  # the main thread's top: what Python itself prints could hold a secret
        log.critical("thread.died", thread="main", exc_info=True)
        return Exit.INTERNAL
    finally:
        threading.excepthook = hook_before


class Runner:
    """The main thread: makes a daemon, does what it is called for, and makes another where that takes one.

    It is also who sees that all threads get on, and says so: to the service manager, and by a heartbeat.
    """

    def __init__(
        self, path: Path, environ: Mapping[str, str], log: Log, redact: Redactor, calls: Calls, manager: Manager
    ) -> None:
        self._path = path
        self._environ = environ
        self._log = log
        self._redact = redact
        self._calls = calls
        self._manager = manager
        self._ledger_hold = LedgerHold(log)
        self._page = StatusPage(path, environ, log, redact, lambda: self._ledger_hold.rows)
        self._rejected = ""
        self._look_s = min(pulse.LOOK_S, (manager.watchdog_s or pulse.LOOK_S * 2) / 2)
        self._next_look_s = 0.0
        self._next_housekeeping_s = 0.0

    def run(self) -> Exit:
        """Run until a call ends it."""
        try:
            return self._run()
        except ConfigError as error:
            _log_problems(self._log, "config.invalid", error)
            self._manager.alive(self._redact(f"the configuration cannot be used: {error.problems[0]}"))
            return Exit.CONFIG
        except LedgerError as error:
            self._log.critical("ledger.unusable", detail=str(error))
            self._manager.alive(str(error))
            return Exit.IN_USE if isinstance(error, LedgerInUseError) else Exit.CONFIG
        finally:
            self._page.stop()

    def _run(self) -> Exit:
        daemon = self._started()
        if daemon is None:
            return Exit.OK
        while (call := self._next_call(daemon)) not in (Call.STOP, Call.DIED):
            if call is Call.RESCAN:
                daemon.rescan()
                continue
            self._manager.reloading()
            if daemon.damage is not None if call is Call.DAMAGED else self._is_valid():
                self._log.info("daemon.reloading")
                self._page.pause()
                if not self._stop(daemon, "reloading"):
                    return Exit.INTERNAL
                if daemon.damage is not None:
                    set_aside_ledger(daemon.ledger, daemon.damage, self._log)
                new = self._started()
                if new is None:
                    return Exit.OK
                daemon = new
            else:
                self._manager.ready(self._status(daemon))
        self._log.info("daemon.stopping")
        self._manager.stopping("stopping")
        stopped = self._page.stop() & self._stop(daemon, "stopping")
        self._log.info("daemon.stopped")
        return Exit.OK if stopped and call is Call.STOP else Exit.INTERNAL

    def _started(self) -> Daemon | None:
        """Make a daemon and start it; None where heifyd was told to stop while the ledger could not be written."""
        while True:
            settings = config.load(self._path, self._environ, may_be_missing=_known_before)
            self._redact.hide(read_key(settings.api, self._environ))
            self._page.show(settings)
            key = key_reader(settings, self._environ, self._redact)
            log, listener = self._page.log, self._page.listener
            try:
                daemon = Daemon(settings, key, log, self._calls, self._ledger_hold, listener)
            except LedgerUnwritableError as error:
                self._ledger_hold(str(error))
                if self._is_due():
                    self._manager.alive(str(error), for_s=_LONGER_S)
                if self._calls.take(_AGAIN_S) is Call.STOP:
                    self._log.info("daemon.stopped")
                    return None
                continue
            self._ledger_hold(None)
            with for_other_threads():
                daemon.start()
            self._page.go_on(daemon.hanging)
            self._rejected = ""
            self._next_look_s = self._next_housekeeping_s = 0.0
            self._manager.ready(self._status(daemon))
            return daemon

    def _stop(self, daemon: Daemon, why: str) -> bool:
        def meanwhile() -> None:
            if self._is_due():
                daemon.beat()
                self._manager.alive(why, for_s=_LONGER_S)

        self._next_look_s = 0.0
        return daemon.stop(meanwhile)

    def _next_call(self, daemon: Daemon) -> Call:
        """Wait for what to do next; see meanwhile that all is well."""
        while True:
            now_s = time.monotonic()
            if now_s >= self._next_housekeeping_s:
                self._next_housekeeping_s = now_s + _HOUSEKEEPING_S
                daemon.housekeeping()
            if self._is_due() and not self._is_well(daemon):
                return Call.DIED
            if (call := self._calls.take(max(0.0, self._next_look_s - time.monotonic()))) is not None:
                return call

    def _is_due(self) -> bool:
        """Tell whether it is time to look again, and note that this is done."""
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + self._look_s
        return True

    def _is_well(self, daemon: Daemon) -> bool:
        """Look at the threads, and say so where all get on; where one hangs, whoever waits for that acts by its own.

        Where nobody does, this says False.
        """
        if daemon.look():
            daemon.beat()
            self._manager.alive(self._status(daemon))
            return True
        return self._manager.watchdog_s is not None

    def _status(self, daemon: Daemon) -> str:
        return self._redact(self._rejected + daemon.doing()) if self._manager.is_there else ""

    def _is_valid(self) -> bool:
        """Tell whether the configuration could be used; where it could not, the log says why and nothing changes."""
        try:
            settings = config.load(self._path, self._environ, may_be_missing=_known_before)
            read_key(settings.api, self._environ)
            self._page.show(settings)
        except ConfigError as error:
            _log_problems(self._log, "config.rejected", error)
            self._rejected = f"the new configuration is rejected, the former one goes on ({error.problems[0]}); "
            return False
        return True


def _log_problems(log: Log, event: str, error: ConfigError) -> None:
    for problem in error.problems:
        log.error(event, file=problem.file, line=problem.line, key=problem.key, detail=problem.message)
