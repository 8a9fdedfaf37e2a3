"""Keys: who reads what after a change, what is left when a change is killed, and what is said of wrong ones."""

from __future__ import annotations

import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from encryption.golden_objects import FILES, OBJECTS, golden
from encryption.test_golden_objects import files_of
from support.faulty_store import Died, Fate, FaultyStore
from test_main_job import PGWAL

from pgwal.encryption.age import Identity
from pgwal.encryption.key_files import write_identity
from pgwal.encryption.key_places import has_metadata_key, metadata_key_path
from pgwal.encryption.key_sources import KeySources
from pgwal.engine.initialise import initialise
from pgwal.engine.keys import add_recipients, list_keys, remove_recipients, restore_metadata_key
from pgwal.errors import FormatError, KeyRequired, PgwalError, RepositoryError, WrongKey
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.repository import Repository
from pgwal.repository.spool_directory import spool_directory
from pgwal.repository.spooled_place import opened_spool
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT

SEGMENT = "wal/000000010000000000000001.zst"


def identity_in(directory: Path) -> tuple[Identity, Path]:
    identity = Identity.generate()
    path = directory / f"{identity.recipient}.txt"
    write_identity(path, identity)
    return identity, path


def with_identity(place: MemoryPlace, path: Path) -> MemoryPlace:
    """Return a place for whoever has this identity, and nothing else."""
    return MemoryPlace(KeySources(path), place.store)


def reads(place: MemoryPlace, path: Path) -> bool:
    """Tell whether an identity opens everything that is stored."""
    try:
        repository = Repository.open(with_identity(place, path))
        assert repository.store.get(SEGMENT) == OBJECTS[SEGMENT]
        assert files_of(with_identity(place, path)) == FILES
    except WrongKey:
        return False
    return True


def test_who_is_added_reads_all_and_no_object_is_written_anew(tmp_path: Path) -> None:
    place = golden()
    before = {name: place.store.get(name) for name, _ in place.store.list() if not name.startswith("keys/")}
    added, path = identity_in(tmp_path)
    assert not reads(place, path)
    report = add_recipients(place, [added.recipient])
    assert added.recipient in report.keyring.recipients
    assert reads(place, path)
    assert place.keys.identity_file is not None
    assert reads(place, place.keys.identity_file)
    assert {name: place.store.get(name) for name, _ in place.store.list() if not name.startswith("keys/")} == before
    assert [name for name, _ in place.store.list("keys/")] == ["keys/00000002.json"]
    assert add_recipients(place, [added.recipient]).keyring == report.keyring


def test_who_is_removed_reads_nothing_that_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = golden()
    added, path = identity_in(tmp_path)
    first = list_keys(place).keyring.recipients[0]
    first_path = place.keys.identity_file
    assert first_path is not None
    kept_keys = add_recipients(place, [added.recipient])
    report = remove_recipients(MemoryPlace(place.keys._replace(identity_file=path), place.store), [first])
    assert report.keyring.recipients == (added.recipient,)
    assert [key.generation for key in report.keyring.content] == [1, 2]
    assert report.keyring.content[0].recipient == kept_keys.keyring.content[0].recipient
    assert not reads(place, first_path)
    assert reads(place, path)
    new = "wal/000000010000000000000002.zst"
    Repository.open(with_identity(place, path)).store.put(new, b"what comes")
    assert Repository.open(with_identity(place, path)).store.get(new) == b"what comes"
    # With the keys of before, which the one who was removed may have kept; on a machine that stored nothing itself.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    old = golden()
    old.store._objects.update({new: place.store.get(new)})
    with pytest.raises(FormatError):
        Repository.open(with_identity(old, first_path)).store.get(new)


def test_keys_that_were_put_back_are_found(tmp_path: Path) -> None:
    place = golden()
    before = place.store.get("keys/00000001.json")
    add_recipients(place, [identity_in(tmp_path)[0].recipient])
    place.store.delete("keys/00000002.json")
    place.store.put("keys/00000001.json", before)
    with pytest.raises(WrongKey, match="are revision 1, this machine has seen revision 2"):
        Repository.open(place)


def test_the_last_recipient_stays(tmp_path: Path) -> None:
    place = golden()
    (only,) = list_keys(place).keyring.recipients
    with pytest.raises(RepositoryError, match="nobody could read"):
        remove_recipients(place, [only])
    added, _ = identity_in(tmp_path)
    add_recipients(place, [added.recipient])
    with pytest.raises(KeyRequired, match="none of the recipients that would stay"):
        remove_recipients(place, [only])
    with pytest.raises(RepositoryError, match="is no recipient"):
        remove_recipients(place, [identity_in(tmp_path)[0].recipient])


