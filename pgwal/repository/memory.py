"""A repository in memory: the contracts without an operating system, for as long as the process lives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from threading import Lock
from typing import IO

from pgwal.encryption.key_sources import KeySources
from pgwal.errors import ObjectExists, ObjectNotFound, RepositoryError, RepositoryLocked
from pgwal.repository.storage_format import PLAIN_FORMAT
from pgwal.repository.store import MOST_BYTES_READ, ByteRange, Child, ObjectStore, StoredObject, StoreFeature, too_large


class MemoryStore:
    """See pgwal.repository.store.ObjectStore; folders are there as long as something is in them."""

    features = frozenset[StoreFeature]()

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = Lock()

    def locate(self, name: str) -> str:
        return f"memory:{name}"

    def get(self, name: str, *, most_bytes: int = MOST_BYTES_READ) -> bytes:
        content = self._content(name)
        if len(content) > most_bytes:
            raise too_large(name, most_bytes)
        return content

    def _content(self, name: str) -> bytes:
        try:
            return self._objects[name]
        except KeyError:
            raise ObjectNotFound(f"cannot read {self.locate(name)}: it does not exist", path=name) from None

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        content = self._content(name)
        return [content[start:end] for start, end in ranges]

    def size(self, name: str) -> int:
        return len(self._content(name))

    def exists(self, name: str) -> bool:
        with self._lock:
            return name in self._objects or any(other.startswith(f"{name}/") for other in self._objects)

    def put(
        self,
        name: str,
        content: bytes | Iterable[bytes],
        *,
        replace: bool = False,
        durable: bool = True,  # noqa: ARG002
    ) -> None:
        whole = content if isinstance(content, bytes) else b"".join(content)
        with self._lock:
            if name in self._objects and not replace:
                raise ObjectExists(f"cannot write {self.locate(name)}: it is there already")
            self._objects[name] = whole

    def delete(self, name: str) -> None:
        with self._lock:
            if self._objects.pop(name, None) is None:
                raise ObjectNotFound(f"cannot delete {self.locate(name)}: it does not exist")

    def delete_all(self, folder: str) -> None:
        with self._lock:
            for name in [name for name in self._objects if name.startswith(f"{folder}/")]:
                del self._objects[name]

    def remove_folder(self, folder: str) -> bool:
        return not any(True for _ in self.children(folder))

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        with self._lock:
            found = [StoredObject(*item) for item in self._sizes() if item[0].startswith(prefix) and item[0] > after]
        yield from found

    def children(self, folder: str = "") -> Iterator[Child]:
        above = f"{folder}/" if folder else ""
        found: dict[str, Child] = {}
        for name, size_bytes in self.list(above):
            child, slash, _ = name.removeprefix(above).partition("/")
            found[child] = Child(child, None if slash else size_bytes, bool(slash))
        yield from found.values()

    def recover(self, folder: str, is_own: Callable[[str], bool]) -> None:
        pass  # What is not whole is not there.

    def _sizes(self) -> Iterator[tuple[str, int]]:
        return ((name, len(content)) for name, content in self._objects.items())


class MemoryLeases:
    """See pgwal.repository.lease.Leases; among the threads of one process."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._holders: dict[str, str] = {}
        self._held: dict[str, int] = {}
        """How many hold an object together; -1 for one that holds it alone."""
        self._lock = Lock()

    @contextmanager
    def lock(self, name: str, holder: str) -> Iterator[None]:
        with self._lock:
            if name in self._holders:
                raise RepositoryLocked(f"{self._store.locate(name)} is held by {self._holders[name]}")
            self._holders[name] = holder
        try:
            yield
        finally:
            del self._holders[name]

    @contextmanager
    def hold(self, name: str, *, exclusive: bool = False) -> Iterator[None]:
        with self._lock:
            self._store.get(name)
            held = self._held.get(name, 0)
            if held < 0 or (exclusive and held):
                by = "being read by a restore, a verification or a copy" if exclusive and held > 0 else "being removed"
                raise RepositoryLocked(f"{self._store.locate(name)} is {by}", hint="Wait until that has ended.")
            self._held[name] = -1 if exclusive else held + 1
        try:
            yield
        finally:
            with self._lock:
                self._held[name] = 0 if exclusive else self._held[name] - 1

    def confirm(self) -> None:
        pass  # They end with the process.

    def is_locked(self, name: str) -> bool:
        return name in self._holders


class MemorySpool:
    """See pgwal.repository.spool.Spool; notes are no objects."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def preallocate(self, name: str, size_bytes: int, *, zeroed: bool = False) -> MemoryAppender:  # noqa: ARG002
        return MemoryAppender(self._store, name, size_bytes)

    def holds(self, name: str, size_bytes: int, *, zeroed: bool = False) -> bool:  # noqa: ARG002
        return False

    def settle(self, folder: str) -> None:
        pass

    def create_notes(self, name: str) -> IO[bytes]:  # noqa: ARG002
        return BytesIO()

    def drop_notes(self, name: str) -> None:
        pass


class MemoryAppender:
    """See pgwal.repository.spool.Appender; what is written is in the store when it is synced."""

    is_held = False

    def __init__(self, store: ObjectStore, name: str, size_bytes: int) -> None:
        self._store = store
        self._name = name
        self._content = bytearray(store.get(name, most_bytes=store.size(name)) if store.exists(name) else b"")
        if len(self._content) > size_bytes:
            raise RepositoryError(
                f"{store.locate(name)} has {len(self._content)} bytes, at most {size_bytes} were expected"
            )
        self._content += bytes(size_bytes - len(self._content))
        self.sync()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._content[offset : offset + len(data)] = data

    def clear_behind(self, offset: int) -> None:
        self._content[offset:] = bytes(len(self._content) - offset)

    def sync(self) -> None:
        self._store.put(self._name, bytes(self._content), replace=True)

    def rename(self, name: str, *, is_read_soon: bool) -> None:  # noqa: ARG002
        folder, slash, _ = self._name.rpartition("/")
        self._store.put(f"{folder}{slash}{name}", bytes(self._content), replace=True)
        self._store.delete(self._name)

    def pieces(self) -> Iterator[bytes]:
        yield bytes(self._content)

    def discard(self) -> None:
        self._store.delete(self._name)

    def close(self) -> None:
        pass


class MemoryPlace:
    """See pgwal.repository.place.Place."""

    directory = None
    is_remote = False
    request_counts = None
    default_format = PLAIN_FORMAT

    def __init__(self, keys: KeySources = KeySources(), store: MemoryStore | None = None) -> None:  # noqa: B008
        self.keys = keys
        self.store = store or MemoryStore()
        self.leases = MemoryLeases(self.store)
        self.spool = MemorySpool(self.store)

    def __str__(self) -> str:
        return "memory:"

    def with_keys(self, keys: KeySources) -> MemoryPlace:
        return MemoryPlace(keys, self.store)

    def require_trusted(self) -> None:
        pass

    def require_own(self) -> None:
        pass

    def require_suitable(self) -> None:
        pass

    def probe(self) -> None:
        pass

    def make(self, folders: Iterable[str] = ()) -> None:
        pass
