"""One file of a backup, as a line of the backup's catalogue entry."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from pgwal.backup.incremental_file import incremental_file_size, incremental_name
from pgwal.backup.pack_table import Extent
from pgwal.backup.stored_path import check_path
from pgwal.errors import FormatError
from pgwal.relation import BLOCK_SIZE, BLOCKS_PER_FILE, parse_relation_path

MAX_INTEGER = (1 << 63) - 1
_MAX_MODE = 0o7777
_DIGEST = re.compile(r"[0-9a-f]{32}")
_PATCHED_DIGEST = re.compile(r"([0-9a-f]{8})?")


class BackupFile(NamedTuple):
    """One file of a backup: what it is when reconstructed, and what is stored of it.

    ``digest`` (hex) is that of the stored bytes: xxh3-128, or see pgwal.backup.stored_digest.  The three members
    behind it are None for a file stored whole.  ``header_digest`` is that of the header of an incremental file,
    and None where the header is all of it, and in entries of before it was noted.  ``extents`` say where the stored
    bytes lie in packs, in order; there are none where the file is stored as a file of its own.
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
    extents: tuple[Extent, ...] = ()

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
    if file.extents:
        incremental += f', "extents": {[[*extent] for extent in file.extents]}'
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
    members = load_object(content)
    extents = _extents(members.pop("extents")) if "extents" in members else ()
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
        extents,
    )
    if any(type(member) is not _FILE_TYPES.get(name, int) for name, member in members.items()):
        raise FormatError(f"catalogue entry: a member of file {file.path!r} has the wrong type")
    check_file(file)
    return file


def check_file(file: BackupFile) -> bytes:
    """Return the bytes of the path of a file; raises FormatError when its values are impossible."""
    path = check_path(file.path)
    sizes_fit = 0 <= file.size_bytes <= MAX_INTEGER and 0 <= file.stored_size_bytes <= MAX_INTEGER
    if not sizes_fit or not 0 <= file.mode <= _MAX_MODE or abs(file.mtime_epoch_s) > MAX_INTEGER:
        raise FormatError(f"catalogue entry: a number of file {file.path!r} is out of range")
    # Only of a whole file in packs, whose frames have digests as well, may it be a short one.
    is_patched = not file.is_incremental and bool(file.extents) and _PATCHED_DIGEST.fullmatch(file.digest) is not None
    for digest in (None if is_patched else file.digest, file.header_digest):
        if digest is not None and _DIGEST.fullmatch(digest) is None:
            raise FormatError(f"catalogue entry: {digest!r} of file {file.path!r} is not a digest")
    if (file.truncation_block_length is None) != (file.copied_block_count is None):
        raise FormatError(f"catalogue entry: file {file.path!r} is half incremental")
    if file.header_digest is not None and not file.copied_block_count:
        raise FormatError(f"catalogue entry: file {file.path!r} has no header of its own, and a digest of it")
    if file.is_incremental:
        _check_incremental_file(file)
    if file.extents and sum(extent.length for extent in file.extents) != file.stored_size_bytes:
        raise FormatError(f"catalogue entry: the extents of file {file.path!r} are not all of it")
    return path


def _extents(value: Any) -> tuple[Extent, ...]:
    if not isinstance(value, list) or not value:
        raise FormatError("catalogue entry: the extents of a file are not valid")
    extents = []
    for numbers in value:
        if not isinstance(numbers, list) or len(numbers) != len(Extent._fields):
            raise FormatError("catalogue entry: an extent has not the members of one")
        if not all(type(number) is int and 0 <= number <= MAX_INTEGER for number in numbers) or not numbers[-1]:
            raise FormatError("catalogue entry: a number of an extent is out of range")
        extents.append(Extent(*numbers))
    return tuple(extents)


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


def load_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object of an entry; raises FormatError."""
    members = load_json(content)
    if not isinstance(members, dict):
        raise FormatError("catalogue entry: not a JSON object")
    return members


def load_json(content: bytes) -> Any:
    """Parse JSON of an entry; raises FormatError."""
    try:
        return json.loads(content.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"catalogue entry: not JSON: {error}") from error
