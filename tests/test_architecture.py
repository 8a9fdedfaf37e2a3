"""The import directions of the design: what each part of pgwal may know of the others.

    cli -> engine -> { backup -> summary -> wal -> values }
           engine -> { postgres | datadir | repository } -> values

The core does no I/O; the three parts of the shell never import each other.  Imports inside functions count; those
under ``if TYPE_CHECKING`` do not, for nothing runs by them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

VALUES = {
    "aligned_buffer": set[str](),
    "errors": set[str](),
    "lsn": {"errors"},
    "checksum": set[str](),
    "segment": {"errors", "lsn"},
    "timeline": {"errors", "lsn"},
    "page": set[str](),
    "relation": set[str](),
    "postgres_version": {"errors"},
    "control_file": {"checksum", "errors", "lsn", "postgres_version"},
    "scan_choice": {"errors"},
}
ALL_VALUES = set(VALUES) - {"scan_choice"}
CORE = {
    "wal": ALL_VALUES,
    "summary": ALL_VALUES | {"wal"},
    "replication": ALL_VALUES,
    "backup": ALL_VALUES | {"wal", "summary"},
}
SHELL = {
    "postgres": ALL_VALUES | {"backup"},
    "datadir": ALL_VALUES | {"backup"},
    "repository": ALL_VALUES | {"backup", "summary", "wal"},
}
ENGINE = {"engine": ALL_VALUES | set(CORE) | set(SHELL)}
ALLOWED = {**VALUES, **CORE, **SHELL, **ENGINE}

# Opening, connecting, waiting, logging and reading the clock belong below the line.
FORBIDDEN_IN_CORE = {
    "asyncio", "logging", "os", "pathlib", "psycopg", "random", "select", "shutil", "signal", "socket", "subprocess",
    "tempfile", "tenacity", "threading", "time", "typer", "rich",
}  # fmt: skip
ONLY_UNDER = {
    "psycopg": {"postgres", "pgwal_cli"},
    "typer": {"pgwal_cli"},
    "rich": {"pgwal_cli"},
    "prometheus_client": {"pgwal_cli"},
}


def sources() -> list[Path]:
    return sorted(ROOT.glob("pgwal/**/*.py")) + sorted(ROOT.glob("cli/**/*.py"))


def part_of(path: Path) -> str:
    """Return the part of the design that a source belongs to."""
    if path.is_relative_to(ROOT / "cli"):
        return "pgwal_cli"
    return path.relative_to(ROOT / "pgwal").parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in runtime_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield from runtime_nodes(child)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    for module in imported_modules(ast.parse(path.read_text())):
        top, _, rest = module.partition(".")
        if top == "pgwal_cli":
            assert part == "pgwal_cli", f"{module}: nothing but the command line imports the command line"
        elif top == "pgwal" and rest:
            wanted = rest.partition(".")[0]
            if part != "pgwal_cli":
                assert part == wanted or wanted in ALLOWED[part], f"{part} must not import {module}"
        elif top in ONLY_UNDER:
            assert part in ONLY_UNDER[top], f"{top} is not for {part}"


@pytest.mark.parametrize(
    "path", [path for path in sources() if part_of(path) in ALL_VALUES | set(CORE)], ids=lambda path: str(path.name)
)
def test_the_core_does_no_io(path: Path) -> None:
    tree = ast.parse(path.read_text())
    found = {module.partition(".")[0] for module in imported_modules(tree)} & FORBIDDEN_IN_CORE
    assert not found, f"{path.name} imports {found}"
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"open", "print", "input"}


def test_every_part_is_in_the_table() -> None:
    parts = {part_of(path) for path in sources()} - {"pgwal_cli", "__init__"}
    assert parts == set(ALLOWED)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_to_asserts(path: Path) -> None:
    """``python -O`` drops them: they may tell a type checker what is so, and guard nothing."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            test = ast.unparse(node.test)
            assert test.endswith(" is not None") or test.startswith("isinstance("), f"line {node.lineno}: {test}"
