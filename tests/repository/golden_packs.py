"""The tiny packed backups of fixtures/packed: what is in them, and how they are written."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from keeping.stored_repository import FIRST, FULL, MAJOR, SYSTEM_IDENTIFIER, entry_of
from repository.test_packs import small_frames

from pgwal.backup.backup_file import BackupFile, BackupTotals
from pgwal.backup.entry_document import decode_packs
from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.manifest import MANIFEST_NAME, ManifestWriter
from pgwal.backup.pack_table import FRAME_SIZE
from pgwal.backup.pack_use import WornPack
from pgwal.lsn import Lsn
from pgwal.repository import pack_pool
from pgwal.repository.compression import Compression
from pgwal.repository.layout import STORAGE_FORMAT_NAME
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.pack_rewriting import rewrite_packs
from pgwal.repository.staged_backup import StagedBackup
from pgwal.repository.storage_format import FileFormat, StorageFormat

DIRECTORY = Path(__file__).parent.parent.parent / "fixtures" / "packed"
FORMS = {"none": 1, "zstd": FRAME_SIZE // 64}
"""Compression: how large a unit is; a frame has 64 units.  Only what is compressed can have frames of 1 MiB here."""
ORIGIN = "fixtures/make_fixtures.py --packed, from values made up"


def files_of(form: str) -> dict[str, bytes]:
    """Return what is stored, by stored path."""
    unit = FORMS[form]
    return {
        "PG_VERSION": b"16\n",
        "base/5/16384": b"".join(bytes([number]) * unit for number in range(250)),
        "base/5/INCREMENTAL.16385": IncrementalHeader(4, array("I")).encode(),
        "base/5/16386": b"",
        "base/5/\udcff": b"a name that is not UTF-8",
        "base/5/16387": bytes(64 * unit),
        "backup_label": b"START TIMELINE: 1\n",
        "global/pg_control": b"\1" * 70,
    }


def write_packed(form: str) -> MemoryPlace:
    """Write the backup, with names for its packs that are no secrets."""
    place, names = MemoryPlace(), (f"{number:02x}" * 16 for number in range(1, 100))
    storage_format = StorageFormat(FileFormat.PACKED, Compression.parse(form))
    place.store.put(STORAGE_FORMAT_NAME, storage_format.encode())
    totals = BackupTotals()
    with (
        small_frames(64 * FORMS[form], 200),
        pytest.MonkeyPatch.context() as patched,
        StagedBackup(place, FIRST, storage_format) as staged,
    ):
        patched.setattr(pack_pool, "new_pack_name", lambda: next(names))
        for directory in ("base/5", "global", "pg_tblspc"):
            staged.data.make_directory(directory)
        for path, content in files_of(form).items():
            size_bytes, digest, extents = staged.data.write(path, [content])
            file = BackupFile(path, size_bytes, size_bytes, 0o600, 1795344930, digest, extents=extents)
            if "INCREMENTAL." in path:
                file = file._replace(path="base/5/16385", size_bytes=4 * 8192)
                file = file._replace(truncation_block_length=4, copied_block_count=0)
            staged.add_file(file)
            totals = totals.plus(file)
        manifest = ManifestWriter(MAJOR, SYSTEM_IDENTIFIER)
        staged.data.write(MANIFEST_NAME, [manifest.header(), manifest.finish([])])
        staged.data.sync()
        packed = staged.data.contents()
        assert packed is not None
        staged.publish(entry_of(FIRST, FULL, Lsn(1 << 24), Lsn(1 << 25), totals, packed.size_bytes))
    return place


MOVED = "moved"
"""What is made of that which is not compressed when all of its first two packs is moved into a new one."""


def write_moved() -> MemoryPlace:
    """Write it, with a name for the new pack that is no secret."""
    place = write_packed("none")
    packs = decode_packs(place.store.get(f"backups/{FIRST}/backup.json").splitlines(keepends=True))[:2]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pack_pool, "new_pack_name", lambda: "f0" * 16)
        worn = [WornPack(pack.name, pack.size_bytes, list(pack)) for pack in packs]
        assert rewrite_packs(place, worn, lambda _: None) == worn
    pack_pool.remove_packs(place.store, [pack.name for pack in packs])
    return place


def objects_of(place: MemoryPlace) -> dict[str, bytes]:
    return {name: place.store.get(name) for name, _ in place.store.list()}


def make_packed(directory: Path = DIRECTORY) -> None:
    """Write the fixtures anew."""
    for form, place in {**{form: write_packed(form) for form in FORMS}, MOVED: write_moved()}.items():
        for name, content in objects_of(place).items():
            path = directory / form / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (directory / form / "ORIGIN").write_text(f"{ORIGIN}\n")


def golden(form: str) -> MemoryPlace:
    """Return the fixture as a place."""
    place, root = MemoryPlace(), DIRECTORY / form
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != "ORIGIN":
            place.store.put(str(path.relative_to(root)), path.read_bytes())
    return place
