"""What is put over nothing: that holds for large objects as for small ones, whatever comes in between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from keeping.stored_repository import FULL, entry_of
from obstore.exceptions import AlreadyExistsError

from pgwal.backup.entry import BackupTotals
from pgwal.errors import LeaseLost, ObjectExists, RepositoryError, StoreUnavailable
from pgwal.lsn import Lsn
from pgwal.repository import cloud_store, staged_backup
from pgwal.repository.cloud_lease_object import LeaseTimes
from pgwal.repository.cloud_leases import CloudLeases
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.layout import (
    BACKUP_ENTRY_NAME,
    BACKUP_LOCK_NAME,
    RECEIVER_LOCK_NAME,
    WAL_DIRECTORY,
    RepositoryIdentity,
)
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.spooled_objects import SpooledObjects
from pgwal.repository.spooled_place import SpooledPlace
from pgwal.repository.wal_file_name import partial_name

LARGE = bytes(9 << 20)


@pytest.fixture
def place() -> CloudPlace:
    return CloudPlace("s3://memory/repo", obstore.store.MemoryStore())


def before_the_first_put(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Have ``action`` done when the first object is put, as by another process."""
    put, done = obstore.put, []

    def put_after(*arguments: Any, **options: Any) -> Any:
        if not done:
            done.append(True)
            action()
        return put(*arguments, **options)

    monkeypatch.setattr(obstore, "put", put_after)


def test_bytes_are_put_over_nothing_however_many(place: CloudPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an entry is, which another may keep from being stored meanwhile."""
    before_the_first_put(monkeypatch, lambda: obstore.put(place.client, "entry", b"", mode="create"))
    with pytest.raises(ObjectExists):
        place.store.put("entry", LARGE)
    assert place.store.size("entry") == 0
    place.store.put("other", LARGE)
    assert place.store.get("other") == LARGE
    place.store.put("other", LARGE)


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_large_object_whose_last_answer_was_lost(
    place: CloudPlace, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    """An upload that has ended is not found when its end is asked for again, be it stored, or lost."""
    put = obstore.put

    def put_unanswered(client: Any, name: str, content: Any, **options: Any) -> Any:
        pieces = list(content)
        if is_stored:
            put(client, name, iter(pieces), **options)
        raise FileNotFoundError("NoSuchUpload")

    place.store.put("object", iter([LARGE]))
    monkeypatch.setattr(obstore, "put", put_unanswered)
    content = bytes([1]) * len(LARGE)
    if is_stored:
        place.store.put("object", iter([content]), replace=True)
        assert place.store.get("object") == content
        return
    with pytest.raises(RepositoryError, match="lost what was sent"):
        place.store.put("object", iter([content]), replace=True)
    assert place.store.get("object") == LARGE


@pytest.mark.parametrize("arrives", ["never", "before", "before the place is kept", "late"])
def test_an_entry_whose_answer_never_came(place: CloudPlace, monkeypatch: pytest.MonkeyPatch, arrives: str) -> None:
    """The store may take it when the backup has failed: it then has its packs, or does not count."""
    put = obstore.put
    entry: list[tuple[Any, ...]] = []

    def take_entry() -> None:
        with contextlib.suppress(AlreadyExistsError):
            put(*entry[0], mode="create")

    def put_unanswered(client: Any, name: str, content: Any, **options: Any) -> Any:
        if name.endswith(BACKUP_ENTRY_NAME) and content:
            entry[:] = [(client, name, content)]
            if arrives == "before":
                take_entry()
            raise StoreUnavailable("no answer came")
        if name.endswith(BACKUP_ENTRY_NAME) and arrives == "before the place is kept":
            take_entry()
        return put(client, name, content, **options)

    repository = Repository.open_or_create(place, RepositoryIdentity(7_000_000_000_000_000_001, 16 << 20, 18))
    monkeypatch.setattr(cloud_store, "PUT_TRIES", 1)
    monkeypatch.setattr(obstore, "put", put_unanswered)

    def take() -> None:
        with repository.lock_backups(), repository.catalogue.stage(FULL) as staged:
            staged.data.write("base/1/1", [b"content"])
            staged.data.sync()
            size_bytes = staged.data.contents().size_bytes
            staged.publish(entry_of(FULL, None, Lsn(1), Lsn(2), BackupTotals(), size_bytes))

    with pytest.raises(StoreUnavailable):
        take()
    if arrives == "late":
        take_entry()
    is_there = arrives == "before the place is kept"
    assert repository.catalogue.ids() == ([FULL] if is_there else [])
    assert len(list(place.store.list("packs/"))) == is_there
    assert repository.catalogue.unfinished() == []


def test_who_lost_its_lease_while_a_huge_entry_was_stored_has_no_backup(
    place: CloudPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts are put without a condition."""
    place.__dict__["leases"] = CloudLeases(place.client, place.address, LeaseTimes(1000.0, 0.0, 1000.0))
    other = CloudLeases(place.client, place.address, LeaseTimes(0.0, 0.0, 1000.0))
    repository = Repository.open_or_create(place, RepositoryIdentity(7_000_000_000_000_000_001, 16 << 20, 18))
    monkeypatch.setattr(staged_backup, "ENTRY_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(cloud_store, "PUT_AT_ONCE_BYTES", 0)
    put = obstore.put

    def put_slowly(client: Any, name: str, content: Any, **options: Any) -> Any:
        if name.endswith(BACKUP_ENTRY_NAME):
            with other.lock(BACKUP_LOCK_NAME, "another"):
                pass
        return put(client, name, content, **options)

    def take() -> None:
        with repository.lock_backups(), repository.catalogue.stage(FULL) as staged:
            staged.data.sync()
            monkeypatch.setattr(obstore, "put", put_slowly)
            staged.publish(entry_of(FULL, None, Lsn(1), Lsn(2), BackupTotals(), 0))

    with pytest.raises(LeaseLost):
        take()


def test_who_does_not_receive_any_more_deletes_no_partial(place: CloudPlace, tmp_path: Path) -> None:
    """A machine was stopped, and its clock with it: another receiver goes on from the partial."""
    by_its_clock = LeaseTimes(1000.0, 0.0, 1000.0)
    place.__dict__["leases"] = CloudLeases(place.client, place.address, by_its_clock)
    other = CloudLeases(place.client, place.address, LeaseTimes(0.0, 0.0, 1000.0))
    spool = LocalPlace(tmp_path)
    spool.make([WAL_DIRECTORY])
    identity = RepositoryIdentity(7_000_000_000_000_000_001, 1 << 20, 18)
    segment = "000000010000000000000001"
    partial = f"{WAL_DIRECTORY}/{partial_name(segment, Lsn((1 << 20) + 4096), '')}"
    place.store.put(partial, bytes(4096))
    spool.store.put(f"{WAL_DIRECTORY}/{segment}", bytes(1 << 20))
    objects = SpooledObjects(
        SpooledPlace(place, spool, identity), identity.geometry, Compression(CompressionMethod.NONE)
    )
    with place.leases.lock(RECEIVER_LOCK_NAME, "a receiver"):
        with other.lock(RECEIVER_LOCK_NAME, "another"), pytest.raises(LeaseLost):
            objects.store_segment(segment)
        assert place.store.exists(partial)
    # The segment is the same, whoever stores it.
    objects.store_segment(segment)
    assert not place.store.exists(partial)
