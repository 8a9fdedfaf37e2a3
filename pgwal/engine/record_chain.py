"""Where records begin and end, and whether they link: what a window, and WAL of one history, is held to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pgwal.errors import FormatError, TimelineMismatch, WalLevelMinimal
from pgwal.lsn import Lsn, LsnRange
from pgwal.segment import WAL_PAGE_SIZE
from pgwal.wal.page_magic import wal_format_of_major

if TYPE_CHECKING:
    from pgwal.repository.repository import Repository
    from pgwal.repository.wal_directory import WalDirectory
    from pgwal.summary.link import Link
    from pgwal.summary.summarizer import ChangeReader
    from pgwal.wal.page_magic import WalFormat
    from pgwal.wal.record import EndOfWal, WalRecord
    from pgwal.wal.scan import WalScanner

_TWO_HISTORIES = (
    "WAL of two histories lies here, as after a server was put back to an earlier state of its own: what was written"
    " before that does not belong to what came later."
)


def next_record_position(directory: WalDirectory, wal_format: WalFormat, timeline_id: int, lsn: Lsn) -> Lsn:
    """Return where the record that comes next at a position between two records can start.

    That is the next multiple of 8 (MAXALIGN), but for a position in the rest of a segment behind XLOG_SWITCH, where
    nothing is, or in what a crash cut off.  It is that, too, where WAL cannot be read: whoever reads on will say so.
    Raises TimelineMismatch, which names the record, for a position within a record.
    """
    geometry = directory.geometry
    named, lsn = lsn, Lsn(lsn + 7 & ~7)
    place = geometry.first_record_position(lsn)
    segment_no = geometry.segment_no(place)
    begin, earlier = Lsn(place - place % WAL_PAGE_SIZE), geometry.segment_start(segment_no)
    while (scanner := _walk(directory, wal_format, timeline_id, begin, place)) is not None:
        if scanner.last_record_lsn == place:
            return lsn
        if geometry.first_record_position(scanner.position) <= place:
            # A page of zeros behind a switch is no end of WAL: what is before it tells.
            if scanner.end_reason is None or scanner.position != begin or begin == earlier:
                return lsn
        elif scanner.last_record_lsn:
            last = record_at(directory, wal_format, timeline_id, Lsn(scanner.last_record_lsn))
            if last is not None and last.end_lsn > place:
                raise _within(named, timeline_id, f"the record at {last.lsn}", f"{last.lsn} or {last.end_lsn}")
            return Lsn(scanner.position)
        elif _end_of_first(directory, timeline_id, begin) <= place:
            # Only the record is here that a crash cut off.
            return Lsn(scanner.position)
        elif begin == earlier:
            # Not even the segment has the start of the record that goes over the position.
            segment_no -= 1
            earlier = geometry.segment_start(segment_no)
            if not directory.is_complete(timeline_id, segment_no):
                following = _walk(directory, wal_format, timeline_id, begin)
                next_lsn = Lsn(following.first_record_lsn) if following is not None else 0
                raise _within(named, timeline_id, f"a record that begins before {begin}", f"{next_lsn or 'a position'}")
        begin = earlier
    return lsn


def _walk(
    directory: WalDirectory, wal_format: WalFormat, timeline_id: int, begin: Lsn, place: Lsn | None = None
) -> WalScanner | None:
    """Walk from the first record of a page over the one that starts at ``place``, by default over the first one.

    None where that cannot be read.
    """
    from pgwal.wal.scan import NEED_DATA, SPECIAL, WalScanner

    scanner = WalScanner(directory.geometry.segment_size, begin, magic=wal_format.magic, derive_map_blocks=False)
    if place is not None:
        scanner.stop_lsn = place + 1
    try:
        for data in directory.read(timeline_id, begin):
            scanner.feed(data)
            while (event := scanner.scan()) == SPECIAL:
                scanner.take_blocks()
            scanner.take_blocks()
            if event != NEED_DATA or (place is None and scanner.record_count):
                break
    except FormatError:
        return None
    return scanner


def _end_of_first(directory: WalDirectory, timeline_id: int, page_lsn: Lsn) -> Lsn:
    """Return where the record ends that a page goes on with, or its own header where it goes on with none."""
    from pgwal.wal.layout import PAGE_FIRST_IS_CONTRECORD, ShortPageHeader

    header: Any = ShortPageHeader.parse(next(iter(directory.read(timeline_id, page_lsn))))
    end = directory.geometry.first_record_position(page_lsn)
    if not header.info & PAGE_FIRST_IS_CONTRECORD:
        return end
    rest = header.remaining_length
    while rest > (on_page := WAL_PAGE_SIZE - end % WAL_PAGE_SIZE):
        rest -= on_page
        end = directory.geometry.first_record_position(end + on_page)
    return Lsn(end + (rest + 7 & ~7))


def _within(lsn: Lsn, timeline_id: int, record: str, others: str) -> TimelineMismatch:
    return TimelineMismatch(
        f"position {lsn} of timeline {timeline_id} lies within {record}",
        hint=f"Name {others}, where a record begins. If a backup starts or ends there, WAL of another history is here:"
        " take a full backup.",
        timeline_id=timeline_id,
        lsn=lsn,
    )


def record_at(directory: WalDirectory, wal_format: WalFormat, timeline_id: int, lsn: Lsn) -> WalRecord | None:
    """Return the record that starts at a position, whatever is before it; None when there is none."""
    from pgwal.wal.decoder import WalDecoder
    from pgwal.wal.record import EndOfWal, WalRecord

    decoder = WalDecoder(directory.geometry.segment_size, lsn, wal_format=wal_format)
    offset = lsn % WAL_PAGE_SIZE
    for number, data in enumerate(directory.read(timeline_id, lsn)):
        decoder.feed(data if number else _passing_over(data, offset))
        try:
            record = decoder.next_record()
        except FormatError:
            return None
        if isinstance(record, WalRecord):
            return record if record.lsn == lsn else None
        if isinstance(record, EndOfWal):
            return None
    return None


def _passing_over(data: bytes, offset: int) -> bytes:
    """Return WAL whose first page says that up to an offset it goes on with an earlier record."""
    from pgwal.wal.layout import PAGE_FIRST_IS_CONTRECORD, PAGE_LONG_HEADER, LongPageHeader, ShortPageHeader

    header: Any = ShortPageHeader.parse(data)
    header_size = (LongPageHeader if header.info & PAGE_LONG_HEADER else ShortPageHeader).sizeof()
    if offset <= header_size:
        return data
    header.info |= PAGE_FIRST_IS_CONTRECORD
    header.remaining_length = offset - header_size
    return ShortPageHeader.build(header) + data[ShortPageHeader.sizeof() :]


def read_record(repository: Repository, timeline_id: int, lsn: Lsn) -> WalRecord | EndOfWal | None:
    """Return the first record of a timeline that starts at ``lsn`` or later, or why there is none.

    None where the archive ends.  Raises FormatError for a segment or a record that is damaged.
    """
    return next(records(repository, timeline_id, lsn), None)


def records(repository: Repository, timeline_id: int, start: Lsn) -> Iterator[WalRecord | EndOfWal]:
    """Yield the records of a timeline that start at ``start`` or later, and at last why there are no more, if known.

    Raises FormatError for a segment or a record that is damaged.
    """
    from pgwal.wal.decoder import Need, WalDecoder
    from pgwal.wal.record import EndOfWal

    identity = repository.identity
    decoder = WalDecoder(
        identity.segment_size,
        start,
        wal_format=wal_format_of_major(identity.major),
        system_identifier=identity.system_identifier,
    )
    for data in repository.wal.read(timeline_id, start):
        decoder.feed(data)
        while not isinstance(found := decoder.next_record(), Need):
            yield found
            if isinstance(found, EndOfWal):
                return


def broken_chain(
    directory: WalDirectory, wal_format: WalFormat, timeline_id: int, end_of_wal: EndOfWal
) -> TimelineMismatch | None:
    """Return the error for WAL that ends at a place where there is WAL of another history; None if it does not."""
    from pgwal.wal.record import EndReason

    if end_of_wal.reason is EndReason.CONTRECORD:
        return TimelineMismatch(
            f"WAL of timeline {timeline_id} does not go on at {end_of_wal.lsn}: a page behind that does not go on with"
            " the record before it",
            hint=f"{_TWO_HISTORIES} Take a full backup.",
            timeline_id=timeline_id,
            lsn=end_of_wal.lsn,
        )
    if end_of_wal.reason is not EndReason.RECORD_PREV_LINK:
        return None
    record = record_at(directory, wal_format, timeline_id, end_of_wal.lsn)
    if record is None:
        # Damaged.
        return None
    return TimelineMismatch(
        f"WAL of timeline {timeline_id} does not go on at {end_of_wal.lsn}: the record there follows one at"
        f" {record.prev_lsn}, which is not the one before it here",
        hint=f"{_TWO_HISTORIES} Take a full backup.",
        timeline_id=timeline_id,
        lsn=end_of_wal.lsn,
    )


def read_range(
    directory: WalDirectory,
    wal_format: WalFormat,
    wanted: LsnRange,
    *,
    system_identifier: int = 0,
    to_any_end: bool = False,
) -> ChangeReader:
    """Read what changed in a range of one timeline, as far as WAL is there; ``complete`` tells whether all of it.

    Raises TimelineMismatch when a range that is not empty begins within a record, or, unless ``to_any_end``, ends
    within one; WalLevelMinimal when it was written with wal_level = minimal; FormatError.
    """
    place = directory.geometry.first_record_position
    reader = _read(directory, wal_format, wanted, system_identifier)
    # Without a record of its own it must be nothing but the place between two.
    begin = reader.first_record_lsn or (reader.position if reader.complete else Lsn(0))
    is_empty = place(wanted.start) >= place(wanted.end)
    if place(begin) != place(wanted.start) and (not is_empty or reader.end_of_wal is not None):
        start = next_record_position(directory, wal_format, wanted.timeline_id, wanted.start)
        if start != wanted.start and not reader.first_record_lsn:
            reader = _read(directory, wal_format, wanted._replace(start=start), system_identifier)
            # With no room left for a record, no more WAL is needed.
            reader.feed(b"")
    is_end_exact = is_empty or to_any_end or place(reader.position) <= place(wanted.end)
    if reader.complete and not is_end_exact:
        next_record_position(directory, wal_format, wanted.timeline_id, wanted.end)
    if reader.minimal_lsn is not None:
        raise WalLevelMinimal(
            f"WAL from {reader.minimal_lsn} on timeline {wanted.timeline_id} was written with wal_level = minimal,"
            " which does not log every change",
            hint="Take a full backup.",
            timeline_id=wanted.timeline_id,
            lsn=reader.minimal_lsn,
        )
    return reader


def _read(directory: WalDirectory, wal_format: WalFormat, wanted: LsnRange, system_identifier: int) -> ChangeReader:
    # Not above: it takes long to import, and summaries that lie in the window whole need none of it.
    from pgwal.summary.summarizer import ChangeReader

    reader = ChangeReader(wal_format, directory.geometry, wanted.start, wanted.end, system_identifier=system_identifier)
    for data in directory.read(wanted.timeline_id, wanted.start):
        if reader.complete or reader.end_of_wal is not None:
            break
        reader.feed(data)
    return reader


def require_linked_switch(directory: WalDirectory, wal_format: WalFormat, switch: LsnRange, follower_id: int) -> None:
    """Raise TimelineMismatch unless WAL of a timeline goes on behind the last record of the one that it left.

    ``switch`` is WAL of the older timeline up to where it was left, from one segment before that on at the most.  What
    cannot be read of it, or of the younger one, is not looked at: whoever reads it all will say so.
    """
    before = _read(directory, wal_format, switch, 0)
    place = directory.geometry.first_record_position(switch.end)
    if before.complete and before.position > place:
        next_record_position(directory, wal_format, switch.timeline_id, switch.end)
    behind = LsnRange(follower_id, switch.end, Lsn(place + 1))
    after = _read(directory, wal_format, behind, 0)
    if before.complete and after.first_record_lsn and not after.link.follows(before.link.last_lsn):
        raise unlinked(behind, after.link, before.link.last_lsn, summarised=False)


class Chain:
    """Proves that the parts of a window follow each other: each goes on behind the last record of the one before.

    Where a part has no record, what is behind it goes on behind what is before it.
    """

    def __init__(self) -> None:
        self._last_lsn = Lsn(0)

    def go_on(self, part: LsnRange, link: Link, *, summarised: bool) -> None:
        """Take the next part; raises TimelineMismatch, which names both records, where it does not follow."""
        if not link.follows(self._last_lsn):
            raise unlinked(part, link, self._last_lsn, summarised=summarised)
        self._last_lsn = link.after(self._last_lsn).last_lsn


def unlinked(piece: LsnRange, link: Link, last_lsn: Lsn, *, summarised: bool) -> TimelineMismatch:
    """Return the error for a part of a window that does not go on behind the record at ``last_lsn``."""
    kind = "the summary" if summarised else "WAL"
    remedy = " If pgwal verify finds fault with that summary alone, delete it: WAL is read in its place."
    return TimelineMismatch(
        f"{kind} of {piece} follows a record at {link.prev_lsn}, but the last one before it is at {last_lsn}",
        hint=f"{_TWO_HISTORIES} Take a full backup.{remedy if summarised else ''}",
        timeline_id=piece.timeline_id,
        lsn=piece.start,
        end_lsn=piece.end,
    )
