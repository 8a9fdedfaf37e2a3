"""Where somebody else keeps WAL, in a directory or an object store: pg_receivewal, Barman, or an archive_command.

Barman has directories of sixteen hex digits, and in some versions compresses files without telling by their names: what
a file is compressed by is told by its first bytes.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import lz4.frame
import zstandard

from pgwal.budget import INFLATED_READ_BYTES, READ_BYTES
from pgwal.engine.handed_over import HandedOver
from pgwal.errors import FormatError, ObjectNotFound, PgwalError
from pgwal.repository.address import place_at
from pgwal.repository.object_reader import open_object
from pgwal.repository.place import Place
from pgwal.repository.store import ObjectStore
from pgwal.repository.wal_file_name import PARTIAL_SUFFIX
from pgwal.segment import is_backup_history_name, is_history_name, is_segment_name

_SUFFIX = re.compile(r"\.(gz|bz2|zst|lz4|xz)")
_FOLDER = re.compile(r"[0-9A-F]{16}")


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


_DECODERS: tuple[tuple[bytes, Callable[[], _Decoder]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"\x28\xb5\x2f\xfd", lambda: zstandard.ZstdDecompressor().decompressobj()),
    (b"\x04\x22\x4d\x18", lambda: cast(_Decoder, lz4.frame.LZ4FrameDecompressor())),
    (b"BZh", lambda: bz2.BZ2Decompressor()),
    (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor()),
)
_ERRORS = (OSError, RuntimeError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class ForeignFile(NamedTuple):
    """A file there, by its ``path`` below the archive; any process can read it where it reaches that.

    ``name`` is what it would be called in an archive, None where it is no WAL file.
    """

    archive: str
    """A directory, or the address of a place in an object store."""
    path: str
    name: str | None
    size_bytes: int

    def content(self, most_bytes: int) -> bytes:
        """Return what is in it, decompressed; raises PgwalError where it is damaged, or has more than that."""
        if "://" in self.archive:
            with closing(open_object(_store(self.archive), self.path, is_read_whole=True)) as stored:
                return self._decompressed(iter(lambda: stored.read(READ_BYTES), b""), most_bytes)
        with HandedOver(Path(self.archive, self.path)) as file:
            content = self._decompressed(file.pieces(), most_bytes)
            file.require_unchanged()
        return content

    def _decompressed(self, pieces: Iterator[bytes], most_bytes: int) -> bytes:
        first = next(pieces, b"")
        decoder = next((make() for start, make in _DECODERS if first.startswith(start)), None)
        content = bytearray()
        for piece in _all(first, pieces):
            for part in (piece,) if decoder is None else _decompressed(decoder, piece, self.path):
                content += part
                if len(content) > most_bytes:
                    raise FormatError(f"it holds more than {most_bytes} bytes")
        if decoder is not None and not decoder.eof and not self.is_partial:
            raise FormatError("it is cut off")
        return bytes(content)

    @property
    def is_partial(self) -> bool:
        return self.name is not None and self.name.endswith(PARTIAL_SUFFIX)

    @property
    def segment(self) -> str | None:
        """The segment that it holds some or all of, None for another file."""
        name = (self.name or "").removesuffix(PARTIAL_SUFFIX)
        return name if is_segment_name(name) else None


def _all(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _decompressed(decoder: _Decoder, data: bytes, path: str) -> Iterator[bytes]:
    try:
        for at in range(0, len(data), INFLATED_READ_BYTES):
            if decoder.eof:
                raise FormatError("bytes follow the end of what is compressed")
            yield decoder.decompress(data[at : at + INFLATED_READ_BYTES])
    except _ERRORS as error:
        raise FormatError(f"{path.rpartition('/')[2]} cannot be decompressed: {error}") from error


def foreign_files(archive: Path | Place) -> list[ForeignFile]:
    """Return all files of an archive, WAL files and others, by path; raises ObjectNotFound, PgwalError."""
    if not isinstance(archive, Path):
        if archive.directory is not None:
            archive = archive.directory
        else:
            return _stored_files(archive)
    if not archive.is_dir():
        raise ObjectNotFound(f"{archive} is no directory", path=str(archive))
    found = []
    try:
        for path in sorted(archive.iterdir()):
            if path.is_dir() and _FOLDER.fullmatch(path.name):
                found += [_foreign_file(archive, inner) for inner in sorted(path.iterdir())]
            else:
                found.append(_foreign_file(archive, path))
    except OSError as error:
        raise PgwalError(f"cannot read {archive}: {error.strerror}", path=str(archive)) from error
    return found


def _foreign_file(archive: Path, path: Path) -> ForeignFile:
    own_path, name = str(path.relative_to(archive)), _wal_file_name(path.name)
    if name is None or not path.is_file():
        return ForeignFile(str(archive), own_path, None, 0)
    return ForeignFile(str(archive), own_path, name, path.stat().st_size)


def _stored_files(archive: Place) -> list[ForeignFile]:
    found = []
    for path, size_bytes in sorted(archive.store.list("")):
        folder, _, base = path.rpartition("/")
        name = _wal_file_name(base) if not folder or _FOLDER.fullmatch(folder) else None
        found.append(ForeignFile(str(archive), path, name, 0 if name is None else size_bytes))
    if not found:
        raise ObjectNotFound(f"there is nothing in {archive}", path=str(archive))
    return found


@lru_cache(1)
def _store(address: str) -> ObjectStore:
    return place_at(address).store


def _wal_file_name(file_name: str) -> str | None:
    """Return what a file would be called in an archive, None for one that is no WAL file by its name."""
    base = file_name.removesuffix(PARTIAL_SUFFIX)
    partial = file_name[len(base) :]
    for name in (base, _SUFFIX.sub("", base) if _SUFFIX.fullmatch(Path(base).suffix) else base):
        is_known = is_segment_name(name) or is_history_name(name) or is_backup_history_name(name)
        if is_known and (not partial or is_segment_name(name)):
            return name + partial
    return None
