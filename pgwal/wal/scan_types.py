"""What the modules of the scanner share where they are interpreted; ``scan_types.pxd`` is the same for C.

A number of the WAL format has the name that ``layout.py`` has for it.  Tests hold all three equal.
"""

from __future__ import annotations

from struct import unpack_from
from typing import TYPE_CHECKING

from pgwal.checksum import crc32c

if TYPE_CHECKING:
    from array import array
    from typing import TypeAlias, TypeVar

    Buffer: TypeAlias = bytes | bytearray | memoryview
    RelationFork: TypeAlias = tuple[int, int, int, int]
    Holder = TypeVar("Holder", bytearray, Buffer, array[int])

# What scan() returns.
NEEDS_DATA = 0
STOPPED = 1
FOUND_SPECIAL = 2
ENDED = 3
# What the loop asks of scan() besides.
NEEDS_FORMAT = 4
NEEDS_TABLES = 5
NEEDS_RECORD_BUFFER = 6
FOUND_UNKNOWN = 7
FOUND_BROKEN = 8
# What stays within the loop.
GOES_ON = 9
FOUND_PARTIAL = 10

PAGE_SIZE = 8192
PAGE_MASK = 8191
SHORT_PAGE_HEADER_SIZE = 24
LONG_PAGE_HEADER_SIZE = 40
PAGE_FIRST_IS_CONTRECORD = 0x0001
PAGE_LONG_HEADER = 0x0002

RECORD_HEADER_SIZE = 24
KEPT_BYTES = 8380416
KEPT_BYTES_OF_LISTS = 67100672
LAST_BUILTIN_RMID = 21
FIRST_CUSTOM_RMID = 128
RM_XLOG = 0
RM_XACT = 1
RM_SMGR = 2
RM_DBASE = 4
RM_TBLSPC = 5
RM_HEAP2 = 9
RM_HEAP = 10
# The info of no record, for one that a version does not have.
NO_OPERATION = 0x100

MAX_BLOCK_ID = 32
ID_TOP_LEVEL_XID = 252
ID_ORIGIN = 253
ID_DATA_LONG = 254
ID_DATA_SHORT = 255
BLOCK_SIZE = 8192
# No more of the main data is read in the loop, but by what lists what is dropped.
MAIN_START = 16

FSM_FORK = 1
INIT_FORK = 3
# Heap blocks that one block of a visibility map stands for: 8192 - 24 bytes, two bits a heap block.
HEAP_BLOCKS_PER_MAP_BLOCK = 32672

# References that wait for the log, of three numbers each; one record has 33 at most.
MAX_FOUND = 128
MAX_REFERENCES = 33

# As of EndReason.
END_PAGE_MAGIC = 1
END_PAGE_FLAGS = 2
END_PAGE_LONG_HEADER = 3
END_PAGE_ADDRESS = 4
END_PAGE_TIMELINE = 5
END_CONTRECORD = 6
END_RECORD_LENGTH = 7
END_RECORD_PREV_LINK = 8
END_RECORD_CRC = 9

# Why a record is broken: places in main_data's list of reasons.
ENDS_EARLY = 0
NO_SUCH_ID = 1
ID_ORDER = 2
DATA_LENGTH = 3
NO_RELATION = 4
NO_FORK = 5
IMAGE_HEADER = 6
LENGTH_SUM = 7
DATA_SHORT = 8
OTHER_OVERWRITTEN = 9


def u16(data: Buffer, at: int) -> int:
    """Return the two bytes at ``at`` as a number."""
    return unpack_from("<H", data, at)[0]  # type: ignore[no-any-return]


def u32(data: Buffer, at: int) -> int:
    """Return the four bytes at ``at`` as a number."""
    return unpack_from("<I", data, at)[0]  # type: ignore[no-any-return]


def u64(data: Buffer, at: int) -> int:
    """Return the eight bytes at ``at`` as a number."""
    return unpack_from("<Q", data, at)[0]  # type: ignore[no-any-return]


def copy_bytes(target: bytearray, target_at: int, source: Buffer, source_at: int, count: int) -> None:
    """Copy ``count`` bytes into ``target``, which has them already."""
    target[target_at : target_at + count] = source[source_at : source_at + count]


def _address(holder: Holder) -> Holder:
    return holder


bytes_of = words_of = double_words_of = _address


def choose_crc_way(name: str) -> str:  # noqa: ARG001
    """Return how CRCs are computed: here there is only one way."""
    return "google-crc32c"


def crc_of_record(data: Buffer, at: int, length: int) -> int:
    """Return the CRC that belongs into the header of the record of ``length`` bytes at ``at``."""
    return crc_of_header(data[at : at + 20], crc32c(bytes(data[at + 24 : at + length])))


def crc_of_header(record: Buffer, body_crc: int) -> int:
    """Return what crc_of_record does, of a record whose part behind the header has the CRC ``body_crc``."""
    return crc32c(bytes(record[:20]), body_crc)


def crc_of_copy(target: bytearray, target_at: int, source: Buffer, source_at: int, count: int, crc: int) -> int:
    """Copy ``count`` bytes as copy_bytes does, and return their CRC, continued from ``crc``."""
    copy_bytes(target, target_at, source, source_at, count)
    return crc32c(bytes(source[source_at : source_at + count]), crc)
