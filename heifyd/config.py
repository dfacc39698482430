"""The configuration: YAML into typed, frozen settings, or every error in it with its line and what to write instead."""

import fnmatch
import ipaddress
import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import ErrorDetails, core_schema

from heifyd import config_source
from heifyd.config_source import ConfigError, Loc, Problem, Source
from heifyd.recording import CONTENT_TYPES, Ids, extension

__all__ = [
    "Api",
    "Config",
    "ConfigError",
    "Folder",
    "Problem",
    "RateLimit",
    "Rule",
    "Watch",
    "default_ledger",
    "json_schema",
    "load",
    "read_key",
]

SYSTEM_STATE: Final = Path("/var/lib/heifyd")

Watch: TypeAlias = Literal["auto", "events", "poll"]

_LONGEST_S: Final = 3650 * 86400.0
_MOST_KEY_BYTES: Final = 4096
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = r"^([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([smhd])$"
_UUID: Final = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
_BASE_URL: Final = r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~%-]*)*$"
_EXAMPLE_ID: Final = "a1b2c3d4-e5f6-7890-1234-567890abcdef"
_EXAMPLE_FOLDER: Final = "/var/spool/asterisk/monitor"


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


def _uuid(value: str) -> str:
    if re.fullmatch(_UUID, value) is None:
        raise ValueError(f"is not a UUID; copy the id from Heify, such as {_EXAMPLE_ID}")
    return value.lower()


Uuid: TypeAlias = Annotated[
    str, AfterValidator(_uuid), WithJsonSchema({"type": "string", "pattern": _UUID, "examples": [_EXAMPLE_ID]})
]


def _path(value: object) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError("is not a path; put it in quotes")  # noqa: TRY004 (pydantic collects ValueError, not TypeError)
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("begins with the home of a user who has none; write a path that begins with /") from None


def _absolute(value: object) -> Path:
    path = _path(value)
    if not path.is_absolute():
        raise ValueError("is not an absolute path; write one that begins with / or ~/")
    return path


def _directory(value: object) -> Path:
    path = _absolute(value)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError("does not exist; create the directory, or correct the path") from None
    except OSError as bad:
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
    _compiled(value)
    return value


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[Callable[[str], object] | None, ...]:
    parts = pattern.split("/") if "/" in pattern else ["**", pattern]
    return tuple(None if part == "**" else re.compile(fnmatch.translate(part)).match for part in parts)


def _matches(pattern: str, relative_path: str) -> bool:
    """Tell whether a path matches: `*` stays within a name, `**` crosses directories.

    With a "/" in it, the pattern is for the whole path, as in Python 3.13's `PurePath.full_match`; without one, it is
    for the last name, however deep, as in .gitignore.
    """
    wanted = _compiled(pattern)
    names = relative_path.split("/")
    at = part = begun_at = 0
    crossing: int | None = None
    while at < len(names):
        match = wanted[part] if part < len(wanted) else None
        if part < len(wanted) and match is None:
            crossing, begun_at, part = part, at, part + 1
        elif match is not None and match(names[at]):
            at, part = at + 1, part + 1
        elif crossing is not None:
            begun_at += 1
            at, part = begun_at, crossing + 1
        else:
            return False
    return all(match is None for match in wanted[part:])


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
        parts = urlsplit(value if re.fullmatch(_BASE_URL, value) else "")
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError("is not an API's address; write https://HOST, without user, password, query or fragment")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ValueError("would send the API key unencrypted; write https:// (http:// is for this machine alone)")
    return value.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )


class RateLimit(_Model):
    """How fast heifyd may ask Heify for upload URLs; the limit is an account's, so leave room for its other users."""

    per_minute: float = Field(default=500.0, ge=1, le=60_000, allow_inf_nan=False)
    """Requests a minute, over time."""

    burst: int = Field(default=17, ge=1, le=1000)
    """Requests that may follow one another without a pause."""


def _rate_limit(value: object) -> object:
    if value is False or value == "off":  # off is a word to YAML 1.2, which editors read
        return None
    if value is True:
        raise ValueError("is no rate limit; write off, or per_minute and burst on lines of their own")
    return value


