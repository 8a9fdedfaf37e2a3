"""What was sealed once is opened for ever, sealed the same with the same key, and lies where docs/formats.md says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from encryption.golden_objects import DIRECTORY, FILES, OBJECTS, golden
from keeping.stored_repository import FIRST

from pgwal.backup.entry_document import decode_contents
from pgwal.encryption.container import FRAME_BYTES, MAGIC, TAG_BYTES, SealedFor, sealed_pieces
from pgwal.engine.initialise import initialise
from pgwal.errors import FormatError, KeyRequired, PgwalError, WrongKey
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.pack_pool import pack_object
from pgwal.repository.repository import Repository
from pgwal.repository.sealed_store import SealedStore
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT
from pgwal.repository.store import as_sealing

PACK = next(str(path.relative_to(DIRECTORY)) for path in DIRECTORY.glob("packs/*/*"))
SEALED = [
    str(path.relative_to(DIRECTORY))
    for path in sorted(DIRECTORY.rglob("*"))
    if path.is_file() and path.read_bytes().startswith(MAGIC)
]


def files_of(place: MemoryPlace) -> dict[str, bytes]:
    (data,) = Repository.open(place).catalogue.data(FIRST)
    found = {}
    for path in FILES:
        content = data.open(path)
        found[path] = content.read_at(0, content.size_bytes)
    return found


def test_what_was_sealed_once_is_opened() -> None:
    place = golden()
    repository = Repository.open(place)
    assert {name: repository.store.get(name) for name in OBJECTS} == OBJECTS
    assert files_of(place) == FILES
    (data,) = repository.catalogue.data(FIRST)
    assert list(data.damage(range(data.pack_count))) == list(data.damage(range(data.pack_count), of_unread=True)) == []


def test_an_identity_alone_opens_all() -> None:
    assert files_of(golden(metadata_key=False)) == FILES


def test_the_metadata_key_alone_opens_the_catalogue_and_nothing_else() -> None:
    place = golden(identity=False)
    repository = Repository.open(place)
    assert [entry.backup_id for entry in repository.catalogue.entries()] == [FIRST]
    assert [file.path for file in repository.catalogue.files(FIRST)] == list(FILES)
    (data,) = repository.catalogue.data(FIRST)
    assert data.open("backup_label").read_at(0, 100) == FILES["backup_label"]
    assert list(data.damage(range(data.pack_count), of_unread=True)) == []
    with pytest.raises(KeyRequired, match="private key"):
        data.open("base/5/16384").read_at(0, 1)
    with pytest.raises(KeyRequired, match="private key"):
        repository.store.get("wal/000000010000000000000001.zst")


def test_no_key_at_all_opens_nothing() -> None:
    with pytest.raises(KeyRequired, match="neither its metadata key nor an identity"):
        Repository.open(golden(identity=False, metadata_key=False))


@pytest.mark.parametrize("name", [name for name in SEALED if not name.startswith("packs/")])
def test_it_is_sealed_the_same(name: str) -> None:
    place = golden()
    store = Repository.open(place).store
    assert isinstance(store, SealedStore)
    kind = SealedFor.RECIPIENTS if name.endswith(".zst") else SealedFor.METADATA
    stored = place.store.get(name)
    header = stored[: kind.header_bytes]
    cipher = store.keys.opening(header, name, kind, name)
    assert b"".join(sealed_pieces(cipher, header, [store.get(name)])) == stored


def test_an_object_lies_as_the_documentation_says() -> None:
    place = golden()
    stored = place.store.get("wal/000000010000000000000001.zst")
    assert stored[:8] == b"pgwalenc"
    assert list(stored[8:12]) == [1, 1, 1, 0]
    assert int.from_bytes(stored[12:16], "little") == FRAME_BYTES == 65536
    length = int.from_bytes(stored[32:34], "little")
    assert stored[34:].startswith(b"age-encryption.org/v1\n")
    assert not any(stored[34 + length : 512])
    assert len(stored) == 512 + 600 * 256 + 3 * TAG_BYTES
    history = place.store.get("wal/00000002.history")
    assert (list(history[8:12]), len(history)) == ([1, 2, 0, 0], 32 + len(OBJECTS["wal/00000002.history"]) + 16)


def test_a_pack_lies_as_the_documentation_says() -> None:
    place = golden()
    repository = Repository.open(place)
    lines = repository.store.get(f"backups/{FIRST}/backup.json").splitlines(keepends=True)
    (pack,) = decode_contents(lines)[1].packs
    stored = place.store.get(pack_object(pack.name))
    assert stored[:512] == pack.header
    assert int.from_bytes(stored[12:16], "little") == 0
    assert stored[16:32].hex() == pack.name
    position = 512
    for number, frame in enumerate(pack):
        assert (frame.offset, int.from_bytes(stored[position : position + 4], "little")) == (position, number)
        position += frame.stored_size_bytes
    assert int.from_bytes(stored[position : position + 4], "little") == len(pack)
    assert len(stored) == position + 20 == pack.size_bytes
    sealing = as_sealing(repository.store)
    assert sealing is not None
    cipher = sealing.keys.opening(pack.header, pack_object(pack.name), SealedFor.RECIPIENTS, "pack")
    assert cipher.open(len(pack), stored[position + 4 :], "pack", last=True) == b""


def test_every_flipped_bit_of_a_pack_is_found_with_and_without_an_identity() -> None:
    for has_identity in (True, False):
        place = golden(identity=has_identity)
        stored = place.store.get(PACK)
        for at in range(len(stored)):
            changed = stored[:at] + bytes([stored[at] ^ 1 << at % 8]) + stored[at + 1 :]
            place.store.put(PACK, changed, replace=True)
            (data,) = Repository.open(place).catalogue.data(FIRST)
            assert list(data.damage(range(data.pack_count), of_unread=True)), at


@pytest.mark.parametrize("change", ["cut", "extend", "other", "swap"])
def test_a_pack_that_is_another_is_found(change: str) -> None:
    place = golden()
    stored = place.store.get(PACK)
    changed = {"cut": stored[:-20], "extend": stored + stored[-20:], "other": bytes(len(stored))}.get(change)
    if changed is None:
        # Two frames, or what is stored of one, in another order.
        middle = stored[512:-20]
        changed = stored[:512] + middle[::-1] + stored[-20:]
    place.store.put(PACK, changed, replace=True)
    (data,) = Repository.open(place).catalogue.data(FIRST)
    assert list(data.damage(range(data.pack_count))) or list(data.damage(range(data.pack_count), of_unread=True))
    if change in ("other", "swap"):
        with pytest.raises(FormatError):
            files_of(place)


@pytest.mark.parametrize("name", ["keys/00000001.json", "format.json", "pgwal.json"])
def test_what_is_in_clear_is_not_trusted(name: str) -> None:
    """Whatever letter or digit of it is changed: it is found, or the repository is the same one."""
    place = golden()
    stored = place.store.get(name)
    for match in re.finditer(rb"[0-9A-Za-z]", stored):
        at = match.start()
        changed = stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]
        place.store.put(name, changed, replace=True)
        try:
            repository = Repository.open(place)
            repository.catalogue.stage("20260101T000000Z-00000009")._discard()
            assert repository.place is not place, changed
            assert repository.store.get("wal/00000002.history") == OBJECTS["wal/00000002.history"]
            assert as_sealing(repository.store) is not None
        except PgwalError:
            continue
        assert name != "keys/00000001.json", changed


def test_a_repository_that_pretends_to_be_in_clear_is_refused() -> None:
    place = golden(identity=False)
    document = json.loads(place.store.get("pgwal.json"))
    del document["encrypted"]
    place.store.put("pgwal.json", json.dumps(document | {"pgwal-repository": 1}).encode(), replace=True)
    with pytest.raises(WrongKey, match="not encrypted"):
        Repository.open(place)


def test_no_repository_in_clear_is_begun_where_an_encrypted_one_was() -> None:
    place = golden(identity=False)
    for name, _ in list(place.store.list()):
        place.store.delete(name)
    with pytest.raises(WrongKey, match="not encrypted"):
        Repository.open_or_create(place, RepositoryIdentity(1, 1 << 20, 16))
    assert not list(place.store.list())
    with pytest.raises(WrongKey, match="not encrypted"):
        initialise(place, DEFAULT_PACKED_FORMAT)
    assert not list(place.store.list())


def test_files_that_were_to_be_plain_are_refused() -> None:
    place = golden(identity=False)
    repository = Repository.open(place)
    place.store.put("format.json", b'{"pgwal-format": 1, "files": "plain", "compression": "none"}', replace=True)
    with pytest.raises(WrongKey, match="encrypted"):
        repository.catalogue.stage("20260101T000000Z-00000009")
    assert not Path("backups").exists()
