"""The socket that is listened on."""

import errno
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from heifyd.address import Address, TcpAddress, UnixAddress
from heifyd.errors import HeifydError

BACKLOG: Final = 128
"""So many clients at most wait to be let in."""

_UNSENT_MS: Final = 20_000
_SOCKET_MODE: Final = 0o660


class CannotListenError(HeifydError):
    """The address to listen on cannot be had."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that is bound to `address`; `inode` is what it is called by in the file system, None on a port."""

    address: Address
    socket: socket.socket
    inode: tuple[int, int] | None

    def close(self) -> None:
        """Close the socket and take its path away, unless another one has taken that."""
        self.socket.close()
        if isinstance(self.address, UnixAddress):
            with suppress(FileNotFoundError):
                if _inode(self.address.path) == self.inode:
                    os.unlink(self.address.path)


def bound(address: Address) -> Listener:
    """Listen at an address; who comes waits until somebody accepts. Raises CannotListenError."""
    try:
        return _on_path(address) if isinstance(address, UnixAddress) else _on_port(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CannotListenError(f"{address} is taken by another program; write another one, or end that") from None
        raise CannotListenError(f"{address} cannot be listened on ({error.strerror}); write another one") from None


def _on_port(address: TcpAddress) -> Listener:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where a socket names its protocol.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What a client does not take the kernel keeps no longer than this; connections inherit it (tcp(7)).
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS)
        listening.bind((address.host, address.port))
        listening.listen(BACKLOG)
        host, port = listening.getsockname()[:2]
    except OSError:
        listening.close()
        raise
    return Listener(TcpAddress(host, port), listening, None)


def _on_path(address: UnixAddress) -> Listener:
    """Bind under another name first: nobody sees the socket without its mode, and a stale one is replaced at once."""
    _must_be_free(address.path)
    made = f"{address.path}.new"
    with suppress(FileNotFoundError):
        os.unlink(made)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(made)
        os.chmod(made, _SOCKET_MODE)
        inode = _inode(made)
        listening.listen(BACKLOG)
        os.rename(made, address.path)
    except OSError:
        listening.close()
        raise
    return Listener(address, listening, inode)


def _must_be_free(path: str) -> None:
    """Raise OSError (EADDRINUSE) where a program listens at a path, CannotListenError where it is no socket at all."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise CannotListenError(f"unix:{path} is there and is no socket; write another one, or remove what is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # so many ask already that it has to wait: somebody does listen
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _inode(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
