"""Buckets that keep what was stored: nothing is put over anything, and what cannot go yet stays with all it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from keeping.stored_repository import FIRST, FULL, MB, SECOND, build_repository, store_backup
from repository.places import PLACES
from support.fate import Fate
from support.faulty_store import FaultyPlace, FaultyStore
from support.shared_bucket import shared_bucket

from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import ObjectRetained
from pgwal.lsn import Lsn
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT

SECOND_FULL, THIRD_FULL = "20261123T101530Z_full", "20261124T101530Z_full"
STATES = (".leases/", "backup.lock", "receiver.lock", "receiver.json")
"""What is put over again and again."""


def build(place: Place) -> Repository:
    """Store three chains: in segments 1 to 3, 5, and 7, of 9."""
    stored = build_repository(place, 9, storage_format=DEFAULT_PACKED_FORMAT)
    whole = {"base/5/16384": bytes(8192)}
    for backup_id, number in ((SECOND_FULL, 5), (THIRD_FULL, 7)):
        start = Lsn(number * MB + 40)
        stop = next(Lsn(lsn) for lsn, _ in stored.records if lsn > start + 4000)
        with stored.repository.lock_backups():
            store_backup(stored.repository, backup_id, None, start, stop, whole)
    return Repository.open(place)


def test_a_locked_bucket_takes_backups_and_lets_them_go() -> None:
    server = shared_bucket().server
    server.create_bucket("locked", retention_days=1)
    place = shared_bucket().place("locked")
    repository = build(place)
    assert verify(VerifyRequest(place)).problems == []
    report = expire(ExpireRequest(place, RetentionRules(keep_full=1)))
    assert {entry.backup_id for entry in report.expired} == {FULL, FIRST, SECOND, SECOND_FULL}
    assert repository.catalogue.ids() == [THIRD_FULL]
    assert verify(VerifyRequest(place)).problems == []
    prefix = place.address.rpartition("/")[2]
    versions = {name.removeprefix(f"{prefix}/"): count for name, count in server.versions("locked").items()}
    # All is there still, and as it was first.
    assert {f"backups/{backup_id}/backup.json" for backup_id in (FULL, FIRST, SECOND, SECOND_FULL)} <= set(versions)
    assert {name for name, count in versions.items() if count > 1 and not name.startswith(STATES)} == set()


class RetainingPlace(FaultyPlace):
    """Another place, where some objects cannot be removed yet."""

    def __init__(self, place: Place, retained: tuple[str, ...]) -> None:
        super().__init__(place, Fate())
        self.store = _RetainingStore(place, retained)


class _RetainingStore(FaultyStore):
    def __init__(self, place: Place, retained: tuple[str, ...]) -> None:
        super().__init__(place.store, Fate())
        self._retained = retained

    def delete(self, name: str) -> None:
        if any(part in name for part in self._retained):
            raise ObjectRetained(f"cannot delete {name}: it is kept until 2027-01-01")
        super().delete(name)


@pytest.mark.parametrize("kind", ["memory", "cloud_memory"])
@pytest.mark.parametrize(
    ("retained", "removed", "kept"),
    [
        (("backups/",), [], [FULL, FIRST, SECOND, SECOND_FULL, THIRD_FULL]),
        ((f"backups/{SECOND_FULL}/backup.json",), [SECOND, FIRST, FULL], [SECOND_FULL, THIRD_FULL]),
        ((f"backups/{FIRST}/backup.json",), [SECOND, SECOND_FULL], [FULL, FIRST, THIRD_FULL]),
        (("wal/",), [SECOND_FULL, SECOND, FIRST, FULL], [THIRD_FULL]),
        (("packs/",), [SECOND_FULL, SECOND, FIRST, FULL], [THIRD_FULL]),
    ],
)
def test_what_cannot_go_stays_with_all_that_it_needs(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    retained: tuple[str, ...],
    removed: list[str],
    kept: list[str],
) -> None:
    place = PLACES[kind](tmp_path)
    repository = build(place)
    report = expire(ExpireRequest(RetainingPlace(place, retained), RetentionRules(keep_full=1)))
    assert {entry.backup_id for entry in report.expired} == set(removed)
    assert repository.catalogue.ids() == kept
    assert verify(VerifyRequest(place)).problems == []
    assert "until 2027-01-01" in caplog.text
    # When the time has come, the next run goes on.
    expire(ExpireRequest(place, RetentionRules(keep_full=1)))
    assert repository.catalogue.ids() == [THIRD_FULL]
    assert repository.catalogue.unfinished() == []
    assert repository.catalogue.pack_garbage().packs == []
    assert [segment.segment_no for segment in repository.wal.segments()] == [7, 8, 9]
    assert verify(VerifyRequest(place)).problems == []
