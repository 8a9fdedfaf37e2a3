"""Stores that do something beside what another store does; each keeps its contract."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock

from pgwal.repository.store import MOST_BYTES_READ, ByteRange, Child, ObjectStore, StoredObject, StoreFeature


class StoreWrapper:
    """Another store, that offers no short way past this one; what is done is told to ``_before`` first."""

    features = frozenset[StoreFeature]()

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def _before(self, operation: str, name: str) -> None:
        """Called before each operation, with what it is about."""

    def _passing(self, content: bytes | Iterable[bytes]) -> bytes | Iterable[bytes]:
        """Return content that is put."""
        return content

    def _got(self, content: bytes) -> bytes:
        """Return content that was got."""
        return content

    def locate(self, name: str) -> str:
        return self._store.locate(name)

    def get(self, name: str, *, most_bytes: int = MOST_BYTES_READ) -> bytes:
        self._before("get", name)
        return self._got(self._store.get(name, most_bytes=most_bytes))

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        self._before("get_ranges", name)
        return [self._got(content) for content in self._store.get_ranges(name, ranges)]

    def size(self, name: str) -> int:
        self._before("size", name)
        return self._store.size(name)

    def exists(self, name: str) -> bool:
        self._before("exists", name)
        return self._store.exists(name)

    def put(self, name: str, content: bytes | Iterable[bytes], *, replace: bool = False, durable: bool = True) -> None:
        self._before("put", name)
        self._store.put(name, self._passing(content), replace=replace, durable=durable)

    def delete(self, name: str) -> None:
        self._before("delete", name)
        self._store.delete(name)

    def delete_all(self, folder: str) -> None:
        self._before("delete_all", folder)
        self._store.delete_all(folder)

    def remove_folder(self, folder: str) -> bool:
        self._before("remove_folder", folder)
        return self._store.remove_folder(folder)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        self._before("list", prefix)
        return self._store.list(prefix, after=after)

    def children(self, folder: str = "") -> Iterator[Child]:
        self._before("children", folder)
        return self._store.children(folder)

    def recover(self, folder: str, is_own: Callable[[str], bool]) -> None:
        self._before("recover", folder)
        self._store.recover(folder, is_own)


class CountingStore(StoreWrapper):
    """Counts operations by their kinds, and bytes that went either way."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self.counts = Counter[str]()
        self.bytes_put = 0
        self.bytes_got = 0
        self._lock = Lock()

    def _before(self, operation: str, name: str) -> None:  # noqa: ARG002
        with self._lock:
            self.counts[operation] += 1

    def _passing(self, content: bytes | Iterable[bytes]) -> Iterator[bytes]:
        for chunk in (content,) if isinstance(content, bytes) else content:
            with self._lock:
                self.bytes_put += len(chunk)
            yield chunk

    def _got(self, content: bytes) -> bytes:
        with self._lock:
            self.bytes_got += len(content)
        return content


class ThrottlingStore(StoreWrapper):
    """Puts and gets no more than so many bytes a second, over all threads together."""

    def __init__(self, store: ObjectStore, bytes_per_s: int) -> None:
        super().__init__(store)
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0
        self._lock = Lock()

    def _take(self, size_bytes: int) -> None:
        with self._lock:
            now_s = time.monotonic()
            starts_s = max(now_s, self._free_at_s)
            self._free_at_s = starts_s + size_bytes / self._bytes_per_s
        time.sleep(starts_s - now_s)

    def _passing(self, content: bytes | Iterable[bytes]) -> Iterator[bytes]:
        for chunk in (content,) if isinstance(content, bytes) else content:
            self._take(len(chunk))
            yield chunk

    def _got(self, content: bytes) -> bytes:
        self._take(len(content))
        return content
