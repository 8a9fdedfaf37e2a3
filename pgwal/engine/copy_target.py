"""The repository that another one is copied to: made where there is none, and what of the one it can take as it is.

Nothing that is encrypted is ever stored in clear by a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pgwal.encryption.key_places import has_own_metadata_key, own_metadata_key_path
from pgwal.encryption.key_sources import KeySources
from pgwal.engine.initialise import initialise
from pgwal.errors import KeyRequired, ObjectExists, ObjectNotFound, RepositoryError, WrongKey
from pgwal.repository.layout import IDENTITY_NAME, STORAGE_FORMAT_NAME, RepositoryIdentity
from pgwal.repository.place import Place, address_of
from pgwal.repository.repository import Repository, prepare
from pgwal.repository.sealing import require_identity
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT, FileFormat, StorageFormat
from pgwal.repository.store import as_sealing


@dataclass(frozen=True, slots=True)
class CopyTarget:
    """An opened repository to copy to; ``as_stored`` is whether it can read packs and WAL of the source as they are."""

    repository: Repository
    as_stored: bool


def open_target(source: Repository, to: Place, recipients: Sequence[str]) -> CopyTarget:
    """Open the repository to copy to, or make it: for ``recipients``, or else for those of the source.

    Raises RepositoryError for the source itself, and for a repository in clear where the source is encrypted;
    WrongCluster for that of another cluster; KeyRequired where something has to be opened, or wrapped, and no identity
    was given.
    """
    require_target(source, to)
    source_id = source.identity.encryption_id
    found = _format_there(to)
    if source_id is None:
        repository = _open_beside_clear(source, to, found, recipients)
        return CopyTarget(repository, as_sealing(repository.store) is None)
    if found is not None and found.encryption_id is None:
        raise RepositoryError(
            f"{to} is not encrypted, {source.place} is: encrypted backups are not stored in clear",
            hint="Copy into a place where there is no repository, for which the same keys are used then, or into one"
            " that pgwal init --recipient has made. pgwal export writes a backup in clear.",
        )
    if found is None or found.encryption_id == source_id:
        return _open_sharing(source, to, recipients, is_there=found is not None)
    # With keys of its own.
    require_identity(source.store)
    return CopyTarget(_open_with_own_keys(source, to, found, recipients), False)


def find_target(source: Repository, to: Place) -> CopyTarget | None:
    """Open the repository to copy to as it is, None where there is none; nothing is made, or changed.

    Raises as ``open_target`` does.
    """
    require_target(source, to)
    if not to.store.exists(IDENTITY_NAME):
        return None
    encryption_id = StorageFormat.of(to.store).encryption_id
    if encryption_id is not None:
        to = to.with_keys(KeySources(metadata_key_file=own_metadata_key_path(address_of(to))))
    return CopyTarget(Repository.open(to), encryption_id == source.identity.encryption_id)


def require_target(source: Repository, to: Place) -> None:
    """Raise RepositoryError for the source itself, WrongCluster for the repository of another cluster."""
    if address_of(to) == str(source.place) or address_of(to) == address_of(source.place):
        raise RepositoryError(f"{to} is the repository itself", hint="Name another one with --to.")
    with suppress(ObjectNotFound):
        Repository(to, RepositoryIdentity.decode(to.store.get(IDENTITY_NAME))).require(source.identity)


def _format_there(to: Place) -> StorageFormat | None:
    """Return how the repository in a place stores files, None where there is none."""
    if to.store.exists(STORAGE_FORMAT_NAME) or to.store.exists(IDENTITY_NAME):
        return StorageFormat.of(to.store)
    return None


def _open_beside_clear(
    source: Repository, to: Place, found: StorageFormat | None, recipients: Sequence[str]
) -> Repository:
    if recipients or (found is not None and found.encryption_id is not None):
        own = DEFAULT_PACKED_FORMAT if found is None else found
        return _open_with_own_keys(source, to, own, recipients)
    if found is None:
        own = StorageFormat.of(source.store)
        initialise(to, own if own.files is FileFormat.PACKED else to.default_format)
    return Repository.open_or_create(to, source.identity)


def _open_with_own_keys(source: Repository, to: Place, found: StorageFormat, recipients: Sequence[str]) -> Repository:
    """Open a repository whose keys are not those of the source, or make it; this machine has its metadata key."""
    address = address_of(to)
    # What an option says, or the environment, is that of the source.
    to = to.with_keys(KeySources(metadata_key_file=own_metadata_key_path(address)))
    if recipients:
        initialise(to, found._replace(encryption_id=None), recipients)
    if not has_own_metadata_key(address):
        raise KeyRequired(
            f"{to} is encrypted with keys of its own, and this machine does not have its metadata key",
            hint=f"pgwal key metadata --repo {to} writes it, with an identity.",
        )
    return Repository.open_or_create(to, source.identity)


def _open_sharing(source: Repository, to: Place, recipients: Sequence[str], *, is_there: bool) -> CopyTarget:
    from pgwal.engine.shared_keys import bring_keys, hold_metadata_key, share_keys

    sealing = as_sealing(source.store)
    if sealing is None:
        raise WrongKey(f"{source.place} is not opened with its keys")
    keys = sealing.keys
    if not is_there:
        prepare(to)
        share_keys(keys, source.place, to, recipients)
        hold_metadata_key(keys, to)
        with suppress(ObjectExists):
            to.store.put(STORAGE_FORMAT_NAME, StorageFormat.of(source.store).encode())
    else:
        hold_metadata_key(keys, to)
    shares = bring_keys(keys, source.place, to, recipients)
    if not shares:
        require_identity(source.store)
    own_file = KeySources(metadata_key_file=own_metadata_key_path(address_of(to)))
    return CopyTarget(Repository.open_or_create(to.with_keys(own_file), source.identity), shares)
