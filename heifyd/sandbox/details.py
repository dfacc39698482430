"""What becomes of a stored recording: its status, and a small conversation that is made up."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from heifyd.recording import plausible_duration_s
from heifyd.sandbox.store import Transcription

COMPLETED: Final = "COMPLETED"
PROCESSING: Final = "PROCESSING"


def status(one: Transcription, processing_s: float) -> str | None:
    """Return ``PROCESSING`` or ``COMPLETED``, or None where the object never arrived."""
    if one.stored_at is None:
        return None
    return COMPLETED if datetime.now(UTC) >= _completed_at(one.stored_at, processing_s) else PROCESSING


def duration_s(path: Path, size_bytes: int) -> float | None:
    """Return the seconds that a stored recording lasts, or None where its content does not tell."""
    from tinytag import TinyTag, TinyTagException  # noqa: PLC0415 (only a finished transcription needs it)

    try:
        with path.open("rb") as file:
            claimed_s = TinyTag.get(file_obj=file, tags=False).duration
    except (TinyTagException, OSError):
        return None
    return plausible_duration_s(claimed_s, size_bytes)


def details(one: Transcription, processing_s: float) -> dict[str, Any]:
    """Return the ``details`` of a completed transcription, as Heify's page "Get Transcription" shows them."""
    completed_at = _completed_at(one.stored_at or one.created_at, processing_s)
    return {
        "language": "en",
        "num_speakers": 2,
        "created_at": one.created_at,
        "completed_at": completed_at.isoformat(timespec="milliseconds"),
        "conversation": {
            "segments": [
                {"text": "Good morning, how can I help you?", "speaker": "SPEAKER_00"},
                {"text": "My parcel has not arrived yet.", "speaker": "SPEAKER_01"},
                {"text": "Let me look that up for you.", "speaker": "SPEAKER_00"},
            ]
        },
        "summary": "A customer asks after a parcel.",
        "fields": {"fields": [{"name": "topic", "value": "delivery"}]},
        "evaluation": None if one.evaluator_id is None else _EVALUATION,
    }


_EVALUATION: Final[dict[str, Any]] = {"score": 87, "critical_fail": False, "status": COMPLETED, "breakdown": {}}


def _completed_at(stored_at: str, processing_s: float) -> datetime:
    return datetime.fromisoformat(stored_at) + timedelta(seconds=processing_s)
