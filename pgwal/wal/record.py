"""What reading WAL gives: records with their block references, or the reason why WAL ends."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from pgwal.lsn import Lsn
from pgwal.relation import Fork, RelFileLocator

KEPT_BYTES = (8 << 20) - 8192
"""So many bytes of a record are kept; of what follows only the CRC is computed.

Behind its headers there may be data and images of 33 blocks, of less than 64 KiB each, which is half of it: what is cut
off of a longer record is main data, of which nobody wants more than the start.
"""

KEPT_BYTES_OF_LISTS = (64 << 20) - 8192
"""The same for records whose main data lists what is dropped: ends of transactions, and of databases."""


class EndReason(IntEnum):
    """Why there is no further record at a position.

    None of these is damage by itself: PostgreSQL finds the end of WAL by meeting what is not a record.  It is
    damage when the caller knows that valid WAL extends past the position.
    """

    PAGE_MAGIC = 1
    PAGE_FLAGS = 2
    PAGE_LONG_HEADER = 3
    PAGE_ADDRESS = 4
    PAGE_TIMELINE = 5
    CONTRECORD = 6
    RECORD_LENGTH = 7
    RECORD_PREV_LINK = 8
    RECORD_CRC = 9

    def describe(self) -> str:
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    EndReason.PAGE_MAGIC: "the page has another magic number (zero where nothing was written)",
    EndReason.PAGE_FLAGS: "the page header has unknown flags",
    EndReason.PAGE_LONG_HEADER: "the segment's first page header does not fit this cluster",
    EndReason.PAGE_ADDRESS: "the page is of another position (left over in a recycled file)",
    EndReason.PAGE_TIMELINE: "the page is of an older timeline than the one before it",
    EndReason.CONTRECORD: "the record is not continued on its next page",
    EndReason.RECORD_LENGTH: "no record starts here (its length is too small)",
    EndReason.RECORD_PREV_LINK: "the record does not link to the one before it",
    EndReason.RECORD_CRC: "the record's CRC does not match",
}


class EndOfWal(NamedTuple):
    """No valid record starts at ``lsn``; ``reason`` says why."""

    lsn: Lsn
    reason: EndReason

    def __str__(self) -> str:
        return f"WAL ends at {self.lsn}: {self.reason.describe()}"


class BlockReference(NamedTuple):
    """A record's mention of a block: ``block_id`` is its place in the record, ``block_no`` is in the whole fork.

    ``image_length`` is the bytes that its page image takes in the record, 0 without one.
    """

    block_id: int
    locator: RelFileLocator
    fork: Fork
    block_no: int
    has_image: bool
    image_applies: bool
    will_init: bool
    image_length: int = 0


class WalRecord(NamedTuple):
    """One WAL record: ``lsn`` is where it starts, ``end_lsn`` the first byte after it, aligned to 8.

    ``main_data`` is cut off where a record goes on behind KEPT_BYTES, or KEPT_BYTES_OF_LISTS.
    """

    lsn: Lsn
    end_lsn: Lsn
    prev_lsn: Lsn
    xid: int
    rmid: int
    info: int
    total_length: int
    blocks: tuple[BlockReference, ...]
    main_data: bytes
