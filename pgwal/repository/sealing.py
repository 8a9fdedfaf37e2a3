"""Whether what lies in a place is to be sealed, and that it is where it must be.

Whoever opens a repository asks; what seals is imported only where something is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgwal.encryption.key_places import has_metadata_key
from pgwal.errors import RepositoryError, WrongKey
from pgwal.repository.layout import IDENTITY_NAME, STORAGE_FORMAT_NAME, RepositoryIdentity
from pgwal.repository.place import address_of
from pgwal.repository.storage_format import FileFormat, StorageFormat
from pgwal.repository.store import as_sealing

if TYPE_CHECKING:
    from pathlib import Path

    from pgwal.repository.place import Place
    from pgwal.repository.store import ObjectStore


def sealed_place(place: Place, identity: RepositoryIdentity) -> Place:
    """Return a place as the repository that is there is to be read and written: sealed, where it is encrypted.

    Raises KeyRequired where neither a metadata key nor an identity is to be had; WrongKey for those of another
    repository, and where what is in clear ought to be encrypted; FormatError where its keys are damaged.
    """
    if as_sealing(place.store) is not None:
        return place
    if identity.encryption_id is None:
        require_unencrypted(place)
        return place
    from pgwal.repository.encrypted_place import encrypted_place

    return encrypted_place(place, identity, identity.encryption_id)


def require_unencrypted(place: Place) -> None:
    """Raise WrongKey where what is stored in clear ought to be encrypted: this machine has a key for it."""
    if has_metadata_key(address_of(place), place.keys):
        raise WrongKey(
            f"the repository in {place} is not encrypted, although this machine has the metadata key of an encrypted"
            f" repository there: nothing was written",
            hint=f"If {IDENTITY_NAME} was exchanged, bring it back. If the repository shall no longer be encrypted,"
            " remove the file of its metadata key, and unset PGWAL_METADATA_KEY.",
        )


def require_identity(store: ObjectStore) -> None:
    """Raise KeyRequired, or WrongKey, where what backups hold cannot be opened: before anything is written of it."""
    sealing = as_sealing(store)
    if sealing is not None:
        sealing.keys.require_identity()


def require_outside(place: Place, path: Path, what: str) -> None:
    """Raise RepositoryError where what must not lie in an encrypted repository would."""
    if place.directory is not None and path.resolve().is_relative_to(place.directory.resolve()):
        raise RepositoryError(
            f"{what}, {path}, would lie in the repository {place}, which is encrypted",
            hint="Name another place: --spool, --metadata-key, or XDG_STATE_HOME and XDG_CONFIG_HOME, say which.",
            path=str(path),
        )


def format_for_new_files(store: ObjectStore) -> StorageFormat:
    """Return how the files of a new backup are to be stored; raises WrongKey where the keys say otherwise."""
    found, sealing = StorageFormat.of(store), as_sealing(store)
    encryption_id = None if sealing is None else sealing.keys.keyring.repository_id
    if found.encryption_id != encryption_id or (sealing is not None and found.files is not FileFormat.PACKED):
        raise WrongKey(
            f"{store.locate(STORAGE_FORMAT_NAME)} does not say of this repository that it is"
            f" {'not ' if sealing is None else ''}encrypted",
            hint="It was exchanged, or is damaged: bring it back from a copy of the repository.",
        )
    return found
