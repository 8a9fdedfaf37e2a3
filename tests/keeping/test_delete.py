"""``pgwal delete``: what goes with one backup, what is never deleted unasked, and what a crash leaves."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest
from keeping.stored_repository import FIRST, FULL, ON_SECOND, SECOND, SECOND_FULL, THIRD_FULL, build_chains
from pgwal_process import PGWAL, assert_failed, environment, run_pgwal, succeed
from repository.places import PLACES
from support.faulty_store import Died, Fate, FaultyPlace

from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine.delete import DeleteRequest, delete_backup
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.merge import MergeRequest, merge_backup
from pgwal.engine.pinning import pin_backup, unpin_backup
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import FormatError, ObjectNotFound, RepositoryError, RepositoryLocked
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.pack_pool import list_packs
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import StorageFormat
from pgwal_cli.exit_codes import FAILED, LOCKED

ALL = [FULL, FIRST, SECOND, SECOND_FULL, ON_SECOND, THIRD_FULL]


@pytest.fixture(params=[kind for kind in PLACES if kind != "seaweedfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    place = PLACES[request.param](tmp_path)
    build_chains(place, place.default_format)
    return place


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return build_chains(tmp_path / "repo").root


def ids(place: Place) -> list[str]:
    return Repository.open(place).catalogue.ids()


def deleted(place: Place, backup_id: str, *, cascade: bool = False, dry_run: bool = False) -> list[str]:
    report = delete_backup(DeleteRequest(place, backup_id, cascade, dry_run=dry_run))
    return [entry.backup_id for entry in report.deleted]


def test_one_backup_goes_and_its_wal_stays_for_the_next_expire(place: Place) -> None:
    repository = Repository.open(place)
    wal = repository.wal.segments()
    assert deleted(place, SECOND, dry_run=True) == [SECOND]
    assert ids(place) == ALL
    assert deleted(place, SECOND) == [SECOND]
    assert ids(place) == [FULL, FIRST, SECOND_FULL, ON_SECOND, THIRD_FULL]
    assert repository.catalogue.unfinished() == []
    assert repository.wal.segments() == wal
    assert repository.catalogue.pack_garbage().packs == []
    assert verify(VerifyRequest(place)).problems == []


def test_what_others_build_on_goes_with_them_alone(place: Place) -> None:
    with pytest.raises(RepositoryError, match=f"backups {FIRST}, {SECOND} cannot be restored without backup {FULL}"):
        deleted(place, FULL)
    assert ids(place) == ALL
    assert deleted(place, FULL, cascade=True) == [SECOND, FIRST, FULL]
    assert ids(place) == [SECOND_FULL, ON_SECOND, THIRD_FULL]
    assert verify(VerifyRequest(place)).problems == []


def test_what_was_merged_stands_without_what_it_was_made_of(place: Place) -> None:
    merged = merge_backup(MergeRequest(place, FIRST)).entry.backup_id
    assert deleted(place, merged, dry_run=True) == [merged]
    assert deleted(place, FIRST) == [FIRST]
    assert deleted(place, FULL) == [FULL]
    assert ids(place) == [merged, SECOND, SECOND_FULL, ON_SECOND, THIRD_FULL]
    assert verify(VerifyRequest(place)).problems == []
    with pytest.raises(RepositoryError, match=f"backup {SECOND} cannot be restored without backup {merged}"):
        deleted(place, merged)


def test_a_pinned_backup_stays(place: Place) -> None:
    pin_backup(place, FIRST)
    for backup_id in (FIRST, FULL):
        with pytest.raises(RepositoryError, match=f"backup {FIRST} is pinned"):
            deleted(place, backup_id, cascade=True)
    assert ids(place) == ALL
    unpin_backup(place, FIRST)
    assert deleted(place, FIRST, cascade=True) == [SECOND, FIRST]


def test_a_pin_is_that_of_the_full_backup_into_which_one_was_merged(place: Place) -> None:
    pin_backup(place, FIRST)
    merged = merge_backup(MergeRequest(place, FIRST)).entry.backup_id
    assert deleted(place, FIRST) == [FIRST]
    with pytest.raises(RepositoryError, match=f"backup {merged} is pinned"):
        deleted(place, merged, cascade=True)


def test_the_last_restorable_one_needs_a_yes(place: Place) -> None:
    for backup_id in (FULL, SECOND_FULL):
        deleted(place, backup_id, cascade=True)
    assert delete_backup(DeleteRequest(place, THIRD_FULL, dry_run=True)).is_last
    with pytest.raises(RepositoryError, match="none left that can be restored"):
        deleted(place, THIRD_FULL)
    assert ids(place) == [THIRD_FULL]
    assert delete_backup(DeleteRequest(place, THIRD_FULL, may_be_last=True)).is_last
    assert ids(place) == []
    assert list(list_packs(place.store)) == []


def test_only_what_is_there_can_be_deleted(place: Place) -> None:
    with pytest.raises(ObjectNotFound):
        deleted(place, "20250101T000000Z_full")
    with pytest.raises(FormatError):
        deleted(place, "../../etc")


def test_what_is_read_is_not_deleted_and_nothing_is_while_a_backup_is_taken(place: Place) -> None:
    repository = Repository.open(place)
    with repository.catalogue.hold(FIRST), pytest.raises(RepositoryLocked, match=f"{FIRST} is being read"):
        deleted(place, FIRST, cascade=True)
    with repository.lock_backups(), pytest.raises(RepositoryLocked):
        deleted(place, SECOND)
    assert ids(place) == ALL


def test_killed_at_any_moment_it_leaves_a_whole_repository(storage_format: StorageFormat, tmp_path: Path) -> None:
    built = build_chains(tmp_path / "built", storage_format).root
    number, died = 0, True
    while died:
        shutil.copytree(built, tmp_path / str(number))
        place, fate = LocalPlace(tmp_path / str(number)), Fate(dies_at=number)
        try:
            deleted(FaultyPlace(place, fate), FULL, cascade=True)
            died = False
        except Died:
            number += 1
        assert verify(VerifyRequest(place)).problems == []
        expire(ExpireRequest(place, RetentionRules(keep_full=9)))
        assert Repository.open(place).catalogue.unfinished() == []
        assert Repository.open(place).catalogue.pack_garbage().packs == []
        assert {SECOND_FULL, ON_SECOND, THIRD_FULL} <= set(ids(place))
    assert number > 3
    assert ids(place) == [SECOND_FULL, ON_SECOND, THIRD_FULL]


def test_what_a_damaged_backup_builds_on_stays(root: Path) -> None:
    entry = root / "backups" / ON_SECOND / "backup.json"
    entry.write_bytes(b"no entry\n")
    assert_failed(run_pgwal("delete", SECOND_FULL, "--repo", root), FAILED, f"{ON_SECOND}, whose entry", "move it away")
    assert_failed(run_pgwal("delete", ON_SECOND, "--repo", root), FAILED, "is damaged", "copy of the repository")
    assert SECOND in succeed("delete", SECOND, "--repo", root)


def test_it_says_what_it_does(root: Path) -> None:
    assert succeed("delete", SECOND, "--repo", root, "--dry-run").startswith(f"would delete backup {SECOND}, ")
    assert succeed("delete", SECOND[:-1], "--repo", root).startswith(f"deleted backup {SECOND}, ")
    found = json.loads(succeed("delete", FULL, "--repo", root, "--cascade", "--json"))
    assert [each["id"] for each in found["deleted_backups"]] == [FIRST, FULL]
    assert not found["none_restorable"]
    assert not found["dry_run"]
    with Repository.open(root).lock_backups():
        assert_failed(run_pgwal("delete", "latest", "--repo", root), LOCKED, "is held by a backup", "wait")


def test_on_a_terminal_it_asks_for_the_last_one(root: Path) -> None:
    succeed("delete", FULL, "--repo", root, "--cascade")
    succeed("delete", SECOND_FULL, "--repo", root, "--cascade")
    assert_failed(run_pgwal("delete", "latest", "--repo", root), FAILED, "none left", "--yes")
    assert "no backup would be left" in succeed("delete", "latest", "--repo", root, "--dry-run")
    assert _answer("n", root) == FAILED
    assert ids(LocalPlace(root)) == [THIRD_FULL]
    assert _answer("y", root) == 0
    assert ids(LocalPlace(root)) == []


def test_a_yes_stands_for_that_of_a_person(root: Path) -> None:
    for backup_id in (FULL, SECOND_FULL, THIRD_FULL):
        printed = succeed("delete", backup_id, "--repo", root, "--cascade", "--yes")
        assert ("no backup is left to restore" in printed) == (backup_id == THIRD_FULL)


def _answer(answer: str, root: Path) -> int:
    """Delete the latest backup at a terminal, and return the exit code."""
    terminal, other_end = pty.openpty()
    try:
        os.write(terminal, f"{answer}\n".encode())
        words = [*PGWAL, "delete", "latest", "--repo", str(root)]
        return subprocess.run(words, env=environment(), stdin=other_end, capture_output=True).returncode
    finally:
        os.close(terminal)
        os.close(other_end)
