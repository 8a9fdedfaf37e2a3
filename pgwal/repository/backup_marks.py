"""What is said of backups after they were taken, by an object each that is stored once: pins, long-term backups, and
those that were copied from another repository.

Marks go by the time in a backup's id, which the full backup has, too, that it is merged into.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from contextlib import suppress

from pgwal.backup.backup_id import time_part
from pgwal.backup.entry import BackupEntry
from pgwal.errors import ObjectExists, ObjectNotFound
from pgwal.repository.deletion import delete_what_can_go
from pgwal.repository.layout import COPIED_DIRECTORY, LONG_TERM_DIRECTORY, PIN_DIRECTORY
from pgwal.repository.store import ObjectStore, names_in


class BackupMarks:
    """The marks of a repository; each list of them is one request.

    A pin keeps a backup from being expired.  A long-term backup is one whose WAL is only kept from its own start to its
    stop: that of behind it may be gone, so it stays one.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def pinned(self, ids: Iterable[str]) -> set[str]:
        """Return which of some backups are pinned."""
        names = set(names_in(self._store, PIN_DIRECTORY))
        return {backup_id for backup_id in ids if time_part(backup_id) in names}

    def pin(self, backup_id: str) -> bool:
        """Pin a backup; False when it was already.

        To be called while nothing can be expired, and that to be confirmed behind it.
        """
        # The token tells it from one that is there: a store may take two of the same bytes for one put whose answer it
        # had lost.
        content = json.dumps({"pgwal-pin": 1, "id": backup_id, "token": secrets.token_hex(16)}).encode() + b"\n"
        try:
            self._store.put(f"{PIN_DIRECTORY}/{time_part(backup_id)}", content)
        except ObjectExists:
            return False
        return True

    def unpin(self, backup_id: str) -> bool:
        """Let a backup be expired again; False when it was not pinned.  Raises ObjectRetained."""
        name = f"{PIN_DIRECTORY}/{time_part(backup_id)}"
        if not self._store.exists(name):
            return False
        with suppress(ObjectNotFound):
            self._store.delete(name)
        return True

    def copied_ids(self, entries: Iterable[BackupEntry]) -> set[str]:
        """Return the ids of those backups that were copied into this repository, be they there still or not."""
        names = set(names_in(self._store, COPIED_DIRECTORY))
        return {entry.backup_id for entry in entries if _name_with_position(entry) in names}

    def mark_copied(self, entry: BackupEntry) -> None:
        """Note that a backup was copied, so that it does not come again once it was expired here."""
        content = json.dumps({"pgwal-copied": 1, "id": entry.backup_id}).encode() + b"\n"
        with suppress(ObjectExists):
            self._store.put(f"{COPIED_DIRECTORY}/{_name_with_position(entry)}", content)

    def forget_copied(self, sources: Iterable[BackupEntry]) -> None:
        """Remove what says that backups were copied that are not among those of the other repository any more."""
        left = set(names_in(self._store, COPIED_DIRECTORY)) - {_name_with_position(entry) for entry in sources}
        delete_what_can_go(self._store, [f"{COPIED_DIRECTORY}/{name}" for name in sorted(left)])

    def long_term_ids(self, entries: Iterable[BackupEntry]) -> set[str]:
        """Return the ids of those backups that are long-term backups."""
        names = set(names_in(self._store, LONG_TERM_DIRECTORY))
        return {entry.backup_id for entry in entries if _name_with_position(entry) in names}

    def mark_long_term(self, entry: BackupEntry) -> None:
        """Make a backup a long-term backup, durably, before the first WAL behind it goes."""
        content = json.dumps({"pgwal-long-term": 1, "id": entry.backup_id, "stop_lsn": str(entry.stop_lsn)})
        with suppress(ObjectExists):
            self._store.put(f"{LONG_TERM_DIRECTORY}/{_name_with_position(entry)}", content.encode() + b"\n")

    def forget(self, gone: Iterable[BackupEntry], kept: Iterable[BackupEntry]) -> None:
        """Remove what says that backups that are gone were long-term backups.

        What is kept may be a full backup that one of them was merged into.
        """
        left = {_name_with_position(entry) for entry in gone} - {_name_with_position(entry) for entry in kept}
        if left:
            left &= set(names_in(self._store, LONG_TERM_DIRECTORY))
        delete_what_can_go(self._store, [f"{LONG_TERM_DIRECTORY}/{name}" for name in sorted(left)])


def _name_with_position(entry: BackupEntry) -> str:
    # With the position: were an id to come again, that of another backup would have another.
    return f"{time_part(entry.backup_id)}_{entry.start_timeline_id:08X}{entry.start_lsn:016X}"
