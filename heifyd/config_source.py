"""YAML whose every value keeps its line, and the words for what is wrong with it: text in, values and problems out."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import yaml
from pydantic_core import ErrorDetails

from heifyd.errors import HeifydError

MOST_BYTES: Final = 1024 * 1024
MOST_VALUES: Final = 50_000
"""Values in one file, each use of an alias counted anew: a few lines of aliases can stand for billions of values."""

DEEPEST: Final = 20
MOST_PROBLEMS: Final = 50

Loc: TypeAlias = tuple[int | str, ...]
"""Where a value is: the keys and list positions that lead to it, as pydantic gives them."""

Keys: TypeAlias = Mapping[tuple[str, ...], Mapping[str, str]]
"""The keys that a mapping may have, each with an example; by the keys that lead there, list positions left out."""

_TAG: Final = "tag:yaml.org,2002:"
_TEXT_TAGS: Final = frozenset(_TAG + name for name in ("str", "timestamp", "value", "merge"))
_LONGEST_NUMBER: Final = 40
_SHOWN_CHARS: Final = 60
_KEY_NAME: Final = re.compile(r"[A-Za-z_-]{1,32}[0-9]{0,2}")
_SECRETIVE: Final = re.compile(r"key|token|secret|passw", re.IGNORECASE)
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: in which file, on which line (None: no particular one), at which key ("": none)."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(filter(None, (place, self.key, self.message)))


class ConfigError(HeifydError):
    """The configuration cannot be used; `problems` holds what is wrong with it, in the file's order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(slots=True)
class Source:
    """A file's values as plain data (lists as tuples), the line of each, and what is wrong with the YAML itself.

    `empty` holds the keys that were written without a value; `data` does not have those.
    """

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Loc, int] = field(default_factory=dict)
    empty: set[Loc] = field(default_factory=set)
    problems: dict[Loc, Problem] = field(default_factory=dict)

    def line(self, loc: Loc) -> int:
        """Return the line of the value at `loc`, or of the nearest thing around it that is in the file."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc, 1)

    def problem(self, loc: Loc, message: str) -> Problem:
        """Say what is wrong at `loc`."""
        return Problem(self.file, self.line(loc), label(loc), message)


def label(loc: Loc) -> str:
    """Write a place as `folders[0].path`; a part that looks like no key stays hidden, for it may be a stray secret."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part if _KEY_NAME.fullmatch(part) else '…'}" for part in loc)
    return "".join(parts).removeprefix(".")


def read(path: Path) -> Source:
    """Read a YAML file whose top level is a mapping. Raises ConfigError."""
    source = Source(str(path))
    text = _text(path)
    root = text if isinstance(text, Problem) else _compose(text, source.file)
    if isinstance(root, Problem):
        raise ConfigError([root])
    if not isinstance(root, yaml.MappingNode):
        line = _line(root) if root is not None else 1
        wrong = "the top level is not a mapping" if root is not None else "the file is empty"
        message = f"{wrong}; begin with `folders:` at the start of a line, and its folders below it"
        raise ConfigError([Problem(source.file, line, "", message)])
    _Reading(source).take(root)
    return source


def _text(path: Path) -> str | Problem:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return Problem(str(path), None, "", "does not exist; give the path of a configuration file")
    except (OSError, ValueError) as bad:
        reason = (bad.strerror if isinstance(bad, OSError) else None) or "this is no path"
        return Problem(str(path), None, "", f"cannot be read ({reason}); give heifyd's user a file that it may read")
    if len(raw) > MOST_BYTES:
        return Problem(str(path), None, "", f"is larger than {MOST_BYTES} bytes; give the path of a configuration file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        line = raw.count(b"\n", 0, bad.start) + 1
    return Problem(str(path), line, "", "these bytes are not UTF-8; save the file in the encoding UTF-8")


def _compose(text: str, file: str) -> yaml.Node | Problem | None:
    """Return the document's root, or None where there is none. What PyYAML says is not shown: it quotes the file."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as bad:
        line = text.count("\n", 0, bad.position) + 1
        return Problem(file, line, "", "a control character stands here, which YAML does not allow; remove it")
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as bad:
        told = f"{bad.context}, {bad.problem}"
        at_start, hint = next(((start, hint) for words, start, hint in _HINTS if words in told), _NO_HINT)
        mark = (bad.context_mark if at_start else None) or bad.problem_mark
        return Problem(file, mark.line + 1 if mark else None, "", f"not YAML: {hint}")
    except (ValueError, OverflowError):
        line = loader.get_mark().line + 1
        return Problem(file, line, "", "not YAML: an escape such as \\U has an impossible number; use single quotes")


class _Use(yaml.Node):
    """The place where an alias stands; `value` is the node that it stands for."""


class _Loader(yaml.SafeLoader):
    """Composes nodes, of a bounded number and depth, and keeps the places where aliases stand."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._values += 1
        if self._values > MOST_VALUES or self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=_TOO_MUCH, problem_mark=cast("yaml.Mark", event.start_mark))
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent) and node is not None:
            return _Use(node.tag, node, cast("yaml.Mark", event.start_mark), None)
        return node


