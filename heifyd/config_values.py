"""The kinds of text in a configuration (durations, ids, paths, templates, patterns, addresses), and their errors."""

import errno
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, Final, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema

from heifyd import address
from heifyd.address import Address
from heifyd.globs import compiled
from heifyd.pace import Timetable
from heifyd.recording import CONTENT_TYPES, is_loopback

_LONGEST_S: Final = 3650 * 86400.0
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = r"^([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([smhd])$"
_UUID: Final = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
BASE_URL: Final = r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~%-]*)*$"
EXAMPLE_ID: Final = "a1b2c3d4-e5f6-7890-1234-567890abcdef"


def _seconds(value: object) -> object:
    if isinstance(value, str):
        found = re.fullmatch(_DURATION, value)
        if found is None:
            raise ValueError("is not a duration; write seconds, such as 90, or text such as 90s, 25m, 12h or 3d")
        value = float(found[1]) * _UNITS_S[found[2]]
    if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value <= _LONGEST_S:
        raise ValueError("is no duration to wait for; write one from 0s to 3650d")
    return value


def _duration_schema(**least: float) -> WithJsonSchema:
    number = {"type": "number", "maximum": _LONGEST_S, **least}
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": _DURATION}]})


Seconds: TypeAlias = Annotated[float, BeforeValidator(_seconds), _duration_schema(minimum=0)]
SomeSeconds: TypeAlias = Annotated[float, Field(gt=0), BeforeValidator(_seconds), _duration_schema(exclusiveMinimum=0)]


def _bandwidth(value: object) -> Timetable | None:
    if value is False or value == "off":  # off is a word to YAML 1.2, which editors read
        return None
    parts = value.split() if isinstance(value, str) else []
    found = [match for match in (re.fullmatch(_BANDWIDTH_PART, part) for part in parts) if match]
    entries = tuple(
        (
            int(match["hours"] or 0) * 60 + int(match["minutes"] or 0),
            None if match["off"] else float(match["number"]) * _UNITS_BYTES[match["unit"]],
        )
        for match in found
    )
    times = [since for since, _ in entries]
    is_table = all(match["hours"] for match in found) and times == sorted(set(times))
    if not entries or len(found) < len(parts) or not (len(entries) == 1 or is_table):
        raise ValueError(
            'is no bandwidth; write bytes a second, such as "2M" or "500k", or a day of them, as "08:00,2M 19:00,off"'
        )
    return Timetable(entries)


_BANDWIDTH_PART: Final = (
    r"(?:(?P<hours>[01][0-9]|2[0-3]):(?P<minutes>[0-5][0-9]),)?"
    r"(?:(?P<off>off)|(?P<number>[1-9][0-9]{0,6}(?:\.[0-9]{1,3})?)(?P<unit>[kM]))"
)
_UNITS_BYTES: Final = {"k": 1024, "M": 1024 * 1024}
_BANDWIDTH: Final = r"^(off|[1-9][0-9.]*[kM]|([0-2][0-9]:[0-5][0-9],(off|[1-9][0-9.]*[kM]) ?)+)$"

BandwidthLimit: TypeAlias = Annotated[
    Timetable | None,
    BeforeValidator(_bandwidth),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": _BANDWIDTH}, {"enum": [False]}]}),
]


def _uuid(value: str) -> str:
    if re.fullmatch(_UUID, value) is None:
        raise ValueError(f"is not a UUID; copy the id from Heify, such as {EXAMPLE_ID}")
    return value.lower()


Uuid: TypeAlias = Annotated[
    str, AfterValidator(_uuid), WithJsonSchema({"type": "string", "pattern": _UUID, "examples": [EXAMPLE_ID]})
]


def as_path(value: object) -> Path:
    """Take a path as it is written, with ~ for a home. Raises ValueError."""
    if not isinstance(value, str | Path):
        raise ValueError("is not a path; put it in quotes")  # noqa: TRY004 (pydantic collects ValueError, not TypeError)
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("begins with the home of a user who has none; write a path that begins with /") from None


def _absolute(value: object) -> Path:
    path = as_path(value)
    if not path.is_absolute():
        raise ValueError("is not an absolute path; write one that begins with / or ~/")
    return path


@dataclass(frozen=True, slots=True)
class Away:
    """Which folders may be away now, without being wrong: the context of a validation.

    `silent` are those that do not answer; they are not looked at, and are wrong only where `silence_is_wrong`.
    """

    may_be_missing: Callable[[Path], bool]
    silent: frozenset[str]
    silence_is_wrong: bool

    def real(self, path: Path, folder: Path) -> str:
        """Return the path of a folder, or of a directory of its, with symlinks resolved unless the folder is silent."""
        return os.path.normpath(path) if os.fspath(folder) in self.silent else os.path.realpath(path)


