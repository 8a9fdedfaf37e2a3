"""The keys of an encrypted repository: made with it, given to other recipients, and written where a host needs them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from pgwal.encryption.age import Identity, require_recipient
from pgwal.encryption.container import KEY_BYTES
from pgwal.encryption.key_files import identities_of, read_metadata_key, require_not_older, write_metadata_key
from pgwal.encryption.key_places import metadata_key_path
from pgwal.encryption.keyring import Keyring, revision_of
from pgwal.encryption.repository_keys import (
    new_content_key,
    opened_content_key,
    opened_metadata_key,
    wrapped_content_key,
    wrapped_metadata_key,
)
from pgwal.errors import FormatError, KeyRequired, ObjectExists, ObjectNotFound, ObjectRetained, RepositoryError
from pgwal.repository.encrypted_place import newest_keyring, open_keyring
from pgwal.repository.layout import KEY_DIRECTORY
from pgwal.repository.place import Place, address_of
from pgwal.repository.sealing import require_outside
from pgwal.repository.storage_format import StorageFormat
from pgwal.repository.store import names_in

_ID_BYTES = 16


class KeyReport(NamedTuple):
    """The keys after a command; ``metadata_key_file`` is the file of this machine, None where there is none."""

    keyring: Keyring
    metadata_key_file: str | None


def make_keys(place: Place, recipients: Sequence[str]) -> str:
    """Make the keys of a new repository, and this host's file of the metadata key; return their id.

    What an interrupted call has left is taken up when it was for the same recipients.  Raises FormatError for what is
    no recipient, RepositoryError where there are other keys.
    """
    wanted = distinct_recipients(recipients)
    with suppress(FormatError):
        left = newest_keyring(place).keyring
        if left.recipients != wanted:
            raise RepositoryError(
                f"{place} has keys for other recipients, of a repository that was not made to its end",
                hint=f"Remove {place.store.locate(KEY_DIRECTORY)} if nobody needs it.",
            )
        open_keyring(place, left.repository_id)
        return left.repository_id
    repository_id, metadata_key = secrets.token_hex(_ID_BYTES), secrets.token_bytes(KEY_BYTES)
    keyring = Keyring(
        repository_id, 1, wanted, (new_content_key(1, wanted),), wrapped_metadata_key(metadata_key, wanted)
    )
    # First: a file that is there already is of another repository, and stays.
    _write_metadata_key(place, repository_id, metadata_key)
    place.store.put(keyring.name, keyring.encode(metadata_key))
    return repository_id


def list_keys(place: Place) -> KeyReport:
    """Return the keys of a repository; raises as ``open_keyring``, RepositoryError for one that is not encrypted."""
    keyring, _ = open_keyring(place, encryption_id(place))
    return _report(place, keyring)


def add_recipients(place: Place, recipients: Sequence[str]) -> KeyReport:
    """Have more recipients read all that is there, and that comes; needs an identity.  Nothing is read of the data."""
    keyring, metadata_key = open_keyring(place, encryption_id(place))
    wanted = distinct_recipients([*keyring.recipients, *recipients])
    if wanted != keyring.recipients:
        keyring = _store(place, _rewrapped(place, keyring, metadata_key, wanted), metadata_key)
    _clear_older(place, keyring)
    return _report(place, keyring)


def remove_recipients(place: Place, recipients: Sequence[str]) -> KeyReport:
    """Have some recipients read nothing that is stored from now on; needs an identity of one that stays.

    What is there is not encrypted anew: a new key pair is for what comes.  Raises RepositoryError when none would stay.
    """
    keyring, metadata_key = open_keyring(place, encryption_id(place))
    unwanted = distinct_recipients(recipients)
    if absent := [recipient for recipient in unwanted if recipient not in keyring.recipients]:
        # What an interrupted call has done already is no error, if nothing else is asked for.
        if len(absent) < len(unwanted) or len(keyring.content) == 1:
            raise RepositoryError(f"{absent[0]} is no recipient", hint="pgwal key list shows the recipients.")
        _clear_older(place, keyring)
        return _report(place, keyring)
    staying = tuple(recipient for recipient in keyring.recipients if recipient not in unwanted)
    if not staying:
        raise RepositoryError(
            "no recipient would be left, and nobody could read what is stored", hint="Add another one: pgwal key add."
        )
    identities = identities_of(place.keys)
    if not any(identity.recipient in staying for identity in identities):
        raise KeyRequired(
            "the identity that was given is of none of the recipients that would stay",
            hint="Give one of those: so it is known that somebody has it.",
        )
    rewrapped = _rewrapped(place, keyring, metadata_key, staying)
    newest = new_content_key(rewrapped.content[-1].generation + 1, staying)
    keyring = _store(place, rewrapped._replace(content=(*rewrapped.content, newest)), metadata_key)
    _clear_older(place, keyring)
    return _report(place, keyring)


def restore_metadata_key(place: Place) -> KeyReport:
    """Write the file of the metadata key on this machine, opened with an identity; one that is right stays."""
    repository_id = encryption_id(place)
    keyring = newest_keyring(place).keyring
    with suppress(KeyRequired):
        if read_metadata_key(address_of(place), place.keys, repository_id) is not None:
            return list_keys(place)
    metadata_key = opened_metadata_key(keyring, identities_of(place.keys))
    newest_keyring(place).require(metadata_key)
    _write_metadata_key(place, repository_id, metadata_key)
    return list_keys(place)


def _write_metadata_key(place: Place, repository_id: str, metadata_key: bytes) -> None:
    path = metadata_key_path(address_of(place), place.keys)
    require_outside(place, path, "the file of the metadata key")
    write_metadata_key(path, address_of(place), repository_id, metadata_key)


def encryption_id(place: Place) -> str:
    """Return the id of a repository's keys; raises RepositoryError for one that is not encrypted, or not there."""
    found = StorageFormat.of(place.store).encryption_id
    if found is None:
        raise RepositoryError(
            f"there is no encrypted repository in {place}",
            hint="pgwal init --recipient makes one; one that is there in clear stays so.",
        )
    return found


