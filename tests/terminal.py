"""A command in a terminal of its own: what is typed goes in, and what a person would see is on its screen."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import pyte

from tests.harness import LIMIT_S

ALTERNATE_ON, ALTERNATE_OFF = b"\x1b[?1049h", b"\x1b[?1049l"
CURSOR_OFF, CURSOR_ON = b"\x1b[?25l", b"\x1b[?25h"


class Terminal:
    """A pseudo-terminal (pty(7)), the command that runs in it as the leader of its session, and the screen (pyte)."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str] | None = None, *, columns: int = 80, lines: int = 24
    ) -> None:
        self._fd, inside = pty.openpty()
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._changed = threading.Condition()
        self._is_over = False
        self.written = b""
        self._resize(columns, lines)
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**env, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(environ or {})},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 (one system call; it takes no lock)
        )
        os.close(inside)
        self._reader = threading.Thread(target=self._read, name="test-terminal")
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lines(self) -> list[str]:
        """What is on the screen, each line without the blanks at its end."""
        with self._changed:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    def wait_for(self, state: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
        """Wait for a state that output brings about."""
        with self._changed:
            self._changed.wait_for(lambda: state() or self._is_over, limit_s)
            assert state(), f"{what} did not come about; on the screen:\n{self.text}"

    def wait_for_text(self, *wanted: str, limit_s: float = LIMIT_S) -> None:
        self.wait_for(lambda: all(each in self.text for each in wanted), f"{wanted} on the screen", limit_s)

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Make the window another size; the kernel tells the command (SIGWINCH)."""
        with self._changed:
            self._screen.resize(lines, columns)
            self._resize(columns, lines)

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Wait for the command's end, and return its exit code."""
        code = self._process.wait(limit_s)
        self._reader.join()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        os.close(self._fd)

    def _read(self) -> None:
        while True:
            try:
                output = os.read(self._fd, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                output = b""
            with self._changed:
                self._changed.notify_all()
                if not output:
                    self._is_over = True
                    return
                self.written += output
                self._stream.feed(output)
