"""Recovery settings: up to where a restored server replays WAL, and how postgresql.auto.conf says so.

Source of the settings: src/backend/access/transam/xlogrecovery.c (13, 14: xlog.c), src/backend/utils/misc/guc_tables.c
(13 to 15: guc.c) and guc-file.l, PostgreSQL 13 to 19.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from pgwal.backup.standby import Standby
from pgwal.backup.stored_path import encode_path
from pgwal.errors import RecoveryTargetError
from pgwal.lsn import Lsn
from pgwal.postgres_version import version_of_major

LATEST_TIMELINE = "latest"
CURRENT_TIMELINE = "current"

_MAX_NAME_SIZE = 63
_FIRST_NORMAL_XID = 3
_XID_MASK = 0xFFFFFFFF


class TargetAction(StrEnum):
    """What the server does when it has reached the target."""

    PAUSE = "pause"
    PROMOTE = "promote"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class RecoveryTarget:
    """Up to where WAL is replayed: to its end when nothing is set, else to the one place that is.

    ``time`` has its offset.  ``name`` stands for the bytes that WAL holds, in the encoding of whatever database, as
    decode_path of pgwal.backup.stored_path makes text of them.  ``timeline`` is a number, "latest" or "current".
    Raises RecoveryTargetError for what the server would refuse.
    """

    lsn: Lsn | None = None
    time: datetime | None = None
    xid: int | None = None
    name: str | None = None
    immediate: bool = False
    timeline: int | str = LATEST_TIMELINE
    action: TargetAction | None = None
    exclusive: bool = False

    def __post_init__(self) -> None:
        given = [target for target in (self.lsn, self.time, self.xid, self.name) if target is not None]
        if len(given) + self.immediate > 1:
            raise RecoveryTargetError(
                "more than one recovery target is given", hint="Give one of the --target options."
            )
        if not self.is_set and self.action is not None:
            raise RecoveryTargetError("a target action needs a target", hint="Give one of the --target options.")
        if self.exclusive and (not given or self.name is not None):
            raise RecoveryTargetError(
                "only an LSN, a time or a transaction can be excluded",
                hint="Leave --target-exclusive away, or give --target-lsn, --target-time or --target-xid.",
            )
        if self.time is not None:
            assert self.time.tzinfo is not None
        if self.xid is not None and (self.xid < 0 or self.short_xid < _FIRST_NORMAL_XID):
            raise RecoveryTargetError(f"{self.xid} is not the number of a transaction")
        if self.name is not None and not 0 < len(encode_path(self.name)) <= _MAX_NAME_SIZE:
            raise RecoveryTargetError(f"the name of a restore point has 1 to {_MAX_NAME_SIZE} bytes")
        if isinstance(self.timeline, int) and not 0 < self.timeline <= _XID_MASK:
            raise RecoveryTargetError(f"{self.timeline} is not the number of a timeline")

    @property
    def is_set(self) -> bool:
        """Whether recovery stops before the end of WAL."""
        return self.immediate or any(t is not None for t in (self.lsn, self.time, self.xid, self.name))

    @property
    def short_xid(self) -> int:
        """The transaction as WAL names it: without the epoch."""
        assert self.xid is not None
        return self.xid & _XID_MASK

    def __str__(self) -> str:
        if self.lsn is not None:
            return f"LSN {self.lsn}"
        if self.time is not None:
            return f"time {time_text(self.time)}"
        if self.xid is not None:
            return f"transaction {self.xid}"
        return f"restore point {self.name!r}" if self.name is not None else "the end of the backup"

    def settings(self) -> Iterator[tuple[str, str]]:
        """Yield the server's settings; none of them when recovery goes to the end of the newest timeline."""
        if self.lsn is not None:
            yield "recovery_target_lsn", str(self.lsn)
        if self.time is not None:
            yield "recovery_target_time", time_text(self.time)
        if self.xid is not None:
            yield "recovery_target_xid", str(self.short_xid)
        if self.name is not None:
            yield "recovery_target_name", self.name
        if self.immediate:
            yield "recovery_target", "immediate"
        if self.exclusive:
            yield "recovery_target_inclusive", "off"
        if self.timeline != LATEST_TIMELINE:
            yield "recovery_target_timeline", str(self.timeline)
        if self.action is not None:
            yield "recovery_target_action", self.action.value


def time_text(time: datetime) -> str:
    """Return a time as recovery_target_time takes it."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")


def parse_target_time(text: str) -> datetime:
    """Read an ISO 8601 time; without an offset it is local time.

    Raises RecoveryTargetError, also for a local time that clocks pass over or show twice where daylight saving begins
    or ends.
    """
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time
        # An absurd year has no local time.
        readings = [time.replace(fold=fold).astimezone() for fold in (0, 1)]
    except (ValueError, OverflowError) as error:
        raise RecoveryTargetError(
            f"{text!r} is not a time", hint="Write it as 2026-11-22 10:15:30+01; without an offset it is local time."
        ) from error
    if readings[0] == readings[1]:
        return readings[0]
    before, after = sorted(readings)
    how_often = "exists twice" if before.replace(tzinfo=None) == time else "does not exist"
    raise RecoveryTargetError(
        f"the local time {text} {how_often}: the clocks are changed then",
        hint=f"Give its offset: it may be {before.isoformat(sep=' ')} or {after.isoformat(sep=' ')}.",
    )


_RESTORE_COMMAND = "restore_command"
_NO_RECOVERY = {
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "recovery_min_apply_delay": "0",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "promote_trigger_file": "",
    "recovery_target": "",
    "recovery_target_lsn": "",
    "recovery_target_name": "",
    "recovery_target_time": "",
    "recovery_target_xid": "",
    "recovery_target_inclusive": "on",
    "recovery_target_timeline": LATEST_TIMELINE,
    "recovery_target_action": TargetAction.PAUSE.value,
}
"""Every setting that decides what recovery does, as it is when nobody has set it."""

_SETTING_NAME = re.compile(rb"[ \t]*(\w+)")


def recovery_settings(
    target: RecoveryTarget, restore_command: str, major: int, standby: Standby | None = None
) -> Iterator[tuple[str, str]]:
    """Yield every recovery setting of a major version, those without effect too, which earlier recoveries may have set.

    What is wanted comes last: a server refuses an empty target as a second one when another has been set before it
    (assign_recovery_target_xid and its like).
    """
    wanted = dict(target.settings()) | {_RESTORE_COMMAND: restore_command}
    if standby is not None:
        wanted |= standby.settings()
    absent = set() if version_of_major(major).has_trigger_file else {"promote_trigger_file"}
    for name, value in _NO_RECOVERY.items():
        if name not in wanted.keys() | absent:
            yield name, value
    yield from wanted.items()


def with_settings(content: bytes, settings: Iterable[tuple[str, str]]) -> bytes:
    """Return a postgresql.auto.conf: ``content`` without what it says of these settings, and they at its end.

    The server reads this file last, and of each setting the last line alone.
    """
    stated = dict(settings)
    names = {name.encode() for name in stated}
    lines = [line + b"\n" for line in content.removesuffix(b"\n").split(b"\n")] if content else []
    kept = [line for line in lines if _name_of(line) not in names]
    return b"".join(kept) + b"".join(_setting_line(name, value) for name, value in stated.items())


def _name_of(line: bytes) -> bytes:
    match = _SETTING_NAME.match(line)
    return b"" if match is None else match[1].lower()


def _setting_line(name: str, value: str) -> bytes:
    # The server's lexer wants one line, and takes the escapes of C.
    quoted = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return encode_path(f"{name} = '{quoted}'\n")
