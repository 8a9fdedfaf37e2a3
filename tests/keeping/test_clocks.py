"""Backups are old or new by where they lie in WAL; a clock that was wrong once decides nothing."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keeping.stored_repository import MB, build_repository, store_backup
from pgwal_process import assert_failed, run_pgwal, succeed

from pgwal.backup.retention import end_times
from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.lsn import Lsn
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import StorageFormat

FAILED = 1
AHEAD, BEHIND = "20300101T000000Z_full", "20010101T000000Z_full"
NOW = datetime(2026, 11, 29, tzinfo=UTC)


def build(tmp_path: Path, ids: Sequence[str], storage_format: StorageFormat) -> Path:
    """Build a repository with full backups of these ids, from one segment to the next."""
    stored = build_repository(tmp_path / "repo", len(ids) + 2, storage_format=storage_format)
    for old in stored.repository.catalogue.ids():
        shutil.rmtree(stored.root / "backups" / old)
    for number, backup_id in enumerate(ids, 1):
        start = Lsn(number * MB + 40)
        stop = next(Lsn(lsn) for lsn, _ in stored.records if lsn > start + 4000)
        store_backup(stored.repository, backup_id, None, start, stop, {"base/5/16384": bytes(8192)})
    return stored.root


def real(day: int) -> str:
    return f"202611{day:02}T000000Z_full"


def test_the_newest_is_the_last_in_wal(tmp_path: Path, storage_format: StorageFormat) -> None:
    repo = build(tmp_path, [AHEAD, real(1), real(2), real(3)], storage_format)
    listed = json.loads(succeed("list", "--repo", repo, "--json"))["backups"]
    assert [backup["id"] for backup in listed] == [AHEAD, real(1), real(2), real(3)]
    status = json.loads(run_pgwal("status", "--repo", repo, "-h", tmp_path, "--json").stdout)
    assert status["newest_backup"]["id"] == real(3)
    assert json.loads(succeed("restore", "latest", "--repo", repo, "-D", tmp_path / "t", "--json"))["backup"] == real(3)
    succeed("expire", "--keep-full", "2", "--repo", repo)
    assert Repository.open(repo).catalogue.ids() == [real(2), real(3)]


@pytest.mark.parametrize("wrong", [AHEAD, BEHIND])
@pytest.mark.parametrize("place", range(5))
def test_days_are_kept_whatever_one_clock_said(
    tmp_path: Path, storage_format: StorageFormat, wrong: str, place: int
) -> None:
    days = [real(day) for day in (1, 8, 15, 22)]
    repo = build(tmp_path, [*days[:place], wrong, *days[place:]], storage_format)
    since = datetime(2026, 11, 17, tzinfo=UTC)
    expire(ExpireRequest(LocalPlace(repo), RetentionRules(keep_since=since)))
    kept = {entry.backup_id for entry in Repository.open(repo).catalogue.entries()}
    # The newest real one from before, and all since: each point since then can be reached.
    assert kept >= {real(15), real(22)}
    # What is older than that is not kept for ever.
    assert not kept & {real(1), real(8)}
    if place <= 1:
        assert wrong not in kept


class Ended:
    """What end_times looks at."""

    def __init__(self, number: int, finished: datetime) -> None:
        self.backup_id = f"{number:04}"
        self.start_timeline_id = 1
        self.start_lsn = Lsn(number)
        self.finished_at = finished.isoformat()


@given(st.integers(1, 30), st.sets(st.integers(0, 29), max_size=8), st.integers())
@example(5, {1, 2}, 1)
@settings(max_examples=500)
def test_a_backup_had_ended_by_then_for_certain(count: int, wrong: set[int], seed: int) -> None:
    """With clocks that were wrong for some, none of the backups whose time is right is taken for older than it is."""
    true = [NOW + timedelta(days=number) for number in range(count)]
    dice = random.Random(seed)
    wrong = {number for number in wrong if number < count - 1}
    told = [
        time + timedelta(days=dice.choice((-1, 1)) * 4000 + dice.random()) if number in wrong else time
        for number, time in enumerate(true)
    ]
    ended = end_times(Ended(number, time) for number, time in enumerate(told))  # type: ignore[misc]
    for number in set(range(count)) - wrong:
        assert ended[f"{number:04}"] >= true[number]
    if not wrong:
        assert list(ended.values()) == true[::-1]


@pytest.mark.postgres(18)
def test_an_id_before_one_that_is_there_is_warned_of(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(settings={"wal_keep_size": "1GB"}), scratch / "repo"
    first = json.loads(succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast", "--json"))["id"]
    was = repo / "backups" / first / "backup.json"
    ahead = AHEAD
    _rename_backup(was, first, ahead)
    outcome = run_pgwal("incremental", "--repo", repo, "-d", server.conninfo, "-c", "fast", "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert report["prior"] == ahead
    assert f"this backup is {report['id']}, although {ahead} exists already" in outcome.stderr
    second = json.loads(succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast", "--json"))["id"]
    succeed("verify", "--repo", repo)
    succeed("expire", "--keep-full", "1", "--repo", repo)
    assert Repository.open(repo).catalogue.ids() == [second]
    assert_failed(run_pgwal("show", ahead, "--repo", repo), FAILED, f"there is no backup {ahead}")


def _rename_backup(entry: Path, old: str, new: str) -> None:
    """Give a backup the id that it would have had by another clock."""
    from pgwal.checksum import ContentDigest

    content = entry.read_bytes().replace(old.encode(), new.encode())
    body, _, _ = content.rpartition(b'"digest": ')
    digest = ContentDigest()
    digest.update(body)
    entry.write_bytes(body + f'"digest": "xxh3-128:{digest.hexdigest()}"}}\n'.encode())
    entry.parent.rename(entry.parent.with_name(new))
