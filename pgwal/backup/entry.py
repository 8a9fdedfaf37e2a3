"""The catalogue entry of a backup: what it is, and the list of its files.

An entry is a JSON document (backup.json) that is written and read as a stream, one file a line:

    {"pgwal-backup": 1, "id": "20261122T101530Z_full", ..., "files": [
    {"path": "PG_VERSION", "size": 3, "stored": 3, "mode": 384, "mtime": 1795344930, "digest": "..."},
    {"path": "base/5/16384", "size": 163840, "stored": 16384, ..., "truncation_block_length": 20, "blocks": 1,
     "header_digest": "..."}
    ],
    "digest": "xxh3-128:..."}

The last line's digest is that of all lines before it: what may be left out of the next backup is decided by the
sizes in here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from pgwal.backup.incremental_file import incremental_file_size, incremental_name
from pgwal.backup.stored_path import DistinctPaths, check_path, encode_path
from pgwal.checksum import ContentDigest
from pgwal.errors import (
    ChecksumMismatch,
    FormatError,
    TruncatedInput,
    UnsupportedVersion,
)
from pgwal.lsn import Lsn
from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE, parse_relation_path
from pgwal.segment import WalGeometry

_FORMAT_VERSION = 1
_MAX_INTEGER = (1 << 63) - 1
_MAX_UNSIGNED_INTEGER = (1 << 64) - 1
_MAX_MODE = 0o7777


class BackupKind(StrEnum):
    FULL = "full"
    INCREMENTAL = "incremental"


# -- identifiers -----------------------------------------------------------------------------------------------------

_ID_SUFFIX = {BackupKind.FULL: "full", BackupKind.INCREMENTAL: "incr"}
_ID = re.compile(r"([0-9]{8}T[0-9]{6}Z)_(full|incr)")
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
    return started, BackupKind.FULL if match[2] == "full" else BackupKind.INCREMENTAL


def is_backup_id(name: str) -> bool:
    """Tell whether a name is the id of a backup."""
    try:
        parse_backup_id(name)
    except FormatError:
        return False
    return True


# -- values ----------------------------------------------------------------------------------------------------------


class BackupFile(NamedTuple):
    """One file of a backup: what it is when reconstructed, and what is stored of it.

    ``digest`` (xxh3-128, hex) is that of the stored bytes.  The last three members are None for a file stored whole.
    ``header_digest`` is that of the header of an incremental file, and None where the header is all of it, and in
    entries of before it was noted.
    """

    path: str
    size_bytes: int
    stored_size_bytes: int
    mode: int
    mtime_epoch_s: int
    digest: str
    truncation_block_length: int | None = None
    copied_block_count: int | None = None
    header_digest: str | None = None

    @property
    def is_incremental(self) -> bool:
        return self.truncation_block_length is not None

    @property
    def stored_path(self) -> str:
        """The path at which the backup holds it."""
        return incremental_name(self.path) if self.is_incremental else self.path


class BackupTotals(NamedTuple):
    """Sums over the files of a backup."""

    file_count: int = 0
    incremental_file_count: int = 0
    size_bytes: int = 0
    stored_size_bytes: int = 0

    def plus(self, file: BackupFile) -> BackupTotals:
        return BackupTotals(
            self.file_count + 1,
            self.incremental_file_count + file.is_incremental,
            self.size_bytes + file.size_bytes,
            self.stored_size_bytes + file.stored_size_bytes,
        )


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
        if not 0 <= self.checksum_failures <= _MAX_INTEGER:
            return "the number of checksum failures is out of range"
        return "a total is out of range" if any(not 0 <= total <= _MAX_INTEGER for total in self.totals) else None


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


# -- the document ----------------------------------------------------------------------------------------------------

_FILES_START = ', "files": [\n'
_FILES_END = b"],\n"
_LAST_LINE = re.compile(rb'"digest": "xxh3-128:([0-9a-f]{32})"\}\n')
_DIGEST = re.compile(r"[0-9a-f]{32}")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,19}")


class EntryWriter:
    """Makes the document of a backup: ``head``, each ``file``, then ``finish``, written in that order.

    Every value is checked as a reader would check it; a document without its end is none.
    """

    def __init__(self, entry: BackupEntry) -> None:
        self._entry = entry
        self._digest = ContentDigest()
        self._paths = DistinctPaths()
        self._totals = BackupTotals()

    def head(self) -> bytes:
        return self._emit(json.dumps(_head_members(self._entry))[:-1].encode() + _FILES_START.encode())

    def file(self, file: BackupFile) -> bytes:
        """Return the line of one file; raises FormatError when its values contradict themselves."""
        self._paths.add(_check_file(file))
        separator = b",\n" if self._totals.file_count else b""
        self._totals = self._totals.plus(file)
        return self._emit(separator + encode_file(file))

    def finish(self) -> bytes:
        """Return the end; raises FormatError when a path came twice or the sums are not the entry's totals."""
        self._paths.check()
        _check_totals(self._entry, self._totals)
        end = self._emit((b"\n" if self._totals.file_count else b"") + _FILES_END)
        return end + f'"digest": "xxh3-128:{self._digest.hexdigest()}"}}\n'.encode()

    def _emit(self, content: bytes) -> bytes:
        self._digest.update(content)
        return content


