"""Files that a backup lacks: WAL accounts for each, or it stays; against the rule written down file by file."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.missing_files import MissingFiles
from pgwal.backup.source import SourceDirectory, SourceFile
from pgwal.relation import BLOCKS_PER_FILE, Fork, parse_relation_path
from pgwal.summary.block_map import BlockMap, RelationFork

DIRECTORIES = {"base/5": (1663, 5), "pg_tblspc/16400/PG_18_202506291/5": (16400, 5), "global": (1664, 0)}
PATHS = st.builds(
    lambda directory, number, suffix: f"{directory}/{number}{suffix}",
    st.sampled_from([*DIRECTORIES, "pg_xact"]),
    st.sampled_from([16384, 16385, 4294967295]),
    st.sampled_from(["", ".1", ".32767", "_init", "_fsm", "_vm", "_fsm.1"]),
)
LIMITS = st.sampled_from([0, 1, BLOCKS_PER_FILE - 1, BLOCKS_PER_FILE, 2 * BLOCKS_PER_FILE])
BLOCKS = st.lists(st.sampled_from([0, 5, BLOCKS_PER_FILE, BLOCKS_PER_FILE + 3]))
FORKS = st.builds(
    lambda place, number, fork: RelationFork(*place, number, fork),
    st.sampled_from(list(DIRECTORIES.values())),
    st.sampled_from([16384, 16385, 4294967295]),
    st.sampled_from([Fork.MAIN, Fork.INIT]),
)
CHANGES = st.tuples(
    st.dictionaries(FORKS, st.tuples(LIMITS | st.none(), BLOCKS), max_size=6),
    st.sets(st.sampled_from(list(DIRECTORIES.values())), max_size=1),
)
Changes = tuple[dict[RelationFork, tuple[int | None, list[int]]], set[tuple[int, int]]]


def block_map(changes: Changes) -> BlockMap:
    found = BlockMap()
    for key, (limit, blocks) in changes[0].items():
        found.mark(key, blocks)
        if limit is not None:
            found.set_limit(key, limit)
    for place in changes[1]:
        found.set_limit(RelationFork(*place, 0, Fork.MAIN), 0)
    return found


def says_dropped(changes: Changes, path: str) -> bool:
    file = parse_relation_path(path)
    assert file is not None
    limit, _ = changes[0].get(RelationFork(*file.locator, file.fork), (None, []))
    return file.locator[:2] in changes[1] or (limit is not None and limit <= file.first_block)


def matters(path: str) -> bool:
    file = parse_relation_path(path)
    return file is not None and file.fork in (Fork.MAIN, Fork.INIT)


def prior_file(path: str, size_bytes: int = 8192) -> BackupFile:
    return BackupFile(path, size_bytes, size_bytes, 0o600, 0, "0" * 32)


@settings(deadline=None)
@given(absent=st.sets(PATHS), gone=st.sets(PATHS), window=CHANGES, during=CHANGES)
def test_what_no_wal_accounts_for_is_missing(
    absent: set[str], gone: set[str], window: Changes, during: Changes
) -> None:
    missing = MissingFiles(block_map(window))
    for path in sorted(absent - gone):
        missing.add_absent(prior_file(path))
    for path in sorted(gone):
        missing.add_gone(path)
    expected = {path for path in absent - gone if matters(path) and not says_dropped(window, path)}
    expected |= {path for path in gone if matters(path)}
    assert set(missing.paths()) == expected
    assert bool(missing) == bool(expected)
    missing.account_for(block_map(during))
    expected = {path for path in expected if not says_dropped(during, path)}
    assert set(missing.paths()) == expected
    assert set(missing.directories()) == {path.rpartition("/")[0] for path in expected}
    missing.account_for_database("base/5")
    assert set(missing.paths()) == {path for path in expected if not path.startswith("base/5/")}


def test_an_empty_file_is_missing_when_something_came_into_it() -> None:
    changes = block_map(({RelationFork(1663, 5, 16384, Fork.MAIN): (None, [BLOCKS_PER_FILE])}, set()))
    missing = MissingFiles(changes)
    for path in ("base/5/16384", "base/5/16384.1", "base/5/16385"):
        missing.add_absent(prior_file(path, 0))
    assert list(missing.paths()) == ["base/5/16384.1"]


def test_the_main_fork_of_an_unlogged_relation_is_left_out_and_not_missing() -> None:
    missing = MissingFiles(BlockMap())
    for path in ("base/5/16384", "base/5/16384.1", "base/5/16385"):
        missing.add_absent(prior_file(path))
    missing.see(SourceFile("base/5/16384_init", 0, 0.0))
    assert list(missing.paths()) == ["base/5/16385"]


def test_databases_are_seen_by_their_version_files() -> None:
    missing = MissingFiles(None)
    for path in ("PG_VERSION", "base/1/PG_VERSION", "pg_tblspc/16400/PG_18_202506291/7/PG_VERSION", "own/PG_VERSION"):
        missing.see(SourceFile(path, 3, 0.0))
    missing.see(SourceDirectory("base/2"))
    assert missing.databases == {"base/1", "pg_tblspc/16400/PG_18_202506291/7"}
