"""The known ways to lose rows with incremental backups: pgwal restores the right ones in each; see docs/safety.md.

Where the server's own incremental backup goes wrong, it is taken beside pgwal's and shown to be wrong: that proves
that the case was really provoked.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from differential.test_timelines import Pair, one_value, receiver, replays, switch_point, wait_for
from fix_servers import ServerFactory
from pgwal_process import succeed
from test_main_job import PGWAL, checksums, streaming, wait_until_promoted

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.plan import IncrementalFile, WholeFile, WholeReason, plan_file
from pgwal.backup.reconstruct import Reconstruction, StoredWhole, reconstruct_file
from pgwal.engine.summarize import read_changes, read_derived_changes
from pgwal.errors import ServerError
from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE, Fork
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

pytestmark = pytest.mark.other_minors

SMALL_SEGMENTS = ("--wal-segsize=1",)
SEGMENT_SIZE = 1 << 20
# Vacuum runs when a case says so, and WAL is kept until the next backup fetches it.  The smaller the buffers, the
# fewer blocks a server adds to a file at once.
QUIET: dict[str, str | int | bool] = {"autovacuum": False, "wal_keep_size": "1GB", "shared_buffers": "128MB"}
KEPT_BLOCKS = 100


# ---- the scenes


@dataclass(frozen=True)
class Site:
    """A server, the repository of its backups, and what restored servers are made with."""

    server: ThrowawayServer
    repo: Path
    make_server: ServerFactory

    def back_up(self, command: str) -> str:
        """Take a backup of the local data directory and return its id."""
        source = ["--repo", self.repo, "-d", self.server.conninfo, "--pgdata", self.server.data_directory]
        return str(json.loads(succeed(command, *source, "-c", "fast", "--json"))["id"])

    def execute(self, *statements: str, dbname: str = "postgres") -> None:
        with self.server.connect(dbname=dbname) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def path_of(self, relation: str) -> str:
        return one_value(self.server, f"SELECT pg_relation_filepath('{relation}')")

    def stored(self, backup_id: str, path: str) -> BackupFile:
        """Return what a backup says about one file."""
        files = Repository.open(self.repo).catalogue.files(backup_id)
        return next(file for file in files if file.path == path)

    @contextmanager
    def restored(self) -> Iterator[ThrowawayServer]:
        """Restore the latest backup, replay the archive, and give the server that runs on it."""
        target = self.repo.parent / "restored"
        succeed("restore", "latest", "--repo", self.repo, "-D", target)
        command = [*PGWAL, "fetch-wal", "--repo", str(self.repo)]
        with RestoreCommandRelay(command, self.repo.parent / "relay") as relay:
            with (target / "postgresql.auto.conf").open("a") as settings:
                settings.write(f"restore_command = '{relay.restore_command}'\nprimary_conninfo = ''\n")
            server = self.make_server(adopt=target)
            wait_until_promoted(server)
            yield server

    def assert_restores(self, expected: dict[str, tuple[int, str]]) -> None:
        with self.restored() as server:
            assert checksums(server) == expected
            assert_sound(server)


@dataclass(frozen=True)
class NativeBackups:
    """The server's own base backups of a server of 17 or later, beside those of pgwal."""

    server: ThrowawayServer
    directory: Path

    def take(self, name: str, prior: Path | None = None) -> Path:
        backup = self.directory / name
        incremental = [] if prior is None else [f"--incremental={prior / 'backup_manifest'}"]
        self.server.run_tool("pg_basebackup", "-D", str(backup), "-c", "fast", "--no-sync", *incremental)
        return backup

    @contextmanager
    def restored(self, make_server: ServerFactory, *chain: Path) -> Iterator[ThrowawayServer]:
        combined = self.directory / "combined"
        self.server.run_tool("pg_combinebackup", "--no-sync", "-o", str(combined), *map(str, chain))
        yield make_server(adopt=combined)


