"""Chains of files, rebuilt in any way, are what they were: by copies, kernel copies, links, in parts, with holes."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from fix_formats import PACKED_FORMAT
from hypothesis import given
from hypothesis import strategies as st
from pgwal_process import assert_failed, run_pgwal
from restore.made_repository import Blocks, MadeRepository, block

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.file_table import FileTable, StoredFile
from pgwal.backup.incremental_file import FIXED_SIZE
from pgwal.disk import new_file
from pgwal.disk.copy_method import CopyMethod
from pgwal.disk.tree_writer import TreeWriter
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.rebuild_options import RebuildOptions
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.errors import TargetError
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.storage_format import PLAIN_FORMAT, StorageFormat

TABLE = "base/5/16384"
UNCHANGED = "base/5/16385"


def made_chain(
    directory: Path, seed: int, storage_format: StorageFormat = PLAIN_FORMAT
) -> tuple[MadeRepository, bytes]:
    """Make a chain of three backups of a table, and return what the table is at its end."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    content = [block(rng.choice("abcd")) if rng.random() < 0.8 else bytes(BLOCK_SIZE) for _ in range(200)]
    content[20:60] = [bytes(BLOCK_SIZE)] * 40
    made = MadeRepository(directory / "repo", storage_format=storage_format)
    made.add({TABLE: b"".join(content), UNCHANGED: b"".join(content[:70]), "pg_hba.conf": b"local all all trust\n"})
    for letter in "yz":
        blocks = {number: block(letter) for number in rng.sample([*range(20), *range(60, 200)], 30)}
        for number, new in blocks.items():
            content[number] = new
        made.add({TABLE: Blocks(200, blocks), UNCHANGED: Blocks(70, {}), "pg_hba.conf": b"local all all trust\n"})
    return made, b"".join(content)


@pytest.mark.parametrize("method", [CopyMethod.COPY, CopyMethod.COPY_FILE_RANGE, CopyMethod.LINK])
@pytest.mark.parametrize("small_buffer", [False, True], ids=["at-once", "small-buffer"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_every_way_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: CopyMethod, small_buffer: bool, jobs: int
) -> None:
    if small_buffer:
        monkeypatch.setattr(new_file, "WRITE_SIZE", 3 * BLOCK_SIZE)
    made, expected = made_chain(tmp_path, 7)
    unchanged = (made.data(made.ids[0]) / UNCHANGED).read_bytes()
    # Files that are synced are written past the page cache from a whole buffer on.
    options = RebuildOptions(method, jobs, sync=small_buffer)
    seen: list[tuple[int, int]] = []
    report = restore_backup(
        RestoreRequest(LocalPlace(made.path), "latest", tmp_path / "restored", "false", options=options),
        lambda done, total: seen.append((done, total)),
    )
    combine_backups(CombineRequest(LocalPlace(made.path), made.ids[-1], tmp_path / "combined", options=options))
    for place in ("restored", "combined"):
        assert (tmp_path / place / TABLE).read_bytes() == expected
        assert (tmp_path / place / UNCHANGED).read_bytes() == unchanged
    assert seen == sorted(seen)
    assert all(done <= total for done, total in seen)
    linked = (tmp_path / "restored" / UNCHANGED).samefile(made.data(made.ids[0]) / UNCHANGED)
    assert linked == (method is CopyMethod.LINK)
    assert report.linked_backups == ((made.ids[0],) if linked else ())
    # What people edit is never a link.
    assert (tmp_path / "restored/pg_hba.conf").stat().st_nlink == 1
    assert report.bytes_read == 0 or method is not CopyMethod.COPY or report.bytes_read < 2 * report.bytes_written


def test_each_block_is_read_once(tmp_path: Path, storage_format: StorageFormat) -> None:
    made, expected = made_chain(tmp_path, 3, storage_format)
    report = restore_backup(RestoreRequest(LocalPlace(made.path), "latest", tmp_path / "restored", "false"))
    small = sum((tmp_path / "restored" / name).stat().st_size for name in ("PG_VERSION", "pg_hba.conf"))
    small += (tmp_path / "restored/global/pg_control").stat().st_size + (
        tmp_path / "restored/backup_label"
    ).stat().st_size
    assert report.bytes_read == len(expected) + 70 * BLOCK_SIZE + small


def test_runs_of_zeros_become_holes(tmp_path: Path, storage_format: StorageFormat) -> None:
    made, expected = made_chain(tmp_path, 5, storage_format)
    restore_backup(RestoreRequest(LocalPlace(made.path), "latest", tmp_path / "restored", "false"))
    assert bytes(8 * BLOCK_SIZE) in expected
    (made.path / "probe").write_bytes(expected)
    written = (made.path / "probe").stat().st_blocks
    assert (tmp_path / "restored" / TABLE).stat().st_blocks < written


@pytest.mark.parametrize("small_buffer", [False, True], ids=["at-once", "small-buffer"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_packs_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_buffer: bool, jobs: int
) -> None:
    if small_buffer:
        monkeypatch.setattr(new_file, "WRITE_SIZE", 3 * BLOCK_SIZE)
    (tmp_path / "plain").mkdir()
    plain, expected = made_chain(tmp_path / "plain", 7)
    packed, _ = made_chain(tmp_path, 7, PACKED_FORMAT)
    options = RebuildOptions(jobs=jobs, sync=small_buffer)
    report = restore_backup(
        RestoreRequest(LocalPlace(packed.path), "latest", tmp_path / "restored", "false", options=options)
    )
    combine_backups(CombineRequest(LocalPlace(packed.path), packed.ids[-1], tmp_path / "combined", options=options))
    for place in ("restored", "combined"):
        assert (tmp_path / place / TABLE).read_bytes() == expected
        assert (tmp_path / place / UNCHANGED).read_bytes() == (plain.data(plain.ids[0]) / UNCHANGED).read_bytes()
    assert report.bytes_read < 2 * report.bytes_written


@pytest.mark.parametrize("method", ["--link", "--clone", "--copy-file-range"])
@pytest.mark.parametrize("command", ["restore", "combine"])
def test_what_lies_in_packs_can_be_copied_alone(tmp_path: Path, command: str, method: str) -> None:
    made, _ = made_chain(tmp_path, 1, PACKED_FORMAT)
    target = tmp_path / "target"
    words = ["restore", "-D", target] if command == "restore" else ["combine", made.ids[-1], "-o", target]
    outcome = run_pgwal(*words, "--repo", made.path, method)
    assert_failed(outcome, 1, f"backup {made.ids[-1]} has no files .* {method}", "--copy")
    assert not target.exists()


def supports_clones(directory: Path) -> bool:
    (directory / "probe").write_bytes(b"probe")
    try:
        with TreeWriter(directory).place("clone", 5) as clone:
            source = os.open(directory / "probe", os.O_RDONLY)
            clone.clone(source, directory / "probe")
    except TargetError:
        return False
    return True


def test_clone_where_the_file_system_cannot(tmp_path: Path) -> None:
    if supports_clones(tmp_path):
        pytest.skip("this file system can")
    made, _ = made_chain(tmp_path, 1)
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "target", "--clone")
    unsupported = {os.strerror(number) for number in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV)}
    assert_failed(outcome, 1, f'error while cloning file ".*" to ".*": ({"|".join(unsupported)})', "--copy")
    assert not (tmp_path / "target/global/pg_control").exists()


