"""Places that do something beside what another place does; each keeps its contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pgwal.encryption.key_sources import KeySources
from pgwal.repository.lease import Leases
from pgwal.repository.place import Place
from pgwal.repository.storage_format import StorageFormat


class PlaceWrapper:
    """What is the same in another ``place``: all but its store, its spool, and whether it is a directory or remote."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __str__(self) -> str:
        return str(self.place)

    @property
    def keys(self) -> KeySources:
        return self.place.keys

    def with_keys(self, keys: KeySources) -> Place:
        return self.place.with_keys(keys)

    @property
    def request_counts(self) -> Mapping[str, int] | None:
        return self.place.request_counts

    @property
    def default_format(self) -> StorageFormat:
        return self.place.default_format

    @property
    def leases(self) -> Leases:
        return self.place.leases

    def require_trusted(self) -> None:
        self.place.require_trusted()

    def require_own(self) -> None:
        self.place.require_own()

    def require_suitable(self) -> None:
        self.place.require_suitable()

    def probe(self) -> None:
        self.place.probe()

    def make(self, folders: Iterable[str] = ()) -> None:
        self.place.make(folders)
