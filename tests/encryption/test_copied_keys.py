"""Copies of encrypted repositories: who needs what, who reads what, and that nothing is ever stored in clear."""

from __future__ import annotations

from pathlib import Path

import pytest
from encryption.test_keys import identity_in
from keeping.stored_repository import FIRST, FULL, ON_SECOND, SECOND, SECOND_FULL, THIRD_FULL, build_chains
from keeping.test_copy import content, copied_ids, ids
from keeping.test_verify import flipped
from repository.places import PLACES, local

from pgwal.encryption.age import Identity
from pgwal.encryption.container import MAGIC
from pgwal.encryption.key_places import own_metadata_key_path
from pgwal.encryption.key_sources import KeySources
from pgwal.engine.copy_repository import CopyReport, CopyRequest, copy_repository
from pgwal.engine.initialise import initialise
from pgwal.engine.keys import add_recipients, list_keys, remove_recipients
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import KeyRequired, PgwalError, RepositoryError, WrongKey
from pgwal.repository.encrypted_place import open_keyring
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT, PLAIN_FORMAT

ALL = [FULL, FIRST, SECOND, SECOND_FULL, ON_SECOND, THIRD_FULL]


class Owner:
    """Somebody with an identity."""

    def __init__(self, directory: Path) -> None:
        self.identity: Identity
        self.identity, self.path = identity_in(directory)

    @property
    def recipient(self) -> str:
        return self.identity.recipient

    def at(self, place: Place) -> Place:
        """Return a place as this one has it, who has no other key."""
        return place.with_keys(KeySources(self.path))

    def reads(self, place: Place, backup_id: str, target: Path) -> bool:
        try:
            return bool(content(self.at(place), backup_id, target / f"{self.recipient}{backup_id}"))
        except PgwalError:
            return False


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


@pytest.fixture
def source(tmp_path: Path, owner: Owner) -> LocalPlace:
    """Three chains, encrypted, as the host has them that takes backups: without an identity."""
    place = local(tmp_path / "source")
    initialise(place, DEFAULT_PACKED_FORMAT, [owner.recipient])
    build_chains(place)
    return place


def copy(source: Place, to: Place, *backups: str, recipients: tuple[str, ...] = ()) -> CopyReport:
    return copy_repository(CopyRequest(source, to, backups, with_wal=True, recipients=recipients, jobs=2))


def problems(place: Place) -> list[str]:
    return [f"{problem.path}: {problem.message}" for problem in verify(VerifyRequest(place)).problems]


def sealed(place: Place) -> dict[str, bytes]:
    """Return what is for the recipients, as it is stored."""
    names = [name for folder in ("wal", "packs") for name, _ in place.store.list(f"{folder}/")]
    return {name: place.store.get(name, most_bytes=1 << 30) for name in names}


@pytest.mark.parametrize("kind", ["local", "cloud_memory"])
def test_a_host_without_an_identity_copies_what_it_cannot_read(
    source: LocalPlace, owner: Owner, other: Owner, tmp_path: Path, kind: str
) -> None:
    to = PLACES[kind](tmp_path)
    first = copy(source, to, SECOND)
    assert (copied_ids(first), first.opens_files) == ([FULL, FIRST, SECOND], False)
    report = copy(source, to)
    assert (report.problems, ids(to)) == ([], ALL)
    assert sealed(to) == sealed(source)
    assert all(stored.startswith(MAGIC) for stored in sealed(to).values())
    assert (copy(source, to).backups, copy(source, to).segment_count) == ([], 0)
    assert problems(to) == []
    assert problems(owner.at(to)) == []
    assert owner.reads(to, ON_SECOND, tmp_path)
    assert not other.reads(to, ON_SECOND, tmp_path)


def test_other_recipients_read_the_copy_and_those_of_the_source_do_not(
    source: LocalPlace, owner: Owner, other: Owner, tmp_path: Path
) -> None:
    to = local(tmp_path)
    with pytest.raises(KeyRequired):
        copy(source, to, recipients=(other.recipient,))
    assert not (to.root / "pgwal.json").exists()
    report = copy(owner.at(source), to, SECOND, recipients=(other.recipient,))
    assert (copied_ids(report), report.opens_files) == ([FULL, FIRST, SECOND], True)
    # From then on nobody needs an identity.
    assert copied_ids(copy(source, to)) == ALL[3:]
    assert sealed(to) == sealed(source)
    assert (owner.reads(to, SECOND, tmp_path), other.reads(to, SECOND, tmp_path)) == (False, True)
    assert problems(other.at(to)) == []
    assert list_keys(to).keyring.recipients == (other.recipient,)


