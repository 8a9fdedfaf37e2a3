"""Objects that are sealed while they are received: what is stored opens to what was taken, however it came."""

from __future__ import annotations

import pytest
from encryption.golden_objects import KEYRING, METADATA_KEY, keys_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pgwal.encryption.container import FRAME_BYTES, Frames
from pgwal.errors import BrokenInvariant, StorageFull
from pgwal.repository.memory import MemoryStore
from pgwal.repository.sealed_store import SealedStore
from pgwal.segment import WalGeometry

GEOMETRY = WalGeometry(16 << 20)
SEGMENT, NEXT = "wal/000000010000000000000001", "wal/000000010000000000000002"

pieces = st.lists(
    st.sampled_from([1, 25, 8192, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES]), max_size=9
)


class FailingStore(MemoryStore):
    """Stores nothing the first time."""

    has_failed = False

    def put(self, name: str, content: object, *, replace: bool = False, durable: bool = True) -> None:
        if not self.has_failed:
            self.has_failed = True
            raise StorageFull("there is no room")
        super().put(name, content, replace=replace, durable=durable)  # type: ignore[arg-type]


def content_of(sizes: list[int]) -> list[bytes]:
    return [bytes([number + 1]) * size for number, size in enumerate(sizes)]


@given(sizes=pieces, data=st.data())
def test_frames_are_full_but_the_last_and_hold_all_that_came(sizes: list[int], data: st.DataObject) -> None:
    frames, found = Frames(), []
    for piece in content_of(sizes):
        found += [bytes(content) for content in frames.add(data.draw(st.sampled_from([piece, memoryview(piece)])))]
    assert all(len(content) == FRAME_BYTES for content in found)
    found.append(bytes(frames.last()))
    assert 0 < len(found[-1]) <= FRAME_BYTES or found == [b""]
    assert b"".join(found) == b"".join(content_of(sizes))


@settings(max_examples=50)
@given(first=pieces, second=pieces)
def test_what_was_sealed_as_it_came_opens(first: list[int], second: list[int]) -> None:
    raw = MemoryStore()
    store = SealedStore(raw, keys_of(KEYRING, METADATA_KEY), GEOMETRY)
    for name, sizes in ((SEGMENT, first), (NEXT, second)):
        sealer = store.sealer(name, sum(sizes))
        for piece in content_of(sizes):
            sealer.add(piece)
        assert not raw.exists(name)
        sealer.put()
        sealer.close()
    # The second had the memory of the first, which is stored all the same.
    for name, sizes in ((SEGMENT, first), (NEXT, second)):
        assert store.get(name) == b"".join(content_of(sizes))
        assert store.size(name) == sum(sizes)


@settings(max_examples=100)
@given(sizes=pieces, data=st.data())
def test_what_is_sealed_is_still_there(sizes: list[int], data: st.DataObject) -> None:
    """From any byte on, as far as it has come, before it is stored and afterwards."""
    sealer = SealedStore(MemoryStore(), keys_of(KEYRING, METADATA_KEY), GEOMETRY).sealer(SEGMENT, sum(sizes))
    content = b""
    for piece in content_of(sizes):
        sealer.add(piece)
        content += piece
        start = data.draw(st.integers(0, len(content)))
        assert b"".join(sealer.content_from(start)) == content[start:]
    sealer.put()
    start = data.draw(st.integers(0, len(content)))
    assert b"".join(sealer.content_from(start)) == content[start:]
    sealer.close()


def test_one_that_is_not_whole_is_not_stored() -> None:
    raw = MemoryStore()
    store = SealedStore(raw, keys_of(KEYRING, METADATA_KEY), GEOMETRY)
    sealer = store.sealer(SEGMENT, 3 * FRAME_BYTES)
    sealer.add(bytes(2 * FRAME_BYTES))
    with pytest.raises(BrokenInvariant):
        sealer.put()
    assert not list(raw.list())


def test_two_at_once_do_not_share_memory() -> None:
    store = SealedStore(MemoryStore(), keys_of(KEYRING, METADATA_KEY), GEOMETRY)
    sealers = {name: store.sealer(name, 2 * FRAME_BYTES) for name in (SEGMENT, NEXT)}
    for number, sealer in enumerate(sealers.values()):
        sealer.add(bytes([number]) * 2 * FRAME_BYTES)
    for sealer in sealers.values():
        sealer.put()
    assert [set(store.get(name)) for name in sealers] == [{0}, {1}]


def test_what_could_not_be_stored_is_sealed_anew() -> None:
    """Never with the nonces of the first time under its key: another content may be under way by then."""
    raw = FailingStore()
    store = SealedStore(raw, keys_of(KEYRING, METADATA_KEY), GEOMETRY)
    sealer = store.sealer(SEGMENT, 10)
    sealer.add(b"0123456789")
    with pytest.raises(StorageFull):
        sealer.put()
    again = store.sealer(SEGMENT, 10)
    again.add(b"9876543210")
    again.put()
    assert store.get(SEGMENT) == b"9876543210"