def encode_entry(entry: BackupEntry, files: Iterable[BackupFile]) -> Iterator[bytes]:
    """Yield the document of a backup in pieces; raises FormatError as EntryWriter does."""
    writer = EntryWriter(entry)
    yield writer.head()
    for file in files:
        yield writer.file(file)
    yield writer.finish()


def decode_head(first_line: bytes) -> BackupEntry:
    """Parse the first line of a document, all that a list of backups needs.

    The digest, which only the end of a document shows, is not checked.  Raises FormatError, UnsupportedVersion or
    TruncatedInput.
    """
    end = _FILES_START.encode()
    if not first_line.endswith(b"\n"):
        raise TruncatedInput("catalogue entry ends within its first line")
    if not first_line.endswith(end):
        raise FormatError("catalogue entry: its first line does not end where the files begin")
    members = _load(first_line[: -len(end)] + b"}")
    if members.get("pgwal-backup") != _FORMAT_VERSION:
        raise UnsupportedVersion(
            f"catalogue entry: format {members.get('pgwal-backup')!r}, this pgwal knows {_FORMAT_VERSION}"
        )
    return _decode_head_members(members)


def decode_entry(lines: Iterable[bytes]) -> tuple[BackupEntry, Iterator[BackupFile]]:
    """Parse a document given as its lines, newlines included; the files come one by one.

    They are proven only when the iterator has ended: it checks digest, totals and distinctness last.  Raises
    FormatError, UnsupportedVersion, TruncatedInput or ChecksumMismatch.
    """
    rest = iter(lines)
    first_line = next(rest, b"")
    entry = decode_head(first_line)
    digest = ContentDigest()
    digest.update(first_line)
    return entry, _decode_files(entry, rest, digest)


def _decode_files(entry: BackupEntry, lines: Iterator[bytes], digest: ContentDigest) -> Iterator[BackupFile]:
    paths = DistinctPaths()
    totals = BackupTotals()
    more = True
    for line in lines:
        digest.update(line)
        if line == _FILES_END and (not more or totals.file_count == 0):
            break
        if not line.endswith(b"\n"):
            raise TruncatedInput("catalogue entry ends within a line")
        if not more:
            raise FormatError("catalogue entry: a comma is missing between files")
        content = line[:-1].removesuffix(b",")
        more = len(content) < len(line) - 1
        file = decode_file(content)
        paths.add(encode_path(file.path))
        totals = totals.plus(file)
        yield file
    else:
        raise TruncatedInput("catalogue entry ends within its list of files")
    _check_last_line(next(lines, b""), digest)
    if next(lines, None) is not None:
        raise FormatError("catalogue entry: more lines after its end")
    paths.check()
    _check_totals(entry, totals)


def _check_last_line(line: bytes, digest: ContentDigest) -> None:
    if not line.endswith(b"\n"):
        raise TruncatedInput("catalogue entry ends before its digest")
    match = _LAST_LINE.fullmatch(line)
    if match is None:
        raise FormatError("catalogue entry: its last line is not its digest")
    if match[1].decode() != digest.hexdigest():
        raise ChecksumMismatch("catalogue entry: its digest does not match its contents")


def _check_totals(entry: BackupEntry, totals: BackupTotals) -> None:
    if totals != entry.totals:
        raise FormatError(f"catalogue entry: its files make {totals}, it says {entry.totals}")