def test_a_recipient_who_was_removed_from_the_source_is_removed_from_the_copy_as_is_said(
    source: LocalPlace, owner: Owner, other: Owner, tmp_path: Path
) -> None:
    to = local(tmp_path)
    add_recipients(owner.at(source), [other.recipient])
    copy(source, to, FULL)
    remove_recipients(owner.at(source), [other.recipient])
    with Repository.open(source).lock_backups():
        assert len(list_keys(source).keyring.content) == 2
    with pytest.raises(KeyRequired, match="other recipients") as caught:
        copy(source, to)
    assert "--recipient" in (caught.value.hint or "")
    assert copied_ids(copy(source, to, recipients=(owner.recipient,))) == ALL[1:]
    assert list_keys(to).keyring.recipients == (owner.recipient,)
    assert owner.reads(to, THIRD_FULL, tmp_path)
    # What was not removed from the source can read what comes as it is stored: such a one is not taken off the list.
    with pytest.raises(RepositoryError, match="could read what is copied there, too"):
        copy(owner.at(source), to, recipients=(other.recipient,))


def test_a_recipient_who_was_removed_from_the_copy_reads_nothing_that_comes(
    source: LocalPlace, owner: Owner, other: Owner, tmp_path: Path
) -> None:
    to = local(tmp_path)
    copy(owner.at(source), to, SECOND, recipients=(owner.recipient, other.recipient))
    removed_keys, metadata_key = open_keyring(to, list_keys(to).keyring.repository_id)
    remove_recipients(other.at(to), [owner.recipient])
    with pytest.raises(KeyRequired):
        copy(source, to)
    assert copied_ids(copy(owner.at(source), to)) == ALL[3:]
    stored = sealed(source)
    new = {name for name in sealed(to) if stored.get(name) != sealed(to)[name]}
    assert any(name.startswith("packs/") for name in new)
    assert other.reads(to, ON_SECOND, tmp_path)
    assert problems(other.at(to)) == []
    # Not even with the keys of before.
    for path in (to.root / "keys").iterdir():
        path.unlink()
    to.store.put(removed_keys._replace(revision=9).name, removed_keys._replace(revision=9).encode(metadata_key))
    assert owner.reads(to, SECOND, tmp_path)
    assert not owner.reads(to, ON_SECOND, tmp_path)


def test_a_copy_with_keys_of_its_own_is_sealed_anew(
    source: LocalPlace, owner: Owner, other: Owner, tmp_path: Path
) -> None:
    to = local(tmp_path)
    initialise(to, DEFAULT_PACKED_FORMAT, [other.recipient])
    with pytest.raises(KeyRequired):
        copy(source, to)
    report = copy(owner.at(source), to)
    assert (report.problems, ids(to)) == ([], ALL)
    assert not set(sealed(to).values()) & set(sealed(source).values())
    assert problems(other.at(to)) == []
    assert (owner.reads(to, SECOND, tmp_path), other.reads(to, SECOND, tmp_path)) == (False, True)
    again = copy(owner.at(source), to)
    assert (again.backups, again.segment_count) == ([], 0)
    own_metadata_key_path(str(to)).unlink()
    with pytest.raises(KeyRequired, match="does not have its metadata key"):
        copy(owner.at(source), to)


def test_what_is_in_clear_is_encrypted_and_never_the_other_way_round(
    source: LocalPlace, owner: Owner, other: Owner, tmp_path: Path
) -> None:
    clear, to = LocalPlace(tmp_path / "clear"), local(tmp_path)
    build_chains(clear)
    report = copy(clear, to, recipients=(other.recipient,))
    assert (report.problems, ids(to)) == ([], ALL)
    assert all(stored.startswith(MAGIC) for stored in sealed(to).values())
    assert other.reads(to, SECOND, tmp_path)
    assert problems(other.at(to)) == []
    assert copy(clear, to).backups == []
    with pytest.raises(RepositoryError, match="not stored in clear"):
        copy(owner.at(source), clear)
    # A place that was to be encrypted, and where somebody has put one in clear.
    exchanged = local(tmp_path / "exchanged")
    copy(source, exchanged, FULL)
    for path in sorted(exchanged.root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    initialise_in_clear = LocalPlace(exchanged.root)
    with pytest.raises(WrongKey):
        initialise(initialise_in_clear, PLAIN_FORMAT)
    exchanged.store.put("format.json", PLAIN_FORMAT.encode())
    with pytest.raises(RepositoryError, match="not stored in clear"):
        copy(owner.at(source), exchanged)


def test_a_flipped_bit_of_what_is_encrypted_is_named(source: LocalPlace, owner: Owner, tmp_path: Path) -> None:
    packs = sorted(path for path in (source.root / "packs").rglob("*") if path.is_file())
    for pack, number in ((packs[0], 0), (packs[1], 1), (packs[2], 2)):
        to, size_bytes = local(tmp_path / str(number)), pack.stat().st_size
        with flipped(pack, (20, size_bytes // 2, size_bytes - 3)[number], 1):
            report = copy(source, to)
        assert any(pack.name in problem.message for problem in report.problems)
        assert problems(owner.at(to)) == []
    segment = source.root / "wal" / "000000010000000000000009"
    with flipped(segment, 70_000, 1):
        report = copy(owner.at(source), local(tmp_path / "opened"))
        assert [problem.path for problem in report.problems] == [f"wal/{segment.name}"]
