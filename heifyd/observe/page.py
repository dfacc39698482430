"""The status page as HTML: all that a look has seen, for a person to take in at a glance. Pure."""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from heifyd import __version__
from heifyd.ledger import UploadRow
from heifyd.ledger_history import Failure
from heifyd.observe.health import EVERYTHING, Reason, reasons
from heifyd.observe.look import MOST_FAILURES, Look
from heifyd.observe.markup import advice, breaking, common, name, path, text, time_of
from heifyd.observe.plot import plot
from heifyd.observe.verdict import Level, Verdict, verdict
from heifyd.overview import FolderStatus, Overview
from heifyd.wording import age, amount

_SHAPES: Final[dict[Level, str]] = {
    "well": '<path d="M7 12.5 10.5 16 17 9"/>',
    "notice": '<path d="M12 6.5v7M12 17.2v.1"/>',
    "held": '<path d="M9 8v8M15 8v8"/>',
    "unknown": '<path d="M9.2 9.2c.4-3.6 6-3.2 5.7.2-.2 2-2.9 2-2.9 4.4M12 17.2v.1"/>',
}
LEVELS: Final = tuple(_SHAPES)
_COLOURS: Final[dict[Level, str]] = {"well": "#1a7f37", "notice": "#9a6700", "held": "#cf222e", "unknown": "#6639ba"}
_REFRESH_S: Final = 10
_NONE: Final = "&ndash;"


def icon(level: Level) -> str:
    """Return the browser tab's icon."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#fff" stroke-width="2.6" '
        f'stroke-linecap="round" stroke-linejoin="round"><circle cx="12" cy="12" r="12" fill="{_COLOURS[level]}" '
        f'stroke="none"/>{_SHAPES[level]}</svg>\n'
    )


def render(look: Look, stuck: Sequence[str], host: str, asset: Callable[[str], str]) -> str:
    """Return the page; `host` is what this machine is called, `asset` gives the address of one of the page's files."""
    found = [*reasons(look)]
    judged = verdict(look, found, stuck)
    sections = [_verdict(judged), _reasons(look, found)]
    if look.overview is not None:
        below = common([each.folder for each in look.overview.folders])
        sections += [_totals(look, look.overview), _hours(look), _uploads(look, look.overview, below)]
        sections += [_folders(look, look.overview, found, below), _failures(look, below)]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{judged.word}: heifyd on {text(host)}</title>
<link rel="icon" type="image/svg+xml" href="{asset(f"icon-{judged.level}.svg")}">
<link rel="stylesheet" href="{asset("page.css")}">
<script src="{asset("page.js")}" defer></script>
<noscript><meta http-equiv="refresh" content="{_REFRESH_S}"></noscript>
</head>
<body data-lost-icon="{asset("icon-unknown.svg")}">
<a class="skip" href="#view">Skip to how things stand</a>
<div id="contact" role="alert"></div>
<div id="page">
<header>
<p class="title">heifyd <span>on <bdi>{text(host)}</bdi></span></p>
<p class="seen">as of {time_of(look.at)}</p>
</header>
<main id="view" tabindex="-1">
{"".join(sections)}\
</main>
<footer>
<p>heifyd {__version__}, ledger {name(str(look.subject.ledger))}{_room(look)}. This page changes nothing.</p>
<p>Times are those of <span data-as="zone">the machine that heifyd runs on</span>. For programs: \
<a href="/metrics">/metrics</a>, <a href="/healthz">/healthz</a>, <a href="/readyz">/readyz</a>.</p>
</footer>
</div>
</body>
</html>
"""


def _verdict(judged: Verdict) -> str:
    return f"""<section class="verdict {judged.level}" aria-labelledby="verdict">
<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="11"/>{_SHAPES[judged.level]}</svg>
<div><h1 id="verdict" aria-live="polite">{text(judged.headline)}</h1>
<p>{text(judged.line)}</p></div>
</section>
"""


def _reasons(look: Look, found: Sequence[Reason]) -> str:
    if not found:
        return ""
    each = "".join(_reason(one, look.at) for one in found)
    return f'<section aria-labelledby="held"><h2 id="held">What is held</h2>\n<ul class="cards">{each}</ul></section>\n'


def _reason(found: Reason, now: float) -> str:
    since = f", since {time_of(found.since)}, for {age(now - found.since)}" if found.since is not None else ""
    scope = "Everything" if found.scope == EVERYTHING else path(found.scope)
    return f"""<li class="card held"><h3>{scope}</h3>
