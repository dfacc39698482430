"""The process from start to end: makes a daemon, does what it is called for, makes another where that takes one."""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from heifyd import config, faults
from heifyd.api_key import read_key
from heifyd.config import ConfigError
from heifyd.daemon import Daemon, key_reader, set_aside_ledger
from heifyd.faults import Fault
from heifyd.ledger import HoldRow, Ledger, LedgerError, LedgerInUseError, LedgerUnwritableError
from heifyd.log import Log, Redactor, libraries_to
from heifyd.service import Call, Calls, Exit, for_other_threads, signals_to
from heifyd.statuspage import StatusPage

_HOUSEKEEPING_S: Final = 3600.0
_AGAIN_S: Final = 1.0


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


def run(path: Path, environ: Mapping[str, str], log: Log, redact: Redactor) -> Exit:
    """Run the daemon of the configuration at `path` until a signal ends it. Problems are logged, not raised."""
    calls = Calls()
    hook_before = threading.excepthook

    def thread_died(args: threading.ExceptHookArgs) -> None:
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        log.critical("thread.died", thread=args.thread.name if args.thread else None, exc_info=error)
        calls.put(Call.DIED)

    threading.excepthook = thread_died
    try:
        with signals_to(calls), libraries_to(log):
            return Runner(path, environ, log, redact, calls).run()
    except Exception:  # the main thread's top: what Python itself prints could hold a secret
        log.critical("thread.died", thread="main", exc_info=True)
        return Exit.INTERNAL
    finally:
        threading.excepthook = hook_before


class Runner:
    """The main thread: makes a daemon, does what it is called for, and makes another where that takes one."""

    def __init__(self, path: Path, environ: Mapping[str, str], log: Log, redact: Redactor, calls: Calls) -> None:
        self._path = path
        self._environ = environ
        self._log = log
        self._redact = redact
        self._calls = calls
        self._ledger_hold = LedgerHold(log)
        self._page = StatusPage(path, environ, log, redact, lambda: self._ledger_hold.rows)

    def run(self) -> Exit:
        """Run until a call ends it."""
        try:
            return self._run()
        except ConfigError as error:
            _log_problems(self._log, "config.invalid", error)
            return Exit.CONFIG
        except LedgerError as error:
            self._log.critical("ledger.unusable", detail=str(error))
            return Exit.IN_USE if isinstance(error, LedgerInUseError) else Exit.CONFIG
        finally:
            self._page.stop()

    def _run(self) -> Exit:
        daemon = self._started()
        if daemon is None:
            return Exit.OK
        while (call := self._calls.take(_HOUSEKEEPING_S)) not in (Call.STOP, Call.DIED):
            if call is Call.RESCAN:
                daemon.rescan()
            elif call is None:
                daemon.housekeeping()
            elif daemon.damage is not None if call is Call.DAMAGED else self._is_valid():
                self._log.info("daemon.reloading")
                if not daemon.stop():
                    return Exit.INTERNAL
                if daemon.damage is not None:
                    set_aside_ledger(daemon.ledger, daemon.damage, self._log)
                daemon = self._started()
                if daemon is None:
                    return Exit.OK
        self._log.info("daemon.stopping")
        stopped = self._page.stop() & daemon.stop()
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
                if self._calls.take(_AGAIN_S) is Call.STOP:
                    self._log.info("daemon.stopped")
                    return None
                continue
            self._ledger_hold(None)
            with for_other_threads():
                daemon.start()
            self._page.go_on()
            daemon.housekeeping()
            return daemon

    def _is_valid(self) -> bool:
        """Tell whether the configuration could be used; where it could not, the log says why and nothing changes."""
        try:
            settings = config.load(self._path, self._environ, may_be_missing=_known_before)
            read_key(settings.api, self._environ)
            self._page.show(settings)
        except ConfigError as error:
            _log_problems(self._log, "config.rejected", error)
            return False
        return True


def _log_problems(log: Log, event: str, error: ConfigError) -> None:
    for problem in error.problems:
        log.error(event, file=problem.file, line=problem.line, key=problem.key, detail=problem.message)
