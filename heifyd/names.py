"""Which names in a watched folder are recordings, and which belong together: decided by the names alone. Pure."""

import os
import re
from pathlib import Path
from typing import Final, Protocol

from heifyd.recording import extension

_TEMPORARY: Final = re.compile(r"^\.|^~\$|\.(part|filepart|tmp|crdownload|partial)$", re.IGNORECASE)


def is_temporary(name: str) -> bool:
    """Tell whether a file name is one that programs give to what they have not finished writing."""
    return _TEMPORARY.search(name) is not None


class NamedFolder(Protocol):
    """What the configuration says of the names in a folder."""

    @property
    def path(self) -> Path: ...  # noqa: D102 (the protocol's members are the configuration's)
    @property
    def recursive(self) -> bool: ...  # noqa: D102
    @property
    def extensions(self) -> frozenset[str]: ...  # noqa: D102
    @property
    def done(self) -> Path: ...  # noqa: D102
    @property
    def failed(self) -> Path: ...  # noqa: D102
    @property
    def ready_marker(self) -> str | None: ...  # noqa: D102
    def excludes(self, relative_path: str) -> bool: ...  # noqa: D102


class Names:
    """The names of one folder; every path is relative to it."""

    def __init__(self, folder: NamedFolder) -> None:
        self._folder = folder
        root = os.fspath(folder.path)
        targets = (os.fspath(folder.done), os.fspath(folder.failed))
        self._own = tuple(target.removeprefix(f"{root}/") for target in targets if target.startswith(f"{root}/"))

    def is_entered(self, directory: str) -> bool:
        """Tell whether a sub-folder may hold recordings."""
        hidden = directory.rpartition("/")[2].startswith(".")
        return directory not in self._own and not hidden and not self._folder.excludes(directory)

    def is_recording(self, path: str) -> bool:
        """Tell whether a file is a recording by its name."""
        name = path.rpartition("/")[2]
        if is_temporary(name) or extension(name) not in self._folder.extensions:
            return False
        return not any(path.startswith(f"{own}/") for own in self._own) and not self._folder.excludes(path)

    def recordings_at(self, hinted: str) -> list[str]:
        """Return the recordings that a hint may be about: the file itself, or those whose ready marker it is."""
        directory, slash, name = hinted.rpartition("/")
        marker = self._folder.ready_marker
        candidates = [hinted]
        if marker is not None:
            before, _, after = marker.replace("{name}", "{stem}").partition("{stem}")
            if name.startswith(before) and name.endswith(after):
                middle = name[len(before) : len(name) - len(after)]
                lower = self._folder.extensions if "{stem}" in marker else {""}
                endings = {*lower, *(ending.upper() for ending in lower)}
                candidates = [f"{directory}{slash}{middle}{ending}" for ending in sorted(endings)]
        return [path for path in candidates if self.is_recording(path) and self._is_in_reach(path)]

    def _is_in_reach(self, path: str) -> bool:
        """Tell whether a scan would come to this path: events speak of excluded sub-folders too."""
        parents = path.split("/")[:-1]
        return all(self.is_entered("/".join(parents[:depth])) for depth in range(1, len(parents) + 1))

    def marker_of(self, path: str) -> str | None:
        """Return the path of a recording's ready marker, or None where the folder asks for none."""
        return marker_of(path, self._folder.ready_marker)


def marker_of(path: str, template: str | None) -> str | None:
    """Return the path of a recording's ready marker by the template of its name, None where there is no template."""
    if template is None:
        return None
    directory, slash, name = path.rpartition("/")
    stem = name[: len(name) - len(extension(name))]
    return directory + slash + template.format(name=name, stem=stem)
