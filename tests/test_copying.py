"""The copying of files: several jobs, the rate, pages that differ from their checksums, and the memory it takes."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
import tracemalloc
from array import array
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from core.test_page import build_page
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from pyroaring import BitMap

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry_document import decode_entry
from pgwal.backup.incremental_file import incremental_name
from pgwal.backup.manifest import ManifestWriter
from pgwal.backup.manifest_reader import read_manifest
from pgwal.backup.plan import IncrementalFile, plan_file
from pgwal.backup.source import SourceDirectory, SourceFile, Unread, WantedContent, extents, read_each
from pgwal.engine.copy import Copy, CopyRules
from pgwal.errors import FileReplaced
from pgwal.lsn import Lsn
from pgwal.page import find_bad_pages
from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE, RelFileLocator, parse_relation_path
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.staged_backup import StagedBackup
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal_cli.exit_codes import VERIFICATION_FAILED
from pgwal_cli.throwaway_server import ThrowawayServer

START_LSN = Lsn(0x5_0000_0028)
BACKUP = "20261122T101530Z_full"
NEWEST = (1 << 64) - 1
MEMORY_LIMIT = 250_000_000


def as_options(server: ThrowawayServer, source: str) -> list[str | Path]:
    local: list[str | Path] = ["--pgdata", server.data_directory] if source == "local" else []
    return ["-d", server.conninfo, "-c", "fast", *local]


def files_of(repo: Path, backup_id: str) -> list[BackupFile]:
    with (repo / "backups" / backup_id / "backup.json").open("rb") as lines:
        return list(decode_entry(lines)[1])


# ---- jobs and rate, on a server


@pytest.mark.postgres(13, 18)
def test_any_number_of_jobs_gives_the_same_backup(server: ThrowawayServer, repo: Path) -> None:
    found = {}
    for source in ("local", "sql"):
        for jobs in ("1", "4"):
            options = [*as_options(server, source), "-j", jobs, "--progress", "--json"]
            report = json.loads(succeed("full", "--repo", repo, *options))
            files = files_of(repo, report["id"])
            found[source, jobs] = [(file.path, file.size_bytes) for file in files]
            places = [file.path.split("/") for file in files[:-2]]
            assert places == sorted(places)
            assert [file.path for file in files[-2:]] == ["global/pg_control", "backup_label"]
            content = (repo / "backups" / report["id"] / "data" / "backup_manifest").read_bytes()
            assert [file.path for file in read_manifest(content).files] == [file.stored_path for file in files]
    assert len({tuple(files) for files in found.values()}) == 1


@pytest.mark.postgres(18)
@pytest.mark.parametrize("jobs", ["1", "3"])
def test_the_rate_is_kept(server: ThrowawayServer, scratch: Path, jobs: str) -> None:
    options = [*as_options(server, "local"), "-j", jobs, "--max-rate", "12M", "--json"]
    report = json.loads(succeed("full", "--repo", scratch / "repo", *options))
    assert report["phase_seconds"]["copy"] >= 0.95 * report["read_bytes"] / (12 << 20)


# ---- pages, on a server


@pytest.mark.postgres(13, 18, 19)
def test_the_pages_of_a_stopped_server_are_what_their_checksums_say(make_server: ServerFactory) -> None:
    server = make_server(initdb_args=("-k",))
    with server.connect() as session:
        session.execute("CREATE TABLE t AS SELECT i, repeat('x', i % 2000) AS v FROM generate_series(1, 20000) AS i")
        session.execute("CREATE INDEX ON t (v, i)")
        session.execute("VACUUM t")
    server.stop()
    if server.installation.has_tool("pg_checksums"):
        server.run_tool("pg_checksums", "--check", "-D", str(server.data_directory))
    checked = 0
    for path in server.data_directory.rglob("*"):
        relation_file = parse_relation_path(str(path.relative_to(server.data_directory)))
        if relation_file is not None:
            content = path.read_bytes()
            assert find_bad_pages(content, relation_file.first_block, NEWEST) == [], path
            checked += sum(any(content[at : at + 16]) for at in range(0, len(content), BLOCK_SIZE))
    assert checked > 3000


@pytest.mark.postgres(13, 18)
def test_bad_pages_are_found_by_every_kind_of_backup(make_server: ServerFactory, repo: Path) -> None:
    server = make_server(initdb_args=("-k",), settings={"autovacuum": False})
    with server.connect() as session:
        session.execute("CREATE TABLE t (i int, v text) WITH (fillfactor = 50)")
        session.execute("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 1000) AS i")
        # Hint bits change a page as well, and are logged.
        session.execute("SELECT count(*) FROM t")
        (path,) = session.execute("SELECT pg_relation_filepath('t')").fetchone() or ("",)
        first = json.loads(succeed("full", "--repo", repo, *as_options(server, "local"), "--json"))
        assert first["checksum_failure_count"] == 0
        session.execute("UPDATE t SET v = 'y' WHERE ctid >= '(11,0)' AND ctid < '(14,0)'")
        session.execute("CHECKPOINT")
    for block in (12, 40):
        damage(server.data_directory / path, block)
    for source in ("local", "sql"):
        for kind, blocks in ((["incremental", "--since", first["id"]], [12]), (["full"], [12, 40])):
            taking = [*kind, "--repo", repo, *as_options(server, source), "-j", "2", "--json"]
            if (source == "local") == (len(blocks) == 1):
                # One source of each kind is enough.
                assert_no_backup(repo, taking, f"{len(blocks)} pages are not what")
                continue
            outcome = run_pgwal(*taking)
            assert outcome.code == 0, outcome.stderr
            for block in blocks:
                assert f"checksum verification failed in file {path}, block {block}\n" in outcome.stderr
            assert outcome.stderr.count("verification failed") == len(blocks)
            report = json.loads(outcome.stdout)
            assert report["checksum_failure_count"] == len(blocks)
            with (repo / "backups" / report["id"] / "backup.json").open("rb") as lines:
                assert decode_entry(lines)[0].checksum_failures == len(blocks)
            verified = run_pgwal("verify", report["id"], "--repo", repo)
            assert verified.code == 5
            assert (
                f"block {', '.join(map(str, blocks))} differed from its checksum" in verified.stdout + verified.stderr
            )
            shown = json.loads(succeed("show", report["id"], "--repo", repo, "--json"))
            assert shown["checksum_failure_count"] == len(blocks)


@pytest.mark.postgres(18)
def test_configuration_elsewhere_is_noted(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server()
    for name in ("pg_hba.conf", "pg_ident.conf"):
        (server.data_directory / name).unlink()
    outcome = run_pgwal("full", "--repo", scratch / "repo", *as_options(server, "sql"))
    assert outcome.code == 0
    assert "not in the data directory, and so not in the backup: pg_hba.conf, pg_ident.conf;" in outcome.stderr


def assert_no_backup(repo: Path, taking: list[str | Path], cause: str) -> None:
    before = set((repo / "backups").iterdir())
    outcome = run_pgwal(*taking, "--checksum-failure", "error")
    assert_failed(outcome, VERIFICATION_FAILED, cause, "--checksum-failure=warn")
    assert set((repo / "backups").iterdir()) == before


def damage(path: Path, block: int) -> None:
    with path.open("r+b") as file:
        file.seek(block * BLOCK_SIZE + 6000)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x40]))


# ---- pages, without a server


class ChangingSource:
    """A data directory with one relation file; each reading of it gives the next of some contents."""

    path = "base/5/16384.1"

    def __init__(self, *contents: bytes) -> None:
        self._contents = iter(contents)

    def list(
        self,
        emptied: Collection[str] = (),  # noqa: ARG002
        tablespaces: Collection[int] | None = None,  # noqa: ARG002
    ) -> Iterator[SourceDirectory | SourceFile]:
        yield SourceDirectory("base")
        yield SourceDirectory("base/5")
        yield SourceFile(self.path, 10 * BLOCK_SIZE, 0.0)

    def names(self, directory: str) -> Sequence[str]:
        raise NotImplementedError

    def read_to_end(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        raise NotImplementedError

    def read_file(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        assert path == self.path
        content = next(self._contents)
        return iter([content[: 4 * BLOCK_SIZE], content[4 * BLOCK_SIZE : size_bytes]])

    def read_blocks(self, path: str, block_numbers: array[int]) -> Iterator[bytes] | None:
        assert path == self.path
        content = next(self._contents)
        return iter([content[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE] for number in block_numbers])

    def read_small(self, wanted: Sequence[WantedContent]) -> Sequence[bytes | Unread | None]:
        return read_each(self, wanted)

    def read_control_file(self) -> bytes:
        raise NotImplementedError


OLDER, NEWER = START_LSN - 1, START_LSN + 1


def relation_content(changed: dict[int, int] | None = None, damaged: Collection[int] = ()) -> bytes:
    """Return ten pages of a second segment; ``changed`` gives the LSNs of some, ``damaged`` are not whole."""
    pages = [build_page(number, BLOCKS_PER_FILE + number, (changed or {}).get(number, OLDER)) for number in range(10)]
    for number in damaged:
        pages[number][4096:] = bytes(4096)
    return b"".join(pages)


def copied(tmp_path: Path, source: ChangingSource, changes: BlockMap | None = None) -> tuple[Copy, bytes]:
    """Copy from a source, and return what is stored of its file."""
    prior = [] if changes is None else [BackupFile(source.path, 10 * BLOCK_SIZE, 10 * BLOCK_SIZE, 0o600, 0, "0" * 32)]
    rules = CopyRules(frozenset(), "NONE", None, START_LSN)
    with StagedBackup(LocalPlace(tmp_path), BACKUP) as staged:
        with Copy([source], changes, staged, ManifestWriter(18, 1), rules, None) as copy:
            copy.copy_all(lambda: prior)
        assert copy.totals.file_count == 1
        path = source.path if changes is None else incremental_name(source.path)
        return copy, (tmp_path / f"backups/{BACKUP}.unfinished/data" / path).read_bytes()


def test_a_torn_page_that_wal_has_is_none_to_report(tmp_path: Path) -> None:
    torn = relation_content({3: OLDER}, damaged=[3])
    # Still torn when it is looked at first, then whole, and changed since the start.
    source = ChangingSource(torn, torn, relation_content({3: NEWER}))
    copy, stored = copied(tmp_path, source)
    assert copy.bad_page_count == 0
    assert stored == torn


def test_a_page_that_was_misread_is_read_again(tmp_path: Path) -> None:
    right = relation_content()
    copy, stored = copied(tmp_path, ChangingSource(relation_content(damaged=[3, 7]), right, right))
    assert copy.bad_page_count == 0
    assert stored == right


def test_a_page_that_stays_bad_is_reported_and_stored_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = relation_content(damaged=[0, 2, 3, 4, 6, 7, 9])
    with caplog.at_level(logging.WARNING):
        copy, stored = copied(tmp_path, ChangingSource(*[bad] * 20))
    assert copy.bad_page_count == 7
    assert stored == bad
    assert [record.getMessage() for record in caplog.records] == [
        *[f"checksum verification failed in file base/5/16384.1, block {n}" for n in (0, 2, 3, 4, 6)],
        "checksum verification failed in 2 more blocks of file base/5/16384.1",
    ]


def test_a_file_that_reads_differently_each_time_is_reported(tmp_path: Path) -> None:
    bad, right = relation_content(damaged=[5]), relation_content()
    copy, _ = copied(tmp_path, ChangingSource(*[bad, right] * 10))
    assert copy.bad_page_count == 1


def test_the_blocks_of_an_incremental_are_checked_with_their_numbers(tmp_path: Path) -> None:
    changes = BlockMap()
    fork = RelationFork(*RelFileLocator(1663, 5, 16384), 0)
    changes.mark(fork, [BLOCKS_PER_FILE + number for number in (1, 4, 5, 8)])
    copy, _ = copied(tmp_path, ChangingSource(relation_content(damaged=[0])), changes)
    assert (copy.copied_block_count, copy.bad_page_count) == (4, 0)
    copy, stored = copied(tmp_path, ChangingSource(*[relation_content(damaged=[0, 5])] * 20), changes)
    assert (copy.copied_block_count, copy.bad_page_count) == (4, 1)
    assert struct.unpack_from("<II", stored, 4) == (4, 10)


# ---- files that are no relation files


class ReplacedSource(ChangingSource):
    """A data directory with one file that is replaced while it is read, the first times."""

    path = "own"

    def __init__(self, replaced_count: int, content: bytes, listed_bytes: int) -> None:
        super().__init__()
        self._replaced_count = replaced_count
        self._content = content
        self._listed_bytes = listed_bytes

    def list(
        self,
        emptied: Collection[str] = (),  # noqa: ARG002
        tablespaces: Collection[int] | None = None,  # noqa: ARG002
    ) -> Iterator[SourceDirectory | SourceFile]:
        yield SourceFile(self.path, self._listed_bytes, 0.0)

    def read_to_end(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        assert (path, size_bytes) == (self.path, self._listed_bytes)
        yield self._content
        self._replaced_count -= 1
        if self._replaced_count >= 0:
            raise FileReplaced(f"{path} was replaced")

    def cut(self) -> None:
        pass

    def read_small(self, wanted: Sequence[WantedContent]) -> Sequence[bytes | Unread | None]:
        assert all(each == WantedContent(self.path, self._listed_bytes, None, True) for each in wanted)
        return [Unread.LONGER for _ in wanted]


@pytest.mark.parametrize("listed_bytes", [0, 700, 1 << 20])
def test_a_file_that_is_replaced_is_read_again(tmp_path: Path, listed_bytes: int) -> None:
    content = bytes(range(256)) * 3000
    copy, stored = copied(tmp_path, ReplacedSource(4, content, listed_bytes))
    assert stored == content
    assert copy.totals.size_bytes == copy.totals.stored_size_bytes == copy.bytes_read == len(content)


def test_a_file_that_is_replaced_all_the_time_ends_the_backup(tmp_path: Path) -> None:
    with pytest.raises(FileReplaced):
        copied(tmp_path, ReplacedSource(5, b"x", 1 << 20))


# ---- memory


def peak_of_copying(count: int) -> int:
    """Return the peak in bytes of a process that copies ``count`` files, full and incremental."""
    # Millions of files are to be synced, which takes hours on some disks.
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        script = Path(__file__).parent / "copy_many_files.py"
        command = [sys.executable, str(script), directory, str(count), "2"]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_million_files_fit_into_the_memory_limit() -> None:
    count = int(os.environ.get("PGWAL_MANY_FILES", "20000"))
    few, many = peak_of_copying(1000), peak_of_copying(count)
    assert many + max(0, 1_000_000 - count) * max(0, many - few) / (count - 1000) < MEMORY_LIMIT


class LargeSource:
    """A data directory with a single large file, which is no relation file."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def list(
        self,
        emptied: Collection[str] = (),  # noqa: ARG002
        tablespaces: Collection[int] | None = None,  # noqa: ARG002
    ) -> Iterator[SourceDirectory | SourceFile]:
        yield SourceFile("large", self._size_bytes, 0.0)

    def names(self, directory: str) -> Sequence[str]:
        raise NotImplementedError

    def read_to_end(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        assert path == "large"
        return (bytes(1 << 20) for _ in range(size_bytes >> 20))

    def read_file(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        raise NotImplementedError

    def read_blocks(self, path: str, block_numbers: array[int]) -> Iterator[bytes] | None:
        raise NotImplementedError

    def read_small(self, wanted: Sequence[WantedContent]) -> Sequence[bytes | Unread | None]:
        return read_each(self, wanted)

    def read_control_file(self) -> bytes:
        raise NotImplementedError


def test_the_size_of_a_file_does_not_matter(tmp_path: Path) -> None:
    peaks = []
    for number, size_bytes in enumerate((32 << 20, 256 << 20)):
        rules = CopyRules(frozenset(), "CRC32C", None, START_LSN)
        with StagedBackup(LocalPlace(tmp_path / str(number)), BACKUP) as staged:
            tracemalloc.start()
            with Copy([LargeSource(size_bytes)], None, staged, ManifestWriter(18, 1), rules, None) as copy:
                copy.copy_all(list)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert copy.totals.size_bytes == size_bytes
    assert max(peaks) < 8 << 20
    assert peaks[1] < peaks[0] + (1 << 20)


def test_a_relation_of_a_terabyte_is_planned_and_read_a_segment_at_a_time() -> None:
    changes = BlockMap()
    fork = RelationFork(1663, 5, 16384, 0)
    changes.mark(fork, [0])
    found = changes.get(fork)
    assert found is not None
    segment_count = 1024  # of which a few are planned
    found.blocks |= BitMap(range(0, segment_count * BLOCKS_PER_FILE, 3))
    tracemalloc.start()
    copied_count = 0
    for segment in range(0, segment_count, 128):
        path = f"base/5/16384.{segment}" if segment else "base/5/16384"
        plan = plan_file(path, 1 << 30, 1 << 30, changes)
        assert isinstance(plan, IncrementalFile)
        copied_count += sum(length for _, length in extents(plan.block_numbers)) // BLOCK_SIZE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert copied_count == sum(
        len(range(-segment * BLOCKS_PER_FILE % 3, BLOCKS_PER_FILE, 3)) for segment in range(0, segment_count, 128)
    )
    assert peak < 16 << 20
