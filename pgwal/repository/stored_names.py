"""What is known to be in a store: names with their sizes, found by the segment of which they hold WAL as well.

A receiver asks of each segment that it receives, and there may be a year of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

from pgwal.repository.store import StoredObject
from pgwal.repository.wal_file_name import split_segment_name


class StoredNames:
    """Paths of objects and their sizes in bytes, for any number of threads."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._lock = Lock()
        self._sizes: dict[str, int] = {}
        self._by_segment: dict[str, set[str]] = {}
        for name, size_bytes in sizes.items():
            self._add(name, size_bytes)

    def _add(self, name: str, size_bytes: int) -> None:
        self._sizes[name] = size_bytes
        self._by_segment.setdefault(_segment_of(name), set()).add(name)

    def _remove(self, name: str) -> None:
        if self._sizes.pop(name, None) is not None:
            segment = _segment_of(name)
            self._by_segment[segment].remove(name)
            if not self._by_segment[segment]:
                del self._by_segment[segment]

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return name in self._sizes

    def size(self, name: str) -> int | None:
        with self._lock:
            return self._sizes.get(name)

    def add(self, name: str, size_bytes: int) -> None:
        with self._lock:
            self._add(name, size_bytes)

    def remove(self, name: str) -> None:
        with self._lock:
            self._remove(name)

    def all(self) -> set[str]:
        with self._lock:
            return set(self._sizes)

    def renew(self, before: set[str], found: Mapping[str, int]) -> None:
        """Take what was ``found`` when ``before`` was known; what has been added or removed since is known better."""
        with self._lock:
            for name in before - found.keys():
                self._remove(name)
            for name, size_bytes in found.items():
                if name not in before:
                    self._add(name, size_bytes)

    def directly_in(self, folder: str) -> list[StoredObject]:
        """Return what is directly in a folder, by the last part of each name."""
        with self._lock:
            found = [(name.removeprefix(f"{folder}/"), size) for name, size in self._sizes.items()]
        return sorted(StoredObject(name, size) for name, size in found if "/" not in name)

    def of_segment(self, folder: str, segment: str) -> list[str]:
        """Return the last parts of the names of a segment's objects in a folder; as well of one that is no segment."""
        with self._lock:
            found = sorted(self._by_segment.get(f"{folder}/{segment}", ()))
        return [name.rpartition("/")[2] for name in found]


def _segment_of(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{split_segment_name(name)[0]}"
