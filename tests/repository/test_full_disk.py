"""Wherever a repository is refused more room, the error says so: here by the limit on the size of a file."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgwal.backup.backup_file import BackupFile
from pgwal.errors import StorageFull
from pgwal.repository.backup_data import create_backup_data
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.staged_backup import StagedBackup

LIMIT = 1 << 20
TOO_MUCH = bytes(LIMIT + 8192)


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def put(place: LocalPlace) -> None:
    place.store.put("wal/object", [TOO_MUCH])


def preallocate(place: LocalPlace) -> None:
    place.spool.preallocate("wal/segment", len(TOO_MUCH))


def preallocate_zeroed(place: LocalPlace) -> None:
    place.spool.preallocate("wal/segment", len(TOO_MUCH), zeroed=True)


def write_data(place: LocalPlace) -> None:
    create_backup_data(place, "backups/one").write("base/5/1", [TOO_MUCH])


def write_small_data(place: LocalPlace) -> None:
    create_backup_data(place, "backups/one").write_small([("base/5/1", b"1"), ("base/5/2", TOO_MUCH)])


def create_data(place: LocalPlace) -> None:
    with create_backup_data(place, "backups/one").create("backup_manifest") as file:
        file.write(TOO_MUCH)


def note_files(place: LocalPlace) -> None:
    with StagedBackup(place, "20261122T101530Z_full") as staged:
        for number in range(20_000):
            staged.add_file(BackupFile(f"base/5/{number}", 0, 0, 0o600, 0, "0" * 32))


@pytest.mark.parametrize(
    "act", [put, preallocate, preallocate_zeroed, write_data, write_small_data, create_data, note_files]
)
def test_a_full_disk_is_told_as_one(tmp_path: Path, act: Callable[[LocalPlace], None]) -> None:
    place = LocalPlace(tmp_path)
    place.make(["wal", "backups"])
    with room_for(LIMIT), pytest.raises(StorageFull, match=f"{tmp_path}/.*: File too large") as raised:
        act(place)
    assert str(raised.value.hint).startswith("Free some space")
