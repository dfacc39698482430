"""What an operator may write, what it comes to, and what an operator is told who wrote something else."""

import json
import os
import re
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from heifyd import config
from heifyd.address import Address, TcpAddress, UnixAddress
from heifyd.api_key import read_key, read_token
from heifyd.config import Api, Config, ConfigError, Folder, Problem, RateLimit, Rule, Status, load
from heifyd.errors import HeifydError
from heifyd.recording import CONTENT_TYPES, Ids

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"

CONFIGURATION = "a1b2c3d4-e5f6-7890-1234-567890abcdef"
EVALUATOR = "2abb5563-dd64-47bb-bb17-94252e168b06"
PARTICIPANT = "9c5b94b1-35ad-49bb-b118-8e8fc24abf80"
CANARY = "hfy-CANARY7f3a9b2c4d5e6f"


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "heifyd.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def loaded(tmp_path: Path, text: str) -> Config:
    return load(written(tmp_path, text), {"STATE_DIRECTORY": str(tmp_path)})


def refused(tmp_path: Path, text: str | bytes) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as told:
        load(written(tmp_path, text), {})
    return told.value.problems


def told(tmp_path: Path, text: str | bytes) -> list[str]:
    """Return what an operator reads of a bad file, one "LINE: KEY: message" a problem."""
    file = f"{tmp_path / 'heifyd.yaml'}:"
    return [str(problem).removeprefix(file) for problem in refused(tmp_path, text)]


def folder_with(calls: Path, *lines: str) -> str:
    """Return YAML whose first folder has these lines, the first of them on line 4."""
    head = f"folders:\n  - path: {calls}\n    configuration_id: {CONFIGURATION}\n"
    return head + "".join(f"    {line}\n" for line in lines)


def folder(calls: Path, **settings: Any) -> Folder:
    return Folder(path=calls, configuration_id=CONFIGURATION, **settings)


# What a short file comes to


def test_a_folder_and_a_configuration_are_all_that_is_needed(tmp_path: Path, calls: Path) -> None:
    found = loaded(tmp_path, folder_with(calls))

    assert found == Config(
        api=Api(base_url="https://api.heify.com", key_file=None, allow_readable_key=False, rate_limit=RateLimit()),
        workers=4,
        ledger=tmp_path / "ledger.sqlite",
        settle_seconds=None,
        rescan_seconds=None,
        watch="auto",
        retry_for=259_200.0,
        shutdown_grace=25.0,
        history_days=90,
        folders=(
            Folder(
                path=calls,
                recursive=False,
                done=calls / "done",
                failed=calls / "failed",
                configuration_id=CONFIGURATION,
                evaluator_id=None,
                participant_id=None,
                extensions=frozenset(CONTENT_TYPES),
                exclude=(),
                settle_seconds=None,
                rescan_seconds=None,
                watch="auto",
                name="{stem}",
                ready_marker=None,
                rules=(),
            ),
        ),
    )
    assert (found.api.rate_limit, RateLimit().per_minute, RateLimit().burst) == (RateLimit(), 500, 17)


def test_settings_cannot_be_changed(calls: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        folder(calls).name = "{name}"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90), ("1.5", 1.5), ("90s", 90), ("25m", 1500), ("12h", 43_200), ("3d", 259_200), ("0.5h", 1800)],
)
def test_a_duration_is_seconds_or_text_with_a_unit(tmp_path: Path, calls: Path, written: str, seconds: float) -> None:
    assert loaded(tmp_path, f"retry_for: {written}\n{folder_with(calls)}").retry_for == seconds


@pytest.mark.parametrize("bad", ["-1", ".inf", ".nan", "1e999", "3 weeks", "1:30", "'90'", "4000d", "true", "[1]", "0"])
def test_what_is_no_duration_is_refused_on_its_line(tmp_path: Path, calls: Path, bad: str) -> None:
    [problem] = refused(tmp_path, f"{folder_with(calls)}retry_for: {bad}\n")

    assert (problem.line, problem.key) == (4, "retry_for")
    assert "; write " in problem.message


def test_a_recording_may_settle_at_once_but_rescans_may_not_be_endless(tmp_path: Path, calls: Path) -> None:
    assert loaded(tmp_path, folder_with(calls, "settle_seconds: 0")).folders[0].settle_seconds == 0
    [line] = told(tmp_path, folder_with(calls, "rescan_seconds: 0s"))
    assert line.startswith("4: folders[0].rescan_seconds: 0.0 is too small; write more than 0")


def test_a_folders_own_word_goes_before_the_general_one(tmp_path: Path, calls: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = f"""
settle_seconds: 5
watch: poll
folders:
  - {{path: {calls}, configuration_id: {CONFIGURATION}, settle_seconds: 1s, watch: auto}}
  - {{path: {other}, configuration_id: {CONFIGURATION}, rescan_seconds: 2m}}
"""
    first, second = loaded(tmp_path, text).folders

    assert (first.settle_seconds, first.rescan_seconds, first.watch) == (1, None, "auto")
    assert (second.settle_seconds, second.rescan_seconds, second.watch) == (5, 120, "poll")


def test_ids_are_held_as_heify_writes_them(tmp_path: Path, calls: Path) -> None:
    text = folder_with(calls, f"evaluator_id: {EVALUATOR.upper()}", f"participant_id: {PARTICIPANT}")

    assert loaded(tmp_path, text).folders[0].ids_for("call.wav") == Ids(CONFIGURATION, EVALUATOR, PARTICIPANT)


@pytest.mark.parametrize("bad", ["sales", CONFIGURATION[:-1], f"{{{CONFIGURATION}}}", CONFIGURATION.replace("-", "")])
def test_an_id_that_is_no_uuid_is_refused(tmp_path: Path, calls: Path, bad: str) -> None:
    [line] = told(tmp_path, folder_with(calls, f"evaluator_id: '{bad}'"))

    assert (
        line == f"4: folders[0].evaluator_id: this value is not a UUID; copy the id from Heify, such as {CONFIGURATION}"
    )


@pytest.mark.parametrize("off", ["off", "false", "no", "'off'"])
def test_the_rate_limit_can_be_off(tmp_path: Path, calls: Path, off: str) -> None:
    assert loaded(tmp_path, f"api: {{rate_limit: {off}}}\n{folder_with(calls)}").api.rate_limit is None


@pytest.mark.parametrize("api", ["api:", "api: {}", "api:\n  rate_limit:", "api:\n  rate_limit: {burst: 17}"])
def test_a_mapping_whose_lines_are_commented_out_has_its_defaults(tmp_path: Path, calls: Path, api: str) -> None:
    assert loaded(tmp_path, f"{api}\n{folder_with(calls)}").api == Api()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("true", "rate_limit: this value is no rate limit; write off, or per_minute and burst"),
        ("50", "rate_limit: this value is not a mapping"),
        ("{per_minute: 0}", "rate_limit.per_minute: this value is too small; write at least 1"),
        ("{burst: 1.5}", "rate_limit.burst: this value is not a whole number; write one, such as 17"),
        ("{per_minute: .nan}", "rate_limit.per_minute: this value is not a finite number; write one, such as 500.0"),
    ],
)
def test_a_rate_limit_that_is_none_is_refused(tmp_path: Path, calls: Path, bad: str, message: str) -> None:
    [line] = told(tmp_path, f"api: {{rate_limit: {bad}}}\n{folder_with(calls)}")
    assert line.startswith(f"1: api.{message}")


