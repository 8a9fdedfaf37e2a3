"""The container: whatever is done to a stored object is found, nonces never repeat, and ranges are what they would be.

Everything is held against the plain bytes: nothing of what is tested says what is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from encryption.golden_objects import KEYRING, METADATA_KEY, SECOND_KEYRING, keys_of
from hypothesis import given
from hypothesis import strategies as st

from pgwal.encryption import container
from pgwal.encryption.container import (
    FRAME_BYTES,
    FrameCipher,
    Header,
    SealedFor,
    opened,
    plain_size,
    sealed_pieces,
    stored_size,
)
from pgwal.errors import FormatError, PgwalError
from pgwal.repository.memory import MemoryStore
from pgwal.repository.sealed_store import SealedStore
from pgwal.repository.store import ByteRange, move
from pgwal.segment import WalGeometry

GEOMETRY = WalGeometry(16 << 20)
SEGMENT = "wal/000000010000000000000001.zst"
SUMMARY = "summaries/000000010000000001223870000000000123E910.summary"
ENTRY = "backups/20260101T000000Z-00000001/backup.json"
NAMES = [SEGMENT, SUMMARY, ENTRY, "wal/00000002.history", "receiver.json"]

# Around the borders of frames, which are large.
lengths = st.integers(0, 3).flatmap(
    lambda frames: st.integers(-3, 3).map(lambda more: max(0, frames * FRAME_BYTES + more))
)


def store_with(name: str, content: bytes) -> tuple[SealedStore, MemoryStore]:
    raw = MemoryStore()
    store = SealedStore(raw, keys_of(KEYRING, METADATA_KEY), GEOMETRY)
    store.put(name, content)
    return store, raw


def content_of(length: int) -> bytes:
    return bytes(number * 7 % 251 for number in range(251)) * (length // 251 + 1)


@given(length=lengths, sealed_for=st.sampled_from(SealedFor))
def test_sizes_follow_from_each_other(length: int, sealed_for: SealedFor) -> None:
    assert plain_size(stored_size(length, sealed_for), sealed_for) == length


@given(name=st.sampled_from(NAMES), length=lengths, cuts=st.lists(st.integers(0, 4 * FRAME_BYTES), max_size=4))
def test_what_was_put_in_pieces_is_got(name: str, length: int, cuts: list[int]) -> None:
    content = content_of(length)[:length]
    borders = [0, *sorted(min(cut, length) for cut in cuts), length]
    raw = MemoryStore()
    store = SealedStore(raw, keys_of(KEYRING, METADATA_KEY), GEOMETRY)
    store.put(name, (content[a:b] for a, b in pairwise(borders)))
    assert store.get(name) == content
    assert store.size(name) == length
    assert [size for _, size in store.list()] == [length]
    assert len(raw.get(name)) == (stored_size(length, SealedFor.METADATA) if name != SEGMENT else raw.size(name))


bounds = st.integers(0, 3 * FRAME_BYTES + 9)
ranges = st.lists(
    st.one_of(
        st.tuples(bounds, bounds).map(lambda pair: ByteRange(min(pair), max(pair))),
        st.builds(ByteRange, bounds),
        st.builds(ByteRange, st.integers(-2 * FRAME_BYTES, -1)),
    ),
    min_size=1,
    max_size=3,
)


@given(name=st.sampled_from([SEGMENT, SUMMARY]), length=lengths, wanted=ranges, again=ranges)
def test_ranges_are_those_of_what_is_inside(
    name: str, length: int, wanted: list[ByteRange], again: list[ByteRange]
) -> None:
    content = content_of(length)[:length]
    store, _ = store_with(name, content)
    for part in (wanted, again):
        assert store.get_ranges(name, part) == [content[start:end] for start, end in part]


def is_found(store: SealedStore, name: str, length: int) -> bool:
    """Tell whether reading an object fails: whole, in ranges, and in one range after the other as readers do."""
    outcomes = []
    for read in (_read_whole, _read_in_ranges, _read_on):
        try:
            read(SealedStore(store._store, store.keys, GEOMETRY), name, length)
        except FormatError:
            outcomes.append(True)
        else:
            outcomes.append(False)
    return all(outcomes)


def _read_whole(store: SealedStore, name: str, _: int) -> None:
    store.get(name)


def _read_in_ranges(store: SealedStore, name: str, length: int) -> None:
    store.get_ranges(name, [ByteRange(0, length + 1)])


def _read_on(store: SealedStore, name: str, _: int) -> None:
    position = 0
    while found := store.get_ranges(name, [ByteRange(position, position + FRAME_BYTES)])[0]:
        position += len(found)


LENGTHS = [1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES + 5]


@pytest.mark.parametrize("name", [SEGMENT, SUMMARY])
@pytest.mark.parametrize("length", [0, 5])
def test_every_flipped_bit_is_found(name: str, length: int) -> None:
    store, raw = store_with(name, content_of(length)[:length])
    stored = raw.get(name)
    for bit in range(8 * len(stored)):
        changed = bytearray(stored)
        changed[bit // 8] ^= 1 << bit % 8
        raw.put(name, bytes(changed), replace=True)
        with pytest.raises(FormatError):
            store.get(name)
    raw.put(name, stored, replace=True)
    store.get(name)


@given(name=st.sampled_from([SEGMENT, SUMMARY]), length=st.sampled_from(LENGTHS), data=st.data())
def test_whatever_is_changed_is_found(name: str, length: int, data: st.DataObject) -> None:
    store, raw = store_with(name, content_of(length)[:length])
    stored = raw.get(name)
    header = SealedFor.RECIPIENTS.header_bytes if name == SEGMENT else SealedFor.METADATA.header_bytes
    at = data.draw(st.integers(0, len(stored) - 1) | st.integers(header, len(stored) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "cut at a frame", "extend", "repeat"]))
    if kind == "flip":
        changed = stored[:at] + bytes([stored[at] ^ 0x40]) + stored[at + 1 :]
    elif kind == "cut":
        changed = stored[:at]
    elif kind == "cut at a frame":
        frames = (len(stored) - header - 1) // container.SEALED_FRAME_BYTES
        changed = stored[: header + data.draw(st.integers(0, frames)) * container.SEALED_FRAME_BYTES]
    elif kind == "extend":
        changed = stored + stored[at:]
    else:
        changed = stored + stored[header:]
    raw.put(name, changed, replace=True)
    assert is_found(store, name, length)


def frames_of(stored: bytes, header: int) -> list[bytes]:
    size = container.SEALED_FRAME_BYTES
    return [stored[at : at + size] for at in range(header, len(stored), size)]


@given(order=st.permutations(range(4)))
def test_frames_in_another_order_are_found(order: Sequence[int]) -> None:
    length = 4 * FRAME_BYTES
    store, raw = store_with(SEGMENT, content_of(length)[:length])
    stored, header = raw.get(SEGMENT), SealedFor.RECIPIENTS.header_bytes
    frames = frames_of(stored, header)
    raw.put(SEGMENT, stored[:header] + b"".join(frames[number] for number in order), replace=True)
    assert is_found(store, SEGMENT, length) == (list(order) != [0, 1, 2, 3])


def test_frames_of_another_object_are_found() -> None:
    length = 2 * FRAME_BYTES
    store, raw = store_with(SEGMENT, content_of(length)[:length])
    first = raw.get(SEGMENT)
    store.put(SEGMENT, content_of(length)[:length], replace=True)
    second, header = raw.get(SEGMENT), SealedFor.RECIPIENTS.header_bytes
    for at in (header, header + container.SEALED_FRAME_BYTES):
        raw.put(SEGMENT, second[:at] + first[at:], replace=True)
        assert is_found(store, SEGMENT, length)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (SEGMENT, "wal/000000010000000000000002.zst"),
        (SEGMENT, "wal/000000010000000000000001"),
        (SUMMARY, "summaries/00000001000000000123E9100000000001271638.summary"),
        (ENTRY, "backups/20260101T000000Z-00000002/backup.json"),
        (SUMMARY, SEGMENT),
        (SEGMENT, SUMMARY),
    ],
)
def test_a_renamed_object_is_found(name: str, other: str) -> None:
    store, raw = store_with(name, b"content")
    raw.put(other, raw.get(name))
    with pytest.raises(FormatError):
        store.get(other)


def test_what_is_set_aside_opens_there_and_is_moved_without_a_key() -> None:
    aside = f"set_aside/20260101T000000Z_00000001_0000000001000000/{SEGMENT}"
    store, raw = store_with(SEGMENT, b"content")
    stored = raw.get(SEGMENT)
    move(store, SEGMENT, aside)
    assert raw.get(aside) == stored
    assert store.get(aside) == b"content"
    move(store, aside, SEGMENT)
    assert store.get(SEGMENT) == b"content"
    # What gets another name of its own is sealed for that.
    move(store, SEGMENT, "wal/000000010000000000000002.zst")
    assert store.get("wal/000000010000000000000002.zst") == b"content"


@pytest.mark.parametrize("name", NAMES)
def test_an_object_of_another_repository_is_found(name: str) -> None:
    _, raw = store_with(name, b"content")
    # With the same keys: the repository's id alone is another.
    other = SealedStore(raw, keys_of(SECOND_KEYRING, METADATA_KEY), GEOMETRY)
    with pytest.raises(FormatError):
        other.get(name)


@pytest.mark.parametrize("name", NAMES)
def test_who_has_the_public_key_alone_makes_no_object_that_opens(name: str) -> None:
    raw = MemoryStore()
    forger = SealedStore(raw, keys_of(KEYRING, bytes(32)), GEOMETRY)
    forger.put(name, b"content")
    with pytest.raises(FormatError):
        SealedStore(raw, keys_of(KEYRING, METADATA_KEY), GEOMETRY).get(name)


@given(lengths=st.lists(lengths, min_size=1, max_size=4))
def test_no_nonce_comes_twice_under_one_key(lengths: list[int]) -> None:
    seen: list[tuple[bytes, bytes]] = []
    made: list[bytes] = []

    class Recorded(FrameCipher):
        def __init__(self, key: bytes, repository_id: bytes, name: str, header: bytes) -> None:
            super().__init__(key, repository_id, name, header)
            made.append(key)
            inner, self._cipher = self._cipher, self  # type: ignore[assignment]
            self._inner = inner

        def encrypt(self, nonce: bytes, content: bytes, associated: bytes) -> bytes:
            seen.append((made[-1], nonce))
            return self._inner.encrypt(nonce, content, associated)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pgwal.encryption.repository_keys.FrameCipher", Recorded)
        store = SealedStore(MemoryStore(), keys_of(KEYRING, METADATA_KEY), GEOMETRY)
        for length in lengths:
            store.put(SEGMENT, content_of(length)[:length], replace=True)
            store.put(SUMMARY, content_of(length)[:length], replace=True)
        seal = store.keys.pack_seal("packs/00/" + "00" * 16, bytes(16))
        stored = [seal.seal(number, b"frame") for number in range(3)] + [seal.trailer(3)]
    assert len({*stored}) == 4
    assert len(seen) == len(set(seen)) == sum(2 * max(1, -(-length // FRAME_BYTES)) for length in lengths) + 4


def test_absurd_headers_are_refused_and_cost_nothing() -> None:
    for content in (b"", b"pgwalenc", b"\xff" * 512, b"pgwalenc" + b"\xff" * 504, bytes(512)):
        with pytest.raises(FormatError):
            Header.decode(content, SealedFor.RECIPIENTS, "an object")
    wrapped_length = bytearray(Header(SealedFor.RECIPIENTS, 1, FRAME_BYTES, bytes(16), b"x").encode())
    wrapped_length[32:34] = b"\xff\xff"
    assert len(Header.decode(bytes(wrapped_length), SealedFor.RECIPIENTS, "an object").wrapped) <= 512


def test_what_is_put_unsealed_as_a_pack_is_refused() -> None:
    store = SealedStore(MemoryStore(), keys_of(KEYRING, METADATA_KEY), GEOMETRY)
    with pytest.raises(PgwalError, match="unencrypted"):
        store.put("packs/00/" + "00" * 16, b"PGWALPK1 and so on")


def test_memory_is_that_of_a_few_frames() -> None:
    cipher = FrameCipher(bytes(32), bytes(16), "name", b"")
    pieces = sealed_pieces(cipher, b"", (bytes(1000) for _ in range(1000)))
    assert max(map(len, pieces)) == container.SEALED_FRAME_BYTES
    body = b"".join(sealed_pieces(cipher, b"", [bytes(10)]))
    assert opened(cipher, body, "place") == bytes(10)
