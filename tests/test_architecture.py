"""The import directions of the design, the wall around repositories, and how long files and functions may be.

``ALLOWED`` says what each part of pgwal may know of the others; docs/architecture.md shows what ``diagram`` prints of
it.  The core does no I/O; those parts of the shell that know what a cluster, a server or a repository is never import
each other.  Imports inside functions count; those under ``if TYPE_CHECKING`` do not, for nothing runs by them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

VALUES = {
    "aligned_buffer": set[str](),
    "budget": set[str](),
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
    "backup": ALL_VALUES | {"wal", "summary"},
    "report": ALL_VALUES | {"summary"},
    "replication": ALL_VALUES,
}
DISK = {"disk": ALL_VALUES | {"backup"}}
KEYS = {"encryption": {"budget", "errors"}}
SHELL = {
    "postgres": ALL_VALUES | {"backup"},
    "datadir": ALL_VALUES | {"backup"} | set(DISK),
    "repository": ALL_VALUES | {"backup", "summary", "wal"} | set(DISK) | set(KEYS),
}
ENGINE = {"engine": ALL_VALUES | set(CORE) | set(DISK) | set(KEYS) | set(SHELL)}
ALLOWED = {**VALUES, **CORE, **DISK, **KEYS, **SHELL, **ENGINE}

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
    "distributed": {"pgwal_cli"},
    "obstore": {"repository"},
    "cryptography": {"encryption"},
    "pyrage": {"encryption"},
}

LOCAL_ROOM = {
    "beneath", "data_directories", "local", "local_backup_data", "local_errors", "local_file", "local_leases",
    "local_place", "local_spool", "ownership", "spool_directory",
}  # fmt: skip
"""Modules of ``repository`` that know that a repository is a directory."""
CLOUD_ROOM = {
    "cloud_errors", "cloud_lease_object", "cloud_leases", "cloud_place", "cloud_probe", "cloud_store",
}  # fmt: skip
"""Modules of ``repository`` that know that it is in an object store."""
OF_THIS_MACHINE = {"lease_process"}
"""Modules of ``repository`` that look at processes of the machine."""
LOCAL_FAST_PATH = {"segment_part"}
"""Reads of whole segments by the compiled scanner: offered where the store has files."""
MAY_ASK_FOR_FILES = {"backup_data", "object_reader", "store", "wal_directory"}
MAY_ASK_FOR_RENAMES = {
    "arriving_backup", "backup_folders", "catalogue", "sealed_store", "staged_backup", "store", "waiting_threads",
}  # fmt: skip
FILES_OF_NO_REPOSITORY = {
    "archive_ahead": "the lock of the marks beside a server's WAL",
    "archived_marks": "those marks",
    "fetch_wal": "the file that a server wants",
    "marking": "the mark of a data directory that is made",
    "overwriting_forecast": "what lies in the data directory that would be overwritten",
    "overwritten": "the data directory that is overwritten",
    "foreign_archive": "the archive that is taken over",
    "handed_over": "the file that a server hands over",
    "left_behind": "what a process keeps open that is left behind",
    "prefetch_wal": "what waits for a server beside it",
    "rebuild_in_place": "the data directory that is overwritten",
    "recorded": "WAL in a directory that is no repository",
    "restore": "the data directory that is made",
    "restore_places": "the places that a restore may write",
    "restore_room": "the file systems that a restore writes to",
    "restored_configuration": "the data directory that was made",
    "stop": "a pipe",
    "wanted_tree": "where tablespaces lie in a data directory",
}
"""Use cases that touch files, and which; all others know a repository, or a source, and nothing below it."""
TOUCHES_NO_FILE = {
    "PRIO_PROCESS", "SEEK_CUR", "SEEK_END", "SEEK_SET", "cpu_count", "environ", "fsdecode", "fsencode", "getpid",
    "setpriority", "strerror",
}  # fmt: skip
FILE_MODULES = {"fcntl", "glob", "mmap", "shutil", "tempfile"}
FILE_METHODS = {
    "chmod", "glob", "is_dir", "is_file", "is_symlink", "iterdir", "lstat", "mkdir", "read_bytes", "read_text", "rglob",
    "rmdir", "samefile", "stat", "symlink_to", "touch", "unlink", "write_bytes", "write_text",
}  # fmt: skip


def diagram() -> str:
    """Return one line for each part: what it may import, the values under that name."""
    below = [*reversed(SHELL), *KEYS, *DISK, *reversed(CORE)]
    lines = [f"pgwal_cli    -> {', '.join([*ENGINE, *below, 'values'])}"]
    for part, allowed in reversed([*CORE.items(), *DISK.items(), *KEYS.items(), *SHELL.items(), *ENGINE.items()]):
        names = [name for name in below if name in allowed]
        lines.append(f"{part:12} -> {', '.join([*names, 'values'])}")
    return "".join(f"    {line}\n" for line in lines)


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


def test_the_documentation_shows_the_table() -> None:
    assert f"\n\n{diagram()}\n" in (ROOT / "docs/architecture.md").read_text(), f"it should show\n{diagram()}"


def file_accesses(tree: ast.AST) -> Iterator[str]:
    """Yield what a module does with files of the operating system."""
    for module in imported_modules(tree):
        if module in FILE_MODULES:
            yield f"import {module}"
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name not in TOUCHES_NO_FILE:
                yield f"os.{name}"
            case ast.Call(func=ast.Name(id="open" | "FileIO" as name)):
                yield f"{name}()"
            case ast.Call(func=ast.Attribute(attr=name)) if name in FILE_METHODS:
                yield f".{name}()"


def walled() -> list[Path]:
    """Return the sources that know a repository by its contracts alone."""
    own = LOCAL_ROOM | LOCAL_FAST_PATH | OF_THIS_MACHINE
    return [
        path
        for path in sources()
        if (part_of(path) == "repository" and path.stem not in own)
        or (part_of(path) == "engine" and path.stem not in FILES_OF_NO_REPOSITORY)
    ]


@pytest.mark.parametrize("path", walled(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_repository_is_reached_by_its_contracts(path: Path) -> None:
    # Tablespaces are compared by their paths, and no file is looked at.
    accepted = {"os.path"} if path.stem == "cluster_parts" else set()
    assert set(file_accesses(ast.parse(path.read_text()))) <= accepted


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in runtime_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize(
    "path",
    [path for path in sources() if path.stem not in LOCAL_ROOM],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_short_ways_are_asked_for_where_that_is_known(path: Path) -> None:
    for module, name in imported_names(ast.parse(path.read_text())):
        room = module.removeprefix("pgwal.repository.")
        if name == "as_files":
            assert path.stem in MAY_ASK_FOR_FILES
        elif name == "as_renaming":
            assert path.stem in MAY_ASK_FOR_RENAMES
        elif name == "LocalPlace":
            # Whoever reads the address of a repository makes a place of it.
            assert part_of(path) == "pgwal_cli" or path.stem in ("address", "spooled_place")
        elif name == "LocalStore":
            assert path.stem == "recorded"
        elif room in LOCAL_ROOM:
            may_import = ("spooled_place",) if room == "spool_directory" else ("backup_data", "recorded")
            assert path.stem in may_import, f"{path.stem} must not import {module}"
        elif room in LOCAL_FAST_PATH:
            assert path.stem in ("wal_directory", "recorded")


def test_the_tables_name_what_there_is() -> None:
    modules = {path.stem for path in sources() if part_of(path) == "repository"}
    assert modules >= CLOUD_ROOM | LOCAL_ROOM | LOCAL_FAST_PATH | MAY_ASK_FOR_FILES | MAY_ASK_FOR_RENAMES
    engine = {path.stem: path for path in sources() if part_of(path) == "engine"}
    for name in FILES_OF_NO_REPOSITORY:
        assert list(file_accesses(ast.parse(engine[name].read_text()))), f"{name} touches no file any more"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_to_asserts(path: Path) -> None:
    """``python -O`` drops them: they may tell a type checker what is so, and guard nothing."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            test = ast.unparse(node.test)
            assert test.endswith(" is not None") or test.startswith("isinstance("), f"line {node.lineno}: {test}"


