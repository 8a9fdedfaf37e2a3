"""The catalogue entry of a backup: what it is, besides the list of its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from pgwal.backup.backup_file import MAX_INTEGER, BackupTotals
from pgwal.backup.backup_id import BackupKind, parse_backup_id, time_part
from pgwal.errors import FormatError
from pgwal.lsn import Lsn
from pgwal.segment import WalGeometry

PLAIN_VERSION, PACKED_VERSION = 1, 2
_MAX_UNSIGNED_INTEGER = (1 << 64) - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,19}")


class MergeNote(NamedTuple):
    """When a full backup was merged, as ISO 8601 by the clock of the machine that did it, and of which backups, the
    newest first."""

    merged_at: str
    backup_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupEntry:
    """What the catalogue says of a backup besides its files; raises FormatError when that contradicts itself."""

    backup_id: str
    kind: BackupKind
    prior_id: str | None
    system_identifier: int
    major: int
    start_lsn: Lsn
    start_timeline_id: int
    stop_lsn: Lsn
    stop_timeline_id: int
    label: str
    started_at: str
    finished_at: str
    wal_segment_size: int
    data_checksums: bool
    tablespaces: Mapping[int, str]
    totals: BackupTotals
    checksum_failures: int = 0
    """How many of the pages that were read differ from their checksums; 0 in entries that do not say it."""
    packed_size_bytes: int | None = None
    """How large the packs are that its files lie in; None for a backup whose files are stored one by one."""
    merge_note: MergeNote | None = None
    """None for a backup that was taken, and in entries of merged ones that do not say it."""

    @property
    def repository_bytes(self) -> int:
        """How much room its files take in the repository."""
        return self.totals.stored_size_bytes if self.packed_size_bytes is None else self.packed_size_bytes

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise FormatError(f"catalogue entry of backup {self.backup_id!r}: {problem}")
        WalGeometry(self.wal_segment_size)

    def _problem(self) -> str | None:
        if parse_backup_id(self.backup_id)[1] != self.kind:
            return f"the id is not that of a {self.kind} backup"
        if (self.prior_id is None) != (self.kind is BackupKind.FULL):
            return "an incremental backup has a prior backup, a full one has none"
        if self.prior_id is not None:
            parse_backup_id(self.prior_id)
        if not 0 < self.system_identifier <= _MAX_UNSIGNED_INTEGER:
            return f"invalid system identifier {self.system_identifier}"
        if not 0 <= self.start_lsn <= self.stop_lsn <= _MAX_UNSIGNED_INTEGER:
            return f"it cannot have run from {self.start_lsn} to {self.stop_lsn}"
        if not 0 < self.start_timeline_id <= self.stop_timeline_id <= 0xFFFFFFFF:
            return f"it cannot have run from timeline {self.start_timeline_id} to {self.stop_timeline_id}"
        if not all(map(_is_time, (self.started_at, self.finished_at))):
            return "a time is not an ISO 8601 time with its offset"
        if any(not path.startswith("/") or "\0" in path for path in self.tablespaces.values()):
            return "a tablespace is not at an absolute path"
        if any(not 0 < oid <= 0xFFFFFFFF for oid in self.tablespaces):
            return "a tablespace has no valid OID"
        if not 0 <= self.checksum_failures <= MAX_INTEGER:
            return "the number of checksum failures is out of range"
        if self.packed_size_bytes is not None and not 0 <= self.packed_size_bytes <= MAX_INTEGER:
            return "the size of its packs is out of range"
        if self.merge_note is not None and not self._is_made_by(self.merge_note):
            return "it cannot have been merged of what it says"
        return "a total is out of range" if any(not 0 <= total <= MAX_INTEGER for total in self.totals) else None

    def _is_made_by(self, note: MergeNote) -> bool:
        """Tell whether a merge makes such a backup: a full one, of an incremental one that has its time, and others."""
        if self.kind is not BackupKind.FULL or not _is_time(note.merged_at) or len(note.backup_ids) < 2:
            return False
        kinds = [parse_backup_id(backup_id)[1] for backup_id in note.backup_ids]
        return kinds[0] is BackupKind.INCREMENTAL and time_part(note.backup_ids[0]) == time_part(self.backup_id)


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def head_members(entry: BackupEntry) -> dict[str, Any]:
    """Return the members of an entry's document but its files."""
    # System identifiers are strings, because many JSON readers keep only 53 bits of a number.
    return {
        "pgwal-backup": PLAIN_VERSION if entry.packed_size_bytes is None else PACKED_VERSION,
        "id": entry.backup_id,
        "kind": entry.kind.value,
        "prior": entry.prior_id,
        "system_identifier": str(entry.system_identifier),
        "major": entry.major,
        "start_lsn": str(entry.start_lsn),
        "start_timeline": entry.start_timeline_id,
        "stop_lsn": str(entry.stop_lsn),
        "stop_timeline": entry.stop_timeline_id,
        "label": entry.label,
        "started": entry.started_at,
        "finished": entry.finished_at,
        "wal_segment_size": entry.wal_segment_size,
        "data_checksums": entry.data_checksums,
        "tablespaces": {str(oid): path for oid, path in sorted(entry.tablespaces.items())},
        "totals": entry.totals._asdict(),
        "checksum_failures": entry.checksum_failures,
        **({} if entry.packed_size_bytes is None else {"packed_size": entry.packed_size_bytes}),
        **_merge_members(entry.merge_note),
    }


