"""Chains of files, rebuilt in any way, are what they were: by copies, kernel copies, links, in parts, with holes."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pgwal_process import assert_failed, run_pgwal
from restore.made_repository import Blocks, MadeRepository, block

from pgwal.backup.entry import BackupFile
from pgwal.backup.file_table import FileTable, StoredFile
from pgwal.datadir import new_file
from pgwal.datadir.copy_method import CopyMethod
from pgwal.datadir.writer import TreeWriter
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.rebuild import RebuildOptions
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.errors import TargetError
from pgwal.relation import BLOCK_SIZE

TABLE = "base/5/16384"
UNCHANGED = "base/5/16385"


def made_chain(directory: Path, seed: int) -> tuple[MadeRepository, bytes]:
    """Make a chain of three backups of a table, and return what the table is at its end."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    content = [block(rng.choice("abcd")) if rng.random() < 0.8 else bytes(BLOCK_SIZE) for _ in range(200)]
    content[20:60] = [bytes(BLOCK_SIZE)] * 40
    made = MadeRepository(directory / "repo")
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
        RestoreRequest(made.path, "latest", tmp_path / "restored", "false", options=options),
        lambda done, total: seen.append((done, total)),
    )
    combine_backups(CombineRequest(made.path, made.ids[-1], tmp_path / "combined", options=options))
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


def test_each_block_is_read_once(tmp_path: Path) -> None:
    made, expected = made_chain(tmp_path, 3)
    report = restore_backup(RestoreRequest(made.path, "latest", tmp_path / "restored", "false"))
    small = sum((tmp_path / "restored" / name).stat().st_size for name in ("PG_VERSION", "pg_hba.conf"))
    small += (tmp_path / "restored/global/pg_control").stat().st_size + (
        tmp_path / "restored/backup_label"
    ).stat().st_size
    assert report.bytes_read == len(expected) + 70 * BLOCK_SIZE + small


def test_runs_of_zeros_become_holes(tmp_path: Path) -> None:
    made, expected = made_chain(tmp_path, 5)
    restore_backup(RestoreRequest(made.path, "latest", tmp_path / "restored", "false"))
    assert bytes(8 * BLOCK_SIZE) in expected
    (made.path / "probe").write_bytes(expected)
    written = (made.path / "probe").stat().st_blocks
    assert (tmp_path / "restored" / TABLE).stat().st_blocks < written


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.tuples(st.sampled_from([0, 1, 255]), st.integers(1, 150_000)), max_size=6))
def test_placed_file_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]]
) -> None:
    content = b"".join(bytes([value]) * length for value, length in pieces)
    directory = tmp_path_factory.mktemp("placed")
    writer = TreeWriter(directory)
    with writer.place("file", len(content)) as file:
        for at in reversed(range(0, len(content), 100_000)):
            file.write(memoryview(content)[at : at + 100_000], at)
    assert (directory / "file").read_bytes() == content


@pytest.fixture
def is_direct() -> Iterator[set[bool]]:
    """Whether what is written was ever on its way past the page cache."""
    seen = set[bool]()
    with pytest.MonkeyPatch.context() as patched:
        pwrite = os.pwrite

        def noting(descriptor: int, data: memoryview, offset: int) -> int:
            written = pwrite(descriptor, data, offset)
            seen.add(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
            return written

        patched.setattr(os, "pwrite", noting)
        patched.setattr(new_file, "WRITE_SIZE", 3 * BLOCK_SIZE)
        yield seen


@given(sizes=st.lists(st.integers(0, 5 * BLOCK_SIZE) | st.sampled_from([BLOCK_SIZE, 3 * BLOCK_SIZE]), max_size=6))
def test_file_of_chunks_of_any_size(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    chunks = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    directory = tmp_path_factory.mktemp("chunks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(new_file, "WRITE_SIZE", 3 * BLOCK_SIZE)
        assert TreeWriter(directory).write("file", iter(chunks)) == sum(sizes)
    assert (directory / "file").read_bytes() == b"".join(chunks)


def test_large_files_go_past_the_page_cache_and_their_odd_ends_through_it(tmp_path: Path, is_direct: set[bool]) -> None:
    if not takes_direct_writes(tmp_path):
        pytest.skip("this file system cannot")
    content = random.Random(1).randbytes(10 * BLOCK_SIZE + 17)
    writer = TreeWriter(tmp_path)
    writer.write("written", [content[:99], content[99:]])
    assert True in is_direct
    is_direct.clear()
    with writer.place("placed", len(content)) as file:
        buffer = new_file.write_buffer()
        for at in range(0, len(content), len(buffer)):
            part = content[at : at + len(buffer)]
            buffer[: len(part)] = part
            file.write(buffer[: len(part)], at)
    assert True in is_direct
    is_direct.clear()
    # Not where a page of memory starts.
    with writer.place("odd", len(content)) as file:
        file.write(memoryview(bytearray(content))[3:], 3)
    assert (tmp_path / "written").read_bytes() == (tmp_path / "placed").read_bytes() == content
    assert (tmp_path / "odd").read_bytes() == bytes(3) + content[3:]


def test_what_is_not_to_be_durable_and_what_is_small_goes_through_the_cache(
    tmp_path: Path, is_direct: set[bool]
) -> None:
    TreeWriter(tmp_path / "hasty", durable=False).write("file", [bytes(10 * BLOCK_SIZE)])
    TreeWriter(tmp_path / "small").write("file", [bytes(2 * BLOCK_SIZE)])
    assert is_direct == {False}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_only_seems_to_take_direct_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    if not takes_direct_writes(tmp_path):
        pytest.skip("this file system does not seem to, either")
    pwrite = os.pwrite

    def refusing(descriptor: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    monkeypatch.setattr(new_file, "WRITE_SIZE", 3 * BLOCK_SIZE)
    content = random.Random(1).randbytes(10 * BLOCK_SIZE)
    TreeWriter(tmp_path).write("file", [content])
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("call", ["pwrite", "close"])
def test_what_the_file_system_refuses_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    original = getattr(os, call)
    armed = True

    def refusing(descriptor: int, *rest: object) -> object:
        nonlocal armed
        result = original(descriptor, *rest)
        if armed:
            armed = False
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return result

    monkeypatch.setattr(os, call, refusing)
    with pytest.raises(TargetError, match=f"cannot write {tmp_path / 'file'}: {os.strerror(errno.EDQUOT)}"):
        TreeWriter(tmp_path).write("file", [b"content"])


def takes_direct_writes(directory: Path) -> bool:
    probe = os.open(directory / "direct", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.fcntl(probe, fcntl.F_SETFL, os.O_DIRECT)
        os.pwrite(probe, new_file.write_buffer(), 0)
    except OSError:
        return False
    finally:
        os.close(probe)
    return True


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
    restore_backup(RestoreRequest(made.path, "latest", tmp_path / "restored", "false", options=options))
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
        st.tuples(st.booleans(), st.integers(0, (1 << 63) - 1), st.binary(min_size=16, max_size=16)),
        max_size=50,
    )
)
def test_file_table_finds_what_it_was_given(files: dict[str, tuple[bool, int, bytes]]) -> None:
    table = FileTable(
        BackupFile(path, size, size, 0o600, 0, digest.hex(), *((0, 0) if incremental else ()))
        for path, (incremental, size, digest) in files.items()
    )
    for path, (incremental, size, digest) in files.items():
        assert table.find(path) == StoredFile(incremental, size, digest.hex())
    assert table.find("another/path") is None
