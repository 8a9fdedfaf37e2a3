"""What list, plan, expire and map take where the cluster is large: repositories of which only the catalogue is there.

One has a full backup and two incremental ones of a database of relations of a terabyte, in files of a gigabyte, with
the WAL of some days and the summary of a window in which a million blocks changed.  A plain backup is listed by files;
a packed one by frames of a megabyte, too, of which each terabyte has a million.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.changes import write_summary
from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, run_command
from pgwal.backup.backup_file import BackupFile, BackupTotals, encode_file
from pgwal.backup.backup_id import parse_backup_id
from pgwal.backup.entry import BackupEntry
from pgwal.backup.entry_document import encode_entry
from pgwal.backup.incremental_file import incremental_file_size
from pgwal.backup.pack_table import Extent, Frame, Pack, PackedContents
from pgwal.backup.source import SourceFile
from pgwal.engine.copy import planned_bytes
from pgwal.engine.initialise import initialise
from pgwal.lsn import Lsn
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.pack_pool import pack_object
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT, PLAIN_FORMAT, StorageFormat
from pgwal.segment import WalGeometry

_GB, _TB = 1 << 30, 1 << 40
_PLAIN = {"1 TB": _TB, "32 TB": 32 * _TB, "1 PB": 1024 * _TB}
_PACKED = {"1 TB": _TB, "4 TB": 4 * _TB}
"""Time, memory and the size of entries grow with these: a petabyte's would be a thousand times those of a terabyte."""
_SEGMENTS = {_TB: 1_000, 4 * _TB: 4_000, 32 * _TB: 10_000, 1024 * _TB: 50_000}
_CHANGED_BLOCKS = 1_000_000
_SEGMENT_SIZE = 16 << 20
_GEOMETRY = WalGeometry(_SEGMENT_SIZE)
_IDENTITY = RepositoryIdentity(1, _SEGMENT_SIZE, 18)
_IDS = ("20261122T101530Z_full", "20261123T101530Z_incr", "20261124T101530Z_incr")
_PACK_FRAMES = 256
_FRAME = 1 << 20
_STORED_FRAME = 400_000
"""What compression leaves of a frame."""


def run(context: Context) -> list[Comparison]:
    """Measure each command once for each size: nothing is held against anything."""
    found = []
    for form, sizes in ((PLAIN_FORMAT, _PLAIN), (DEFAULT_PACKED_FORMAT, _PACKED)):
        for name, size in sizes.items():
            directory = context.scratch / f"{form.files.value}-{size // _TB}"
            _make(directory, form, size)
            found.append(_measured(context, directory, f"catalogue of {name}, {form.files.value}"))
    return found


def _measured(context: Context, directory: Path, title: str) -> Comparison:
    repo = ("--repo", directory)
    window = ("--from", str(_start(0)), "--to", str(_start(1)))
    entry_bytes = (directory / "backups" / _IDS[0] / "backup.json").stat().st_size
    commands = {
        "list": context.run_pgwal("list", *repo),
        "plan of an incremental": run_command(
            [sys.executable, "-m", "benchmarks.catalogue", directory], context.environment
        ),
        "expire --dry-run": context.run_pgwal("expire", *repo, "--keep-full", "1", "--dry-run"),
        "map": context.run_pgwal("map", *repo, *window),
    }
    # What is stored is the entry of one backup.
    commands = {name: Measurement(*each[:3], entry_bytes) for name, each in commands.items()}
    return Comparison(title, commands, ranked=False)


# ---- the repository


def _start(number: int) -> Lsn:
    return Lsn((1 + number) * _SEGMENT_SIZE)


def _make(directory: Path, form: StorageFormat, size_bytes: int) -> None:
    place = LocalPlace(directory)
    initialise(place, form)
    Repository.open_or_create(place, _IDENTITY)
    for number in range(1, _SEGMENTS[size_bytes]):
        # Of which nothing is written: files that have a size and no content.
        with (directory / "wal" / _GEOMETRY.file_name(1, number)).open("wb") as file:
            file.truncate(_SEGMENT_SIZE)
    write_summary(directory / "summaries", size_bytes, _CHANGED_BLOCKS, is_linked=True)
    is_packed = form == DEFAULT_PACKED_FORMAT
    for number, backup_id in enumerate(_IDS):
        folder = directory / "backups" / backup_id
        (folder / "data").mkdir(parents=True)
        contents = _contents(size_bytes, number) if is_packed else None
        entry = _entry(number, size_bytes, contents)
        files = _files(size_bytes, number, is_packed=is_packed)
        with (folder / "backup.json").open("wb") as file:
            file.writelines(encode_entry(entry, map(encode_file, files), contents))
        _make_packs(directory, () if contents is None else contents.packs)