_TOO_MUCH: Final = "there are more values, or more levels of them, than a configuration has"
_STAR: Final = 'a value that begins with * is an alias to YAML; put it in quotes, as in "*.wav"'
_NO_HINT: Final = (False, "what stands here has no meaning; put text with special characters in quotes")

_HINTS: Final = (
    (_TOO_MUCH, False, f"{_TOO_MUCH}; give the path of a configuration file"),
    ("undefined alias", False, _STAR),
    ("scanning an alias", False, _STAR),
    ("scanning an anchor", False, "a value that begins with & is an anchor to YAML; put it in quotes"),
    ("duplicate anchor", False, "this anchor is there already; give it another name"),
    (r"character '\t'", False, "a tab stands here; indent with spaces"),
    ("cannot start any token", False, "no value begins with this character; put the value in quotes"),
    (
        "mapping values are not allowed",
        False,
        "no `key:` can stand here; align the line with its neighbours, or put a text that holds a colon in quotes",
    ),
    ("expected ':'", True, "this line stands among keys and is none; write `key: value`"),
    ("found '<scalar>'", False, 'text follows a value that has ended; put all of it in quotes, as in "{stem} {date}"'),
    ("<block end>", False, "this line is aligned with none above it; give neighbours the same indentation"),
    (
        "quoted scalar",
        True,
        "the text in quotes does not end, or has an escape that YAML does not know; write it 'in single quotes'",
    ),
    ("while parsing a flow", True, "a [ or { is not closed; close it, or put the text in quotes"),
    ("single document", False, "a second document begins here; keep one, and remove the line ---"),
    ("tag", False, "a value that begins with ! is a tag to YAML; put it in quotes"),
)
"""What PyYAML says, whether the beginning of what it was reading is the line to show, and what to tell the operator."""


_TAGGED: Final = "has a YAML tag, which nothing here needs; remove the word that begins with !"


def _line(node: yaml.Node) -> int:
    line: int = node.start_mark.line + 1
    return line


