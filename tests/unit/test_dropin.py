"""What `heifyd check --systemd-dropin` prints: every path as systemd reads it, and all that the unit lacks."""

import grp
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heifyd import config, mounts
from heifyd.cli import dropin
from heifyd.mounts import Mount
from tests.harness import need_program, need_root

CONFIGURATION = "a1b2c3d4-e5f6-7890-1234-567890abcdef"
DEFAULT_LEDGER = Path("/var/lib/heifyd/ledger.sqlite")
LOCAL = [Mount("/", "ext4")]


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    folder.chmod(0o2777)
    return folder


def printed(
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str = "config.yaml",
    more: str = "",
    ledger: Path = DEFAULT_LEDGER,
    own: Sequence[Mount] = LOCAL,
) -> list[str]:
    """Return the lines for one folder that are no comments of themselves, and the comments, as they are printed."""
    file = calls.parent / "config.yaml"
    file.write_text(
        f"ledger: {ledger}\nfolders:\n  - path: {calls}\n    configuration_id: {CONFIGURATION}\n    {more}\n"
    )
    settings = config.load(file, {})
    monkeypatch.setattr(mounts, "own_mounts", lambda: list(own))
    return list(dropin.lines(settings, Path("/etc/heifyd") / name, DEFAULT_LEDGER))


def settings_of(lines: list[str], key: str) -> list[str]:
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


# Paths as systemd.unit(5) has them


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/srv/calls", "-/srv/calls"),
        ("/srv/my calls", '"-/srv/my calls"'),
        ("/srv/50%", '"-/srv/50%%"'),
        ("/srv/%i", '"-/srv/%%i"'),
        ('/srv/a"b', r'"-/srv/a\"b"'),
        (r"/srv/a\b", r'"-/srv/a\\b"'),
        ("/srv/it's", '"-/srv/it\'s"'),
        ("/srv/#1;", '"-/srv/#1;"'),
        ("/srv/Anrufe für uns", '"-/srv/Anrufe für uns"'),
    ],
)
def test_a_path_is_one_word_of_a_list(path: str, word: str) -> None:
    assert dropin.quoted(path, "-") == word


@given(st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1))
def test_any_path_that_a_unit_can_hold_is_read_back_as_it_was(name: str) -> None:
    """The shell reads such quotes as systemd does."""
    assert shlex.split(dropin.quoted(f"/{name}")) == [f"/{name}".replace("%", "%%")]


@pytest.mark.parametrize("path", ["/a\nb", "/a\x7fb", os.fsdecode(b"/\xff")])
def test_what_no_unit_can_hold_is_not_written(path: str) -> None:
    with pytest.raises(ValueError, match="/"):
        dropin.quoted(path)


@pytest.mark.parametrize(
    "point", ["/mnt/share", "/mnt/my share", "/mnt/a-b", "/mnt/50%", "/.hidden/x", "/mnt/.x", "/mnt/ü", "/a/b_c:d.e"]
)
def test_a_mount_s_unit_has_the_name_that_systemd_gives_it(point: str) -> None:
    escape = [need_program("systemd-escape"), "--path", "--suffix=mount", point]
    told = subprocess.run(escape, capture_output=True, text=True, check=True).stdout.strip()
    assert dropin.mount_unit(point) == told


# What is printed


@pytest.mark.parametrize(
    ("file", "unit"),
    [
        ("/etc/heifyd/config.yaml", "heifyd.service"),
        ("/etc/heifyd/sales.yaml", "heifyd@sales.service"),
        ("/home/me/sales.yaml", "heifyd.service"),
    ],
)
def test_the_unit_is_told_by_the_configuration_s_name(file: str, unit: str) -> None:
    assert dropin.unit_of(Path(file)) == unit


def test_it_says_where_it_goes_and_what_to_do_then(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(calls, monkeypatch, name="sales.yaml")
    assert lines[0] == "# /etc/systemd/system/heifyd@sales.service.d/folders.conf"
    assert lines[2] == "# systemctl daemon-reload && systemctl restart heifyd@sales.service"
    assert lines.count("[Service]") == 1
    assert "[Unit]" not in lines


def test_the_folder_s_own_targets_are_within_it_and_others_are_not(
    calls: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "failed").mkdir()
    lines = printed(calls, monkeypatch, more=f"done: {tmp_path}/elsewhere/done\n    failed: {tmp_path}/failed")
    assert settings_of(lines, "ReadWritePaths") == [
        f"-{calls}",
        f"-{tmp_path}/elsewhere/done",
        f"-{tmp_path}/failed",
    ]
    absent = [line for line in lines if "make it before" in line]
    assert absent == [f"# {tmp_path}/elsewhere/done is not there yet: make it before heifyd starts, which cannot."]


@pytest.mark.parametrize(
    ("name", "ledger", "is_printed"),
    [
        ("config.yaml", "/var/lib/heifyd/ledger.sqlite", False),
        ("config.yaml", "/var/lib/heifyd/deeper/l.sqlite", False),
        ("config.yaml", "/srv/l.sqlite", True),
        ("sales.yaml", "/var/lib/heifyd/sales/l.sqlite", False),
        ("sales.yaml", "/var/lib/heifyd/support/l.sqlite", True),
    ],
)
def test_a_ledger_outside_of_the_state_directory_is_made_writable(
    calls: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    ledger: str,
    is_printed: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    lines = printed(calls, monkeypatch, name=name, ledger=Path(ledger))
    assert (f"-{Path(ledger).parent}" in settings_of(lines, "ReadWritePaths")) == is_printed


def test_of_a_share_the_mount_is_named_and_waited_for_without_needing_it(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = str(calls.parent)
    lines = printed(calls, monkeypatch, own=[*LOCAL, Mount(point, "nfs4")])
    assert settings_of(lines, "ReadWritePaths") == [f"-{point}"]
    assert settings_of(lines, "After") == [dropin.mount_unit(point)]
    assert not [line for line in lines if line.startswith(("Requires", "BindsTo"))]


def test_a_folder_that_the_unit_hides_is_shown_to_it(monkeypatch: pytest.MonkeyPatch, calls: Path) -> None:
    monkeypatch.setattr(dropin, "_HIDDEN", {(str(calls.parent),): "ProtectHome=read-only"})
    assert "ProtectHome=read-only" in printed(calls, monkeypatch)
    monkeypatch.setattr(dropin, "_HIDDEN", {(f"{calls}s",): "ProtectHome=read-only"})
    assert "ProtectHome=read-only" not in printed(calls, monkeypatch)


def test_a_directory_whose_name_no_unit_can_hold_is_written_to_by_way_of_the_one_above(
    calls: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The configuration takes no such name, but a symlink may lead to one."""
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "done").symlink_to("a\nb")
    lines = printed(calls, monkeypatch, more=f"done: {tmp_path}/done")
    assert settings_of(lines, "ReadWritePaths") == [f"-{tmp_path}"]
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("mode", "group", "expected"),
    [
        (0o2770, "mail", ["SupplementaryGroups=mail"]),
        (0o0777, "mail", []),
        (0o0750, "mail", ["#User=nobody"]),
        (0o0770, "root", ["#User=nobody"]),
    ],
)
def test_who_may_write_there_is_told(
    calls: Path, monkeypatch: pytest.MonkeyPatch, mode: int, group: str, expected: list[str]
) -> None:
    need_root()
    os.chown(calls, 65534, grp.getgrnam(group).gr_gid)
    calls.chmod(mode)
    lines = printed(calls, monkeypatch)
    assert [line for line in lines if line.lstrip("#").startswith(("SupplementaryGroups", "User"))] == expected
