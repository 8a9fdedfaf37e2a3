"""The settings with which a restored server is a standby: whom it follows, and by which slot.

Source of the settings: src/backend/utils/misc/guc_tables.c (13 to 15: guc.c), PostgreSQL 13 to 19.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pgwal.errors import RecoveryTargetError

_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}")


@dataclass(frozen=True, slots=True)
class Standby:
    """How a standby connects to the server that it follows; one without does no more than replay the archive.

    ``primary_conninfo`` may hold a password, and is shown nowhere.  Raises RecoveryTargetError for a slot's name that
    no server takes.
    """

    primary_conninfo: str | None = field(default=None, repr=False)
    primary_slot: str | None = None

    def __post_init__(self) -> None:
        if self.primary_slot is None:
            return
        if _SLOT_NAME.fullmatch(self.primary_slot) is None:
            raise RecoveryTargetError(
                f"{self.primary_slot!r} is not the name of a replication slot",
                hint="It has 1 to 63 lower-case letters, digits and underscores.",
            )
        if self.primary_conninfo is None:
            raise RecoveryTargetError(
                "a slot is of a primary, and none is named", hint="Say with --primary-conninfo how to connect to it."
            )

    def settings(self) -> Iterator[tuple[str, str]]:
        """Yield the server's settings."""
        if self.primary_conninfo is not None:
            yield "primary_conninfo", self.primary_conninfo
        if self.primary_slot is not None:
            yield "primary_slot_name", self.primary_slot
