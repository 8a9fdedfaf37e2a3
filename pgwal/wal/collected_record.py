"""A record that is put together from its pieces, in bounded memory."""

from __future__ import annotations

from pgwal.checksum import crc32c
from pgwal.wal import layout
from pgwal.wal.record import KEPT_BYTES, KEPT_BYTES_OF_LISTS


class CollectedRecord:
    """The start of a record, as far as it is kept, and the CRC of all of it."""

    def __init__(self, total_length: int) -> None:
        self.total_length = total_length
        self.length = 0
        self.kept = bytearray()
        self._kept_max = KEPT_BYTES
        self._body_crc: int | None = None

    def append(self, data: bytes) -> None:
        self.length += len(data)
        if self._body_crc is None:
            self.kept += data
            if self.length <= KEPT_BYTES:
                return
            if self.kept[17] in (layout.RM_XACT, layout.RM_DBASE):
                self._kept_max = KEPT_BYTES_OF_LISTS
            if self.length <= self._kept_max:
                return
            self._body_crc = crc32c(bytes(self.kept[layout.RECORD_HEADER_SIZE :]))
            del self.kept[self._kept_max :]
        else:
            self._body_crc = crc32c(data, self._body_crc)

    def body_crc(self) -> int:
        """Return the CRC of all that follows the record's header."""
        if self._body_crc is None:
            return crc32c(bytes(self.kept[layout.RECORD_HEADER_SIZE :]))
        return self._body_crc
