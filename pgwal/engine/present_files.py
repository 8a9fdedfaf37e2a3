"""Make what lies in a directory the files of a chain of backups: what equals them stays, the rest is fetched.

What is there is compared with digests that the entries of the backups have: of a file that comes whole from one
backup, and of each frame of packs.  Of a frame, all or nothing is known to be right, and of a chain's file, what each
backup has in its frames.  What no digest vouches for is read from the repository, as a fresh restore does, and only
what differs is written.  Neither times nor LSNs of pages say anything.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from xxhash import xxh3_128, xxh3_128_digest

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.file_table import FileTable, StoredFile
from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.pack_table import FRAME_SIZE, ContentPart
from pgwal.backup.reconstruct import Run, StoredWhole, reconstruct_file
from pgwal.backup.stored_digest import digest_like
from pgwal.checksum import content_digest
from pgwal.disk.present_file import PresentFile, Unreadable
from pgwal.disk.tree_writer import TreeWriter
from pgwal.engine.chain_pieces import grouped_pieces, read_pieces
from pgwal.engine.chain_source import ChainSource, OlderPages, OpenFiles, damaged, wrong_size
from pgwal.engine.writing_threads import WritingThreads
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.backup_data import BackupData

_DIGEST_LENGTH = 32
"""Of an xxh3-128 digest in hex: shorter ones prove too little."""
_NO_BLOCKS: array[int] = array("I")

Range = tuple[int, int]
"""Start and end, in bytes."""


class PresentFiles:
    """Makes files of a chain out of those that are there, by several threads.

    ``stored`` and ``tables`` are newest first; ``open_sources`` opens what the chain stores of an incremental file.
    """

    def __init__(
        self,
        writer: TreeWriter,
        stored: Sequence[BackupData],
        tables: Sequence[FileTable],
        threads: WritingThreads,
        open_sources: Callable[[BackupFile, OpenFiles], list[ChainSource]],
        *,
        data_checksums: bool,
    ) -> None:
        self._writer = writer
        self._stored = stored
        self._tables = tables
        self._threads = threads
        self._open_sources = open_sources
        self._data_checksums = data_checksums
        self._of_thread = threading.local()

    def make(self, file: BackupFile) -> bool:
        """Make a file of the newest backup of what is there; False when nothing is, so that it is to be written.

        Raises as a fresh restore does.
        """
        present = self._writer.present(file.path)
        if present is None:
            return False
        try:
            with present:
                self._make(file, present)
        except Unreadable:
            self._writer.remove(file.path)
            return False
        return True

    def proven_bytes(self, file: BackupFile, present: PresentFile) -> int:
        """Return how much of a file digests prove to be there; reads of the repository only the heads of its chain."""
        whole = self._whole(file)
        try:
            if whole is not None and self._equals(present, whole[1]):
                return file.size_bytes
            with OpenFiles(self._threads.files_per_thread()) as files:
                runs, sources = self._planned(file, whole, files)
                return file.size_bytes - sum(run.length for run in self._missing(runs, sources, present))
        except Unreadable:
            return 0

    def _make(self, file: BackupFile, present: PresentFile) -> None:
        whole = self._whole(file)
        if whole is not None:
            data, stored = whole
            if stored.stored_size_bytes != file.size_bytes:
                raise wrong_size(data, file.path, stored.stored_size_bytes, file.size_bytes)
            if self._equals(present, stored):
                self._threads.count(kept=file.size_bytes)
                return
        with OpenFiles(self._threads.files_per_thread()) as files:
            runs, sources = self._planned(file, whole, files)
            self._patch(file, runs, sources, present)
        present.truncate(file.size_bytes)

    def _planned(
        self, file: BackupFile, whole: tuple[BackupData, StoredFile] | None, files: OpenFiles
    ) -> tuple[Sequence[Run], list[ChainSource]]:
        """Return of which parts a file is made, and out of what."""
        if whole is not None:
            sources = [ChainSource.opened(whole[0], file.path, whole[1], files)]
        else:
            sources = self._open_sources(file, files)
        plan = reconstruct_file([source.header for source in sources])
        if plan.size_bytes != file.size_bytes:
            raise wrong_size(self._stored[0], file.path, plan.size_bytes, file.size_bytes)
        return plan.runs, sources

    def _whole(self, file: BackupFile) -> tuple[BackupData, StoredFile] | None:
        """Return the backup that has all bytes of a file, as far as that is known without reading anything.

        An incremental file without blocks is its header, whose digest proves which one it is.
        """
        if not file.is_incremental:
            return self._stored[0], StoredFile.of(file)
        block_count, rest = divmod(file.size_bytes, BLOCK_SIZE)
        if file.copied_block_count or rest or file.truncation_block_length != block_count:
            return None
        unchanged = content_digest(IncrementalHeader(block_count, _NO_BLOCKS).encode())
        stored: StoredFile | None = StoredFile.of(file)
        for data, table in zip(self._stored[1:], self._tables, strict=True):
            if stored is None or stored.digest != unchanged:
                return None
            stored = table.find(file.path)
            if stored is not None and not stored.is_incremental:
                return (data, stored) if stored.stored_size_bytes == file.size_bytes else None
        return None

    def _equals(self, present: PresentFile, stored: StoredFile) -> bool:
        """Tell whether a file is what a backup stores whole, by its size and digest."""
        if present.size_bytes != stored.stored_size_bytes or len(stored.digest) != _DIGEST_LENGTH:
            return False
        digest, buffer, offset = xxh3_128(), self._writer.buffer(), 0
        while size := present.read_into(offset, buffer):
            digest.update(buffer[:size])
            offset += size
            self._threads.count()
        return offset == stored.stored_size_bytes and digest.hexdigest() == stored.digest

    def _patch(self, file: BackupFile, runs: Sequence[Run], sources: list[ChainSource], present: PresentFile) -> None:
        """Write what differs of a file, and fetch what no digest shows to be there."""
        newest = sources[0]
        # Of what is not proven by itself nothing is left out, so that its digest is seen.
        digest = None if newest.content.is_proven else digest_like(newest.stored.digest)
        if digest is not None and isinstance(newest.header, IncrementalHeader):
            digest.update(newest.header.encode())
        are_proven = all(source.content.is_proven for source in sources[1:])
        older = OlderPages(file.path, sources) if self._data_checksums and not are_proven and len(sources) > 1 else None
        buffer = self._writer.buffer()
        missing = self._missing(runs, sources, present)
        self._threads.count(kept=file.size_bytes - sum(run.length for run in missing))
        for number, source in enumerate(sources):
            source.content.expect(
                (run.source_offset, run.source_offset + run.length) for run in missing if run.source == number
            )
        for offset, pieces in _groups(missing, len(buffer)):
            wanted = read_pieces(pieces, sources, buffer)
            self._threads.count(read=sum(piece.length for piece in pieces if piece.source is not None))
            at = 0
            for piece in pieces:
                if digest is not None and piece.source == 0:
                    digest.update(wanted[at : at + piece.length])
                at += piece.length
            if older is not None:
                older.check(pieces, wanted)
            self._write_differing(present, wanted, offset)
        if digest is not None and digest.hexdigest() != newest.stored.digest:
            raise damaged(newest.data, newest.path)
        if older is not None:
            older.warn()

    def _missing(self, runs: Sequence[Run], sources: list[ChainSource], present: PresentFile) -> list[Run]:
        """Return the parts of runs for which no digest vouches."""
        shown: list[list[Range]] = []
        for number, source in enumerate(sources):
            wanted = [(run.source_offset, run.source_offset + run.length) for run in runs if run.source == number]
            shown.append([(part.offset, part.offset + part.length) for part in self._shown(source, wanted, present)])
        return [part for run in runs for part in _without(run, shown)]

    def _shown(self, source: ChainSource, wanted: list[Range], present: PresentFile) -> Iterator[ContentPart]:
        """Yield the parts of what one backup stores that are there, of those of which something is wanted."""
        # Blocks of an older incremental file need not ascend in it; ranges of one file never overlap.
        wanted = sorted(wanted)
        starts = [start for start, _ in wanted]
        for part in source.content.parts():
            at = bisect_left(starts, part.offset + part.length) - 1
            if at < 0 or wanted[at][1] <= part.offset:
                continue
            places = _places(source, part)
            if places is not None and self._digest_of(present, places) == part.digest:
                yield part

    def _digest_of(self, present: PresentFile, places: Iterable[Range]) -> bytes | None:
        """Return the digest of ranges of a file, one behind the other, None where it ends before."""
        buffer, size = self._other_buffer(), 0
        for start, end in places:
            target = buffer[size : size + end - start]
            if present.read_into(start, target) < len(target):
                return None
            size += len(target)
        self._threads.count()
        return xxh3_128_digest(buffer[:size])

    def _write_differing(self, present: PresentFile, wanted: memoryview, offset: int) -> None:
        """Write the blocks that are not there yet."""
        there = self._other_buffer()[: len(wanted)]
        size = present.read_into(offset, there)
        if size == len(wanted) and bytes(there) == bytes(wanted):
            self._threads.count(kept=len(wanted))
            return
        written = 0
        for start, end in _differing(there[:size], wanted):
            present.write(wanted[start:end], offset + start)
            written += end - start
        self._threads.count(written=written, kept=len(wanted) - written)

    def _other_buffer(self) -> memoryview:
        """Return what this thread reads the file into, beside the writer's buffer for what is fetched."""
        if not hasattr(self._of_thread, "buffer"):
            self._of_thread.buffer = memoryview(bytearray(FRAME_SIZE))
        buffer: memoryview = self._of_thread.buffer
        return buffer