def make_site(make_server: ServerFactory, scratch: Path, *initdb_args: str) -> Site:
    settings = dict(QUIET)
    if make_server.installation.major >= 17:
        settings["summarize_wal"] = True
    server = make_server(initdb_args=(*SMALL_SEGMENTS, *initdb_args), settings=settings)
    return Site(server, scratch / "repo", make_server)


@pytest.fixture
def site(make_server: ServerFactory, scratch: Path) -> Site:
    return make_site(make_server, scratch)


@pytest.fixture
def site_without_checksums(make_server: ServerFactory, scratch: Path) -> Site:
    # They are on by default from 18 on, which had no option to switch them off before.
    arguments = ["--no-data-checksums"] if make_server.installation.major >= 18 else []
    return make_site(make_server, scratch, *arguments)


@pytest.fixture
def native(site: Site, scratch: Path) -> NativeBackups:
    return NativeBackups(site.server, scratch)


def minor(server: ThrowawayServer) -> int:
    """Return a server's minor version; a release candidate comes before the first one."""
    match = re.match(r"\d+(?:rc\d+|\.(\d+))", server.installation.version)
    assert match is not None
    return int(match[1] or 0)


# The newest minor of each major that was run here and still does it.  A newer one of which docs/safety.md does not tell
# makes the test fail either way: run it, and write down what it does.
EVERY = 1 << 31
DELETED_ROWS_COME_BACK = {17: EVERY, 18: EVERY, 19: EVERY}
STALE_BITS_AFTER_TRUNCATION = {17: 11, 18: 6, 19: EVERY}
INCOMPLETE_BEHIND_A_BORDER = {17: EVERY, 18: EVERY, 19: EVERY}


def has_fault(server: ThrowawayServer, last_with_it: dict[int, int]) -> bool:
    return minor(server) <= last_with_it[server.installation.major]


def assert_native_count(
    restored: ThrowawayServer, expected: dict[str, tuple[int, str]], server: ThrowawayServer, fault: dict[int, int]
) -> None:
    """Check that the server's own backup brought rows back where its minor does that, and did not elsewhere."""
    if has_fault(server, fault):
        assert checksums(restored)["filled"][0] > expected["filled"][0]
    else:
        assert checksums(restored) == expected


# ---- what restored servers are checked with


def has_module(server: ThrowawayServer, name: str) -> bool:
    """Tell whether a contrib module is there, and make it usable."""
    with server.connect() as connection:
        found = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = %s", [name]).fetchone()
        if found is not None:
            connection.execute(f"CREATE EXTENSION IF NOT EXISTS {name}".encode())
    return found is not None


def assert_sound(server: ThrowawayServer) -> None:
    """Check heaps, B-trees and visibility maps, as far as the server comes with the modules for it."""
    user_relations = "FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind ="
    if has_module(server, "amcheck"):
        one_value(server, f"SELECT count(bt_index_check(oid, true)::text) {user_relations} 'i'")
        if server.installation.major >= 14:
            query = f"SELECT string_agg(msg, ';') FROM (SELECT oid {user_relations} 'r') AS t, verify_heapam(t.oid)"
            assert one_value(server, query) == "None"
    if has_module(server, "pg_visibility"):
        assert stale_visibility_bits(server) == 0


def stale_visibility_bits(server: ThrowawayServer) -> int:
    """Return how many rows the visibility maps promise to be visible, or frozen, and are not."""
    tables = "(SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r') AS t"
    visible = one_value(server, f"SELECT count(*) FROM {tables}, pg_check_visible(t.oid)")
    frozen = one_value(server, f"SELECT count(*) FROM {tables}, pg_check_frozen(t.oid)")
    return int(visible) + int(frozen)


def index_only_count(server: ThrowawayServer, table: str) -> int:
    """Count rows by the index, which asks the visibility map which rows need not be looked at."""
    query = f"SELECT count(*) FROM {table} WHERE id >= 0"
    with server.connect() as connection:
        connection.execute("SET enable_seqscan = off")
        connection.execute("SET enable_bitmapscan = off")
        plan = "".join(str(row[0]) for row in connection.execute(f"EXPLAIN {query}".encode()))
        assert "Index Only Scan" in plan
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


