"""The packs of a repository, which several backups may refer to: their names, and making and removing them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pgwal.backup.pack_table import Pack, Sealed, is_pack_name
from pgwal.backup.pack_use import PackUse
from pgwal.repository.deletion import delete_what_can_go
from pgwal.repository.layout import MOVED_FRAMES_DIRECTORY, PACK_DIRECTORY
from pgwal.repository.store import ObjectStore, StoredObject, as_sealing, folders_in, objects_in

if TYPE_CHECKING:
    from pgwal.encryption.container import PackSeal

_NAME_SIZE = 16
_FOLDER_NAME_LENGTH = 2


def new_pack_name() -> str:
    """Return a name that no pack has."""
    return secrets.token_hex(_NAME_SIZE)


def pack_object(name: str) -> str:
    """Return the name of the object that a pack is."""
    return f"{PACK_DIRECTORY}/{name[:_FOLDER_NAME_LENGTH]}/{name}"


def table_object(name: str) -> str:
    """Return the name of the table that says from where the frames of a pack were moved: see ``moved_frames``."""
    return f"{MOVED_FRAMES_DIRECTORY}/{name}"


def begin_pack(store: ObjectStore) -> tuple[Pack, PackSeal | None]:
    """Return a new pack, of which nothing is stored, and what encrypts it, None where nothing does."""
    name, sealing = new_pack_name(), as_sealing(store)
    if sealing is None:
        return Pack(name), None
    seal = sealing.keys.pack_seal(pack_object(name), bytes.fromhex(name))
    return Pack(name, sealed=Sealed(seal.header)), seal


def list_packs(store: ObjectStore) -> Iterator[StoredObject]:
    """Yield the packs that are there, by name; what is there besides is passed over."""
    for folder in folders_in(store, PACK_DIRECTORY):
        for name, size_bytes in objects_in(store, f"{PACK_DIRECTORY}/{folder}"):
            if is_pack_name(name) and name.startswith(folder):
                yield StoredObject(name, size_bytes)


def remove_packs(store: ObjectStore, names: Iterable[str], tables: Iterable[str] = ()) -> None:
    """Remove packs, and tables of such, and what writers that were killed have left of some.

    Only under the lock for backups.  What the store has to keep for some time stays, with one warning for all of it.
    """
    delete_what_can_go(store, [*map(pack_object, names), *map(table_object, tables)])
    for folder in (*(f"{PACK_DIRECTORY}/{name}" for name in folders_in(store, PACK_DIRECTORY)), MOVED_FRAMES_DIRECTORY):
        store.recover(folder, is_pack_name)


class PackGarbage(NamedTuple):
    """Packs, and names of tables of packs, that no backup needs; and what is needed of the others."""

    packs: list[StoredObject]
    tables: list[str]
    use: PackUse


NO_GARBAGE = PackGarbage([], [], PackUse(frozenset(), frozenset(), ()))