class _Reading:
    """Turns nodes into plain data, noting lines and problems; what an alias stands for counts as written there."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._values = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def take(self, root: yaml.MappingNode) -> None:
        self._source.lines[()] = _line(root)
        value = self._value(root, (), None, 0)
        if not isinstance(value, dict):
            raise ConfigError(self._source.problems.values())
        self._source.data = value

    def _value(self, node: yaml.Node, loc: Loc, used_on: int | None, depth: int) -> Any:
        if isinstance(node, _Use):
            used_on = used_on or _line(node)
            node = node.value
        line = used_on or _line(node)
        self._values += 1
        if self._values > MOST_VALUES or depth > DEEPEST:
            message = f"{_TOO_MUCH}, the uses of aliases counted; write it without aliases"
            raise ConfigError([Problem(self._source.file, line, label(loc), message)])
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, loc, used_on, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            for at, item in enumerate(node.value):
                self._source.lines[*loc, at] = used_on or _line(item)
            return tuple(self._value(item, (*loc, at), used_on, depth + 1) for at, item in enumerate(node.value))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, loc, line)
        return self._refuse(loc, line, _TAGGED)

    def _mapping(self, node: yaml.MappingNode, loc: Loc, used_on: int | None, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        own: dict[str, int] = {}
        for _, value_node in (pair for pair in node.value if pair[0].tag == f"{_TAG}merge"):
            self._merge(data, value_node, loc, used_on or _line(value_node), depth)
        for key_node, value_node in (pair for pair in node.value if pair[0].tag != f"{_TAG}merge"):
            key = key_node.value.value if isinstance(key_node, _Use) else key_node.value
            line = used_on or _line(key_node)
            if not isinstance(key, str) or _UNPRINTABLE.search(key):
                message = 'a key is not plain text; put a text with braces in quotes, as in "{stem}"'
                self._source.problems[loc] = Problem(self._source.file, line, label(loc), message)
                continue
            here = (*loc, key)
            self._source.lines[here] = line
            self._source.empty.discard(here)
            data.pop(key, None)
            value = self._value(value_node, here, used_on, depth + 1)
            if value is None:
                self._source.empty.add(here)
            else:
                data[key] = value
            if key in own:
                self._refuse(here, line, f"is given twice, first on line {own[key]}; keep one of the two")
            own.setdefault(key, line)
        return data

    def _merge(self, data: dict[str, Any], node: yaml.Node, loc: Loc, line: int, depth: int) -> None:
        """Take in the keys of `<<: *anchor`, or of a list of such, in which the first goes before the others."""
        target = node.value if isinstance(node, _Use) else node
        parts = reversed(target.value) if isinstance(target, yaml.SequenceNode) else [target]
        for part in parts:
            merged = self._value(part, loc, line, depth + 1)
            if not isinstance(merged, dict):
                message = "<< takes no such value; write `<<: *anchor`, with an anchor that stands before a mapping"
                self._source.problems[loc] = Problem(self._source.file, line, label(loc), message)
                return
            data.update(merged)

    def _scalar(self, node: yaml.ScalarNode, loc: Loc, line: int) -> Any:
        text: str = node.value
        if _UNPRINTABLE.search(text):
            return self._refuse(
                loc, line, "has a line break or a control character in it; write one line of plain text"
            )
        if node.tag in _TEXT_TAGS or len(text) > _LONGEST_NUMBER:
            return text
        try:
            if node.tag == f"{_TAG}null":
                return None
            if node.tag == f"{_TAG}bool":
                return self._scalars.construct_yaml_bool(node)
            # 1:30 is the number 90 to YAML 1.1, and to nobody else.
            if node.tag == f"{_TAG}int" and ":" not in text:
                return self._scalars.construct_yaml_int(node)
            if node.tag == f"{_TAG}float" and ":" not in text:
                return self._scalars.construct_yaml_float(node)
        except (ValueError, LookupError):
            return text
        if node.tag in (f"{_TAG}int", f"{_TAG}float"):
            return text
        return self._refuse(loc, line, _TAGGED)

    def _refuse(self, loc: Loc, line: int, message: str) -> str:
        self._source.problems[loc] = Problem(self._source.file, line, label(loc), message)
        return ""


def explain(
    source: Source, errors: Sequence[ErrorDetails], keys: Keys, others: Iterable[Problem] = ()
) -> list[Problem]:
    """Word pydantic's errors; return them with the YAML's own problems and `others` in the file's order, 50 at most."""
    known = set(source.problems) | source.empty
    faults = sorted((error for error in errors if _counts(error, known)), key=lambda error: source.line(error["loc"]))
    nulls = sorted((loc for loc in source.empty if _lacks_value(loc, keys)), key=source.line)
    problems = [
        *source.problems.values(),
        *(source.problem(error["loc"], _message(error, keys)) for error in faults[: MOST_PROBLEMS + 1]),
        *(source.problem(loc, _without_value(loc, keys)) for loc in nulls[: MOST_PROBLEMS + 1]),
        *others,
    ]
    problems.sort(key=lambda problem: problem.line or 0)
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [Problem(source.file, None, "", "there are more problems; mend these first")]
    return problems


def _counts(error: ErrorDetails, known: AbstractSet[Loc]) -> bool:
    """Leave out what is told already, and lists that are too short only because their items are wrong."""
    return error["loc"] not in known and not (error["type"] == "too_short" and error["input"])