def test_extensions_are_written_with_or_without_a_dot_in_any_case(tmp_path: Path, calls: Path) -> None:
    found = loaded(tmp_path, folder_with(calls, "extensions: [WAV, .Mp3, wav]"))

    assert found.folders[0].extensions == {".wav", ".mp3"}


def test_an_extension_that_heify_does_not_take_is_refused_with_those_it_takes(tmp_path: Path, calls: Path) -> None:
    [line] = told(tmp_path, folder_with(calls, "extensions:", "  - wav", "  - opus"))
    assert line.startswith(
        "6: folders[0].extensions[1]: 'opus' is no format that Heify takes; the formats are .aac .aiff"
    )

    [line] = told(tmp_path, folder_with(calls, "extensions: []"))
    assert line == "4: folders[0].extensions: this list is empty; write at least one item"


@pytest.mark.parametrize("workers", ["0", "65", "many", "2.0", "yes", "'4'"])
def test_the_number_of_workers_has_bounds(tmp_path: Path, calls: Path, workers: str) -> None:
    [problem] = refused(tmp_path, f"workers: {workers}\n{folder_with(calls)}")
    assert (problem.line, problem.key) == (1, "workers")


def test_at_least_one_folder_is_watched(tmp_path: Path) -> None:
    assert told(tmp_path, "folders: []\n") == ["1: folders: this list is empty; write at least one item"]
    assert told(tmp_path, "\nworkers: 2\n")[0].startswith("2: folders: is missing; add it, such as `folders: [{")
    assert told(tmp_path, "workers: 2\nfolders:\n")[0].startswith("2: folders: has no value; write one, such as [{")


# Where Heify is


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://api.heify.com/", "https://api.heify.com"),
        ("https://proxy.example:8443/heify/", "https://proxy.example:8443/heify"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.8.9.10", "http://127.8.9.10"),
        ("http://[::1]:80/", "http://[::1]:80"),
    ],
)
def test_the_api_is_reached_encrypted_or_on_this_machine(tmp_path: Path, calls: Path, given: str, kept: str) -> None:
    assert loaded(tmp_path, f"api: {{base_url: '{given}'}}\n{folder_with(calls)}").api.base_url == kept


@pytest.mark.parametrize(
    "bad",
    [
        "http://api.heify.com",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "http://10.0.0.1",
        f"https://user:{CANARY}@api.heify.com",
        f"https://api.heify.com?key={CANARY}",
        f"https://api.heify.com/#{CANARY}",
        f"https://api.heify.com\\@{CANARY}",
        "https://",
        "https://api.heify.com:99999",
        "https://[::::]",
        "ftp://api.heify.com",
        "api.heify.com",
        "",
        CANARY,
    ],
)
def test_an_address_that_could_leak_the_key_is_refused_unseen(tmp_path: Path, calls: Path, bad: str) -> None:
    [problem] = refused(tmp_path, f"api:\n  base_url: '{bad}'\n{folder_with(calls)}")

    assert (problem.line, problem.key) == (2, "api.base_url")
    assert "write https://" in problem.message
    assert CANARY not in str(problem)


# Where the folders are


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("calls", "'calls' is not an absolute path; write one that begins with / or ~/"),
        ("/nowhere/calls", "'/nowhere/calls' does not exist; create the directory, or correct the path"),
        ("/dev/null", "'/dev/null' is not a directory; write the directory that the recorder writes to"),
        ("/dev/null/calls", "'/dev/null/calls' does not exist; create the directory, or correct the path"),
        ("~nobody-of-this-name/calls", "'~nobody-of-this-name/calls' begins with the home of a user who has none"),
        ("5", "5 is not a path; put it in quotes"),
        ("/" + "x" * 300, f"'/{'x' * 58}… cannot be looked at (File name too long); let heifyd's user reach it"),
        ('"/a\\0b"', "has a line break or a control character in it; write one line of plain text"),
        ('"/a\\uDC80b"', "has a line break or a control character in it; write one line of plain text"),
        ("", 'has no value; write one, such as "/var/spool/asterisk/monitor", or remove the line'),
    ],
)
def test_a_folder_must_be_an_absolute_existing_directory(tmp_path: Path, bad: str, message: str) -> None:
    [line] = told(tmp_path, f"folders:\n  - configuration_id: {CONFIGURATION}\n    path: {bad}\n")
    assert line.startswith(f"3: folders[0].path: {message}")


