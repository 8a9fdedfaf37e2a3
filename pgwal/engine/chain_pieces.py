"""Pieces of files of a chain, read together: many blocks, from several backups, with one call where they are files."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from pgwal.backup.reconstruct import Run
from pgwal.disk.block_reads import copy_parts, read_parts
from pgwal.engine.chain_source import ANOTHER_BACKUP, ChainSource
from pgwal.errors import TruncatedInput
from pgwal.repository.backup_data import StoredContent


def read_pieces(pieces: list[Run], sources: Sequence[ChainSource], buffer: memoryview) -> memoryview:
    """Fill the start of the buffer with pieces that follow each other, and return it.

    Raises TruncatedInput when a file ends before, RepositoryError.
    """
    size = done = 0
    for some in _of_few_sources(pieces, sources[0].files.limit):
        done += _read_some(some, sources, buffer[size:])
        size += sum(piece.length for piece in some)
        if done < size:
            break
    if done < size:
        cut = next(p for p in pieces if p.offset + p.length - pieces[0].offset > done)
        assert cut.source is not None
        raise TruncatedInput(
            f"a file of backup {sources[cut.source].data.backup_id} ends before byte {cut.source_offset + cut.length}",
            hint=ANOTHER_BACKUP,
        )
    return buffer[:size]


def _read_some(pieces: list[Run], sources: Sequence[ChainSource], target: memoryview) -> int:
    """Read pieces of so few files that all of them are open at once, and return how many bytes there are."""
    used = {piece.source for piece in pieces if piece.source is not None}
    contents: dict[int | None, StoredContent] = {number: sources[number].content for number in used}
    known = {number: each.descriptor for number, each in contents.items() if each.descriptor is not None}
    if len(known) == len(contents):
        descriptors = array("i", [known.get(piece.source, -1) for piece in pieces])
        lengths = array("I", [piece.length for piece in pieces])
        offsets = array("Q", [piece.source_offset for piece in pieces])
        # Where that fails, each is read on its own: the one that cannot be read says so.
        with suppress(OSError):
            return read_parts(target, descriptors, offsets, lengths)
    parts: list[bytes | None] = []
    offsets, lengths = array("Q"), array("I")
    for _, length, source, source_offset in pieces:
        if source is None:
            parts.append(None)
            offsets.append(0)
            lengths.append(length)
            continue
        end = source_offset + length
        while source_offset < end:
            content, start, size = contents[source].part(source_offset, end - source_offset)
            if not size:
                return copy_parts(target, parts, offsets, lengths)
            parts.append(content)
            offsets.append(start)
            lengths.append(size)
            source_offset += size
    return copy_parts(target, parts, offsets, lengths)


def _of_few_sources(pieces: list[Run], limit: int) -> Iterator[list[Run]]:
    """Split consecutive pieces so that each part has at most ``limit`` sources."""
    if len({piece.source for piece in pieces}) <= limit:
        yield pieces
        return
    part: list[Run] = []
    found: set[int | None] = set()
    for piece in pieces:
        if len(found | {piece.source}) > limit:
            yield part
            part, found = [], set()
        part.append(piece)
        found.add(piece.source)
    if part:
        yield part


def grouped_pieces(runs: Iterable[Run], limit: int) -> Iterator[tuple[int, list[Run]]]:
    """Group runs that follow each other, or parts of them, into at most ``limit`` bytes, with where each group goes."""
    group: list[Run] = []
    start = filled = 0
    for run in runs:
        done = 0
        if run.length < limit - filled:
            # As most are; not in parts.
            group.append(run)
            done = run.length
            filled += done
        while done < run.length:
            size = min(run.length - done, limit - filled)
            group.append(Run(run.offset + done, size, run.source, run.source_offset + done))
            filled, done = filled + size, done + size
            if filled == limit:
                yield start, group
                start, filled, group = start + filled, 0, []
    if group:
        yield start, group
