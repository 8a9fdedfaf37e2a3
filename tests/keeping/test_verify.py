"""``pgwal verify`` finds each flipped byte, and whatever is missing, cut off, exchanged or added.

The number of flips is set by PGWAL_VERIFY_FLIPS; the seed is printed, and given by PGWAL_SEED.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from keeping.stored_repository import (
    FIRST,
    FULL,
    MB,
    SECOND,
    SYSTEM_IDENTIFIER,
    TABLE,
    Stored,
    build_repository,
    control_file,
    label,
    store_backup,
)
from keeping.stored_repository import history as parse_history
from pgwal_process import assert_failed, run_pgwal
from seeds import new_seed

from pgwal.checksum import crc32c
from pgwal.engine import stored_wal
from pgwal.engine.coverage import join
from pgwal.engine.fleet import Room
from pgwal.engine.problem import Problem
from pgwal.engine.verify import VerifyReport, VerifyRequest, verify
from pgwal.errors import ObjectNotFound
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.local import LocalStore
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.recorded_directory import open_wal_directory
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import StorageFormat
from pgwal.repository.wal_compressor import compress_segment
from pgwal.repository.wal_directory import WalDirectory
from pgwal.summary.codec import summary_file_name
from pgwal.wal.layout import LongPageHeader
from pgwal_cli.exit_codes import FAILED, VERIFICATION_FAILED

ROOT = Path(__file__).parent.parent.parent
FLIPS = int(os.environ.get("PGWAL_VERIFY_FLIPS", "150"))
OTHER = "20261130T101530Z_full"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, storage_format: StorageFormat) -> Stored:
    return build_repository(tmp_path_factory.mktemp("verify") / "repo", storage_format=storage_format)


@pytest.fixture
def stored(built: Stored, tmp_path: Path) -> Stored:
    """A copy that the test may damage."""
    shutil.copytree(built.root, tmp_path / "repo")
    return Stored(Repository.open(tmp_path / "repo"), built.records)


@pytest.fixture
def random() -> Random:
    return Random(new_seed())


def verified(stored: Stored, backup_id: str | None = None, jobs: int = 1) -> VerifyReport:
    return verify(VerifyRequest(LocalPlace(stored.root), backup_id, jobs))


def damaged(stored: Stored, backup_id: str | None = None) -> set[str]:
    """Return the paths of what is wrong."""
    return {problem.path for problem in verified(stored, backup_id).problems}


@contextmanager
def flipped(path: Path, offset: int, mask: int) -> Iterator[None]:
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(1)
        file.seek(offset)
        file.write(bytes([before[0] ^ mask]))
    yield
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(before)


def backup_files(stored: Stored) -> list[Path]:
    return sorted(path for path in (stored.root / "backups").rglob("*") if path.is_file() and path.stat().st_size)


def name_of(stored: Stored, path: Path) -> str:
    return str(path.relative_to(stored.root))


def data(stored: Stored, backup_id: str, path: str) -> Path:
    return stored.root / "backups" / backup_id / "data" / path


# ---- bytes


@pytest.mark.parametrize("jobs", [1, 4])
def test_nothing_is_wrong_with_what_is_whole(stored: Stored, jobs: int) -> None:
    report = verified(stored, jobs=jobs)
    assert report.problems == []
    assert report.backup_ids == [FULL, FIRST, SECOND]
    (wal,) = report.wal_ranges
    assert (wal.start, wal.end) == (Lsn(MB + 40), report.entries[SECOND].stop_lsn)
    assert report.bytes_read > sum(entry.totals.stored_size_bytes for entry in report.entries.values())


@pytest.mark.only_format("plain")
def test_a_flipped_byte_of_a_backup_is_found(stored: Stored, random: Random) -> None:
    files = backup_files(stored)
    sizes = [path.stat().st_size for path in files]
    for _ in range(FLIPS):
        # Half of them in any file, half in any byte.
        path = random.choice(files) if random.random() < 0.5 else random.choices(files, sizes)[0]
        offset, mask = random.randrange(path.stat().st_size), random.randrange(1, 256)
        with flipped(path, offset, mask):
            assert name_of(stored, path) in damaged(stored), f"{path} byte {offset} ^ {mask:#x}"
    assert damaged(stored) == set()


@pytest.mark.parametrize("name", ["backup.json", "data/backup_manifest", "data/backup_label"])
def test_each_byte_of_a_small_file_counts(stored: Stored, random: Random, name: str) -> None:
    check_each_byte(stored, random, name)


@pytest.mark.only_format("plain")
def test_each_byte_of_a_plain_file_counts(stored: Stored, random: Random) -> None:
    check_each_byte(stored, random, "data/PG_VERSION")


def check_each_byte(stored: Stored, random: Random, name: str) -> None:
    shutil.rmtree(stored.root / "backups" / SECOND)
    shutil.rmtree(stored.root / "backups" / FIRST)
    path = stored.root / "backups" / FULL / name
    for offset in range(path.stat().st_size):
        mask = random.choice([0x01, 0x20, 0x80, random.randrange(1, 256)])
        with flipped(path, offset, mask):
            assert name_of(stored, path) in damaged(stored), f"{path} byte {offset} ^ {mask:#x}"


def test_a_flipped_byte_of_a_wal_record_is_found(stored: Stored, random: Random) -> None:
    end = stored.repository.catalogue.entry(SECOND).stop_lsn
    needed = [(lsn, length) for lsn, length in stored.records if lsn < end]
    for _ in range(FLIPS // 3):
        lsn, length = random.choice(needed)
        # A record that crosses a page goes on behind the header of the next: stay before that.
        position = lsn + random.randrange(min(length, 8192 - lsn % 8192))
        name = f"wal/{stored.repository.geometry.file_name(1, position // MB)}"
        mask = random.randrange(1, 256)
        with flipped(stored.root / name, position % MB, mask):
            found = damaged(stored)
            assert any(path.startswith("wal/") for path in found), f"WAL at {Lsn(position)} ^ {mask:#x}"


@pytest.mark.parametrize("method", [m for m in CompressionMethod if m is not CompressionMethod.NONE])
def test_a_flipped_byte_of_a_compressed_segment_is_found_or_changes_nothing(
    stored: Stored, random: Random, method: CompressionMethod
) -> None:
    repository = stored.repository
    name = repository.geometry.file_name(1, 2)
    content = repository.wal.read_segment(name)
    compress_segment(repository.store, repository.geometry, name, Compression(method))
    (path,) = (stored.root / "wal").glob(f"{name}.*")
    assert damaged(stored) == set()
    found_count = 0
    size = path.stat().st_size
    for offset in [*range(12), *range(size - 12, size), *(random.randrange(size) for _ in range(FLIPS // 10))]:
        mask = random.randrange(1, 256)
        with flipped(path, offset, mask):
            found = any(name in problem for problem in damaged(stored))
            found_count += found
            # Formats have bits that mean nothing.
            assert found or repository.wal.read_segment(name) == content, f"{path} byte {offset} ^ {mask:#x}"
    assert found_count > FLIPS // 10


def test_a_flipped_byte_of_a_summary_is_found(stored: Stored, random: Random) -> None:
    names = sorted((stored.root / "summaries").iterdir())[:2]
    for path in names:
        for offset in range(path.stat().st_size):
            with flipped(path, offset, random.randrange(1, 256)):
                assert damaged(stored) == {name_of(stored, path)}, f"{path} byte {offset}"


def test_a_summary_that_says_something_else_than_wal_is_found(stored: Stored) -> None:
    summaries = stored.repository.summaries
    first, second = summaries.ranges()[:2]
    summaries.write(first, summaries.read(second), summaries.link(first))
    assert damaged(stored) == {f"summaries/{sorted(p.name for p in (stored.root / 'summaries').iterdir())[0]}"}


def test_a_summary_that_follows_another_record_than_its_wal_is_found(stored: Stored) -> None:
    summaries = stored.repository.summaries
    wanted = summaries.ranges()[1]
    link = summaries.link(wanted)
    assert link is not None
    name = f"summaries/{summary_file_name(wanted)}"
    for wrong in (link._replace(prev_lsn=Lsn(link.prev_lsn - 8)), link._replace(last_lsn=Lsn(link.last_lsn + 8))):
        summaries.write(wanted, summaries.read(wanted), wrong)
        assert damaged(stored) == {name}
        assert any("follows the record at" in problem.message for problem in verified(stored).problems)
    # An older pgwal wrote none.
    summaries.write(wanted, summaries.read(wanted), None)
    assert damaged(stored) == set()


def test_summaries_that_do_not_link_are_found_without_their_wal(stored: Stored) -> None:
    summaries = stored.repository.summaries
    wanted = summaries.ranges()[1]
    link = summaries.link(wanted)
    assert link is not None
    summaries.write(wanted, summaries.read(wanted), link._replace(prev_lsn=Lsn(link.prev_lsn - 8)))
    for segment in stored.repository.wal.segments():
        stored.repository.store.delete(f"wal/{segment.name}")
    problems = [problem for problem in verified(stored).problems if problem.path.startswith("summaries/")]
    assert [problem.path for problem in problems] == [f"summaries/{summary_file_name(wanted)}"]
    assert re.search(r"follows a record at \S+, but the last one before it is at \S+", problems[0].message)


def test_a_backup_that_starts_within_a_record_is_of_another_history(stored: Stored) -> None:
    lsn, _ = stored.records[5]
    (stop, _) = stored.records[60]
    store_backup(stored.repository, OTHER, None, Lsn(lsn + 8), stop, {})
    (problem,) = [problem for problem in verified(stored).problems if problem.backup_id == OTHER]
    assert problem.path == f"backups/{OTHER}/backup.json"
    assert f"{Lsn(lsn + 8)} of timeline 1 lies within the record at {lsn}" in problem.message


def test_a_backup_of_another_checkpoint_than_that_in_the_archive_is_of_another_history(stored: Stored) -> None:
    start = Lsn(2 * MB + 40)
    stop = next(Lsn(lsn) for lsn, _ in stored.records if lsn > start + 1000)
    other_time = bytearray(control_file(start))
    other_time[40 + 64] ^= 1
    struct.pack_into("<I", other_time, 288, crc32c(bytes(other_time[:288])))
    cases = {
        "global/pg_control": (bytes(other_time), "is not the server's: it has time"),
        "backup_label": (label(start, None, Lsn(MB + 40)), "its redo position is 0/100028 on timeline 1"),
    }
    for number, (path, (content, message)) in enumerate(cases.items()):
        backup_id = f"20261130T10153{number}Z_full"
        store_backup(stored.repository, backup_id, None, start, stop, {path: content})
        (problem,) = [problem for problem in verified(stored).problems if problem.backup_id == backup_id]
        assert problem.path == f"backups/{backup_id}/backup.json"
        assert message in problem.message


# ---- files


@pytest.mark.only_format("plain")
def test_files_that_are_missing_cut_off_exchanged_or_added(stored: Stored) -> None:
    expected = set()

    def touch(path: Path) -> Path:
        expected.add(name_of(stored, path))
        return path

    touch(data(stored, FULL, "base/5/16385")).unlink()
    cut = touch(data(stored, FIRST, "base/5/INCREMENTAL.16384"))
    cut.write_bytes(cut.read_bytes()[:-1])
    one, other = touch(data(stored, FIRST, "base/5/16385")), touch(data(stored, SECOND, "global/pg_control"))
    one_content, other_content = one.read_bytes(), other.read_bytes()
    assert len(one_content) == len(other_content)
    one.write_bytes(other_content)
    other.write_bytes(one_content)
    touch(data(stored, FULL, "base/5/16386")).write_bytes(b"")
    touch(data(stored, FULL, "pg_notify")).rmdir()
    touch(data(stored, SECOND, "base/5/link")).symlink_to("/etc/passwd")
    touch(stored.root / "backups" / SECOND / "notes").write_bytes(b"?")
    (stored.root / "wal" / "000000010000000000000002").rename(stored.root / "wal" / "moved")
    expected.add("wal/000000010000000000000002")
    # All of it at once: one thing that is wrong hides no other.
    assert damaged(stored) == expected


@pytest.mark.only_format("plain")
def test_files_of_a_backup_without_its_entry_are_held_against_the_manifest(stored: Stored) -> None:
    path = data(stored, FULL, TABLE)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (stored.root / "backups" / FULL / "backup.json").unlink()
    found = damaged(stored)
    assert {name_of(stored, path), f"backups/{FULL}/backup.json"} <= found


def test_a_prior_backup_that_is_missing(stored: Stored) -> None:
    shutil.rmtree(stored.root / "backups" / FIRST)
    assert damaged(stored, SECOND) == {f"backups/{FIRST}/backup.json", f"backups/{FIRST}/data/backup_manifest"}
    assert damaged(stored, FULL) == set()


@pytest.mark.only_format("plain")
def test_the_chain_of_a_backup_is_verified_with_it(stored: Stored) -> None:
    data(stored, FULL, TABLE).unlink()
    assert damaged(stored, SECOND) == {f"backups/{FULL}/data/{TABLE}"}
    with pytest.raises(ObjectNotFound, match="there is no backup"):
        verified(stored, "20201122T101530Z_full")


def test_an_incremental_on_a_file_that_the_prior_backup_does_not_hold(stored: Stored) -> None:
    full = stored.repository.catalogue.entry(FULL)
    for whole, expected in (
        ({TABLE: bytes(8192)}, {f"backups/{FIRST}/data/{TABLE}"}),
        ({}, {f"backups/{FIRST}/data/base/5/INCREMENTAL.16384"}),
    ):
        shutil.rmtree(stored.root / "backups" / FULL)
        store_backup(stored.repository, FULL, None, full.start_lsn, full.stop_lsn, whole)
        assert damaged(stored) == expected


def test_a_backup_in_the_place_of_another(stored: Stored) -> None:
    shutil.rmtree(stored.root / "backups" / SECOND)
    shutil.copytree(stored.root / "backups" / FIRST, stored.root / "backups" / SECOND)
    assert damaged(stored) == {f"backups/{SECOND}/backup.json"}


def test_a_chain_that_goes_in_a_circle(stored: Stored) -> None:
    for backup_id, prior_id in ((FIRST, SECOND), (SECOND, FIRST)):
        path = stored.root / "backups" / backup_id / "backup.json"
        path.write_text(
            path.read_text().replace(f'"prior": "{stored_prior(stored, backup_id)}"', f'"prior": "{prior_id}"')
        )
    assert any("in a circle" in problem.message for problem in verified(stored).problems)


def stored_prior(stored: Stored, backup_id: str) -> str | None:
    return stored.repository.catalogue.entry(backup_id).prior_id


def test_each_segment_that_is_damaged_or_missing_is_named(stored: Stored) -> None:
    with (stored.root / "wal" / "000000010000000000000001").open("r+b") as file:
        file.seek(stored.records[3][0] % MB + 10)
        file.write(b"\xff\xff")
    (stored.root / "wal" / "000000010000000000000003").unlink()
    found = damaged(stored)
    assert {"wal/000000010000000000000001", "wal/000000010000000000000003"} <= found


def test_a_history_file_that_is_missing(stored: Stored) -> None:
    assert parse_history(2, (1, 3 * MB)).timeline_at(MB) == 1
    entry = stored.root / "backups" / SECOND / "backup.json"
    entry.write_text(entry.read_text().replace('timeline": 1', 'timeline": 2'))
    assert {"wal/00000002.history", f"backups/{SECOND}/backup.json"} <= damaged(stored)


def test_another_cluster(stored: Stored) -> None:
    path = stored.root / "pgwal.json"
    path.write_text(path.read_text().replace(str(SYSTEM_IDENTIFIER), "7"))
    found = damaged(Stored(Repository.open(stored.root), stored.records))
    assert {f"backups/{backup_id}/backup.json" for backup_id in (FULL, FIRST, SECOND)} <= found


# ---- the command


@pytest.mark.only_format("plain")
def test_the_command_lists_what_is_wrong(stored: Stored) -> None:
    assert run_pgwal("verify", "--repo", stored.root).stdout.endswith("nothing is wrong\n")
    data(stored, FIRST, "base/5/16385").unlink()
    outcome = run_pgwal("verify", SECOND, "--repo", stored.root, "-j", "2", "-P", "--json")
    assert outcome.code == VERIFICATION_FAILED
    (problem,) = json.loads(outcome.stdout)["problems"]
    assert problem == {"backup": FIRST, "path": f"backups/{FIRST}/data/base/5/16385", "message": "it is missing"}
    outcome = run_pgwal("verify", "--repo", stored.root)
    assert outcome.code == VERIFICATION_FAILED
    assert outcome.stdout.splitlines()[0] == f"backups/{FIRST}/data/base/5/16385: it is missing"
    assert outcome.stdout.endswith("1 problem\n")
    assert_failed(run_pgwal("verify", "x", "--repo", stored.root), FAILED, "there is no backup x", "pgwal list")


# ---- WAL of real servers, across a change of timeline


def wal_problems(repository: Repository, ranges: Sequence[LsnRange]) -> list[Problem]:
    pieces, room = list(stored_wal.wal_pieces(repository, ranges, opens_files=True)), Room(repository)
    verdicts = [(piece, stored_wal.verify_wal(room, lambda _: None, piece)) for piece in pieces]
    return list(stored_wal.all_problems(repository, verdicts))


@pytest.mark.parametrize("major", [13, 14, 15, 16, 17, 18])
def test_recorded_wal_of_real_servers_and_its_summaries_agree(tmp_path: Path, major: int) -> None:
    recorded = ROOT / "fixtures" / "wal" / f"pg{major}"
    repository = Repository.open_or_create(tmp_path / "repo", identity_of(recorded, major))
    for name in ("wal", "summaries"):
        source = recorded if name == "wal" else recorded / name
        for path in (path for path in source.iterdir() if path.is_file() and path.name[0] == "0"):
            shutil.copy(path, tmp_path / "repo" / name)
    (switch,) = repository.wal.history(2).switches
    summaries = repository.summaries.ranges()
    # Around summaries that were left out lies WAL of wal_level = minimal.
    runs = [part for timeline_id in (1, 2) for part in join(of_timeline(summaries, timeline_id), repository.geometry)]
    assert (runs[-1].timeline_id, runs[-1].start, runs[-2].end) == (2, switch.switch_lsn, switch.switch_lsn)
    assert wal_problems(repository, runs) == []
    for part in summaries:
        # What says less than WAL does is found wherever it is.
        content = repository.summaries.read(part)
        (key, changes), *_ = [*content.entries()] or [(None, None)]
        if key is None or changes is None:
            continue
        changes.blocks.add(4_000_000)
        repository.summaries.write(part, content, repository.summaries.link(part))
    problems = wal_problems(repository, runs)
    assert len(problems) == sum(1 for part in summaries if len(repository.summaries.read(part)))
    assert all("what the WAL of its range says" in problem.message for problem in problems)


def of_timeline(ranges: list[LsnRange], timeline_id: int) -> list[LsnRange]:
    return [part for part in ranges if part.timeline_id == timeline_id]


def identity_of(recorded: Path, major: int) -> RepositoryIdentity:
    directory, wal_format = open_wal_directory(LocalStore(recorded))
    assert wal_format.major == major
    content = next(directory.read(*first_position(directory)))
    header = LongPageHeader.parse(content[:40])
    return RepositoryIdentity(header.system_identifier, directory.geometry.segment_size, major)


def first_position(directory: WalDirectory) -> tuple[int, Lsn]:
    first = directory.segments()[0]
    return first.timeline_id, directory.geometry.segment_start(first.segment_no)
