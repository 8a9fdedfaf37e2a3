"""The packs of a repository, which several backups may refer to: their names, and removing those that none does."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator

from pgwal.repository.deletion import delete_what_can_go
from pgwal.repository.layout import PACK_DIRECTORY
from pgwal.repository.store import ObjectStore, StoredObject, folders_in, objects_in

_NAME_SIZE = 16
_FOLDER_NAME_LENGTH = 2


def new_pack_name() -> str:
    """Return a name that no pack has."""
    return secrets.token_hex(_NAME_SIZE)


def pack_object(name: str) -> str:
    """Return the name of the object that a pack is."""
    return f"{PACK_DIRECTORY}/{name[:_FOLDER_NAME_LENGTH]}/{name}"


def is_pack_name(name: str) -> bool:
    """Tell whether an object's last part names a pack."""
    return len(name) == 2 * _NAME_SIZE and all(digit in "0123456789abcdef" for digit in name)


def list_packs(store: ObjectStore) -> Iterator[StoredObject]:
    """Yield the packs that are there, by name; what is there besides is passed over."""
    for folder in folders_in(store, PACK_DIRECTORY):
        for name, size_bytes in objects_in(store, f"{PACK_DIRECTORY}/{folder}"):
            if is_pack_name(name) and name.startswith(folder):
                yield StoredObject(name, size_bytes)


def remove_packs(store: ObjectStore, names: Iterable[str]) -> None:
    """Remove packs, and what writers that were killed have left of some; only under the lock for backups.

    What the store has to keep for some time stays, with one warning for all of it.
    """
    delete_what_can_go(store, map(pack_object, names))
    for folder in folders_in(store, PACK_DIRECTORY):
        store.recover(f"{PACK_DIRECTORY}/{folder}", is_pack_name)
