"""Blocks out of a file, in both forms of the module, against slices of what the file holds."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from array import array
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from module_forms import both_forms

import pgwal.datadir.block_reads

BLOCK_SIZE = 8192
FORMS = both_forms(pgwal.datadir.block_reads)


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
