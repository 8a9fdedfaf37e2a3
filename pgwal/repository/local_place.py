"""A directory of a local file system as a place for a repository."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.encryption.key_sources import KeySources
from pgwal.repository.local import LocalStore
from pgwal.repository.ownership import require_only_owner_writes, require_own

if TYPE_CHECKING:
    from pgwal.repository.local_leases import LocalLeases
    from pgwal.repository.local_spool import LocalSpool
    from pgwal.repository.storage_format import StorageFormat


@dataclass(frozen=True)
class LocalPlace:
    """See pgwal.repository.place.Place."""

    root: Path
    keys: KeySources = field(default=KeySources(), compare=False)

    @property
    def is_remote(self) -> bool:
        return False

    @property
    def request_counts(self) -> None:
        return None

    def __str__(self) -> str:
        return str(self.root)

    @property
    def directory(self) -> Path:
        return self.root

    @cached_property
    def store(self) -> LocalStore:
        return LocalStore(self.root)

    @cached_property
    def leases(self) -> LocalLeases:
        # Here and below not above: a server waits for each segment that it fetches, and that needs none of it.
        from pgwal.repository.local_leases import LocalLeases

        return LocalLeases(self.root)

    @cached_property
    def spool(self) -> LocalSpool:
        from pgwal.repository.local_spool import LocalSpool

        return LocalSpool(self.root)

    @property
    def default_format(self) -> StorageFormat:
        from pgwal.repository.storage_format import PLAIN_FORMAT

        return PLAIN_FORMAT

    def with_keys(self, keys: KeySources) -> LocalPlace:
        return replace(self, keys=keys)

    def require_trusted(self) -> None:
        require_only_owner_writes(self.store)

    def require_own(self) -> None:
        require_own(self.store)

    def require_suitable(self) -> None:
        from pgwal.repository.data_directories import require_outside_data_directories

        require_outside_data_directories(self.root)

    def probe(self) -> None:
        pass

    def make(self, folders: Iterable[str] = ()) -> None:
        for folder in ("", *folders):
            self.store.create_directory(folder)
