"""The summary files of a repository."""

from __future__ import annotations

from pgwal.errors import FormatError
from pgwal.lsn import LsnRange
from pgwal.repository.layout import SUMMARY_DIRECTORY
from pgwal.repository.store import Store
from pgwal.summary.block_map import BlockMap
from pgwal.summary.codec import decode_summary, encode_summary, parse_summary_file_name, summary_file_name


class SummaryFiles:
    """Reads and writes ``summaries/`` of a repository."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def ranges(self) -> list[LsnRange]:
        """Return the ranges of all summaries, by timeline and start."""
        names = (parse_summary_file_name(name) for name, _ in self._store.list(SUMMARY_DIRECTORY))
        return sorted(summary_range for summary_range in names if summary_range is not None)

    def read(self, summary_range: LsnRange) -> BlockMap:
        """Return the map of a summary; raises FormatError when the file is damaged."""
        name = f"{SUMMARY_DIRECTORY}/{summary_file_name(summary_range)}"
        try:
            return decode_summary(self._store.read(name), name)
        except FormatError as error:
            raise type(error)(
                str(error), hint="Delete this file: the WAL of its range is read instead, if it is still there."
            ) from error

    def write(self, summary_range: LsnRange, block_map: BlockMap) -> None:
        self._store.write(f"{SUMMARY_DIRECTORY}/{summary_file_name(summary_range)}", encode_summary(block_map))

    def delete(self, summary_range: LsnRange) -> None:
        """Remove a summary; raises ObjectNotFound."""
        self._store.delete(f"{SUMMARY_DIRECTORY}/{summary_file_name(summary_range)}")
