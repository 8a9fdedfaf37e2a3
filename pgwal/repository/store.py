"""The contract of a place that holds a repository's objects, the first of three: see also ``lease`` and ``spool``.

An object is some bytes under a name.  Names are relative paths with ``/``; what they have in common up to one is a
folder, which is there when something is in it, and may be there empty.  What a store can do besides is a feature, which
is asked for and never assumed: wrappers, and what lies behind a network, offer none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from pgwal.errors import FormatError

if TYPE_CHECKING:
    from pgwal.encryption.repository_keys import RepositoryKeys

MOST_BYTES_READ = 16 << 20
"""More than histories, labels and documents of pgwal's own have."""


class StoreFeature(Enum):
    """What not every store can do."""

    FILES = "files"
    """Objects are files of a local file system: the store is a FileStore."""
    COPIES = "copies"
    """An object can be stored under another name without being read: the store is a CopyingStore."""
    SEALS = "seals"
    """Objects are sealed with keys: the store is a SealingStore."""
    RENAMES = "renames"
    """Names of folders can be changed at once: the store is a RenamingStore."""


class StoredObject(NamedTuple):
    """An object and its size in bytes."""

    name: str
    size_bytes: int


class Child(NamedTuple):
    """What has a name directly in a folder: an object with its size, a folder, or neither, as a link is."""

    name: str
    size_bytes: int | None
    is_folder: bool = False


class ByteRange(NamedTuple):
    """Bytes from ``start`` to before ``end``; a negative start counts from the end, None is the end."""

    start: int
    end: int | None = None


