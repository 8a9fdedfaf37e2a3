"""Store what waits in a spool, one thing at a time, over nothing that is there: see ``spool_uploader`` for when."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

from pgwal.budget import PART_BYTES, SEGMENT_IN_MEMORY_BYTES
from pgwal.errors import ObjectExists, ObjectNotFound, RepositoryError, StoreUnavailable
from pgwal.lsn import Lsn
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.counted_pieces import CountedPieces
from pgwal.repository.held_segment import HeldPieces
from pgwal.repository.layout import SUMMARY_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.spooled_place import SpooledPlace
from pgwal.repository.store import ByteRange, ObjectSealer, as_sealing
from pgwal.repository.wal_compressor import compressed_pieces
from pgwal.repository.wal_directory import WalDirectory
from pgwal.repository.wal_file_name import PARTIAL_SUFFIX, partial_end, partial_name, split_segment_name
from pgwal.segment import WalGeometry

logger = logging.getLogger(__name__)

_MOST_FILE_BYTES = 1 << 30


class SpooledObjects:
    """Stores files of a spool, WAL compressed; what is there already of a name must hold the same."""

    def __init__(self, place: SpooledPlace, geometry: WalGeometry, compression: Compression) -> None:
        self._place = place
        self._store = place.store
        self._geometry = geometry
        self._compression = compression

    def store_segment(self, name: str) -> None:
        """Store a whole segment; its file stays."""
        path = f"{WAL_DIRECTORY}/{name}"
        self._put(path + self._compression.suffix, self._content(path, self._geometry.segment_size), name)
        self._delete_partials(name)

    def sealer(self, name: str) -> ObjectSealer | None:
        """Return what seals a segment while it is received; None where it is compressed before, or not sealed."""
        sealing = as_sealing(self._store.remote)
        if sealing is None or self._compression.method is not CompressionMethod.NONE:
            return None
        return sealing.sealer(f"{WAL_DIRECTORY}/{name}", self._geometry.segment_size)

    def store_received(self, name: str, content: HeldPieces | ObjectSealer) -> None:
        """Store a whole segment that has not been in the spool; raises ObjectExists where it is stored already."""
        path = f"{WAL_DIRECTORY}/{name}{self._compression.suffix}"
        if isinstance(content, HeldPieces):
            # What seals, and what compresses, takes views as well.
            pieces = cast(list[bytes], content.pieces)
            self._put_new(path, compressed_pieces(pieces, self._compression, self._geometry.segment_size))
        else:
            content.put()
            self._store.note_stored(path, self._geometry.segment_size)
        self._delete_partials(name)

    def store_partial(self, segment: str, end: Lsn) -> None:
        """Store a segment that is not whole up to where its WAL counts."""
        path = f"{WAL_DIRECTORY}/{segment}{PARTIAL_SUFFIX}"
        name = partial_name(segment, end, self._compression.suffix)
        start = self._geometry.segment_start(self._geometry.parse_file_name(segment)[1])
        self._put(f"{WAL_DIRECTORY}/{name}", self._content(path, end - start), segment)
        self._delete_partials(segment, name)

    def _content(self, path: str, size_bytes: int) -> Iterator[bytes]:
        local = self._store.local
        ranges = (ByteRange(at, min(at + PART_BYTES, size_bytes)) for at in range(0, size_bytes, PART_BYTES))
        return compressed_pieces((local.get_ranges(path, [part])[0] for part in ranges), self._compression, size_bytes)

    def _put(self, path: str, content: Iterator[bytes], segment: str) -> None:
        """Store WAL that is not there; what is there of this name must be the same WAL."""
        try:
            self._put_new(path, content)
        except ObjectExists:
            self._require_same(path, segment)
            # Whoever has brought it may not have come to make its name durable.
            self._store.remote.recover(WAL_DIRECTORY, lambda _: False)
            # It may have been compressed otherwise.
            self._store.note_stored(path, self._store.remote.size(path))

    def _put_new(self, path: str, content: Iterator[bytes]) -> None:
        pieces = CountedPieces(content)
        # In one piece where that is not too large: only then two that do so at once are told apart, over a network.
        is_streamed = self._place.place.directory is not None or self._geometry.segment_size > SEGMENT_IN_MEMORY_BYTES
        self._store.remote.put(path, pieces if is_streamed else b"".join(pieces))
        self._store.note_stored(path, pieces.size_bytes)

    def _require_same(self, path: str, segment: str) -> None:
        """Raise RepositoryError unless an object holds what the spool has of a segment, as far as its name says.

        What cannot be read is StoreUnavailable: it is tried again.
        """
        name, local = path.rpartition("/")[2], self._store.local
        timeline_id, segment_no = self._geometry.parse_file_name(segment)
        start = position = self._geometry.segment_start(segment_no)
        end = partial_end(name) or Lsn(start + self._geometry.segment_size)
        own = f"{WAL_DIRECTORY}/{segment}{'' if local.exists(f'{WAL_DIRECTORY}/{segment}') else PARTIAL_SUFFIX}"
        for piece in WalDirectory(self._store.remote, WAL_DIRECTORY, self._geometry, only=name).read(
            timeline_id, start
        ):
            stored = piece[: end - position]
            if local.get_ranges(own, [ByteRange(position - start, position - start + len(stored))]) != [stored]:
                raise self._place.differs(segment)
            position = Lsn(position + len(piece))
            if position >= end:
                return
        raise StoreUnavailable(
            f"{self._store.locate(path)} was there when it was to be stored, and cannot be read to compare it",
            path=path,
        )

    def _delete_partials(self, segment: str, newest: str | None = None) -> None:
        """Delete what is stored of a segment that is stored further by now; where that is refused, it does no harm.

        Raises LeaseLost where another receives by now: it may go on from what would be deleted.
        """
        is_confirmed = False
        for name in self._store.stored_of(WAL_DIRECTORY, segment):
            if name == newest or split_segment_name(name)[2]:
                continue
            if not is_confirmed:
                # Not by the clock alone, which may have stood still with the machine.
                self._place.leases.confirm()
                is_confirmed = True
            try:
                with suppress(ObjectNotFound):
                    self._store.remote.delete(f"{WAL_DIRECTORY}/{name}")
            except RepositoryError as error:
                # It is there, and must be moved aside, or compared, with the rest.
                logger.debug("%s", error)
                continue
            self._store.note_deleted(f"{WAL_DIRECTORY}/{name}")

    def store_file(self, path: str) -> None:
        """Store a history or a summary, and delete its file."""
        content = self._store.local.get(path, most_bytes=_MOST_FILE_BYTES)
        try:
            self._store.remote.put(path, content)
        except ObjectExists:
            if self._store.remote.get(path, most_bytes=_MOST_FILE_BYTES) != content:
                if not path.startswith(SUMMARY_DIRECTORY):
                    raise self._place.differs(path) from None
                # It was found damaged, or is of an older pgwal: it can be made again from WAL.
                self._store.remote.delete(path)
                self._store.remote.put(path, content)
        self._store.note_stored(path, len(content))
        self._store.local.delete(path)