class Api(_Model):
    """Where Heify is, and the key to it."""

    base_url: Annotated[str, AfterValidator(_base_url)] = Field(
        default="https://api.heify.com", json_schema_extra={"pattern": _BASE_URL}
    )
    """Heify's address. https, except on this machine itself (for the sandbox)."""

    key_file: AbsolutePath | None = Field(default=None, examples=["/etc/heifyd/api-key"])
    """A file that holds the API key and nothing else. Without it the key comes from the environment: HEIFY_API_KEY."""

    allow_readable_key: bool = False
    """Take a key file that every user of this machine can read, instead of refusing it."""

    rate_limit: Annotated[RateLimit | None, BeforeValidator(_rate_limit)] = RateLimit()
    """How fast heifyd may send requests; off for no limit of its own."""


class Rule(_Model):
    """Other ids for some of a folder's recordings; each id that is left out stays the folder's."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": [name]} for name in ("configuration_id", "evaluator_id", "participant_id")]
        }
    )

    match: Annotated[Glob, Field(examples=["agents/7/**"])]
    """For which recordings: a pattern for the path below the folder. * stays within a name, ** crosses directories; \
without a / it is for the file's name, however deep."""

    configuration_id: Uuid | None = Field(default=None, examples=[_EXAMPLE_ID])
    """The Heify configuration (processing template) for them."""

    evaluator_id: Uuid | None = Field(default=None, examples=[_EXAMPLE_ID])
    """The Heify evaluator for them."""

    participant_id: Uuid | None = Field(default=None, examples=[_EXAMPLE_ID])
    """The Heify participant for them."""

    @model_validator(mode="after")
    def _overrides_something(self) -> Self:
        if self.configuration_id is None and self.evaluator_id is None and self.participant_id is None:
            raise ValueError("changes nothing; add configuration_id, evaluator_id or participant_id")
        return self


class _Place(_Model):
    """Where a watched folder is and where its recordings go."""

    path: Annotated[DirectoryPath, Field(examples=[_EXAMPLE_FOLDER])]
    """The directory that the recorder writes to; absolute, and it must exist."""

    recursive: bool = False
    """Watch its sub-folders too, also those made later."""

    done: TargetPath = Field(default=Path("done"), validate_default=True)
    """Where recordings go once they are in Heify; relative to the folder, or absolute."""

    failed: TargetPath = Field(default=Path("failed"), validate_default=True)
    """Where recordings go that Heify does not take, each with a file that says why; written as done is."""

    @field_validator("done", "failed", mode="before")
    @classmethod
    def _below_the_folder(cls, value: object, info: ValidationInfo) -> Path:
        folder: Path = info.data.get("path", Path())
        path = folder / _path(value)
        if os.path.exists(path) and not os.path.isdir(path):
            raise ValueError("is there and is not a directory; write the path of a directory, which may be new")
        return path


_AS_LIST: Final[dict[str, Any]] = {"default": [*CONTENT_TYPES], "uniqueItems": False}


class Folder(_Place):
    """A watched folder and what its recordings are sent as."""

    configuration_id: Annotated[Uuid, Field(examples=[_EXAMPLE_ID])]
    """The Heify configuration (processing template) for its recordings."""

    evaluator_id: Uuid | None = Field(default=None, examples=[_EXAMPLE_ID])
    """The Heify evaluator for its recordings."""

    participant_id: Uuid | None = Field(default=None, examples=[_EXAMPLE_ID])
    """The Heify participant for its recordings."""

    extensions: frozenset[Extension] = Field(
        default=frozenset(CONTENT_TYPES), strict=False, min_length=1, json_schema_extra=_AS_LIST
    )
    """Which files are recordings, by their extension; with or without the dot, upper or lower case."""

    exclude: tuple[Glob, ...] = Field(default=(), examples=[["test-*", "training/**"]])
    """Patterns of files and sub-folders to leave alone; written as a rule's match is."""

    settle_seconds: Seconds | None = Field(default=None, examples=["2s"])
    """How long a recording must have been quiet to count as finished; the general setting where left out."""

    rescan_seconds: SomeSeconds | None = Field(default=None, examples=["60s"])
    """How often the whole folder is looked through, whatever events said; the general setting where left out."""

    watch: Watch = "auto"
    """How changes are noticed; the general setting where left out."""

    name: NameTemplate = "{stem}"
    """What a recording is called in Heify. {stem} is the file's name without its extension, {name} with it, {path} \
its path below the folder, {folder} the folder's own name, {date} (YYYY-MM-DD) and {time} (HH:MM:SS) when the file was \
last changed."""

    ready_marker: MarkerTemplate | None = Field(default=None, examples=["{name}.ready"])
    """A file that the recorder makes beside each recording that is finished; its name has {name} or {stem} in it."""

    rules: tuple[Rule, ...] = ()
    """Other ids for some of the recordings; the first rule that matches counts."""

    def ids_for(self, relative_path: str) -> Ids:
        """Return what the recording at a path below the folder is sent under."""
        rule = next((rule for rule in self.rules if _matches(rule.match, relative_path)), None)
        if rule is None:
            return Ids(self.configuration_id, self.evaluator_id, self.participant_id)
        return Ids(
            rule.configuration_id or self.configuration_id,
            rule.evaluator_id or self.evaluator_id,
            rule.participant_id or self.participant_id,
        )

    def name_for(self, relative_path: str, modified: datetime) -> str:
        """Return what the recording is called in Heify; `modified` is its last change, in the time zone to write."""
        name = relative_path.rpartition("/")[2]
        return self.name.format(
            stem=name[: len(name) - len(extension(name))],
            name=name,
            path=relative_path,
            folder=self.path.name,
            date=f"{modified:%Y-%m-%d}",
            time=f"{modified:%H:%M:%S}",
        )

    def excludes(self, relative_path: str) -> bool:
        """Tell whether a file or sub-folder below the folder is to be left alone."""
        return any(_matches(pattern, relative_path) for pattern in self.exclude)


