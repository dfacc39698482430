"""The floor plan: what each module may import. Data flows one way, so no import points upward."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "heifyd"


@dataclass(frozen=True, slots=True)
class Layer:
    """Some modules, the layers they may import, and what they may import besides."""

    modules: frozenset[str]
    below: tuple["Layer", ...]
    also: dict[str, frozenset[str]]
    why: str

    def allows(self, module: str) -> frozenset[str]:
        """Return what `module` of this layer may import."""
        allowed = {imported for layer in self.below for imported in layer.modules}
        return frozenset(allowed) | self.also.get(module, frozenset()) | {module, "__init__"}


def layer(modules: str, below: tuple[Layer, ...] = (), *, why: str, **also: str) -> Layer:
    extra = {module: frozenset(imported.split()) for module, imported in also.items()}
    return Layer(frozenset(modules.split()), below, extra, why)


VALUES = layer("errors recording", why="Values know nothing of what is done with them.")
PURE = layer(
    "faults hiding holds names settle pace pulse globs answers urls address wording",
    (VALUES,),
    holds="faults",
    settle="faults",
    urls="faults",
    pace="pulse",
    why="A decision takes what was seen as an argument, so it is tested without a file, a clock or a socket.",
)
EDGES = layer(
    "tree probe mounts watch heify filing preflight log "
    "ledger ledger_errors ledger_file ledger_history ledger_lock ledger_rows ledger_sql "
    "config config_source config_values api_key overview",
    (VALUES, PURE),
    watch="tree mounts",
    probe="mounts",
    ledger="ledger_errors ledger_file ledger_history ledger_lock ledger_rows ledger_sql",
    ledger_file="ledger_errors ledger_sql",
    ledger_lock="ledger_errors",
    ledger_history="ledger_file ledger_rows",
    filing="tree",
    config="config_source config_values mounts",
    api_key="config_source config",
    overview="ledger ledger_lock mounts",
    why="An edge does one kind of I/O; joined to another edge it could not be replaced or tested alone.",
)
JOURNEYS = layer(
    "intake upload sending claimed turns progress",
    (VALUES, PURE, EDGES),
    upload="sending claimed turns",
    sending="claimed turns progress",
    why="A journey joins the edges. The two meet in the ledger and nowhere else, so nothing is called backwards.",
)
SERVICE = layer("service", (layer("errors", why=""),), why="Signals and exit codes are the process's, not the work's.")
OBSERVE = layer(
    "observe",
    (VALUES, PURE, EDGES),
    why="Who looks at heifyd takes no part in its work: nothing that it knows comes from a journey but by its log.",
)
DAEMON = layer(
    "daemon lifecycle statuspage",
    (VALUES, PURE, EDGES, JOURNEYS, SERVICE, OBSERVE),
    lifecycle="daemon statuspage",
    why="The daemon makes the rooms and their threads; it prints nothing and rehearses nothing.",
)
SANDBOX = layer(
    "sandbox",
    (VALUES,),
    why="The local Heify is another program: were it built of the daemon's rooms, their mistakes would agree.",
)
COMMANDS = layer(
    "cli __main__",
    (VALUES, PURE, EDGES, JOURNEYS, SERVICE, OBSERVE, DAEMON, SANDBOX),
    __main__="cli",
    why="A command may call on anything; nothing calls on a command.",
)
LAYERS = (VALUES, PURE, EDGES, JOURNEYS, SERVICE, OBSERVE, DAEMON, SANDBOX, COMMANDS)
LAYER_OF = {module: each for each in LAYERS for module in each.modules}

SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    """Return the module, or the package right below heifyd, that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source: str, at: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Give every room that a module imports, wherever in it, with its line; `at` is the module's dotted name."""
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(at[: len(at) - node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == PACKAGE.name:
                yield name[1] if len(name) > 1 and name[1] in rooms else "__init__", node.lineno


def arrows_upward(source: str, at: tuple[str, ...]) -> list[str]:
    """Return every import of a module that its layer does not allow."""
    mine = at[1]
    allowed = LAYER_OF[mine].allows(mine)
    return [
        f"line {line}: {'.'.join(at)} imports {imported}: {LAYER_OF[mine].why}"
        for imported, line in imports(source, at)
        if imported not in allowed
    ]


def test_every_module_has_its_place_in_the_plan() -> None:
    assert {room(path) for path in SOURCES} == set(LAYER_OF)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_points_upward(path: Path) -> None:
    dotted = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)

    assert arrows_upward(path.read_text(encoding="utf-8"), dotted) == []


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")

    assert list(imports(source, (PACKAGE.name, "__init__"))) == []


@pytest.mark.parametrize(
    ("at", "source"),
    [
        ("heifyd.recording", "from heifyd.ledger import Ledger"),
        ("heifyd.holds", "import heifyd.settle"),
        ("heifyd.ledger", "from heifyd import tree"),
        ("heifyd.ledger", "from . import tree"),
        ("heifyd.heify", "def late():\n    from heifyd.filing import move"),
        ("heifyd.intake", "from heifyd import probe, upload"),
        ("heifyd.upload", "if TYPE_CHECKING:\n    from .intake import Intake"),
        ("heifyd.service", "from heifyd.recording import Ids"),
        ("heifyd.daemon", "from heifyd.sandbox import Sandbox"),
        ("heifyd.daemon", "import heifyd.cli.check"),
        ("heifyd.sandbox.api", "from heifyd.pace import TokenBucket"),
        ("heifyd.sandbox.api", "from ..heify import Heify"),
    ],
)
def test_an_arrow_upward_is_found_however_it_is_written(at: str, source: str) -> None:
    assert len(arrows_upward(source, tuple(at.split(".")))) == 1


@pytest.mark.parametrize(
    ("at", "source"),
    [
        (
            "heifyd.watch",
            "from heifyd import tree\nfrom heifyd.mounts import Mount\nfrom heifyd.recording import Stamp",
        ),
        ("heifyd.daemon", "from heifyd import __version__, config, faults"),
        ("heifyd.sandbox.api", "from heifyd.sandbox import sigv4\nfrom .options import Options\nimport httpx"),
        ("heifyd.cli.check", "from heifyd.cli import config_option\nfrom heifyd import sandbox, daemon"),
    ],
)
def test_what_the_plan_allows_is_let_through(at: str, source: str) -> None:
    assert arrows_upward(source, tuple(at.split("."))) == []
