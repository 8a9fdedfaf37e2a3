"""``pgwal expire`` on a repository that is built here: what goes, what stands in its way, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from keeping.stored_repository import (
    FIRST,
    FULL,
    MB,
    ON_SECOND,
    SECOND,
    SECOND_FULL,
    SEGMENT_COUNT,
    THIRD_FULL,
    Stored,
    build_chains,
)
from pgwal_process import assert_failed, run_pgwal

from pgwal.backup.chain import resolve_chain
from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine.expire import ExpireReport, ExpireRequest, expire
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import RepositoryLocked
from pgwal.lsn import Lsn
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.pack_pool import list_packs
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.repository.storage_format import StorageFormat
from pgwal.repository.store import move
from pgwal_cli.exit_codes import LOCKED, USAGE


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, storage_format: StorageFormat) -> Stored:
    """Three chains, in segments 1 to 3, 5 and 6, and 7; the last segment is not complete."""
    stored = build_chains(tmp_path_factory.mktemp("expire") / "repo", storage_format)
    last = stored.root / "wal" / stored.repository.geometry.file_name(1, SEGMENT_COUNT)
    last.rename(last.with_name(last.name + ".partial"))
    assert verify(VerifyRequest(LocalPlace(stored.root))).problems == []
    return stored


@pytest.fixture
def repository(built: Stored, tmp_path: Path) -> Repository:
    shutil.copytree(built.root, tmp_path / "repo")
    return Repository.open(tmp_path / "repo")


def run(repository: Repository, keep_full: int, *, dry_run: bool = False) -> ExpireReport:
    return expire(ExpireRequest(repository.place, RetentionRules(keep_full=keep_full), dry_run=dry_run))


def segments(repository: Repository) -> list[int]:
    return [segment.segment_no for segment in repository.wal.segments()]


def tree(repository: Repository) -> set[str]:
    root = repository.store.root
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.name.endswith(".lock")}


def test_the_newest_chains_stay_with_their_wal(repository: Repository) -> None:
    (repository.store.root / "backups" / "20261101T000000Z_full.unfinished" / "data").mkdir(parents=True)
    report = run(repository, 2)
    assert [entry.backup_id for entry in report.expired] == [SECOND, FIRST, FULL]
    assert repository.catalogue.ids() == [SECOND_FULL, ON_SECOND, THIRD_FULL]
    assert repository.catalogue.unfinished() == []
    assert segments(repository) == [5, 6, 7, 8, 9]
    # A summary of 16 begins where its segment's first record does.
    assert [part.start // MB for part in repository.summaries.ranges()] == list(range(5, SEGMENT_COUNT + 1))
    assert report.wal_bytes == 4 * MB
    assert verify(VerifyRequest(repository.place)).problems == []
    run(repository, 1)
    assert (repository.catalogue.ids(), segments(repository)) == ([THIRD_FULL], [7, 8, 9])
    assert run(repository, 1).expired == []


def test_a_dry_run_says_what_would_go_and_changes_nothing(repository: Repository) -> None:
    before = tree(repository)
    dry = run(repository, 1, dry_run=True)
    assert tree(repository) == before
    wet = run(repository, 1)
    assert (dry.expired, dry.wal, dry.summaries, dry.backup_bytes) == (
        wet.expired,
        wet.wal,
        wet.summaries,
        wet.backup_bytes,
    )
    assert before - tree(repository) > {f"wal/{file.name}" for file in dry.wal}
    assert {f"wal/{file.name}" for file in dry.wal}.isdisjoint(tree(repository))


def test_wal_of_every_compression_goes_and_what_is_no_segment_stays(repository: Repository) -> None:
    wal = repository.store.root / "wal"
    geometry = repository.geometry
    for number, suffix in ((1, ".zst"), (2, ".gz"), (3, ".lz4"), (4, ".partial")):
        path = wal / geometry.file_name(1, number)
        path.rename(path.with_name(path.name + suffix))
    shutil.copy(wal / geometry.file_name(1, 5), wal / geometry.file_name(1, 0))
    for name in ("00000002.history", "notes", ".hidden.tmp"):
        (wal / name).write_bytes(b"1\t0/900000\tx\n" if name.endswith("history") else b"")
    run(repository, 1)
    assert {path.name for path in wal.iterdir()} == {
        *(geometry.file_name(1, number) for number in (7, 8)),
        geometry.file_name(1, 9) + ".partial",
        "00000002.history",
        "notes",
        ".hidden.tmp",
    }


def test_without_a_backup_nothing_goes(repository: Repository) -> None:
    shutil.rmtree(repository.store.root / "backups")
    before = tree(repository)
    report = run(repository, 1)
    assert (report.expired, report.wal, report.wal_needed_from) == ([], [], None)
    assert tree(repository) == before


def test_what_was_set_aside_can_be_brought_back(repository: Repository) -> None:
    place = "set_aside/20261125T101530Z_00000001_0000000000700000"
    move(repository.store, f"backups/{THIRD_FULL}", f"{place}/backups/{THIRD_FULL}")
    run(repository, 1)
    move(repository.store, f"{place}/backups/{THIRD_FULL}", f"backups/{THIRD_FULL}")
    assert not verify(VerifyRequest(repository.place, THIRD_FULL)).problems
    # Damage there keeps all packs, too.
    move(repository.store, f"backups/{THIRD_FULL}", f"{place}/backups/{THIRD_FULL}")
    entry = f"{place}/backups/{THIRD_FULL}/backup.json"
    repository.store.put(entry, repository.store.get(entry)[:-9], replace=True)
    before = list(list_packs(repository.store))
    run(repository, 1)
    assert list(list_packs(repository.store)) == before


def test_the_newest_wal_stays_though_no_backup_needs_it(repository: Repository) -> None:
    # The cluster was restored to a point before the only backup, and goes on from there.
    (repository.store.root / "wal" / "00000002.history").write_bytes(b"1\t0/200000\tbefore\n")
    wal = repository.store.root / "wal"
    for number in (2, 3):
        shutil.copy(wal / repository.geometry.file_name(1, number), wal / repository.geometry.file_name(2, number))
    lsn = Lsn(4 * MB)
    repository.write_receiver_state(ReceiverState(2, lsn, lsn, lsn, None))
    run(repository, 1)
    left = [(segment.timeline_id, segment.segment_no) for segment in repository.wal.segments()]
    # The first chain leads to timeline 2, so that it stays as well.
    assert left == [*((1, number) for number in range(1, SEGMENT_COUNT + 1)), (2, 2), (2, 3)]
    assert repository.catalogue.ids() == [FULL, FIRST, SECOND, THIRD_FULL]


# ---- others at work


def test_it_waits_for_nobody(repository: Repository) -> None:
    before = tree(repository)
    root = repository.store.root
    with repository.lock_backups():
        assert_failed(run_pgwal("expire", "--keep-full", "1", "--repo", root), LOCKED, "held by a backup")
        assert run_pgwal("expire", "--keep-full", "1", "--repo", root, "--dry-run").code == 0
    with repository.catalogue.hold(SECOND), repository.catalogue.hold(FULL):
        outcome = run_pgwal("expire", "--keep-full", "1", "--repo", root)
        assert_failed(outcome, LOCKED, f"{SECOND} is being read .* nothing was removed", "again")
        assert tree(repository) == before
    with repository.hold_all_backups(), repository.hold_all_backups():
        assert_failed(run_pgwal("expire", "--keep-full", "1", "--repo", root), LOCKED, "being read")
        assert tree(repository) == before
    with repository.catalogue.hold(THIRD_FULL), repository.lock_receiver():
        # Neither a receiver nor whoever reads what stays is in the way.
        assert run_pgwal("expire", "--keep-full", "1", "--repo", root).code == 0
    assert repository.catalogue.ids() == [THIRD_FULL]


def test_a_restore_holds_its_chain(repository: Repository, tmp_path: Path) -> None:
    held = []

    def look(_: int, __: int) -> None:
        held.append([backup_id for backup_id in repository.catalogue.ids() if repository.catalogue.is_held(backup_id)])
        # What builds on a backup goes first, and so the newest of a chain holds all of it.
        with pytest.raises(RepositoryLocked):
            run(repository, 1)
        assert FULL in repository.catalogue.ids()

    restore_backup(RestoreRequest(repository.place, FIRST, tmp_path / "target", "false"), look)
    assert held
    assert set(map(tuple, held)) == {(FIRST,)}
    assert not repository.catalogue.is_held(FULL)
    verify(VerifyRequest(repository.place, SECOND), look)
    assert held[-1] == [SECOND]

    def expire_meanwhile(_: int, __: int) -> None:
        with pytest.raises(RepositoryLocked):
            run(repository, 1)

    verify(VerifyRequest(repository.place), expire_meanwhile)


def test_what_is_being_removed_is_not_read(repository: Repository, tmp_path: Path) -> None:
    with (
        repository.place.leases.hold(f"backups/{FIRST}/backup.json", exclusive=True),
        pytest.raises(RepositoryLocked, match="being removed"),
    ):
        restore_backup(RestoreRequest(repository.place, FIRST, tmp_path / "target", "false"))


# ---- a kill at any step

# Runs expire again and again on copies of a repository, killed at its first, second, ... change of a file's name.
KILLING = """
import os, shutil, signal, sys
from pathlib import Path
from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.pack_pool import list_packs

