"""Packed backups that were written once are read for ever, and written the same where no library has a say in it."""

from __future__ import annotations

import json

import pytest
from keeping.stored_repository import FIRST
from repository.golden_packs import FORMS, MOVED, files_of, golden, objects_of, write_moved, write_packed

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry_document import decode_contents
from pgwal.backup.pack_table import FRAME_SIZE, PACK_HEADER_SIZE, PACK_MAGIC, Pack
from pgwal.repository.catalogue import Catalogue
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.pack_pool import list_packs, pack_object
from pgwal.repository.storage_format import FileFormat, StorageFormat


def contents_of(place: MemoryPlace) -> tuple[list[Pack], list[str], list[BackupFile]]:
    lines = place.store.get(f"backups/{FIRST}/backup.json").splitlines(keepends=True)
    _, contents, files = decode_contents(lines)
    return list(contents.packs), list(contents.directories), list(files)


def read(place: MemoryPlace) -> dict[str, bytes]:
    (data,) = Catalogue(place).data(FIRST)
    assert list(data.damage(range(data.pack_count))) == []
    _, _, files = contents_of(place)
    found = {}
    for file in files:
        content = data.open(file.stored_path)
        assert content.size_bytes == file.stored_size_bytes
        found[file.stored_path] = content.read_at(0, content.size_bytes)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_what_was_written_once_is_read(form: str) -> None:
    place = golden(form)
    assert read(place) == files_of(form)
    packs, directories, files = contents_of(place)
    assert directories == ["base", "base/5", "global", "pg_tblspc"]
    assert [file.is_incremental for file in files].count(True) == 1
    assert {name for name, _ in list_packs(place.store)} == {pack.name for pack in packs}
    found = StorageFormat.of(place.store)
    assert (found.files, str(found.compression)) == (FileFormat.PACKED, {"none": "none", "zstd": "zstd:1"}[form])


def test_a_pack_is_what_the_documentation_says() -> None:
    """Magic, name, and then the frames, one behind the other; here they are as they are."""
    place = golden("none")
    packs, _, _ = contents_of(place)
    assert len(packs) > 1
    for pack in packs:
        content = place.store.get(pack_object(pack.name))
        assert content[:8] == PACK_MAGIC == b"PGWALPK1"
        assert content[8:PACK_HEADER_SIZE].hex() == pack.name
        position = 24
        for frame in pack:
            assert (frame.offset, frame.stored_size_bytes) == (position, frame.size_bytes)
            position += frame.stored_size_bytes
        assert len(content) == position == pack.size_bytes


def test_frames_that_were_moved_are_where_the_documentation_says() -> None:
    place = golden(MOVED)
    assert read(place) == files_of("none")
    assert objects_of(place) == objects_of(write_moved())
    packs, _, _ = contents_of(place)
    there = {name for name, _ in list_packs(place.store)}
    gone, name = [pack for pack in packs if pack.name not in there], "f0" * 16
    assert (len(gone), there - {pack.name for pack in packs}) == (2, {name})
    document = json.loads(place.store.get(f"moved_frames/{name}"))
    assert document.keys() == {"pgwal-moved-frames", "packs", "from", "digest"}
    head, *frames = document["packs"]
    content = place.store.get(f"packs/f0/{name}")
    assert (head["pack"], head["size"], head["frames"]) == (name, len(content), len(frames))
    # All that entries say of a frame but its place holds on.
    was = [(pack, frame) for pack in gone for frame in pack]
    assert [frame[1:] for frame in frames] == [[f.stored_size_bytes, f.size_bytes, f.digest.hex()] for _, f in was]
    assert document["from"] == [[pack.name, *(frame.offset for frame in pack)] for pack in gone]
    before = golden("none")
    for (offset, length, *_), (pack, frame) in zip(frames, was, strict=True):
        old = before.store.get(pack_object(pack.name))
        assert content[offset : offset + length] == old[frame.offset : frame.offset + length]


def test_frames_that_are_compressed_have_up_to_a_mebibyte() -> None:
    packs, _, files = contents_of(golden("zstd"))
    sizes = [frame.size_bytes for pack in packs for frame in pack]
    assert max(sizes) == FRAME_SIZE
    as_they_are = [frame.size_bytes for pack in packs for frame in pack if frame.stored_size_bytes == frame.size_bytes]
    assert as_they_are == [3], "what compression makes no smaller"
    assert max(len(file.extents) for file in files) > 1


def test_what_is_not_compressed_is_written_the_same() -> None:
    assert objects_of(write_packed("none")) == objects_of(golden("none"))


def test_what_is_compressed_is_cut_the_same() -> None:
    """What zstd makes of it may differ between its versions, and with it where a pack ends."""
    written = write_packed("zstd")
    assert read(written) == files_of("zstd")
    names = ("path", "size_bytes", "stored_size_bytes", "mode", "mtime_epoch_s", "digest")
    old, new = (contents_of(place) for place in (golden("zstd"), written))
    assert [[getattr(file, name) for name in names] for file in new[2]] == [
        [getattr(file, name) for name in names] for file in old[2]
    ]
    sizes = [[frame.size_bytes for pack in packs for frame in pack] for packs, _, _ in (old, new)]
    assert sizes[0] == sizes[1]
