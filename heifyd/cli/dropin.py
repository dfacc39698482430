"""What a systemd unit needs besides what it is shipped with, for the configuration at hand: the drop-in's text."""

import grp
import os
import pwd
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from heifyd import mounts
from heifyd.config import SYSTEM_STATE
from heifyd.mounts import Mount

if TYPE_CHECKING:
    from heifyd.config import Config, Folder

_CONFIGS: Final = Path("/etc/heifyd")
_UNITS: Final = "/etc/systemd/system"
_USER: Final = "heifyd"
_HIDDEN: Final = {
    ("/home", "/root", "/run/user"): "ProtectHome=read-only",
    ("/tmp", "/var/tmp"): "PrivateTmp=no",  # noqa: S108 (nothing is made there)
}
"""What the unit hides (systemd.exec(5)), and what shows it again."""

_UNWRITABLE: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""What no line of a unit can hold: it must be UTF-8, and knows of no way to write a line's end."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9/_.:@+,=-]+")
_ALL: Final = 0o7


def unit_of(config: Path) -> str:
    """Return the unit that runs a configuration: a template's instance for all but ``config.yaml``."""
    name = config.name.removesuffix(".yaml")
    return "heifyd.service" if name == "config" or config.parent != _CONFIGS else f"heifyd@{name}.service"


def quoted(path: str, prefix: str = "") -> str:
    """Write a path as one word of a list in a unit.

    systemd.unit(5): a word with spaces stands in quotes, in which a backslash takes the next character as it is, and
    ``%`` begins a specifier. Raises ValueError for a path that cannot be written.
    """
    if _UNWRITABLE.search(path):
        raise ValueError(path)
    word = prefix + path.replace("%", "%%")
    if _PLAIN.fullmatch(prefix + path):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def mount_unit(point: str) -> str:
    """Return the name of a mount point's unit (systemd.unit(5), "String escaping for inclusion in unit names")."""
    name = point.strip("/")
    escaped = re.sub(
        r"[^A-Za-z0-9:_./]|^\.", lambda found: "".join(f"\\x{byte:02x}" for byte in os.fsencode(found[0])), name
    )
    return escaped.replace("/", "-") + ".mount"


def lines(settings: "Config", config: Path, default_ledger: Path) -> Iterator[str]:
    """Give the drop-in's lines. Raises OSError where a folder or the mounts cannot be looked at."""
    unit = unit_of(config)
    yield f"# {_UNITS}/{unit}.d/folders.conf"
    made = f"`heifyd check --systemd-dropin` for {_shown(os.fspath(config))}"
    yield f"# Made by {made}. When folders change, make it anew, and then:"
    yield f"# systemctl daemon-reload && systemctl restart {unit}"
    own = mounts.own_mounts()
    shares = {mount.point for path in _paths(settings) if (mount := mounts.mount_of(path, own)).is_remote}
    if shares:
        yield ""
        yield "[Unit]"
        yield "# It starts after these shares are mounted, and all the same where they are not: then it waits for them."
        yield f"After={' '.join(mount_unit(point) for point in sorted(shares))}"
    yield ""
    yield "[Service]"
    yield "# The folders, and where their recordings go. What is not there yet is no error."
    writable = [*_paths(settings), *_ledger(settings, unit, default_ledger)]
    for path in _outermost(_written(path, own) for path in writable):
        yield f"ReadWritePaths={quoted(path, '-')}"
    if shares:
        yield "# (Of a share all of it: it could not be unmounted and mounted anew beneath heifyd otherwise.)"
    for path in writable:
        if not any(os.path.isdir(above) for above in writable if path == above or path.startswith(f"{above}/")):
            yield f"# {_shown(path)} is not there yet: make it before heifyd starts, which cannot."
    for hidden, setting in _HIDDEN.items():
        if any(path == above or path.startswith(f"{above}/") for path in writable for above in hidden):
            yield f"# The unit hides {hidden[0]}, where some of them are."
            yield setting
    yield from _groups(settings.folders)


def _paths(settings: "Config") -> list[str]:
    """Return every directory that recordings are in or go to, symlinks resolved, as the unit's mounts are."""
    all_of_them = (path for folder in settings.folders for path in (folder.path, folder.done, folder.failed))
    return [*dict.fromkeys(os.path.realpath(path) for path in all_of_them)]


def _ledger(settings: "Config", unit: str, default: Path) -> list[str]:
    """Return the ledger's directory where it is not the unit's state directory."""
    instance = unit.removesuffix(".service").partition("@")[2]
    state = os.fspath(SYSTEM_STATE / instance)
    directory = os.path.realpath(settings.ledger.parent)
    is_there = settings.ledger == default or directory == state or directory.startswith(f"{state}/")
    return [] if is_there else [directory]


def _written(path: str, own: list[Mount]) -> str:
    """Return what to write for a path: of a share its mount point, and what can be written in a unit at all."""
    mount = mounts.mount_of(path, own)
    path = mount.point if mount.is_remote else path
    while _UNWRITABLE.search(path):
        path = os.path.dirname(path)
    return path


def _outermost(paths: Iterable[str]) -> list[str]:
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(outer.rstrip("/") + "/") for outer in found):
            found.append(path)
    return found


def _groups(folders: "Iterable[Folder]") -> Iterator[str]:
    """Give the groups that let heifyd into the folders, and a hint where none does."""
    groups: dict[str, None] = {}
    hints = []
    for folder in folders:
        found = os.stat(folder.path)
        owner, group = _user(found.st_uid), _group(found.st_gid)
        mode = stat.S_IMODE(found.st_mode)
        if owner == _USER or mode & _ALL == _ALL:
            continue
        if mode >> 3 & _ALL == _ALL and found.st_gid != 0:
            groups[group] = None
        else:
            whose = f"{_shown(os.fspath(folder.path))} ({owner}:{group}, mode {mode:04o})"
            hints.append(f"# {whose} lets only its owner in: give its group rwx, or run heifyd as that user:")
            hints.append(f"#User={owner}")
    if groups:
        yield "# The groups whose members may read and move the recordings."
        yield f"SupplementaryGroups={' '.join(groups)}"
    yield from dict.fromkeys(hints)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _shown(path: str) -> str:
    return _UNWRITABLE.sub("?", path)
