"""What ``heifyd status`` shows on a terminal, laid out for its width."""

import os
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.filesize import decimal
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from heifyd.ledger import UploadRow
from heifyd.overview import FolderStatus, Overview
from heifyd.wording import age, printable

_MOST_UPLOADS: Final = 10
_TABLE_COLUMNS: Final = 70
_WIDE_COLUMNS: Final = 120
_MIDDLE_COLUMNS: Final = 60
_BAR_COLUMNS: Final = 20
_LEAST_NAME_COLUMNS: Final = 12


class Board:
    """One heifyd at one time; everything is shown at any width, in fewer columns where there are few."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._now = time.time()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay it out for the width at hand."""
        ledger = escape(printable(self._overview.ledger))
        state = "[bold green]running[/]" if self._overview.running else "[bold red]not running[/]"
        yield Text.from_markup(f"heifyd is {state} on {ledger}", overflow="fold")
        yield from self._holds()
        width = options.max_width
        if width >= _TABLE_COLUMNS:
            yield self._folder_table()
        else:
            for each in self._overview.folders:
                yield from self._folder_lines(each)
        shown = self._overview.uploads[:_MOST_UPLOADS]
        if shown:
            yield Text()
            yield Text("uploads", style="bold")
            if width >= _WIDE_COLUMNS:
                yield self._upload_table(shown)
            else:
                yield from self._upload_lines(shown, narrow=width < _MIDDLE_COLUMNS)
        if (more := len(self._overview.uploads) - len(shown)) > 0:
            yield Text(f"and {more} smaller ones", style="dim")

    def _holds(self) -> Iterator[Text]:
        for hold in self._overview.holds:
            since = ""
            if hold.since is not None:
                since = datetime.fromtimestamp(hold.since).astimezone().strftime(" since %Y-%m-%d %H:%M:%S")
            what = escape(printable(hold.scope) or "everything")
            detail = escape(printable(hold.detail))
            yield Text.from_markup(f"[bold red]held[/] {what}{since}: {detail}\n     {escape(hold.advice)}")

    def _folder_table(self) -> Table:
        table = Table(box=None, header_style="bold")
        table.add_column("folder", overflow="fold")
        for column in ("waiting", "uploading", "done today", "failed", "oldest"):
            table.add_column(column, justify="right")
        for each in self._overview.folders:
            counts = each.counts
            table.add_row(
                _folder(each),
                str(counts.waiting),
                str(counts.uploading),
                str(counts.done_since),
                _failed(counts.failed),
                self._oldest(each),
            )
        return table

    def _folder_lines(self, each: FolderStatus) -> Iterator[RenderableType]:
        counts = each.counts
        told = [f"{counts.waiting} waiting", f"{counts.uploading} uploading", f"{counts.done_since} done today"]
        told.append(f"{_failed(counts.failed)} failed")
        if oldest := self._oldest(each):
            told.append(f"oldest {oldest}")
        yield Text.from_markup(_folder(each), overflow="fold")
        yield Padding(", ".join(told), (0, 0, 0, 2))

    def _oldest(self, each: FolderStatus) -> str:
        at = each.counts.oldest_settled_at
        return "" if at is None else age(self._now - at)

    def _upload_table(self, uploads: Sequence[UploadRow]) -> Table:
        table = Table(box=None, show_header=False)
        table.add_column(ratio=1)
        for _ in range(5):
            table.add_column(justify="right", no_wrap=True)
        for upload in uploads:
            rate, left = self._speed(upload)
            table.add_row(_name(upload), _bar(upload, _BAR_COLUMNS), _percent(upload), _amount(upload), rate, left)
        return table

    def _upload_lines(self, uploads: Sequence[UploadRow], *, narrow: bool) -> Iterator[RenderableType]:
        """Give each upload two lines: its name, and below it a bar in what the figures leave; the bars are as long."""
        figures = []
        for upload in uploads:
            rate, left = self._speed(upload)
            figures.append([_percent(upload), left] if narrow else [_percent(upload), _amount(upload), rate, left])
        widths = [max(map(len, column)) for column in zip(*figures, strict=True)]
        for upload, told in zip(uploads, figures, strict=True):
            row = Table(box=None, show_header=False, padding=(0, 1, 0, 0), expand=True)
            row.add_column(ratio=1)
            for width in widths:
                row.add_column(justify="right", no_wrap=True, min_width=width)
            row.add_row(_bar(upload), *told)
            yield _name(upload)
            yield row

    def _speed(self, upload: UploadRow) -> tuple[str, str]:
        """Tell the rate since the upload began, and how long the rest takes at that rate."""
        took_s = self._now - upload.began_at
        if took_s <= 0 or not upload.sent_bytes:  # the date was set, or nothing has got through yet
            return "", ""
        rate = upload.sent_bytes / took_s
        left_bytes = upload.size_bytes - upload.sent_bytes
        return f"{decimal(int(rate))}/s", f"{_minutes(left_bytes / rate)} left" if left_bytes else "all sent"


class _EndOf:
    """A text of which the end is shown where there is no room for all."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self._text
        if cell_len(text) > options.max_width:
            while cell_len(text) >= options.max_width:
                text = text[1:]
            text = f"…{text}"
        yield Text(text, no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_LEAST_NAME_COLUMNS, cell_len(self._text)), cell_len(self._text))


def _name(upload: UploadRow) -> _EndOf:
    return _EndOf(printable(os.path.join(upload.folder, upload.path)))


def _bar(upload: UploadRow, width: int | None = None) -> ProgressBar:
    return ProgressBar(total=upload.size_bytes, completed=upload.sent_bytes, width=width)


def _percent(upload: UploadRow) -> str:
    return f"{100 * upload.sent_bytes // upload.size_bytes} %"


def _amount(upload: UploadRow) -> str:
    return f"{decimal(upload.sent_bytes)} of {decimal(upload.size_bytes)}"


def _minutes(seconds: float) -> str:
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"


def _folder(each: FolderStatus) -> str:
    return escape(printable(each.folder)) + ("" if each.configured else " [dim](not configured)[/]")


def _failed(number: int) -> str:
    return f"[red]{number}[/]" if number else "0"