<p class="about">{text(found.owner)}: <code>{text(found.reason)}</code>{since}</p>
<p>{breaking(found.detail)}</p>
<p class="advice"><strong>What to do:</strong> {advice(found.what_to_do)}</p></li>
"""


def _totals(look: Look, overview: Overview) -> str:
    counts = [each.counts for each in overview.folders]
    since = [each.oldest_settled_at for each in counts if each.oldest_settled_at is not None]
    ago = "" if look.last_done is None else f"{age(look.at - look.last_done)} <small>ago</small>"
    totals = (
        ("Waiting", "folders", f"{sum(each.waiting for each in counts):,}"),
        ("Oldest", "folders", age(look.at - min(since)) if since else _NONE),
        (
            "Uploading",
            "uploads",
            f"{sum(each.uploading for each in counts):,} <small>of {look.subject.workers}</small>",
        ),
        ("Done today", "hours", f"{sum(each.done_since for each in counts):,}"),
        ("Last one done", "hours", ago or _NONE),
        ("Failed", "failures", f"{sum(each.failed for each in counts):,}"),
    )
    cells = "".join(
        f'<div><dt>{what}</dt><dd><a href="#{where}">{value}</a></dd></div>' for what, where, value in totals
    )
    return f'<section aria-label="All folders together"><dl class="totals">{cells}</dl></section>\n'


def _folders(look: Look, overview: Overview, found: Iterable[Reason], below: str) -> str:
    held = {text(each.scope) for each in found}
    columns = ("Waiting", "Uploading", "Done today", "Failed", "Oldest")
    heads = "".join(f'<th scope="col" role="columnheader">{each}</th>' for each in ("Folder", *columns))
    all_below = f" <small>below {breaking(below)}</small>" if below else ""
    rows = "".join(_folder(each, look.at, held, below) for each in overview.folders)
    return f"""<section aria-labelledby="folders"><h2 id="folders">Folders{all_below}</h2>
<table class="folders" role="table"><thead role="rowgroup"><tr role="row">{heads}</tr></thead>
<tbody role="rowgroup">{rows}</tbody></table></section>
"""


def _folder(each: FolderStatus, now: float, held: AbstractSet[str], below: str) -> str:
    counts, since = each.counts, each.counts.oldest_settled_at
    marks = "" if each.configured else ' <span class="mark">not configured</span>'
    if text(each.folder) in held:
        marks += ' <span class="mark held">held</span>'
    cells = (
        ("Waiting", counts.waiting, f"{counts.waiting:,}"),
        ("Uploading", counts.uploading, f"{counts.uploading:,}"),
        ("Done today", counts.done_since, f"{counts.done_since:,}"),
        ("Failed", counts.failed, f"{counts.failed:,}"),
        ("Oldest", since, age(now - since) if since is not None else _NONE),
    )
    shown = "".join(
        f'<td role="cell" data-label="{what}"{_tone(what, value)}>{cell}</td>' for what, value, cell in cells
    )
    return f'<tr role="row"><th scope="row" role="rowheader">{path(each.folder, below)}{marks}</th>{shown}</tr>\n'


def _tone(what: str, value: float | None) -> str:
    if not value:
        return ' class="none"'
    return ' class="bad"' if what == "Failed" else ""


def _hours(look: Look) -> str:
    if not look.hours:
        return ""
    return f'<section aria-labelledby="hours"><h2 id="hours">The last 24 hours</h2>\n{plot(look.hours)}</section>\n'


def _uploads(look: Look, overview: Overview, below: str) -> str:
    some = "".join(_upload(each, look.at, below) for each in overview.uploads)
    none = '<p class="empty">None that takes longer than a moment.</p>'
    shown = f'<ul class="uploads">{some}</ul>' if some else none
    return f'<section aria-labelledby="uploads"><h2 id="uploads">Uploads in progress</h2>\n{shown}</section>\n'


def _upload(each: UploadRow, now: float, below: str) -> str:
    took_s = max(now - each.began_at, 0.1)
    rate = each.sent_bytes / took_s
    left = f", about {age((each.size_bytes - each.sent_bytes) / rate)} left" if each.sent_bytes else ""
    share = f"{100 * each.sent_bytes // max(each.size_bytes, 1)} %"
    amounts = f"{amount(each.sent_bytes)} of {amount(each.size_bytes)}, {amount(rate)}/s{left}"
    return f"""<li><p>{name(each.path)} <span class="above">in {path(each.folder, below)}</span></p>
<progress max="{each.size_bytes}" value="{each.sent_bytes}" aria-label="{text(each.path)}">{share}</progress>
<p class="about"><strong>{share}</strong> {amounts}</p></li>
"""


def _failures(look: Look, below: str) -> str:
    some = "".join(_failure(each, below) for each in look.failures)
    shown = f'<ul class="cards">{some}</ul>' if look.failures else '<p class="empty">None.</p>'
    most = f" <small>the {MOST_FAILURES} latest</small>" if len(look.failures) == MOST_FAILURES else ""
    return f'<section aria-labelledby="failures"><h2 id="failures">Last failures{most}</h2>\n{shown}</section>\n'


def _failure(each: Failure, below: str) -> str:
    lies = f", now at <bdi>{breaking(each.filed_at.removeprefix(f'{each.folder}/'))}</bdi>" if each.filed_at else ""
    what_to_do = f" <strong>What to do:</strong> {advice(each.advice)}" if each.advice else ""
    return f"""<li class="card failure"><h3>{name(each.path)}</h3>
<p class="about">{time_of(each.ended_at)}, in {path(each.folder, below)}{lies}</p>
<p><code>{text(each.reason or "?")}</code>: {breaking(each.detail or "")}.{what_to_do}</p></li>
"""


def _room(look: Look) -> str:
    return "" if look.free_bytes is None else f", {amount(look.free_bytes)} free on its disk"
