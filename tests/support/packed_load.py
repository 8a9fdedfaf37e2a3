"""Write or read a packed backup of very many files, or of very long ones, and tell how much memory that took.

    python -m support.packed_load DIRECTORY files|frames|mebibytes write|read COUNT

Packs are thrown away as they come, and made up again as they are read, from zeros; only mebibytes are random bytes,
in frames of their real size, and cannot be read.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from pgwal.backup.backup_file import BackupFile, BackupTotals
from pgwal.backup.backup_id import BackupKind
from pgwal.backup.entry import BackupEntry
from pgwal.lsn import Lsn
from pgwal.repository import pack_stream
from pgwal.repository.backup_data import BackupData
from pgwal.repository.catalogue import Catalogue
from pgwal.repository.compression import Compression
from pgwal.repository.lease import Leases
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.staged_backup import StagedBackup
from pgwal.repository.storage_format import FileFormat, StorageFormat
from pgwal.repository.store import ByteRange, ObjectStore
from pgwal.repository.store_wrapper import StoreWrapper

ID = "20261122T101530Z_full"
WRITERS = 4
SMALL_FRAME = 4096
"""Of the long file: so that as many frames as a file of a terabyte has are those of one of 4 GB."""
SMALL_PACK = 1 << 20
"""A pack has 256 frames then, as ever."""
FILE_SIZE = 100


class ZeroPacks(StoreWrapper):
    """Another store, without the packs: those are zeros, and nobody keeps them."""

    def put(self, name: str, content: bytes | Iterable[bytes], *, replace: bool = False, durable: bool = True) -> None:
        if not name.startswith("packs/"):
            self._store.put(name, content, replace=replace, durable=durable)
            return
        for piece in (content,) if isinstance(content, bytes) else content:
            assert len(piece) <= pack_stream.FRAME_SIZE

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        if not name.startswith("packs/"):
            return self._store.get_ranges(name, ranges)
        return [bytes((each.end or 0) - each.start) for each in ranges]

    def _before(self, operation: str, name: str) -> None:
        pass


class ZeroPlace:
    """A local place with such a store."""

    directory: Path | None = None

    def __init__(self, directory: Path) -> None:
        self._place = LocalPlace(directory)
        self.store: ObjectStore = ZeroPacks(self._place.store)
        self.spool = self._place.spool

    @property
    def leases(self) -> Leases:
        return self._place.leases

    def make(self, folders: Iterable[str] = ()) -> None:
        self._place.make(folders)

    def require_trusted(self) -> None:
        self._place.require_trusted()

    def require_own(self) -> None:
        self._place.require_own()

    def require_suitable(self) -> None:
        self._place.require_suitable()


def write_files(place: ZeroPlace, count: int) -> None:
    """Store files from several threads, as a backup does."""
    content = bytes(FILE_SIZE)
    with StagedBackup(place, ID, StorageFormat(FileFormat.PACKED, Compression.parse("none"))) as staged:

        def store(numbers: range) -> list[BackupFile]:
            found = []
            for number in numbers:
                written = staged.data.write(path_of(number), (content,))
                found.append(
                    BackupFile(path_of(number), *2 * (FILE_SIZE,), 0o600, 0, written.digest, extents=written.extents)
                )
            return found

        totals = BackupTotals()
        with ThreadPoolExecutor(WRITERS) as pool:
            batch = 1000
            for start in range(0, count, WRITERS * batch):
                parts = [range(at, min(at + batch, count)) for at in range(start, start + WRITERS * batch, batch)]
                for stored in pool.map(store, parts):
                    for file in stored:
                        staged.add_file(file)
                        totals = totals.plus(file)
        publish(staged, totals)


def path_of(number: int) -> str:
    return f"base/{number // 100_000}/{16384 + number}"


def write_long(place: ZeroPlace, size_bytes: int, piece: bytes, compression: str) -> None:
    """Store long files of so many bytes each from several threads at once."""
    with StagedBackup(place, ID, StorageFormat(FileFormat.PACKED, Compression.parse(compression))) as staged:

        def store(number: int) -> BackupFile:
            written = staged.data.write(path_of(number), repeat(piece, size_bytes // len(piece)))
            return BackupFile(
                path_of(number), *2 * (written.size_bytes,), 0o600, 0, written.digest, extents=written.extents
            )

        totals = BackupTotals()
        with ThreadPoolExecutor(WRITERS) as pool:
            for file in pool.map(store, range(WRITERS)):
                staged.add_file(file)
                totals = totals.plus(file)
        publish(staged, totals)


def publish(staged: StagedBackup, totals: BackupTotals) -> None:
    staged.data.sync()
    packed = staged.data.contents()
    assert packed is not None
    staged.publish(
        BackupEntry(
            backup_id=ID,
            kind=BackupKind.FULL,
            prior_id=None,
            system_identifier=1,
            major=18,
            start_lsn=Lsn(1),
            start_timeline_id=1,
            stop_lsn=Lsn(2),
            stop_timeline_id=1,
            label="",
            started_at="2026-11-22T10:15:30+00:00",
            finished_at="2026-11-22T10:15:30+00:00",
            wal_segment_size=1 << 20,
            data_checksums=True,
            tablespaces={},
            totals=totals,
            packed_size_bytes=packed.size_bytes,
        )
    )


def read(place: ZeroPlace, count: int) -> None:
    """Read the entry, and a part of some hundred files, from several threads."""
    catalogue = Catalogue(place)
    (data,) = catalogue.data(ID)
    assert sum(1 for _ in catalogue.files(ID)) == count
    assert all(content == bytes(len(content)) for content in parts(data, count))


def parts(data: BackupData, count: int) -> Iterator[bytes]:
    def part(number: int) -> bytes:
        content = data.open(path_of(number % count))
        return content.read_at(content.size_bytes * (number % 7) // 7, 20_000)

    with ThreadPoolExecutor(WRITERS) as pool:
        yield from pool.map(part, range(0, 1000 * max(1, count // 1000), max(1, count // 1000)))


def peak_mb() -> float:
    """Return the most memory that this process had; see pgwal_process.peak_mb."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def main() -> None:
    directory, kind, act, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    place = ZeroPlace(directory)
    place.make()
    if kind == "frames":
        pack_stream.FRAME_SIZE = SMALL_FRAME
        defaults = pack_stream.PackStream.__init__.__kwdefaults__
        assert defaults is not None
        defaults["pack_size"] = SMALL_PACK
    if act == "read":
        read(place, WRITERS if kind == "frames" else count)
    elif kind == "files":
        write_files(place, count)
    elif kind == "frames":
        write_long(place, count // WRITERS * SMALL_FRAME, bytes(1 << 20), "none")
    else:
        write_long(place, count // WRITERS << 20, os.urandom(1 << 20), "zstd:1")
    print(peak_mb())


if __name__ == "__main__":
    main()
