"""What ``restore --dry-run`` says of the room it takes and of gaps, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.made_repository import SEGMENT_SIZE, Blocks, MadeRepository, block

from pgwal.backup.backup_file import BackupFile, encode_file
from pgwal.backup.entry_document import decode_entry, encode_entry
from pgwal.disk.copy_method import CopyMethod
from pgwal.engine.restore_room import room_needed

PETABYTE = 1 << 50


def file(path: str, size: int, *, incremental: bool = False) -> BackupFile:
    counts = (1, 0) if incremental else ()
    return BackupFile(path, size, size, 0o600, 1_800_000_000, "0" * 32, *counts)


FILES = [
    file("PG_VERSION", 3),
    file("base/5/16384", 3 << 20),
    file("base/5/16385", 2 << 20, incremental=True),
    file("pg_tblspc/16400/PG_18_202506291/5/16390", 1 << 20),
    file("pg_tblspc/16400/PG_18_202506291/5/16391", 0),
]


@pytest.mark.parametrize(
    ("method", "data_bytes", "tablespace_bytes"),
    [
        (CopyMethod.COPY, 5 << 20, 1 << 20),
        (CopyMethod.COPY_FILE_RANGE, 5 << 20, 1 << 20),
        # A file that is no relation's is never linked, and what is patched together always written.
        (CopyMethod.LINK, 2 << 20, 0),
        (CopyMethod.CLONE, 2 << 20, 0),
    ],
)
def test_room_of_each_place(tmp_path: Path, method: CopyMethod, data_bytes: int, tablespace_bytes: int) -> None:
    places = tmp_path / "not" / "yet" / "there", tmp_path / "space"
    (room,) = room_needed(FILES, places[0], {16400: places[1]}, method)
    data, space = room.places
    block_size = 0 if method is CopyMethod.CLONE else os.statvfs(tmp_path).f_frsize
    assert (data.directory, data.tablespace_oid, data.size_bytes) == (places[0], None, data_bytes + block_size)
    assert (space.directory, space.tablespace_oid, space.size_bytes) == (places[1], 16400, tablespace_bytes)
    assert room.needed_bytes == data.size_bytes + space.size_bytes
    assert room.is_enough
    assert list(tmp_path.iterdir()) == []


def test_each_file_system_has_its_own_room(tmp_path: Path) -> None:
    other = Path("/proc")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system")
    rooms = room_needed(FILES, tmp_path, {16400: other}, CopyMethod.COPY)
    assert [[place.tablespace_oid for place in room.places] for room in rooms] == [[None], [16400]]
    # There is no room in /proc.
    assert [room.is_enough for room in rooms] == [True, False]


def listing(directory: Path) -> list[tuple[str, int, int]]:
    found = [(path, path.lstat()) for path in directory.rglob("*")]
    return sorted((str(path), status.st_mtime_ns, status.st_size) for path, status in found)


def test_a_forecast_writes_nothing(tmp_path: Path) -> None:
    made = MadeRepository(tmp_path / "repo")
    full = made.add({"base/5/16384": block("a") * 3})
    incremental = made.add({"base/5/16384": Blocks(3, {1: block("b")})}, tablespaces={16400: "/srv/space"})
    before = listing(tmp_path)
    restore = ["restore", "--repo", made.path, "-D", tmp_path / "data", "-T", f"/srv/space={tmp_path / 'space'}"]
    document = json.loads(succeed(*restore, "--dry-run", "--json"))
    assert (document["backup"], document["chain"]) == (incremental, [incremental, full])
    assert (document["replay"]["segment_count"], document["replay"]["gap"]) == (1, None)
    (room,) = document["file_systems"]
    assert [place["tablespace_oid"] for place in room["places"]] == [None, 16400]
    assert room["enough"]
    printed = succeed(*restore, "--dry-run")
    assert f"It builds on {full}." in printed
    assert "there is room" in printed
    assert listing(tmp_path) == before
    # As the restore itself would end.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "here").touch()
    assert_failed(run_pgwal(*restore, "--dry-run"), 1, "data is not empty", "empty directory")


def test_there_is_no_room(tmp_path: Path) -> None:
    made = MadeRepository(tmp_path / "repo")
    backup = made.add({"base/5/16384": block("a")})
    entry = made.path / "backups" / backup / "backup.json"
    head, listed = decode_entry(iter(entry.read_bytes().splitlines(keepends=True)))
    files = list(listed)
    huge = [each._replace(size_bytes=PETABYTE, stored_size_bytes=PETABYTE) for each in files if "16384" in each.path]
    small = [each for each in files if "16384" not in each.path]
    totals = head.totals._replace(
        size_bytes=head.totals.size_bytes - 8192 + PETABYTE,
        stored_size_bytes=head.totals.stored_size_bytes - 8192 + PETABYTE,
    )
    lines = encode_entry(replace(head, totals=totals), map(encode_file, sorted([*small, *huge])))
    entry.write_bytes(b"".join(lines))
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "data", "--dry-run")
    assert_failed(outcome, 1, f"no room for backup {backup}", "Free some space")
    assert re.search(r"1024 TB of .* that are free: there is not that room", outcome.stdout), outcome.stdout
    document = json.loads(run_pgwal("restore", "--repo", made.path, "-D", "/x/y", "--dry-run", "--json").stdout)
    assert [room["enough"] for room in document["file_systems"]] == [False]


def test_a_gap_is_said_before(tmp_path: Path) -> None:
    made = MadeRepository(tmp_path / "repo")
    made.add({})
    made.add({})
    with (made.path / "wal" / "000000010000000000000005").open("wb") as segment:
        segment.truncate(SEGMENT_SIZE)
    restore = ["restore", "--repo", made.path, "-D", tmp_path / "data", "--dry-run"]
    assert_failed(
        run_pgwal(*restore), 4, "000000010000000000000003 to 000000010000000000000004 are missing", "--to-gap"
    )
    gap = json.loads(succeed(*restore, "--to-gap", "--json"))["replay"]["gap"]
    assert (gap["start_lsn"], gap["end_lsn"], gap["timeline"]) == ("0/300000", "0/500000", 1)
    assert "Recovery ends at 0/300000: WAL segments" in succeed(*restore, "--to-gap")
    elsewhere = json.loads(succeed(*restore, "--restore-command", "false", "--json"))
    assert elsewhere["replay"] is None
    assert not (tmp_path / "data").exists()
