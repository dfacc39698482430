"""The log: one JSON object a line, or a line for reading on a terminal; nothing secret in either."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from heifyd.hiding import without

Log: TypeAlias = FilteringBoundLogger

_WATCHDOG_NOISE: Final = ("called when the thread is inactive", "already exists for watch")
"""What watchdog says each time one of its threads is stopped, and when sub-folders are made in quick succession."""


class Redactor:
    """Takes secrets out of text: the API keys it was told of, and the signatures of upload URLs."""

    def __init__(self) -> None:
        self._secrets: tuple[str, ...] = ()

    def hide(self, secret: str) -> None:
        """From now on let this secret appear nowhere; its form inside a JSON string is hidden too."""
        if secret not in self._secrets:
            escaped = secret.replace("\\", "\\\\").replace('"', '\\"')
            self._secrets = (*self._secrets, secret, escaped)

    def __call__(self, text: str) -> str:
        """Return the text without its secrets."""
        return without(text, self._secrets)


class Lines:
    """Where the log's lines go: a descriptor, past any buffer. Thread-safe.

    A log that cannot be written (its disk is full, its reader has gone) stops no work. The lines that are lost are
    counted, and told of by `lost`, which makes a line of their number, as soon as there is room again. A line that is
    begun is ended first, so that each stays whole.
    """

    def __init__(self, fd: int, lost: Callable[[int], bytes]) -> None:
        self._fd = fd
        self._lost = lost
        self._lock = threading.Lock()
        self._lost_lines = 0
        self._rest = b""

    def msg(self, line: bytes) -> None:
        """Write one line."""
        with self._lock:
            self._go_on()
            if self._lost_lines and not self._rest and self._begin(self._lost(self._lost_lines)):
                self._lost_lines = 0
            if self._rest or self._lost_lines or not self._begin(line):
                self._lost_lines += 1

    debug = info = warning = error = critical = msg

    def _begin(self, line: bytes) -> bool:
        """Write as much of a line as there is room for; tell whether that was any of it."""
        self._rest = whole = line + b"\n"
        self._go_on()
        if self._rest == whole:
            self._rest = b""
            return False
        return True

    def _go_on(self) -> None:
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._fd, self._rest) :]
        except OSError:
            return  # what is left of the line waits for the next one


def make(redact: Redactor, fd: int = 1, *, for_reading: bool | None = None) -> Log:
    """Make the daemon's logger, which writes to the descriptor `fd` (standard output).

    `for_reading` chooses between lines for people and JSON; None asks whether `fd` is a terminal. A
    byte of a file name that is not UTF-8 is written as JSON's escape of a lone surrogate, from which Python's
    `os.fsencode` gets it back.
    """
    readable = os.isatty(fd) if for_reading is None else for_reading
    render: Any = _for_reading(redact) if readable else structlog.processors.JSONRenderer(ensure_ascii=False)

    def to_line(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
        return redact(render(logger, method, event)).encode("utf-8", "backslashreplace")

    def lost(lines: int) -> bytes:
        event = {"timestamp": datetime.now(UTC).isoformat(), "level": "error", "event": "log.lost", "lines": lines}
        detail = "so many lines before this one could not be written"
        return to_line(None, "error", event | {"detail": detail})

    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
        structlog.processors.ExceptionRenderer(),
        _in_order,
        to_line,
    ]
    wrapper = structlog.make_filtering_bound_logger(logging.INFO)
    logger: Log = structlog.wrap_logger(
        Lines(fd, lost), processors=processors, wrapper_class=wrapper, context_class=dict
    ).bind()
    return logger


def telling(log: Log, tell: Callable[[Mapping[str, Any]], None]) -> Log:
    """Return a logger that writes as `log` does and gives `tell` each event first; it must neither wait nor raise."""
    inner: Any = log

    def tell_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        tell(event)
        return event

    # structlog keeps these three for its own wrappers to be made of (structlog.org, "Custom Wrappers").
    logger, processors, context = inner._logger, inner._processors, inner._context  # noqa: SLF001 (see above)
    made: Log = type(inner)(logger, [tell_first, *processors], context)
    return made


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put timestamp, level and event first: every line begins alike."""
    head = {key: event.pop(key) for key in ("timestamp", "level", "event")}
    return {**head, **event}


def _for_reading(redact: Redactor) -> Any:
    console = structlog.dev.ConsoleRenderer(
        colors=True, pad_event_to=20, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        # Rendered for reading, a value may be quoted, so what is secret in it must go before.
        present = {k: redact(v) if isinstance(v, str) else v for k, v in event.items() if v is not None}
        return str(console(logger, method, present))

    return render


class _Forward(logging.Handler):
    """Brings what libraries log into the one log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            detail = record.getMessage()
            if not any(noise in detail for noise in _WATCHDOG_NOISE):
                self._log.warning("library.warning", library=record.name, detail=detail, exc_info=record.exc_info)
        except (TypeError, ValueError):
            self.handleError(record)  # what the library logs does not fit its own format


@contextmanager
def libraries_to(log: Log) -> Iterator[None]:
    """Send the libraries' warnings to `log` within the block; nothing below: httpx logs whole URLs at INFO."""
    handler = _Forward(log)
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.removeHandler(handler)
