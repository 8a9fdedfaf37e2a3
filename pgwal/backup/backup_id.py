"""Ids of backups: they sort by time, and say the kind."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pgwal.errors import FormatError


class BackupKind(StrEnum):
    FULL = "full"
    INCREMENTAL = "incremental"


_ID_SUFFIX = {BackupKind.FULL: "full", BackupKind.INCREMENTAL: "incr"}
_ID = re.compile(r"([0-9]{8}T[0-9]{6}Z)_(full[2-9]?|incr)")
_ID_TIME = "%Y%m%dT%H%M%SZ"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def format_backup_id(started_epoch_s: int, kind: BackupKind) -> str:
    """Return the id of a backup that starts at a time: ids sort by time and say the kind."""
    return f"{(_EPOCH + timedelta(seconds=started_epoch_s)).strftime(_ID_TIME)}_{_ID_SUFFIX[kind]}"


def parse_backup_id(backup_id: str) -> tuple[datetime, BackupKind]:
    """Return the start time and kind that an id says; raises FormatError when it is none."""
    match = _ID.fullmatch(backup_id)
    try:
        if match is None:
            raise ValueError(backup_id)
        started = datetime.strptime(match[1], _ID_TIME).replace(tzinfo=UTC)
    except ValueError as error:
        raise FormatError(
            f"{backup_id!r} is not the id of a backup", hint="Such an id is 20261122T101530Z_full."
        ) from error
    return started, BackupKind.INCREMENTAL if match[2] == "incr" else BackupKind.FULL


def merged_ids(backup_id: str) -> tuple[str, ...]:
    """Return the ids that a full backup may have which a backup is merged into: those of its start's time.

    There are several, for that of one which was given up may be taken for good.
    """
    first = f"{time_part(backup_id)}_{_ID_SUFFIX[BackupKind.FULL]}"
    return (first, *(f"{first}{number}" for number in range(2, 10)))


def time_part(backup_id: str) -> str:
    """Return what a backup and the one that it is merged into have in common in their ids, and with no other."""
    return backup_id.partition("_")[0]


def is_backup_id(name: str) -> bool:
    """Tell whether a name is the id of a backup."""
    try:
        parse_backup_id(name)
    except FormatError:
        return False
    return True