@pytest.mark.parametrize("operation", range(3))
@pytest.mark.parametrize("command", ["add", "remove"])
def test_a_change_that_is_killed_leaves_all_readable_and_is_done_again(
    tmp_path: Path, command: str, operation: int
) -> None:
    place = golden()
    added, path = identity_in(tmp_path)
    (first,) = list_keys(place).keyring.recipients
    first_path = place.keys.identity_file
    assert first_path is not None
    if command == "remove":
        add_recipients(place, [added.recipient])
    dying = MemoryPlace(place.keys._replace(identity_file=first_path if command == "add" else path), place.store)

    def change(at: MemoryPlace) -> None:
        if command == "add":
            add_recipients(at, [added.recipient])
        else:
            remove_recipients(at, [first])

    dying.store = FaultyStore(place.store, Fate(dies_at=operation))  # type: ignore[assignment]
    try:
        change(dying)
    except Died:
        pass
    else:
        assert operation > 1, "it dies before the end"
    assert reads(place, path if command == "remove" else first_path)
    change(MemoryPlace(dying.keys, place.store))
    assert reads(place, path)
    assert reads(place, first_path) == (command == "add")
    assert len([name for name, _ in place.store.list("keys/")]) == 1


def test_a_lost_metadata_key_is_written_again_with_an_identity(tmp_path: Path) -> None:
    place = golden()
    lost = MemoryPlace(place.keys._replace(metadata_key_file=tmp_path / "keys" / "again.key"), place.store)
    with pytest.raises(KeyRequired):
        Repository.open(MemoryPlace(lost.keys._replace(identity_file=None), place.store))
    report = restore_metadata_key(lost)
    path = tmp_path / "keys" / "again.key"
    assert report.metadata_key_file == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    Repository.open(MemoryPlace(KeySources(metadata_key_file=path), place.store)).catalogue.entries()
    assert restore_metadata_key(lost) == report


def test_a_wrong_identity_is_said_to_be_one(tmp_path: Path) -> None:
    place = golden()
    _, path = identity_in(tmp_path)
    repository = Repository.open(MemoryPlace(place.keys._replace(identity_file=path), place.store))
    with pytest.raises(WrongKey, match="the given identity does not open"):
        repository.store.get(SEGMENT)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622])
def test_a_key_that_others_may_read_is_refused(mode: int) -> None:
    place = golden()
    for file in (place.keys.identity_file, place.keys.metadata_key_file):
        assert file is not None
        file.chmod(mode)
    with pytest.raises(WrongKey, match="by others than its owner"):
        Repository.open(place)
    with pytest.raises(WrongKey, match="by others than its owner"):
        Repository.open(MemoryPlace(place.keys._replace(metadata_key_file=None), place.store))


def test_the_metadata_key_of_another_repository_is_refused(tmp_path: Path) -> None:
    place = golden()
    assert place.keys.metadata_key_file is not None
    text = place.keys.metadata_key_file.read_text()
    path = tmp_path / "other.key"
    path.touch(mode=0o600)
    for content in (text[:-10], "", "something else\n", text + text):
        path.write_text(content)
        with pytest.raises(FormatError, match="no metadata key"):
            Repository.open(MemoryPlace(KeySources(metadata_key_file=path), place.store))
    repository_id = text.split()[-2]
    path.write_text(text.replace(f" {repository_id} ", f" {'0' * 32} "))
    with pytest.raises(WrongKey, match="is the metadata key of repository 0000"):
        Repository.open(MemoryPlace(KeySources(metadata_key_file=path), place.store))


def test_missing_or_damaged_keys_are_told() -> None:
    place = golden()
    stored = place.store.get("keys/00000001.json")
    for content in (b"", b"{}", b"[]", stored[:-40], stored.replace(b"age1", b"age2")):
        place.store.put("keys/00000001.json", content, replace=True)
        with pytest.raises(FormatError, match=r"keys/00000001\.json"):
            Repository.open(place)
    place.store.delete("keys/00000001.json")
    with pytest.raises(FormatError, match="keys of the repository in memory: are missing"):
        Repository.open(place)


def test_keys_of_somebody_who_may_write_to_the_store_are_refused(tmp_path: Path) -> None:
    """He knows the public keys, and would have all that comes encrypted for himself."""
    place, other = golden(), identity_in(tmp_path)[0]
    stored = list_keys(place).keyring
    forged = stored._replace(revision=2, recipients=(other.recipient,))
    place.store.put(forged.name, forged.encode(bytes(32)))
    for keys in (place.keys, place.keys._replace(metadata_key_file=None), place.keys._replace(identity_file=None)):
        with pytest.raises(WrongKey, match="was not made with the metadata key"):
            Repository.open(MemoryPlace(keys, place.store))


def test_an_identity_may_come_from_a_command(tmp_path: Path) -> None:
    place = golden()
    file = place.keys.identity_file
    assert file is not None
    assert files_of(MemoryPlace(KeySources(identity_command=f"cat {file}"), place.store)) == FILES
    with pytest.raises(KeyRequired, match="ended with code 3"):
        Repository.open(MemoryPlace(KeySources(identity_command="exit 3"), place.store))
    with pytest.raises(FormatError, match="no identity"):
        Repository.open(MemoryPlace(KeySources(identity_command="echo AGE"), place.store))
    encrypted = tmp_path / "encrypted"
    encrypted.write_text("-----BEGIN AGE ENCRYPTED FILE-----\n")
    encrypted.chmod(0o600)
    with pytest.raises(FormatError, match="no identity"):
        Repository.open(MemoryPlace(KeySources(encrypted), place.store))
    with pytest.raises(KeyRequired, match="cannot be read"):
        Repository.open(MemoryPlace(KeySources(tmp_path / "absent"), place.store))


