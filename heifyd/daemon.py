"""Builds the rooms from a configuration, starts, supervises and stops their threads."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from heifyd import __version__, faults, ledger, mounts, watch
from heifyd.api_key import read_key
from heifyd.config import Config, ConfigError, Folder
from heifyd.faults import FaultError
from heifyd.heify import Heify, Listener, boot_clock_s, boot_id
from heifyd.intake import Intake, Manner
from heifyd.ledger import Ledger, LedgerDamagedError, LedgerUnwritableError
from heifyd.log import Log, Redactor
from heifyd.pace import Bandwidth, Pace, TokenBucket
from heifyd.service import Call, Calls
from heifyd.settle import Rule
from heifyd.upload import Uploads
from heifyd.watch import Observing

_CUT_OFF_S: Final = 10.0
_READY_S: Final = 10.0
_SETTLE_S: Final = {False: 2.0, True: 30.0}
_RESCAN_S: Final = {"events": 60.0, "poll": 10.0}
_DAY_S: Final = 86400.0


def manner_of(folder: Folder) -> Manner:
    """Decide how a folder is looked after, where it is mounted now. Raises OSError where the mounts cannot be read."""
    plan = watch.plan(os.path.realpath(folder.path), folder.watch, mounts.own_mounts())
    settle_s = _SETTLE_S[plan.remote] if folder.settle_seconds is None else folder.settle_seconds
    rescan_s = folder.rescan_seconds or _RESCAN_S[plan.kind]
    return Manner(
        plan,
        Rule(settle_s, least_looks=2 if plan.remote else 1, trust_age=not plan.remote),
        rescan_seconds=rescan_s,
        poll_seconds=min(rescan_s, _RESCAN_S["poll"]),
    )


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

    def __init__(
        self,
        settings: Config,
        key: Callable[[], str],
        log: Log,
        calls: Calls,
        report: Callable[[str | None], None],
        listener: Listener | None = None,
    ) -> None:
        """Build the rooms; `report` is told when the ledger cannot be written, and None after. Raises LedgerError.

        `listener` is told of every request to Heify.
        """
        boot_id()  # read once, while there are descriptors to read it with
        self._settings = settings
        self.ledger = settings.ledger
        self._log = log
        self._calls = calls
        self.damage: str | None = None
        """What is wrong with the ledger's file, once it was found damaged."""
        self._threads: list[threading.Thread] = []
        """The workers first, then the intakes."""
        self._ledger = _open_ledger(settings.ledger, log, report)
        self._observing = Observing()
        bandwidth = Bandwidth(settings.bandwidth_limit)
        self._heify = Heify(
            settings.api.base_url, key, connections=settings.workers, bandwidth=bandwidth, listener=listener
        )
        limit = settings.api.rate_limit
        bucket = TokenBucket.full(limit.per_minute, limit.burst, time.monotonic()) if limit else None
        folders = {os.fspath(folder.path): folder for folder in settings.folders}
        self._uploads = Uploads(folders, self._ledger, self._heify, Pace(bucket), log, retry_for_s=settings.retry_for)
        self._intakes = [
            Intake(folder, partial(manner_of, folder), self._ledger, self._observing, log)
            for folder in settings.folders
        ]

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
            except LedgerDamagedError as error:
                self._ledger_is_damaged(error)
            except Exception:  # noqa: BLE001 (a thread's top: it is logged, and the daemon ends with it)
                self._log.critical("thread.died", thread=name, exc_info=True)
                self._calls.put(Call.DIED)

        thread = threading.Thread(target=supervised, name=name)
        self._threads.append(thread)
        thread.start()

    def _ledger_is_damaged(self, error: LedgerDamagedError) -> None:
        self.damage = str(error)
        self._calls.put(Call.DAMAGED)

    def rescan(self) -> None:
        """Have every folder scanned now."""
        for intake in self._intakes:
            intake.hints.scan()

    def housekeeping(self) -> None:
        """Delete history that is older than `history_days`, and URLs that no longer live."""
        try:
            self._ledger.forget_urls(boot_clock_s(), boot_id())
            pruned = self._ledger.prune(time.time() - self._settings.history_days * _DAY_S)
        except LedgerUnwritableError:
            return  # the threads that cannot go on without it tell of that; this can wait an hour
        except LedgerDamagedError as error:
            self._ledger_is_damaged(error)
            return
        if pruned:
            self._log.info("ledger.pruned", recordings=pruned)

    def stop(self) -> bool:
        """End every thread: running uploads get the grace, then are left; return False if a thread hangs."""
        until_s = time.monotonic() + self._settings.shutdown_grace
        self._uploads.stop()
        self._ledger.give_up()
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


def _open_ledger(path: Path, log: Log, report: Callable[[str | None], None]) -> Ledger:
    """Open the ledger for this daemon alone; a damaged file is set aside, and a new one begun. Raises LedgerError."""
    try:
        return Ledger.of_daemon(path, report)
    except LedgerDamagedError as error:
        set_aside_ledger(path, str(error), log)
        return Ledger.of_daemon(path, report)


def set_aside_ledger(path: Path, damage: str, log: Log) -> None:
    """Give a damaged ledger another name, and say so loudly. Raises LedgerError."""
    kept = ledger.set_aside(path)
    detail = (
        f"{damage}; heifyd begins a new one and goes on from what lies in the folders. "
        "A recording that was uploaded and not moved yet is sent again"
    )
    log.error("ledger.set_aside", detail=detail, kept_as=os.fspath(kept))
