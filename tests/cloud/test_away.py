"""A store goes away at any operation: no command takes that for damage, for absence, or for done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cloud.test_object_lock import THIRD_FULL, build
from support.fate import Fate
from support.faulty_store import FaultyPlace

from pgwal.backup.retention_rules import RetentionRules
from pgwal.engine.coverage import read_recoverable_ranges
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.export import ExportRequest, export_backup
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.errors import StoreUnavailable
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.store_wrapper import StoreWrapper


class _AwayStore(StoreWrapper):
    def __init__(self, place: Place, away_at: int) -> None:
        super().__init__(place.store)
        self.count = 0
        self._away_at = away_at

    def _before(self, operation: str, name: str) -> None:
        self.count += 1
        if self.count > self._away_at:
            raise StoreUnavailable(f"cannot {operation} {name}: nobody answers")


class AwayPlace(FaultyPlace):
    """Another place, whose store answers some times, and never again."""

    def __init__(self, place: Place, away_at: int) -> None:
        super().__init__(place, Fate())
        self.away = _AwayStore(place, away_at)
        self.store = self.away  # type: ignore[assignment]


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    place = MemoryPlace()
    build(place)
    return {name: place.store.get(name) for name, _ in place.store.list()}


def copied(contents: dict[str, bytes]) -> MemoryPlace:
    place = MemoryPlace()
    for name, content in contents.items():
        place.store.put(name, content)
    return place


def listing(place: Place, _: Path) -> object:
    repository = Repository.open(place)
    entries = repository.catalogue.entries()
    return [entry.backup_id for entry in entries], read_recoverable_ranges(repository, entries)


def verifying(place: Place, _: Path) -> object:
    report = verify(VerifyRequest(place))
    return report.backup_ids, report.problems


def expiring(place: Place, _: Path) -> object:
    return {entry.backup_id for entry in expire(ExpireRequest(place, RetentionRules(keep_full=1))).expired}


def restoring(place: Place, directory: Path) -> object:
    restore_backup(RestoreRequest(place, THIRD_FULL, directory, "false"))
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def exporting(place: Place, directory: Path) -> object:
    export_backup(ExportRequest(place, THIRD_FULL, directory))
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("act", [listing, verifying, expiring, restoring, exporting])
def test_a_store_that_goes_away_is_said_to(
    contents: dict[str, bytes], tmp_path: Path, act: Callable[[Place, Path], object]
) -> None:
    whole = AwayPlace(copied(contents), 1 << 30)
    expected = act(whole, tmp_path / "whole")
    for number in range(whole.away.count):
        place = copied(contents)
        with pytest.raises(StoreUnavailable):
            act(AwayPlace(place, number), tmp_path / "target")
        shutil.rmtree(tmp_path / "target", ignore_errors=True)
        if act is expiring:
            assert verify(VerifyRequest(place)).problems == []
            expire(ExpireRequest(place, RetentionRules(keep_full=1)))
            assert Repository.open(place).catalogue.ids() == [THIRD_FULL]
    assert act(copied(contents), tmp_path / "again") == expected
