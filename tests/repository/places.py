"""All places and stores that keep the contracts of a repository, for tests that each of them must pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import obstore.store
from encryption.golden_objects import KEYRING, METADATA_KEY, keys_of
from support.azurite import PROGRAM as AZURITE_PROGRAM
from support.azurite import shared_azurite
from support.fate import Fate
from support.faulty_store import FaultyStore
from support.shared_bucket import shared_bucket

from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.place import Place
from pgwal.repository.sealed_store import SealedStore
from pgwal.repository.store import ObjectStore
from pgwal.repository.store_wrapper import CountingStore, ThrottlingStore
from pgwal.segment import WalGeometry


def local(directory: Path) -> LocalPlace:
    place = LocalPlace(directory / "repo")
    place.make()
    return place


def memory(_: Path) -> MemoryPlace:
    return MemoryPlace()


def cloud_memory(_: Path) -> CloudPlace:
    """Return what an object store is, in memory: the client's own."""
    # Of an address of its own, by which its spool is named.
    return CloudPlace(f"s3://memory/{uuid4().hex}", obstore.store.MemoryStore())


def seaweedfs(_: Path) -> CloudPlace:
    """Return a place of its own in a bucket of a server that all tests share."""
    return shared_bucket().place()


def azurite(_: Path) -> CloudPlace:
    """Return a place of its own in a container of an emulator that all tests share."""
    return shared_azurite().place()


PLACES: dict[str, Callable[[Path], Place]] = {
    "local": local,
    "memory": memory,
    "cloud_memory": cloud_memory,
    "seaweedfs": seaweedfs,
}
if AZURITE_PROGRAM is not None:
    PLACES["azurite"] = azurite
IN_STORES = [name for name in PLACES if name not in ("local", "memory")]

_Wrap: TypeAlias = Callable[[ObjectStore], ObjectStore]
_WRAPPERS: dict[str, _Wrap] = {
    "": lambda store: store,
    "counting-": CountingStore,
    "throttling-": lambda store: ThrottlingStore(store, 1 << 40),
    "faulty-": lambda store: FaultyStore(store, Fate()),
    "sealed-": lambda store: SealedStore(store, keys_of(KEYRING, METADATA_KEY), WalGeometry(16 << 20)),
}


def _wrapped(wrap: _Wrap, make: Callable[[Path], Place]) -> Callable[[Path], ObjectStore]:
    return lambda directory: wrap(make(directory).store)


STORES = {wrapper + name: _wrapped(wrap, make) for wrapper, wrap in _WRAPPERS.items() for name, make in PLACES.items()}
