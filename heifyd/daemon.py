"""Builds the rooms from a configuration, starts, supervises and stops their threads."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from heifyd import __version__, config, faults, mounts, watch
from heifyd.api_key import read_key
from heifyd.config import Config, ConfigError, Folder
from heifyd.faults import FaultError
from heifyd.heify import Heify
from heifyd.intake import Intake
from heifyd.ledger import Ledger, LedgerError, LedgerInUseError
from heifyd.log import Log, Redactor, libraries_to
from heifyd.pace import Pace, TokenBucket
from heifyd.service import Call, Calls, Exit, signals_to
from heifyd.settle import Rule, Settling
from heifyd.upload import Uploads
from heifyd.watch import Observing, Plan

_HOUSEKEEPING_S: Final = 3600.0
_CUT_OFF_S: Final = 10.0
_READY_S: Final = 10.0
_SETTLE_S: Final = {False: 2.0, True: 30.0}
_RESCAN_S: Final = {"events": 60.0, "poll": 10.0}
_DAY_S: Final = 86400.0


def plan_of(folder: Folder) -> Plan:
    """Decide how a folder is watched. Raises OSError where the mounts cannot be read."""
    return watch.plan(os.path.realpath(folder.path), folder.watch, mounts.own_mounts())


def settle_rule(folder: Folder, plan: Plan) -> Rule:
    """Decide when a folder's files count as quiet."""
    seconds = _SETTLE_S[plan.remote] if folder.settle_seconds is None else folder.settle_seconds
    return Rule(seconds, least_looks=2 if plan.remote else 1, trust_age=not plan.remote)


def rescan_seconds(folder: Folder, plan: Plan) -> float:
    """Decide how often a folder is scanned."""
    return folder.rescan_seconds or _RESCAN_S[plan.kind]


def key_reader(settings: Config, environ: Mapping[str, str], redact: Redactor) -> Callable[[], str]:
    """Return what reads the API key for each request, so that a new key works at once; it is hidden from the log."""

    def read() -> str:
        try:
            key = read_key(settings.api, environ)
        except ConfigError as error:
            raise FaultError(faults.of_key(str(error))) from None
        redact.hide(key)
        return key

    return read


