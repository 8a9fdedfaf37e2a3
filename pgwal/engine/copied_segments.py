"""Copy whole WAL segments to another repository in runs, each of which any worker of a fleet can copy, and prove.

Nothing is stored over what is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from pgwal.budget import READ_BYTES
from pgwal.engine.fleet import Room, Tell
from pgwal.engine.proven_wal import SegmentContent, WalProof, naming_damage
from pgwal.engine.same_history import SameHistory
from pgwal.errors import FormatError, ObjectExists, ObjectNotFound
from pgwal.lsn import Lsn
from pgwal.repository.compression import Compression
from pgwal.repository.counted_pieces import CountedPieces
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.object_reader import open_object
from pgwal.repository.repository import Repository
from pgwal.repository.store import SealingStore, as_sealing
from pgwal.repository.wal_compressor import compressed_pieces
from pgwal.repository.wal_directory import WalSegmentFile
from pgwal.repository.wal_file_name import split_segment_name


class SegmentRun(NamedTuple):
    """Consecutive segments of a timeline, and the address of the repository to copy them to.

    ``there`` are the numbers of those around them that the source has, ``left_at`` the positions at which others left
    the timeline.  ``as_stored`` says that what is encrypted is copied as it is, and where it ``opens`` it that it is
    proven: there is an identity, or nothing is encrypted.
    """

    to: str
    segments: Sequence[WalSegmentFile]
    there: Sequence[int]
    left_at: Sequence[Lsn]
    as_stored: bool
    opens: bool


class RunVerdict(NamedTuple):
    """The sizes of what was copied of a run, as stored in the source, by the names of files there.

    ``problems`` are names of those that are damaged, which were not copied, and what is wrong.
    """

    sizes_bytes: dict[str, int]
    problems: Sequence[tuple[str, str]]


def copy_run(room: Room, tell: Tell, run: SegmentRun) -> RunVerdict:
    """Copy a run of segments: work for a crew.  Raises HistoryMismatch where another segment is there; see ``put``."""
    copier = _SegmentCopier(room.repository, room.target(run.to), run, tell)
    sizes_bytes, problems = dict[str, int](), list[tuple[str, str]]()
    for segment in run.segments:
        try:
            sizes_bytes[segment.name] = copier.copy(segment)
        except FormatError as error:
            problems.append((f"{WAL_DIRECTORY}/{segment.name}", str(error)))
            copier.begin_anew()
    return RunVerdict(sizes_bytes, problems)


class _SegmentCopier:
    """Copies the segments of one run, one after the other."""

    def __init__(self, source: Repository, target: Repository, run: SegmentRun, tell: Tell) -> None:
        self._source = source
        self._target = target
        self._run = run
        self._tell = tell
        sealing, target_sealing = as_sealing(source.store), as_sealing(target.store)
        self._sealing: SealingStore | None = None
        self._from, self._to = source.store, target.store
        if run.as_stored and sealing is not None and target_sealing is not None:
            self._sealing = sealing
            self._from, self._to = sealing.as_stored, target_sealing.as_stored
        self._compresses = target.place.is_remote and self._sealing is None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Prove what comes by itself, behind what is damaged."""
        self._proof = WalProof(
            self._source, self._run.segments[0].timeline_id, frozenset(self._run.there), self._run.left_at
        )

    def copy(self, segment: WalSegmentFile) -> int:
        """Copy a segment, and return how large it is as stored in the source; raises FormatError for a damaged one."""
        try:
            return self._put(segment)
        except ObjectNotFound:
            # A receiver has compressed it meanwhile.
            key = (segment.timeline_id, segment.segment_no)
            for found in self._source.wal.segments():
                if (found.timeline_id, found.segment_no) == key and found.name != segment.name:
                    return self._put(found)
            raise

    def _put(self, segment: WalSegmentFile) -> int:
        _, compression, _ = split_segment_name(segment.name)
        pieces = CountedPieces(self._proven_pieces(segment))
        name, content = segment.name, iter(pieces)
        if self._compresses and not compression:
            method = Compression()
            name = segment.name + method.suffix
            content = compressed_pieces(pieces, method, self._source.geometry.segment_size)
        try:
            self._to.put(f"{WAL_DIRECTORY}/{name}", content)
        except ObjectExists:
            # Somebody receives there, too; or this is done again, for whoever began it was killed.
            SameHistory(self._source, self._target).require_same_segment(segment, name)
        return pieces.size_bytes

    def _proven_pieces(self, segment: WalSegmentFile) -> Iterator[bytes]:
        """Yield what is stored of a segment, the last of it when all is proven."""
        path = f"{WAL_DIRECTORY}/{segment.name}"
        if self._sealing is not None:
            self._sealing.require_form(path)
        opener = None if self._sealing is None else self._sealing.opener(path)
        content = SegmentContent(split_segment_name(segment.name)[1], opener)
        held = b""
        with (
            naming_damage(self._source.store.locate(path)),
            closing(open_object(self._from, path, is_read_whole=True)) as file,
        ):
            if self._run.opens:
                self._proof.begin(segment.segment_no)
            while piece := file.read(READ_BYTES):
                self._tell(len(piece))
                if self._run.opens:
                    for data in content.inflated(piece):
                        self._proof.take(data)
                if held:
                    yield held
                held = piece
            if self._run.opens:
                for data in content.rest():
                    self._proof.take(data)
                self._proof.end()
        yield held