def _entry(number: int, size_bytes: int, contents: PackedContents | None) -> BackupEntry:
    backup_id = _IDS[number]
    started, kind = parse_backup_id(backup_id)
    count = size_bytes // _GB
    stored = count * _stored_bytes(size_bytes, number)[0]
    return BackupEntry(
        backup_id=backup_id,
        kind=kind,
        prior_id=_IDS[number - 1] if number else None,
        system_identifier=_IDENTITY.system_identifier,
        major=_IDENTITY.major,
        start_lsn=_start(number),
        start_timeline_id=1,
        stop_lsn=Lsn(_start(number) + _SEGMENT_SIZE // 2),
        stop_timeline_id=1,
        label="",
        started_at=started.isoformat(),
        finished_at=started.isoformat(),
        wal_segment_size=_SEGMENT_SIZE,
        data_checksums=True,
        tablespaces={},
        totals=BackupTotals(count, count if number else 0, size_bytes, stored),
        packed_size_bytes=None if contents is None else contents.size_bytes,
    )


def _paths(size_bytes: int) -> Iterator[str]:
    for relation in range(-(-size_bytes // _TB)):
        names = sorted(f"{16384 + relation}.{part}" if part else str(16384 + relation) for part in range(1024))
        yield from (f"base/5/{name}" for name in names)


def _stored_bytes(size_bytes: int, number: int) -> tuple[int, int]:
    """Return how much of each file a backup stores, and how many blocks: each has its share of those that changed."""
    blocks = 0 if number == 0 else max(1, _CHANGED_BLOCKS // (size_bytes // _GB))
    return (_GB if number == 0 else incremental_file_size(blocks)), blocks


def _files(size_bytes: int, number: int, *, is_packed: bool) -> Iterator[BackupFile]:
    stored, blocks = _stored_bytes(size_bytes, number)
    digest = "0" * 32
    for at, path in enumerate(_paths(size_bytes)):
        extents = tuple(_extents(at, stored)) if is_packed else ()
        if number == 0:
            yield BackupFile(path, _GB, stored, 0o600, 0, digest, extents=extents)
        else:
            length = _GB // BLOCK_SIZE
            yield BackupFile(path, _GB, stored, 0o600, 0, digest, length, blocks, digest, extents)


def _extents(at: int, stored_bytes: int) -> Iterator[Extent]:
    """Yield where a file lies: a large one in packs of its own, several small ones in one, each in its own frames."""
    frames = -(-stored_bytes // _FRAME)
    if frames >= _PACK_FRAMES:
        first = at * frames // _PACK_FRAMES
        yield from (Extent(first + part, 0, 0, _PACK_FRAMES * _FRAME) for part in range(frames // _PACK_FRAMES))
        return
    files = _PACK_FRAMES // frames
    yield Extent(at // files, at % files * frames, 0, stored_bytes)


def _contents(size_bytes: int, number: int) -> PackedContents:
    *_, last = _extents(size_bytes // _GB - 1, _stored_bytes(size_bytes, number)[0])
    packs = []
    for pack_number in range(last.pack + 1):
        pack = Pack(f"{number * 1_000_000_000 + pack_number:032x}")
        for frame in range(_PACK_FRAMES):
            offset = len(pack.header) + frame * _STORED_FRAME
            pack.add(Frame(offset, _STORED_FRAME, _FRAME, bytes(15) + b"1", bytes(15) + b"2"))
        pack.size_bytes = len(pack.header) + _PACK_FRAMES * _STORED_FRAME
        packs.append(pack)
    return PackedContents(packs, [])


def _make_packs(directory: Path, packs: Iterable[Pack]) -> None:
    for pack in packs:
        path = directory / pack_object(pack.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(pack.size_bytes)


# ---- the plan, in a process of its own


def main() -> None:
    """Plan a backup: which bytes of which files to read, by the map of the window and the files of the prior backup."""
    repository = Repository.open(LocalPlace(Path(sys.argv[1])))
    (summary,) = repository.summaries.ranges()
    changes = repository.summaries.read(summary)

    def prior() -> Iterator[BackupFile]:
        return repository.catalogue.files(_IDS[1])

    listed = (SourceFile(file.path, file.size_bytes, 0.0) for file in prior())
    print(planned_bytes(listed, prior(), changes))


if __name__ == "__main__":
    main()
