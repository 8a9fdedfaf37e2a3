"""Tables of moved frames: written and read, refused where they contradict themselves, and followed to the end."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.backup.moved_frames import (
    FrameMoves,
    FramePlace,
    MovedFrames,
    Origin,
    decode_moved_frames,
    encode_moved_frames,
)
from pgwal.backup.pack_table import Frame, Pack, Sealed
from pgwal.checksum import content_digest
from pgwal.errors import ChecksumMismatch, FormatError, TruncatedInput

A, B, C, D = (digit * 32 for digit in "abcd")
SEALED = Sealed(b"header of another pack", bytes(20))


def table(name: str, origins: dict[str, list[int]], *, stored: int = 10, sealed: Sealed | None = None) -> MovedFrames:
    """Return a table of frames that have ``stored`` bytes each."""
    pack = Pack(name, sealed=sealed)
    for number in range(sum(map(len, origins.values()))):
        pack.add(Frame(pack.size_bytes, stored, stored - pack.overhead_bytes, bytes([number]) * 16))
        pack.size_bytes += stored
    pack.size_bytes += pack.overhead_bytes
    return MovedFrames(pack, [Origin(origin, array("Q", offsets)) for origin, offsets in origins.items()])


def encoded(moved: MovedFrames) -> bytes:
    return b"".join(encode_moved_frames(moved))


names = st.integers(0, 2**128 - 1).map("{:032x}".format)
offsets = st.sets(st.integers(0, 2**62), min_size=1, max_size=5).map(sorted)


@given(st.dictionaries(names, offsets, min_size=1, max_size=4), st.sampled_from([None, SEALED]))
def test_what_is_written_is_read(origins: dict[str, list[int]], sealed: Sealed | None) -> None:
    moved = table("e" * 32, origins, stored=50, sealed=sealed)
    found = decode_moved_frames(encoded(moved))
    assert (found.pack.name, found.pack.size_bytes, found.pack.sealed) == (
        moved.pack.name,
        moved.pack.size_bytes,
        sealed,
    )
    assert list(found.pack) == list(moved.pack)
    assert list(found.origins) == list(moved.origins)


def with_digest(content: bytes) -> bytes:
    """Return a table that was changed, with the digest that it has then."""
    kept = content[: content.rindex(b'"digest"')]
    return kept + f'"digest": "xxh3-128:{content_digest(kept)}"}}\n'.encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.replace(b'frames": 1', b'frames": 2', 1), "newer format"),
        (lambda content: content.replace(b", 300]", b", 200]"), "do not ascend"),
        (lambda content: content.replace(b", 300]", b"]"), "of each frame where it lay"),
        (lambda content: content.replace(b", 300]", b", -1]"), "out of range"),
        (lambda content: content.replace(b", 300]", b", true]"), "out of range"),
        (lambda content: content.replace(f'"{B}"'.encode(), b'"b"'), "cannot be read"),
        (lambda content: content.replace(B.encode(), A.encode()), "a pack comes twice"),
        (lambda content: content.replace(B.encode(), D.encode()), "a pack comes twice"),
        (lambda content: content.replace(b'"size": 54', b'"size": 53'), "reach beyond"),
        (lambda content: content.replace(b'"size": 54', b'"size": -1'), "out of range"),
    ],
)
def test_what_contradicts_itself_is_refused(change: Callable[[bytes], bytes], message: str) -> None:
    content = encoded(table(D, {A: [100], B: [200, 300]}))
    changed = change(content)
    assert changed != content
    with pytest.raises(FormatError, match=message) as raised:
        decode_moved_frames(with_digest(changed))
    assert str(raised.value).startswith("table of moved frames: ")
    with pytest.raises(FormatError):
        decode_moved_frames(changed)


def test_each_cut_and_each_changed_byte_is_found() -> None:
    content = encoded(table(D, {A: [100], B: [200, 300]}))
    for length in range(len(content)):
        with pytest.raises(FormatError):
            decode_moved_frames(content[:length])
    random = Random(1)
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << random.randrange(7)
        with pytest.raises(FormatError):
            decode_moved_frames(bytes(changed))
    with pytest.raises(FormatError, match="more lines"):
        decode_moved_frames(content + b"\n")
    assert issubclass(TruncatedInput, FormatError)
    assert issubclass(ChecksumMismatch, FormatError)


def test_frames_are_found_where_they_were_moved_on_to() -> None:
    first = table(C, {A: [24, 100], B: [50]})
    second = table(D, {C: [first.pack[1].offset, first.pack[2].offset]})
    moves = FrameMoves([second, first])
    assert list(moves.places(A, 24)) == [FramePlace(A, 24), FramePlace(C, 24, (C,))]
    assert list(moves.places(A, 100)) == [FramePlace(A, 100), FramePlace(C, 34, (C,)), FramePlace(D, 24, (C, D))]
    assert list(moves.places(B, 50)) == [FramePlace(B, 50), FramePlace(C, 44, (C,)), FramePlace(D, 34, (C, D))]
    # What no table tells of is where it was, and so is what lies between frames that were moved.
    for offset in (23, 25, 99, 101):
        assert list(moves.places(A, offset)) == [FramePlace(A, offset)]
    assert (moves.pack(C), moves.pack(A)) == (first.pack, None)
    assert [moves.is_moved(name) for name in (A, B, C, D)] == [True, True, True, False]


def test_a_frame_that_was_moved_twice_may_be_in_either_pack() -> None:
    """As when another process has taken the first new pack for garbage, before its table was there."""
    moves = FrameMoves([table(C, {A: [24]}), table(D, {A: [24]})])
    assert {place.pack_name for place in moves.places(A, 24)} == {A, C, D}
    assert next(moves.places(A, 24)) == FramePlace(A, 24)


def test_tables_that_go_in_a_circle_have_an_end() -> None:
    moves = FrameMoves([table(C, {D: [24]}), table(D, {C: [24]})])
    assert [place.pack_name for place in moves.places(C, 24)] == [C, D]
