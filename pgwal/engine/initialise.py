"""Make a repository before anything is received or backed up, to say how it is to store the files of backups."""

from __future__ import annotations

from contextlib import suppress

from pgwal.errors import ObjectExists, RepositoryError
from pgwal.repository.layout import IDENTITY_NAME, STORAGE_FORMAT_NAME
from pgwal.repository.place import Place
from pgwal.repository.repository import prepare
from pgwal.repository.storage_format import StorageFormat


def initialise(place: Place, wanted: StorageFormat) -> None:
    """Make a repository of this format; one of the same that is there already is left as it is.

    Whose it is, the first stream or full backup says.  Raises RepositoryError where there is one of another format, and
    where there can be none.
    """
    prepare(place)
    if not place.store.exists(IDENTITY_NAME):
        with suppress(ObjectExists):
            place.store.put(STORAGE_FORMAT_NAME, wanted.encode())
    found = StorageFormat.of(place.store)
    if found != wanted:
        raise RepositoryError(
            f"the repository in {place} is {found} already, and cannot become {wanted}",
            hint="Name another directory with --repo or PGWAL_REPO: what is there stays as it is.",
        )
