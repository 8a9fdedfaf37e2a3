"""A place whose objects are sealed, and the keys of the repository there.

What is received waits in a spool outside of it, as for a store behind a network: a segment that is being received
is written in clear, and is sealed when it is stored.
"""

from __future__ import annotations

from functools import partial

from pgwal.encryption.age import pyrage
from pgwal.encryption.held_secrets import HeldSecrets
from pgwal.encryption.key_files import identities_of, read_metadata_key, require_not_older
from pgwal.encryption.key_places import wal_secrets_path
from pgwal.encryption.keyring import Keyring, StoredKeyring, revision_of
from pgwal.encryption.repository_keys import RepositoryKeys, opened_metadata_key
from pgwal.errors import FormatError, KeyRequired, ObjectNotFound, StoreUnavailable, WrongKey
from pgwal.repository.layout import BACKUP_LOCK_NAME, KEY_DIRECTORY, RepositoryIdentity
from pgwal.repository.memory import MemorySpool
from pgwal.repository.place import Place, address_of
from pgwal.repository.place_wrapper import PlaceWrapper
from pgwal.repository.sealed_store import SealedStore
from pgwal.repository.sealing import require_outside
from pgwal.repository.store import names_in


class EncryptedPlace(PlaceWrapper):
    """See pgwal.repository.place.Place: another place, whose objects are sealed."""

    is_remote = True

    def __init__(self, place: Place, keys: RepositoryKeys, identity: RepositoryIdentity) -> None:
        super().__init__(place)
        self.store = SealedStore(place.store, keys, identity.geometry, self._is_backed_up)
        self.spool = MemorySpool(self.store)
        self.directory = place.directory

    def _is_backed_up(self) -> bool:
        """Tell whether a backup is taken, as far as that can be known: it reads WAL of its start when it ends."""
        try:
            return self.leases.is_locked(BACKUP_LOCK_NAME)
        except StoreUnavailable:
            return True

    def __str__(self) -> str:
        # Its keys are found by it, and its spool.
        return address_of(self.place)


def encrypted_place(place: Place, identity: RepositoryIdentity, repository_id: str) -> EncryptedPlace:
    """Return the place of an encrypted repository; see ``sealing.sealed_place`` for what it raises."""
    keyring, metadata_key = open_keyring(place, repository_id)
    secrets_path = wal_secrets_path(address_of(place))
    require_outside(place, secrets_path, "the secrets of WAL that was received last")
    held = HeldSecrets(secrets_path)
    return EncryptedPlace(
        place, RepositoryKeys(keyring, metadata_key, partial(identities_of, place.keys), held), identity
    )


def open_keyring(place: Place, repository_id: str) -> tuple[Keyring, bytes]:
    """Return the keys of a repository, and its metadata key: from its file, or opened with an identity."""
    pyrage()
    stored = newest_keyring(place)
    if stored.keyring.repository_id != repository_id:
        raise WrongKey(
            f"{stored.keyring.name} in {place} has the keys of repository {stored.keyring.repository_id}, this is"
            f" {repository_id}",
            path=stored.keyring.name,
        )
    metadata_key = read_metadata_key(address_of(place), place.keys, repository_id)
    if metadata_key is None:
        try:
            metadata_key = opened_metadata_key(stored.keyring, identities_of(place.keys))
        except KeyRequired as error:
            if place.keys.has_identity:
                raise
            raise KeyRequired(
                f"{place} is encrypted, and this machine has neither its metadata key nor an identity",
                hint="A host that takes backups has the metadata key: pgwal key metadata writes it, with an identity."
                " To restore, give an identity: --identity FILE, or PGWAL_IDENTITY.",
            ) from error
    keyring = stored.require(metadata_key)
    require_not_older(address_of(place), repository_id, keyring.revision)
    return keyring, metadata_key


def newest_keyring(place: Place) -> StoredKeyring:
    """Return the keys that count; raises FormatError where there are none."""
    for _ in range(2):
        revisions = [revision for name in names_in(place.store, KEY_DIRECTORY) if (revision := revision_of(name))]
        if not revisions:
            break
        name = f"{KEY_DIRECTORY}/{max(revisions):08}.json"
        try:
            return StoredKeyring.decode(place.store.get(name), name)
        except ObjectNotFound:
            # A newer one was stored meanwhile.
            continue
    raise FormatError(
        f"the keys of the repository in {place} are missing",
        hint=f"Bring {KEY_DIRECTORY}/ back from a copy of the repository: without it nothing can be opened.",
    )
