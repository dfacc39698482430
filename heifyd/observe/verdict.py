"""Whether all is well, in a word and a line: what a person sees first. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from heifyd.observe.health import EVERYTHING, Reason
from heifyd.observe.look import Look

Level: TypeAlias = Literal["well", "notice", "held", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How things stand; `headline` changes only with that, `line` with every look."""

    level: Level
    word: str
    headline: str
    line: str


def verdict(look: Look, reasons: Sequence[Reason], stuck: Sequence[str]) -> Verdict:
    """Judge a look: what is worst comes first."""
    if stuck:
        line = f"No progress: {', '.join(stuck)}. The service manager starts heifyd again, or a person does."
        return Verdict("held", "Stuck", "Stuck: heifyd does not get on", line)
    if not look.subject.is_running and not look.holds:
        return Verdict("unknown", "Starting", "heifyd is starting", "Nothing is uploaded yet.")
    if look.trouble is not None and not look.holds:
        return Verdict("unknown", "Unknown", "How things stand cannot be told", "What is below is not of now.")
    line = _line(look)
    if any(each.scope == EVERYTHING for each in reasons):
        return Verdict("held", "Held", "Held: nothing is uploaded", line)
    if held := {each.scope for each in reasons if each.scope != EVERYTHING}:
        some = f"{len(held)} of {len(look.subject.folders)} folders"
        return Verdict("held", "Held", f"Held: {'the folder' if len(look.subject.folders) == 1 else some}", line)
    if failed := sum(hour.failed for hour in look.hours):
        return Verdict("notice", "Failures", f"Working, but {failed:,} failed in the last 24 hours", line)
    return Verdict("well", "Well", "All is well", line)


def _line(look: Look) -> str:
    if look.overview is None:
        return "The ledger cannot be read."
    counts = [each.counts for each in look.overview.folders]
    waiting, uploading = (sum(each.waiting for each in counts), sum(each.uploading for each in counts))
    if not waiting and not uploading:
        return "Nothing waits for its upload."
    parts = [f"{waiting:,} {'waits' if waiting == 1 else 'wait'}"] if waiting else []
    parts += [f"{uploading:,} {'is' if uploading == 1 else 'are'} being uploaded"] if uploading else []
    return f"{', '.join(parts)}."