def test_no_error_repeats_a_secret(tmp_path: Path) -> None:
    secret = Identity.generate().secret()
    path = tmp_path / "identity"
    for text in (secret[:-1], secret.lower(), f"{secret}\nand more\n", f"{secret}x"):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(PgwalError) as caught:
            Repository.open(with_identity(golden(), path))
        told = f"{caught.value} {caught.value.hint} {caught.value.facts} {caught.value.__cause__}"
        assert secret[20:40].lower() not in told.lower()
    assert secret not in repr(Identity(secret))


@pytest.mark.parametrize("way", ["spool", "state"])
def test_nothing_in_clear_lies_in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = LocalPlace(tmp_path / "repo")
    initialise(place, DEFAULT_PACKED_FORMAT, [Identity.generate().recipient])
    identity = RepositoryIdentity(1, 1 << 20, 18)
    repository = Repository.open_or_create(place, identity)
    if way == "state":
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "repo" / "state"))
        with pytest.raises(RepositoryError, match="would lie in the repository"):
            Repository.open(place)
        return
    with (
        pytest.raises(RepositoryError, match="would lie in the repository"),
        opened_spool(repository.place, tmp_path / "repo" / "spool", repository.identity),
    ):
        pass
    assert not (tmp_path / "repo" / "spool").exists()
    with opened_spool(repository.place, tmp_path / "spool", repository.identity):
        pass


def test_a_secret_is_in_no_arguments_and_no_environment(tmp_path: Path) -> None:
    """Seen by the command that prints it, of all processes, and of itself and pgwal what is in their environments."""
    place = golden()
    file = place.keys.identity_file
    assert file is not None
    secret = file.read_text().split()[-1]
    seen = tmp_path / "seen"
    script = tmp_path / "identity"
    script.write_text(f"(ps -eo args; env; cat /proc/self/environ) >{seen}; cat {file}\n")
    assert files_of(MemoryPlace(KeySources(identity_command=f"sh {script}"), place.store)) == FILES
    assert "sh " in seen.read_text()
    assert secret not in seen.read_text()
    for name in ("environ", "cmdline"):
        # This process has a key: without root's rights nobody looks at its environment any more.
        with suppress(FileNotFoundError, PermissionError):
            assert secret.encode() not in Path("/proc/self", name).read_bytes()


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PGWAL, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    identity, repo = tmp_path / "identity", tmp_path / "repo"
    made = run("key", "generate", "-o", identity)
    assert made.returncode == 0
    assert stat.S_IMODE(identity.stat().st_mode) == 0o600
    assert "is there already" in run("key", "generate", "-o", identity).stderr
    recipient = made.stdout.strip()
    plain = run("init", "--repo", repo, "--recipient", recipient, "--format", "plain")
    assert (plain.returncode, "encryption needs --format packed" in plain.stderr) == (2, True)
    secret = identity.read_text().split()[-1]
    inside = run("init", "--repo", repo, "--recipient", recipient, "--metadata-key", repo / "metadata.key")
    assert "would lie in the repository" in inside.stderr
    wrong = run("init", "--repo", repo, "--recipient", secret)
    assert wrong.returncode == 1
    assert secret not in wrong.stderr
    assert not any(path.is_file() for path in repo.rglob("*"))
    for _ in range(2):
        assert run("init", "--repo", repo, "--recipient", recipient).returncode == 0
    assert "cannot become" in run("init", "--repo", repo, "--format", "packed").stderr
    assert "for other recipients" in run("init", "--repo", repo, "--recipient", Identity.generate().recipient).stderr
    (metadata_key,) = (tmp_path / "config" / "pgwal" / "metadata-keys").iterdir()
    assert stat.S_IMODE(metadata_key.stat().st_mode) == 0o600
    monkeypatch.chdir(tmp_path)
    assert run("key", "list", "--repo", "repo").returncode == 0
    listed = run("key", "list", "--repo", repo)
    assert recipient in listed.stdout
    assert str(metadata_key) in listed.stdout
    refused = run("key", "add", "--repo", repo, "--recipient", Identity.generate().recipient)
    assert (refused.returncode, "--identity" in refused.stderr) == (1, True)
    metadata_key.unlink()
    assert "pgwal key metadata" in run("key", "list", "--repo", repo).stderr
    assert run("key", "metadata", "--repo", repo, "--identity", identity).returncode == 0
    assert metadata_key.exists()


def test_a_user_without_a_home_opens_what_is_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "nowhere")
    assert not has_metadata_key("/srv/backups", KeySources())
    with pytest.raises(PgwalError, match="no home directory"):
        metadata_key_path("/srv/backups", KeySources())
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("PGWAL_SPOOL", raising=False)
    with pytest.raises(PgwalError, match="no home directory"):
        spool_directory("s3://bucket", None)
