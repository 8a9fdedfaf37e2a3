"""Pins, and long-term backups: what they keep, what is said of them, and what a crash or an expire beside them does."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from keeping.stored_repository import (
    FIRST,
    FULL,
    MB,
    ON_SECOND,
    SECOND,
    SECOND_FULL,
    THIRD_FULL,
    build_chains,
)
from pgwal_process import assert_failed, run_pgwal
from repository.places import PLACES
from support.faulty_store import Died, Fate, FaultyPlace

from pgwal.backup.recovery import RecoveryTarget
from pgwal.backup.retention_rules import KEEP_FULL, NEWEST, PINNED, Period, Reason, RetentionRules
from pgwal.engine.coverage import read_recoverable_ranges
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.expire_plan import ExpireReport
from pgwal.engine.pinning import pin_backup, unpin_backup
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.engine.status import read_repository_status
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import FormatError, ObjectNotFound, RecoveryTargetError, RepositoryLocked
from pgwal.lsn import Lsn
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal_cli.exit_codes import FAILED, USAGE

DEFAULT_PLACES = [kind for kind in PLACES if kind != "seaweedfs"]


@pytest.fixture(params=DEFAULT_PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    place = PLACES[request.param](tmp_path)
    build_chains(place, place.default_format)
    return place


def run(place: Place, **rules: int) -> ExpireReport:
    return expire(ExpireRequest(place, RetentionRules(**rules)))


def ids(place: Place) -> list[str]:
    return Repository.open(place).catalogue.ids()


def segments(place: Place) -> list[int]:
    return [segment.segment_no for segment in Repository.open(place).wal.segments()]


# ---- pins


def test_a_pinned_backup_stays_with_what_it_builds_on_until_it_is_unpinned(place: Place) -> None:
    assert pin_backup(place, FIRST)
    assert not pin_backup(place, FIRST)
    report = run(place, keep_full=1)
    assert ids(place) == [FULL, FIRST, THIRD_FULL]
    assert report.reasons == {
        FULL: [Reason("needed by", FIRST)],
        FIRST: [PINNED],
        THIRD_FULL: [NEWEST, KEEP_FULL],
    }
    assert segments(place) == list(range(1, 10))
    assert verify(VerifyRequest(place)).problems == []
    assert unpin_backup(place, FIRST)
    assert not unpin_backup(place, FIRST)
    run(place, keep_full=1)
    assert ids(place) == [THIRD_FULL]
    assert list(place.store.children("pins")) == []


def test_only_what_is_there_can_be_pinned(place: Place) -> None:
    for act in (pin_backup, unpin_backup):
        with pytest.raises(ObjectNotFound):
            act(place, "20250101T000000Z_full")
        with pytest.raises(FormatError):
            act(place, "../../etc")


def test_no_pin_is_set_while_an_expire_runs_that_would_not_see_it(place: Place) -> None:
    seen = []

    def pin_meanwhile(_: int, __: int) -> None:
        with pytest.raises(RepositoryLocked):
            pin_backup(place, THIRD_FULL)
        seen.append(True)

    expire(ExpireRequest(place, RetentionRules(keep_full=1)), pin_meanwhile)
    assert seen
    assert list(place.store.children("pins")) == []


# ---- long-term backups


def test_older_backups_keep_their_own_wal_and_that_is_no_hole(place: Place, tmp_path: Path) -> None:
    report = run(place, keep_wal_for=2)
    repository = Repository.open(place)
    assert [entry.backup_id for entry in report.long_term] == [FULL, FIRST, SECOND, SECOND_FULL]
    assert report.expired == []
    # Each of them lies in one segment; 4 is between two of them.
    assert segments(place) == [1, 2, 3, 5, 6, 7, 8, 9]
    assert report.wal_needed_from == Lsn(6 * MB + 40)
    assert verify(VerifyRequest(place)).problems == []
    status = read_repository_status(repository)
    assert [timeline.wal_holes for timeline in status.coverage] == [[]]
    assert [timeline.summary_holes for timeline in status.coverage] == [[]]
    found = read_recoverable_ranges(repository, repository.catalogue.entries())
    for backup_id, reached in found.items():
        assert reached is not None
        entry = repository.catalogue.entry(backup_id)
        assert reached.is_long_term == (backup_id not in (ON_SECOND, THIRD_FULL))
        assert reached.end == (entry.stop_lsn if reached.is_long_term else 10 * MB)
    # Without the rule they stay what they are, and another rule makes none of them whole again.
    for rules in ({"keep_full": 3}, {"keep_wal_for": 6}):
        assert len(run(place, **rules).long_term) == 4
    assert segments(place) == [1, 2, 3, 5, 6, 7, 8, 9]
    at_its_end = RestoreRequest(
        place, SECOND, tmp_path / "restored", "false", recovery_target=RecoveryTarget(immediate=True)
    )
    restore_backup(at_its_end)
    # Nothing is left of them when they go.
    run(place, keep_full=1)
    assert (ids(place), segments(place)) == ([THIRD_FULL], [7, 8, 9])
    assert list(place.store.children("long_term")) == []


def test_a_hole_in_what_is_kept_is_one_all_the_same(place: Place) -> None:
    run(place, keep_wal_for=1)
    repository = Repository.open(place)
    for number in (2, 8):
        place.store.delete(f"wal/{repository.geometry.file_name(1, number)}")
    (timeline,) = read_repository_status(repository).coverage
    assert [(hole.start // MB, hole.end // MB) for hole in timeline.wal_holes] == [(2, 2), (8, 9)]
    assert {problem.path for problem in verify(VerifyRequest(place)).problems} >= {
        f"wal/{repository.geometry.file_name(1, 2)}"
    }
    found = read_recoverable_ranges(repository, repository.catalogue.entries())
    assert found[FIRST] is None
    assert found[THIRD_FULL] is not None
    assert not found[THIRD_FULL].is_whole


@pytest.mark.parametrize(
    "target",
    [
        RecoveryTarget(),
        RecoveryTarget(lsn=Lsn(3 * MB + 80_000)),
        RecoveryTarget(time=datetime(2026, 11, 23, tzinfo=UTC)),
        RecoveryTarget(xid=1000),
        RecoveryTarget(name="before"),
    ],
    ids=str,
)
def test_another_target_is_refused_in_so_many_words(place: Place, tmp_path: Path, target: RecoveryTarget) -> None:
    run(place, keep_wal_for=2)
    request = RestoreRequest(place, SECOND, tmp_path / "restored", "false", recovery_target=target)
    with pytest.raises(RecoveryTargetError, match=f"backup {SECOND}: it is a long-term backup"):
        restore_backup(request)
    assert not (tmp_path / "restored").exists()


def test_all_wal_stays_behind_what_is_marked_when_expire_dies(place: Place) -> None:
    """Marks come first: no WAL is missing without one."""
    number, is_over = 0, False
    rules = RetentionRules(keep_wal_for=2)
    marked = []
    while not is_over:
        copy, fate = _copy(place), Fate(dies_at=number)
        try:
            expire(ExpireRequest(FaultyPlace(copy, fate), rules))
            is_over = True
        except Died:
            pass
        marked.append(len(list(copy.store.children("long_term"))))
        assert marked[-1] == 4 or segments(copy) == list(range(1, 10))
        assert verify(VerifyRequest(copy)).problems == []
        assert [timeline.wal_holes for timeline in read_repository_status(Repository.open(copy)).coverage] == [[]]
        expire(ExpireRequest(copy, rules))
        assert segments(copy) == [1, 2, 3, 5, 6, 7, 8, 9]
        number += 1
    assert {0, 1, 4} <= set(marked)


def _copy(place: Place) -> Place:
    from repository.places import local, memory

    if place.directory is not None:
        target = place.directory.parent / "copy"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(place.directory, target / "repo")
        return local(target)
    copy = memory(Path())
    for name, _ in place.store.list():
        if not name.startswith(".leases"):
            copy.store.put(name, place.store.get(name))
    return copy


# ---- the commands


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return build_chains(tmp_path / "repo").root


def test_pin_and_unpin_say_what_they_did(root: Path) -> None:
    assert run_pgwal("pin", FULL, "--repo", root).stdout == f"pinned {FULL}\n"
    assert run_pgwal("pin", FULL, "--repo", root).stdout == f"{FULL} is pinned already\n"
    lines = run_pgwal("list", "--repo", root).stdout.splitlines()
    assert lines[0].split()[-2:] == ["PINNED", "MERGED"]
    assert [line.split()[0] for line in lines if line.split()[-2] == "pinned"] == [FULL]
    assert "pinned           yes" in run_pgwal("show", FULL, "--repo", root).stdout
    found = json.loads(run_pgwal("unpin", FULL, "--repo", root, "--json").stdout)
    assert found == {"version": 1, "backup": FULL, "pinned": False, "changed": True}
    assert run_pgwal("unpin", FULL, "--repo", root).stdout == f"{FULL} is not pinned\n"
    assert_failed(run_pgwal("pin", "20250101T000000Z_full", "--repo", root), FAILED, "there is no backup")


def test_a_dry_run_prints_what_is_kept_by_which_rule(root: Path) -> None:
    run_pgwal("pin", FIRST, "--repo", root)
    rules = ["--keep-daily", "2", "--keep-wal-for", "1"]
    text = run_pgwal("expire", "--repo", root, *rules, "--dry-run").stdout
    table = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines()[:7]}
    assert table["BACKUP"] == "FINISHED KEPT BY (HOURS TO YEARS ARE OF UTC) WAL"
    assert table[SECOND] == "2026-11-22T12:15:30+00:00 no - -"
    assert table[FULL].endswith(f"yes needed by {FIRST} up to {_stop(root, FULL)}")
    assert table[FIRST].endswith(f"yes pinned up to {_stop(root, FIRST)}")
    assert table[ON_SECOND].endswith(f"yes daily 2026-11-23 up to {_stop(root, ON_SECOND)}")
    assert table[THIRD_FULL].endswith("yes newest, daily 2026-11-24 all since")
    found = json.loads(run_pgwal("expire", "--repo", root, *rules, "--json").stdout)
    assert [entry["id"] for entry in found["expired_backups"]] == [SECOND]
    assert {each["id"]: each["why"] for each in found["kept_backups"]}[ON_SECOND] == [
        {"rule": "daily", "detail": "2026-11-23"}
    ]
    assert found["long_term_backups"] == [FULL, FIRST, SECOND_FULL, ON_SECOND]
    listed = run_pgwal("list", "--repo", root, "--why", "--keep-daily", "2").stdout
    by_id = {line.split()[0]: line for line in listed.splitlines()}
    assert by_id[FIRST].split()[-4:] == ["alone", "pinned", "-", "pinned"]
    assert "that point alone" in by_id[FULL]
    documents = json.loads(run_pgwal("list", "--repo", root, "--why", "--keep-daily", "2", "--json").stdout)["backups"]
    why = {each["id"]: each["why"] for each in documents}
    assert why[THIRD_FULL] == [{"rule": "newest", "detail": ""}, {"rule": "daily", "detail": "2026-11-24"}]
    assert [each["recoverable"]["long_term"] for each in documents] == [True, True, True, True, False]
    assert "alone (2026-11-22" in run_pgwal("show", FIRST, "--repo", root).stdout
    assert_failed(run_pgwal("list", "--repo", root, "--keep-daily", "2"), USAGE, "--why")


def _stop(root: Path, backup_id: str) -> Lsn:
    return Repository.open(root).catalogue.entry(backup_id).stop_lsn


def test_every_rule_has_its_option(root: Path) -> None:
    names = (*(period.value for period in Period), "full", "days", "wal-days", "wal-for")
    options = [f"--keep-{name}=9" for name in names]
    assert run_pgwal("expire", "--repo", root, *options, "--dry-run").code == 0
    assert_failed(run_pgwal("expire", "--repo", root, "--keep-yearly", "0"), USAGE, "0")
