"""A directory in which somebody else keeps WAL: pg_receivewal, Barman, or an archive_command of one's own.

Barman has directories of sixteen hex digits, and in some versions compresses files without telling by their names: what
a file is compressed by is told by its first bytes.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import lz4.frame
import zstandard

from pgwal.engine.handed_over import HandedOver
from pgwal.errors import FormatError, ObjectNotFound, PgwalError
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
_STEP_BYTES = 4096
"""Little at a time: of some bytes may become a thousand times as many, or more."""


class ForeignFile(NamedTuple):
    """A file there; ``name`` is what it would be called in an archive, None where it is no WAL file."""

    path: Path
    name: str | None
    size_bytes: int

    def content(self, most_bytes: int) -> bytes:
        """Return what is in it, decompressed; raises PgwalError where it is damaged, or has more than that."""
        with HandedOver(self.path) as file:
            pieces = file.pieces()
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
            file.require_unchanged()
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


def _decompressed(decoder: _Decoder, data: bytes, path: Path) -> Iterator[bytes]:
    try:
        for at in range(0, len(data), _STEP_BYTES):
            if decoder.eof:
                raise FormatError("bytes follow the end of what is compressed")
            yield decoder.decompress(data[at : at + _STEP_BYTES])
    except _ERRORS as error:
        raise FormatError(f"{path.name} cannot be decompressed: {error}") from error


def foreign_files(directory: Path) -> list[ForeignFile]:
    """Return all files of an archive, WAL files and others, by path; raises ObjectNotFound, PgwalError."""
    if not directory.is_dir():
        raise ObjectNotFound(f"{directory} is no directory", path=str(directory))
    found = []
    try:
        for path in sorted(directory.iterdir()):
            if path.is_dir() and _FOLDER.fullmatch(path.name):
                found += [_foreign_file(inner) for inner in sorted(path.iterdir())]
            else:
                found.append(_foreign_file(path))
    except OSError as error:
        raise PgwalError(f"cannot read {directory}: {error.strerror}", path=str(directory)) from error
    return found


def _foreign_file(path: Path) -> ForeignFile:
    base = path.name.removesuffix(PARTIAL_SUFFIX)
    partial = path.name[len(base) :]
    for name in (base, _SUFFIX.sub("", base) if _SUFFIX.fullmatch(Path(base).suffix) else base):
        is_known = is_segment_name(name) or is_history_name(name) or is_backup_history_name(name)
        if is_known and (not partial or is_segment_name(name)) and path.is_file():
            return ForeignFile(path, name + partial, path.stat().st_size)
    return ForeignFile(path, None, 0)
