"""Text from outside and times as HTML. Pure."""

import html
import os
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from heifyd.wording import printable

_LEAST_IN_COMMON: Final = 2


def text(said: str) -> str:
    """Return any text as HTML, fit for attributes too; what cannot be seen, or turns text around, as escapes."""
    return html.escape(printable(said), quote=True)


def name(said: str) -> str:
    """Return a file's or a folder's name as HTML that may be broken anywhere and turns nothing around it."""
    return f"<bdi>{text(said)}</bdi>"


def path(said: str, below: str = "") -> str:
    """Return a folder's path, from `below` on, as HTML: its last part is the one that is read, it breaks at a slash."""
    above, slash, last = said.removeprefix(below).rpartition("/")
    return f'<bdi><span class="above">{breaking(above + slash)}</span><strong>{text(last)}</strong></bdi>'


def common(paths: Sequence[str]) -> str:
    """Return the directory that some folders lie below, with a slash at its end; "" where there is no telling one."""
    if len(paths) < _LEAST_IN_COMMON:
        return ""
    return os.path.commonpath([os.path.dirname(each) for each in paths]).rstrip("/") + "/"


def advice(said: str) -> str:
    """Return advice as HTML, commands in it as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(said))


def breaking(said: str) -> str:
    """Return a text with paths in it as HTML that breaks at their slashes, if it has to."""
    return text(said).replace("/", "/<wbr>")


def time_of(at: float) -> str:
    """Return a time (wall clock) with its date as HTML; a browser makes it one of its own zone."""
    then = datetime.fromtimestamp(at).astimezone()
    return f'<time datetime="{then.isoformat(timespec="seconds")}" data-as="time">{then:%Y-%m-%d %H:%M:%S}</time>'


def hour_of(at: float, *, plain: bool = False) -> str:
    """Return the beginning of an hour with its day."""
    then = datetime.fromtimestamp(at).astimezone()
    shown = f"{then:%a %H:%M}"
    return shown if plain else f'<time datetime="{then.isoformat(timespec="seconds")}" data-as="hour">{shown}</time>'