# ---- tables


def fill(site: Site, rows: int = 24000) -> None:
    """Make a table of some 60 rows a block, all of it visible to everybody."""
    site.execute(
        "CREATE TABLE filled (id int PRIMARY KEY, filler text)",
        f"INSERT INTO filled SELECT i, repeat('x', 100) FROM generate_series(1, {rows}) AS i",
        # So that a later vacuum leaves the blocks alone that it need not change.
        "VACUUM (FREEZE) filled",
    )


def truncate_by_vacuum(site: Site) -> None:
    """Delete the rows of all but the first blocks, and have vacuum cut the file."""
    site.execute(f"DELETE FROM filled WHERE ctid >= '({KEPT_BLOCKS},0)'", "VACUUM filled")
    size = int(one_value(site.server, "SELECT pg_relation_size('filled')"))
    assert size == KEPT_BLOCKS * BLOCK_SIZE


def extend_by_copy(site: Site) -> None:
    """Load rows so that the file ends with zero pages, of which nothing is in WAL."""
    with site.server.connect() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY filled FROM STDIN") as copy:
            for number in range(100_000, 106_000):
                copy.write_row((number, "y" * 100))
        connection.execute("CHECKPOINT")
    content = (site.server.data_directory / site.path_of("filled")).read_bytes()
    assert content.endswith(bytes(8 * BLOCK_SIZE)), "no zero pages were left: the case was not provoked"


# ---- truncation followed by unlogged extension


@pytest.mark.postgres(17, 18, 19)
def test_truncation_followed_by_unlogged_extension(
    site: Site, native: NativeBackups, make_server: ServerFactory
) -> None:
    """Zero pages that came after a truncation are not filled with the rows that were deleted."""
    fill(site)
    site.back_up("full")
    native_full = native.take("native_full")
    truncate_by_vacuum(site)
    extend_by_copy(site)
    expected, backup = checksums(site.server), site.back_up("incremental")
    stored = site.stored(backup, site.path_of("filled"))
    assert stored.is_incremental
    assert stored.truncation_block_length == KEPT_BLOCKS
    native_incremental = native.take("native_incremental", native_full)
    site.assert_restores(expected)
    with native.restored(make_server, native_full, native_incremental) as wrong:
        assert_native_count(wrong, expected, site.server, DELETED_ROWS_COME_BACK)


@pytest.mark.postgres(17, 18, 19)
def test_truncation_and_unlogged_extension_in_a_chain(
    site: Site, native: NativeBackups, make_server: ServerFactory
) -> None:
    """The truncation lies in one incremental, the zero pages in the next one, whose window has no truncation."""
    fill(site)
    site.back_up("full")
    native_chain = [native.take("native_full")]
    truncate_by_vacuum(site)
    site.back_up("incremental")
    native_chain.append(native.take("native_first", native_chain[-1]))
    extend_by_copy(site)
    expected, backup = checksums(site.server), site.back_up("incremental")
    stored = site.stored(backup, site.path_of("filled"))
    assert stored.is_incremental
    assert stored.truncation_block_length == KEPT_BLOCKS
    native_chain.append(native.take("native_second", native_chain[-1]))
    site.assert_restores(expected)
    with native.restored(make_server, *native_chain) as wrong:
        assert_native_count(wrong, expected, site.server, DELETED_ROWS_COME_BACK)


# ---- the order of summaries