def _lacks_value(loc: Loc, keys: Keys) -> bool:
    """Leave out mappings, which may be empty: their defaults count; and what stands below a value of a wrong kind."""
    return _path(loc[:-1]) in keys and _example(loc, keys) != ""


def _path(loc: Loc) -> tuple[str, ...]:
    return tuple(part for part in loc if isinstance(part, str))


def _example(loc: Loc, keys: Keys) -> str | None:
    """Return the example of a key: "" for one that may be left without a value, None for one that does not exist."""
    return keys.get(_path(loc[:-1]), {}).get(str(loc[-1])) if loc else None


def _without_value(loc: Loc, keys: Keys) -> str:
    example = _example(loc, keys)
    return _unknown(loc, keys) if example is None else f"has no value; write one, such as {example}, or remove the line"


_NO_SECRETS: Final = (
    "is no key here; the API key does not go into this file: name a file that holds it with api.key_file, "
    "or set HEIFY_API_KEY in the environment"
)


_NO_TOKENS: Final = (
    "is no key here; the token does not go into this file: name a file that holds it with status.token_file, "
    "or set HEIFYD_STATUS_TOKEN in the environment"
)


def _unknown(loc: Loc, keys: Keys) -> str:
    key = str(loc[-1])
    here = keys.get(_path(loc[:-1]), {})
    home = next((path for path, names in keys.items() if key in names), None)
    near = difflib.get_close_matches(key.lower().replace("-", "_")[:40], here, n=1, cutoff=0.7)
    if home is not None:
        return f"is no key here; write it {'under ' + '.'.join(home) if home else 'at the top level'}"
    if near:
        return f"is no key here; did you mean {near[0]}?"
    if loc[0] == "status" and _SECRETIVE.search(key):
        return _NO_TOKENS
    if _SECRETIVE.search(key):
        return _NO_SECRETS
    return f"is no key here; the keys are {', '.join(here)}"


_WORDS: Final = {
    "string_type": "is not text; put it in quotes",
    "bool_type": "is neither true nor false; write one of the two",
    "int_type": "is not a whole number; write one, such as {example}",
    "float_type": "is not a number; write one, such as {example}",
    "finite_number": "is not a finite number; write one, such as {example}",
    "tuple_type": "is not a list; write one item a line, each after a hyphen",
    "frozen_set_type": "is not a list; write one item a line, each after a hyphen",
    "model_type": "is not a mapping; write `key: value` lines below it, indented",
    "literal_error": "is none of its values; write {expected}",
    "greater_than": "is too small; write more than {gt}",
    "greater_than_equal": "is too small; write at least {ge}",
    "less_than_equal": "is too large; write at most {le}",
    "too_short": "is empty; write at least one item",
    "string_too_short": "is empty; write something such as {example}",
    "value_error": "{error}",
}


_WRONG_SHAPES: Final = frozenset(("model_type", "tuple_type", "frozen_set_type"))
"""Where a mapping or a list is wanted, a text may be anything, a key's whole line too."""


def _message(error: ErrorDetails, keys: Keys) -> str:
    loc, kind = error["loc"], error["type"]
    example = _example(loc, keys) or ""
    if kind == "extra_forbidden":
        return _unknown(loc, keys)
    if kind == "missing":
        return f"is missing; add it, such as `{loc[-1]}: {example}`"
    wrong = _WORDS.get(kind, "is not what is wanted here; write something such as {example}")
    value = "this value" if kind in _WRONG_SHAPES else _shown(error["input"], loc)
    return f"{value} {wrong.format(example=example, **error.get('ctx', {}))}"


def _shown(value: object, loc: Loc) -> str:
    """Show a value, shortened, unless it stands where a secret may have been put: an id looks much like an API key."""
    if isinstance(value, Mapping):
        return "this mapping"
    if isinstance(value, tuple):
        return "this list"
    if value is None or loc[:1] in (("api",), ("status",)) or str(loc[-1]).endswith("_id") or "://" in str(value):
        return "this value"
    text = str(value).lower() if isinstance(value, bool) else repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
