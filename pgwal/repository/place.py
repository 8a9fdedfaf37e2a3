"""Where a repository is: its objects, its leases and its spool, and whether that place can be trusted and used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

# Nothing at run time: every start of the command line reads this contract, for it takes addresses.
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pgwal.encryption.key_sources import KeySources
    from pgwal.repository.lease import Leases
    from pgwal.repository.spool import Spool
    from pgwal.repository.storage_format import StorageFormat
    from pgwal.repository.store import ObjectStore


class Place(Protocol):
    """A place for a repository; as a string it is the address that people know it by."""

    @property
    def keys(self) -> KeySources:
        """Where the keys come from if what is there is encrypted."""

    @property
    def store(self) -> ObjectStore: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def spool(self) -> Spool: ...

    @property
    def directory(self) -> Path | None:
        """The directory of this machine that it is, None for what is none."""

    @property
    def is_remote(self) -> bool:
        """Whether what is received waits elsewhere on this machine to be stored: as where it is reached over a network.

        An encrypted directory is such a place, too.  Where each look is a request, there is no ``directory`` besides.
        """

    @property
    def request_counts(self) -> Mapping[str, int] | None:
        """How often an object store was asked by this process, by kinds of requests; None where there is none.

        See RequestCounts in ``cloud_requests``.
        """

    @property
    def default_format(self) -> StorageFormat:
        """How a new repository stores the files of backups there, unless it is told."""

    def with_keys(self, keys: KeySources) -> Place:
        """Return the same place for whoever has other keys."""

    def require_trusted(self) -> None:
        """Raise RepositoryError where others than the repository's owner could have changed what it holds."""

    def require_own(self) -> None:
        """Raise RepositoryError unless the user who runs this may change the repository, as its owner."""

    def require_suitable(self) -> None:
        """Raise RepositoryError for a place where no repository may be; nothing is made."""

    def probe(self) -> None:
        """Raise RepositoryError where what stores things there does not keep what ``store`` and ``leases`` promise.

        For a new repository, and whoever wants to know: it puts and removes something.
        """

    def make(self, folders: Iterable[str] = ()) -> None:
        """Have the place, and folders in it, be there, durably; they may be there already."""


def address_of(place: Place) -> str:
    """Return the address of a place for whoever has another working directory."""
    return str(place if place.directory is None else place.directory.absolute())
