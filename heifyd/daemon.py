"""Builds the rooms from a configuration, starts, supervises and stops their threads."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Final

from heifyd import __version__, faults, ledger, mounts, watch
from heifyd.api_key import read_key
from heifyd.config import Config, ConfigError, Folder
from heifyd.faults import FaultError
from heifyd.heify import Heify, Listener, boot_clock_s, boot_id
from heifyd.intake import Intake, Manner
from heifyd.ledger import HoldRow, Ledger, LedgerDamagedError, LedgerError, LedgerUnwritableError
from heifyd.log import Log, Redactor
from heifyd.pace import Bandwidth, Pace, TokenBucket
from heifyd.pulse import Pulses
from heifyd.service import Call, Calls
from heifyd.settle import Rule
from heifyd.upload import Uploads
from heifyd.watch import Observing

_CUT_OFF_S: Final = 10.0
_READY_S: Final = 10.0
_JOIN_S: Final = 1.0
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
        self._workers: list[threading.Thread] = []
        self._intake_threads: dict[str, threading.Thread] = {}
        self._pulses = Pulses()
        self._away: dict[str, HoldRow] = {}
        self._late_before: AbstractSet[str] = frozenset()
        self._hanging: AbstractSet[str] = frozenset()
        self._has_heartbeat = True
        beat = self._pulses.beat
        self._ledger = _open_ledger(settings.ledger, partial(Ledger.of_daemon, report=report, beat=beat), log)
        self.beat()
        self._observing = Observing()
        bandwidth, connections = Bandwidth(settings.bandwidth_limit), settings.workers
        self._heify = Heify(
            settings.api.base_url, key, connections=connections, bandwidth=bandwidth, beat=beat, listener=listener
        )
        limit = settings.api.rate_limit
        bucket = TokenBucket.full(limit.per_minute, limit.burst, time.monotonic()) if limit else None
        folders = {os.fspath(folder.path): folder for folder in settings.folders}
        pace = Pace(bucket, beat=beat)
        self._uploads = Uploads(folders, self._ledger, self._heify, pace, log, beat, retry_for_s=settings.retry_for)
        self._intakes = {
            name: Intake(folder, partial(manner_of, folder), self._ledger, self._observing, log, beat)
            for name, folder in folders.items()
        }

    def start(self) -> None:
        """Start every thread, and come back when all folders are watched, or do not answer.

        The workers come last, for a folder that does not answer is nothing that they may touch.
        """
        try:
            self._observing.start()
        except OSError as error:
            self._log.warning("watch.unavailable", detail=f"{error.strerror}; every folder is polled")
        for name, intake in self._intakes.items():
            self._intake_threads[name] = self._spawn("intake", intake.work, name)
        until_s = time.monotonic() + _READY_S
        for intake in self._intakes.values():
            intake.ready.wait(max(0.0, until_s - time.monotonic()))
        self.look()
        for number in range(self._settings.workers):
            self._workers.append(self._spawn(f"upload-{number + 1}", self._uploads.work))
        self._log.info(
            "daemon.started",
            version=__version__,
            folders=len(self._intakes),
            workers=self._settings.workers,
            ledger=os.fspath(self._ledger.path),
        )

    def _spawn(self, name: str, target: Callable[[], None], folder: str | None = None) -> threading.Thread:
        def supervised() -> None:
            self._pulses.begin(name, folder)
            try:
                target()
            except LedgerDamagedError as error:
                self._ledger_is_damaged(error)
            except Exception:  # noqa: BLE001 (a thread's top: it is logged, and the daemon ends with it)
                self._log.critical("thread.died", thread=name, exc_info=True)
                self._calls.put(Call.DIED)
            finally:
                self._pulses.end()

        thread = threading.Thread(target=supervised, name=name)
        thread.start()
        return thread

    def _ledger_is_damaged(self, error: LedgerDamagedError) -> None:
        self.damage = str(error)
        self._calls.put(Call.DAMAGED)

    def look(self) -> bool:
        """Tell whether every thread gets on; a folder that does not answer is only told of, and left alone.

        Its intake hangs in a system call. A restart would not end that, and would take the other folders down with it.
        """
        late = self._pulses.late()
        silent = {each.folder for each in late if each.folder is not None}
        silent |= {name for name, intake in self._intakes.items() if not intake.ready.is_set()}
        self._tell_of_silent(silent)
        hanging = {each.thread: f"it is {each.late_s:.0f} s late" for each in late if each.folder is None}
        if self._observing.has_ended():
            hanging["observer"] = "it has ended"
        # Where the clock jumped, as after a machine's pause, all are late until they have had their turn.
        still = hanging.keys() & self._late_before
        for thread in still - self._hanging:
            self._log.critical("thread.unresponsive", thread=thread, detail=hanging[thread])
        self._late_before, self._hanging = hanging.keys(), still
        return not still

    def hanging(self) -> list[str]:
        """Return the threads that do not get on, as of the last `look`."""
        return sorted(self._hanging)

    def _tell_of_silent(self, silent: set[str]) -> None:
        if silent == self._away.keys():
            return
        detail = "it does not answer; heifyd goes on without it until it does"
        fault = faults.of_silence(detail)
        for name in silent - self._away.keys():
            self._log.error("folder.unresponsive", folder=name, detail=detail, what_to_do=fault.advice)
        for name in self._away.keys() - silent:
            self._log.warning("folder.back", folder=name, detail="it answers again")
        since, said = time.time(), (fault.owner, fault.reason, detail, fault.advice)
        self._away = {name: self._away.get(name) or HoldRow(name, *said, since) for name in silent}
        self._uploads.leave_out(self._away)

    def beat(self) -> None:
        """Leave the heartbeat that `heifyd health` looks for."""
        try:
            self._ledger.beat(boot_clock_s())
        except OSError as error:
            if self._has_heartbeat:
                self._has_heartbeat = False
                detail = f"{error.strerror}; `heifyd health` cannot tell whether heifyd hangs"
                self._log.warning("heartbeat.unavailable", detail=detail)

    def doing(self) -> str:
        """Say in a line what there is to do and what is held; waits for nothing."""
        try:
            waiting, uploading = self._ledger.load()
            said = f"{len(self._intakes)} folders, {waiting} waiting, {uploading} uploading"
        except LedgerError:
            said = f"{len(self._intakes)} folders, the ledger cannot be read"
        held = [f"{hold.scope or 'everything'} ({hold.reason})" for hold in self._uploads.held]
        return said + (f", held: {', '.join(held)}" if held else "")

    def rescan(self) -> None:
        """Have every folder scanned now."""
        for intake in self._intakes.values():
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

    def stop(self, meanwhile: Callable[[], None]) -> bool:
        """End every thread: running uploads get the grace, then are left; return False if a thread hangs.

        `meanwhile` is called every second or so. The intake of a folder that does not answer is left behind.
        """
        self._uploads.stop()
        self._ledger.give_up()
        for intake in self._intakes.values():
            intake.stop()
        threads = [thread for name, thread in self._intake_threads.items() if name not in self._away] + self._workers
        until_s = time.monotonic() + self._settings.shutdown_grace
        while (running := _alive(threads)) and (left_s := until_s - time.monotonic()) > 0:
            running[0].join(min(left_s, _JOIN_S))
            meanwhile()
        self._observing.stop()
        until_s = time.monotonic() + _CUT_OFF_S
        while (running := _alive(threads)) and time.monotonic() < until_s:
            self._uploads.abandon()
            running[0].join(0.1)
            meanwhile()
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


def _alive(threads: Iterable[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threads if thread.is_alive()]


def _open_ledger(path: Path, opened: Callable[[Path], Ledger], log: Log) -> Ledger:
    """Open the ledger for this daemon alone; a damaged file is set aside, and a new one begun. Raises LedgerError."""
    try:
        return opened(path)
    except LedgerDamagedError as error:
        set_aside_ledger(path, str(error), log)
        return opened(path)


def set_aside_ledger(path: Path, damage: str, log: Log) -> None:
    """Give a damaged ledger another name, and say so loudly. Raises LedgerError."""
    kept = ledger.set_aside(path)
    detail = (
        f"{damage}; heifyd begins a new one and goes on from what lies in the folders. "
        "A recording that was uploaded and not moved yet is sent again"
    )
    log.error("ledger.set_aside", detail=detail, kept_as=os.fspath(kept))
