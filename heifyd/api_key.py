"""Where the secrets come from, the API key and the status page's token; they stay out of every error."""

import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from heifyd.config_source import ConfigError, Problem

if TYPE_CHECKING:
    from heifyd.config import Api, Status

_MOST_BYTES: Final = 4096
_LEAST_TOKEN_CHARS: Final = 16


@dataclass(frozen=True, slots=True)
class _Secret:
    """What a secret is called, the configuration's key for its file, and its variable in the environment."""

    what: str
    key: str
    variable: str
    if_readable: str = ""


_KEY: Final = _Secret("the API key", "api.key_file", "HEIFY_API_KEY", ", or set api.allow_readable_key: true")
_TOKEN: Final = _Secret("the token", "status.token_file", "HEIFYD_STATUS_TOKEN")


def read_key(api: "Api", environ: Mapping[str, str]) -> str:
    """Return the API key, from `api.key_file`, else HEIFY_API_KEY, else the credential of systemd.

    Raises ConfigError, without the key in it.
    """
    credential = None if environ.get(_KEY.variable) else _credential(environ)
    if api.key_file is None and credential is not None:
        found = _read(_KEY, credential, environ)
    else:
        found = _read(_KEY, api.key_file, environ, is_readable_allowed=api.allow_readable_key)
    if not found:
        absent = "is not set or empty; set it to the API key, or name a file that holds the key with api.key_file"
        raise ConfigError([Problem("environment", None, _KEY.variable, absent)])
    return found


def read_token(status: "Status", environ: Mapping[str, str]) -> str | None:
    """Return the token of the status page, from `status.token_file` or else HEIFYD_STATUS_TOKEN; None without either.

    Raises ConfigError, without the token in it.
    """
    found = _read(_TOKEN, status.token_file, environ) or None
    if found is not None and len(found) < _LEAST_TOKEN_CHARS:
        source, key = _place(_TOKEN, status.token_file)
        short = f"is too short, and can be guessed; write {_LEAST_TOKEN_CHARS} characters (`openssl rand -hex 16`)"
        raise ConfigError([Problem(source, None, key, short)])
    return found


def _place(secret: _Secret, path: Path | None) -> tuple[str, str]:
    return ("environment", secret.variable) if path is None else (str(path), secret.key)


def _read(secret: _Secret, path: Path | None, environ: Mapping[str, str], *, is_readable_allowed: bool = False) -> str:
    """Return a secret, or "" where there is neither a file nor a variable. Raises ConfigError."""
    source, key = _place(secret, path)
    if path is None:
        found = environ.get(secret.variable, "").strip()
    else:
        found = _text_of(path, secret, is_readable_allowed=is_readable_allowed).strip()
        if not found:
            raise ConfigError([Problem(source, None, key, f"is empty; write {secret.what} into the file")])
    if not (found.isascii() and found.isprintable()):
        message = f"is not one line of printable ASCII; put {secret.what} there alone, without a byte order mark"
        raise ConfigError([Problem(source, None, key, message)])
    return found


def _credential(environ: Mapping[str, str]) -> Path | None:
    """Return the file that a unit's ``LoadCredential=heify-api-key:...`` makes (systemd.exec(5)), if it is there."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory or "") / "heify-api-key"
    return credential if directory and credential.exists() else None


def _text_of(path: Path, secret: _Secret, *, is_readable_allowed: bool) -> str:
    """Return the text of a secret's file, its bytes as characters of the same numbers. Raises ConfigError."""
    chmod = f"chmod o-r {shlex.quote(str(path))}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            mode = os.fstat(fd).st_mode
            raw = os.read(fd, _MOST_BYTES + 1) if stat.S_ISREG(mode) else b""
        finally:
            os.close(fd)
    except OSError as bad:
        wrong = f"cannot be read ({bad.strerror}); let heifyd's user read it, or correct the path"
    else:
        if not stat.S_ISREG(mode):
            wrong = f"is not a regular file; write the path of a file that holds {secret.what}"
        elif mode & stat.S_IROTH and not is_readable_allowed:
            wrong = f"can be read by every user; run `{chmod}`{secret.if_readable}"
        elif len(raw) > _MOST_BYTES:
            wrong = f"is too long; write the path of a file that holds {secret.what} and nothing else"
        else:
            return raw.strip().decode("latin-1")
    raise ConfigError([Problem(str(path), None, secret.key, wrong)])