@pytest.mark.postgres(16, 17, 18, 19)
def test_summaries_are_merged_in_lsn_order(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncation in one summary does not void blocks of later ones, in whatever order the directory lists them."""
    fill(site)
    with streaming(site.server, site.repo):
        full = site.back_up("full")
        truncate_by_vacuum(site)
        for step in range(1, 5):
            first = 100_000 * step
            site.execute(
                # From 17 on a summary ends at a checkpoint, before that at the end of a segment.
                "CHECKPOINT",
                "SELECT pg_switch_wal()",
                f"INSERT INTO filled SELECT i, repeat('y', 100) FROM generate_series({first}, {first + 999}) AS i",
            )
        expected, incremental = checksums(site.server), site.back_up("incremental")
    repository = Repository.open(site.repo)
    entries = {entry.backup_id: entry for entry in repository.catalogue.entries()}
    window = LsnRange(1, entries[full].start_lsn, entries[incremental].start_lsn)
    locator = relation_of(site, "filled")
    wanted = grown_blocks(read_changes(repository, [window]), locator)
    assert wanted == list(range(KEPT_BLOCKS, KEPT_BLOCKS + len(wanted)))
    assert len(wanted) > 50

    children = type(repository.store).children
    ranges = repository.summaries.ranges()
    assert len(ranges) >= 4
    for order in (sorted, reversed, shuffled):
        monkeypatch.setattr(
            type(repository.store), "children", lambda store, path, order=order: order(list(children(store, path)))
        )
        assert grown_blocks(read_changes(repository, [window]), locator) == wanted
    monkeypatch.undo()
    assert lost_when_the_truncation_comes_last(repository, window, locator) & set(wanted)
    site.assert_restores(expected)


def lost_when_the_truncation_comes_last(repository: Repository, window: LsnRange, relation: RelationFork) -> set[int]:
    """Return what a merge that reads the summary with the truncation last, as a server may, makes of the others."""
    inside = (s for s in repository.summaries.ranges() if window.start <= s.start < s.end <= window.end)
    maps = sorted(
        map(repository.summaries.read, inside), key=lambda changes: changes.limit_block(*relation) == KEPT_BLOCKS
    )
    assert maps[-1].limit_block(*relation) == KEPT_BLOCKS
    named: set[int] = set()
    merged = BlockMap()
    for changes in maps:
        named |= set(grown_blocks(changes, relation))
        merged.merge(changes)
    return named - set(grown_blocks(merged, relation))


def shuffled(items: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return random.Random(1).sample(items, len(items))


def relation_of(site: Site, table: str) -> RelationFork:
    """Return the key of a table's main fork in the default tablespace."""
    _, database, number = site.path_of(table).split("/")
    return RelationFork(1663, int(database), int(number), Fork.MAIN)


def grown_blocks(changes: BlockMap, relation: RelationFork) -> list[int]:
    return list(changes.blocks_between(*relation, KEPT_BLOCKS, BLOCKS_PER_FILE))


# ---- the visibility map


@pytest.mark.postgres(17, 18, 19)
def test_partly_cleared_page_of_the_visibility_map(
    site_without_checksums: Site, make_server: ServerFactory, scratch: Path
) -> None:
    """A truncation clears bits in the last page of the map that stays, and WAL does not name that page."""
    site = site_without_checksums
    if not has_module(site.server, "pg_visibility"):
        pytest.skip("this server comes without pg_visibility")
    fill(site)
    # All of it is deleted and marked visible before the window, so that the truncation alone touches the map.
    tail = f"DELETE FROM filled WHERE ctid >= '({KEPT_BLOCKS},0)'"
    site.execute(tail, "VACUUM (TRUNCATE off, FREEZE) filled")
    native = NativeBackups(site.server, scratch)
    site.back_up("full")
    native_full = native.take("native_full")
    site.execute(
        "VACUUM filled",
        "INSERT INTO filled SELECT i, repeat('y', 100) FROM generate_series(100000, 104000) AS i",
        "DELETE FROM filled WHERE id > 100000 AND id % 2 = 0",
    )
    expected = checksums(site.server)
    site.back_up("incremental")
    native_incremental = native.take("native_incremental", native_full)
    assert index_only_count(site.server, "filled") == expected["filled"][0]
    with site.restored() as server:
        assert index_only_count(server, "filled") == expected["filled"][0]
        assert checksums(server) == expected
        assert_sound(server)
    with native.restored(make_server, native_full, native_incremental) as restored:
        is_wrong = has_fault(site.server, STALE_BITS_AFTER_TRUNCATION)
        assert (index_only_count(restored, "filled") > expected["filled"][0]) == is_wrong
        assert (stale_visibility_bits(restored) > 0) == is_wrong


@pytest.mark.postgres(13, 14, 15, 16, 17)
def test_visibility_bits_that_wal_does_not_name(site: Site, make_server: ServerFactory, scratch: Path) -> None:
    """Before 17.11 a deletion clears bits of the map without a reference to its page."""
    fill(site, rows=6000)
    with streaming(site.server, site.repo):
        full = site.back_up("full")
        native = NativeBackups(site.server, scratch)
        beside = site.server.installation.major == 17 and minor(site.server) < 11
        native_chain = [native.take("native_full")] if beside else []
        site.execute("DELETE FROM filled WHERE id % 500 = 0")
        expected, incremental = checksums(site.server), site.back_up("incremental")
        if beside:
            native_chain.append(native.take("native_incremental", native_chain[0]))
    assert_map_not_named(site, full, incremental)
    with site.restored() as server:
        assert index_only_count(server, "filled") == expected["filled"][0]
        assert checksums(server) == expected
        assert_sound(server)
    if beside:
        with native.restored(make_server, *native_chain) as wrong:
            assert index_only_count(wrong, "filled") > expected["filled"][0]


def assert_map_not_named(site: Site, full: str, incremental: str) -> None:
    """Check that WAL of the window names no block of the table's visibility map, and yet changed one."""
    if site.server.installation.major == 17 and minor(site.server) >= 11:
        return
    repository = Repository.open(site.repo)
    entries = {entry.backup_id: entry for entry in repository.catalogue.entries()}
    window = [LsnRange(1, entries[full].start_lsn, entries[incremental].start_lsn)]
    visibility_map = relation_of(site, "filled")._replace(fork=Fork.VM)
    assert not list(read_changes(repository, window).blocks_between(*visibility_map, 0, 10))
    assert list(read_derived_changes(repository, window).blocks_between(*visibility_map, 0, 10)) == [0]


# ---- databases


@pytest.mark.postgres(15, 16, 17, 18, 19)
def test_database_copied_to_an_oid_that_was_used_before(site: Site) -> None:
    """Files of the old and the new database have the same names and lengths, and WAL names none of their blocks."""
    create = "CREATE DATABASE reused TEMPLATE {} OID 50000 STRATEGY file_copy"
    site.execute("CREATE DATABASE first")
    site.execute(
        "CREATE TABLE content AS SELECT i AS id, 'old' AS word FROM generate_series(1, 5000) AS i",
        "ALTER TABLE content SET (fillfactor = 100)",
        dbname="first",
    )
    site.execute("CREATE DATABASE second TEMPLATE first STRATEGY file_copy")
    site.execute(
        # In place: the file keeps its name, and the table its rows' number.
        "DELETE FROM content",
        "VACUUM content",
        "INSERT INTO content SELECT i, 'new' FROM generate_series(1, 5000) AS i",
        dbname="second",
    )
    site.execute(create.format("first"))
    site.back_up("full")
    site.execute("DROP DATABASE reused", create.format("second"))
    backup = site.back_up("incremental")
    paths = [file for file in Repository.open(site.repo).catalogue.files(backup) if "base/50000/" in file.path]
    assert paths
    assert not any(file.is_incremental for file in paths)
    with site.restored() as server, server.connect(dbname="reused") as connection:
        words = connection.execute("SELECT word, count(*) FROM content GROUP BY word").fetchall()
        assert words == [("new", 5000)]


# ---- timeline switches


def make_pair(make_server: ServerFactory, scratch: Path) -> Pair:
    """Make a primary and a standby with small segments; autovacuum is off."""
    settings = QUIET | {"wal_retrieve_retry_interval": "100ms"}
    if make_server.installation.major >= 17:
        settings["summarize_wal"] = True
    primary = make_server(initdb_args=SMALL_SEGMENTS, settings=settings, start=False)
    copy = scratch / "standby"
    shutil.copytree(primary.data_directory, copy, symlinks=True)
    (copy / "standby.signal").touch()
    primary.start()
    standby = make_server(adopt=copy, settings={"primary_conninfo": primary.conninfo, "hot_standby": True})
    return Pair(primary, standby, scratch / "repo")


def written(server: ThrowawayServer) -> Lsn:
    return Lsn.parse(one_value(server, "SELECT pg_current_wal_lsn()"))


def fail_over(pair: Pair) -> None:
    """Lose the primary and promote the standby; the receiver follows."""
    pair.primary.kill()
    pair.standby.promote()
    wait_for(lambda: switched(pair), "the receiver to follow to the new timeline")


def switched(pair: Pair) -> bool:
    return (pair.repo / "wal" / "00000002.history").exists()


@pytest.mark.postgres(15, 17, 18, 19)
def test_promotion_on_a_segment_border(make_server: ServerFactory, scratch: Path) -> None:
    """WAL ends with a switch, the new timeline begins with a segment: the page header between is no missing WAL."""
    pair = make_pair(make_server, scratch)
    site = Site(pair.primary, pair.repo, make_server)
    fill(site)
    native = NativeBackups(pair.standby, scratch)
    # 17.10, and 18 before 18.6, do not even get over the switch: the summariser is stuck.
    beside = minor(pair.standby) >= {17: 11, 18: 6, 19: 0}.get(pair.standby.installation.major, EVERY)
    with receiver(pair.conninfo, pair.repo):
        site.back_up("full")
        native_full = NativeBackups(pair.primary, scratch).take("native_full") if beside else None
        site.execute("UPDATE filled SET filler = 'before' WHERE id < 3000", "SELECT pg_switch_wal()")
        border = Lsn(written(pair.primary) // SEGMENT_SIZE * SEGMENT_SIZE)
        wait_for(lambda: replays(pair.standby, border), "the standby to follow")
        fail_over(pair)
        assert switch_point(pair) == border
        after = Site(pair.standby, pair.repo, make_server)
        after.execute("UPDATE filled SET filler = 'after' WHERE id > 21000")
        expected, backup = checksums(pair.standby), after.back_up("incremental")
    assert after.stored(backup, after.path_of("filled")).is_incremental
    if native_full is not None and has_fault(pair.standby, INCOMPLETE_BEHIND_A_BORDER):
        with pytest.raises(ServerError, match="incomplete"):
            native.take("native_incremental", native_full)
    elif native_full is not None:
        native_incremental = native.take("native_incremental", native_full)
        with native.restored(make_server, native_full, native_incremental) as restored:
            assert checksums(restored) == expected
    after.assert_restores(expected)


@pytest.mark.postgres(15, 17, 18, 19)
def test_truncation_just_before_a_timeline_switch(make_server: ServerFactory, scratch: Path) -> None:
    """Whether the truncation belongs to this history is not asked: the file goes whole."""
    pair = make_pair(make_server, scratch)
    site = Site(pair.primary, pair.repo, make_server)
    fill(site)
    with receiver(pair.conninfo, pair.repo):
        site.back_up("full")
        truncate_by_vacuum(site)
        wait_for(lambda: replays(pair.standby, written(pair.primary)), "the standby to follow")
        fail_over(pair)
        after = Site(pair.standby, pair.repo, make_server)
        after.execute("INSERT INTO filled SELECT i, 'after' FROM generate_series(100000, 120000) AS i")
        expected, backup = checksums(pair.standby), after.back_up("incremental")
    assert not after.stored(backup, after.path_of("filled")).is_incremental
    after.assert_restores(expected)


# ---- relations over a gigabyte

LARGE = RelationFork(1663, 5, 16384, Fork.MAIN)


def write_blocks(path: Path, block_count: int, blocks: dict[int, bytes]) -> None:
    """Write a file of zeros, for most of which there is no space on disk, with some blocks in it."""
    with path.open("wb") as file:
        file.truncate(block_count * BLOCK_SIZE)
        for number, content in blocks.items():
            os.pwrite(file.fileno(), content, number * BLOCK_SIZE)


def test_relation_over_a_gigabyte_truncated_across_a_segment_border(tmp_path: Path) -> None:
    """The second file vanishes with the truncation and comes back; plan and reconstruction, on real bytes."""
    last = BLOCKS_PER_FILE - 1
    old, new, new_zeros = b"o" * BLOCK_SIZE, b"n" * BLOCK_SIZE, bytes(BLOCK_SIZE)
    kept_length = BLOCKS_PER_FILE - 50
    before = {0: old, **dict.fromkeys(range(BLOCKS_PER_FILE - 100, BLOCKS_PER_FILE), old)}
    after = {0: old, **dict.fromkeys(range(BLOCKS_PER_FILE - 100, kept_length), old)}
    after |= dict.fromkeys(range(kept_length, BLOCKS_PER_FILE - 10), new) | {5: new, last: new_zeros}
    write_blocks(tmp_path / "before", BLOCKS_PER_FILE, before)
    write_blocks(tmp_path / "after", BLOCKS_PER_FILE, after)
    changes = BlockMap()
    changes.set_limit(LARGE, kept_length)
    # The last blocks of the first file are zero pages, which are in no WAL.
    changes.mark(LARGE, [5, *range(kept_length, BLOCKS_PER_FILE - 10)])

    plan = plan_file("base/5/16384", BLOCKS_PER_FILE * BLOCK_SIZE, BLOCKS_PER_FILE * BLOCK_SIZE, changes)
    assert plan == IncrementalFile(kept_length, array("I", [5, *range(kept_length, BLOCKS_PER_FILE)]))
    header = IncrementalHeader(plan.truncation_block_length, plan.block_numbers)
    with (tmp_path / "incremental").open("wb") as incremental, (tmp_path / "after").open("rb") as file:
        incremental.write(header.encode())
        for number in plan.block_numbers:
            incremental.write(os.pread(file.fileno(), BLOCK_SIZE, number * BLOCK_SIZE))
    whole = StoredWhole(BLOCKS_PER_FILE * BLOCK_SIZE)
    reconstruction = reconstruct_file([header, whole])
    assert_same_bytes(reconstruction, [tmp_path / "incremental", tmp_path / "before"], tmp_path / "after")

    # The second file was there before, vanished, and is there again: nothing of the old one is used.
    second = plan_file("base/5/16384.1", 40 * BLOCK_SIZE, 200 * BLOCK_SIZE, changes)
    assert second == WholeFile(WholeReason.TRUNCATED)


def assert_same_bytes(reconstruction: Reconstruction, sources: list[Path], expected: Path) -> None:
    """Check each run of a reconstruction against the file that it must give."""
    assert reconstruction.size_bytes == expected.stat().st_size
    with ExitStack() as opened:
        files = [opened.enter_context(path.open("rb")) for path in sources]
        wanted = opened.enter_context(expected.open("rb"))
        for run in reconstruction.runs:
            for at in range(0, run.length, 64 * SEGMENT_SIZE):
                size = min(64 * SEGMENT_SIZE, run.length - at)
                expected_bytes = os.pread(wanted.fileno(), size, run.offset + at)
                if run.source is None:
                    assert not any(expected_bytes)
                else:
                    found = os.pread(files[run.source].fileno(), size, run.source_offset + at)
                    assert found == expected_bytes, f"at byte {run.offset + at}"
