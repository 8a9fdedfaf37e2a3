# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, cdivision=True
"""WAL bytes in, changed blocks out: what a caller has of the walk over pages and records, which is a tight loop.

It opens no file and keeps no clock.  The rules are those of src/backend/access/transam/xlogreader.c, PostgreSQL 13
to 19; ``layout.py`` declares the structures that are read here by offset, ``decoder.py`` is the same walk as a
specification, and tests hold the two equal.

The scanner is in five modules, each of which adds a layer to one object, so that its state is one structure in C:
``main_data.py``, ``record_parser.py``, ``page_walk.py`` and this one; ``reference_log.py`` has what is found.  All that
is done with every record is in ``record_parser.py``: the compiler of C sees no further than a module, and where the
steps of a record were called as those of another module are, small ones took 8 % longer.

Their sources run in two forms: compiled by Cython, with the C types that the ``.pxd`` beside each gives to its names,
and interpreted as they stand; what they share is in ``scan_types`` for either form.  All are of the same form.  So that
both agree, no sum, product or shift here can leave the C type of its result.  A literal of more than 31 bits would be a
Python object in the loop, so there is none.
"""

from __future__ import annotations

import warnings
from collections import deque
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; these are all the names that it uses.
    cython = SimpleNamespace(compiled=False, nogil=nullcontext())

from pgwal.aligned_buffer import aligned_buffer
from pgwal.errors import FormatError, SlowScanner, UnknownRecord
from pgwal.lsn import Lsn
from pgwal.segment import WalGeometry
from pgwal.wal.page_magic import wal_format_of_magic
from pgwal.wal.page_walk import PageWalk
from pgwal.wal.record import EndReason
from pgwal.wal.reference_log import ReferenceLog
from pgwal.wal.scan_request import ScanRequest

if not cython.compiled:
    from pgwal.wal.scan_types import *

if TYPE_CHECKING:
    from array import array

    from pgwal.wal.scan_types import Buffer, RelationFork

COMPILED: bool = cython.compiled

LONG_SCAN_BYTES = 16 << 20
"""Who scans more than this by the interpreted form is told once, by the warning SlowScanner."""

NEED_DATA: int = NEEDS_DATA
STOP: int = STOPPED
SPECIAL: int = FOUND_SPECIAL
END_OF_WAL: int = ENDED

# What is read at a time: more leaves the processor's second cache, less is as many more calls.
_SOURCE_BUFFER = 1 << 18


def choose_crc32c(name: str = "") -> str:
    """Choose how CRCs are computed below, and return its name: the one named if there is such a one, or the fastest."""
    return choose_crc_way(name)


def record_crc(record: bytes) -> int:
    """Return the CRC that the header of a record of at least 24 bytes should hold."""
    if len(record) < RECORD_HEADER_SIZE:
        raise ValueError("a record is shorter than its header")
    return crc_of_record(bytes_of(record), 0, len(record))


def copied_crc(target: bytearray, data: bytes, crc: int = 0) -> int:
    """Copy ``data`` to the start of ``target`` and return its CRC, continued from ``crc``."""
    if len(target) < len(data):
        raise ValueError("the target is shorter than the data")
    return crc_of_copy(bytes_of(target), 0, bytes_of(data), 0, len(data), crc)


CRC_IMPLEMENTATION: str = choose_crc32c()


class WalSource:
    """WAL that a scanner reads by itself when it gets to it; what it is read from is known to a subclass.

    left   how many bytes there still are; none when reading has failed, which is for whoever made it to find out
    """

    def __init__(self, size_bytes: int) -> None:
        self.left = size_bytes

    def fill(self, target: Buffer, size: int) -> int:  # noqa: ARG002
        """Put the next bytes, ``size`` of them or what is left, to the start of ``target``; return how many, 0 ends."""
        return 0


_NO_SOURCE = WalSource(0)


