"""How far an upload has got, for who looks from outside; what takes no time is not noted."""

import time
from collections.abc import Callable
from typing import Final

from heifyd.ledger import Claim, Ledger

_FIRST_S: Final = 1.0
_EVERY_S: Final = 2.0
_AGAIN_S: Final = 0.25


class Progress:
    """One recording's progress, noted in the ledger now and then while its PUT goes on. No note is waited for."""

    def __init__(self, ledger: Ledger, claim: Claim, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._claim = claim
        self._clock = clock
        self._is_noted = False

    def begin(self) -> None:
        """Take in that a PUT begins, the first or another one."""
        self._began_at = time.time()
        self._sent_bytes = 0
        self._due_s = self._clock() + _FIRST_S
        if self._is_noted:
            self._ledger.note_progress(self._claim, 0, self._began_at)

    def sent(self, piece_bytes: int) -> None:
        """Take in that so many more bytes are on their way."""
        self._sent_bytes += piece_bytes
        now_s = self._clock()
        if now_s >= self._due_s:
            is_noted = self._ledger.note_progress(self._claim, self._sent_bytes, self._began_at)
            self._is_noted |= is_noted
            self._due_s = now_s + (_EVERY_S if is_noted else _AGAIN_S)
