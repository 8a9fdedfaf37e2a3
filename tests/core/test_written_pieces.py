"""Files that are written of pieces: what is in them is what was yielded, whoever overwrites a view afterwards."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgwal.aligned_buffer import aligned_buffer
from pgwal.disk.written_pieces import write_pieces

MIB = 1 << 20
lengths = st.lists(st.tuples(st.sampled_from([0, 1, 4095, 4096, 70_000, MIB, MIB + 513]), st.booleans()), max_size=6)


@settings(max_examples=60, deadline=None)
@given(lengths)
def test_a_file_holds_what_was_yielded(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("written") / "file"
    expected = bytearray()
    buffer = aligned_buffer(2 * MIB)

    def pieces() -> Iterator[bytes | memoryview]:
        for number, (length, is_view) in enumerate(lengths):
            content = bytes([number + 1]) * length
            expected.extend(content)
            if is_view:
                buffer[:length] = content
                yield buffer[:length]
                buffer[:length] = bytes(length)
            else:
                yield content

    written_to(path, pieces())
    assert path.read_bytes() == expected


def test_more_pieces_than_one_call_takes(tmp_path: Path) -> None:
    content = [b"%d," % number for number in range(5000)]
    written_to(tmp_path / "file", iter(content))
    assert (tmp_path / "file").read_bytes() == b"".join(content)


@pytest.mark.parametrize("is_view", [False, True])
def test_what_does_not_fit_is_an_error(tmp_path: Path, is_view: bool) -> None:
    """A call that writes a part is not the end of it: the next one says why."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    content = memoryview(bytes(2 * MIB)) if is_view else bytes(2 * MIB)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB + 4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            written_to(tmp_path / "file", iter((content,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "file").stat().st_size == MIB + 4096


def written_to(path: Path, pieces: Iterator[bytes | memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        write_pieces(descriptor, pieces)
    finally:
        os.close(descriptor)
