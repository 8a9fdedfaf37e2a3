"""What the directories of a server hold, over SQL: names, kinds and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pgwal.backup.stored_path import decode_path, encode_path
from pgwal.backup.walk import EntryKind, EntryStatus
from pgwal.budget import SQL_STATUSES_AT_ONCE
from pgwal.errors import ServerError
from pgwal.postgres.connection import Connection
from pgwal.postgres.sql_path import copied, literal, require_encodable, translated

_DEEPEST = 32
"""Directories within directories that are looked into; no cluster comes near, but a circular link does."""

# What the server's own directory calls its sockets; SQL does not tell them from files.
_SOCKET_NAME = re.compile(r"\.s\.PGSQL\.[0-9]+")

# Names come as the bytes they are, whatever the database's encoding makes of them: a backslash, which bytea takes for
# the start of an escape, is doubled.
_NAMES = r"COPY (SELECT replace(name, E'\\', E'\\\\')::bytea FROM pg_ls_dir({path}, true, false) AS name)"
_STATUSES = """
    SELECT status.size, extract(epoch FROM status.modification)::float8, status.isdir
      FROM unnest(%(paths)s::bytea[]) WITH ORDINALITY AS listed (path, no),
           pg_stat_file(convert_from(listed.path, getdatabaseencoding()), true) AS status
     ORDER BY listed.no
"""


class SqlDirectories:
    """What the directories hold; see pgwal.backup.walk.DirectoryReader."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def names(self, directory: str) -> list[str]:
        if directory.count("/") >= _DEEPEST:
            raise ServerError(
                f"directories lie more than {_DEEPEST} deep in each other: {directory}",
                hint="Remove the symbolic link that leads back to a directory above it.",
            )
        path = directory or "."
        names = copied(self._connection, path, _NAMES.format(path=literal(path)))
        found = [decode_path(name) for name in names if name is not None]
        return [name for name in found if directory or not _SOCKET_NAME.fullmatch(name)]

    def statuses(self, directory: str, names: Sequence[str]) -> Iterator[EntryStatus | None]:
        prefix = f"{directory}/" if directory else ""
        for start in range(0, len(names), SQL_STATUSES_AT_ONCE):
            yield from self._batch([prefix + name for name in names[start : start + SQL_STATUSES_AT_ONCE]])

    def _batch(self, paths: Sequence[str]) -> Iterator[EntryStatus | None]:
        for path in paths:
            if not path.isascii():
                require_encodable(self._connection, path)
        with translated(self._connection, paths[0]):
            rows = self._connection.execute(_STATUSES, {"paths": [encode_path(path) for path in paths]}).fetchall()
        return map(_status, rows)


def _status(row: tuple[int | None, float, bool]) -> EntryStatus | None:
    size_bytes, mtime_s, is_directory = row
    if size_bytes is None:
        return None
    return EntryStatus(EntryKind.DIRECTORY if is_directory else EntryKind.FILE, size_bytes, mtime_s)