def test_a_path_may_begin_at_home(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loaded(tmp_path, folder_with(Path("~/calls"))).folders[0].path == calls


def test_done_and_failed_are_relative_to_the_folder_or_absolute(tmp_path: Path, calls: Path) -> None:
    found = loaded(tmp_path, folder_with(calls, "done: ../sent", f"failed: {tmp_path}/bad")).folders[0]
    assert (found.done, found.failed) == (calls / "../sent", tmp_path / "bad")


def test_done_must_not_be_a_file(tmp_path: Path, calls: Path) -> None:
    (calls / "done").touch()
    [line] = told(tmp_path, folder_with(calls))
    assert line.startswith("2: folders[0].done: 'done' is there and is not a directory; write the path of a directory")


def two_folders(first: Path, second: Path, *, of_first: str = "", of_second: str = "") -> str:
    """Return YAML with one folder on line 2, and another on line 3."""
    return "folders:\n" + "".join(
        f"  - {{configuration_id: {CONFIGURATION}, path: {path}, {settings}}}\n"
        for path, settings in ((first, of_first), (second, of_second))
    )


def test_a_directory_is_watched_once_whatever_its_names(tmp_path: Path, calls: Path) -> None:
    (tmp_path / "link").symlink_to(calls)

    for name in (calls, tmp_path / "link", tmp_path / "x/../calls/."):
        (tmp_path / "x").mkdir(exist_ok=True)
        [line] = told(tmp_path, two_folders(calls, name))
        assert line == "3: folders[1].path: is the same directory as folders[0] (line 2); keep one of the two"


def test_a_folder_inside_a_recursive_one_would_be_watched_twice(tmp_path: Path, calls: Path) -> None:
    (calls / "deep/er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(calls / "deep")

    for inner in (calls / "deep/er", tmp_path / "link/er"):
        [line] = told(tmp_path, two_folders(inner, calls, of_second="recursive: true"))
        assert line == (
            "2: folders[0].path: lies inside folders[1] (line 3), which is recursive; "
            "remove one of the two, or `recursive` there"
        )


def test_a_folder_inside_one_that_is_not_recursive_is_its_own(tmp_path: Path, calls: Path) -> None:
    (calls / "deep").mkdir()
    assert len(loaded(tmp_path, two_folders(calls, calls / "deep", of_second="recursive: true")).folders) == 2


@pytest.mark.parametrize("key", ["done", "failed"])
@pytest.mark.parametrize("target", ["{other}", "{other}/sent", "{link}/sent"])
def test_what_is_filed_never_lands_in_another_watched_folder(
    tmp_path: Path, calls: Path, key: str, target: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "link").symlink_to(other)
    place = target.format(other=other, link=tmp_path / "link")

    [line] = told(tmp_path, two_folders(calls, other, of_first=f"{key}: {place}"))

    assert line == (
        f"2: folders[0].{key}: lies in folders[1] (line 3), which is watched; write a directory outside of it"
    )


def test_a_default_done_directory_that_is_watched_is_told_of(tmp_path: Path, calls: Path) -> None:
    (calls / "done").mkdir()
    [line] = told(tmp_path, two_folders(calls, calls / "done"))
    assert line.startswith("2: folders[0].done: lies in folders[1] (line 3), which is watched")


def test_done_and_failed_are_neither_the_folder_nor_each_other(tmp_path: Path, calls: Path) -> None:
    [done] = told(tmp_path, folder_with(calls, "done: ."))
    [failed] = told(tmp_path, folder_with(calls, "failed: x/../done"))

    assert done == "4: folders[0].done: is the watched folder itself; write another directory, such as done"
    assert failed == "4: folders[0].failed: is the same directory as done; write another one"


def test_folders_may_share_a_done_directory(tmp_path: Path, calls: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shared = f"done: {tmp_path}/sent"
    assert len(loaded(tmp_path, two_folders(calls, other, of_first=shared, of_second=shared)).folders) == 2


# What a recording is sent as


def test_the_first_rule_that_matches_overrides_only_the_ids_it_gives(tmp_path: Path, calls: Path) -> None:
    text = folder_with(
        calls,
        f"evaluator_id: {EVALUATOR}",
        "rules:",
        f"  - {{match: 'agents/**', participant_id: {PARTICIPANT}}}",
        f"  - {{match: '*.mp3', configuration_id: {EVALUATOR}, evaluator_id: {CONFIGURATION}}}",
    )
    [found] = loaded(tmp_path, text).folders

    assert found.ids_for("agents/1.mp3") == Ids(CONFIGURATION, EVALUATOR, PARTICIPANT)
    assert found.ids_for("otto/1.mp3") == Ids(EVALUATOR, CONFIGURATION, None)
    assert found.ids_for("otto/1.wav") == Ids(CONFIGURATION, EVALUATOR, None)


def test_a_rule_that_changes_nothing_is_a_mistake(tmp_path: Path, calls: Path) -> None:
    [line] = told(tmp_path, folder_with(calls, "rules:", "  - match: '*.wav'"))
    assert line == (
        "5: folders[0].rules[0]: this mapping changes nothing; add configuration_id, evaluator_id or participant_id"
    )


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("*.wav", "call.wav", True),
        ("*.wav", "a/b/call.wav", True),
        ("*.wav", "call.wav.ready", False),
        ("*.wav", ".wav", True),
        ("test-*", "a/test-1.wav", True),
        ("test-*", "test-1/call.wav", False),
        ("a/*.wav", "a/call.wav", True),
        ("a/*.wav", "a/b/call.wav", False),
        ("a/*.wav", "z/a/call.wav", False),
        ("a/**", "a/call.wav", True),
        ("a/**", "a/b/c/call.wav", True),
        ("a/**", "a", True),
        ("a/**", "ab/call.wav", False),
        ("a/**/*.wav", "a/call.wav", True),
        ("a/**/*.wav", "a/b/c/call.wav", True),
        ("**/a/*.wav", "a/call.wav", True),
        ("**/a/*.wav", "x/y/a/call.wav", True),
        ("**/a/**/b/*", "a/x/a/y/b/call.wav", True),
        ("**/a/**/b/*", "a/x/a/y/b/z/call.wav", False),
        ("**", "a/b.wav", True),
        ("a/?all.wav", "a/call.wav", True),
        ("a/?call.wav", "a/call.wav", False),
        ("[ab]/[!c]*", "b/dall.wav", True),
        ("[ab]/[!c]*", "b/call.wav", False),
        ("a/[", "a/[", True),
        ("a**b/c", "a-b/c", True),
        ("a**b/c", "a/b/c", False),
        ("*.WAV", "call.wav", False),
        ("a/*", "a/new\nline.wav", True),
        ("a/*", "a/\udcff.wav", True),
        ("é*", "é.wav", True),
    ],
)
def test_a_star_stays_within_a_name_and_two_cross_directories(
    calls: Path, pattern: str, path: str, *, is_match: bool
) -> None:
    assert folder(calls, exclude=(pattern,)).excludes(path) is is_match


names = st.text("ab", min_size=1, max_size=3)
parts = st.sampled_from(["**", "*", "a*", "*b", "?", "ab", "a?*"])


@given(st.lists(parts, min_size=2, max_size=5), st.lists(names, min_size=1, max_size=6))
def test_patterns_mean_what_their_parts_mean_one_by_one(pattern: list[str], path: list[str]) -> None:
    def means(wanted: list[str], found: list[str]) -> bool:
        if not wanted:
            return not found
        if wanted[0] == "**":
            return any(means(wanted[1:], found[at:]) for at in range(len(found) + 1))
        name = wanted[0].replace("?", ".").replace("*", ".*")
        return bool(found) and bool(re.fullmatch(name, found[0])) and means(wanted[1:], found[1:])

    whole = Folder(path=Path("/"), configuration_id=CONFIGURATION, exclude=("/".join(pattern),))

    assert whole.excludes("/".join(path)) is means(pattern, path)


def test_a_spiteful_pattern_takes_no_time(calls: Path) -> None:
    spiteful = folder(calls, exclude=("*a" * 60 + "b", "**/a/" * 60 + "b"))
    assert not spiteful.excludes("a" * 250)
    assert not spiteful.excludes("/".join(["a"] * 1000))


@pytest.mark.parametrize("bad", ["/x/*.wav", "x/", "x//y", "./x", "../x", "''"])
def test_a_pattern_that_can_never_match_is_refused(tmp_path: Path, calls: Path, bad: str) -> None:
    [line] = told(tmp_path, folder_with(calls, f"exclude: [{bad}]"))
    assert line.startswith("4: folders[0].exclude[0]: ")
    assert "; patterns are relative" in line or "; write one such as" in line


def test_a_name_is_made_of_the_recordings_own_fields(calls: Path) -> None:
    every = folder(calls, name="{folder} {path} {name} {stem} {date} {time} {{x}}")
    modified = datetime(2025, 3, 9, 7, 5, 2, tzinfo=UTC)

    assert every.name_for("agent/c.1.wav", modified) == "calls agent/c.1.wav c.1.wav c.1 2025-03-09 07:05:02 {x}"
    assert folder(calls).name_for("{name}.wav", modified) == "{name}"


@pytest.mark.parametrize(
    "bad",
    [
        "{stemm}",
        "{}",
        "{0}",
        "{stem.__class__}",
        "{stem[0]}",
        "{stem!r}",
        "{stem:>9}",
        "{stem",
        "stem}",
        "{stem:{name}}",
    ],
)
def test_a_name_with_an_unknown_field_is_refused_with_the_fields_there_are(
    tmp_path: Path, calls: Path, bad: str
) -> None:
    [line] = told(tmp_path, folder_with(calls, f"name: '{bad}'"))

    assert line.startswith(f"4: folders[0].name: '{bad}' has ")
    assert line.endswith("the fields are {stem} {name} {path} {folder} {date} {time}")


@pytest.mark.parametrize(
    "bad", ["done", "{name}", "{path}.ready", "{name}{stem}", "{{name}}.{stem}", "../{name}.ok", ""]
)
def test_a_ready_marker_stands_beside_its_recording_and_names_it(tmp_path: Path, calls: Path, bad: str) -> None:
    assert loaded(tmp_path, folder_with(calls, "ready_marker: '{stem}.ok'")).folders[0].ready_marker == "{stem}.ok"

    [line] = told(tmp_path, folder_with(calls, f"ready_marker: '{bad}'"))
    assert line.startswith(f"4: folders[0].ready_marker: '{bad}' ")


# What is told of mistakes


def test_everything_that_is_wrong_is_told_at_once_in_the_files_order(tmp_path: Path, calls: Path) -> None:
    text = f"""\
worker: 8
retry_for: soon
folders:
  - path: {calls}
    configuration_id: sales
    done: .
    recursiv: true
  - path: {calls}
    configuration_id: {CONFIGURATION}
    failed: done
    done: .
    exclude: "*.tmp"
  - evaluator_id: {EVALUATOR}
    evaluator_id: {EVALUATOR}
"""
    assert [line.partition(";")[0] for line in told(tmp_path, text)] == [
        "1: worker: is no key here",
        "2: retry_for: 'soon' is not a duration",
        "5: folders[0].configuration_id: this value is not a UUID",
        "6: folders[0].done: is the watched folder itself",
        "7: folders[0].recursiv: is no key here",
        "8: folders[1].path: is the same directory as folders[0] (line 4)",
        "11: folders[1].done: is the watched folder itself",
        "12: folders[1].exclude: this value is not a list",
        "13: folders[2].path: is missing",
        "13: folders[2].configuration_id: is missing",
        "14: folders[2].evaluator_id: is given twice, first on line 13",
    ]


def test_an_error_reads_file_line_key_and_what_to_write_instead(tmp_path: Path, calls: Path) -> None:
    path = written(tmp_path, folder_with(calls, "watch: inotify"))

    with pytest.raises(HeifydError) as error:
        load(path, {})

    assert str(error.value) == (
        f"{path}:4: folders[0].watch: 'inotify' is none of its values; write 'auto', 'events' or 'poll'"
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("evaluator_idd: x", "folders[0].evaluator_idd: is no key here; did you mean evaluator_id?"),
        ("Ready-Marker: x", "folders[0].Ready-Marker: is no key here; did you mean ready_marker?"),
        ("workers: 3", "folders[0].workers: is no key here; write it at the top level"),
        ("base_url: x", "folders[0].base_url: is no key here; write it under api"),
        ("frequency:", "folders[0].frequency: is no key here; the keys are path, recursive, done, failed, "),
    ],
)
def test_an_unknown_key_proposes_a_known_one(tmp_path: Path, calls: Path, lines: str, message: str) -> None:
    [line] = told(tmp_path, folder_with(calls, lines))
    assert line.startswith(f"4: {message}")


