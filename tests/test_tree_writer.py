"""Files are written as they were given: in chunks of any size or at their places, past the page cache, behind."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgwal.disk import new_file
from pgwal.disk.tree_writer import TreeWriter
from pgwal.errors import TargetError
from pgwal.relation import BLOCK_SIZE


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
def test_files_of_chunks_of_any_size_on_a_slow_disk(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    chunks = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    directory = tmp_path_factory.mktemp("chunks")
    with slow_disk():
        writer = TreeWriter(directory)
        assert writer.write("file", iter(chunks)) == sum(sizes)
        assert writer.write("reversed", reversed(chunks)) == sum(sizes)
    assert (directory / "file").read_bytes() == b"".join(chunks)
    assert (directory / "reversed").read_bytes() == b"".join(reversed(chunks))


def test_what_fails_while_a_file_is_written_waits_for_what_is_under_way(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(3 * BLOCK_SIZE)
        raise ZeroDivisionError

    with slow_disk(0.1) as written:
        with pytest.raises(ZeroDivisionError):
            TreeWriter(tmp_path).write("file", chunks())
        assert written == [3 * BLOCK_SIZE]


@pytest.mark.parametrize("fails_at", range(4))
def test_a_write_that_fails_behind_is_not_lost(tmp_path: Path, fails_at: int) -> None:
    with slow_disk(fails_at=fails_at):
        writer = TreeWriter(tmp_path)
        with pytest.raises(TargetError, match=f"cannot write {tmp_path / 'file'}: {os.strerror(errno.EDQUOT)}"):
            writer.write("file", [bytes(10 * BLOCK_SIZE)])
        content = random.Random(1).randbytes(10 * BLOCK_SIZE)
        writer.write("next", [content])
    assert (tmp_path / "next").read_bytes() == content


@contextmanager
def slow_disk(pause_s: float = 0.001, fails_at: int | None = None) -> Iterator[list[int]]:
    """Have each write take its time, and one of them fail; yields how many bytes each wrote."""
    written: list[int] = []
    count = 0
    pwrite = os.pwrite

    def writing(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal count
        count += 1
        if count - 1 == fails_at:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        time.sleep(pause_s)
        written.append(pwrite(descriptor, data, offset))
        return written[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "pwrite", writing)
        patched.setattr(new_file, "WRITE_SIZE", 3 * BLOCK_SIZE)
        yield written


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