def encode_file(file: BackupFile) -> bytes:
    """Return the JSON object of one file, without a newline."""
    # Formatted by hand, because there may be a million; only the path can need escapes.
    incremental = ""
    if file.is_incremental:
        incremental = (
            f', "truncation_block_length": {file.truncation_block_length}, "blocks": {file.copied_block_count}'
        )
    if file.header_digest is not None:
        incremental += f', "header_digest": "{file.header_digest}"'
    return (
        f'{{"path": {json.dumps(file.path)}, "size": {file.size_bytes}, "stored": {file.stored_size_bytes},'
        f' "mode": {file.mode}, "mtime": {file.mtime_epoch_s}, "digest": "{file.digest}"{incremental}}}'
    ).encode()


_WHOLE_KEYS = frozenset({"path", "size", "stored", "mode", "mtime", "digest"})
_INCREMENTAL_KEYS = _WHOLE_KEYS | {"truncation_block_length", "blocks"}
_KNOWN_KEYS = (_WHOLE_KEYS, _INCREMENTAL_KEYS, _INCREMENTAL_KEYS | {"header_digest"})
_FILE_TYPES = {"path": str, "digest": str, "header_digest": str}  # The others are numbers.


def decode_file(content: bytes) -> BackupFile:
    """Parse and check the JSON object of one file; raises FormatError."""
    members = _load(content)
    if members.keys() not in _KNOWN_KEYS:
        raise FormatError(f"catalogue entry: members {sorted(members)} are not those of a file")
    file = BackupFile(
        members["path"],
        members["size"],
        members["stored"],
        members["mode"],
        members["mtime"],
        members["digest"],
        members.get("truncation_block_length"),
        members.get("blocks"),
        members.get("header_digest"),
    )
    if any(type(member) is not _FILE_TYPES.get(name, int) for name, member in members.items()):
        raise FormatError(f"catalogue entry: a member of file {file.path!r} has the wrong type")
    _check_file(file)
    return file


def _check_file(file: BackupFile) -> bytes:
    """Return the bytes of the path of a file; raises FormatError when its values are impossible."""
    path = check_path(file.path)
    sizes_fit = 0 <= file.size_bytes <= _MAX_INTEGER and 0 <= file.stored_size_bytes <= _MAX_INTEGER
    if not sizes_fit or not 0 <= file.mode <= _MAX_MODE or abs(file.mtime_epoch_s) > _MAX_INTEGER:
        raise FormatError(f"catalogue entry: a number of file {file.path!r} is out of range")
    for digest in (file.digest, file.header_digest):
        if digest is not None and _DIGEST.fullmatch(digest) is None:
            raise FormatError(f"catalogue entry: {digest!r} of file {file.path!r} is not a digest")
    if (file.truncation_block_length is None) != (file.copied_block_count is None):
        raise FormatError(f"catalogue entry: file {file.path!r} is half incremental")
    if file.header_digest is not None and not file.copied_block_count:
        raise FormatError(f"catalogue entry: file {file.path!r} has no header of its own, and a digest of it")
    if file.is_incremental:
        _check_incremental_file(file)
    return path


def _check_incremental_file(file: BackupFile) -> None:
    kept, copied = file.truncation_block_length, file.copied_block_count
    assert kept is not None
    assert copied is not None
    block_count, rest = divmod(file.size_bytes, BLOCK_SIZE)
    # The copied blocks are at least those from the truncation block length to the end.
    if rest or not 0 <= kept <= block_count <= BLOCKS_PER_FILE or not block_count - kept <= copied <= block_count:
        raise FormatError(
            f"catalogue entry: file {file.path!r} cannot be {file.size_bytes} bytes with truncation block length"
            f" {kept} and {copied} blocks copied"
        )
    if parse_relation_path(file.path) is None or file.stored_size_bytes != incremental_file_size(copied):
        raise FormatError(f"catalogue entry: {file.path!r} cannot be stored as an incremental file")


def _load(content: bytes) -> dict[str, Any]:
    try:
        members = json.loads(content.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"catalogue entry: not JSON: {error}") from error
    if not isinstance(members, dict):
        raise FormatError("catalogue entry: not a JSON object")
    return members


def _head_members(entry: BackupEntry) -> dict[str, Any]:
    # System identifiers are strings, because many JSON readers keep only 53 bits of a number.
    return {
        "pgwal-backup": _FORMAT_VERSION,
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
    }


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


def _decode_head_members(members: dict[str, Any]) -> BackupEntry:
    # Entries of before pages were checked lack it.
    members.setdefault("checksum_failures", 0)
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
    )


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
