"""Where a server of heifyd's own listens: an address and a port, or a Unix socket. Pure."""

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from heifyd.recording import is_loopback

PATTERN: Final = r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$|^unix:/.+$"
EXAMPLES: Final = '"127.0.0.1:9469", "[::1]:9469" or "unix:/run/heifyd/status.sock"'
MOST_PATH_BYTES: Final = 100
"""A Unix socket's path has 107 bytes at most (unix(7)); some are kept for the name that it is made under."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An IP address, without brackets, and a port; port 0 takes a free one."""

    host: str
    port: int

    is_a_path = False

    @property
    def is_of_this_machine_alone(self) -> bool:
        """Whether nobody elsewhere can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The absolute path of a Unix socket."""

    path: str

    is_a_path = True

    @property
    def is_of_this_machine_alone(self) -> bool:
        """Whether nobody elsewhere can reach it."""
        return True

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address: TypeAlias = TcpAddress | UnixAddress


def parsed(text: str) -> Address:
    """Read an address as it is written: ``127.0.0.1:9469``, ``[::1]:9469`` or ``unix:/run/x.sock``. Raises ValueError.

    Names are no addresses: what they stand for is decided elsewhere, and may change.
    """
    if text.startswith("unix:/") and "\0" not in text:
        path = text.removeprefix("unix:")
        if len(os.fsencode(path)) > MOST_PATH_BYTES:
            raise ValueError(f"is too long for a Unix socket; write a path of at most {MOST_PATH_BYTES} bytes")
        return UnixAddress(path)
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    if found is not None and int(found[3]) < 65536:
        host = found[1] or found[2]
        try:
            if ipaddress.ip_address(host).version == (6 if found[1] else 4):
                return TcpAddress(host, int(found[3]))
        except ValueError:
            pass  # told of below, with every other thing that is no address
    raise ValueError(f"is no address to listen on; write {EXAMPLES}")
