"""Tab in a real shell completes heifyd's commands, options and values, by what `heifyd completion` prints."""

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import need, need_program
from tests.terminal import Terminal

PROMPT = "ready> "


@dataclass(frozen=True)
class Shell:
    """How a shell is begun without anybody's own settings, and how it is given the script."""

    name: str
    arguments: tuple[str, ...]
    script: str
    at_its_place: str
    """Where the script lies, below the home directory, to be found by itself."""
    before: str = ""


SHELLS = [
    Shell(
        "bash",
        ("--norc", "--noprofile", "-i"),
        'eval "$(heifyd completion bash)"',
        ".local/share/bash-completion/completions/heifyd",
        before=". /usr/share/bash-completion/bash_completion",
    ),
    Shell(
        "zsh",
        ("-f", "-i"),
        'autoload -Uz compinit; compinit -u -D; eval "$(heifyd completion zsh)"',
        ".zfunc/_heifyd",
        before="fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit -u -D",
    ),
    Shell("fish", ("-i",), "heifyd completion fish | source", ".config/fish/completions/heifyd.fish"),
]


@pytest.fixture(params=SHELLS, ids=lambda shell: shell.name)
def shell(request: pytest.FixtureRequest) -> Shell:
    found: Shell = request.param
    need_program(found.name)
    return found


@pytest.fixture
def terminal(shell: Shell, tmp_path: Path) -> Iterator[Terminal]:
    program = Path(sys.executable).with_name("heifyd")
    need(program.exists(), f"{program}: heifyd installed beside this Python")
    environ = {
        "HOME": os.fspath(tmp_path),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PS1": PROMPT,
        "XDG_CONFIG_HOME": "",
        "XDG_DATA_HOME": "",
    }
    with Terminal([need_program(shell.name), *shell.arguments], environ, columns=100, lines=40) as terminal:
        if shell.name == "fish":
            terminal.type(f"function fish_prompt; echo -n {shlex.quote(PROMPT)}; end\r")
        terminal.wait_for(lambda: terminal.lines[-1:] and terminal.text.rstrip().endswith(PROMPT.strip()), "a prompt")
        yield terminal
        terminal.type("\x15exit\r")
        terminal.end()


def run(terminal: Terminal, line: str) -> None:
    """Run a line, and wait for its end."""
    terminal.type(f"{line}; echo it is ov''er\r")
    terminal.wait_for_text("it is over")
    terminal.type("clear\r")
    terminal.wait_for(lambda: terminal.text == PROMPT.strip(), "a cleared screen")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        pytest.param("heifyd stat", "heifyd status ", id="command"),
        pytest.param("heifyd status --js", "heifyd status --json ", id="option"),
        pytest.param("heifyd run --log js", "heifyd run --log json ", id="value"),
        pytest.param("heifyd completion fi", "heifyd completion fish ", id="argument"),
    ],
)
def test_tab_completes(shell: Shell, terminal: Terminal, typed: str, completed: str) -> None:
    run(terminal, shell.script)
    terminal.type(f"{typed}\t")
    terminal.wait_for_text(PROMPT + completed.rstrip())


def test_tab_completes_a_file_of_the_configuration(shell: Shell, terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "sales and support.yaml").touch()
    run(terminal, f"{shell.script}; cd")
    terminal.type("heifyd check --config sal\t")
    terminal.wait_for_text(f"{PROMPT}heifyd check --config sales\\ and\\ support.yaml")


def test_the_script_is_found_where_the_help_says_that_it_goes(shell: Shell, terminal: Terminal, tmp_path: Path) -> None:
    place = tmp_path / shell.at_its_place
    place.parent.mkdir(parents=True, exist_ok=True)
    if shell.name == "bash":
        need(Path("/usr/share/bash-completion/bash_completion").exists(), "Debian's package bash-completion")
    run(terminal, f"heifyd completion {shell.name} > {place}")
    run(terminal, shell.before)
    terminal.type("heifyd stat\t")
    terminal.wait_for_text(f"{PROMPT}heifyd status")
