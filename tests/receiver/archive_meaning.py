"""What an archive means: up to where, along each history, it holds the WAL of one life, and whose that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from core.wal_builder import RM_XACT, RM_XLOG, XLOG_SWITCH
from receiver.model_server import GEOMETRY, Life

from pgwal.lsn import Lsn, LsnRange
from pgwal.relation import Fork
from pgwal.repository.layout import SET_ASIDE_DIRECTORY, WAL_DIRECTORY
from pgwal.repository.repository import Repository
from pgwal.repository.store import ObjectStore, folders_in, objects_in
from pgwal.repository.wal_directory import WalDirectory
from pgwal.repository.wal_file_name import split_segment_name
from pgwal.segment import WAL_PAGE_SIZE, is_segment_name
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.timeline import TimelineHistory
from pgwal.wal.decoder import NEED_DATA, WalDecoder
from pgwal.wal.record import WalRecord


class StoredPart(NamedTuple):
    """What a file holds of [start, end) of a timeline, as far as it counts."""

    timeline_id: int
    number: int
    start: Lsn
    end: Lsn
    content: bytes
    complete: bool

    @property
    def counting(self) -> bytes:
        """The bytes from start to end."""
        first = GEOMETRY.segment_start(self.number)
        return self.content[self.start - first : self.end - first].ljust(self.end - self.start, b"\0")


class ArchiveMeaning:
    """The archive at one moment."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        archive = repository.wal
        self.segments = archive.segments()
        self.history_contents = {number: archive.history_content(number) for number in archive.history_timelines()}
        self._parts: list[StoredPart] = []
        for segment in self.segments:
            start, end = (GEOMETRY.segment_start(segment.segment_no + more) for more in (0, 1))
            with archive.open_segment(segment) as reader:
                content = reader.read(GEOMETRY.segment_size)
            self._parts.append(
                StoredPart(segment.timeline_id, segment.segment_no, start, end, content, segment.complete)
            )

    @property
    def timelines(self) -> set[int]:
        return {*self.history_contents, *(segment.timeline_id for segment in self.segments)}

    def history(self, timeline_id: int) -> TimelineHistory:
        return TimelineHistory.decode(timeline_id, self.history_contents.get(timeline_id, b""))

    def along(self, history: TimelineHistory) -> list[StoredPart]:
        """Return what there is of a history, by segment and timeline."""
        found = []
        for part in self._parts:
            limit = history.end_of(part.timeline_id)
            if limit is None or part.start < limit:
                found.append(part._replace(end=part.end if limit is None else min(part.end, limit)))
        found.sort(key=lambda part: (part.number, part.timeline_id))
        return [part if part.complete else _counting_part(part, found) for part in found]

    def groups(self, history: TimelineHistory) -> Iterator[list[StoredPart]]:
        """Yield what there is without a hole."""
        group: list[StoredPart] = []
        reached = Lsn(0)
        for part in self.along(history):
            if group and part.start > reached:
                yield group
                group = []
            group.append(part)
            reached = max(reached, part.end)
        if group:
            yield group

    def summaries(self) -> list[LsnRange]:
        return self.repository.summaries.ranges()


def _counting_part(part: StoredPart, parts: list[StoredPart]) -> StoredPart:
    """Return what counts of a part that is not complete: whole records, as far as their beginnings are here."""
    chain = [part]
    while in_front := [p for p in parts if p.number == chain[0].number - 1 and p.timeline_id <= part.timeline_id]:
        if not in_front[-1].complete or in_front[-1].end < chain[0].start:
            break
        chain.insert(0, in_front[-1])
    decoder = WalDecoder(GEOMETRY.segment_size, chain[0].start)
    first, position = None, chain[0].start
    for page in (page for each in chain for page in pages_of(each.content)):
        decoder.feed(page)
        while isinstance(record := decoder.next_record(), WalRecord):
            first = record.lsn if first is None else first
            position = end_behind(record)
    start = part.start if len(chain) > 1 or first is None else first
    return part._replace(start=start, end=max(start, min(part.end, position)))


