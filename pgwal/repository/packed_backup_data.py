"""Read the files of a backup that lie in packs: see ``backup_data`` and ``frame_reader``."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from xxhash import xxh3_128_digest

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.entry_document import decode_contents
from pgwal.backup.pack_table import ContentPart, Extent, Pack, PackedContents, check_extents
from pgwal.backup.record_table import RecordTable
from pgwal.backup.stored_path import encode_path
from pgwal.budget import FRAMES_EXPECTED
from pgwal.disk.block_reads import copy_parts
from pgwal.errors import FormatError, ObjectNotFound, PgwalError, RepositoryError, StoreUnavailable
from pgwal.repository.frame_reader import FrameReader
from pgwal.repository.pack_pool import pack_object
from pgwal.repository.packed_backup_writer import AS_THEY_ARE
from pgwal.repository.store import ByteRange, ObjectStore

if TYPE_CHECKING:
    from pgwal.repository.backup_data import BackupData, StoredContent


class PackedBackupData:
    """See pgwal.repository.backup_data.BackupData.

    ``plain`` has what is stored as it is; ``lines`` gives the lines of the backup's entry, and is asked when something
    is read for the first time.  ``frames`` may be read for other backups, too.
    """

    def __init__(
        self,
        store: ObjectStore,
        plain: BackupData,
        backup_id: str,
        lines: Callable[[], AbstractContextManager[Iterable[bytes]]],
        frames: FrameReader,
    ) -> None:
        self.backup_id = backup_id
        self._store = store
        self._plain = plain
        self._lines = lines
        self._index_lock = Lock()
        self._damage: FormatError | None = None
        self._frames = frames

    def require_places(self) -> None:
        _ = self._index

    def locate(self, path: str) -> str:
        return self._plain.locate(path)

    def directories(self) -> Iterator[str]:
        yield from self._index.contents.directories

    def has_directory(self, path: str) -> bool:
        return path in self._directory_set

    @cached_property
    def _directory_set(self) -> frozenset[str]:
        return frozenset(self._index.contents.directories)

    def paths(self, on_error: Callable[[str, RepositoryError], None]) -> Iterator[str]:
        yield from self._plain.paths(on_error)
        with self._lines() as lines:
            for file in decode_contents(lines)[2]:
                if file.path not in AS_THEY_ARE:
                    yield file.stored_path

    def open(self, path: str) -> StoredContent:
        if path in AS_THEY_ARE:
            return self._plain.open(path)
        extents = self._index.extents(path)
        if extents is None:
            raise ObjectNotFound(f"{self.locate(path)} is missing")
        return _PackedContent(self._frames, self._index.contents.packs, extents)

    @property
    def fetched_bytes(self) -> int:
        return self._frames.fetched_bytes

    def places(self, path: str) -> tuple[Sequence[Pack], Sequence[Extent]] | None:
        """Return where a file lies, and the packs that the extents number; None of what is in no pack."""
        extents = None if path in AS_THEY_ARE else self._index.extents(path)
        return None if extents is None else (self._index.contents.packs, extents)

    def path(self, path: str) -> Path | None:
        return self._plain.path(path) if path in AS_THEY_ARE else None

    @property
    def pack_count(self) -> int:
        return len(self._index.contents.packs)

    def damage(self, numbers: range, *, of_unread: bool = False) -> Iterator[tuple[str, PgwalError]]:
        """See BackupData: cut or extended packs, exchanged ones, and frames of which no file has anything."""
        for pack_number in numbers:
            pack = self._index.contents.packs[pack_number]
            name = pack_object(pack.name)
            try:
                self._check_objects(pack)
                for number in range(len(pack)) if of_unread else self._index.frames_without_files[pack_number]:
                    self._frames.require_stored(pack, number)
            except StoreUnavailable:
                raise
            except (FormatError, RepositoryError) as error:
                yield name, error

    def _check_objects(self, pack: Pack) -> None:
        """Check a pack, or those that what is needed of it was moved to."""
        try:
            self._check_object(pack)
        except ObjectNotFound:
            for moved in self._frames.places.packs_of(pack):
                try:
                    self._check_object(moved)
                except FormatError as error:
                    place = self._store.locate(pack_object(moved.name))
                    error.restate(f"{place}, to which frames of it were moved: {error}")
                    raise

    def _check_object(self, pack: Pack) -> None:
        name = pack_object(pack.name)
        size_bytes = self._store.size(name)
        if size_bytes != pack.size_bytes:
            raise FormatError(f"it has {size_bytes} bytes, {pack.size_bytes} were stored")
        (header,) = self._store.get_ranges(name, [ByteRange(0, len(pack.header))])
        if header != pack.header:
            raise FormatError("it does not begin as the pack of its name does")
        if pack.sealed is not None:
            end = pack.sealed.trailer
            (trailer,) = self._store.get_ranges(name, [ByteRange(size_bytes - len(end), size_bytes)])
            if trailer != end:
                raise FormatError("it does not end as the pack of its name does")

    @property
    def _index(self) -> _Index:
        # The first of several threads makes it; an entry that is damaged is not read again for each file.
        with self._index_lock:
            if self._damage is not None:
                raise self._damage.with_traceback(None)
            try:
                return self._made_index
            except FormatError as error:
                self._damage = error
                raise

    @cached_property
    def _made_index(self) -> _Index:
        with self._lines() as lines:
            _, contents, files = decode_contents(lines)
            return _Index(contents, files)


class _Index:
    """Where each file lies, in some fifty bytes a file."""

    def __init__(self, contents: PackedContents, files: Iterable[BackupFile]) -> None:
        self.contents = contents
        self._places = RecordTable("<QI")
        """By path: the first of its extents, and their number."""
        self._numbers = (array("I"), array("I"), array("I"), array("Q"))
        for file in files:
            check_extents(file.extents, contents.packs, file.stored_path)
            key = xxh3_128_digest(encode_path(file.stored_path))
            self._places.add(key, len(self._numbers[0]), len(file.extents))
            for extent in file.extents:
                for numbers, number in zip(self._numbers, extent, strict=True):
                    numbers.append(number)

    @cached_property
    def frames_without_files(self) -> list[list[int]]:
        """For each pack, the frames in which nothing of any file lies, as what was read twice leaves them."""
        packs = self.contents.packs
        # By frame, how many extents more than of the one before it have something there.
        changes = [array("q", bytes(8 * (len(pack) + 1))) for pack in packs]
        for pack_number, first, offset, length in zip(*self._numbers, strict=True):
            pack = packs[pack_number]
            changes[pack_number][first] += 1
            last, _ = pack.find(pack.position(first) + offset + length - 1)
            changes[pack_number][last + 1] -= 1
        for of_pack in changes:
            of_pack.pop()
        return [[number for number, uses in enumerate(accumulate(of_pack)) if not uses] for of_pack in changes]

    def extents(self, path: str) -> list[Extent] | None:
        found = self._places.find(xxh3_128_digest(encode_path(path)))
        if found is None:
            return None
        return [Extent(*(numbers[at] for numbers in self._numbers)) for at in range(found[0], found[0] + found[1])]


class _Part(NamedTuple):
    """Bytes of a file that lie in one frame: where in the file they begin and end, and where in which frame.

    ``last`` is the last frame that has bytes of the file which follow them without a gap.
    """

    start: int
    end: int
    pack: int
    frame: int
    offset_in_frame: int
    last: int


_NONE: Sequence[int] = ()
_NOTHING = _Part(0, 0, -1, -1, 0, -1)


class _PackedContent:
    """See pgwal.repository.backup_data.StoredContent; for one thread."""

    descriptor = None
    is_proven = True

    def __init__(self, frames: FrameReader, packs: Sequence[Pack], extents: Sequence[Extent]) -> None:
        self._frames = frames
        self._packs = packs
        self._extents = extents
        self._starts = [0, *accumulate(extent.length for extent in extents)]
        """Where in the file each extent begins, and where it ends."""
        self._expected: dict[int, list[int]] | None = None
        """By the number of a pack, the frames that are going to be read; None where nobody has told."""
        self._part = _NOTHING
        """Where was looked last: many blocks of a file lie in the same frame."""

    @property
    def size_bytes(self) -> int:
        return self._starts[-1]

    def read_at(self, offset: int, length: int) -> bytes:
        pieces = []
        while length > 0:
            content, start, size = self.part(offset, length)
            if not size:
                break
            pieces.append(content[start : start + size])
            offset += size
            length -= size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, offset: int, target: memoryview) -> int:
        content, start, size = self.part(offset, len(target))
        return copy_parts(target, [content], array("Q", (start,)), array("I", (size,)))

    def part(self, offset: int, length: int) -> tuple[bytes, int, int]:
        """Return a frame, and where in it lies what it has of what is wanted, and its length; 0 at the end alone."""
        part, following = self._part, _NONE
        if not part.start <= offset < part.end:
            if offset >= self.size_bytes:
                return b"", 0, 0
            part = self._part_at(offset)
            following = self._following(part)
            self._part = part
        content = self._frames.content(self._packs[part.pack], part.frame, following)
        return content, part.offset_in_frame + offset - part.start, min(length, part.end - offset)

    def _part_at(self, offset: int) -> _Part:
        at = bisect_right(self._starts, offset) - 1
        pack_number, first, offset_in_frame, length = self._extents[at]
        pack = self._packs[pack_number]
        begin = pack.position(first) + offset_in_frame
        number, in_frame = pack.find(begin + offset - self._starts[at])
        last, _ = pack.find(begin + length - 1)
        # The extent may begin within the frame, and end there.
        before = min(in_frame, offset - self._starts[at])
        end = min(offset - in_frame + pack[number].size_bytes, self._starts[at + 1])
        return _Part(offset - before, end, pack_number, number, in_frame - before, last)

    def _following(self, part: _Part) -> Sequence[int]:
        """Return the frames of a part's pack that are going to be read behind it, the nearest of them at least."""
        if self._expected is None:
            # Whoever comes from the frame before is going to read on; at the start a header may be all that is wanted.
            is_read_on = (self._part.pack, self._part.frame) == (part.pack, part.frame - 1)
            return range(part.frame + 1, part.last + 1) if is_read_on else ()
        wanted = self._expected.get(part.pack, ())
        at = bisect_right(wanted, part.frame)
        return wanted[at : at + FRAMES_EXPECTED]

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        found: dict[int, set[int]] = {}
        for start, end in ranges:
            offset = start
            while offset < end:
                part = self._part_at(offset)
                found.setdefault(part.pack, set()).add(part.frame)
                offset = part.end
        self._expected = {pack: sorted(frames) for pack, frames in found.items()}

    def parts(self) -> Iterator[ContentPart]:
        """See StoredContent: of frames that hold nothing else."""
        for start, (pack_number, first, offset_in_frame, length) in zip(self._starts, self._extents, strict=False):
            pack = self._packs[pack_number]
            begin = pack.position(first) + offset_in_frame
            number = first if not offset_in_frame else first + 1
            while number < len(pack) and (end := pack.position(number) + pack[number].size_bytes) <= begin + length:
                digest = pack.content_digest(number)
                if digest is not None:
                    yield ContentPart(start + pack.position(number) - begin, end - pack.position(number), digest)
                number += 1

    def close(self) -> None:
        pass
