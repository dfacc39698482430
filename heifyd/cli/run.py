"""``heifyd run``: the daemon."""

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from heifyd.cli import config_option
from heifyd.cli.explained import CONFIG_FILE, Explained


@click.command(
    "run",
    cls=Explained,
    short_help="Run the daemon.",
    exits={
        0: "it was told to stop, and has stopped",
        2: None,
        70: "a thread died or hung; the service manager should start it again",
        75: None,
        78: None,
    },
    environment=(
        *("HEIFYD_CONFIG", "HEIFY_API_KEY", "HTTPS_PROXY, NO_PROXY", "SSL_CERT_FILE"),
        *("STATE_DIRECTORY", "XDG_STATE_HOME", "TZ"),
    ),
    files={
        CONFIG_FILE: "the configuration; `heifyd schema` describes it",
        "/var/lib/heifyd/ledger.sqlite": "the ledger, if the configuration names no other: what waits, and what was",
        "done/, failed/": "in each watched folder: where its recordings go, and beside a failed one the reason",
    },
    examples={
        "heifyd run --config ./config.yaml": "run it by hand and read the log; Ctrl-C stops it",
        "kill -HUP PID, systemctl reload heifyd": "read the configuration again; a wrong one changes nothing",
        "kill -USR1 PID": "scan all folders now",
    },
)
@config_option
@click.option(
    "--log",
    "log_format",
    type=click.Choice(["auto", "json", "text"]),
    default="auto",
    show_default=True,
    help="How the log is written to standard output; auto: text on a terminal, else JSON.",
)
def command(config_path: Path, log_format: str) -> int:
    """Watch the folders of the configuration, and upload what is finished, until SIGTERM or Ctrl-C.

    Running uploads are given shutdown_grace to end; what is left of them then, the next start goes on with. It stays in
    the foreground; a service manager starts it.
    """
    with _without("rich"):
        from heifyd import lifecycle, log

    faulthandler.enable()  # where each thread was, when systemd's watchdog ends a process that hangs by SIGABRT
    redact = log.Redactor()
    logger = log.make(redact, for_reading={"auto": None, "json": False, "text": True}[log_format])
    code = lifecycle.run(config_path, os.environ, logger, redact)
    if threading.active_count() > 1:
        os._exit(code)  # a thread that hangs in a system call would keep the process from ending
    return int(code)


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Let nothing that is imported in the block find `package`.

    httpx and structlog import rich, for uses that the daemon has none of, wherever it is installed: 4 MiB of memory.
    """
    modules: dict[str, Any] = sys.modules
    if package in modules:
        yield
        return
    modules[package] = None  # upon which importing it fails (docs.python.org, "The module cache")
    try:
        yield
    finally:
        del modules[package]
