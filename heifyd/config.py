"""The configuration: YAML into typed, frozen settings, or every error in it with its line and what to write instead."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import ErrorDetails, core_schema

from heifyd import config_source, mounts
from heifyd.config_source import ConfigError, Loc, Problem, Source
from heifyd.config_values import (
    BASE_URL,
    EXAMPLE_ID,
    AbsolutePath,
    Away,
    BandwidthLimit,
    BaseUrl,
    DirectoryPath,
    Extension,
    Glob,
    LedgerPath,
    ListenAddress,
    MarkerTemplate,
    NameTemplate,
    Seconds,
    SomeSeconds,
    TargetPath,
    Uuid,
    as_path,
)
from heifyd.globs import matches
from heifyd.recording import CONTENT_TYPES, Ids, extension

__all__ = [
    "Api",
    "Config",
    "ConfigError",
    "Folder",
    "Problem",
    "RateLimit",
    "Rule",
    "Status",
    "Watch",
    "default_ledger",
    "json_schema",
    "load",
]

TOKEN_VARIABLE: Final = "HEIFYD_STATUS_TOKEN"  # noqa: S105 (a variable's name, and no token)

SYSTEM_STATE: Final = Path("/var/lib/heifyd")
_ANSWER_S: Final = 5.0

_EXAMPLE_FOLDER: Final = "/var/spool/asterisk/monitor"

Watch: TypeAlias = Literal["auto", "events", "poll"]


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

    base_url: BaseUrl = Field(default="https://api.heify.com", json_schema_extra={"pattern": BASE_URL})
    """Heify's address. https, except on this machine itself (for the sandbox)."""

    key_file: AbsolutePath | None = Field(default=None, examples=["/etc/heifyd/api-key"])
    """A file that holds the API key and nothing else. Without it the key comes from the environment (HEIFY_API_KEY) \
or from the credential heify-api-key of a systemd unit."""

    allow_readable_key: bool = False
    """Take a key file that every user of this machine can read, instead of refusing it."""

    rate_limit: Annotated[RateLimit | None, BeforeValidator(_rate_limit)] = RateLimit()
    """How fast heifyd may send requests; off for no limit of its own."""


class Status(_Model):
    """The status page, health and metrics over HTTP."""

    listen: ListenAddress | None = Field(default=None, examples=["127.0.0.1:9469"])
    """Where to listen: an IP address and a port, or unix: and a path; without it there is none of it. What other \
machines can reach takes a token."""

    token_file: AbsolutePath | None = Field(default=None, examples=["/etc/heifyd/status-token"])
    """A file that holds the token to ask of who looks. Without it the token, if there is one, comes from the \
environment: HEIFYD_STATUS_TOKEN."""


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

    configuration_id: Uuid | None = Field(default=None, examples=[EXAMPLE_ID])
    """The Heify configuration (processing template) for them."""

    evaluator_id: Uuid | None = Field(default=None, examples=[EXAMPLE_ID])
    """The Heify evaluator for them."""

    participant_id: Uuid | None = Field(default=None, examples=[EXAMPLE_ID])
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
        path = folder / as_path(value)
        away: Away | None = info.context
        may_be_away = away is not None and (os.fspath(folder) in away.silent or away.may_be_missing(folder))
        if not may_be_away and os.path.exists(path) and not os.path.isdir(path):
            raise ValueError("is there and is not a directory; write the path of a directory, which may be new")
        return path


_AS_LIST: Final[dict[str, Any]] = {"default": [*CONTENT_TYPES], "uniqueItems": False}


class Folder(_Place):
    """A watched folder and what its recordings are sent as."""

    configuration_id: Annotated[Uuid, Field(examples=[EXAMPLE_ID])]
    """The Heify configuration (processing template) for its recordings."""

    evaluator_id: Uuid | None = Field(default=None, examples=[EXAMPLE_ID])
    """The Heify evaluator for its recordings."""

    participant_id: Uuid | None = Field(default=None, examples=[EXAMPLE_ID])
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
        rule = next((rule for rule in self.rules if matches(rule.match, relative_path)), None)
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
        return any(matches(pattern, relative_path) for pattern in self.exclude)


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

    bandwidth_limit: BandwidthLimit = Field(default=None, examples=["08:00,2M 19:00,off"])
    """How many bytes a second all uploads together may take, such as 2M or 500k (binary units); or by the local time \
of day, each limit from its time on; off for none."""

    retry_for: SomeSeconds = Field(default=3 * 86400.0, json_schema_extra={"default": "3d"})
    """How long one recording's own failures are tried again before it goes to failed; an outage does not count."""

    shutdown_grace: Seconds = Field(default=25.0, json_schema_extra={"default": "25s"})
    """How long running uploads may go on after heifyd was told to stop."""

    history_days: int = Field(default=90, ge=1, le=36_500)
    """How many days the ledger remembers recordings that are done."""

    status: Status = Status()
    """The status page, health and metrics over HTTP; off unless it has an address to listen on."""

    folders: Annotated[
        tuple[Folder, ...],
        Field(min_length=1, examples=[[{"path": _EXAMPLE_FOLDER, "configuration_id": EXAMPLE_ID}]]),
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
    ("status",): Status,
    ("folders",): Folder,
    ("folders", "rules"): Rule,
}


def _examples(model: type[_Model]) -> dict[str, str]:
    """Give each key an example as YAML; "" where the key may stand without a value, its defaults below it."""
    found = {name: (field.examples or [field.default])[0] for name, field in model.model_fields.items()}
    return {name: "" if isinstance(value, _Model) else _as_yaml(value) for name, value in found.items()}