def _places(source: ChainSource, part: ContentPart) -> list[Range] | None:
    """Return where in the file the bytes of a part of a stored one belong, None where some are no bytes of the file."""
    if isinstance(source.header, StoredWhole):
        return [(part.offset, part.offset + part.length)]
    first, rest = divmod(part.offset - source.header.header_size, BLOCK_SIZE)
    count, more = divmod(part.length, BLOCK_SIZE)
    if first < 0 or rest or more:
        return None
    numbers = source.header.block_numbers[first : first + count]
    breaks = [at for at, (one, other) in enumerate(pairwise(numbers), 1) if other != one + 1]
    return [
        (numbers[start] * BLOCK_SIZE, (numbers[end - 1] + 1) * BLOCK_SIZE)
        for start, end in pairwise((0, *breaks, len(numbers)))
    ]


def _without(run: Run, shown: Sequence[list[Range]]) -> Iterator[Run]:
    """Yield what is left of a run without ranges of what its source stores, which ascend."""
    if run.source is None:
        yield run
        return
    ranges = shown[run.source]
    at, end = run.source_offset, run.source_offset + run.length
    for start, stop in ranges[max(0, bisect_right(ranges, (at, at)) - 1) :]:
        if start >= end:
            break
        if at < start:
            yield Run(run.offset + at - run.source_offset, start - at, run.source, at)
        at = max(at, min(stop, end))
    if at < end:
        yield Run(run.offset + at - run.source_offset, end - at, run.source, at)


def _groups(runs: Iterable[Run], limit: int) -> Iterator[tuple[int, list[Run]]]:
    """Group runs that follow each other into at most ``limit`` bytes, with where each group goes; others are apart."""
    following: list[Run] = []
    for run in runs:
        if following and following[-1].offset + following[-1].length != run.offset:
            yield from _grouped(following, limit)
            following = []
        following.append(run)
    if following:
        yield from _grouped(following, limit)


def _grouped(runs: list[Run], limit: int) -> Iterator[tuple[int, list[Run]]]:
    for start, pieces in grouped_pieces(runs, limit):
        yield runs[0].offset + start, pieces


def _differing(there: memoryview, wanted: memoryview) -> Iterator[Range]:
    """Yield the ranges of ``wanted`` in which blocks differ from what is there, which may end before."""
    begin = None
    for at in range(0, len(wanted), BLOCK_SIZE):
        end = min(at + BLOCK_SIZE, len(wanted))
        differs = bytes(there[at:end]) != bytes(wanted[at:end])
        if differs and begin is None:
            begin = at
        if not differs and begin is not None:
            yield begin, at
            begin = None
    if begin is not None:
        yield begin, len(wanted)
