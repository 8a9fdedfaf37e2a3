"""Blocks and parts out of files, in both forms of the module, against slices of what the files hold."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from array import array
from contextlib import ExitStack
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from module_forms import both_forms

import pgwal.disk.block_reads

BLOCK_SIZE = 8192
FORMS = both_forms(pgwal.disk.block_reads)


@pytest.mark.parametrize("module", FORMS)
@given(size=st.integers(0, 20 * BLOCK_SIZE), numbers=st.sets(st.integers(0, 24)))
def test_blocks_are_those_of_the_file_and_zeros_behind_it(module: ModuleType, size: int, numbers: set[int]) -> None:
    content = random.Random(size).randbytes(size)
    padded = content.ljust(25 * BLOCK_SIZE, b"\0")
    expected = b"".join(padded[n * BLOCK_SIZE : (n + 1) * BLOCK_SIZE] for n in sorted(numbers))
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        assert module.read_blocks(file.fileno(), array("I", sorted(numbers))) == expected


@pytest.mark.parametrize("module", FORMS)
def test_blocks_far_behind_the_end(module: ModuleType) -> None:
    with tempfile.TemporaryFile() as file:
        far = array("I", [0, 0xFFFFFFFE, 0xFFFFFFFF])
        assert module.read_blocks(file.fileno(), far) == bytes(3 * BLOCK_SIZE)


@pytest.mark.parametrize("module", FORMS)
def test_what_the_system_refuses(module: ModuleType) -> None:
    descriptor = os.open(os.curdir, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
            module.read_blocks(descriptor, array("I", [0]))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("module", FORMS)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=3),
    parts=st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 310), st.integers(0, 100)), max_size=20),
    room=st.integers(0, 10),
)
def test_parts_are_those_of_the_files_up_to_one_that_is_cut_off(
    module: ModuleType, sizes: list[int], parts: list[tuple[int, int, int]], room: int
) -> None:
    contents = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    parts = [(min(number, len(sizes) - 1), offset, length) for number, offset, length in parts]
    expected = b""
    for number, offset, length in parts:
        expected += bytes(length) if number < 0 else contents[number][offset : offset + length]
        if number >= 0 and offset + length > sizes[number] and length:
            break
    size = sum(length for _, _, length in parts)
    target = bytearray(b"\xaa" * (size + room))
    with ExitStack() as opened:
        files = [opened.enter_context(tempfile.TemporaryFile()) for _ in contents]
        for file, content in zip(files, contents, strict=True):
            file.write(content)
            file.flush()
        done = module.read_parts(
            memoryview(target),
            array("i", [-1 if number < 0 else files[number].fileno() for number, _, _ in parts]),
            array("Q", [offset for _, offset, _ in parts]),
            array("I", [length for _, _, length in parts]),
        )
    assert done == len(expected)
    assert target[:done] == expected
    assert target[done:] == b"\xaa" * (size + room - done)


@pytest.mark.parametrize("module", FORMS)
def test_parts_that_the_system_refuses(module: ModuleType) -> None:
    descriptor = os.open(os.curdir, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
            module.read_parts(memoryview(bytearray(9)), array("i", [descriptor]), array("Q", [0]), array("I", [9]))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("module", FORMS)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=3),
    parts=st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 310), st.integers(0, 100)), max_size=20),
    room=st.integers(-1, 10),
)
def test_parts_of_what_is_in_memory(
    module: ModuleType, sizes: list[int], parts: list[tuple[int, int, int]], room: int
) -> None:
    contents = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    parts = [(min(number, len(sizes) - 1), offset, length) for number, offset, length in parts]
    whole = [bytes(length) if at < 0 else contents[at][offset : offset + length] for at, offset, length in parts]
    expected = b"".join(whole)
    size = sum(length for _, _, length in parts)
    target = bytearray(b"\xaa" * max(0, size + room))
    arguments = (
        memoryview(target),
        [None if number < 0 else contents[number] for number, _, _ in parts],
        array("Q", [offset for _, offset, _ in parts]),
        array("I", [length for _, _, length in parts]),
    )
    is_possible = all(number < 0 or offset + length <= len(contents[number]) for number, offset, length in parts)
    if not is_possible or size > len(target):
        with pytest.raises(ValueError, match="part"):
            module.copy_parts(*arguments)
        assert target == b"\xaa" * len(target)
        return
    assert module.copy_parts(*arguments) == size
    assert target == expected.ljust(len(target), b"\xaa")
