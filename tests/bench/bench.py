"""What all rows share: where they work, how much they do, the server, the program, and a heap of files."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

from tests.bench import recordings
from tests.bench.program import Program
from tests.bench.server import Server
from tests.harness import Place, make_place

T = TypeVar("T")

HEAP_FILE_BYTES: Final = 1_000


@dataclass(slots=True)
class Bench:
    """One run of the benchmark; with `quick` every row does less, to see that it works and roughly what comes out."""

    work: Path
    quick: bool
    server: Server
    program: Program
    _numbers: Iterator[int] = field(default_factory=count)
    _heap: Path | None = None

    def much(self, full: T, quick: T) -> T:
        """Choose how much is done."""
        return quick if self.quick else full

    def say(self, what: str) -> None:
        """Tell on standard error what is being done: the table comes at the end."""
        sys.stderr.write(f"… {what}\n")
        sys.stderr.flush()

    @contextmanager
    def place(self, url: str, *, settings: str = "", folder: str = "", rate_limit: str = "off") -> Iterator[Place]:
        """Lay out a new place with one folder for the block; settle_seconds is 0 unless `settings` say otherwise."""
        if "settle_seconds" not in settings:
            settings = f"settle_seconds: 0\n{settings}"
        root = self.work / f"place-{next(self._numbers)}"
        try:
            yield make_place(root, url, settings=settings, folder=folder, rate_limit=rate_limit)
        finally:
            shutil.rmtree(root)

    @property
    def heap_files(self) -> int:
        return self.much(100_000, 5_000)

    @contextmanager
    def heap_as(self, folder: Path) -> Iterator[None]:
        """Let `folder` be a directory of `heap_files` recordings for the block; they are made once and kept after."""
        if self._heap is None:
            self._heap = self.work / "heap"
            self.say(f"writing {self.heap_files:,} files")
            recordings.write(self._heap, 0, self.heap_files, recordings.wav(HEAP_FILE_BYTES))
        if folder.exists():
            folder.rmdir()
        self._heap.rename(folder)
        try:
            yield
        finally:
            for name in ("done", "failed"):
                if (moved := folder / name).is_dir():
                    for path in moved.iterdir():
                        os.rename(path, folder / path.name)
                    moved.rmdir()
            folder.rename(self._heap)
