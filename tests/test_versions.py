"""One row a major version: nothing but ``pgwal/postgres_version.py`` compares majors.

What a row says is held to real servers, to recorded WAL and to the formats document elsewhere; this is about where it
stands, and about what is said to whoever comes with another version.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pgwal.errors import UnsupportedVersion
from pgwal.postgres_version import (
    SUPPORTED,
    VERSIONS,
    version_of_catalog,
    version_of_magic,
    version_of_major,
    version_of_server,
)

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "pgwal" / "postgres_version.py"
# Whatever a comparison with one of these is about, it is a version that it compares.
VERSION_NAME = re.compile(r"(^|_)(major|version_num|server_version|server_version_num|catalog_version(_no)?)$")
MAJORS = {version.major for version in VERSIONS}


def sources() -> list[Path]:
    return [path for path in sorted([*ROOT.glob("pgwal/**/*.py"), *ROOT.glob("cli/**/*.py")]) if path != ROWS]


def names_a_version(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if isinstance(node, ast.BinOp):
        return names_a_version(node.left) or names_a_version(node.right)
    return VERSION_NAME.search(name) is not None


def is_number(node: ast.expr) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(is_number, node.elts))
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool)


def comparisons_of_majors(tree: ast.AST) -> list[int]:
    """Return the lines that compare a version with a number, or choose by one in another way."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            if any(map(names_a_version, parts)) and any(map(is_number, parts)):
                lines.append(node.lineno)
        elif isinstance(node, ast.Match) and names_a_version(node.subject):
            lines.append(node.lineno)
        elif isinstance(node, ast.Dict):
            # {17: ..., 18: ...}: a table of its own.
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant) and type(key.value) is int}
            if len(keys) > 1 and keys <= MAJORS:
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_compares_majors(path: Path) -> None:
    text = path.read_text()
    assert comparisons_of_majors(ast.parse(text)) == [], "put it into a row of pgwal/postgres_version.py"
    for version in VERSIONS:
        own = (version.catalog_version, version.wal.magic)
        for node in ast.walk(ast.parse(text)):
            assert not (isinstance(node, ast.Constant) and node.value in own), f"line {node.lineno}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "code",
    [
        "facts.major >= 17",
        "17 <= major < 19",
        "connection.info.server_version >= 150000",
        "version_num // 10000 == 18",
        "entry.major in (13, 14)",
        "x = 16 if self._format.major >= 18 else 12",
        "table = {17: 1, 18: 2}",
        "match major:\n  case 17: pass",
    ],
)
def test_a_comparison_is_seen(code: str) -> None:
    assert comparisons_of_majors(ast.parse(code)) != []


def test_the_rows() -> None:
    majors = [version.major for version in VERSIONS]
    assert majors == list(range(majors[0], majors[-1] + 1))
    assert f"{majors[0]} to {majors[-1]}" == SUPPORTED
    for version in VERSIONS:
        assert version.wal.major == version.major
        assert version_of_major(version.major) is version
        assert version_of_server(version.major * 10000 + 3) is version
        assert version_of_magic(version.wal.magic, "here") is version
        assert version_of_catalog(version.catalog_version, version.control.version, "here") is version
        assert version.wal.overwrite_contrecord_flag & version.wal.page_flags


def test_what_names_the_versions_names_all() -> None:
    """The range of majors in text that people read is the one of the rows."""
    for name in ("README.md", "pyproject.toml", "docs/commands.md", "docs/operations.md"):
        for first, last in re.findall(r"\b(1[0-9]) to (1[0-9])\b", (ROOT / name).read_text()):
            assert (int(first), int(last)) != (VERSIONS[0].major, VERSIONS[-2].major), f"{name}: {first} to {last}"
    assert f"PostgreSQL {SUPPORTED}" in (ROOT / "README.md").read_text()
    assert f"PostgreSQL {SUPPORTED}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("magic", "says", "way_out"),
    [
        (0xD120, "is that of PostgreSQL 19 beta 1 or 2, no release", "move the cluster to the release"),
        (0xD121, "is that of PostgreSQL 19 beta 3, no release", "move the cluster to the release"),
        (0xD123, f"is not of PostgreSQL {SUPPORTED}", "install the newest pgwal"),
        (0xD101, f"is not of PostgreSQL {SUPPORTED}", "upgrade the server"),
    ],
)
def test_an_unknown_magic_says_what_to_do(magic: int, says: str, way_out: str) -> None:
    with pytest.raises(UnsupportedVersion, match=f"^the page: WAL page magic {magic:#06x} {says}") as caught:
        version_of_magic(magic, "the page")
    assert way_out in (caught.value.hint or "")


@pytest.mark.parametrize(("major", "way_out"), [(20, "install the newest pgwal"), (12, "upgrade the server")])
def test_an_unknown_major_says_what_to_do(major: int, way_out: str) -> None:
    with pytest.raises(
        UnsupportedVersion, match=f"PostgreSQL {major} is not supported, only {SUPPORTED} are"
    ) as caught:
        version_of_major(major)
    assert way_out in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("catalog_version", "control_version", "way_out"),
    [(202605131, 1902, "pre-release"), (202712011, 2001, "install the newest pgwal"), (201909212, 1201, "pre-release")],
)
def test_another_cluster_says_what_to_do(catalog_version: int, control_version: int, way_out: str) -> None:
    with pytest.raises(
        UnsupportedVersion, match=f"version {control_version}, catalog version {catalog_version}"
    ) as caught:
        version_of_catalog(catalog_version, control_version, "pg_control")
    assert way_out in (caught.value.hint or "")


def test_how_each_version_writes_an_lsn() -> None:
    assert [version.lsn_text(0x16_0374D848) for version in VERSIONS] == ["16/374D848"] * 6 + ["16/0374D848"]
