"""A directory of WAL that anyone recorded: how it is opened, and which of its files are no segments though named so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pgwal.errors import FormatError, ObjectNotFound
from pgwal.repository.object_reader import open_object
from pgwal.repository.segment_reader import SegmentReader
from pgwal.repository.store import ObjectStore, objects_in
from pgwal.repository.wal_directory import WalDirectory
from pgwal.repository.wal_file_name import split_segment_name
from pgwal.segment import LONG_PAGE_HEADER_SIZE, WAL_PAGE_SIZE, WalGeometry, is_segment_name
from pgwal.wal.layout import PAGE_LONG_HEADER, LongPageHeader
from pgwal.wal.page_magic import WalFormat, wal_format_of_magic


class _Compression(NamedTuple):
    """A compression, by the bytes with which its files begin; ``suffix`` is None where pgwal does not read it."""

    name: str
    start: bytes
    suffix: str | None

    @property
    def complaint(self) -> str:
        return f"is compressed by {self.name}, which its name does not tell"

    def remedy(self, file_name: str) -> str:
        if self.suffix is not None:
            return f"Rename it to {file_name}{self.suffix}."
        return _DECOMPRESS


_DECOMPRESS = "Decompress it: pgwal reads .gz, .lz4 and .zst."
_COMPRESSIONS = (
    _Compression("gzip", b"\x1f\x8b", ".gz"),
    _Compression("zstd", b"\x28\xb5\x2f\xfd", ".zst"),
    _Compression("lz4", b"\x04\x22\x4d\x18", ".lz4"),
    _Compression("xz", b"\xfd7zXZ\0", None),
    _Compression("bzip2", b"BZh", None),
)
_UNREAD_SUFFIXES = (".xz", ".bz2", ".lzma", ".br")


def _compression_of(content: bytes) -> _Compression | None:
    return next((form for form in _COMPRESSIONS if content.startswith(form.start)), None)


def _unread_suffix(name: str) -> str | None:
    """Return what a segment's name is followed by, if that tells of a compression that pgwal does not read."""
    return next((s for s in _UNREAD_SUFFIXES if name.endswith(s) and is_segment_name(name.removesuffix(s))), None)


def open_wal_directory(
    store: ObjectStore, directory: str = "", *, only: str | None = None
) -> tuple[WalDirectory, WalFormat]:
    """Open a directory of recorded WAL, or file ``only`` of it, taking segment size and version from its first page.

    Raises ObjectNotFound when it holds no WAL, UnsupportedVersion when that is of another version, FormatError when
    it is no WAL.
    """
    unread: str | None = None
    for name, _ in objects_in(store, directory):
        path = f"{directory}/{name}" if directory else name
        base, compression, complete = split_segment_name(name)
        if (suffix := _unread_suffix(name)) is not None and only in (None, name):
            unread = unread or f"{path} is compressed in a form ({suffix}) that pgwal does not read"
        if not is_segment_name(base) or only not in (None, name):
            continue
        with SegmentReader(open_object(store, path), compression, path, complete=complete) as file:
            content = file.read(LONG_PAGE_HEADER_SIZE)
        if not compression and (form := _compression_of(content)) is not None:
            raise FormatError(f"{path} {form.complaint}", hint=form.remedy(name))
        if len(content) == LONG_PAGE_HEADER_SIZE and any(content[:2]):
            header = LongPageHeader.parse(content)
            wal_format = wal_format_of_magic(header.magic, path)
            if not header.info & PAGE_LONG_HEADER or header.wal_page_size != WAL_PAGE_SIZE:
                raise FormatError(f"{path} does not begin as a WAL segment of a supported page size does")
            return WalDirectory(store, directory, WalGeometry(header.segment_size), only=only), wal_format
    if unread is not None:
        raise FormatError(unread, hint=_DECOMPRESS)
    raise ObjectNotFound(
        "there are no WAL segments", hint="Name a directory with files such as 000000010000000000000001."
    )


def unusable_segments(store: ObjectStore, wal: WalDirectory, directory: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names of files that are called like segments and count for none, and why, as "is ...".

    Not those of which there is a usable form too.
    """
    usable = {wal.geometry.file_name(segment.timeline_id, segment.segment_no) for segment in wal.segments()}
    for name, size_bytes in objects_in(store, directory):
        base, compression, complete = split_segment_name(name)
        if base in usable or name.partition(".")[0] in usable:
            continue
        if (suffix := _unread_suffix(name)) is not None:
            yield name, f"is compressed in a form ({suffix}) that pgwal does not read"
        elif is_segment_name(base) and not compression and complete:
            with open_object(store, f"{directory}/{name}" if directory else name) as file:
                form = _compression_of(file.read(LONG_PAGE_HEADER_SIZE))
            size = f"has {size_bytes} bytes, a segment has {wal.geometry.segment_size}"
            yield name, size if form is None else form.complaint
