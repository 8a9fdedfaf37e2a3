"""The lines of a packed backup's entry: what is written is read back, and what cannot be is refused as FormatError."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keeping.stored_repository import FULL, entry_of

from pgwal.backup.backup_file import MAX_INTEGER, BackupFile, BackupTotals, encode_file
from pgwal.backup.entry import BackupEntry
from pgwal.backup.entry_document import decode_contents, decode_entry, decode_packs, encode_entry, skim_packs
from pgwal.backup.pack_table import (
    FRAME_SIZE,
    PACK_HEADER_SIZE,
    Extent,
    Frame,
    Pack,
    PackedContents,
    PackReader,
    check_extents,
)
from pgwal.checksum import ContentDigest
from pgwal.errors import FormatError
from pgwal.lsn import Lsn

NAMES = ("a" * 32, "b" * 32)

names = st.binary(min_size=16, max_size=16).map(bytes.hex)
digests = st.binary(min_size=16, max_size=16)
paths = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda path: path not in {".", "..", "backup_label", "backup_manifest"}
)


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    """A pack whose frames may have others between them, which this backup does not need."""
    pack, position = Pack(draw(names)), PACK_HEADER_SIZE
    for _ in range(draw(st.integers(0, 4))):
        size_bytes = draw(st.one_of(st.integers(1, 5), st.integers(FRAME_SIZE - 2, FRAME_SIZE)))
        stored_size_bytes = draw(st.integers(1, size_bytes))
        position += draw(st.sampled_from((0, 0, 1, 1 << 40)))
        content_digest = draw(st.one_of(st.none(), digests.filter(any)))
        pack.add(Frame(position, stored_size_bytes, size_bytes, draw(digests), content_digest))
        position += stored_size_bytes
    pack.size_bytes = position + draw(st.sampled_from((0, 7)))
    return pack


@st.composite
def documents(draw: st.DrawFn) -> tuple[PackedContents, list[BackupFile]]:
    found = draw(st.lists(packs(), max_size=3, unique_by=lambda pack: pack.name))
    directories = sorted(draw(st.sets(paths, max_size=4)))
    places = [(number, frame) for number, pack in enumerate(found) for frame in range(len(pack))]
    files = []
    for path in draw(st.lists(paths, max_size=5, unique=True)):
        extents = []
        for number, frame in draw(st.lists(st.sampled_from(places), max_size=3)) if places else ():
            offset = draw(st.integers(0, found[number][frame].size_bytes - 1))
            length = draw(st.integers(1, found[number].end - found[number].position(frame) - offset))
            extents.append(Extent(number, frame, offset, length))
        size_bytes = sum(extent.length for extent in extents)
        files.append(BackupFile(path, size_bytes, size_bytes, 0o600, 0, "0" * 32, extents=tuple(extents)))
    return PackedContents(found, directories), files


def entry_with(contents: PackedContents, files: Iterable[BackupFile]) -> BackupEntry:
    totals = BackupTotals()
    for file in files:
        totals = totals.plus(file)
    return entry_of(FULL, None, Lsn(1), Lsn(2), totals, contents.size_bytes)


def lines_of(contents: PackedContents, files: list[BackupFile]) -> list[bytes]:
    return b"".join(encode_entry(entry_with(contents, files), map(encode_file, files), contents)).splitlines(
        keepends=True
    )


def plain(contents: PackedContents) -> list[tuple[str, int, list[Frame]]]:
    return [(pack.name, pack.size_bytes, list(pack)) for pack in contents.packs]


@given(documents())
def test_what_is_written_is_read_back(document: tuple[PackedContents, list[BackupFile]]) -> None:
    contents, files = document
    lines = lines_of(contents, files)
    entry, found, found_files = decode_contents(lines)
    assert entry == entry_with(contents, files)
    assert plain(found) == plain(contents)
    assert found.directories == contents.directories
    assert list(found_files) == files
    assert list(decode_entry(lines)[1]) == files
    assert [list(pack) for pack in decode_packs(lines)] == [list(pack) for pack in contents.packs]
    for file in files:
        check_extents(file.extents, found.packs, file.path)


@given(documents(), st.sets(st.sampled_from(NAMES)))
def test_of_packs_that_are_not_looked_into_no_frame_is_read(
    document: tuple[PackedContents, list[BackupFile]], looked_into: set[str]
) -> None:
    contents, files = document
    lines = lines_of(contents, files)
    unread = iter(lines)
    found = skim_packs(unread, looked_into.__contains__)
    expected = [(name, size, frames if name in looked_into else []) for name, size, frames in plain(contents)]
    assert plain(PackedContents(found, [])) == expected
    # Nor is anything behind the packs.
    behind = next(number for number, line in enumerate(lines) if line.startswith(b'], "directories"')) + 1
    assert list(unread) == lines[behind:]
    for cut in range(behind):
        with pytest.raises(FormatError):
            skim_packs(lines[:cut], looked_into.__contains__)


@given(packs())
def test_positions_are_those_of_the_frames(pack: Pack) -> None:
    expected = [(number, at) for number, frame in enumerate(pack) if frame.size_bytes < 10 for at in (0, 1)]
    for number, at in expected:
        if at < pack[number].size_bytes:
            assert pack.find(pack.position(number) + at) == (number, at)
        assert pack.find(pack.position(number) + pack[number].size_bytes - 1) == (number, pack[number].size_bytes - 1)
    assert pack.end == sum(frame.size_bytes for frame in pack)


def test_an_entry_says_the_size_of_its_packs() -> None:
    """One that did not could not be read, when it is too late."""
    contents = PackedContents([Pack(NAMES[0])], [])
    with pytest.raises(FormatError, match="another size"):
        list(encode_entry(entry_with(PackedContents([], []), []), [], contents))
    with pytest.raises(FormatError, match="another size"):
        list(encode_entry(entry_with(contents, []), []))


def test_an_entry_says_of_no_file_that_it_is_where_nothing_is() -> None:
    contents, files = sample()
    files[0] = files[0]._replace(extents=(Extent(0, 1, 10, 30),))
    with pytest.raises(FormatError, match="reaches beyond the frames"):
        lines_of(contents, files)


# ---- what is forged: its digest is right


def forged(lines: Iterable[bytes]) -> list[bytes]:
    """Return the lines with the digest that they have."""
    kept, digest = [*lines][:-1], ContentDigest()
    for line in kept:
        digest.update(line)
    return [*kept, f'"digest": "xxh3-128:{digest.hexdigest()}"}}\n'.encode()]


def read_all(lines: list[bytes]) -> None:
    """Read an entry as its users do; raises FormatError."""
    decode_packs(lines)
    list(decode_entry(lines)[1])
    _, contents, files = decode_contents(lines)
    for file in files:
        check_extents(file.extents, contents.packs, file.path)


def refusal(lines: list[bytes]) -> str:
    """Return why an entry is refused, nothing when it is read."""
    try:
        read_all(lines)
    except FormatError as error:
        return str(error)
    return ""


def sample() -> tuple[PackedContents, list[BackupFile]]:
    first, second = Pack(NAMES[0]), Pack(NAMES[1])
    for pack in (first, second):
        for _ in range(2):
            pack.add(Frame(pack.size_bytes, 10, 20, b"d" * 16))
            pack.size_bytes += 10
    files = [
        BackupFile("base/5/1", 30, 30, 0o600, 0, "0" * 32, extents=(Extent(0, 0, 10, 30),)),
        BackupFile("base/5/2", 50, 50, 0o600, 0, "0" * 32, extents=(Extent(1, 0, 0, 40), Extent(0, 0, 0, 10))),
    ]
    return PackedContents([first, second], ["base", "base/5"]), files


ABSURD = (b"-1", b"18446744073709551616", b"9" * 5000, b"NaN", b"Infinity", b"1e3", b"1.0", b"true", b"null", b'"1"')
ABSURD += (b"[]", b"{}", b"[" * 100_000, b'{"a":' * 100_000)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32))
def test_what_is_forged_is_read_or_refused(seed: int) -> None:
    """Numbers, lines and brackets of each kind are exchanged; another exception than FormatError fails the test."""
    random = Random(seed)
    lines = lines_of(*sample())
    read_all(lines)
    at = random.randrange(1, len(lines) - 1)
    numbers = list(re.finditer(rb"(?<![\w\"])\d+", lines[at]))
    change = random.randrange(5)
    if change == 0:
        lines[at] = lines[random.randrange(1, len(lines) - 1)]
    elif change == 1:
        del lines[at]
    elif change == 2 and numbers:
        chosen = random.choice(numbers)
        small = str(random.choice((0, 1, 9, 21, FRAME_SIZE + 1, MAX_INTEGER, MAX_INTEGER + 1))).encode()
        new = random.choice((small, *ABSURD))
        lines[at] = lines[at][: chosen.start()] + new + lines[at][chosen.end() :]
    elif change == 3:
        where = random.randrange(len(lines[at]))
        lines[at] = lines[at][:where] + random.choice(ABSURD) + lines[at][where:]
    else:
        lines.insert(at, lines[random.randrange(1, len(lines) - 1)])
    assert refusal(forged(lines)).isprintable()


def frame(offset: int, stored: int, size: int) -> list[Any]:
    return [offset, stored, size, "0" * 32]


def pack_of(size: int, *frames: Any, name: Any = NAMES[0], count: Any = None) -> list[Any]:
    return [{"pack": name, "size": size, "frames": len(frames) if count is None else count}, *frames]


REFUSED: dict[str, tuple[list[Any], str]] = {
    "frames overlap": (pack_of(100, frame(24, 10, 20), frame(33, 10, 20)), "cannot have the frame at byte 33"),
    "a frame twice": (pack_of(100, frame(24, 10, 20), frame(24, 10, 20)), "cannot have the frame"),
    "frames out of order": (pack_of(100, frame(40, 10, 20), frame(24, 10, 20)), "cannot have the frame"),
    "a frame in the header": (pack_of(100, frame(23, 10, 20)), "cannot have the frame at byte 23"),
    "a frame behind the end": (pack_of(100, frame(91, 10, 20)), "reach beyond its 100 bytes"),
    "an empty frame": (pack_of(100, frame(24, 0, 0)), "cannot have the frame"),
    "a frame that grew": (pack_of(100, frame(24, 21, 20)), "cannot have the frame"),
    "a frame that is too large": (pack_of(100, frame(24, 10, FRAME_SIZE + 1)), "out of range"),
    "an absurd offset": (pack_of(MAX_INTEGER, frame(MAX_INTEGER, 10, 20)), "reach beyond"),
    "an offset beyond all": (pack_of(100, frame(MAX_INTEGER + 1, 10, 20)), "out of range"),
    "frames missing": (pack_of(100, count=MAX_INTEGER), f"{MAX_INTEGER} frames of pack .* are missing"),
    "too few counted": (pack_of(100, frame(24, 10, 20), count=0), "has not the members of one"),
    "a count that is none": (pack_of(100, count=True), "out of range"),
    "a pack twice": (pack_of(24) + pack_of(24), "comes twice"),
    "another name": (pack_of(24, name="../../etc/passwd"), "is not the name of a pack"),
    "a name in capitals": (pack_of(24, name="A" * 32), "is not the name of a pack"),
    "a name that is none": (pack_of(24, name=[]), "is not the name of a pack"),
    "too small for its header": (pack_of(23), "reach beyond its 23 bytes"),
    "not a number": (pack_of(100, frame(24, 10, 20)[:1] + [float("nan")] * 3), "out of range"),
    "nested": (pack_of(100, [frame(24, 10, 20)] * 4), "out of range"),
}


def read_packs(values: list[Any]) -> None:
    reader = PackReader()
    for value in values:
        reader.feed(value)
    reader.finish()


@pytest.mark.parametrize("name", REFUSED)
def test_packs_that_cannot_be(name: str) -> None:
    values, message = REFUSED[name]
    with pytest.raises(FormatError, match=message):
        read_packs(values)


@pytest.mark.parametrize(
    "extent",
    [
        *((2, 0, 0, 1), (0, 2, 0, 1), (0, 0, 20, 1), (0, 0, 0, 41), (0, 1, 19, 2), (0, 0, 0, MAX_INTEGER)),
        *((MAX_INTEGER, 0, 0, 1), (0, MAX_INTEGER, 0, 1), (0, 0, MAX_INTEGER, 1)),
    ],
)
def test_extents_that_reach_beyond_the_frames(extent: tuple[int, int, int, int]) -> None:
    contents, _ = sample()
    check_extents([Extent(0, 0, 0, 40), Extent(1, 1, 19, 1)], contents.packs, "x")
    with pytest.raises(FormatError):
        check_extents([Extent(*extent)], contents.packs, "x")


def test_extents_of_everything_take_no_time_for_each_frame() -> None:
    """A hundred thousand extents over as many frames: ten thousand million steps, if each were looked at."""
    pack = Pack(NAMES[0])
    for _ in range(100_000):
        pack.add(Frame(pack.size_bytes, 1, 1, b"d" * 16))
        pack.size_bytes += 1
    seen = []

    class Counted(Pack):
        def __getitem__(self, number: int) -> Frame:
            seen.append(number)
            return super().__getitem__(number)

    pack.__class__ = Counted
    check_extents([Extent(0, 0, 0, pack.end)] * 100_000, [pack], "x")
    assert len(seen) == 100_000


def directories_as(value: Any) -> Callable[[bytes], bytes]:
    return lambda line: re.sub(rb"\[.*?\](?=, \"files)", lambda _: json.dumps(value).encode(), line)


@pytest.mark.parametrize(
    "value", [None, 1, {}, "base", [1], [["base"]], [".."], ["/base"], ["b", "a"], ["a", "a"], [""]]
)
def test_directories_that_cannot_be(value: Any) -> None:
    contents, files = sample()
    lines = [
        directories_as(value)(line) if line.startswith(b'], "directories"') else line
        for line in lines_of(contents, files)
    ]
    with pytest.raises(FormatError):
        decode_contents(forged(lines))


def test_every_cut_and_every_flipped_bit_is_found() -> None:
    content = b"".join(lines_of(*sample()))
    for at in range(len(content)):
        with pytest.raises(FormatError):
            read_all(content[:at].splitlines(keepends=True))
        flipped = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        for read in (read_all, decode_packs, lambda lines: list(decode_entry(lines)[1])):
            with pytest.raises(FormatError):
                read(flipped.splitlines(keepends=True))
