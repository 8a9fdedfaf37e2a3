"""Compression of finished WAL segments, away from the loop that receives them.

A finished segment is first the plain file, durable under its own name.  It is compressed to a temporary name, synced,
renamed and the directory synced, and only then the plain one is removed.  So a crash leaves the plain file, the
whole compressed one, or both; what is left over is cleaned up, and plain files are compressed, at the next start.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol, Self

import lz4.frame
import zstandard

from pgwal.budget import COMPRESSOR_DRAIN_S, COMPRESSOR_NICENESS, COMPRESSOR_RETRY_S, READ_BYTES
from pgwal.errors import BrokenInvariant, FormatError, ObjectNotFound, RepositoryError
from pgwal.lsn import Lsn
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.object_reader import open_object
from pgwal.repository.store import ObjectStore
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_directory import WalDirectory
from pgwal.repository.wal_file_name import COMPRESSION_SUFFIXES, is_wal_file_name
from pgwal.segment import WalGeometry, is_segment_name

logger = logging.getLogger(__name__)

_GZIP_WINDOW_BITS = 31


# ---- one segment ----


class _Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _encoder(method: CompressionMethod, level: int, size_bytes: int) -> tuple[bytes, _Encoder | None]:
    """Return the first bytes and the rest of a stream; every format ends with a checksum of what it holds."""
    if method is CompressionMethod.ZSTD:
        return b"", zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj(size=size_bytes)
    if method is CompressionMethod.GZIP:
        return b"", zlib.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    if method is not CompressionMethod.LZ4:
        raise BrokenInvariant("no such method of compression")
    encoder = lz4.frame.LZ4FrameCompressor(content_checksum=True)
    return encoder.begin(size_bytes), encoder


def compressed_pieces(pieces: Iterable[bytes], compression: Compression, size_bytes: int) -> Iterator[bytes]:
    """Yield the compressed form of ``size_bytes`` in pieces; raises RepositoryError unless they are as many."""
    is_plain = compression.method is CompressionMethod.NONE
    first, encoder = (b"", None) if is_plain else _encoder(compression.method, compression.level, size_bytes)
    yield first
    left = size_bytes
    for piece in pieces:
        left -= len(piece)
        yield piece if encoder is None else encoder.compress(piece)
    if left:
        raise RepositoryError(f"a segment has {size_bytes - left} bytes instead of {size_bytes}")
    if encoder is not None:
        yield encoder.flush()


def compress_segment(store: ObjectStore, geometry: WalGeometry, name: str, compression: Compression) -> None:
    """Put the compressed form of a whole, plain segment in its place.

    Raises ObjectNotFound when it is not there, RepositoryError when the storage fails; it is there whole in any case.
    """
    path = f"{WAL_DIRECTORY}/{name}"
    with open_object(store, path) as file:
        # One that is there under that name is damaged, or was compressed by another method before.
        pieces = iter(partial(file.read, READ_BYTES), b"")
        content = compressed_pieces(pieces, compression, geometry.segment_size)
        store.put(path + compression.suffix, content, replace=True)
    store.delete(path)


# ---- what a crash left ----


def _compressed_twin(store: ObjectStore, name: str) -> str | None:
    """Return the name of a compressed file of the segment that is there beside the plain one."""
    twins = (name + suffix for suffix in COMPRESSION_SUFFIXES[1:])
    return next((twin for twin in twins if store.exists(f"{WAL_DIRECTORY}/{twin}")), None)


def _is_same(store: ObjectStore, geometry: WalGeometry, name: str, twin: str) -> bool:
    """Tell whether two files hold the same segment; raises FormatError when the compressed one is damaged."""
    timeline_id, segment_no = geometry.parse_file_name(name)
    start = geometry.segment_start(segment_no)
    plain, compressed = (
        WalDirectory(store, WAL_DIRECTORY, geometry, only=only).read(timeline_id, start) for only in (name, twin)
    )
    return all(a == b for a, b in zip(plain, compressed, strict=True))


# ---- all segments ----


def _yield_to_others() -> None:
    """Let the receiving thread, and the server on the same machine, have the processor first."""
    # On Linux a thread has a niceness of its own; elsewhere it would be that of the process, or of another one.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), COMPRESSOR_NICENESS)


class SegmentCompressor:
    """See pgwal.repository.delivery.Delivery: what a directory's segments need besides; only under the receiver's lock.

    It compresses finished segments one after the other in a thread.  Entering it as a context removes temporary files,
    and takes up plain segments that are left from before.  Leaving it ends the thread: what is not compressed within
    seconds stays plain until the next start.  A segment that cannot be compressed stays plain, is logged, and tried
    again later; nothing is ever raised in the receiver.
    """

    spooled_bytes = None
    trouble = None
    is_away = False
    is_behind = False
    is_proven = True
    wants_open_segment = True

    def __init__(self, store: ObjectStore, archive: WalArchive, compression: Compression) -> None:
        self.done_count = 0
        self.failed_count = 0
        self._store = store
        self._archive = archive
        self._compression = compression
        self._queue = queue.SimpleQueue[str | None]()
        self._failed: list[str] = []
        self._deadline_s: float | None = None
        self._at_work = threading.Lock()
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self._thread: threading.Thread | None = None

    @property
    def waiting_count(self) -> int:
        """How many segments wait to be compressed."""
        return self._queue.qsize() + len(self._failed)

    def __enter__(self) -> Self:
        self._store.recover(WAL_DIRECTORY, is_wal_file_name)
        if self._compression.method is not CompressionMethod.NONE:
            for segment in self._archive.segments():
                if is_segment_name(segment.name):
                    self._queue.put(segment.name)
            self._thread = threading.Thread(target=self._run, name="pgwal-compressor", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._thread is not None:
            self._deadline_s = time.monotonic() + COMPRESSOR_DRAIN_S
            self._queue.put(None)
            self._thread.join()

    def add(self, name: str) -> None:
        """Take a finished segment, whose file is durable; returns at once."""
        if self._thread is not None:
            self._queue.put(name)

    def begin(self, timeline_id: int) -> None:
        pass  # All is where it belongs when it is durable.

    def compared(self) -> None:
        pass

    def look_again(self) -> None:
        pass

    def prove(self, timeline_id: int, start: Lsn, lsn: Lsn, *, is_all: bool) -> None:
        pass

    def grow(self, timeline_id: int, flushed_lsn: Lsn) -> None:
        pass

    def safe_lsn(self, timeline_id: int, flushed_lsn: Lsn) -> Lsn:  # noqa: ARG002
        return flushed_lsn

    def has_room(self) -> bool:
        return True

    def hurry(self) -> None:
        pass

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Compress nothing for a while; waits for the segment that is at hand.

        A segment that is moved away while it is compressed would come back, and one that takes its name be removed.
        """
        self._may_go_on.clear()
        try:
            with self._at_work:
                yield
        finally:
            self._may_go_on.set()

    def _run(self) -> None:
        _yield_to_others()
        while True:
            try:
                name = self._queue.get(timeout=COMPRESSOR_RETRY_S if self._failed else None)
            except queue.Empty:
                self._try_failed_again()
                continue
            if name is None or (self._deadline_s is not None and time.monotonic() > self._deadline_s):
                return
            # A lock alone would go to this thread again and again, as long as there is something to compress.
            self._may_go_on.wait()
            with self._at_work:
                self._take(name)

    def _try_failed_again(self) -> None:
        failed, self._failed = self._failed, []
        for name in failed:
            self._queue.put(name)

    def _take(self, name: str) -> None:
        try:
            if not self._store.exists(f"{WAL_DIRECTORY}/{name}"):
                return  # An archive_command has brought it, compressed.
            twin = _compressed_twin(self._store, name)
            if twin is not None and self._is_same(name, twin):
                self._store.delete(f"{WAL_DIRECTORY}/{name}")
                return
            compress_segment(self._store, self._archive.geometry, name, self._compression)
            self.done_count += 1
            if twin not in (None, name + self._compression.suffix):
                self._store.delete(f"{WAL_DIRECTORY}/{twin}")
        except ObjectNotFound:
            return  # Somebody removed it: there is nothing to do.
        except (RepositoryError, FormatError) as error:
            self.failed_count += 1
            self._failed.append(name)
            logger.warning("segment %s is not compressed for now: %s", name, error)

    def _is_same(self, name: str, twin: str) -> bool:
        """Tell whether plain and compressed file hold the same; False for a damaged one, which is to be replaced.

        Raises FormatError when both are whole and differ: nobody but a person can tell which is right.
        """
        try:
            same = _is_same(self._store, self._archive.geometry, name, twin)
        except FormatError:
            # The plain file is what a crash left, or the whole copy that somebody put beside the damaged one.
            return False
        if not same:
            raise FormatError(f"{name} and {twin} hold different WAL: remove one of them")
        return True
