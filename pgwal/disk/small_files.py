# cython: language_level=3, annotation_typing=False
"""Read, write and sync many small files in one call.

A data directory has thousands of them, and calls of Python for each, between which threads wait for each other, cost
several times what the system takes.  This source runs in two forms, as pgwal/wal/scan.py does: compiled by Cython, with
small_files.h, and interpreted as it stands.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

try:
    import cython  # type: ignore[import-untyped]
except ImportError:
    # Cython is needed to compile this file, not to run it; this is all that it uses.
    from types import SimpleNamespace

    cython = SimpleNamespace(compiled=False)

from pgwal.backup.source import Unread

if TYPE_CHECKING:
    from array import array

COMPILED: bool = cython.compiled


def read_small_files(
    paths: Sequence[str],
    sizes: Sequence[int],
    block_numbers: Sequence[array[int] | None],
    to_end: Sequence[bool],
) -> list[bytes | Unread | None]:
    """Return of each file its first bytes, or these blocks of 8192 bytes; None where there is no such file.

    ``sizes`` says how many bytes are wanted, of blocks too; what lies beyond the end of a file is zeros.
    ``block_numbers`` are arrays of type I, None for first bytes.  Of files that are wanted ``to_end``, all is returned
    that they have when they are opened, or, where that is more than their size, that they are longer.
    Raises OSError, with the name of the file; ELOOP for one that is a symbolic link.
    """
    if not (len(paths) == len(sizes) == len(block_numbers) == len(to_end)):
        raise ValueError("the lists are of one length")
    for size, numbers, is_whole in zip(sizes, block_numbers, to_end, strict=True):
        if size < 0:
            raise ValueError("a size is not negative")
        if not (numbers is None or (not is_whole and numbers.itemsize == 4 and size == 8192 * len(numbers))):
            raise ValueError("the size is that of the blocks")
    found = _read(_encoded(paths), list(sizes), list(block_numbers), list(to_end))
    return [Unread.LONGER if content is True else content for content in found]


def write_small_files(paths: Sequence[str], contents: Sequence[bytes], mode: int) -> None:
    """Create files that are not there yet, and write them.

    Raises FileNotCreated or FileNotWritten, with the name of the file; those before it are written then.
    """
    if len(paths) != len(contents):
        raise ValueError("the lists are of one length")
    _write(_encoded(paths), list(contents), mode)


def sync_files(paths: Sequence[str]) -> None:
    """Make files durable, of any size.  Raises OSError, with the name of the first that cannot be."""
    _sync(_encoded(paths))


def _encoded(paths: Sequence[str]) -> list[bytes]:
    """Return paths as the system takes them, none of which ends within itself."""
    encoded = [os.fsencode(path) for path in paths]
    if any(b"\0" in path for path in encoded):
        raise ValueError("a path holds no zero byte")
    return encoded


class FileNotCreated(OSError):
    """A file could not be created."""


class FileNotWritten(OSError):
    """A file that was created could not be written."""


def _failed(error_number: int, path: bytes) -> OSError:
    return OSError(error_number, os.strerror(error_number), os.fsdecode(path))


def _unwritable(is_created: bool, error_number: int, path: bytes) -> OSError:
    kind = FileNotWritten if is_created else FileNotCreated
    return kind(error_number, os.strerror(error_number), os.fsdecode(path))


if not cython.compiled:
    from pgwal.disk.block_reads import read_blocks

    def _read(
        paths: list[bytes], sizes: list[int], block_numbers: list[array[int] | None], to_end: list[bool]
    ) -> list[bytes | Literal[True] | None]:
        """Return the contents, None for a file that is not there, True for one that is longer."""
        return [_read_one(*wanted) for wanted in zip(paths, sizes, block_numbers, to_end, strict=True)]

    def _read_one(path: bytes, size: int, numbers: array[int] | None, is_whole: bool) -> bytes | Literal[True] | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(error.errno or 0, path) from error
        try:
            if is_whole:
                found_size = os.fstat(descriptor).st_size
                return True if found_size > size else _read_start(descriptor, found_size)
            if numbers is not None:
                return read_blocks(descriptor, numbers)
            return _read_start(descriptor, size).ljust(size, b"\0")
        except OSError as error:
            raise _failed(error.errno or 0, path) from error
        finally:
            os.close(descriptor)

    def _read_start(descriptor: int, size: int) -> bytes:
        content = b""
        while len(content) < size and (more := os.pread(descriptor, size - len(content), len(content))):
            content += more
        return content

    def _write(paths: list[bytes], contents: list[bytes], mode: int) -> None:
        for path, content in zip(paths, contents, strict=True):
            is_created = False
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(path, flags, mode)
                is_created = True
                try:
                    rest = memoryview(content)
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise _unwritable(is_created, error.errno or 0, path) from error

    def _sync(paths: list[bytes]) -> None:
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise _failed(error.errno or 0, path) from error