def _directory(value: object, info: ValidationInfo) -> Path:
    """Take the path of a directory; one that cannot be looked at passes if the context, an `Away`, says so."""
    path = _absolute(value)
    away: Away | None = info.context
    if away is not None and os.fspath(path) in away.silent:
        if away.silence_is_wrong:
            raise ValueError("does not answer; see to the share it is on, or to the server of that")
        return path
    try:
        mode = path.stat().st_mode
    except OSError as bad:
        if away is not None and away.may_be_missing(path):
            return path
        if bad.errno in (errno.ENOENT, errno.ENOTDIR):
            raise ValueError("does not exist; create the directory, or correct the path") from None
        raise ValueError(f"cannot be looked at ({bad.strerror}); let heifyd's user reach it, or correct it") from None
    if not stat.S_ISDIR(mode):
        raise ValueError("is not a directory; write the directory that the recorder writes to")
    return path


def _ledger(value: object) -> Path:
    if isinstance(value, str) and "://" in value:
        raise ValueError("is a database's address, and the ledger is a SQLite file; write the absolute path of a file")
    path = _absolute(value)
    if os.path.isdir(path):
        raise ValueError(f"is a directory; write the path of a file, such as {path / 'ledger.sqlite'}")
    return path


_ABSOLUTE: Final = WithJsonSchema({"type": "string", "pattern": "^[/~]"})

AbsolutePath: TypeAlias = Annotated[Path, BeforeValidator(_absolute), _ABSOLUTE]
TargetPath: TypeAlias = Annotated[Path, WithJsonSchema({"type": "string", "minLength": 1})]
DirectoryPath: TypeAlias = Annotated[Path, BeforeValidator(_directory), _ABSOLUTE]
LedgerPath: TypeAlias = Annotated[Path, BeforeValidator(_ledger), _ABSOLUTE]


def _address(value: object) -> Address:
    if not isinstance(value, str):
        raise ValueError('is not an address in quotes; write "127.0.0.1:9469"')  # noqa: TRY004 (pydantic collects ValueError)
    return address.parsed(value)


ListenAddress: TypeAlias = Annotated[
    Address, BeforeValidator(_address), WithJsonSchema({"type": "string", "pattern": address.PATTERN})
]


def _fields(template: str, known: tuple[str, ...]) -> list[str]:
    """Return the fields of a template; raises ValueError for anything in braces but the plain names in `known`."""
    names = " ".join(f"{{{name}}}" for name in known)
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        raise ValueError(f"has a brace without its partner; the fields are {names}") from None
    for _, name, spec, conversion in parts:
        if name is not None and (name not in known or spec or conversion):
            raise ValueError(f"has the unknown field {{{name[:32]}}}; the fields are {names}")
    return [name for _, name, _, _ in parts if name is not None]


def _name(value: str) -> str:
    _fields(value, ("stem", "name", "path", "folder", "date", "time"))
    return value


def _marker(value: str) -> str:
    is_one = len(_fields(value, ("name", "stem"))) == 1 and "{{" not in value and "}}" not in value
    if not is_one or "/" in value or value == "{name}":
        raise ValueError('is not the name of a marker; write text with one {name} or {stem}, such as "{name}.ready"')
    return value


NameTemplate: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_name)]
MarkerTemplate: TypeAlias = Annotated[str, AfterValidator(_marker)]


def _glob(value: str) -> str:
    if value.startswith("/"):
        raise ValueError("begins with /; patterns are relative to the folder, write one such as agents/**/*.wav")
    if not {"", ".", ".."}.isdisjoint(value.split("/")):
        raise ValueError("has an empty part, a . or a ..; write one such as *.wav, agents/*.wav or agents/**")
    compiled(value)
    return value


Glob: TypeAlias = Annotated[str, AfterValidator(_glob)]


def _extension(value: str) -> str:
    found = f".{value.lower().removeprefix('.')}"
    if found not in CONTENT_TYPES:
        raise ValueError(f"is no format that Heify takes; the formats are {' '.join(CONTENT_TYPES)}")
    return found


_ANY_CASE: Final = "|".join(re.sub("[a-z]", lambda c: f"[{c[0]}{c[0].upper()}]", name[1:]) for name in CONTENT_TYPES)

Extension: TypeAlias = Annotated[
    str,
    AfterValidator(_extension),
    WithJsonSchema({"anyOf": [{"enum": [*CONTENT_TYPES]}, {"type": "string", "pattern": rf"^\.?({_ANY_CASE})$"}]}),
]


def _base_url(value: str) -> str:
    try:
        parts = urlsplit(value if re.fullmatch(BASE_URL, value) else "")
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError("is not an API's address; write https://HOST, without user, password, query or fragment")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("would send the API key unencrypted; write https:// (http:// is for this machine alone)")
    return value.rstrip("/")


BaseUrl: TypeAlias = Annotated[str, AfterValidator(_base_url)]