class ObjectStore(Protocol):
    """Objects; every method raises RepositoryError for what the storage refuses, StorageFull where it has no room."""

    features: frozenset[StoreFeature]

    def locate(self, name: str) -> str:
        """Return what people call the place of an object, for messages."""

    def get(self, name: str, *, most_bytes: int = MOST_BYTES_READ) -> bytes:
        """Return an object's bytes; raises ObjectNotFound, FormatError when there are more than ``most_bytes``."""

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        """Return some ranges of an object, which are shorter where it ends before; raises ObjectNotFound."""

    def size(self, name: str) -> int:
        """Return an object's size in bytes; raises ObjectNotFound."""

    def exists(self, name: str) -> bool:
        """Tell whether there is an object or a folder of this name, or anything else."""

    def put(self, name: str, content: bytes | Iterable[bytes], *, replace: bool = False, durable: bool = True) -> None:
        """Store an object, whole or not at all, from bytes or from pieces; durable unless that need not be.

        Raises ObjectExists, with nothing changed, when there is one of this name, unless it is to ``replace`` that.
        What the pieces raise is passed on.
        """

    def delete(self, name: str) -> None:
        """Remove an object; it may come back after a crash of the machine.

        Where there is none, some stores raise ObjectNotFound, and others say nothing.
        """

    def delete_all(self, folder: str) -> None:
        """Remove a folder with all that is in it, if it is there; it may come back in part as for ``delete``."""

    def remove_folder(self, folder: str) -> bool:
        """Remove a folder that is empty; False, with nothing done, when it is not."""

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose names begin with ``prefix``, however deep, in no order, as they are found.

        Only those whose names are greater than ``after``: where there are many, each thousand of them is a request.
        That must be no folder's name, for behind such a one some stores pass over what is in it.
        """

    def children(self, folder: str = "") -> Iterator[Child]:
        """Yield what is directly in a folder, in no order, under the last part of each name; of an absent one nothing.

        What is stored or deleted meanwhile may be yielded or not, all else is.
        """

    def recover(self, folder: str, is_own: Callable[[str], bool]) -> None:
        """Take over from a writer that was killed: remove what it had stored in part, make durable what it had whole.

        For whoever alone writes directly in a folder objects of which ``is_own`` tells by their names.
        """


class FileStore(ObjectStore, Protocol):
    """Objects that are files."""

    def open_file(self, name: str) -> FileIO:
        """Open an object for reading, unbuffered; raises ObjectNotFound."""

    def path(self, name: str) -> Path:
        """Return the path of the file."""


class RenamingStore(ObjectStore, Protocol):
    """Objects whose names can be changed without storing them again."""

    def rename(self, old: str, new: str) -> None:
        """Give an object, or a folder with all in it, a new name, durably.

        Raises ObjectExists, with nothing changed, when that name is taken; ObjectNotFound.
        """


class CopyingStore(ObjectStore, Protocol):
    """Objects that can be stored again as they are, for whoever cannot read them."""

    def copy(self, old: str, new: str) -> None:
        """Store an object again under another name; under the one that it has when it is set aside, it is not read.

        Raises ObjectNotFound, ObjectExists.
        """


class ObjectSealer(Protocol):
    """What seals one object."""

    name: str

    def add(self, piece: bytes | memoryview) -> None:
        """Take the next piece of what it holds, which must not change any more."""

    def put(self) -> None:
        """Store it when all of it is there, as ``ObjectStore.put`` does; once."""

    def content_from(self, start: int) -> Iterator[bytes | memoryview]:
        """Yield what it holds from a byte offset on, as far as it has come, stored or not."""

    def close(self) -> None:
        """Give back the memory of what was sealed."""


class ObjectOpener(Protocol):
    """What opens one object; raises ChecksumMismatch, KeyRequired."""

    def open(self, piece: bytes) -> bytes:
        """Take the next piece of what is stored, and return what is opened by now."""

    def finish(self) -> bytes:
        """Return the rest, when there are no more pieces."""


class SealingStore(ObjectStore, Protocol):
    """Objects that are sealed; packs are so by whoever puts them."""

    keys: RepositoryKeys
    as_stored: ObjectStore
    """The same objects, sealed as they are."""

    def sealer(self, name: str, size_bytes: int) -> ObjectSealer:
        """Return what seals a new object of that many plain bytes before all of it is there."""

    def opener(self, name: str) -> ObjectOpener:
        """Return what opens an object of this name, for whoever reads it ``as_stored``."""

    def require_form(self, name: str) -> None:
        """Raise ChecksumMismatch unless an object looks like a sealed one, as far as that shows without its key."""


def too_large(name: str, most_bytes: int) -> FormatError:
    """Return the error for an object, or a file, that has more bytes than any of its kind."""
    return FormatError(
        f"{name} is larger than {most_bytes} bytes, and so not of its kind", hint="Move it away.", path=name
    )


def as_files(store: ObjectStore) -> FileStore | None:
    """Return a store whose objects are files as one, None for any other."""
    return cast(FileStore, store) if StoreFeature.FILES in store.features else None


def as_renaming(store: ObjectStore) -> RenamingStore | None:
    """Return a store that can rename as one, None for any other."""
    return cast(RenamingStore, store) if StoreFeature.RENAMES in store.features else None


def as_sealing(store: ObjectStore) -> SealingStore | None:
    """Return a store whose objects are sealed as one, None for any other."""
    return cast("SealingStore", store) if StoreFeature.SEALS in store.features else None


def as_copying(store: ObjectStore) -> CopyingStore | None:
    """Return a store that can copy as one, None for any other."""
    return cast(CopyingStore, store) if StoreFeature.COPIES in store.features else None


def objects_in(store: ObjectStore, folder: str) -> list[StoredObject]:
    """Return the objects directly in a folder, by the last part of each name."""
    return sorted(StoredObject(name, size) for name, size, _ in store.children(folder) if size is not None)


def names_in(store: ObjectStore, folder: str) -> list[str]:
    """Return all names directly in a folder, whatever they stand for, in order."""
    return sorted(child.name for child in store.children(folder))


def folders_in(store: ObjectStore, folder: str) -> list[str]:
    """Return the names of the folders directly in a folder, in order."""
    return sorted(child.name for child in store.children(folder) if child.is_folder)


def move(store: ObjectStore, old: str, new: str) -> None:
    """Give an object or a folder a new name, over nothing; what cannot be renamed is stored again.

    Raises ObjectExists, ObjectNotFound.  A crash in between may leave objects under both names, none under neither.
    """
    renaming = as_renaming(store)
    if renaming is not None:
        renaming.rename(old, new)
        return
    folder, _, last = old.rpartition("/")
    if any(child.name == last and child.is_folder for child in store.children(folder)):
        for name, _ in store.list(f"{old}/"):
            store_again(store, name, new + name.removeprefix(old))
        store.delete_all(old)
    else:
        store_again(store, old, new)
        store.delete(old)


def store_again(store: ObjectStore, old: str, new: str) -> None:
    """Store an object under another name as well; raises ObjectNotFound, ObjectExists."""
    copying = as_copying(store)
    if copying is None:
        store.put(new, _whole(store, old))
    else:
        copying.copy(old, new)


def _whole(store: ObjectStore, name: str) -> bytes:
    return store.get(name, most_bytes=store.size(name))
