"""Paths of relation files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.relation import (
    BLOCKS_PER_FILE,
    Fork,
    RelationFile,
    RelFileLocator,
    is_temporary_relation_name,
    parse_database_directory,
    parse_relation_path,
)

SUFFIXES = {Fork.MAIN: "", Fork.FSM: "_fsm", Fork.VM: "_vm", Fork.INIT: "_init"}

oids = st.integers(1, 0xFFFFFFFF)
segments = st.integers(0, 32767)


@given(oids, st.sampled_from(Fork), segments)
def test_a_path_of_the_default_tablespace(oid: int, fork: Fork, segment: int) -> None:
    path = f"base/5/{oid}{SUFFIXES[fork]}" + (f".{segment}" if segment else "")
    found = parse_relation_path(path)
    assert found == RelationFile(RelFileLocator(1663, 5, oid), fork, segment)
    assert found.first_block == segment * BLOCKS_PER_FILE


@pytest.mark.parametrize(
    ("path", "locator"),
    [
        ("global/1262", (1664, 0, 1262)),
        ("base/1/2619", (1663, 1, 2619)),
        ("pg_tblspc/16400/PG_18_202506291/5/16401", (16400, 5, 16401)),
        ("pg_tblspc/16400/PG_13_202007201/5/16401", (16400, 5, 16401)),
    ],
)
def test_where_relations_are(path: str, locator: tuple[int, int, int]) -> None:
    assert parse_relation_path(path) == RelationFile(RelFileLocator(*locator), Fork.MAIN, 0)


@pytest.mark.parametrize(
    "path",
    [
        "base/5/PG_VERSION",
        "base/5/pg_filenode.map",
        "base/5/pg_internal.init",
        "base/5/t3_16384",
        "base/5/t3_16384_fsm",
        "base/5/0",
        "base/5/016384",
        "base/5/4294967296",
        "base/5/16384.0",
        "base/5/16384.01",
        "base/5/16384_toast",
        "base/5/16384_fsm_vm",
        "base/5/16384.1_fsm",
        "base/5/16384.partial",
        "base/5/16384\n",
        "base/pgsql_tmp/16384",
        "base/16384",
        "16384",
        "global/5/16384",
        "pg_tblspc/16400/5/16384",
        "pg_tblspc/16400/PG_18/5/16384",
        "pg_wal/000000010000000000000001",
        "base/5/\u0661\u0662",
    ],
)
def test_what_is_no_relation_file(path: str) -> None:
    assert parse_relation_path(path) is None


def test_directories_of_databases() -> None:
    assert parse_database_directory("global") == (1664, 0)
    assert parse_database_directory("base/5") == (1663, 5)
    assert parse_database_directory("pg_tblspc/16400/PG_18_202506291/5") == (16400, 5)
    for other in ("base", "pg_tblspc/16400", "pg_tblspc/16400/PG_18_202506291", "pg_xact", "base/5/x", ""):
        assert parse_database_directory(other) is None


@pytest.mark.parametrize("name", ["t3_16384", "t0_1", "t3_16384_fsm", "t3_16384_vm.1", "t3_16384.2"])
def test_names_of_temporary_relations(name: str) -> None:
    assert is_temporary_relation_name(name)


@pytest.mark.parametrize("name", ["16384", "t3", "t3_", "t_3", "t3_16384_x", "t3_16384.x", "xt3_16384"])
def test_names_of_others(name: str) -> None:
    assert not is_temporary_relation_name(name)
