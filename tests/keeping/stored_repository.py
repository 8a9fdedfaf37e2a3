"""A small repository, built without a server: a full backup, two incrementals on it, WAL of two windows, summaries."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from core.wal_builder import RM_HEAP, BlockSpec, RecordSpec, WalBuilder

from pgwal.backup.backup_file import BackupFile, BackupTotals
from pgwal.backup.backup_id import parse_backup_id
from pgwal.backup.entry import BackupEntry
from pgwal.backup.exclusion import required_directories
from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.manifest import MANIFEST_NAME, FileChecksum, ManifestWriter
from pgwal.checksum import content_digest, crc32c
from pgwal.control_file import CONTROL_FILE_SIZE
from pgwal.engine.initialise import initialise
from pgwal.lsn import Lsn
from pgwal.postgres_version import version_of_major
from pgwal.repository.address import Address, place_at
from pgwal.repository.layout import STORAGE_FORMAT_NAME, WAL_DIRECTORY, RepositoryIdentity
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import PLAIN_FORMAT, StorageFormat
from pgwal.summary.summarizer import Summarizer
from pgwal.timeline import TimelineHistory
from pgwal.wal import layout
from pgwal.wal.page_magic import wal_format_of_major

MB = 1 << 20
MAJOR = 16
SYSTEM_IDENTIFIER = 0x1234567890ABCDEF
FULL, FIRST, SECOND = "20261122T101530Z_full", "20261122T111530Z_incr", "20261122T121530Z_incr"
TABLE = "base/5/16384"
SECOND_FULL, ON_SECOND, THIRD_FULL = "20261123T101530Z_full", "20261123T111530Z_incr", "20261124T101530Z_full"
SEGMENT_COUNT = 9


@dataclass(frozen=True)
class Stored:
    """The repository, and what is known of its WAL: (position, length) of each record."""

    repository: Repository
    records: list[tuple[Lsn, int]]

    @property
    def root(self) -> Path:
        assert self.repository.place.directory is not None
        return self.repository.place.directory


def build_repository(
    path: Address, segment_count: int = 3, *, storage_format: StorageFormat = PLAIN_FORMAT, seed: int = 1
) -> Stored:
    """Build it with WAL segments from number 1 on; the backups are in the first three, of files by ``seed``."""
    place = place_at(path)
    if storage_format != place.default_format and not place.store.exists(STORAGE_FORMAT_NAME):
        initialise(place, storage_format)
    repository = Repository.open_or_create(path, RepositoryIdentity(SYSTEM_IDENTIFIER, MB, MAJOR))
    wal = build_wal(repository, segment_count)
    starts = [Lsn(number * MB + 40) for number in (1, 2, 3)]
    stops = [next(r.end_lsn for r in wal.records[5:] if r.lsn > start) for start in starts]
    random = Random(seed)
    whole = {TABLE: random.randbytes(3 * 8192), "base/5/16385": random.randbytes(8192), "base/5/PG_VERSION": b"16\n"}
    store_backup(repository, FULL, None, starts[0], stops[0], whole)
    changed = {"base/5/16385": random.randbytes(8192), "base/5/PG_VERSION": b"16\n"}
    blocks = {TABLE: (2, 4, {1: random.randbytes(8192), 2: random.randbytes(8192), 3: random.randbytes(8192)})}
    store_backup(repository, FIRST, FULL, starts[1], stops[1], changed, blocks)
    blocks = {TABLE: (4, 4, {0: random.randbytes(8192)})}
    store_backup(repository, SECOND, FIRST, starts[2], stops[2], changed, blocks)
    return Stored(repository, [(record.lsn, record.total_length) for record in wal.records])


def build_chains(path: Address, storage_format: StorageFormat = PLAIN_FORMAT, *, seed: int = 1) -> Stored:
    """Build it with three chains, which start in segments 1 to 3, 5 and 6, and 7."""
    stored = build_repository(path, SEGMENT_COUNT, storage_format=storage_format, seed=seed)
    whole = {TABLE: bytes(8192)}
    for backup_id, prior_id, number in ((SECOND_FULL, None, 5), (ON_SECOND, SECOND_FULL, 6), (THIRD_FULL, None, 7)):
        start = Lsn(number * MB + 40)
        stop = next(Lsn(lsn) for lsn, _ in stored.records if lsn > start + 4000)
        with stored.repository.lock_backups():
            store_backup(stored.repository, backup_id, prior_id, start, stop, whole)
    return stored


def build_wal(repository: Repository, segment_count: int) -> WalBuilder:
    """Write segments, which begin with a checkpoint, and their summaries."""
    wal = WalBuilder(MAJOR, start_lsn=MB, system_identifier=SYSTEM_IDENTIFIER)
    for segment in range(segment_count):
        shutdown = layout.XLOG_CHECKPOINT_SHUTDOWN
        wal.append(RecordSpec(layout.RM_XLOG, shutdown, main_data=checkpoint(Lsn((segment + 1) * MB + 40))))
        for number in range(60):
            block = BlockSpec(0, block_no=number % 7 + segment, data=bytes([number]) * 30)
            wal.append(RecordSpec(RM_HEAP, 0, 700, (block,), bytes(number * 5)))
        wal.append_switch()
    whole = wal.wal_to_segment_end()
    for segment in range(segment_count):
        name = repository.geometry.file_name(1, segment + 1)
        repository.store.put(f"{WAL_DIRECTORY}/{name}", whole[segment * MB : (segment + 1) * MB], replace=True)
    summarizer = Summarizer(1, wal_format_of_major(MAJOR), repository.geometry, Lsn(MB))
    summarizer.feed(whole)
    for summary in summarizer.take_finished():
        repository.summaries.write(summary.range, summary.block_map, summary.link)
    assert repository.summaries.ranges()
    return wal


def checkpoint(redo_lsn: Lsn) -> bytes:
    """Return the payload of a checkpoint record, of which pg_control has a copy."""
    return struct.pack("<QIIB", redo_lsn, 1, 1, True) + bytes(range(71))


def control_file(checkpoint_lsn: Lsn) -> bytes:
    """Return that of a server whose latest checkpoint is at a position, which is its redo position as well."""
    catalog_version = version_of_major(MAJOR).catalog_version
    content = bytearray(CONTROL_FILE_SIZE)
    struct.pack_into("<QII", content, 0, SYSTEM_IDENTIFIER, 1300, catalog_version)
    struct.pack_into("<Q", content, 32, checkpoint_lsn)
    content[40 : 40 + 88] = checkpoint(checkpoint_lsn)
    struct.pack_into("<IIII", content, 216, 8192, 131072, 8192, MB)
    struct.pack_into("<I", content, 252, 1)
    struct.pack_into("<I", content, 288, crc32c(bytes(content[:288])))
    return bytes(content)


def label(start: Lsn, prior_start: Lsn | None, checkpoint_lsn: Lsn | None = None) -> bytes:
    text = f"""\
