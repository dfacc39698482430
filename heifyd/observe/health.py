"""Whether heifyd is alive, and whether it is ready: what probes ask. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from heifyd.faults import Owner
from heifyd.observe.look import Look
from heifyd.wording import printable

EVERYTHING: Final = "everything"


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that keeps heifyd from uploading; `scope` is "everything" or a folder, `since` wall-clock seconds."""

    scope: str
    owner: str
    reason: str
    detail: str
    what_to_do: str
    since: float | None = None


def reasons(look: Look) -> Iterator[Reason]:
    """Give what keeps heifyd from uploading, fit to be read; nothing where it is ready."""
    if not look.subject.is_running:
        detail = "heifyd is starting, or reads its configuration anew"
        yield Reason(EVERYTHING, "daemon", "starting", detail, "wait a moment", look.subject.since)
    if look.trouble is not None:
        advice = "see to the ledger's file and its disk"
        yield Reason(EVERYTHING, Owner.LEDGER, "unreadable", printable(look.trouble), advice)
    for hold in look.holds:
        scope = printable(hold.scope) or EVERYTHING
        yield Reason(scope, hold.owner, hold.reason, printable(hold.detail), printable(hold.advice), hold.since)


def readiness(found: Sequence[Reason]) -> tuple[int, dict[str, object]]:
    """Return the HTTP status and the JSON that say whether heifyd is ready."""
    about = [
        {
            "scope": each.scope,
            "owner": each.owner,
            "reason": each.reason,
            "detail": each.detail,
            "what_to_do": each.what_to_do,
            "since": each.since,
        }
        for each in found
    ]
    return (503 if found else 200), {"status": "held" if found else "ready", "reasons": about}


def liveness(stuck: Sequence[str]) -> tuple[int, dict[str, object]]:
    """Return the HTTP status and the JSON that say whether all threads make progress."""
    return (503 if stuck else 200), {"status": "stuck" if stuck else "alive", "stuck_threads": [*stuck]}
