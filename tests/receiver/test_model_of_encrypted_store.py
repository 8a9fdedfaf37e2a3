"""One history in an encrypted repository: as ``test_model_of_store``, for a receiver that has an identity.

Whatever it reads again, compares, divides and sets aside is sealed; without an identity it would read what it holds.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from receiver.archive_meaning import stored_copies
from receiver.model_server import GEOMETRY
from receiver.test_model_of_store import OneHistoryInAStore, StorePlace

from pgwal.encryption.age import Identity
from pgwal.encryption.key_files import write_identity
from pgwal.encryption.key_sources import KeySources
from pgwal.encryption.repository_keys import RepositoryKeys
from pgwal.engine.initialise import initialise
from pgwal.engine.keys import list_keys
from pgwal.repository.encrypted_place import open_keyring
from pgwal.repository.memory import MemoryPlace, MemoryStore
from pgwal.repository.sealed_store import SealedStore
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT


class OneHistoryInAnEncryptedStore(OneHistoryInAStore):
    """The repository has keys of its own, and the machine a place for what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self._keys_directory = Path(tempfile.mkdtemp(prefix="pgwal-keys-"))
        self._environment = pytest.MonkeyPatch()
        self._environment.setenv("XDG_STATE_HOME", str(self._keys_directory / "state"))
        self._identity = Identity.generate()
        write_identity(self._keys_directory / "identity.txt", self._identity)
        sources = KeySources(self._keys_directory / "identity.txt", None, self._keys_directory / "metadata.key")
        self._memory = MemoryPlace(sources)
        initialise(self._memory, DEFAULT_PACKED_FORMAT, [self._identity.recipient])

    def teardown(self) -> None:
        super().teardown()
        self._environment.undo()
        shutil.rmtree(self._keys_directory)

    def _stored_copies(self) -> dict[tuple[int, int], list[bytes]]:
        # Of one moment: another thread stores and deletes.
        store = MemoryStore()
        store.__dict__["_objects"] = dict(self._memory.store.__dict__["_objects"])
        _, metadata_key = open_keyring(self._memory, list_keys(self._memory).keyring.repository_id)
        keys = RepositoryKeys(list_keys(self._memory).keyring, metadata_key, lambda: [self._identity])
        return stored_copies(SealedStore(store, keys, GEOMETRY))


class PlaceInDirectory(StorePlace):
    """A directory, as far as a receiver sees one: segments are stored there that were never in the spool."""

    directory = Path("/encrypted")


class OneHistoryInAnEncryptedDirectory(OneHistoryInAnEncryptedStore):
    """The same where storing a segment takes no longer than writing it to the spool."""

    place_of_store = PlaceInDirectory


OneHistoryInAnEncryptedDirectory.TestCase.settings = settings(OneHistoryInAStore.TestCase.settings, max_examples=5)
OneHistoryInAnEncryptedStore.TestCase.settings = settings(OneHistoryInAStore.TestCase.settings, max_examples=5)


# The other threads of a process die with it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestOneHistoryInAnEncryptedStore(OneHistoryInAnEncryptedStore.TestCase):
    """The machine as a test."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestOneHistoryInAnEncryptedDirectory(OneHistoryInAnEncryptedDirectory.TestCase):
    """The machine as a test."""
