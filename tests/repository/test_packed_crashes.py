"""A process dies, or the store fails, at any operation of a packed backup or its expire: no pack that counts is lost.

And those that nothing needs go with the next expire.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from keeping.stored_repository import FIRST, FULL, SECOND, build_repository
from repository.places import PLACES
from repository.test_crashes import AGAIN, FILES, LATER, NEW, Site, dying, make_data_directory, take_backup
from repository.test_packs import small_frames
from support.fate import Fate
from support.faulty_store import FaultyPlace

from pgwal.backup.chain import resolve_chain
from pgwal.backup.entry_document import decode_packs
from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.initialise import initialise
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import RepositoryError
from pgwal.repository.pack_pool import list_packs
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import FileFormat, StorageFormat


@pytest.fixture(params=list(PLACES))
def packed_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A packed repository with a chain, of which each pack has two frames at most; and a data directory."""
    site = Site(request.param, tmp_path)
    make_data_directory(tmp_path / "data")
    initialise(site.origin, StorageFormat(FileFormat.PACKED))
    with small_frames(8192, 16384):
        build_repository(site.origin)
        yield site


def needed_packs(place: Place) -> set[str]:
    """Return the packs that entries name; all of them are there."""
    repository, found = Repository.open(place), set[str]()
    for backup_id in repository.catalogue.ids():
        lines = place.store.get(f"backups/{backup_id}/backup.json").splitlines(keepends=True)
        found |= {pack.name for pack in decode_packs(lines)}
    assert found <= packs(place)
    return found


def packs(place: Place) -> set[str]:
    return {name for name, _ in list_packs(place.store)}


def test_a_packed_backup_is_there_whole_or_not_at_all(packed_site: Site, tmp_path: Path) -> None:
    seen, garbage_seen = [], 0
    for place in dying(packed_site, lambda place: take_backup(place, tmp_path / "data")):
        repository = Repository.open(place)
        seen.append(NEW in repository.catalogue.ids())
        assert set(repository.catalogue.ids()) - {NEW} == {FULL, FIRST, SECOND}
        garbage = packs(place) - needed_packs(place)
        garbage_seen += bool(garbage)
        assert not seen[-1] or not garbage
        assert verify(VerifyRequest(place)).problems == []
        if len(seen) % 2:
            # A backup does not look for garbage where nothing else was left: expire always does.
            expire(ExpireRequest(place))
            assert packs(place) == needed_packs(place)
        if not seen[-1]:
            take_backup(place, tmp_path / "data", AGAIN)
            assert repository.catalogue.unfinished() == []
            if garbage:
                expire(ExpireRequest(place))
        assert (NEW if seen[-1] else AGAIN) in repository.catalogue.ids()
        assert packs(place) == needed_packs(place)
        assert no_parts(place)
    assert seen == sorted(seen), "no earlier than with the last operations"
    assert 8 < seen.count(False) < len(seen)
    assert garbage_seen > 3
    restore_backup(RestoreRequest(place, NEW, tmp_path / "restored", "false", wal_is_here=False))
    assert {name: (tmp_path / "restored" / name).read_bytes() for name in FILES} == FILES


def test_a_packed_backup_that_fails_at_any_operation_says_so_and_leaves_nothing(
    packed_site: Site, tmp_path: Path
) -> None:
    number, is_over = 0, False
    while not is_over:
        place, fate = packed_site.copy(), Fate(fails_at=number)
        try:
            take_backup(FaultyPlace(place, fate), tmp_path / "data")
            is_over = True
        except RepositoryError:
            assert len(fate.operations) > number
        is_there = NEW in Repository.open(place).catalogue.ids()
        # That what was noted on the way could not be removed fails a backup that is published already.
        assert is_there == is_over or fate.operations[number].startswith("drop_notes")
        assert packs(place) == needed_packs(place)
        assert verify(VerifyRequest(place)).problems == []
        number += 1
    assert number > 8


def no_parts(place: Place) -> bool:
    """Tell whether no part of a pack lies among them, as a killed writer leaves them; no store lists those."""
    if place.directory is None:
        return True
    return {path.name for path in (place.directory / "packs").rglob("*") if path.is_file()} == packs(place)


def test_an_expire_of_packed_backups_leaves_whole_chains_and_their_packs(packed_site: Site, tmp_path: Path) -> None:
    place = packed_site.origin
    take_backup(place, tmp_path / "data")
    kept = kept_packs(place)
    counts, pack_counts = [], []
    for number, place in enumerate(
        dying(packed_site, lambda place: expire(ExpireRequest(place, RetentionRules(keep_full=1))))
    ):
        repository = Repository.open(place)
        entries = repository.catalogue.entries()
        counts.append(len(entries))
        pack_counts.append(len(packs(place)))
        assert NEW in repository.catalogue.ids()
        for entry in entries:
            resolve_chain(entries, entry.backup_id)
        needed_packs(place)
        assert verify(VerifyRequest(place)).problems == []
        target = tmp_path / f"restored{number}"
        restore_backup(RestoreRequest(place, entries[0].backup_id, target, "false", wal_is_here=False))
        if number % 2:
            take_backup(place, tmp_path / "data", LATER)
        expire(ExpireRequest(place, RetentionRules(keep_full=1)))
        assert repository.catalogue.unfinished() == []
        if not number % 2:
            assert (repository.catalogue.ids(), packs(place)) == ([NEW], kept)
        assert packs(place) == needed_packs(place)
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {4, 3, 2, 1}
    assert pack_counts == sorted(pack_counts, reverse=True)
    assert len(set(pack_counts)) > 4


def test_a_dry_run_takes_a_backup_under_way_for_no_garbage(packed_site: Site, tmp_path: Path) -> None:
    """It has stored packs that no entry names yet."""
    place = packed_site.origin
    take_backup(place, tmp_path / "data")
    repository, dry_run = Repository.open(place), ExpireRequest(place, RetentionRules(keep_full=1), dry_run=True)
    expected = expire(dry_run)
    assert {pack.name for pack in expected.packs} == packs(place) - kept_packs(place)
    with repository.lock_backups(), repository.catalogue.stage(LATER) as staged:
        before = packs(place)
        staged.data.write("base/1", [bytes(100_000)])
        staged.data.sync()
        assert packs(place) > before
        assert expire(dry_run) == expected
    assert packs(place) == before


def test_parts_of_packs_that_a_killed_backup_left_are_removed(packed_site: Site, tmp_path: Path) -> None:
    """Where packs are files, what was written of one when the process was killed lies beside the others."""
    place = packed_site.origin
    if place.directory is None:
        pytest.skip("what is not whole is not there")
    for act in (lambda: expire(ExpireRequest(place)), lambda: take_backup(place, tmp_path / "data")):
        left = place.directory / "packs" / "3f" / f".{'3f' * 16}.4711-2.tmp"
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"PGWALPK1")
        (place.directory / "backups" / f"{LATER}.unfinished").mkdir()
        assert not no_parts(place)
        act()
        assert no_parts(place)
        assert packs(place) == needed_packs(place)


def kept_packs(place: Place) -> set[str]:
    lines = place.store.get(f"backups/{NEW}/backup.json").splitlines(keepends=True)
    return {pack.name for pack in decode_packs(lines)}
