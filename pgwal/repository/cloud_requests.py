"""What an object store is asked by way of its client, counted by kinds: each request takes time, and most are billed.

What the client asks again by itself, as no answer came or the store was busy, is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING

import obstore

from pgwal.budget import GAP_READ_BYTES, LISTED_AT_ONCE

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ListResult, ObjectMeta, PutMode, PutResult
    from obstore.store import ObjectStore as Client


class RequestCounts:
    """How often a store was asked, by kinds, in all threads: get, head, list, put and delete.

    What begins an upload in parts, and what ends it, is a put each.
    """

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._lock = Lock()

    def add(self, kind: str, number: int = 1) -> None:
        with self._lock:
            self._counts[kind] += number

    def by_kind(self) -> dict[str, int]:
        """Return the counts as they are by now, of each kind."""
        with self._lock:
            return {kind: self._counts[kind] for kind in ("get", "head", "list", "put", "delete")}


class CloudRequests:
    """The functions of the client's library for one client; they raise what those raise."""

    def __init__(self, client: Client, counts: RequestCounts) -> None:
        self._client = client
        self._counts = counts

    def get(self, name: str, options: GetOptions | None = None) -> GetResult:
        self._counts.add("get")
        return obstore.get(self._client, name, options=options)

    def get_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return ranges of an object, each of which has a byte at least."""
        self._counts.add("get", _joined_count(ranges))
        starts, ends = zip(*ranges, strict=True)
        found = obstore.get_ranges(self._client, name, starts=starts, ends=ends, coalesce=GAP_READ_BYTES)
        return [each.to_bytes() for each in found]

    def head(self, name: str) -> ObjectMeta:
        self._counts.add("head")
        return obstore.head(self._client, name)

    def list(
        self, folder: str, offset: str | None = None, at_once: int = LISTED_AT_ONCE
    ) -> Iterator[Sequence[ObjectMeta]]:
        """Yield some objects of a folder at a time, however deep, behind the name ``offset``, as they are found."""
        self._counts.add("list")
        listed = 0
        for found in obstore.list(self._client, folder or None, offset=offset, chunk_size=at_once):
            if listed:
                self._counts.add("list")
            yield found
            listed += len(found)

    def list_children(self, folder: str) -> ListResult[Sequence[ObjectMeta]]:
        """Return the objects that are directly in a folder, and the folders in it."""
        found = obstore.list_with_delimiter(self._client, folder or None)
        self._counts.add("list", max(1, -(-(len(found["common_prefixes"]) + len(found["objects"])) // LISTED_AT_ONCE)))
        return found

    def put(self, name: str, content: bytes, mode: PutMode | None = None) -> PutResult:
        self._counts.add("put")
        return obstore.put(self._client, name, content, mode=mode, use_multipart=False)

    def put_in_parts(self, name: str, pieces: Iterator[bytes], part_size: int, parts_at_a_time: int) -> None:
        """Put a large object over whatever is there."""
        size_bytes = 0

        def passing() -> Iterator[bytes]:
            nonlocal size_bytes
            for piece in pieces:
                size_bytes += len(piece)
                yield piece

        try:
            obstore.put(
                self._client,
                name,
                passing(),
                use_multipart=True,
                chunk_size=part_size,
                max_concurrency=parts_at_a_time,
            )
        finally:
            self._counts.add("put", -(-size_bytes // part_size) + 2)

    def delete(self, names: str | Sequence[str]) -> None:
        self._counts.add("delete", 1 if isinstance(names, str) else -(-len(names) // LISTED_AT_ONCE))
        obstore.delete(self._client, names)


def _joined_count(ranges: Sequence[tuple[int, int]]) -> int:
    """Return in how many requests some ranges are read."""
    count, read_to = 0, -1
    for start, end in sorted(ranges):
        if not count or start - read_to > GAP_READ_BYTES:
            count += 1
        read_to = max(read_to, end)
    return count