def end_behind(record: WalRecord) -> Lsn:
    """Return where WAL goes on behind a record."""
    is_switch = (record.rmid, record.info) == (RM_XLOG, XLOG_SWITCH)
    return GEOMETRY.segment_start(GEOMETRY.last_segment_no(record.end_lsn) + 1) if is_switch else record.end_lsn


def end_of_group(group: Iterable[StoredPart]) -> Lsn:
    return max(part.end for part in group)


def is_of(life: Life, history: TimelineHistory, group: list[StoredPart]) -> bool:
    """Tell whether a life has, along a history, all that a group holds."""
    begin, end = group[0].start, end_of_group(group)
    if end > life.wal.end_lsn or life.history.ranges_between(begin, end) != history.ranges_between(begin, end):
        # Where the group ends at a switch, the life need not have made it.
        return False
    return all(first_difference(life, part) is None for part in group)


def first_difference(life: Life, part: StoredPart) -> Lsn | None:
    """Return the first position at which a part is not what a life has."""
    stored, true = part.counting, life.wal.wal_between(part.start, part.end)
    if stored == true:
        return None
    return Lsn(part.start + next((at for at in range(len(true)) if stored[at] != true[at]), len(true)))


def changed_blocks(life: Life, part: LsnRange) -> BlockMap:
    """Return the map of a range, from what was given to the builder."""
    block_map = BlockMap()
    for built in life.wal.records:
        if part.start <= built.lsn < part.end:
            for block in built.spec.blocks:
                assert block.fork != Fork.FSM
                block_map.mark(RelationFork(*block.relation), [block.block_no])
    return block_map


def has_record(life: Life, part: LsnRange) -> bool:
    """Tell whether a life has a record that starts in a range."""
    return any(part.start <= built.lsn < part.end for built in life.wal.records)


def decoded_commits(group: list[StoredPart]) -> list[bytes]:
    """Return the contents of the commits that a group of one timeline's parts holds, read record by record."""
    decoder = WalDecoder(GEOMETRY.segment_size, group[0].start)
    found = []
    for part in group:
        first = part.start - part.start % WAL_PAGE_SIZE - GEOMETRY.segment_start(part.number)
        for page in pages_of(part.content[first : part.end - GEOMETRY.segment_start(part.number)]):
            decoder.feed(page)
            while isinstance(record := decoder.next_record(), WalRecord):
                if record.rmid == RM_XACT:
                    found.append(bytes(record.main_data))
            assert record is NEED_DATA, record
    return found


def pages_of(content: bytes) -> Iterator[bytes]:
    """Yield pages: the decoder takes its time for larger pieces."""
    for at in range(0, len(content), WAL_PAGE_SIZE):
        yield content[at : at + WAL_PAGE_SIZE]


def stored_copies(store: ObjectStore) -> dict[tuple[int, int], list[bytes]]:
    """Return the contents of all files of each segment, in the archive and in what was set aside."""
    found: dict[tuple[int, int], list[bytes]] = {}
    places = [WAL_DIRECTORY]
    places += [f"{SET_ASIDE_DIRECTORY}/{name}/{WAL_DIRECTORY}" for name in folders_in(store, SET_ASIDE_DIRECTORY)]
    for place in places:
        for name, size in objects_in(store, place):
            base, _, _ = split_segment_name(name)
            if size and is_segment_name(base):
                content = b"".join(read_whole(store, place, name))
                found.setdefault(GEOMETRY.parse_file_name(base), []).append(content)
    return found


def read_whole(store: ObjectStore, place: str, name: str) -> Iterator[bytes]:
    directory = WalDirectory(store, place, GEOMETRY, only=name)
    timeline_id, number = GEOMETRY.parse_file_name(split_segment_name(name)[0])
    yield from directory.read(timeline_id, GEOMETRY.segment_start(number))