source, work = map(Path, sys.argv[1:3])
step = 0
while True:
    step += 1
    target = work / str(step)
    shutil.copytree(source, target, copy_function=os.link)
    child = os.fork()
    if child == 0:
        left = step
        def count(event, args):
            global left
            if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        expire(ExpireRequest(LocalPlace(target), RetentionRules(keep_full=1)))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
print(step)
"""


def test_a_kill_at_any_step_leaves_whole_chains(repository: Repository, tmp_path: Path) -> None:
    work = tmp_path / "killed"
    work.mkdir()
    command = [sys.executable, "-P", "-c", KILLING, str(repository.store.root), str(work)]
    steps = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # Five renames; then each file and directory, or pack, of five backups; then WAL and summaries.
    assert steps > 40
    seen = set()
    for step in range(1, steps + 1):
        left = Repository.open(work / str(step))
        entries = left.catalogue.entries()
        seen.add(tuple(entry.backup_id for entry in entries))
        assert THIRD_FULL in left.catalogue.ids()
        for entry in entries:
            resolve_chain(entries, entry.backup_id)
        if len(entries) > 1 or step % 5 == 0:
            assert verify(VerifyRequest(left.place)).problems == []
        if step % 5 == 0 or step == steps:
            run(left, 1)
            assert (left.catalogue.ids(), left.catalogue.unfinished()) == ([THIRD_FULL], [])
            assert segments(left) == [7, 8, 9]
    assert len(seen) == 6


# ---- the command


def test_the_command_says_what_it_removed(repository: Repository) -> None:
    root = repository.store.root
    assert_failed(run_pgwal("expire", "--repo", root), USAGE, "--keep-full N")
    text = run_pgwal("expire", "--repo", root, "--keep-full", "2", "--dry-run").stdout
    assert f"would remove backup {SECOND}," in text
    assert "would remove 4 WAL files, 4096 kB: 000000010000000000000001 to 000000010000000000000004" in text
    assert text.endswith("kept 3 backups, and WAL from 0/500028 on\n")
    found = json.loads(run_pgwal("expire", "--repo", root, "--keep-full", "2", "--json", "-P").stdout)
    assert [backup["id"] for backup in found["expired_backups"]] == [SECOND, FIRST, FULL]
    assert (found["dry_run"], found["kept_wal_lsn"], len(found["removed_wal"])) == (False, "0/500028", 4)
    kept = run_pgwal("expire", "--repo", root, "--keep-days", "36500").stdout
    assert kept == "nothing to remove\nkept 3 backups, and WAL from 0/500028 on\n"


def test_a_broken_chain_is_left_alone_and_said(repository: Repository) -> None:
    shutil.rmtree(repository.store.root / "backups" / FULL)
    outcome = run_pgwal("expire", "--repo", repository.store.root, "--keep-full", "1")
    assert outcome.code == 0
    assert outcome.stderr.count("cannot be restored") == 2
    assert repository.catalogue.ids() == [FIRST, SECOND, THIRD_FULL]


# ---- list and show


def test_list_and_show_tell_what_can_be_recovered(repository: Repository) -> None:
    root = repository.store.root
    lines = run_pgwal("list", "--repo", root).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [FULL, FIRST, SECOND, SECOND_FULL, ON_SECOND, THIRD_FULL]
    assert lines[2].startswith(f"  {FIRST}")
    assert lines[3].startswith(f"    {SECOND}")
    (repository.store.root / "wal" / repository.geometry.file_name(1, 6)).unlink()
    found = {
        backup["id"]: backup for backup in json.loads(run_pgwal("list", "--repo", root, "--json").stdout)["backups"]
    }
    assert found[SECOND]["chain"] == [SECOND, FIRST, FULL]
    assert (found[SECOND]["prior_timeline"], found[SECOND]["prior_lsn"]) == (1, "0/200028")
    # WAL that is missing ends what the chains before can reach, and makes a backup useless.
    assert found[FULL]["recoverable"]["end_lsn"] == "0/600000"
    assert found[FULL]["recoverable"]["whole"] is False
    assert found[ON_SECOND]["recoverable"] is None
    assert found[THIRD_FULL]["recoverable"]["end_lsn"] == "0/900000"
    assert found[THIRD_FULL]["recoverable"]["whole"] is True
    shown = json.loads(run_pgwal("show", FIRST, "--repo", root, "--json").stdout)
    assert found[FIRST].pop("why") is None
    assert shown | found[FIRST] == shown
    assert shown["built_on_it"] == [SECOND]
    text = run_pgwal("show", FIRST, "--repo", root).stdout
    assert f"chain            {FIRST}, {FULL}" in text
    assert "window           0/100028 on timeline 1 to 0/200028" in text
    assert "to 0/600000 on timeline 1, where WAL is missing" in text
    assert "recoverable      no: WAL" in run_pgwal("show", ON_SECOND, "--repo", root).stdout
