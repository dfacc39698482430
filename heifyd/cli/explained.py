"""Commands whose ``--help`` needs no manual beside it: their exit codes, files, environment and examples."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

from heifyd.service import Exit

CONFIG_FILE: Final = "/etc/heifyd/config.yaml"
_MEANINGS: Final[Mapping[int, str]] = {
    Exit.OK: "all well",
    Exit.FAILED: "something that was asked for did not succeed",
    Exit.USAGE: "the command line is not right",
    Exit.INTERNAL: "an internal error; the service manager should start heifyd again",
    Exit.IN_USE: "another heifyd uses the ledger",
    Exit.CONFIG: "the configuration or the ledger cannot be used; starting again would not help",
}
ENVIRONMENT: Final[Mapping[str, str]] = {
    "HEIFYD_CONFIG": "the configuration, where --config is not given",
    "HEIFY_API_KEY": "the API key, where the configuration has no key_file",
    "HEIFYD_STATUS_TOKEN": "the status page's token, where the configuration has no token_file",
    "HTTPS_PROXY, NO_PROXY": "the way to Heify, where there is a proxy",
    "SSL_CERT_FILE": "the certificates that Heify's is checked by, instead of the usual ones",
    "STATE_DIRECTORY": "where the ledger is, if the configuration does not say; systemd sets it",
    "XDG_STATE_HOME": "the same for an ordinary user, ~/.local/state where it is not set",
    "TZ": "the local time, which bandwidth_limit goes by",
    "NO_COLOR": "no colors, whatever its value",
}


class Explained(click.Command):
    """A command with further sections in its help.

    `exits` are its exit codes, each with what it means here or None for what it means everywhere, `environment` the
    names of the variables that it heeds, `files` paths and what they are, `examples` command lines and what they do.
    """

    def __init__(
        self,
        *args: Any,
        exits: Mapping[int, str | None],
        environment: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        examples: Mapping[str, str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.exits = exits
        self._environment = environment
        self._files = files or {}
        self._examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's)
        """Write the sections below the options."""
        _section(formatter, "Examples", self._examples.items(), is_column=False)
        write_exits(formatter, self.exits)
        _section(formatter, "Files", self._files.items(), is_column=False)
        write_environment(formatter, self._environment)


def write_exits(formatter: click.HelpFormatter, exits: Mapping[int, str | None]) -> None:
    """Write exit codes as a section of their own."""
    _section(formatter, "Exit codes", ((str(int(code)), said or _MEANINGS[code]) for code, said in exits.items()))


def write_environment(formatter: click.HelpFormatter, names: Sequence[str]) -> None:
    """Write variables of the environment as a section of their own."""
    _section(formatter, "Environment", ((name, ENVIRONMENT[name]) for name in names))


def _section(
    formatter: click.HelpFormatter, title: str, rows: Iterable[tuple[str, str]], *, is_column: bool = True
) -> None:
    """Write rows of two columns, or each in lines of its own: its text below what it is about."""
    written = list(rows)
    if not written:
        return
    with formatter.section(title):
        if is_column:
            formatter.write_dl(written)
            return
        for term, text in written:
            formatter.write_text(f"\b\n{term}")
            with formatter.indentation(), formatter.indentation():
                formatter.write_text(text)
