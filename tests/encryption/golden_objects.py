"""Keys that are no secrets, and the tiny encrypted repository of fixtures/encrypted."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from keeping.stored_repository import FIRST, FULL, MAJOR, SYSTEM_IDENTIFIER, entry_of

from pgwal.backup.backup_file import BackupFile, BackupTotals
from pgwal.backup.manifest import MANIFEST_NAME, ManifestWriter
from pgwal.encryption.age import Identity
from pgwal.encryption.key_files import write_identity
from pgwal.encryption.key_places import key_revision_path
from pgwal.encryption.key_sources import KeySources
from pgwal.encryption.keyring import Keyring
from pgwal.encryption.repository_keys import RepositoryKeys, new_content_key, wrapped_metadata_key
from pgwal.engine.initialise import initialise
from pgwal.lsn import Lsn
from pgwal.repository.compression import Compression
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.repository import Repository
from pgwal.repository.staged_backup import StagedBackup
from pgwal.repository.storage_format import FileFormat, StorageFormat

DIRECTORY = Path(__file__).parent.parent.parent / "fixtures" / "encrypted"
ORIGIN = "fixtures/make_fixtures.py --encrypted, from values made up; its keys are no secrets"
SEGMENT_SIZE = 1 << 20
OBJECTS = {
    "wal/000000010000000000000001.zst": bytes(range(256)) * 600,
    "wal/00000002.history": b"1\t0/1200000\tno recovery target specified\n",
    "receiver.json": b"{}\n",
}
FILES = {
    "PG_VERSION": b"16\n",
    "base/5/16384": bytes(range(256)) * 32,
    "base/5/16385": bytes(8192),
    "backup_label": b"START TIMELINE: 1\n",
}

METADATA_KEY = bytes(range(32))
OWNER = Identity.generate()
RECIPIENTS = (OWNER.recipient,)
KEYRING = Keyring(
    "00112233445566778899aabbccddeeff",
    1,
    RECIPIENTS,
    (new_content_key(1, RECIPIENTS),),
    wrapped_metadata_key(METADATA_KEY, RECIPIENTS),
)
SECOND_KEYRING = KEYRING._replace(repository_id="ffeeddccbbaa99887766554433221100")


def keys_of(keyring: Keyring, metadata_key: bytes) -> RepositoryKeys:
    """Return what somebody has who has an identity, too."""
    return RepositoryKeys(keyring, metadata_key, lambda: [OWNER])


def make_encrypted(directory: Path = DIRECTORY) -> None:
    """Write the fixture anew."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "ORIGIN").write_text(f"{ORIGIN}\n")
    identity = Identity.generate()
    write_identity(directory / "identity.txt", identity)
    place = MemoryPlace(KeySources(metadata_key_file=directory / "metadata.key"))
    wanted = StorageFormat(FileFormat.PACKED, Compression.parse("zstd"))
    initialise(place, wanted, [identity.recipient])
    repository = Repository.open_or_create(place, RepositoryIdentity(SYSTEM_IDENTIFIER, SEGMENT_SIZE, MAJOR))
    for name, content in OBJECTS.items():
        repository.store.put(name, content)
    _write_backup(repository, wanted)
    for name, _ in place.store.list():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(place.store.get(name))


def _write_backup(repository: Repository, storage_format: StorageFormat) -> None:
    totals = BackupTotals()
    with StagedBackup(repository.place, FIRST, storage_format) as staged:
        staged.data.make_directory("base/5")
        for path, content in FILES.items():
            size_bytes, digest, extents = staged.data.write(path, [content])
            file = BackupFile(path, size_bytes, size_bytes, 0o600, 1795344930, digest, extents=extents)
            staged.add_file(file)
            totals = totals.plus(file)
        manifest = ManifestWriter(MAJOR, SYSTEM_IDENTIFIER)
        staged.data.write(MANIFEST_NAME, [manifest.header(), manifest.finish([])])
        staged.data.sync()
        packed = staged.data.contents()
        assert packed is not None
        staged.publish(entry_of(FIRST, FULL, Lsn(1 << 24), Lsn(1 << 25), totals, packed.size_bytes))


@cache
def _private_directory() -> str:
    """Return a directory for keys with the modes that they must have, which goes with the process."""
    directory = tempfile.mkdtemp(prefix="golden-keys-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def golden(*, identity: bool = True, metadata_key: bool = True) -> MemoryPlace:
    """Return the fixture as a place, to whom has some of its keys."""
    private = Path(tempfile.mkdtemp(dir=_private_directory()))
    for name in ("identity.txt", "metadata.key"):
        shutil.copyfile(DIRECTORY / name, private / name)
        (private / name).chmod(0o600)
    sources = KeySources(
        identity_file=private / "identity.txt" if identity else None,
        metadata_key_file=private / "metadata.key" if metadata_key else None,
    )
    place = MemoryPlace(sources)
    # What this machine remembers of a repository it remembers by that one's address, which all of memory share.
    key_revision_path(str(place)).unlink(missing_ok=True)
    for path in sorted(DIRECTORY.rglob("*")):
        if path.is_file() and path.name not in ("ORIGIN", "identity.txt", "metadata.key"):
            place.store.put(str(path.relative_to(DIRECTORY)), path.read_bytes())
    return place
