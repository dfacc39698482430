"""``heifyd run``: the daemon."""

import faulthandler
import os
import threading
from pathlib import Path

import click

from heifyd.cli import config_option


@click.command("run", short_help="Run the daemon.")
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
    """Watch the folders of the configuration until SIGTERM.

    SIGHUP reads the configuration again, SIGUSR1 scans all folders now. Exit codes: 0 stopped, 70 internal error, 75
    another heifyd uses the ledger, 78 the configuration is not valid.
    """
    from heifyd import lifecycle, log

    faulthandler.enable()  # where each thread was, when systemd's watchdog ends a process that hangs by SIGABRT
    redact = log.Redactor()
    logger = log.make(redact, for_reading={"auto": None, "json": False, "text": True}[log_format])
    code = lifecycle.run(config_path, os.environ, logger, redact)
    if threading.active_count() > 1:
        os._exit(code)  # a thread that hangs in a system call would keep the process from ending
    return int(code)