def _merge_members(note: MergeNote | None) -> dict[str, Any]:
    return {} if note is None else {"merged": {"at": note.merged_at, "of": list(note.backup_ids)}}


_HEAD_TYPES = {
    "pgwal-backup": int,
    "id": str,
    "kind": str,
    "system_identifier": str,
    "major": int,
    "start_lsn": str,
    "start_timeline": int,
    "stop_lsn": str,
    "stop_timeline": int,
    "label": str,
    "started": str,
    "finished": str,
    "wal_segment_size": int,
    "data_checksums": bool,
    "tablespaces": dict,
    "totals": dict,
    "checksum_failures": int,
}


def decode_head_members(members: dict[str, Any]) -> BackupEntry:
    """Parse and check the members of a document; raises FormatError."""
    # Entries of before pages were checked lack it.
    members.setdefault("checksum_failures", 0)
    packed_size_bytes = members.pop("packed_size", None)
    merge_note = _decode_merge_note(members.pop("merged")) if "merged" in members else None
    if (members.get("pgwal-backup") == PACKED_VERSION) != (type(packed_size_bytes) is int):
        raise FormatError("catalogue entry: the size of its packs is missing, or it has none")
    if members.keys() != _HEAD_TYPES.keys() | {"prior"}:
        odd = members.keys() ^ (_HEAD_TYPES.keys() | {"prior"})
        raise FormatError(f"catalogue entry: member {min(odd)!r} is unknown or missing")
    for name, expected in _HEAD_TYPES.items():
        if type(members[name]) is not expected:
            raise FormatError(f"catalogue entry: {name!r} is not a {expected.__name__}")
    if members["prior"] is not None and type(members["prior"]) is not str:
        raise FormatError("catalogue entry: 'prior' is not a str")
    return BackupEntry(
        backup_id=members["id"],
        kind=_decode_kind(members["kind"]),
        prior_id=members["prior"],
        system_identifier=_decode_decimal("system_identifier", members["system_identifier"]),
        major=members["major"],
        start_lsn=Lsn.parse(members["start_lsn"]),
        start_timeline_id=members["start_timeline"],
        stop_lsn=Lsn.parse(members["stop_lsn"]),
        stop_timeline_id=members["stop_timeline"],
        label=members["label"],
        started_at=members["started"],
        finished_at=members["finished"],
        wal_segment_size=members["wal_segment_size"],
        data_checksums=members["data_checksums"],
        tablespaces=_decode_tablespaces(members["tablespaces"]),
        totals=_decode_totals(members["totals"]),
        checksum_failures=members["checksum_failures"],
        packed_size_bytes=packed_size_bytes,
        merge_note=merge_note,
    )


def _decode_merge_note(members: Any) -> MergeNote:
    if not isinstance(members, dict) or members.keys() != {"at", "of"}:
        raise FormatError("catalogue entry: 'merged' does not say when, and of what")
    backup_ids = members["of"]
    if type(backup_ids) is not list or not all(type(each) is str for each in [members["at"], *backup_ids]):
        raise FormatError("catalogue entry: 'merged' does not say when, and of what")
    return MergeNote(members["at"], tuple(backup_ids))


def _decode_kind(text: str) -> BackupKind:
    try:
        return BackupKind(text)
    except ValueError as error:
        raise FormatError(f"catalogue entry: unknown kind {text!r}") from error


def _decode_decimal(name: str, text: str) -> int:
    if _DECIMAL.fullmatch(text) is None:
        raise FormatError(f"catalogue entry: {name} {text!r} is not a number")
    return int(text)


def _decode_tablespaces(members: dict[str, Any]) -> dict[int, str]:
    if any(type(path) is not str for path in members.values()):
        raise FormatError("catalogue entry: the path of a tablespace is not a str")
    return {_decode_decimal("tablespace", oid): path for oid, path in members.items()}


def _decode_totals(members: dict[str, Any]) -> BackupTotals:
    names = BackupTotals._fields
    if members.keys() != set(names) or any(type(total) is not int for total in members.values()):
        raise FormatError("catalogue entry: the totals are not those of this format")
    return BackupTotals(**members)
