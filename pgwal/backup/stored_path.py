"""Paths of the files that a backup holds: which are acceptable, and whether one comes twice.

A path is relative to the data directory, with ``/`` between its parts.  A name that is not UTF-8 keeps its bytes as
surrogate escapes, as Python's file functions give and take them.
"""

from __future__ import annotations

from xxhash import xxh3_128_digest

from pgwal.errors import FormatError

_DIGEST_SIZE = 16


def encode_path(path: str) -> bytes:
    """Return the bytes of a path; raises FormatError when it stands for none."""
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise FormatError(f"path {path!r} stands for no bytes") from error


def decode_path(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def check_path(path: str) -> bytes:
    """Return the bytes of a path that cannot leave the directory it is joined to.

    Raises FormatError for an absolute path, an empty part, ``.``, ``..``, a NUL, or a second spelling of other bytes.
    """
    content = encode_path(path)
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in path:
        raise FormatError(f"path {path!r} is not a plain path relative to the data directory")
    if not path.isascii() and decode_path(content) != path:
        raise FormatError(f"path {path!r} is not spelled as its bytes are")
    return content


class DistinctPaths:
    """Finds out whether a path came twice, in 16 bytes a path: it keeps digests, not the paths.

    Two paths that differ have the same 128 bits about once in 10^26 backups of a million files.
    """

    _BUCKETS = 256  # Only one bucket at a time becomes a set, which takes several times the memory.

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(self._BUCKETS)]

    def add(self, path: bytes) -> None:
        digest = xxh3_128_digest(path)
        self._buckets[digest[0]] += digest

    def check(self) -> None:
        """Raise FormatError when a path was added twice."""
        for bucket in self._buckets:
            content = bytes(bucket)
            starts = range(0, len(content), _DIGEST_SIZE)
            if len({content[at : at + _DIGEST_SIZE] for at in starts}) != len(starts):
                raise FormatError("a path is listed twice")
