"""Give a copy of an encrypted repository the keys of that one, encrypted for recipients of its own.

Objects are bound to the id of the repository's keys and to the metadata key, and encrypted for its content keys: with
the same ones a copy reads them as they are, and nothing is opened on the way.  Who may read the copy its own key
document says, which this makes, and ``key add`` and ``key remove`` change.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from pgwal.encryption.key_files import identities_of, read_metadata_key, write_metadata_key
from pgwal.encryption.key_places import has_own_metadata_key, own_metadata_key_path
from pgwal.encryption.key_sources import KeySources
from pgwal.encryption.keyring import Keyring
from pgwal.encryption.repository_keys import (
    RepositoryKeys,
    opened_content_key,
    wrapped_content_key,
    wrapped_metadata_key,
)
from pgwal.engine.keys import distinct_recipients
from pgwal.errors import KeyRequired, ObjectExists, RepositoryError, WrongKey
from pgwal.repository.encrypted_place import newest_keyring
from pgwal.repository.layout import KEY_DIRECTORY
from pgwal.repository.place import Place, address_of
from pgwal.repository.sealing import require_outside


def share_keys(keys: RepositoryKeys, source: Place, place: Place, recipients: Sequence[str]) -> None:
    """Store the keys of a repository in a place for a copy of it; for other ``recipients`` that takes an identity.

    What an interrupted call has left is taken up.  Raises RepositoryError where there are other keys, KeyRequired.
    """
    wanted = distinct_recipients(recipients) or keys.keyring.recipients
    keyring = _wrapped_for(keys, source, wanted)._replace(revision=1)
    with suppress(ObjectExists):
        place.store.put(keyring.name, keyring.encode(keys.metadata_key))
    left = newest_keyring(place)
    if left.keyring.repository_id != keyring.repository_id or set(left.keyring.recipients) != set(wanted):
        raise RepositoryError(
            f"{place} has other keys, of a repository that was not made to its end",
            hint=f"Remove {place.store.locate(KEY_DIRECTORY)} if nobody needs it.",
        )
    left.require(keys.metadata_key)


def hold_metadata_key(keys: RepositoryKeys, place: Place) -> None:
    """Have this machine know a copy by its metadata key, which is that of the source; raises WrongKey for another."""
    address, repository_id = address_of(place), keys.keyring.repository_id
    path = own_metadata_key_path(address)
    require_outside(place, path, "the file of the metadata key")
    if not has_own_metadata_key(address):
        write_metadata_key(path, address, repository_id, keys.metadata_key)
    elif read_metadata_key(address, KeySources(metadata_key_file=path), repository_id) != keys.metadata_key:
        raise WrongKey(f"{path} holds another metadata key than that of the repository", path=str(path))


def bring_keys(keys: RepositoryKeys, source: Place, place: Place, recipients: Sequence[str]) -> bool:
    """Have a copy, for its ``recipients``, which are those of before where none is named, open what it will get.

    False, with nothing done, where it has key pairs of its own, as when a recipient was removed there: what comes as it
    is stored could be read by that one, too.  Raises KeyRequired where other recipients take an identity,
    RepositoryError.
    """
    copy = newest_keyring(place).require(keys.metadata_key)
    own = {key.generation: key.recipient for key in keys.keyring.content}
    if any(own.get(key.generation) != key.recipient for key in copy.content):
        return False
    is_complete = len(copy.content) == len(own)
    wanted = distinct_recipients(recipients) or copy.recipients
    if is_complete and set(wanted) == set(copy.recipients):
        return True
    if is_complete and not set(wanted) >= set(copy.recipients):
        raise RepositoryError(
            f"who may read {place} now could read what is copied there, too: it is encrypted as in {source}",
            hint="Remove the recipient there first, with pgwal key remove: what is new has another key then.",
        )
    if not recipients and set(wanted) != set(keys.keyring.recipients):
        raise KeyRequired(
            f"{source} has a new key since a recipient was removed, and {place} has other recipients",
            hint="Say for whom it is there: --recipient for each of them, with --identity.",
        )
    keyring = _wrapped_for(keys, source, wanted)._replace(revision=copy.revision + 1)
    place.require_own()
    try:
        place.store.put(keyring.name, keyring.encode(keys.metadata_key))
    except ObjectExists:
        raise RepositoryError(
            f"the keys of {place} were changed by another command at the same time", hint="Copy again."
        ) from None
    return True


def _wrapped_for(keys: RepositoryKeys, source: Place, recipients: tuple[str, ...]) -> Keyring:
    """Return the keys, encrypted for some recipients."""
    keyring = keys.keyring
    if set(recipients) == set(keyring.recipients):
        return keyring
    identities = identities_of(source.keys)
    content = tuple(
        wrapped_content_key(key.generation, opened_content_key(keyring, key, identities), recipients)
        for key in keyring.content
    )
    metadata = wrapped_metadata_key(keys.metadata_key, recipients)
    return keyring._replace(recipients=recipients, content=content, metadata=metadata)