def test_a_key_without_a_value_is_a_mistake_where_it_could_change_what_is_sent(tmp_path: Path, calls: Path) -> None:
    [line] = told(tmp_path, folder_with(calls, "evaluator_id:"))
    assert line == f'4: folders[0].evaluator_id: has no value; write one, such as "{CONFIGURATION}", or remove the line'


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the file is empty"),
        ("# nothing yet\n", 1, "the file is empty"),
        ("- a\n", 1, "the top level is not a mapping"),
        ("# x\nfolders\n", 2, "the top level is not a mapping"),
        ("null\n", 1, "the top level is not a mapping"),
        ("folders:\n\t- path: /x\n", 2, "not YAML: a tab stands here; indent with spaces"),
        (b"workers: 4\nname: caf\xe9\n", 2, "these bytes are not UTF-8"),
        ("a: 1\r\nb: \x07\r\n", 2, "a control character stands here"),
        ("a: 1\nb: c: d\n", 2, "not YAML: no `key:` can stand here"),
        ("a: 1\n  b: 2\n", 2, "not YAML: no `key:` can stand here"),
        ("a:\n  - x: 1\n   y: 2\n", 3, "not YAML: this line is aligned with none above it"),
        ("a: 1\nfolders\nb: 2\n", 2, "not YAML: this line stands among keys and is none"),
        ("a: 1\nb: {stem}-{date}\n", 2, "not YAML: text follows a value that has ended"),
        ("a: *.wav\n", 1, "not YAML: a value that begins with * is an alias"),
        ("a: **/*.wav\n", 1, "not YAML: a value that begins with * is an alias"),
        ("a: *other\n", 1, "not YAML: a value that begins with * is an alias"),
        ("a: &\n", 1, "not YAML: a value that begins with & is an anchor"),
        ("a: &x 1\nb: &x 2\n", 2, "not YAML: this anchor is there already"),
        ("a: @x\n", 1, "not YAML: no value begins with this character"),
        ("a: 'x\nb: 1\n", 1, "not YAML: the text in quotes does not end"),
        ('a: "C:\\dir"\n', 1, "not YAML: the text in quotes does not end, or has an escape"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2, "not YAML: an escape such as \\U has an impossible number"),
        ("a: 1\nb: [1,\nc: 2\n", 2, "not YAML: a [ or { is not closed"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML: a second document begins here"),
        ("a: !foo!bar x\n", 1, "not YAML: a value that begins with ! is a tag"),
        ("a: ]\n", 1, "not YAML: what stands here has no meaning"),
        ("!mine\nfolders: 1\n", 1, "has a YAML tag"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line_and_a_way_out(
    tmp_path: Path, text: str | bytes, line: int, message: str
) -> None:
    [problem] = refused(tmp_path, text)

    assert (problem.line, problem.key) == (line, "")
    assert problem.message.startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("name: {{stem}}", "folders[0].name: a key is not plain text; put a text with braces in quotes"),
        ("name: {stem}", "folders[0].name: this mapping is not text; put it in quotes"),
        ("name: yes", "folders[0].name: true is not text; put it in quotes"),
        ("name: 12", "folders[0].name: 12 is not text; put it in quotes"),
        ("recursive: ja", "folders[0].recursive: 'ja' is neither true nor false; write one of the two"),
        ("name: !!python/object/apply:os.system [id]", "folders[0].name: has a YAML tag"),
        ("name: !!binary aGVpZnlk", "folders[0].name: has a YAML tag"),
        ("name: !mine x", "folders[0].name: has a YAML tag"),
        ("rules: [x]", "folders[0].rules[0]: this value is not a mapping"),
        ("<<: x", "folders[0]: << takes no such value"),
        ("rules: !!omap [x]", "folders[0].rules: has a YAML tag"),
    ],
)
def test_yaml_that_means_something_else_is_told_with_its_line(
    tmp_path: Path, calls: Path, line: str, message: str
) -> None:
    [found] = told(tmp_path, folder_with(calls, line))
    assert found.startswith(f"4: {message}")