# ---- sizes

FILE_LINES, FUNCTION_LINES = 400, 60
"""A file has fewer lines, and a function, from its def to its end, no more: what one reads at a time."""
LONG_FILES = {
    "pgwal/wal/crc32c.h": "four ways to compute one checksum, and the choice between them",
}


def measured() -> list[Path]:
    """Return what people write of the program: the C that Cython makes is none of it."""
    declarations = [
        path for part in ("pgwal", "cli") for end in ("h", "pxd") for path in ROOT.glob(f"{part}/**/*.{end}")
    ]
    return [*sources(), *declarations]


def function_lengths(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, int]]:
    """Yield the name of each function, within its classes and functions, and how many lines it has, less decorators."""
    for node in ast.iter_child_nodes(tree):
        inner = scope
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{scope}.{node.name}".lstrip(".")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield inner, node.end_lineno - node.lineno + 1
        yield from function_lengths(node, inner)


def test_a_file_is_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in measured()}
    long = {name for name, count in lengths.items() if count >= FILE_LINES}
    assert long == set(LONG_FILES), "give what has a noun of its own a file; strike out what is short again"


def test_a_function_fits_a_screen() -> None:
    long = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for name, count in function_lengths(ast.parse(path.read_text()))
        if count > FUNCTION_LINES
    }
    assert not long, "give a step a name"


def test_functions_are_measured_wherever_they_are() -> None:
    source = """
@decorated
@twice
def outer(
    a,
):
    if a:
        class Inner:
            async def method(self):
                return (
                    a
                )
"""
    assert dict(function_lengths(ast.parse(source))) == {"outer": 9, "outer.Inner.method": 4}
