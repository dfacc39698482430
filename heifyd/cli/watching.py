"""``heifyd status --watch``: the board again and again, in place on a terminal, one after another elsewhere."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import click
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.control import Control
from rich.segment import Segment
from rich.text import Text

from heifyd import overview
from heifyd.cli.board import Board
from heifyd.errors import HeifydError
from heifyd.overview import Overview

_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ALL: Final = (*_ENDS, signal.SIGTSTP, signal.SIGWINCH)


def watch(look: Callable[[], Overview], every_s: float, *, as_json: bool) -> None:
    """Show what `look` returns until SIGINT, SIGTERM or SIGHUP; a look that fails is shown as such.

    On a terminal that is in place, on the terminal's other screen; elsewhere one board follows the other.
    """
    console = Console()
    with _signals_wait_their_turn():
        if as_json:
            _one_after_another(lambda: click.echo(_json(look)), every_s)
        elif console.is_terminal and not console.is_dumb_terminal:
            _in_place(console, look, every_s)
        else:
            _one_after_another(lambda: console.print(_now(), _board(look), ""), every_s)


@contextmanager
def _signals_wait_their_turn() -> Iterator[None]:
    """Let no signal come between, so that the screen is given back whole; those that are ignored stay so (nohup)."""
    heeded = [number for number in _ALL if signal.getsignal(number) is not signal.SIG_IGN]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _one_after_another(show: Callable[[], None], every_s: float) -> None:
    while True:
        until_s = time.monotonic() + every_s
        show()
        while (number := _next_signal(until_s)) is not None:
            if number in _ENDS:
                return
            if number == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)


def _in_place(console: Console, look: Callable[[], Overview], every_s: float) -> None:
    screen = console.screen()
    screen.__enter__()
    try:
        while True:
            until_s = time.monotonic() + every_s
            head = f"{datetime.now().astimezone():%H:%M:%S}, every {every_s:g} s; Ctrl-C ends it\n"
            shown = _Fitted(Text(head, style="dim"), _board(look))
            console.print(Control.home(), shown, sep="", end="")
            while (number := _next_signal(until_s)) is not None:
                if number in _ENDS:
                    return
                if number == signal.SIGTSTP:
                    screen.__exit__(None, None, None)
                    os.kill(os.getpid(), signal.SIGSTOP)
                    screen.__enter__()
                console.print(Control.home(), shown, sep="", end="")
    finally:
        screen.__exit__(None, None, None)


def _next_signal(until_s: float) -> int | None:
    """Wait for a signal; None when the time has come."""
    taken = signal.sigtimedwait(_ALL, max(0.0, until_s - time.monotonic()))
    return None if taken is None else taken.si_signo


def _board(look: Callable[[], Overview]) -> RenderableType:
    try:
        return Board(look())
    except (HeifydError, OSError) as error:
        return Text(str(error), style="red", overflow="fold")


def _json(look: Callable[[], Overview]) -> str:
    try:
        return json.dumps(overview.as_dict(look()))
    except (HeifydError, OSError) as error:
        return json.dumps({"error": str(error)})


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")


class _Fitted:
    """Fills the terminal's screen; what does not fit is counted in the last line."""

    def __init__(self, *parts: RenderableType) -> None:
        self._parts = Group(*parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.size
        lines = console.render_lines(self._parts, options.update(width=width, height=None))
        if (more := len(lines) - height + 1) > 1:
            lines[height - 1 :] = [[Segment(f"… {more} lines more")]]
        for at, line in enumerate(Segment.set_shape(lines, width, height)):
            if at:
                yield Segment.line()
            yield from line
