"""``heifyd completion``: the script that lets a shell complete heifyd's commands and options."""

import click
from click.shell_completion import get_completion_class

from heifyd.cli.explained import Explained


@click.command(
    "completion",
    cls=Explained,
    short_help="Print the script that lets a shell complete heifyd's commands.",
    exits={0: None, 2: None},
    examples={
        "heifyd completion bash > ~/.local/share/bash-completion/completions/heifyd": "bash 4.4 or newer, for good",
        "heifyd completion zsh > ~/.zfunc/_heifyd": "zsh, where ~/.zfunc is in fpath before compinit is run",
        "heifyd completion fish > ~/.config/fish/completions/heifyd.fish": "fish, for good",
        'eval "$(heifyd completion bash)"': "this one shell; zsh likewise, in fish: heifyd completion fish | source",
    },
    files={
        "/usr/share/bash-completion/completions/heifyd": "where bash finds it for all users of this machine",
        "/usr/share/zsh/vendor-completions/_heifyd": "the same for zsh, on Debian",
        "/usr/share/fish/vendor_completions.d/heifyd.fish": "the same for fish",
    },
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> int:
    """Print the script that lets SHELL complete heifyd's commands, options and files when Tab is pressed.

    The script asks heifyd itself, so it need not be made anew for another version.
    """
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 (narrows the type: click knows the three)
    click.echo(made(context.find_root().command, {}, "heifyd", "_HEIFYD_COMPLETE").source(), nl=False)
    return 0
