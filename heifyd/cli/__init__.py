"""The commands, one a module; the only place that prints. A command's imports are made when it is called."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from heifyd import __version__
from heifyd.cli.explained import CONFIG_FILE, ENVIRONMENT, write_environment, write_exits
from heifyd.errors import HeifydError
from heifyd.service import Exit

_DAILY: Final = ("run", "check", "status", "health", "retry", "upload")
_BESIDES: Final = ("schema", "completion", "monitoring", "sandbox", "demo")
_COMMANDS: Final = (*_DAILY, *_BESIDES)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(_COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List what the daemon's work takes, and apart from it what helps to set it up and to try it out."""
        for title, names in (("Commands", _DAILY), ("To set it up and to try it out", _BESIDES)):
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, each.get_short_help_str(60)) for name, each in commands if each])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's)
        """Tell what is the same for all commands."""
        write_exits(formatter, dict.fromkeys((0, 1, 2, 70, 75, 78)))
        write_environment(formatter, list(ENVIRONMENT))
        formatter.write_paragraph()
        formatter.write_text("`heifyd COMMAND --help` tells all of a command, with examples.")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's signature)
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"heifyd.cli.{cmd_name}").command
        return command


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config`` to a command, given to it as `config_path`."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(readable=False, path_type=Path),  # what cannot be read is told of as all that is wrong with it
        default=Path(CONFIG_FILE),
        envvar="HEIFYD_CONFIG",
        show_default=True,
        show_envvar=True,
        help="The configuration.",
    )(function)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="heifyd")
def group() -> None:
    """Watch a call recorder's folders and upload each finished recording to Heify, exactly once.

    The configuration says which folders; `heifyd check` says whether all is in order, `heifyd run` does the work.
    """


def main() -> None:
    """Run the command line; errors that heifyd has a name for become one line each and an exit code."""
    from heifyd.config import ConfigError

    try:
        code = group.main(prog_name="heifyd", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except ConfigError as error:
        click.echo(str(error), err=True)
        code = Exit.CONFIG
    except HeifydError as error:
        click.echo(f"heifyd: {error}", err=True)
        code = Exit.FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.FAILED
    except Exception as error:  # noqa: BLE001 (the process's top; an unknown error's own words may hold a secret)
        where = "".join(traceback.format_tb(error.__traceback__))
        click.echo(f"{where}heifyd: an internal error ({type(error).__name__}); this is where it came up", err=True)
        code = Exit.INTERNAL
    sys.exit(code)
