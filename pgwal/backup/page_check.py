"""Data pages as they pass: which of a relation file do not hold what their checksums say?"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from pgwal.lsn import Lsn
from pgwal.page import find_bad_blocks, find_bad_pages
from pgwal.relation import BLOCK_SIZE, RelationFile


class PageCheck:
    """Checks the pages of one relation file as they pass, in chunks of whole pages but for the end of the file.

    Pages that were changed at ``checked_before`` or later, where a backup started, are not looked at.
    ``block_numbers`` are those that pass, counted from the start of the file; None when all do.  ``bad_blocks`` are
    those among them that are not right.
    """

    def __init__(
        self, relation_file: RelationFile, checked_before: Lsn, block_numbers: array[int] | None = None
    ) -> None:
        self.bad_blocks: list[int] = []
        self.checked_before = checked_before
        self._first_block = relation_file.first_block
        self._block_numbers = block_numbers
        self._passed = 0

    def feed(self, chunk: bytes) -> None:
        """Look at the next pages."""
        count = len(chunk) // BLOCK_SIZE
        start, self._passed = self._passed, self._passed + count
        if self._block_numbers is None:
            places = find_bad_pages(chunk, self._first_block + start, self.checked_before)
            self.bad_blocks += [start + place for place in places]
            return
        numbers = self._block_numbers[start : start + count]
        in_fork = array("I", [self._first_block + n for n in numbers]) if self._first_block else numbers
        self.bad_blocks += [numbers[place] for place in find_bad_blocks(chunk, in_fork, self.checked_before)]

    def is_bad(self, block_number: int, page: bytes) -> bool:
        """Tell whether one page, of a block counted from the start of the file, is not right."""
        return bool(find_bad_pages(page, self._first_block + block_number, self.checked_before))


def pages(chunk: bytes) -> Iterator[bytes]:
    """Yield the whole pages of a chunk."""
    for start in range(0, len(chunk) - BLOCK_SIZE + 1, BLOCK_SIZE):
        yield chunk[start : start + BLOCK_SIZE]