def _as_yaml(value: object) -> str:
    return json.dumps(value, default=lambda other: sorted(other) if isinstance(other, frozenset) else str(other))


def load(
    path: Path, environ: Mapping[str, str], *, may_be_missing: Callable[[Path, Path], bool] | None = None
) -> Config:
    """Read the configuration; `environ` decides where the ledger is if the file does not. Raises ConfigError.

    A folder that is not there is an error, unless `may_be_missing`, given the ledger's path and the folder's, says no;
    one that does not answer is one without `may_be_missing`. What does not answer is not waited for.
    """
    source = config_source.read(path)
    errors: list[ErrorDetails] = []
    config = None
    given = {"ledger": default_ledger(environ), **source.data}

    def may_miss(folder: Path) -> bool:
        return may_be_missing is not None and may_be_missing(as_path(given["ledger"]), folder)

    away = Away(may_miss, _silent(source), silence_is_wrong=may_be_missing is None)
    try:
        config = Config.model_validate(given, context=away)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    keys = {path: _examples(model) for path, model in _MODELS.items()}
    others = [*_crossings(source, away), *_unguarded(source, environ)]
    problems = config_source.explain(source, errors, keys, others)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def _unguarded(source: Source, environ: Mapping[str, str]) -> Iterator[Problem]:
    """Say where everybody on the network could look at the status page."""
    try:
        status = Status.model_validate(source.data.get("status", {}))
    except ValidationError:
        return  # told of already
    if status.listen is None or status.listen.is_of_this_machine_alone:
        return
    if status.token_file is None and not environ.get(TOKEN_VARIABLE):
        ways = f"name a file that holds one with status.token_file, or set {TOKEN_VARIABLE}; or listen on 127.0.0.1"
        message = f"{status.listen} can be reached from other machines, which takes a token; {ways}"
        yield source.problem(("status", "listen"), message)


def _silent(source: Source) -> frozenset[str]:
    """Return the folders, as they are written, that do not answer, or a directory of theirs."""
    folders = source.data.get("folders")
    asked: dict[str, set[str]] = {}
    for folder in folders if isinstance(folders, tuple) else ():
        try:
            path = as_path(folder["path"])
            wanted = {path, *(path / as_path(folder.get(key) or key) for key in ("done", "failed"))}
        except (KeyError, TypeError, AttributeError, ValueError):
            continue  # what is wrong there is told of when it is validated
        asked.setdefault(os.fspath(path), set()).update(map(os.fspath, wanted))
    silent = mounts.silent((each for wanted in asked.values() for each in wanted), _ANSWER_S)
    return frozenset(path for path, wanted in asked.items() if wanted & silent)


def _crossings(source: Source, away: Away) -> Iterator[Problem]:
    """Say which folders get into each other's way; takes the folders whose places are right, whatever else is wrong."""
    places = dict(_places(source, away))
    first: dict[str, int] = {}
    for at, place in places.items():
        first.setdefault(away.real(place.path, place.path), at)
    for at, place in places.items():
        loc: Loc = ("folders", at, "path")
        real = away.real(place.path, place.path)
        outer = next((first[up] for up in _above(real) if up in first and places[first[up]].recursive), None)
        if first[real] != at:
            yield source.problem(loc, f"is the same directory as {_at(source, first[real])}; keep one of the two")
        elif outer is not None:
            where = f"lies inside {_at(source, outer)}, which is recursive"
            yield source.problem(loc, f"{where}; remove one of the two, or `recursive` there")
        yield from _misplaced(source, at, place, first, away)


def _misplaced(source: Source, at: int, place: _Place, watched: Mapping[str, int], away: Away) -> Iterator[Problem]:
    own, done, failed = (away.real(path, place.path) for path in (place.path, place.done, place.failed))
    for key, target in (("done", done), ("failed", failed)):
        loc: Loc = ("folders", at, key)
        holder = next((real for real in (target, *_above(target)) if real in watched), None)
        if target == own:
            yield source.problem(loc, "is the watched folder itself; write another directory, such as done")
        elif holder not in (None, own):
            message = f"lies in {_at(source, watched[holder])}, which is watched; write a directory outside of it"
            yield source.problem(loc, message)
    if done == failed:
        yield source.problem(("folders", at, "failed"), "is the same directory as done; write another one")


def _places(source: Source, away: Away) -> Iterator[tuple[int, _Place]]:
    """Give each folder whose `path`, `recursive`, `done` and `failed` are right, with its position."""
    folders = source.data.get("folders")
    for at, folder in enumerate(folders if isinstance(folders, tuple) else ()):
        if isinstance(folder, dict):
            try:
                place = {key: folder[key] for key in folder.keys() & _Place.model_fields}
                yield at, _Place.model_validate(place, context=away)
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
            if key.get("default", "") is None or key["title"] in ("Api", "Status"):
                del key["default"]
    schema["required"].remove("ledger")
    del models["Folder"]["properties"]["watch"]["default"]
    rate_limit = models["Api"]["properties"]["rate_limit"]
    rate_limit["anyOf"] = [{"$ref": rate_limit.pop("$ref")}, {"enum": [False, "off"]}, {"type": "null"}]
    for section in (schema["properties"]["api"], schema["properties"]["status"]):
        section["anyOf"] = [{"$ref": section.pop("$ref")}, {"type": "null"}]
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}