class Config(_Model):
    """heifyd's configuration."""

    api: Api = Api()
    """The Heify account: its address, its key, its rate."""

    workers: int = Field(default=4, ge=1, le=64)
    """How many recordings are uploaded at once."""

    ledger: Annotated[LedgerPath, Field(examples=["/var/lib/heifyd/ledger.sqlite"])]
    """The file that remembers every recording and how far it got. Left out, it is in the service's state directory."""

    settle_seconds: Seconds | None = Field(default=None, examples=["2s"])
    """How long a recording must have been quiet to count as finished; left out: 2s with events, 30s with polling."""

    rescan_seconds: SomeSeconds | None = Field(default=None, examples=["60s"])
    """How often each folder is looked through, whatever events said; left out: 60s with events, 10s with polling."""

    watch: Watch = "auto"
    """How changes are noticed: by the kernel's events, by polling, or by what suits the file system (auto)."""

    retry_for: SomeSeconds = Field(default=3 * 86400.0, json_schema_extra={"default": "3d"})
    """How long one recording's own failures are tried again before it goes to failed; an outage does not count."""

    shutdown_grace: Seconds = Field(default=25.0, json_schema_extra={"default": "25s"})
    """How long running uploads may go on after heifyd was told to stop."""

    history_days: int = Field(default=90, ge=1, le=36_500)
    """How many days the ledger remembers recordings that are done."""

    folders: Annotated[
        tuple[Folder, ...],
        Field(min_length=1, examples=[[{"path": _EXAMPLE_FOLDER, "configuration_id": _EXAMPLE_ID}]]),
    ]
    """The watched folders."""

    @field_validator("folders")
    @classmethod
    def _inherit(cls, folders: tuple[Folder, ...], info: ValidationInfo) -> tuple[Folder, ...]:
        general = {key: info.data[key] for key in ("settle_seconds", "rescan_seconds", "watch") if key in info.data}
        return tuple(
            folder.model_copy(update={key: general[key] for key in general.keys() - folder.model_fields_set})
            for folder in folders
        )


_MODELS: Final[Mapping[tuple[str, ...], type[_Model]]] = {
    (): Config,
    ("api",): Api,
    ("api", "rate_limit"): RateLimit,
    ("folders",): Folder,
    ("folders", "rules"): Rule,
}


def _examples(model: type[_Model]) -> dict[str, str]:
    """Give each key an example as YAML; "" where the key may stand without a value, its defaults below it."""
    found = {name: (field.examples or [field.default])[0] for name, field in model.model_fields.items()}
    return {name: "" if isinstance(value, _Model) else _as_yaml(value) for name, value in found.items()}