def test_a_date_and_a_clock_time_stay_the_text_that_they_were(tmp_path: Path, calls: Path) -> None:
    assert loaded(tmp_path, folder_with(calls, "name: 2025-01-31")).folders[0].name == "2025-01-31"
    assert loaded(tmp_path, folder_with(calls, "name: 12:30")).folders[0].name == "12:30"


def test_anchors_and_merges_save_writing(tmp_path: Path, calls: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = f"""
folders:
  - &base
    path: {calls}
    configuration_id: &id {CONFIGURATION}
    recursive: true
  - <<: *base
    path: {other}
    evaluator_id: *id
"""
    second = loaded(tmp_path, text).folders[1]

    assert (second.path, second.recursive, second.evaluator_id) == (other, True, CONFIGURATION)


def test_a_mistake_behind_an_alias_is_told_where_it_is_used(tmp_path: Path, calls: Path) -> None:
    text = folder_with(calls, "name: &mine '{x}'", "exclude:", "  - ok", "  - *mine", "ready_marker: *mine")
    keys = [(problem.line, problem.key) for problem in refused(tmp_path, text)]

    assert keys == [(4, "folders[0].name"), (8, "folders[0].ready_marker")]


def billion_laughs() -> str:
    return "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12))


@pytest.mark.parametrize(
    "text",
    [
        billion_laughs(),
        "a: &a [*a]\n",
        "a: &a {<<: *a}\n",
        "a: &a {b: *a}\n",
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "a: [" + "x, " * 60_000 + "]",
        "x" * (1024 * 1024 + 1),
    ],
)
def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path, text: str) -> None:
    [problem] = refused(tmp_path, text)
    assert "more values" in problem.message or "larger than 1048576 bytes" in problem.message


def test_no_more_problems_are_told_than_one_can_read(tmp_path: Path) -> None:
    problems = refused(tmp_path, "".join(f"k{'x' * n}: 1\n" for n in range(200)))

    assert len(problems) == 51
    assert problems[-1].message == "there are more problems; mend these first"


def test_a_file_that_cannot_be_read_is_told_by_its_name(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.yaml", "does not exist; give the path of a configuration file"),
        (tmp_path, "cannot be read (Is a directory); give heifyd's user a file that it may read"),
        (tmp_path / "nul\0.yaml", "cannot be read (this is no path); give heifyd's user a file that it may read"),
    ):
        with pytest.raises(ConfigError) as error:
            load(path, {})
        assert str(error.value) == f"{path}: {message}"


# No secret is told


@pytest.mark.parametrize(
    "text",
    [
        f"api:\n  api_key: {CANARY}\n",
        f"api:\n  key: {CANARY}\n",
        f"api_key: {CANARY}\n",
        f"x-api-key: {CANARY}\n",
        f"HEIFY_API_KEY: {CANARY}\n",
        f"folders:\n  - api_key: {CANARY}\n",
    ],
)
def test_a_key_in_the_file_is_told_where_it_belongs_and_never_shown(tmp_path: Path, text: str) -> None:
    problems = refused(tmp_path, text)

    assert any("api.key_file" in problem.message and "HEIFY_API_KEY" in problem.message for problem in problems)
    assert CANARY not in str(problems)


@pytest.mark.parametrize(
    "text",
    [
        f"api: {CANARY}\n",
        f"api: {{{CANARY}}}\n",
        f"api: {{key_file: {CANARY}}}\n",
        f"api: {{allow_readable_key: {CANARY}, base_url: [{CANARY}], rate_limit: {CANARY}}}\n",
        f"api:\n  {CANARY}: x\n",
        f"api: *{CANARY}\n",
        f"api: &{CANARY} 1\nb: &{CANARY} 2\n",
        f"api: !{CANARY} 1\n",
        f"api: !{CANARY}!x 1\n",
        f"api: '{CANARY}\n",
        f"api: @{CANARY}\n",
        f"api: x: {CANARY}\n",
        f"{CANARY}\n",
        f"{CANARY}:\n",
        f"- {CANARY}\n",
        f"folders: HEIFY_API_KEY={CANARY}\n",
        f"folders: [HEIFY_API_KEY={CANARY}]\n",
        f"ledger: postgresql://heifyd:{CANARY}@db/heifyd\n",
    ],
)
def test_a_key_that_slipped_into_a_wrong_place_is_never_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(written(tmp_path, text), {})

    assert CANARY not in str(error.value)
    assert CANARY not in repr(error.value.problems)
    assert error.value.__context__ is None


# Whatever is in the file

