"""What the sandbox keeps, on disk: its signing key, one small JSON file a transcription, one file an object.

Every file is written beside its place and renamed into it, so that a sandbox killed at any instruction finds whole
files at its next start. Nothing is rewritten as a whole: a transcription costs the same whether it is the first or the
twenty-thousandth.
"""

import hashlib
import itertools
import json
import secrets
import threading
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from heifyd.recording import Ids
from heifyd.sandbox.sigv4 import Credentials


@dataclass(frozen=True, slots=True)
class Account:
    """Who the sandbox's one customer is, and what its upload URLs are signed with."""

    client_id: str
    credentials: Credentials


@dataclass(frozen=True, slots=True)
class Transcription:
    """One transcription: what step 1 was asked, and what has arrived for it so far.

    Times are UTC, ISO 8601. `size_bytes`, `sha256` (hex), `content_type` and `stored_at` are those of the last
    complete PUT, None before it; `puts` counts the complete PUTs.
    """

    transcription_id: str
    configuration_id: str
    evaluator_id: str | None
    participant_id: str | None
    name: str | None
    created_at: str
    stored: bool = False
    stored_at: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    content_type: str | None = None
    puts: int = 0


def as_dict(one: Transcription) -> dict[str, Any]:
    """Return a transcription's fields by name; they are flat, so nothing is copied deeply."""
    return {name: getattr(one, name) for name in Transcription.__slots__}


def utc_now() -> str:
    """Return the time of the wall clock as the store writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Store:
    """The sandbox's state below one directory, which it makes; any thread may read."""

    def __init__(self, directory: Path) -> None:
        self._objects = directory / "objects"
        self._transcriptions = directory / "transcriptions"
        self._incoming = directory / "incoming"
        for folder in (self._objects, self._transcriptions, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)
        for left_over in self._incoming.iterdir():
            left_over.unlink(missing_ok=True)
        self._lock = threading.Lock()
        self._known: dict[str, Transcription] = {}
        self._serial = itertools.count()
        self.account = self._load_account(directory / "account.json")

    def create(self, ids: Ids, name: str | None) -> Transcription:
        """Make a transcription that waits for its object."""
        made = Transcription(
            transcription_id=str(uuid.uuid4()),
            configuration_id=ids.configuration_id,
            evaluator_id=ids.evaluator_id,
            participant_id=ids.participant_id,
            name=name,
            created_at=utc_now(),
        )
        self._write(made)
        return made

    def get(self, transcription_id: str) -> Transcription | None:
        """Return a transcription, or None where there is none of that id."""
        known = self._known.get(transcription_id)
        if known is not None or not _is_uuid(transcription_id):
            return known
        return self._load(transcription_id)

    def all(self) -> list[Transcription]:
        """Return every transcription, oldest first."""
        found = [self.get(path.stem) for path in self._transcriptions.glob("*.json")]
        return sorted((one for one in found if one is not None), key=lambda one: (one.created_at, one.transcription_id))

    def object_path(self, transcription_id: str) -> Path:
        """Return where the object of a transcription lies, or will lie once it has arrived."""
        return self._objects / transcription_id

    def receive(self, transcription_id: str) -> "Incoming":
        """Begin to receive an object; it counts as stored only when `Incoming.complete` has returned."""
        return Incoming(self, transcription_id, self._temporary(transcription_id))

    def arrived(self, transcription_id: str, temporary: Path, *, size: int, sha256: str, content_type: str) -> None:
        """Put a whole object in its place, over the one before it, and note it."""
        temporary.replace(self.object_path(transcription_id))
        before = self.get(transcription_id)
        if before is not None:
            self._write(
                replace(
                    before,
                    stored=True,
                    stored_at=utc_now(),
                    size_bytes=size,
                    sha256=sha256,
                    content_type=content_type,
                    puts=before.puts + 1,
                )
            )

    def _temporary(self, name: str) -> Path:
        return self._incoming / f"{name}.{next(self._serial)}"

    def _write(self, transcription: Transcription) -> None:
        text = json.dumps(as_dict(transcription))
        path = self._transcriptions / f"{transcription.transcription_id}.json"
        self._write_file(path, text)
        with self._lock:
            self._known[transcription.transcription_id] = transcription

    def _write_file(self, path: Path, text: str) -> None:
        temporary = self._temporary(path.name)
        temporary.write_bytes(text.encode())
        temporary.replace(path)

    def _load(self, transcription_id: str) -> Transcription | None:
        try:
            text = (self._transcriptions / f"{transcription_id}.json").read_bytes()
        except FileNotFoundError:
            return None
        loaded = self._mended(Transcription(**json.loads(text)))
        with self._lock:
            return self._known.setdefault(transcription_id, loaded)

    def _mended(self, loaded: Transcription) -> Transcription:
        """Trust the object over the note: a kill between the two renames leaves the note behind."""
        path = self.object_path(loaded.transcription_id)
        try:
            status = path.stat()
        except FileNotFoundError:
            return loaded
        if loaded.stored and loaded.size_bytes == status.st_size:
            return loaded
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        stored_at = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="milliseconds")
        return replace(
            loaded,
            stored=True,
            stored_at=stored_at,
            size_bytes=status.st_size,
            sha256=digest,
            puts=loaded.puts + 1,
        )

    def _load_account(self, path: Path) -> Account:
        if not path.exists():
            made = {"client_id": str(uuid.uuid4()), "access_key": "SANDBOX", "secret": secrets.token_hex(20)}
            self._write_file(path, json.dumps(made))
        known = json.loads(path.read_bytes())
        return Account(known["client_id"], Credentials(known["access_key"], known["secret"]))


class Incoming:
    """An object on its way in: written to a temporary file and hashed as it comes.

    A context manager: what is not complete at its end is gone.
    """

    def __init__(self, store: Store, transcription_id: str, temporary: Path) -> None:
        self._store = store
        self._transcription_id = transcription_id
        self._temporary = temporary
        self._digest = hashlib.sha256()
        self._file: BinaryIO
        self.size_bytes = 0

    def __enter__(self) -> Self:
        self._file = self._temporary.open("xb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self._file.close()
            self._temporary.unlink()

    def write(self, chunk: bytes) -> None:
        """Add what has arrived."""
        rest = memoryview(chunk)
        while rest:  # a raw file may take less than it is given
            rest = rest[self._file.write(rest) :]
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def complete(self, content_type: str) -> str:
        """Put the object in its place and return its SHA-256 (hex)."""
        sha256 = self._digest.hexdigest()
        self._file.close()
        self._store.arrived(
            self._transcription_id,
            self._temporary,
            size=self.size_bytes,
            sha256=sha256,
            content_type=content_type,
        )
        return sha256


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