def _as_yaml(value: object) -> str:
    return json.dumps(value, default=lambda other: sorted(other) if isinstance(other, frozenset) else str(other))


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read the configuration; `environ` decides where the ledger is if the file does not. Raises ConfigError."""
    source = config_source.read(path)
    errors: list[ErrorDetails] = []
    config = None
    try:
        config = Config.model_validate({"ledger": default_ledger(environ), **source.data})
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    keys = {path: _examples(model) for path, model in _MODELS.items()}
    problems = config_source.explain(source, errors, keys, _crossings(source))
    if problems or config is None:
        raise ConfigError(problems)
    return config


def _crossings(source: Source) -> Iterator[Problem]:
    """Say which folders get into each other's way; takes the folders whose places are right, whatever else is wrong."""
    places = dict(_places(source))
    first: dict[str, int] = {}
    for at, place in places.items():
        first.setdefault(os.path.realpath(place.path), at)
    for at, place in places.items():
        loc: Loc = ("folders", at, "path")
        real = os.path.realpath(place.path)
        outer = next((first[up] for up in _above(real) if up in first and places[first[up]].recursive), None)
        if first[real] != at:
            yield source.problem(loc, f"is the same directory as {_at(source, first[real])}; keep one of the two")
        elif outer is not None:
            where = f"lies inside {_at(source, outer)}, which is recursive"
            yield source.problem(loc, f"{where}; remove one of the two, or `recursive` there")
        yield from _misplaced(source, at, place, first)


def _misplaced(source: Source, at: int, place: _Place, watched: Mapping[str, int]) -> Iterator[Problem]:
    own = os.path.realpath(place.path)
    for key, target in (("done", os.path.realpath(place.done)), ("failed", os.path.realpath(place.failed))):
        loc: Loc = ("folders", at, key)
        holder = next((real for real in (target, *_above(target)) if real in watched), None)
        if target == own:
            yield source.problem(loc, "is the watched folder itself; write another directory, such as done")
        elif holder not in (None, own):
            message = f"lies in {_at(source, watched[holder])}, which is watched; write a directory outside of it"
            yield source.problem(loc, message)
    if os.path.realpath(place.done) == os.path.realpath(place.failed):
        yield source.problem(("folders", at, "failed"), "is the same directory as done; write another one")


def _places(source: Source) -> Iterator[tuple[int, _Place]]:
    """Give each folder whose `path`, `recursive`, `done` and `failed` are right, with its position."""
    folders = source.data.get("folders")
    for at, folder in enumerate(folders if isinstance(folders, tuple) else ()):
        if isinstance(folder, dict):
            try:
                yield at, _Place.model_validate({key: folder[key] for key in folder.keys() & _Place.model_fields})
            except ValidationError:
                continue


def _at(source: Source, at: int) -> str:
    return f"folders[{at}] (line {source.line(('folders', at))})"


def _above(real: str) -> list[str]:
    return [str(parent) for parent in Path(real).parents]


def default_ledger(environ: Mapping[str, str]) -> Path:
    """Return where the ledger is when the configuration does not say: in the state directory of systemd or the system.

    An ordinary user's is below `$XDG_STATE_HOME` (the XDG Base Directory Specification: `~/.local/state` where unset or
    not absolute). systemd may name several state directories, joined by colons (systemd.exec(5)); the first one counts.
    """
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given) / "ledger.sqlite"
    if os.geteuid() == 0 or os.access(SYSTEM_STATE, os.W_OK | os.X_OK):
        return SYSTEM_STATE / "ledger.sqlite"
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    for state in (Path(environ.get("XDG_STATE_HOME", "")), home / ".local" / "state"):
        if state.is_absolute():
            return state / "heifyd" / "ledger.sqlite"
    return SYSTEM_STATE / "ledger.sqlite"


def read_key(api: Api, environ: Mapping[str, str]) -> str:
    """Return the API key, from `api.key_file` or else HEIFY_API_KEY. Raises ConfigError, without the key in it."""
    if api.key_file is None:
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


class _AsWritten(GenerateJsonSchema):
    """The schema of what people write: a key is there with a value, or it is left out."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the YAML as people write it, with words for each key."""
    schema = Config.model_json_schema(schema_generator=_AsWritten)
    models = {"Config": schema, **schema["$defs"]}
    for model in models.values():
        for name, key in model["properties"].items():
            key.setdefault("title", name.replace("_", " ").capitalize())
            if key.get("default", "") is None or key["title"] == "Api":
                del key["default"]
    schema["required"].remove("ledger")
    del models["Folder"]["properties"]["watch"]["default"]
    rate_limit = models["Api"]["properties"]["rate_limit"]
    rate_limit["anyOf"] = [{"$ref": rate_limit.pop("$ref")}, {"enum": [False, "off"]}, {"type": "null"}]
    api = schema["properties"]["api"]
    api["anyOf"] = [{"$ref": api.pop("$ref")}, {"type": "null"}]
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}