def distinct_recipients(recipients: Sequence[str]) -> tuple[str, ...]:
    """Return public keys, each once; raises FormatError for what is none."""
    return tuple(dict.fromkeys(map(require_recipient, recipients)))


def _rewrapped(place: Place, keyring: Keyring, metadata_key: bytes, recipients: tuple[str, ...]) -> Keyring:
    identities: list[Identity] = identities_of(place.keys)
    content = tuple(
        wrapped_content_key(key.generation, opened_content_key(keyring, key, identities), recipients)
        for key in keyring.content
    )
    return keyring._replace(
        revision=keyring.revision + 1,
        recipients=recipients,
        content=content,
        metadata=wrapped_metadata_key(metadata_key, recipients),
    )


def _store(place: Place, keyring: Keyring, metadata_key: bytes) -> Keyring:
    """Store a revision; raises RepositoryError where another command has stored it at the same time."""
    place.require_own()
    try:
        place.store.put(keyring.name, keyring.encode(metadata_key))
    except ObjectExists:
        raise RepositoryError(
            f"the keys of {place} were changed by another command at the same time", hint="Look at them, and try again."
        ) from None
    require_not_older(address_of(place), keyring.repository_id, keyring.revision)
    return keyring


def _clear_older(place: Place, keyring: Keyring) -> None:
    """Remove older revisions, which an interrupted command may have left, too; where that is refused they stay."""
    for name in names_in(place.store, KEY_DIRECTORY):
        revision = revision_of(name)
        if revision is not None and revision < keyring.revision:
            with suppress(ObjectNotFound, ObjectRetained):
                place.store.delete(f"{KEY_DIRECTORY}/{name}")


def _report(place: Place, keyring: Keyring) -> KeyReport:
    key = read_metadata_key(address_of(place), place.keys, keyring.repository_id)
    path = None if key is None else str(metadata_key_path(address_of(place), place.keys))
    return KeyReport(keyring, path)
