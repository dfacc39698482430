"""Where the API key comes from; it is read anew whenever it is needed, and stays out of every error."""

import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from heifyd.config_source import ConfigError, Problem

if TYPE_CHECKING:
    from heifyd.config import Api

_MOST_KEY_BYTES: Final = 4096


def read_key(api: "Api", environ: Mapping[str, str]) -> str:
    """Return the API key, from `api.key_file`, else HEIFY_API_KEY, else the credential of systemd.

    Raises ConfigError, without the key in it.
    """
    credential = _credential(environ)
    if api.key_file is None and credential is not None and not environ.get("HEIFY_API_KEY"):
        source, key = str(credential), "api.key_file"
        found = _key_of(credential, is_readable_allowed=False)
        absent = "is empty; write the API key into the file that LoadCredential= of the unit names"
    elif api.key_file is None:
        source, key = "environment", "HEIFY_API_KEY"
        found = environ.get(key, "")
        absent = "is not set or empty; set it to the API key, or name a file that holds the key with api.key_file"
    else:
        source, key = str(api.key_file), "api.key_file"
        found = _key_of(api.key_file, is_readable_allowed=api.allow_readable_key)
        absent = "is empty; write the API key into the file"
    found = found.strip()
    if not found:
        raise ConfigError([Problem(source, None, key, absent)])
    if not (found.isascii() and found.isprintable()):
        message = "is not one line of printable ASCII; put the API key there alone, without a byte order mark"
        raise ConfigError([Problem(source, None, key, message)])
    return found


def _credential(environ: Mapping[str, str]) -> Path | None:
    """Return the file that a unit's ``LoadCredential=heify-api-key:...`` makes (systemd.exec(5)), if it is there."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory or "") / "heify-api-key"
    return credential if directory and credential.exists() else None


def _key_of(path: Path, *, is_readable_allowed: bool) -> str:
    """Return the text of a key file, its bytes as characters of the same numbers. Raises ConfigError."""
    chmod = f"chmod o-r {shlex.quote(str(path))}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            mode = os.fstat(fd).st_mode
            raw = os.read(fd, _MOST_KEY_BYTES + 1) if stat.S_ISREG(mode) else b""
        finally:
            os.close(fd)
    except OSError as bad:
        wrong = f"cannot be read ({bad.strerror}); let heifyd's user read it, or correct the path"
    else:
        if not stat.S_ISREG(mode):
            wrong = "is not a regular file; write the path of a file that holds the API key"
        elif mode & stat.S_IROTH and not is_readable_allowed:
            wrong = f"can be read by every user; run `{chmod}`, or set api.allow_readable_key: true"
        elif len(raw) > _MOST_KEY_BYTES:
            wrong = "is too long for an API key; write the path of a file that holds the key and nothing else"
        else:
            return raw.strip().decode("latin-1")
    raise ConfigError([Problem(str(path), None, "api.key_file", wrong)])