class Daemon:
    """All threads of one configuration: one intake a folder, the workers, and watchdog's."""

    def __init__(self, settings: Config, key: Callable[[], str], log: Log, calls: Calls) -> None:
        """Build the rooms. Raises LedgerError, LedgerInUseError."""
        self._settings = settings
        self._log = log
        self._calls = calls
        self._threads: list[threading.Thread] = []
        """The workers first, then the intakes."""
        self._ledger = Ledger(settings.ledger)
        try:
            self._ledger.lock()
        except LedgerInUseError:
            self._ledger.close()
            raise
        self._observing = Observing()
        self._heify = Heify(settings.api.base_url, key, connections=settings.workers)
        limit = settings.api.rate_limit
        bucket = TokenBucket.full(limit.per_minute, limit.burst, time.monotonic()) if limit else None
        folders = {os.fspath(folder.path): folder for folder in settings.folders}
        self._uploads = Uploads(folders, self._ledger, self._heify, Pace(bucket), log, retry_for_s=settings.retry_for)
        self._intakes = [self._intake(folder) for folder in settings.folders]

    def _intake(self, folder: Folder) -> Intake:
        plan = plan_of(folder)
        rule = settle_rule(folder, plan)
        rescan_s = rescan_seconds(folder, plan)
        self._log.info(
            "folder.watched",
            folder=os.fspath(folder.path),
            watch=plan.kind,
            reason=plan.reason,
            settle_seconds=rule.settle_seconds,
            rescan_seconds=rescan_s,
        )
        return Intake(
            folder,
            plan,
            Settling(rule),
            self._ledger,
            self._observing,
            self._log,
            rescan_seconds=rescan_s,
            poll_seconds=min(rescan_s, _RESCAN_S["poll"]),
        )

    def start(self) -> None:
        """Start every thread, and come back when all folders are watched, or hang."""
        try:
            self._observing.start()
        except OSError as error:
            self._log.warning("watch.unavailable", detail=f"{error.strerror}; every folder is polled")
        for number in range(self._settings.workers):
            self._spawn(f"upload-{number + 1}", self._uploads.work)
        for intake in self._intakes:
            self._spawn("intake", intake.work)
        until_s = time.monotonic() + _READY_S
        for folder, intake in zip(self._settings.folders, self._intakes, strict=True):
            if not intake.ready.wait(max(0.0, until_s - time.monotonic())):
                self._log.error(
                    "folder.unresponsive",
                    folder=os.fspath(folder.path),
                    detail="it does not answer; heifyd goes on without it until it does",
                )
        self._log.info(
            "daemon.started",
            version=__version__,
            folders=len(self._intakes),
            workers=self._settings.workers,
            ledger=os.fspath(self._ledger.path),
        )

    def _spawn(self, name: str, target: Callable[[], None]) -> None:
        def supervised() -> None:
            try:
                target()
            except Exception:  # noqa: BLE001 (a thread's top: it is logged, and the daemon ends with it)
                self._log.critical("thread.died", thread=name, exc_info=True)
                self._calls.put(Call.DIED)

        thread = threading.Thread(target=supervised, name=name)
        self._threads.append(thread)
        thread.start()

    def rescan(self) -> None:
        """Have every folder scanned now."""
        for intake in self._intakes:
            intake.hints.scan()

    def housekeeping(self) -> None:
        """Delete history that is older than `history_days`."""
        pruned = self._ledger.prune(time.time() - self._settings.history_days * _DAY_S)
        if pruned:
            self._log.info("ledger.pruned", recordings=pruned)

    def stop(self) -> bool:
        """End every thread: running uploads get the grace, then are left; return False if a thread hangs."""
        until_s = time.monotonic() + self._settings.shutdown_grace
        self._uploads.stop()
        for intake in self._intakes:
            intake.stop()
        for thread in reversed(self._threads):
            thread.join(max(0.0, until_s - time.monotonic()))
        self._observing.stop()
        until_s = time.monotonic() + _CUT_OFF_S
        while (running := [thread for thread in self._threads if thread.is_alive()]) and time.monotonic() < until_s:
            self._uploads.abandon()
            running[0].join(0.1)
        if running:
            self._log.critical(
                "daemon.stuck",
                threads=[thread.name for thread in running],
                detail="they hang in a system call and are left behind",
            )
            return False
        self._heify.close()
        self._ledger.close()
        return True


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
            return _run(path, environ, log, redact, calls)
    finally:
        threading.excepthook = hook_before


def _run(path: Path, environ: Mapping[str, str], log: Log, redact: Redactor, calls: Calls) -> Exit:
    def started() -> Daemon:
        settings = config.load(path, environ)
        redact.hide(read_key(settings.api, environ))
        daemon = Daemon(settings, key_reader(settings, environ, redact), log, calls)
        daemon.start()
        daemon.housekeeping()
        return daemon

    try:
        daemon = started()
        while (call := calls.take(_HOUSEKEEPING_S)) not in (Call.STOP, Call.DIED):
            if call is Call.RELOAD and _is_valid(path, environ, log):
                log.info("daemon.reloading")
                if not daemon.stop():
                    return Exit.INTERNAL
                daemon = started()
            elif call is Call.RESCAN:
                daemon.rescan()
            elif call is None:
                daemon.housekeeping()
    except ConfigError as error:
        _log_problems(log, "config.invalid", error)
        return Exit.CONFIG
    except LedgerError as error:
        log.critical("ledger.unusable", detail=str(error))
        return Exit.IN_USE if isinstance(error, LedgerInUseError) else Exit.CONFIG
    log.info("daemon.stopping")
    stopped = daemon.stop()
    log.info("daemon.stopped")
    return Exit.OK if stopped and call is Call.STOP else Exit.INTERNAL


def _is_valid(path: Path, environ: Mapping[str, str], log: Log) -> bool:
    """Tell whether the configuration could be used; where it could not, the log says why and nothing changes."""
    try:
        read_key(config.load(path, environ).api, environ)
    except ConfigError as error:
        _log_problems(log, "config.rejected", error)
        return False
    return True


def _log_problems(log: Log, event: str, error: ConfigError) -> None:
    for problem in error.problems:
        log.error(event, file=problem.file, line=problem.line, key=problem.key, detail=problem.message)
