"""Make a repository before anything is received or backed up, to say how it is to store the files of backups."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from pgwal.errors import ObjectExists, RepositoryError
from pgwal.repository.layout import IDENTITY_NAME, STORAGE_FORMAT_NAME
from pgwal.repository.place import Place
from pgwal.repository.repository import prepare
from pgwal.repository.sealing import require_unencrypted
from pgwal.repository.storage_format import StorageFormat


def initialise(place: Place, wanted: StorageFormat, recipients: Sequence[str] = ()) -> StorageFormat:
    """Make a repository of this format, encrypted if there are ``recipients``, and return what it is.

    One of the same format that is there already is left as it is.  Whose it is, the first stream or full backup says.
    Raises RepositoryError where there is one of another format, and where there can be none; FormatError for what is
    no recipient.
    """
    prepare(place)
    found = StorageFormat.of(place.store)
    if not place.store.exists(IDENTITY_NAME):
        if recipients and found.encryption_id is None and not place.store.exists(STORAGE_FORMAT_NAME):
            from pgwal.engine.keys import make_keys

            wanted = wanted._replace(encryption_id=make_keys(place, recipients))
        if wanted.encryption_id is None and found.encryption_id is None:
            require_unencrypted(place)
        with suppress(ObjectExists):
            place.store.put(STORAGE_FORMAT_NAME, wanted.encode())
        found = StorageFormat.of(place.store)
    if recipients and found.encryption_id is not None:
        _require_recipients(place, recipients)
        wanted = wanted._replace(encryption_id=found.encryption_id)
    if found != wanted:
        raise RepositoryError(
            f"the repository in {place} is {found} already, and cannot become"
            f" {f'{wanted}, encrypted' if recipients else wanted}",
            hint="Name another directory with --repo or PGWAL_REPO: existing files are left as they are.",
        )
    return found


def _require_recipients(place: Place, recipients: Sequence[str]) -> None:
    from pgwal.engine.keys import list_keys

    keyring = list_keys(place).keyring
    if set(keyring.recipients) != set(recipients):
        raise RepositoryError(
            f"the repository in {place} is encrypted for other recipients",
            hint="pgwal key list shows them; pgwal key add and pgwal key remove change them.",
        )
