"""What ties the records of a range of WAL to those before and behind it, wherever WAL was cut.

Every record names the one before it (xl_prev), so two ranges follow each other in one history only where the first
record of the later one names the last record of the earlier one.
"""

from __future__ import annotations

from typing import NamedTuple

from pgwal.lsn import Lsn


class Link(NamedTuple):
    """The records at the two ends of a range of WAL.

    ``prev_lsn`` is where the record before its first record starts (the xl_prev of that), ``last_lsn`` where its own
    last record starts.  They are equal when no record starts in the range, and both 0 when it is not known then
    which record is before it.
    """

    prev_lsn: Lsn
    last_lsn: Lsn

    def follows(self, last_lsn: int) -> bool:
        """Tell whether the range may come after a record, of which 0 says that it is not known."""
        return last_lsn == 0 or self == UNKNOWN or self.prev_lsn == last_lsn

    def after(self, last_lsn: Lsn) -> Link:
        """Return the link of a range that comes after a record: where nothing was known of it, that is known now."""
        return Link(last_lsn, last_lsn) if self == UNKNOWN else self


UNKNOWN = Link(Lsn(0), Lsn(0))
