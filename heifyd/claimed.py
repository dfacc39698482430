"""A claimed recording's file: opened as the recording it was, or what it means that it is not there any more."""

import os
from pathlib import Path

from heifyd import faults, mounts, tree
from heifyd.errors import HeifydError
from heifyd.faults import FaultError
from heifyd.ledger import Claim, State
from heifyd.recording import Identity, Stamp, Ticket


class SupersededError(HeifydError):
    """The file is no longer the recording that was claimed; the way in has it again.

    `event` is what the log calls it, `state` how the ledger ends it.
    """

    def __init__(self, event: str, state: State, detail: str) -> None:
        super().__init__(detail)
        self.event = event
        self.state = state


class VanishedError(SupersededError):
    """Nothing has the recording's name any more."""


def open_claimed(claim: Claim) -> int:
    """Open a claimed recording for reading, and return its descriptor. Raises SupersededError, or FaultError."""
    found = claim.identity
    try:
        root = tree.open_root(found.folder)
    except OSError as error:
        raise FaultError(
            faults.of_folder("folder_missing", f"{found.folder} cannot be opened: {error.strerror}")
        ) from None
    with tree.opened(root):
        try:
            return tree.open_recording(root, found.path)
        except FileNotFoundError:
            raise absence(claim) from None
        except tree.NotARegularFileError as error:
            raise SupersededError("recording.refused", State.VANISHED, str(error)) from None
        except PermissionError as error:
            detail = f"it cannot be opened: {error.strerror}"
            raise SupersededError("recording.refused", State.VANISHED, detail) from None
        except OSError as error:
            detail = f"{found.path} cannot be opened: {error.strerror}"
            raise FaultError(faults.of_folder("unreadable", detail)) from None


def absence(claim: Claim) -> HeifydError:
    """Tell what it means that a recording is not in its folder: it is gone, or the whole folder is."""
    folder = claim.identity.folder
    if not Path(folder).is_dir():
        return FaultError(faults.of_folder("folder_missing", f"{folder} is not there"))
    mount = mounts.mount_of(os.path.realpath(folder), mounts.own_mounts()).point
    if claim.mount not in ("", mount):
        return FaultError(faults.of_folder("folder_missing", f"what was mounted at {claim.mount} is not"))
    return VanishedError("recording.vanished", State.VANISHED, "it is not there any more")


def must_still_be(fd: int, found: Identity, ticket: Ticket | None = None) -> None:
    """Raise SupersededError where the open file is not the recording any more; `ticket` is what it was sent with."""
    if Stamp.of(os.fstat(fd)).identity(found.folder, found.path) != found:
        sent = f"; an earlier content of it is in Heify as {ticket.transcription_id}" if ticket else ""
        raise SupersededError(
            "recording.changed", State.SUPERSEDED, f"it was written to after it had settled; it settles anew{sent}"
        )
