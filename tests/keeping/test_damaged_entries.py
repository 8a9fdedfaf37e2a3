"""One damaged, missing or foreign entry under ``backups/`` is named and left out; the others are of use as before."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from keeping.stored_repository import FIRST, FULL, MB, SECOND, Stored, build_repository, store_backup
from pgwal_process import Outcome, assert_failed, assert_nothing_raw, run_pgwal, succeed

from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.lsn import Lsn
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import StorageFormat

FAILED, CHAIN_BROKEN = 1, 4
SECOND_FULL, ON_SECOND, THIRD_FULL = "20261123T101530Z_full", "20261123T111530Z_incr", "20261124T101530Z_full"
FOREIGN_NAMES = (".snapshot", "lost+found", "notes", "20261122T101530Z_full.old", "20261322T101530Z_full")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, storage_format: StorageFormat) -> Stored:
    """Three chains, in segments 1 to 3, 5 and 6, and 7, and WAL up to segment 9."""
    stored = build_repository(tmp_path_factory.mktemp("damaged") / "repo", 9, storage_format=storage_format)
    for backup_id, prior_id, number in ((SECOND_FULL, None, 5), (ON_SECOND, SECOND_FULL, 6), (THIRD_FULL, None, 7)):
        start = Lsn(number * MB + 40)
        stop = next(Lsn(lsn) for lsn, _ in stored.records if lsn > start + 4000)
        store_backup(stored.repository, backup_id, prior_id, start, stop, {"base/5/16384": bytes(8192)})
    return stored


@pytest.fixture
def repo(built: Stored, tmp_path: Path) -> Path:
    shutil.copytree(built.root, tmp_path / "repo")
    return tmp_path / "repo"


def entry_of(repo: Path, backup_id: str) -> Path:
    return repo / "backups" / backup_id / "backup.json"


def missing(entry: Path) -> None:
    entry.unlink()


def empty(entry: Path) -> None:
    entry.write_bytes(b"")


def garbage(entry: Path) -> None:
    entry.write_bytes(bytes(range(256)) * 4000)


def newer_format(entry: Path) -> None:
    entry.write_bytes(re.sub(rb'"pgwal-backup": \d', b'"pgwal-backup": 7', entry.read_bytes()))


def other_id(entry: Path) -> None:
    entry.write_bytes(
        entry.read_bytes().replace(entry.parent.name.encode(), b"20200101T000000Z" + entry.parent.name[16:].encode())
    )


def directory(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()


def other_cluster(entry: Path) -> None:
    """As of a backup that was copied here from another repository."""
    entry.write_bytes(entry.read_bytes().replace(b'"system_identifier": "1', b'"system_identifier": "2'))


DAMAGES = (missing, empty, garbage, newer_format, other_id, directory, other_cluster)


def names(outcome: Outcome, backup_id: str) -> bool:
    assert_nothing_raw(outcome)
    return f"backup {backup_id} is left out: " in outcome.stderr


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_others_are_listed_shown_and_restored(repo: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    before = json.loads(succeed("list", "--repo", repo, "--json"))["backups"]
    damage(entry_of(repo, THIRD_FULL))
    outcome = run_pgwal("list", "--repo", repo, "--json")
    assert outcome.code == 0
    assert names(outcome, THIRD_FULL)
    assert json.loads(outcome.stdout)["backups"] == [backup for backup in before if backup["id"] != THIRD_FULL]
    outcome = run_pgwal("show", SECOND, "--repo", repo)
    assert outcome.code == 0
    assert names(outcome, THIRD_FULL)
    outcome = run_pgwal("show", THIRD_FULL, "--repo", repo)
    assert_failed(outcome, FAILED, str(entry_of(repo, THIRD_FULL)))
    outcome = run_pgwal("status", "--repo", repo, "-h", tmp_path, "-d", "dbname=x")
    assert f"backup left out  {THIRD_FULL}: " in outcome.stdout
    assert f"newest backup    {ON_SECOND}" in outcome.stdout
    document = json.loads(run_pgwal("status", "--repo", repo, "-h", tmp_path, "--json").stdout)
    assert [backup["backup"] for backup in document["unreadable_backups"]] == [THIRD_FULL]
    outcome = run_pgwal("restore", SECOND, "--repo", repo, "-D", tmp_path / "second")
    assert outcome.code == 0, outcome.stderr
    outcome = run_pgwal("restore", "latest", "--repo", repo, "-D", tmp_path / "latest")
    assert outcome.code == 0, outcome.stderr
    assert names(outcome, THIRD_FULL)
    assert ON_SECOND in outcome.stdout
    outcome = run_pgwal("restore", THIRD_FULL, "--repo", repo, "-D", tmp_path / "third")
    assert_failed(outcome, FAILED, str(entry_of(repo, THIRD_FULL)))
    assert not (tmp_path / "third").exists()
    outcome = run_pgwal("combine", SECOND, "--repo", repo, "-o", tmp_path / "combined")
    assert outcome.code == 0, outcome.stderr


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_builds_on_it_is_refused_and_the_rest_is_not(
    repo: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(entry_of(repo, FIRST))
    outcome = run_pgwal("restore", SECOND, "--repo", repo, "-D", tmp_path / "target")
    assert_failed(outcome_without_warnings(outcome), CHAIN_BROKEN, f"{SECOND} builds on {FIRST}, which is not there")
    assert not (tmp_path / "target").exists()
    restore_backup(RestoreRequest(LocalPlace(repo), FULL, tmp_path / "full", "false"))
    restore_backup(RestoreRequest(LocalPlace(repo), ON_SECOND, tmp_path / "on_second", "false"))


def outcome_without_warnings(outcome: Outcome) -> Outcome:
    return Outcome(outcome.code, outcome.stdout, outcome.stderr.replace("pgwal: warning: ", "pgwal: "))


def test_what_is_no_backup_is_passed_over(repo: Path) -> None:
    before = succeed("list", "--repo", repo)
    for name in FOREIGN_NAMES:
        (repo / "backups" / name).mkdir()
        (repo / "backups" / name / "file").write_bytes(b"foreign")
    (repo / "backups" / "file").write_bytes(b"foreign")
    (repo / "backups" / "20261125T101530Z_full").write_bytes(b"a file with the name of a backup")
    outcome = run_pgwal("list", "--repo", repo)
    assert outcome.stdout == before
    assert outcome.stderr.count("\n") == 1
    assert names(outcome, "20261125T101530Z_full")
    (repo / "backups" / "20261125T101530Z_full").unlink()
    assert run_pgwal("list", "--repo", repo).stderr == ""
    assert verify(VerifyRequest(LocalPlace(repo))).problems == []
    succeed("expire", "--keep-full", "1", "--repo", repo)
    for name in FOREIGN_NAMES:
        assert (repo / "backups" / name / "file").read_bytes() == b"foreign"
    assert Repository.open(repo).catalogue.ids() == [THIRD_FULL]


# ---- expire


def wal_numbers(repo: Path) -> list[int]:
    return [segment.segment_no for segment in Repository.open(repo).wal.segments()]


@pytest.mark.parametrize("damage", DAMAGES[:-1])
@pytest.mark.parametrize(
    ("backup_id", "kept", "first_segment"),
    [
        # A full backup that may be repaired keeps its WAL, and what builds on it.
        (FULL, [FULL, FIRST, SECOND, THIRD_FULL], 1),
        # An incremental one keeps the chain that it builds on.
        (FIRST, [FULL, FIRST, SECOND, THIRD_FULL], 1),
        (ON_SECOND, [SECOND_FULL, ON_SECOND, THIRD_FULL], 5),
        (SECOND_FULL, [SECOND_FULL, ON_SECOND, THIRD_FULL], 5),
    ],
)
def test_expire_keeps_what_it_cannot_judge_and_goes_on_with_the_rest(
    repo: Path, damage: Callable[[Path], None], backup_id: str, kept: list[str], first_segment: int
) -> None:
    was = entry_of(repo, backup_id).read_bytes()
    damage(entry_of(repo, backup_id))
    outcome = run_pgwal("expire", "--keep-full", "1", "--repo", repo, "--json")
    assert outcome.code == 0, outcome.stderr
    assert f"backup {backup_id} is left in place, with all that it may need" in outcome.stderr
    assert [each["backup"] for each in json.loads(outcome.stdout)["unreadable_backups"]] == [backup_id]
    assert Repository.open(repo).catalogue.ids() == kept
    assert wal_numbers(repo)[0] == first_segment
    # Once the entry is there again, so is everything else that is needed.
    entry = entry_of(repo, backup_id)
    if entry.is_dir():
        entry.rmdir()
    entry.write_bytes(was)
    assert verify(VerifyRequest(LocalPlace(repo))).problems == []
    succeed("expire", "--keep-full", "1", "--repo", repo)
    assert Repository.open(repo).catalogue.ids() == [THIRD_FULL]


def test_expire_removes_nothing_where_the_label_is_damaged_too(repo: Path) -> None:
    missing(entry_of(repo, ON_SECOND))
    (repo / "backups" / ON_SECOND / "data" / "backup_label").write_bytes(b"nothing")
    before = wal_numbers(repo)
    report = json.loads(run_pgwal("expire", "--keep-full", "1", "--repo", repo, "--json").stdout)
    assert report["expired_backups"] == report["removed_wal"] == report["removed_summaries"] == []
    assert wal_numbers(repo) == before
    assert Repository.open(repo).catalogue.ids() == [FULL, FIRST, SECOND, SECOND_FULL, ON_SECOND, THIRD_FULL]


def test_expire_does_not_keep_anything_for_what_holds_nothing(repo: Path) -> None:
    shutil.rmtree(repo / "backups" / FIRST)
    (repo / "backups" / FIRST).mkdir()
    other_cluster(entry_of(repo, SECOND_FULL))
    succeed("expire", "--keep-full", "1", "--repo", repo)
    # What builds on something that is gone is left to a person, and so is what is another cluster's.
    assert Repository.open(repo).catalogue.ids() == [FIRST, SECOND, SECOND_FULL, ON_SECOND, THIRD_FULL]
    assert wal_numbers(repo)[0] == 7


# ---- with a server


@pytest.mark.postgres(13, 18)
def test_an_incremental_builds_on_what_can_be_read(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(settings={"wal_keep_size": "1GB"}), scratch / "repo"

    def take(kind: str) -> Outcome:
        return run_pgwal(kind, "--repo", repo, "-d", server.conninfo, "-c", "fast", "--json")

    def take_id(kind: str) -> str:
        outcome = take(kind)
        assert outcome.code == 0, outcome.stderr
        return str(json.loads(outcome.stdout)["id"])

    full, first, second = take_id("full"), take_id("incremental"), take_id("incremental")
    for name in FOREIGN_NAMES:
        (repo / "backups" / name).mkdir()
    entry_of(repo, second).rename(scratch / "second")
    outcome = take("incremental")
    assert outcome.code == 0, outcome.stderr
    assert names(outcome, second)
    assert json.loads(outcome.stdout)["prior"] == first
    # The newest ones build on one that is damaged: an older chain is whole.
    entry_of(repo, first).rename(scratch / "first")
    outcome = take("backup")
    assert json.loads(outcome.stdout)["prior"] == full, outcome.stderr
    entry_of(repo, full).unlink()
    assert_failed(outcome_without_warnings(take("incremental")), CHAIN_BROKEN, "which is not there", "full backup")
    outcome = take("backup")
    assert json.loads(outcome.stdout)["kind"] == "full"
    succeed("restore", "--repo", repo, "-D", scratch / "target")