yaml_words = st.sampled_from(
    [*Config.model_fields, *Api.model_fields, *RateLimit.model_fields, *Folder.model_fields, *Rule.model_fields, "<<"]
)
yaml_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=5)
    | st.sampled_from(["/", "/tmp", "~", "~x", "../..", "\0", CONFIGURATION, "{stem}", "*.wav", "**", "off", "3d"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(yaml_words | st.text(max_size=8), inner, max_size=6),
    max_leaves=30,
)
yaml_pieces = st.lists(
    yaml_words.map(lambda word: f"{word}: ")
    | st.sampled_from(["\n", "  ", "- ", "\t", "[", "]", "{", "}", ",", "'", '"', "&a ", "*a", "!", "|", ">", "%", "?"])
    | st.sampled_from(
        ["#", "---\n", "...\n", "!!int ", "!!set ", "!!timestamp ", "<<: ", "\\", "\x85", "\u2028", "\ufeff"]
    )
    | st.sampled_from(
        ["0x", "1_0", "1:2", ".inf", "=", "~", "~x", "null", "yes", "2020-99-99", "1e9", '"\\x', '"\\uD800"']
    )
    | st.text(max_size=6)
).map("".join)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def outcome(path: Path, content: bytes) -> Config | ConfigError:
    path.write_bytes(content)
    try:
        return load(path, {"STATE_DIRECTORY": "/state"})
    except ConfigError as error:
        return error


anything = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@anything
@given(content=st.binary() | st.text().map(str.encode) | yaml_pieces.map(lambda text: text.encode("utf-8", "replace")))
def test_any_text_is_a_configuration_or_a_configuration_error(scratch: Path, content: bytes) -> None:
    found = outcome(scratch / "text.yaml", content)

    assert isinstance(found, Config) or str(found).encode()


@anything
@given(data=st.dictionaries(yaml_words, yaml_values) | st.fixed_dictionaries({"folders": st.lists(yaml_values)}))
def test_any_structure_is_a_configuration_or_a_configuration_error(scratch: Path, data: Any) -> None:
    found = outcome(scratch / "structure.yaml", yaml.dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"))

    assert isinstance(found, Config) or str(found).encode()


@anything
@given(
    folders=st.lists(
        st.fixed_dictionaries(
            {"path": st.sampled_from(["/", "/tmp", "/usr", "/usr/../tmp"]), "configuration_id": st.just(CONFIGURATION)},
            optional={
                "recursive": st.booleans(),
                "done": st.sampled_from(["/tmp", "/var/sent", ".", "done", "failed", "/dev/null"]),
                "failed": st.sampled_from(["/usr/x", "/var/sent", "done/../done"]),
                "name": st.text(string.ascii_letters + "{}!:.[]", max_size=9),
                "exclude": st.lists(st.text("ab*?[]!/.\\-^&|~#{}", max_size=9)),
                "settle_seconds": st.integers() | st.floats() | st.from_regex(r"[0-9]{1,4}[smhdw]", fullmatch=True),
            },
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_loads_also_works(scratch: Path, folders: Any) -> None:
    found = outcome(scratch / "folders.yaml", yaml.dump({"folders": folders}).encode())

    for each in found.folders if isinstance(found, Config) else ():
        assert each.ids_for("a/b.wav").configuration_id == CONFIGURATION
        assert isinstance(each.name_for("a/b.wav", datetime(2025, 1, 1, tzinfo=UTC)), str)
        assert each.excludes("a/b.wav") in (True, False)
        assert each.settle_seconds is None or 0 <= each.settle_seconds < 1e9


@anything
@given(key=st.sampled_from(["api", "base_url", "key_file", "api_key", "key", "rate_limit"]), wrap=st.integers(0, 3))
def test_a_canary_never_sings(scratch: Path, key: str, wrap: int) -> None:
    value: Any = CANARY
    for _ in range(wrap):
        value = [{key: value}, {CANARY: value}]
    for data in ({"api": {key: value}}, {key: value}, {"folders": [{key: value}]}, {"api": value}):
        found = outcome(scratch / "canary.yaml", yaml.dump(data).encode())
        assert isinstance(found, ConfigError)
        assert CANARY not in str(found)


# The key


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "api-key"
    path.write_text(f"  {CANARY}\r\n")
    path.chmod(0o400)
    return path


def test_the_key_comes_from_its_file_before_the_environment(key_file: Path) -> None:
    assert read_key(Api(key_file=key_file), {"HEIFY_API_KEY": "another"}) == CANARY
    assert read_key(Api(), {"HEIFY_API_KEY": f" {CANARY}\n"}) == CANARY


def test_the_credential_of_a_systemd_unit_is_the_key_where_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "heify-api-key").write_text(f"{CANARY}\n")
    (tmp_path / "heify-api-key").chmod(0o400)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}

    assert read_key(Api(), environ) == CANARY
    assert read_key(Api(), {**environ, "HEIFY_API_KEY": "another"}) == "another"
    (tmp_path / "heify-api-key").unlink()
    with pytest.raises(ConfigError, match="HEIFY_API_KEY: is not set"):
        read_key(Api(), environ)


@pytest.mark.parametrize("environ", [{}, {"HEIFY_API_KEY": ""}, {"HEIFY_API_KEY": " \n"}])
def test_without_a_key_both_ways_to_give_one_are_told(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        read_key(Api(), environ)
    assert str(error.value) == (
        "environment: HEIFY_API_KEY: is not set or empty; set it to the API key, "
        "or name a file that holds the key with api.key_file"
    )


@pytest.mark.parametrize(
    "content", [f"{CANARY}\xe9", f"{CANARY}\n{CANARY}", f"{CANARY}\0", f"\ufeff{CANARY}", f"\x1b{CANARY}"]
)
def test_a_key_that_no_header_can_carry_is_refused_unseen(key_file: Path, content: str) -> None:
    key_file.chmod(0o600)
    key_file.write_text(content)

    for api, environ in ((Api(key_file=key_file), {}), (Api(), {"HEIFY_API_KEY": content})):
        with pytest.raises(ConfigError, match="is not one line of printable ASCII") as error:
            read_key(api, environ)
        assert CANARY not in str(error.value)


def test_a_key_that_everybody_can_read_is_refused_unless_that_is_meant(key_file: Path) -> None:
    key_file.chmod(0o644)

    with pytest.raises(ConfigError) as error:
        read_key(Api(key_file=key_file), {})

    assert str(error.value) == (
        f"{key_file}: api.key_file: can be read by every user; run `chmod o-r {key_file}`, "
        "or set api.allow_readable_key: true"
    )
    assert read_key(Api(key_file=key_file, allow_readable_key=True), {}) == CANARY
    key_file.chmod(0o640)
    assert read_key(Api(key_file=key_file), {}) == CANARY


def test_a_key_file_may_be_a_symlink_as_container_secrets_are(tmp_path: Path, key_file: Path) -> None:
    link = tmp_path / "secret"
    link.symlink_to(key_file)
    assert read_key(Api(key_file=link), {}) == CANARY


@pytest.fixture
def unfit_key_files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("none", "empty", "long", "pipe", "directory")}
    paths["empty"].touch(0o600)
    paths["long"].write_text("x" * 4097)
    paths["long"].chmod(0o600)
    os.mkfifo(paths["pipe"], 0o600)
    paths["directory"].mkdir(0o700)
    return paths


def test_a_key_file_that_is_none_is_told_why(unfit_key_files: dict[str, Path]) -> None:
    expected = {
        "none": "cannot be read (No such file or directory); let heifyd's user read it, or correct the path",
        "empty": "is empty; write the API key into the file",
        "long": "is too long; write the path of a file that holds the API key and nothing else",
        "pipe": "is not a regular file; write the path of a file that holds the API key",
        "directory": "is not a regular file; write the path of a file that holds the API key",
    }
    for name, message in expected.items():
        with pytest.raises(ConfigError) as error:
            read_key(Api(key_file=unfit_key_files[name]), {"HEIFY_API_KEY": CANARY})
        assert str(error.value) == f"{unfit_key_files[name]}: api.key_file: {message}"


# The status page


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:9469", TcpAddress("127.0.0.1", 9469)),
        ("127.9.9.9:0", TcpAddress("127.9.9.9", 0)),
        ('"[::1]:65535"', TcpAddress("::1", 65535)),
        ("unix:/run/heifyd/status.sock", UnixAddress("/run/heifyd/status.sock")),
    ],
)
def test_who_listens_for_this_machine_alone_needs_no_token(
    tmp_path: Path, calls: Path, written: str, address: Address
) -> None:
    status = loaded(tmp_path, f"status: {{listen: {written}}}\n{folder_with(calls)}").status

    assert status.listen == address
    assert status.listen.is_of_this_machine_alone
    assert str(address) == written.strip('"')
    assert read_token(status, {}) is None


def test_without_an_address_there_is_no_status_page(tmp_path: Path, calls: Path) -> None:
    assert loaded(tmp_path, f"status:\n{folder_with(calls)}").status == Status(listen=None, token_file=None)


@pytest.mark.parametrize(
    "bad",
    [
        *("9469", "':9469'", "localhost:9469", "127.0.0.1", "127.0.0.1:65536", "127.0.0.256:1", "'[127.0.0.1]:1'"),
        *("'[::1]'", "'[::1]:x'", "::1:9469", "'[:::1]:9469'", "http://127.0.0.1:9469", "unix:run/x", "'unix:'", "''"),
        *("['::1']", "{host: 127.0.0.1}", "true", f"unix:/{'x' * 100}"),
    ],
)
def test_what_is_no_address_is_refused_on_its_line(tmp_path: Path, calls: Path, bad: str) -> None:
    [problem] = refused(tmp_path, f"{folder_with(calls)}status:\n  listen: {bad}\n")

    assert (problem.line, problem.key) == (5, "status.listen")
    assert "; write " in problem.message


@pytest.mark.parametrize("public", ["0.0.0.0:9469", "[::]:9469", "192.168.1.7:9469", "[2001:db8::1]:9469"])
def test_what_others_can_reach_takes_a_token_and_the_line_says_so(tmp_path: Path, calls: Path, public: str) -> None:
    text = f'status:\n  listen: "{public}"\n{folder_with(calls)}'
    token = tmp_path / "token"

    [problem] = refused(tmp_path, text)
    assert (problem.line, problem.key) == (2, "status.listen")
    assert problem.message == (
        f"{public} can be reached from other machines, which takes a token; name a file that holds one with "
        "status.token_file, or set HEIFYD_STATUS_TOKEN; or listen on 127.0.0.1"
    )
    environ = {"STATE_DIRECTORY": str(tmp_path), "HEIFYD_STATUS_TOKEN": CANARY}
    assert load(written(tmp_path, text), environ).status.token_file is None
    with_file = text.replace("\nfolders", f"\n  token_file: {token}\nfolders")
    assert loaded(tmp_path, with_file).status.token_file == token


def test_a_lacking_token_is_told_together_with_whatever_else_is_wrong(tmp_path: Path, calls: Path) -> None:
    lines = told(tmp_path, f"workers: 0\nstatus:\n  listen: 0.0.0.0:1\n{folder_with(calls)}")

    assert [line.split(": ")[:2] for line in lines] == [["1", "workers"], ["3", "status.listen"]]


def test_the_token_comes_from_its_file_before_the_environment(key_file: Path) -> None:
    assert read_token(Status(token_file=key_file), {"HEIFYD_STATUS_TOKEN": "another one of them"}) == CANARY
    assert read_token(Status(), {"HEIFYD_STATUS_TOKEN": f" {CANARY}\n"}) == CANARY
    assert read_token(Status(), {"HEIFYD_STATUS_TOKEN": ""}) is None


def test_a_token_that_is_none_is_told_why_and_never_shown(tmp_path: Path, unfit_key_files: dict[str, Path]) -> None:
    for name, path in unfit_key_files.items():
        with pytest.raises(ConfigError, match=r"status\.token_file: (is|cannot) ") as error:
            read_token(Status(token_file=path), {"HEIFYD_STATUS_TOKEN": CANARY})
        assert "API" not in str(error.value), name
    short = tmp_path / "short"
    short.write_text(CANARY[:15])
    short.chmod(0o600)
    for status, environ in ((Status(token_file=short), {}), (Status(), {"HEIFYD_STATUS_TOKEN": CANARY[:15]})):
        with pytest.raises(ConfigError, match="is too short") as error:
            read_token(status, environ)
        assert CANARY[:15] not in str(error.value)
    short.chmod(0o644)
    with pytest.raises(ConfigError, match=r"can be read by every user; run `chmod o-r [^`]*`$"):
        read_token(Status(token_file=short), {})


@pytest.mark.parametrize("key", ["token", "password", "token_file", "listen"])
def test_a_token_in_the_file_is_told_where_it_belongs_and_never_shown(tmp_path: Path, calls: Path, key: str) -> None:
    [message] = told(tmp_path, f"status:\n  {key}: {CANARY}\n{folder_with(calls)}")

    assert CANARY not in message
    assert "file" in message or "address" in message or "path" in message


# The ledger


def test_a_ledger_is_a_file_and_no_database_server(tmp_path: Path, calls: Path) -> None:
    assert loaded(tmp_path, f"ledger: {tmp_path}/l.db\n{folder_with(calls)}").ledger == tmp_path / "l.db"
    for bad, message in (
        (
            "postgresql://h/db",
            "this value is a database's address, and the ledger is a SQLite file; write the absolute",
        ),
        ("ledger.sqlite", "'ledger.sqlite' is not an absolute path; write one that begins with / or ~/"),
        ("/tmp", "'/tmp' is a directory; write the path of a file, such as /tmp/ledger.sqlite"),
    ):
        [line] = told(tmp_path, f"ledger: {bad}\n{folder_with(calls)}")
        assert line.startswith(f"1: ledger: {message}")


def test_the_ledger_is_kept_where_services_and_users_keep_their_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "SYSTEM_STATE", tmp_path / "system")
    home = {"HOME": str(tmp_path / "home")}

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.default_ledger({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", **home}) == Path(
        "/var/lib/a/ledger.sqlite"
    )
    assert config.default_ledger(home) == tmp_path / "system/ledger.sqlite"

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    user = tmp_path / "home/.local/state/heifyd/ledger.sqlite"
    assert config.default_ledger(home) == user
    assert config.default_ledger({"XDG_STATE_HOME": "relative", **home}) == user
    assert config.default_ledger({"XDG_STATE_HOME": "/state", **home}) == Path("/state/heifyd/ledger.sqlite")
    assert config.default_ledger({"HOME": "relative"}) == tmp_path / "system/ledger.sqlite"

    (tmp_path / "system").mkdir()
    assert config.default_ledger(home) == tmp_path / "system/ledger.sqlite"


# The example and the schema


@pytest.fixture
def example(tmp_path: Path) -> str:
    """Return the example with its folders below tmp_path, where they exist."""
    text = EXAMPLE.read_text().replace(" /var/", f" {tmp_path}/var/").replace(" /etc/", f" {tmp_path}/etc/")
    for path in re.findall(r"- path: (.*)", text):
        Path(path).mkdir(parents=True)
    return text


def in_full(text: str) -> str:
    """Return the example with all its settings in use."""
    return re.sub(r"^( *)#(?! \S|$)", r"\1", text, flags=re.MULTILINE)


def keys_of(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for model in (schema, *schema["$defs"].values()):
        yield from model["properties"].items()


def test_the_example_loads_and_shows_the_defaults(tmp_path: Path, example: str) -> None:
    found = loaded(tmp_path, example)
    place = found.folders[0]

    assert found == Config(
        ledger=tmp_path / "ledger.sqlite", folders=(Folder(path=place.path, configuration_id=place.configuration_id),)
    )


def test_the_example_loads_with_all_its_settings_in_use_and_has_every_key(tmp_path: Path, example: str) -> None:
    found = loaded(tmp_path, in_full(example))

    for model in (found, found.api, found.api.rate_limit, found.status, found.folders[0]):
        assert isinstance(model, (Config, Api, RateLimit, Status, Folder))
        assert model.model_fields_set == set(type(model).model_fields)
    assert {key for rule in found.folders[0].rules for key in rule.model_fields_set} == set(Rule.model_fields)


def test_the_schema_is_valid_and_has_words_for_every_key() -> None:
    schema = config.json_schema()

    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(schema)) == schema
    for name, key in keys_of(schema):
        assert key["title"], name
        assert key["description"].endswith("."), name
    assert {name for name, _ in keys_of(schema)} == {
        name for model in (Config, Api, RateLimit, Status, Folder, Rule) for name in model.model_fields
    }


def test_the_schema_accepts_its_own_defaults_and_examples() -> None:
    schema = config.json_schema()
    for name, key in keys_of(schema):
        validator = Draft202012Validator({**key, "$defs": schema["$defs"]})
        for value in [*key.get("examples", []), *([key["default"]] if "default" in key else [])]:
            assert validator.is_valid(value), (name, value)


def test_the_schema_accepts_the_example(example: str) -> None:
    validator = Draft202012Validator(config.json_schema())
    for text in (example, in_full(example)):
        validator.validate(yaml.safe_load(text))


GOOD = f"folders: [{{path: /calls, configuration_id: {CONFIGURATION}}}]\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD + more
        for more in (
            "",
            "api:",
            "api: {rate_limit: off}",
            "api: {rate_limit: 'off'}",
            "retry_for: 90",
            "retry_for: 3d",
            "ledger: ~/l",
        )
    ]
    + [GOOD.replace("}]", f", {more}}}]") for more in ("extensions: [WAV, .mp3]", "done: ../x", "settle_seconds: 0")],
)
def test_the_schema_accepts_what_may_be_written(text: str) -> None:
    Draft202012Validator(config.json_schema()).validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "folders: []",
        "folders: [{path: /calls}]",
        GOOD.replace("/calls", "calls"),
        GOOD.replace("/calls", "5"),
        GOOD.replace("configuration_id", "configuration"),
        GOOD.replace(CONFIGURATION, "sales"),
        *(GOOD + more for more in ("worker: 4", "workers: 0", "workers: four", "retry_for: soon", "retry_for: 0")),
        *(GOOD + more for more in ("api_key: x", "api: {key: x}", "api: {rate_limit: true}", "api: {rate_limit: 5}")),
        *(GOOD + more for more in ("watch: inotify", "api: {base_url: api.heify.com}", "history_days:")),
        *(
            GOOD.replace("}]", f", {more}}}]")
            for more in ("extensions: [opus]", "exclude: '*.tmp'", "name: 5", "evaluator_id:", "rules: [{match: '*'}]")
        ),
    ],
)
def test_the_schema_refuses_typical_mistakes(text: str) -> None:
    assert not Draft202012Validator(config.json_schema()).is_valid(yaml.safe_load(text))


