"""Read a server's data directory over an ordinary SQL connection.

The role needs no more than EXECUTE on ``pgwal.postgres.privileges.FILE_FUNCTIONS``; these follow symbolic links, so
tablespaces are reached through pg_tblspc.  They tell a symbolic link from what it points to nowhere: a file or
directory that is linked into the data directory is read as if it were there.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from types import TracebackType
from typing import Self

import psycopg

from pgwal.backup.source import (
    SourceDirectory,
    SourceFile,
    Unread,
    WantedContent,
    extents,
    read_each,
    read_until_whole,
)
from pgwal.backup.walk import walk
from pgwal.control_file import CONTROL_FILE_PATH, CONTROL_FILE_SIZE
from pgwal.errors import ServerError, WrongCluster
from pgwal.postgres.connection import Connection, translated_errors
from pgwal.postgres.directories import SqlDirectories
from pgwal.postgres.file_contents import cut_into_pieces, read_joined, read_pieces, read_small_files, take_one_query
from pgwal.postgres.whole_file import read_to_end

logger = logging.getLogger(__name__)


class SqlDataDirectory:
    """A server's data directory as a source of files and blocks; see pgwal.backup.source.BlockSource.

    Takes over the connection, and closes it when the context is left.  What one call has returned must be read to its
    end, or dropped, before the next call: there is one connection.
    Raises PrivilegeMissing, with the SQL that helps, ServerError, or FormatError for names that lead elsewhere.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def cut(self) -> None:
        self._connection.cut()

    def require_same_server(self, other: psycopg.Connection) -> None:
        """Raise WrongCluster when another connection leads to another server, as a list of hosts may make it."""
        if _server_start(self._connection) != _server_start(other):
            raise WrongCluster(
                "the same connection parameters led to two different servers",
                hint="Name a single server with -h: no list of hosts, no balancer.",
            )

    def read_control_file(self) -> bytes:
        return read_until_whole(self._read_control_file_once, lambda: time.sleep(0.01))

    def list(
        self, emptied: Collection[str] = (), tablespaces: Collection[int] | None = None
    ) -> Iterator[SourceDirectory | SourceFile]:
        major = self._connection.info.server_version // 10000
        yield from walk(SqlDirectories(self._connection), major, _warn_skipped, emptied, tablespaces)

    def names(self, directory: str) -> Sequence[str]:
        return SqlDirectories(self._connection).names(directory)

    def read_file(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        return self._read(path, [(0, size_bytes)])

    def read_to_end(self, path: str, size_bytes: int) -> Iterator[bytes] | None:
        return read_to_end(self._connection, path, size_bytes)

    def read_blocks(self, path: str, block_numbers: array[int]) -> Iterator[bytes] | None:
        return self._read(path, extents(block_numbers))

    def read_small(self, wanted: Sequence[WantedContent]) -> Sequence[bytes | Unread | None]:
        # Names that are no text in the database's encoding are refused one by one, so that the error has the name.
        together = [file for file in wanted if file.path.isascii()]
        contents = read_small_files(self._connection, together) if together else iter(())
        return [next(contents) if file.path.isascii() else read_each(self, [file])[0] for file in wanted]

    def _read_control_file_once(self) -> bytes:
        chunks = self.read_file(CONTROL_FILE_PATH, CONTROL_FILE_SIZE)
        if chunks is None:
            raise ServerError(f"the server's data directory has no {CONTROL_FILE_PATH}")
        return b"".join(chunks)

    def _read(self, path: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes] | None:
        chunks = self._chunks(path, cut_into_pieces(ranges))
        # Whether the file is there shows with the first piece.
        first = next(chunks, b"")
        return None if first is None else chain((first,), (chunk for chunk in chunks if chunk is not None))

    def _chunks(self, path: str, pieces: Iterator[tuple[int, int]]) -> Iterator[bytes | None]:
        """Yield the bytes of (offset, length) pieces, zeros beyond the end of the file; None alone when it is gone."""
        is_first = True
        while wanted := take_one_query(pieces):
            read = 0
            for count, chunk in read_joined(self._connection, path, wanted):
                read += count
                is_first = False
                yield chunk
            contents = read_pieces(self._connection, path, wanted[read:])
            for (_, size), content in zip(wanted[read:], contents, strict=True):
                if content is None and is_first:
                    # The rest is read first, for it is cheaper than to cancel the query.
                    for _ in contents:
                        pass
                    yield None
                    return
                is_first = False
                # Shortened, or dropped, since it was listed: WAL says so, and replaying it makes it right.
                yield (content or b"").ljust(size, b"\0")


def _warn_skipped(path: str) -> None:
    logger.warning("skipping %s: it is not the link of a tablespace", path)


def _server_start(connection: psycopg.Connection) -> object:
    with translated_errors(connection):
        return connection.execute("SELECT pg_postmaster_start_time()").fetchone()
