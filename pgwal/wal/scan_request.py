"""What is wanted of a scan of WAL."""

from __future__ import annotations

from typing import NamedTuple


class ScanRequest(NamedTuple):
    """The arguments of WalScanner, which says what they mean."""

    segment_size: int
    start_lsn: int
    prev_lsn: int
    system_identifier: int
    derive_map_blocks: bool
    all_transaction_ends: bool
    tablespaces: bool
    decode_shortenings: bool

    def check(self) -> None:
        """Raise ValueError when they do not fit together, or C could not count with them."""
        # So far below 2^64 that no sum of positions can wrap.
        if not (0 <= self.start_lsn < 1 << 63 and 0 <= self.prev_lsn < 1 << 63):
            raise ValueError("not a WAL position")
        if not (0 <= self.system_identifier < 1 << 64):
            raise ValueError("not a system identifier")
        if self.decode_shortenings and (self.all_transaction_ends or self.tablespaces):
            raise ValueError("records that are to be handed over are not decoded here")