START WAL LOCATION: {start} (file 0000000100000000{start // MB:08X})
CHECKPOINT LOCATION: {checkpoint_lsn or start}
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-22 12:49:32 UTC
LABEL: test
START TIMELINE: 1
"""
    if prior_start is not None:
        text += f"INCREMENTAL FROM LSN: {prior_start}\nINCREMENTAL FROM TLI: 1\n"
    return text.encode()


def store_backup(
    repository: Repository,
    backup_id: str,
    prior_id: str | None,
    start: Lsn,
    stop: Lsn,
    whole: dict[str, bytes],
    blocks: dict[str, tuple[int, int, dict[int, bytes]]] | None = None,
) -> BackupEntry:
    """Store a backup of whole files and of relation files by (truncation block length, length, blocks)."""
    prior = None if prior_id is None else repository.catalogue.entry(prior_id)
    manifest = ManifestWriter(MAJOR, SYSTEM_IDENTIFIER)
    parts = [manifest.header()]
    totals = BackupTotals()
    always = {
        "PG_VERSION": b"16\n",
        "global/pg_control": control_file(start),
        "backup_label": label(start, prior.start_lsn if prior is not None else None),
    }
    with repository.catalogue.stage(backup_id) as staged:
        for directory in required_directories(MAJOR):
            staged.data.make_directory(directory)
        for file, content in [*_whole(always | whole), *_incremental(blocks or {})]:
            written = staged.data.write(file.stored_path, [content])
            staged.add_file(file._replace(extents=written.extents))
            totals = totals.plus(file)
            checksum = FileChecksum("CRC32C")
            checksum.update(content)
            parts.append(manifest.file_entry(file.stored_path, len(content), 0, "CRC32C", checksum.hexdigest()))
        staged.data.write(MANIFEST_NAME, [*parts, manifest.finish([])])
        staged.data.sync()
        packed = staged.data.contents()
        entry = entry_of(backup_id, prior_id, start, stop, totals, None if packed is None else packed.size_bytes)
        staged.publish(entry)
    return entry


def entry_of(
    backup_id: str,
    prior_id: str | None,
    start: Lsn,
    stop: Lsn,
    totals: BackupTotals,
    packed_size_bytes: int | None = None,
) -> BackupEntry:
    """Return the entry of a backup that was taken on timeline 1, within the second in which it began."""
    started, kind = parse_backup_id(backup_id)
    return BackupEntry(
        backup_id=backup_id,
        kind=kind,
        prior_id=prior_id,
        system_identifier=SYSTEM_IDENTIFIER,
        major=MAJOR,
        start_lsn=start,
        start_timeline_id=1,
        stop_lsn=stop,
        stop_timeline_id=1,
        label="test",
        started_at=started.isoformat(),
        finished_at=started.isoformat(),
        wal_segment_size=MB,
        data_checksums=True,
        tablespaces={},
        totals=totals,
        packed_size_bytes=packed_size_bytes,
    )


def _whole(files: dict[str, bytes]) -> Iterable[tuple[BackupFile, bytes]]:
    for path, content in files.items():
        yield BackupFile(path, len(content), len(content), 0o600, 0, content_digest(content)), content


def _incremental(files: dict[str, tuple[int, int, dict[int, bytes]]]) -> Iterable[tuple[BackupFile, bytes]]:
    for path, (truncation_block_length, length, blocks) in files.items():
        header = IncrementalHeader(truncation_block_length, array("I", blocks))
        assert header.reconstructed_block_count == length
        content = header.encode() + b"".join(blocks.values())
        yield (
            BackupFile(
                path,
                length * 8192,
                len(content),
                0o600,
                0,
                content_digest(content),
                truncation_block_length,
                len(blocks),
                content_digest(header.encode()) if blocks else None,
            ),
            content,
        )


def history(timeline_id: int, *switches: tuple[int, int]) -> TimelineHistory:
    text = "".join(f"{parent}\t{Lsn(lsn)}\tbefore\n" for parent, lsn in switches)
    return TimelineHistory.decode(timeline_id, text.encode())
