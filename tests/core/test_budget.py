"""pgwal/budget.py is the one room of what tunes pgwal, and docs/scale.md adds up right what it allows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgwal import budget
from pgwal.backup.pack_table import FRAME_SIZE

ROOT = Path(__file__).parent.parent.parent
BUDGET = ROOT / "pgwal" / "budget.py"
SCALE = (ROOT / "docs" / "scale.md").read_text()

WORDS_OF_TUNING = {
    "AHEAD", "ATTEMPTS", "BATCH", "BYTES", "CONNECTIONS", "FACTOR", "FILES", "INTERVAL", "INTERVALS", "JOBS", "KEPT",
    "LOOKS", "ONCE", "PACKS", "PAUSE", "PENDING", "PIECES", "POLL", "QUERY", "REREADS", "RETRIES", "RETRY", "RUN", "S",
    "SEGMENTS", "SIZE", "THREADS", "TIMEOUT", "TRIES", "WAITING",
}  # fmt: skip
"""A number of a module tunes pgwal when its name has one of these words: time, memory, or how much at once."""

FORMATS = {
    "aligned_buffer": {"_HUGE_PAGE_BYTES"},
    "backup/database_names": {"_ROW_SIZE"},
    "backup/incremental_file": {"FIXED_SIZE"},
    "backup/manifest": {"MAX_SIZE"},
    "backup/pack_table": {"FRAME_SIZE", "SEAL_SIZE", "_MAX_PACK_SIZE"},
    "backup/file_table": {"_DIGEST_SIZE"},
    "backup/record_table": {"_KEY_SIZE"},
    "backup/recovery": {"_MAX_NAME_SIZE"},
    "backup/stored_path": {"_DIGEST_SIZE"},
    "cli/throwaway_server": {"SOCKET_PATH_MAX_BYTES"},
    "control_file": {"CONTROL_FILE_SIZE"},
    "disk/written_pieces": {"_BLOCK_BYTES", "_MOST_PIECES"},
    "encryption/container": {"FRAME_BYTES", "TAG_BYTES", "ID_BYTES", "KEY_BYTES", "_NONCE_BYTES"},
    "engine/keys": {"_ID_BYTES"},
    "engine/stored_backup": {"_LAST_LINE_SIZE"},
    "relation": {"BLOCK_SIZE"},
    "replication/messages": {"POSTGRES_EPOCH_UNIX_S"},
    "repository/pack_pool": {"_NAME_SIZE"},
    "repository/wal_directory": {"_LONG_HEADER_SIZE"},
    "segment": {
        "LONG_PAGE_HEADER_SIZE", "MAX_SEGMENT_SIZE", "MIN_SEGMENT_SIZE", "SHORT_PAGE_HEADER_SIZE", "WAL_PAGE_SIZE",
    },
    "summary/codec": {"_BITMAP_BYTES", "MAX_READ_SUMMARY_BYTES", "MAX_SUMMARY_BYTES"},
    "wal/layout": {"RECORD_HEADER_SIZE"},
    "wal/record": {"KEPT_BYTES", "KEPT_BYTES_OF_LISTS"},
}  # fmt: skip
"""Numbers of a format, and what is the most of one: they change with what is stored, not with a machine."""

LIMITS_OF_INPUT = re.compile(r"_?(MOST|MAX)_((\w+_)?BYTES(_READ)?|STORED_CONTENT)")
"""What is read at most of something that others have made: it belongs to what reads it, and refuses the rest."""

THROWAWAY = {"cli/demo_steps", "cli/server_processes", "cli/throwaway_server", "cli/throwaway_store"}
"""What runs servers for the demo and for tests."""

SHOWN = {
    "engine/cluster_parts": {"_NAMED_FILES"},
    "engine/report_findings": {"_JUDGED_INTERVALS", "_LATE_FACTOR"},
    "engine/report_parts": {"_MOST_PIECES"},
}
"""How much of a list a message or a picture has, and what a report takes for late."""


def numbers(tree: ast.Module) -> Iterator[str]:
    """Yield the names of what a module defines as numbers, be it by an expression of numbers."""
    allowed = (ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                targets = [target]
            case _:
                continue
        for target in targets:
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            for each, expression in pairs:
                parts = list(ast.walk(expression))
                constants = [part.value for part in parts if isinstance(part, ast.Constant)]
                is_number = all(isinstance(part, allowed) for part in parts) and all(
                    type(constant) in (int, float) for constant in constants
                )
                if isinstance(each, ast.Name) and is_number:
                    yield each.id


def tuning(tree: ast.Module) -> set[str]:
    return {name for name in numbers(tree) if WORDS_OF_TUNING & set(name.split("_"))}


def rooms() -> list[Path]:
    """Return the sources that must define no such number: C compilers want constants of their own."""
    found = [*ROOT.glob("pgwal/**/*.py"), *ROOT.glob("cli/**/*.py")]
    return sorted(path for path in found if path != BUDGET and not path.with_suffix(".pxd").exists())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix("")).removeprefix("pgwal/")


def test_what_tunes_pgwal_stands_in_one_module() -> None:
    elsewhere = {
        f"{name_of(path)}: {name}"
        for path in rooms()
        if name_of(path) not in THROWAWAY
        for name in tuning(ast.parse(path.read_text()))
        if name not in FORMATS.get(name_of(path), set()) | SHOWN.get(name_of(path), set())
        and not LIMITS_OF_INPUT.fullmatch(name)
    }
    assert not elsewhere, "give it a line in pgwal/budget.py, with its reason; a number of a format, one in FORMATS"


def test_the_lists_of_exceptions_name_what_there_is() -> None:
    for name, constants in [*FORMATS.items(), *SHOWN.items()]:
        path = ROOT / f"{name}.py" if name.startswith("cli/") else ROOT / "pgwal" / f"{name}.py"
        assert constants <= set(numbers(ast.parse(path.read_text()))), name


def test_numbers_are_found_however_they_are_written() -> None:
    source = '_A_S = 1 << 20\n_B_S, _C_S = 0.1, -5.0\nD_S: int = 24 * 3600\nE_S = len("x")\nF_S = "x"\nH = 1\n'
    assert tuning(ast.parse(source)) == {"_A_S", "_B_S", "_C_S", "D_S"}


def test_every_constant_has_its_reason_and_is_used() -> None:
    body = ast.parse(BUDGET.read_text()).body
    used = {
        alias.name
        for path in [*ROOT.glob("pgwal/**/*.py"), *ROOT.glob("cli/**/*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "pgwal.budget"
        for alias in node.names
    }
    names = set()
    for node, reason in zip(body[1::2], body[2::2], strict=True):
        assert isinstance(node, ast.Assign)
        assert isinstance(reason, ast.Expr), ast.unparse(node)
        names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    assert names == used


SUMS = re.findall(r"^\| (.+?) \| (\d+) \| `([^`]+)` \| (\d+) \|$", SCALE, re.MULTILINE)


@pytest.mark.parametrize(("command", "jobs", "buffers", "mib"), SUMS, ids=[row[0] for row in SUMS])
def test_the_sum_of_memory_of_a_command(command: str, jobs: str, buffers: str, mib: str) -> None:
    names = {**vars(budget), "jobs": int(jobs), "frame": FRAME_SIZE, "segment": 16 << 20}
    parts = list(ast.walk(ast.parse(buffers, mode="eval")))
    wanted = {part.id for part in parts if isinstance(part, ast.Name)}
    assert wanted <= set(names)
    assert eval(buffers, {"__builtins__": {}}, names) == int(mib) << 20, command


def test_sums_are_found() -> None:
    assert {row[0].split()[0] for row in SUMS} >= {"`stream`", "`full`,", "`restore`,", "`fetch-wal`", "`archive-wal`,"}
