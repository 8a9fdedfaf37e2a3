"""The summary files of a repository."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from pgwal.errors import FormatError, ObjectExists, ObjectNotFound
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import SUMMARY_DIRECTORY
from pgwal.repository.store import ByteRange, ObjectStore, objects_in
from pgwal.repository.waiting_threads import ask_for_each
from pgwal.segment import WAL_PAGE_SIZE
from pgwal.summary.block_map import BlockMap
from pgwal.summary.codec import (
    LINK_TAIL_SIZE,
    MAX_READ_SUMMARY_BYTES,
    decode_link,
    decode_summary,
    encode_summary,
    parse_summary_file_name,
    summary_file_name,
)
from pgwal.summary.link import Link


class SummaryFiles:
    """Reads and writes ``summaries/`` of a repository."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def ranges(self) -> list[LsnRange]:
        """Return the ranges of all summaries, by timeline and start."""
        return _ranges(name for name, _ in objects_in(self._store, SUMMARY_DIRECTORY))

    def ranges_from(self, timeline_id: int, start: Lsn) -> list[LsnRange]:
        """Return those alone that begin in the page of a position or behind it, or are of later timelines."""
        before = f"{SUMMARY_DIRECTORY}/{timeline_id:08X}{start - start % WAL_PAGE_SIZE:016X}"
        return _ranges(name.rpartition("/")[2] for name, _ in self._store.list(f"{SUMMARY_DIRECTORY}/", after=before))

    def read(self, summary_range: LsnRange) -> BlockMap:
        """Return the map of a summary; raises FormatError when the file is damaged."""
        return self.read_linked(summary_range)[0]

    def read_linked(self, summary_range: LsnRange) -> tuple[BlockMap, Link | None]:
        """Return the map of a summary and its link, None where an older pgwal wrote none; raises as ``read``."""
        name = f"{SUMMARY_DIRECTORY}/{summary_file_name(summary_range)}"
        content = self._store.get(name, most_bytes=MAX_READ_SUMMARY_BYTES)
        with _named_remedy():
            return decode_summary(content, name), decode_link(content, name)

    def link(self, summary_range: LsnRange) -> Link | None:
        """Return the link of a summary without reading its map; raises FormatError when it is damaged."""
        name = f"{SUMMARY_DIRECTORY}/{summary_file_name(summary_range)}"
        (tail,) = self._store.get_ranges(name, [ByteRange(-LINK_TAIL_SIZE)])
        with _named_remedy():
            return decode_link(tail, name)

    def links(self) -> dict[LsnRange, Link]:
        """Return the links of all summaries that have one and can be read; the others count for nothing."""
        ranges = self.ranges()
        found = ask_for_each(self._store, self._link_or_none, ranges)
        return {part: link for part, link in zip(ranges, found, strict=True) if link is not None}

    def _link_or_none(self, summary_range: LsnRange) -> Link | None:
        try:
            return self.link(summary_range)
        except (FormatError, ObjectNotFound):
            return None

    def write(self, summary_range: LsnRange, block_map: BlockMap, link: Link | None) -> None:
        name = f"{SUMMARY_DIRECTORY}/{summary_file_name(summary_range)}"
        # What is there is of a summary that was found damaged, or of one whose WAL is received again.
        self._store.put(name, encode_summary(block_map, link, name), replace=True)

    def write_new(self, summary_range: LsnRange, block_map: BlockMap, link: Link | None) -> None:
        """Write a summary unless it is there: whoever reads the same WAL writes the same."""
        name = f"{SUMMARY_DIRECTORY}/{summary_file_name(summary_range)}"
        with suppress(ObjectExists):
            self._store.put(name, encode_summary(block_map, link, name))

    def delete(self, summary_range: LsnRange) -> None:
        """Remove a summary; raises ObjectNotFound."""
        self._store.delete(f"{SUMMARY_DIRECTORY}/{summary_file_name(summary_range)}")


def _ranges(names: Iterable[str]) -> list[LsnRange]:
    found = map(parse_summary_file_name, names)
    return sorted(summary_range for summary_range in found if summary_range is not None)


def is_summary_file_name(name: str) -> bool:
    """Tell whether a name is that of a summary."""
    return parse_summary_file_name(name) is not None


@contextmanager
def _named_remedy() -> Iterator[None]:
    """Have errors of a damaged file say what can be done about it."""
    try:
        yield
    except FormatError as error:
        hint = "Delete this file: the WAL of its range is read instead, if it is still there."
        error.restate(str(error), hint=hint)
        raise