def test_a_folder_that_is_away_passes_where_the_caller_knows_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = "ledger: {0}/ledger.sqlite\nfolders:\n  - path: {0}/away\n    configuration_id: {1}\n"
    path.write_text(text.format(tmp_path, "a1b2c3d4-e5f6-7890-1234-567890abcdef"))
    asked: list[tuple[Path, Path]] = []

    def knows(ledger: Path, folder: Path) -> bool:
        asked.append((ledger, folder))
        return True

    found = load(path, {}, may_be_missing=knows)

    assert [folder.path for folder in found.folders] == [tmp_path / "away"]
    assert set(asked) == {(tmp_path / "ledger.sqlite", tmp_path / "away")}
    with pytest.raises(ConfigError, match="does not exist; create the directory"):
        load(path, {}, may_be_missing=lambda _ledger, _folder: False)


@pytest.mark.parametrize(
    ("written", "entries"),
    [
        ("2M", ((0, 2 * 1024 * 1024.0),)),
        ("500k", ((0, 500 * 1024.0),)),
        ("1.5M", ((0, 1.5 * 1024 * 1024),)),
        ("08:00,2M 19:00,off", ((480, 2 * 1024 * 1024.0), (1140, None))),
        ("22:15,100k", ((1335, 100 * 1024.0),)),
    ],
)
def test_a_bandwidth_is_one_for_the_day_or_one_for_each_part_of_it(
    tmp_path: Path, calls: Path, written: str, entries: tuple[tuple[int, float | None], ...]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"bandwidth_limit: '{written}'\nfolders:\n  - path: {calls}\n    configuration_id: {CONFIGURATION}\n"
    )

    limit = load(path, {}).bandwidth_limit

    assert limit is not None
    assert limit.entries == entries


@pytest.mark.parametrize("wrong", ["'2'", "2", "0k", "2G", "08:00,2M 07:00,off", "2M 08:00,1M", "25:00,2M", "''", "[]"])
def test_a_bandwidth_that_is_none_is_told_with_its_line_and_what_to_write(
    tmp_path: Path, calls: Path, wrong: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"bandwidth_limit: {wrong}\nfolders:\n  - path: {calls}\n    configuration_id: {CONFIGURATION}\n")

    with pytest.raises(ConfigError, match=r'config.yaml:1: bandwidth_limit: .*write bytes a second, such as "2M"'):
        load(path, {})


@pytest.mark.parametrize("written", ["off", "'off'", "false"])
def test_a_bandwidth_can_be_off(tmp_path: Path, calls: Path, written: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"bandwidth_limit: {written}\nfolders:\n  - path: {calls}\n    configuration_id: {CONFIGURATION}\n")

    assert load(path, {}).bandwidth_limit is None
