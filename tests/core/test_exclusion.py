"""What a base backup leaves out."""

import pytest

from pgwal.backup.exclusion import (
    Inclusion,
    excluded_relation_files,
    inclusion,
    tablespace_version_directory,
    wal_directories,
)

ALL = (13, 14, 15, 16, 17, 18)


@pytest.mark.parametrize("major", ALL)
@pytest.mark.parametrize(
    "path",
    [
        "PG_VERSION",
        "postgresql.auto.conf",
        "current_logfiles",
        "backup_label.old",
        "tablespace_map.old",
        "global/pg_control",
        "global/pg_filenode.map",
        "base/5/1259",
        "base/5/16384_init",
        "pg_xact/0000",
        "pg_logical/replorigin_checkpoint",
        "pg_tblspc/16400",
        "pg_walk",
    ],
)
def test_included_files(path: str, major: int) -> None:
    assert inclusion(path, major, is_directory=False) is Inclusion.INCLUDED


@pytest.mark.parametrize("major", ALL)
@pytest.mark.parametrize("path", ["base", "base/5", "global", "pg_twophase", "pg_stat", "pg_commit_ts", "pg_tblspc"])
def test_included_directories(path: str, major: int) -> None:
    assert inclusion(path, major, is_directory=True) is Inclusion.INCLUDED


@pytest.mark.parametrize("major", ALL)
@pytest.mark.parametrize(
    "path",
    [
        "postmaster.pid",
        "postmaster.opts",
        "backup_label",
        "tablespace_map",
        "backup_manifest",
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "base/5/pg_internal.init",
        "global/pg_internal.init.1234",
        "base/pgsql_tmp",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "pgsql_tmp_anything",
        ".DS_Store",
        "base/.DS_Store",
        "conf.d/backup_label",
        "pg_wal/000000010000000000000001",
        "pg_wal/archive_status/x.done",
    ],
)
def test_excluded(path: str, major: int) -> None:
    for is_directory in (False, True):
        assert inclusion(path, major, is_directory=is_directory) is Inclusion.EXCLUDED


@pytest.mark.parametrize("major", ALL)
@pytest.mark.parametrize(
    "path",
    [
        "pg_wal",
        "pg_wal/archive_status",
        "pg_stat_tmp",
        "pg_replslot",
        "pg_dynshmem",
        "pg_notify",
        "pg_serial",
        "pg_snapshots",
        "pg_subtrans",
    ],
)
def test_directories_without_contents(path: str, major: int) -> None:
    assert inclusion(path, major, is_directory=True) is Inclusion.EMPTY


@pytest.mark.parametrize("major", ALL)
def test_what_is_below_pg_wal(major: int) -> None:
    summaries = "pg_wal/summaries"
    expected = Inclusion.EMPTY if major >= 17 else Inclusion.EXCLUDED
    assert inclusion(summaries, major, is_directory=True) is expected
    assert (summaries in wal_directories(major)) == (major >= 17)
    assert wal_directories(major)[0] == "pg_wal/archive_status"


@pytest.mark.parametrize("major", ALL)
def test_directories_that_are_to_be_left_empty(major: int) -> None:
    emptied = {"run/stats", "space"}
    for path in emptied:
        assert inclusion(path, major, is_directory=True, emptied=emptied) is Inclusion.EMPTY
        # A file of that name is none of them.
        assert inclusion(path, major, is_directory=False, emptied=emptied) is Inclusion.INCLUDED
    assert inclusion("run", major, is_directory=True, emptied=emptied) is Inclusion.INCLUDED


def test_only_the_clusters_own_directory_of_a_tablespace_is_included() -> None:
    assert tablespace_version_directory(17) == "PG_17_202406281"
    own, other = "pg_tblspc/16400/PG_17_202406281", "pg_tblspc/16400/PG_16_202307071"
    for below in ("", "/5", "/5/16384"):
        assert inclusion(own + below, 17, is_directory=False) is Inclusion.INCLUDED
        assert inclusion(other + below, 17, is_directory=False) is Inclusion.EXCLUDED
    assert inclusion(f"{other}/5", 16, is_directory=True) is Inclusion.INCLUDED
    assert inclusion("pg_tblspc/16400/lost+found", 17, is_directory=True) is Inclusion.EXCLUDED
    assert inclusion("pg_tblspc/16400/new\nline", 17, is_directory=True) is Inclusion.EXCLUDED


UNLOGGED = {"1", "1_fsm", "1_vm", "1_init", "1.1", "1_vm.2", "10", "10_vm", "2_init.1", "2"}
DROPPED = {"1", "1_fsm", "1_vm", "1.1", "1_vm.2"}


@pytest.mark.parametrize("directory", ["base/5", "pg_tblspc/16400/PG_17_202406281/5"])
def test_unlogged_relations_keep_their_init_fork(directory: str) -> None:
    for major in ALL:
        assert excluded_relation_files(directory, UNLOGGED, major) == DROPPED
        assert excluded_relation_files(directory, sorted(UNLOGGED), major) == DROPPED


def test_a_second_file_of_an_init_fork_makes_nothing_unlogged() -> None:
    assert excluded_relation_files("base/5", ["2", "2_init.1"], 17) == set()


def test_temporary_relations() -> None:
    names = {"t3_16384", "t3_16384_fsm", "t12_16384.1", "t3", "t_1", "tx3_1", "PG_VERSION", "16384"}
    for major in ALL:
        assert excluded_relation_files("base/5", names, major) == {"t3_16384", "t3_16384_fsm", "t12_16384.1"}


@pytest.mark.parametrize("major", ALL)
def test_global_holds_no_temporary_relations(major: int) -> None:
    found = excluded_relation_files("global", UNLOGGED | {"t3_16384"}, major)
    assert found == (DROPPED if major >= 17 else set())


@pytest.mark.parametrize("directory", ["", "pg_xact", "base", "base/5/sub", "pg_tblspc/16400"])
def test_other_directories_hold_no_relations(directory: str) -> None:
    assert excluded_relation_files(directory, UNLOGGED | {"t3_16384"}, 17) == set()
