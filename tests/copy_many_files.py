"""Copy a simulated data directory of many files, full and incremental, and print the peak of resident memory in kB.

    python tests/copy_many_files.py DIRECTORY COUNT JOBS

A process of its own, because memory that Python has once had is never all given back.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.backup_id import BackupKind
from pgwal.backup.entry import BackupEntry
from pgwal.backup.manifest import ManifestWriter
from pgwal.backup.source import SourceDirectory, SourceFile, Unread, WantedContent, read_each
from pgwal.backup.walk import EntryKind, EntryStatus, walk
from pgwal.engine.copy import Copy, CopyRules
from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import BLOCK_SIZE, Fork
from pgwal.repository.catalogue import Catalogue
from pgwal.repository.local_place import LocalPlace
from pgwal.summary.block_map import BlockMap, RelationFork

FULL, INCREMENTAL = "20261122T101530Z_full", "20261122T111530Z_incr"
FIRST = 16384
PAGE = bytes(BLOCK_SIZE)


class ManyFiles:
    """A data directory with one database: ``count`` relations, of which the first thousand hold two pages."""

    def __init__(self, count: int) -> None:
        self._count = count

    def names(self, directory: str) -> list[str]:
        below = {"": ["base"], "base": ["5"]}
        return below.get(directory) or [str(FIRST + number) for number in range(self._count)]

    def statuses(self, directory: str, names: Sequence[str]) -> Iterator[EntryStatus | None]:
        for name in names:
            if directory != "base/5":
                yield EntryStatus(EntryKind.DIRECTORY, 0, 0.0)
            else:
                yield EntryStatus(EntryKind.FILE, 2 * BLOCK_SIZE if int(name) < FIRST + 1000 else 0, 0.0)

    def list(
        self, emptied: Collection[str] = (), tablespaces: Collection[int] | None = None
    ) -> Iterator[SourceDirectory | SourceFile]:
        return walk(self, 18, print, emptied, tablespaces)

    def read_to_end(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        raise NotImplementedError

    def read_file(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        assert path
        return iter([bytes(size_bytes)])

    def read_blocks(self, path: str, block_numbers: array[int]) -> Iterator[bytes] | None:
        assert path
        return iter([PAGE] * len(block_numbers))

    def read_small(self, wanted: Sequence[WantedContent]) -> Sequence[bytes | Unread | None]:
        return read_each(self, wanted)

    def read_control_file(self) -> bytes:
        return bytes(8192)


def entry(backup_id: str, copy: Copy) -> BackupEntry:
    is_full = backup_id == FULL
    return BackupEntry(
        backup_id=backup_id,
        kind=BackupKind.FULL if is_full else BackupKind.INCREMENTAL,
        prior_id=None if is_full else FULL,
        system_identifier=1,
        major=18,
        start_lsn=Lsn(1 if is_full else 3),
        start_timeline_id=1,
        stop_lsn=Lsn(2 if is_full else 4),
        stop_timeline_id=1,
        label="",
        started_at="2026-11-22T10:15:30+00:00",
        finished_at="2026-11-22T10:15:31+00:00",
        wal_segment_size=16 << 20,
        data_checksums=True,
        tablespaces={},
        totals=copy.totals,
    )


def main(directory: Path, count: int, jobs: int) -> None:
    catalogue = Catalogue(LocalPlace(directory))
    changes = BlockMap()
    for number in range(1000):
        changes.mark(RelationFork(1663, 5, FIRST + number, Fork.MAIN), [1])
    source = ManyFiles(count)
    for backup_id in (FULL, INCREMENTAL):
        start_s = time.monotonic()
        is_full = backup_id == FULL

        def prior_files(is_full: bool = is_full) -> Iterator[BackupFile]:
            return iter(()) if is_full else catalogue.files(FULL)

        rules = CopyRules(frozenset(), "CRC32C", None, Lsn(1))
        with (
            catalogue.stage(backup_id) as staged,
            Copy(
                [source] * jobs, None if is_full else changes, staged, ManifestWriter(18, 1), rules, lambda *_: None
            ) as copy,
        ):
            copy.copy_all(prior_files)
            assert copy.totals.incremental_file_count == (0 if is_full else min(count, 1000))
            assert copy.totals.file_count == count
            copy.write_manifest([LsnRange(1, Lsn(1), Lsn(2))])
            copy.data.sync()
            staged.publish(entry(backup_id, copy))
        print(f"{backup_id}: {time.monotonic() - start_s:.1f} s", file=sys.stderr)
    assert sum(1 for _ in catalogue.files(INCREMENTAL)) == count
    # Not that of getrusage(), which begins with the peak of whoever started this process.
    print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
