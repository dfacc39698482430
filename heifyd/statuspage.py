"""The status page over all of the process's life: it stays where it is while the daemon behind it is made anew."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from heifyd.api_key import read_token
from heifyd.config import Config, ConfigError, Problem
from heifyd.heify import Listener
from heifyd.ledger import HoldRow
from heifyd.log import Log, Redactor, telling
from heifyd.service import for_other_threads

if TYPE_CHECKING:
    from heifyd.observe.server import Server, Subject


class StatusPage:
    """Makes, moves and ends the server that the configuration asks for; without one it costs nothing, not even memory.

    `held` gives holds that no ledger can hold. Its methods are the main thread's.
    """

    def __init__(
        self,
        config_path: Path,
        environ: Mapping[str, str],
        log: Log,
        redact: Redactor,
        held: Callable[[], Sequence[HoldRow]],
    ) -> None:
        self._config_path = config_path
        self._environ = environ
        self._log = log
        self._redact = redact
        self._held = held
        self._server: Server | None = None
        self._subject: Subject | None = None
        self._hanging: Callable[[], Sequence[str]] = tuple

    @property
    def log(self) -> Log:
        """The log whose events are counted, if anybody counts."""
        return self._log if self._server is None else telling(self._log, self._server.metrics.tell)

    @property
    def listener(self) -> Listener | None:
        """Who counts the requests to Heify, if anybody does."""
        return None if self._server is None else self._server.metrics

    def show(self, settings: Config) -> None:
        """Listen where the configuration says, and tell of a heifyd that starts, until `go_on`.

        Raises ConfigError where that cannot be; then all is as it was.
        """
        listen, token = settings.status.listen, read_token(settings.status, self._environ)
        if listen is None:
            self.stop()
            return
        if token is not None:
            self._redact.hide(token)
        from heifyd.observe import server  # noqa: PLC0415 (who asks for no page is spared what it takes of memory)

        folders = tuple(os.fspath(folder.path) for folder in settings.folders)
        self._subject = server.Subject(settings.ledger, folders, settings.workers, is_running=False, since=time.time())
        try:
            if self._server is None:
                made = server.Server(listen, token, self._subject, alive=self._stuck, held=self._held)
                with for_other_threads():
                    made.start()
                self._server, is_news = made, True
            else:
                is_news = self._server.move(listen, token)
        except server.CannotListenError as error:
            raise ConfigError([Problem(os.fspath(self._config_path), None, "status.listen", str(error))]) from None
        self._hanging = tuple
        self._server.at(self._subject)
        if is_news:
            self._log.info("status.listening", address=str(self._server.address), token=token is not None)

    def pause(self) -> None:
        """Tell of a heifyd that starts anew, until `go_on`."""
        self._hanging = tuple
        if self._server is not None and self._subject is not None:
            self._subject = replace(self._subject, is_running=False, since=time.time())
            self._server.at(self._subject)

    def go_on(self, hanging: Callable[[], Sequence[str]]) -> None:
        """Tell of a heifyd that runs; `hanging` names its threads that make no progress."""
        self._hanging = hanging
        if self._server is not None and self._subject is not None:
            self._subject = replace(self._subject, is_running=True, since=time.time())
            self._server.at(self._subject)

    def _stuck(self) -> Sequence[str]:
        return self._hanging()

    def stop(self) -> bool:
        """End the server, if there is one, whoever is looking; return False where a thread of it hangs."""
        server, self._server = self._server, None
        if server is None or server.stop():
            return True
        self._log.critical("daemon.stuck", threads=["status-look"], detail="a folder or the ledger's disk hangs")
        return False
