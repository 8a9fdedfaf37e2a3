"""A directory of a local file system as a place for a repository."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pgwal.repository.data_directories import require_outside_data_directories
from pgwal.repository.local import LocalStore
from pgwal.repository.local_leases import LocalLeases
from pgwal.repository.local_spool import LocalSpool
from pgwal.repository.ownership import require_only_owner_writes, require_own


@dataclass(frozen=True)
class LocalPlace:
    """See pgwal.repository.place.Place."""

    root: Path

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
        return LocalLeases(self.root)

    @cached_property
    def spool(self) -> LocalSpool:
        return LocalSpool(self.root)

    def require_trusted(self) -> None:
        require_only_owner_writes(self.store)

    def require_own(self) -> None:
        require_own(self.store)

    def require_suitable(self) -> None:
        require_outside_data_directories(self.root)

    def make(self, folders: Iterable[str] = ()) -> None:
        for folder in ("", *folders):
            self.store.create_directory(folder)
