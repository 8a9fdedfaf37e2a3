"""The mark of a directory that a restore fills: made first, and taken away last."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pgwal.backup.entry import BackupEntry
from pgwal.backup.exclusion import INCOMPLETE_NAME
from pgwal.backup.incomplete_mark import MOST_MARK_BYTES, IncompleteMark
from pgwal.backup.stored_path import decode_path
from pgwal.errors import PgwalError


def mark_of(entry: BackupEntry, tablespaces: Mapping[int, Path]) -> bytes:
    """Return the mark of a directory into which a backup is restored, with its tablespaces elsewhere."""
    places = {oid: decode_path(os.fsencode(location.absolute())) for oid, location in tablespaces.items()}
    return IncompleteMark(entry.system_identifier, places).encode(entry.backup_id)


def read_mark(directory: Path) -> IncompleteMark | None:
    """Return the mark of a directory; None when it has none that says whose it is."""
    try:
        descriptor = os.open(directory / INCOMPLETE_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor)
            return IncompleteMark.decode(file.read(MOST_MARK_BYTES))
    except (OSError, PgwalError):
        return None