class WalScanner(PageWalk):
    """Walks the WAL of one timeline from the first record that starts at or after ``start_lsn``.

    Feed it bytes from the start of ``start_lsn``'s page on, in chunks of any size, and call ``scan`` until it says
    NEED_DATA.  A chunk is not copied: it must stay as it is until then.  Or have it read them, from a WalSource.

    ``magic`` 0 takes the format from the first page.  ``system_identifier`` 0 fits any.  ``prev_lsn``, when given,
    is where the record before ``start_lsn`` starts: the first record that is reported must link to it.
    ``derive_map_blocks`` False spares whoever never takes derived blocks the memory that they would pile up in.
    With ``all_transaction_ends`` each record that ends a transaction is a special one, with ``tablespaces`` each that
    creates or drops a tablespace.  With ``decode_shortenings``, which excludes both, records that do no more than
    create, drop or truncate relation files are decoded here, and ``take_changes`` returns what they do in the place of
    ``take_blocks``; special are only those that may announce a wal_level, and those that the loop does not decode
    because they are broken, unknown, unlike a server's or have too long a list.

    scan() raises FormatError for a record whose CRC is right and whose contents are not, UnknownRecord for one that
    announces what is not known, UnsupportedVersion for an unknown page magic.  Errors and END_OF_WAL are final.
    Records that start before ``start_lsn`` on its page are walked and checked in the same way, but not reported.

    feed_lsn               the position of the next byte to feed, or to read
    position               where the next record starts, as far as is known: the end of the last one (aligned to 8;
                           a page boundary stays one, though the record will start after that page's header), the
                           next segment after XLOG_SWITCH, the page that discards a record which a crash cut off;
                           before the first record the earliest place where it can start.  After END_OF_WAL where
                           there is no record: the start of the one that is incomplete or wrong, or the bad page
    timeline_id            of the newest page
    magic                  of the pages, 0 while it is unknown
    last_record_lsn        where the newest whole record starts, also one before ``start_lsn``; 0 before there is one
    first_record_lsn       where the first record that was reported starts; 0 before there is one
    first_prev_lsn         the xl_prev of that record: where the record before it starts
    record_count           how many records were reported
    special_*              after SPECIAL, the record that Python must decode; ``special_end_lsn`` and, as to how much
                           is kept of it, ``special_main`` as of WalRecord
    """

    def __init__(
        self,
        segment_size: int,
        start_lsn: int,
        *,
        magic: int = 0,
        system_identifier: int = 0,
        prev_lsn: int = 0,
        derive_map_blocks: bool = True,
        all_transaction_ends: bool = False,
        tablespaces: bool = False,
        decode_shortenings: bool = False,
    ) -> None:
        request = ScanRequest(
            WalGeometry(segment_size).segment_size,
            start_lsn,
            prev_lsn,
            system_identifier,
            derive_map_blocks,
            all_transaction_ends,
            tablespaces,
            decode_shortenings,
        )
        request.check()
        super().__init__(request, ReferenceLog(takes_shortenings=decode_shortenings))
        self.feed_lsn = self._at
        self.special_main = b""
        self._failure: FormatError | None = None
        self._start_chunks()
        if magic:
            self._read_as(wal_format_of_magic(magic, "WalScanner"))

    def _start_chunks(self) -> None:
        self._chunk: memoryview = memoryview(b"")
        self._size = 0
        self._queue: deque[memoryview] = deque()
        self._source = _NO_SOURCE
        self._source_buffer: memoryview | None = None

    # -- what the caller sees --------------------------------------------------------------------------------

    @property
    def stop_lsn(self) -> int:
        """No record that starts here or later is taken."""
        return self._stop

    @stop_lsn.setter
    def stop_lsn(self, lsn: int) -> None:
        if not (0 <= lsn < 1 << 64):
            raise ValueError("not a WAL position")
        self._stop = lsn

    @property
    def untaken_count(self) -> int:
        """How many blocks, some of them more than once, ``take_blocks`` would return."""
        return self._references.log_count

    @property
    def block_reference_count(self) -> int:
        """How many block references the records had that were reported, repetitions included."""
        return self._references.reference_count

    @property
    def end_reason(self) -> EndReason | None:
        """Why WAL ends, after END_OF_WAL."""
        return EndReason(self._reason) if self._reason else None

    def feed(self, data: Buffer) -> None:
        """Take the next bytes; they must not change before scan() says NEED_DATA."""
        view = memoryview(data).cast("B")
        if len(view) == 0:
            return
        self.feed_lsn += len(view)
        if not self._reason and self._failure is None:
            self._queue.append(view)

    def read(self, source: WalSource) -> None:
        """Have scan() read the next bytes; they have all been read when it says NEED_DATA, and must have before more.

        Through a buffer that stays in the processor's second cache: what is scanned need not come from memory again.
        """
        if self._queue:
            raise ValueError("bytes that were fed wait to be scanned")
        if self._cursor != self._size:
            raise ValueError("what was fed has not been read")
        if self._source.left != 0:
            raise ValueError("what was fed has not been read")
        if self._reason or self._failure is not None:
            return
        if self._source_buffer is None:
            self._source_buffer = aligned_buffer(_SOURCE_BUFFER)
        self._take_chunk(self._source_buffer, 0)
        self._source = source

    def scan(self) -> int:
        """Walk on through what was fed: NEED_DATA, STOP, SPECIAL or END_OF_WAL.

        Call again after SPECIAL, and after raising ``stop_lsn``.  At SPECIAL the blocks of all records before the
        special one can be taken; its own and those of later records are not among them yet.
        """
        if self._failure is not None:
            raise self._failure
        while not self._reason:
            code = self._run()
            if code == NEEDS_DATA:
                if not self._next_chunk():
                    return NEEDS_DATA
            elif code == STOPPED:
                return STOPPED
            elif code == FOUND_SPECIAL:
                self.special_main = self._kept_main()
                return FOUND_SPECIAL
            elif code != ENDED:
                self._serve(code)
        self._drop_chunks()
        return ENDED

    def _kept_main(self) -> bytes:
        """Return the main data of the record that was parsed last, as far as it is kept."""
        end = self._main_at + self._main_length
        if self._record_lsn != self._lsn:
            return bytes(self._chunk[self._main_at : end])
        # No slice of a bytearray, which would be one more copy.
        return bytes(memoryview(self._record)[self._main_at : min(end, self._kept)])

    def _run(self) -> int:
        data = bytes_of(self._chunk)
        source = self._source
        with cython.nogil:
            code = self._walk(data, self._size)
            while code == NEEDS_DATA and source.left:
                # Where there is something left of a source, the chunk is its buffer, which has been used up.
                self._cursor = 0
                self._size = source.fill(data, _SOURCE_BUFFER)
                if self._size == 0:
                    break
                self.feed_lsn += self._size
                code = self._walk(data, self._size)
        return code

    def _next_chunk(self) -> bool:
        if not cython.compiled and self._at - self._start_lsn > LONG_SCAN_BYTES:
            # Python gives a warning once for each line that it is of: this one, whoever calls.
            warnings.warn(SlowScanner(), stacklevel=1)
        self._take_chunk(memoryview(b""), 0)
        if not self._queue:
            return False
        chunk = self._queue.popleft()
        self._take_chunk(chunk, len(chunk))
        return True

    def _take_chunk(self, chunk: memoryview, size: int) -> None:
        self._chunk = chunk
        self._size = size
        self._cursor = 0
        self._source = _NO_SOURCE

    def _drop_chunks(self) -> None:
        self._queue.clear()
        self._next_chunk()

    def _serve(self, code: int) -> None:
        """Do for the loop what needs Python: memory, the format of a magic, errors."""
        if code == NEEDS_TABLES:
            self._references.grow()
        elif code == NEEDS_RECORD_BUFFER:
            self._grow_record()
        else:
            try:
                self._look_up_format() if code == NEEDS_FORMAT else self._raise(code)
            except FormatError as failure:
                self._failure = failure
                self._drop_chunks()
                raise

    def _look_up_format(self) -> None:
        self._read_as(wal_format_of_magic(u16(self._head_bytes, 0), f"WAL page {Lsn(self._at)}"))

    def _raise(self, code: int) -> None:
        where = f"record at {Lsn(self._lsn)}"
        if code == FOUND_UNKNOWN:
            major = wal_format_of_magic(self.magic, where).major
            raise UnknownRecord(
                f"{where}: rmgr {self._rmid}, info {self._info:#04x} is not known for PostgreSQL {major}",
                hint="It may change relation files in a way that this pgwal does not understand; "
                "look for a newer pgwal.",
                lsn=Lsn(self._lsn),
            )
        raise FormatError(f"{where}: its CRC is right, but {self._broken_because()}", lsn=Lsn(self._lsn))

    # -- what was found --------------------------------------------------------------------------------------

    def take_blocks(self) -> list[tuple[RelationFork, array[int]]]:
        """Return and forget the blocks that records referred to since the last take.

        For each relation fork (tablespace, database, relation, fork) its block numbers, in no order; some may come
        more than once.
        """
        if self._decodes_shortenings:
            raise ValueError("what shortens relation forks was decoded, and belongs between their blocks")
        return [(fork, blocks) for fork, _, blocks in self._take()]

    def take_changes(self) -> list[tuple[RelationFork, int, array[int]]]:
        """Return and forget, with ``decode_shortenings``, what records changed since the last take.

        A fork, its limit and its block numbers: the fork was shortened to so many blocks, unless the limit is
        INVALID_BLOCK_NUMBER, and after that records referred to these blocks, in no order.  A fork that was shortened
        comes again for each time that its limit became lower, in LSN order.  Free space maps are left out: they are
        not fully logged, and so in no summary.
        """
        return self._take()

    def _take(self) -> list[tuple[RelationFork, int, array[int]]]:
        taken = self._references.take()
        self._shrink_record()
        return taken

    def take_derived_blocks(self) -> list[tuple[RelationFork, array[int]]]:
        """Return and forget the visibility map blocks in which records cleared bits without referring to them.

        Of the same shape as ``take_blocks``; derived from flags of heap records, so a server from 17.11 or 18.6 on
        has them among its references too.  19 refers to all of them, and so there are none here.
        """
        return self._references.take_derived()