def test_clone_where_it_can(tmp_path: Path) -> None:
    if not supports_clones(tmp_path):
        pytest.skip("this file system cannot")
    made, expected = made_chain(tmp_path, 1)
    options = RebuildOptions(CopyMethod.CLONE)
    restore_backup(RestoreRequest(LocalPlace(made.path), "latest", tmp_path / "restored", "false", options=options))
    assert (tmp_path / "restored" / TABLE).read_bytes() == expected


def test_links_come_with_a_warning(tmp_path: Path) -> None:
    made, _ = made_chain(tmp_path, 1)
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "target", "--link")
    assert outcome.code == 0, outcome.stderr
    assert "destroys" in outcome.stderr
    assert made.ids[0] in outcome.stderr


def test_two_ways_at_once_are_a_usage_error(tmp_path: Path) -> None:
    outcome = run_pgwal("restore", "--repo", tmp_path, "-D", tmp_path / "target", "--clone", "-k")
    assert_failed(outcome, 2, "exclude each other")


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0."), min_size=1, max_size=8),
        st.tuples(
            st.sampled_from(["whole", "unchanged", "blocks", "blocks of an older pgwal"]),
            st.integers(13, (1 << 63) - 1),
            st.binary(min_size=16, max_size=16),
        ),
        max_size=50,
    )
)
def test_file_table_finds_what_it_was_given(files: dict[str, tuple[str, int, bytes]]) -> None:
    expected: dict[str, StoredFile] = {}
    listed = []
    for path, (kind, size, content) in files.items():
        digest, header_digest = content.hex(), content[::-1].hex()
        if kind == "whole":
            listed.append(BackupFile(path, size, size, 0o600, 0, digest))
            expected[path] = StoredFile(False, size, digest)
        elif kind == "unchanged":
            listed.append(BackupFile(path, 0, FIXED_SIZE, 0o600, 0, digest, 0, 0))
            # Such a file is nothing but its header.
            expected[path] = StoredFile(True, FIXED_SIZE, digest, digest)
        else:
            noted = header_digest if kind == "blocks" else None
            listed.append(BackupFile(path, 0, size, 0o600, 0, digest, 0, 1, noted))
            expected[path] = StoredFile(True, size, digest, noted)
    table = FileTable(listed)
    assert {path: table.find(path) for path in files} == expected
    assert {file.path: StoredFile.of(file) for file in listed} == expected
    assert table.find("another/path") is None


def test_no_tablespace_map_of_a_backup_is_restored(tmp_path: Path, storage_format: StorageFormat) -> None:
    """A server that finds one puts its links in place of those that the restore has made."""
    made = MadeRepository(tmp_path / "repo", storage_format=storage_format)
    made.add({"tablespace_map": b"16384 /elsewhere\n", "standby.signal": b""})
    restore_backup(RestoreRequest(LocalPlace(made.path), "latest", tmp_path / "restored", "false"))
    assert not (tmp_path / "restored/tablespace_map").exists()
    assert not (tmp_path / "restored/standby.signal").exists()
    assert (tmp_path / "restored/recovery.signal").exists()
