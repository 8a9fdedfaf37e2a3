"""Many small files in one call, in both forms of the module, against the same files read and written one by one."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import tempfile
from array import array
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from module_forms import both_forms

import pgwal.disk.small_files
from pgwal.backup.source import Unread

BLOCK_SIZE = 8192
FORMS = both_forms(pgwal.disk.small_files)
MODE = 0o600

# The size of a file, None for none, and what is wanted of it: a size, or blocks; and whether the size is but a guess.
files = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 3 * BLOCK_SIZE)),
        st.one_of(st.integers(0, 4 * BLOCK_SIZE), st.sets(st.integers(0, 5)).map(sorted)),
        st.booleans(),
    ),
    max_size=6,
)


@pytest.mark.parametrize("module", FORMS)
@given(files=files)
def test_each_file_gives_what_is_wanted_of_it(
    module: ModuleType, files: list[tuple[int | None, int | list[int], bool]]
) -> None:
    paths, sizes, block_numbers, to_end, expected = [], [], [], [], []
    with tempfile.TemporaryDirectory() as directory:
        for number, (size, wanted, is_whole) in enumerate(files):
            path = Path(directory) / f"{number}\udcff"
            content = None if size is None else random.Random(number).randbytes(size)
            if content is not None:
                path.write_bytes(content)
            paths.append(str(path))
            to_end.append(is_whole and isinstance(wanted, int))
            padded = (content or b"").ljust(8 * BLOCK_SIZE, b"\0")
            if isinstance(wanted, int):
                sizes.append(wanted)
                block_numbers.append(None)
                found = padded[:wanted]
                if is_whole and content is not None:
                    found = content if len(content) <= wanted else Unread.LONGER
            else:
                sizes.append(BLOCK_SIZE * len(wanted))
                block_numbers.append(array("I", wanted))
                found = b"".join(padded[n * BLOCK_SIZE : (n + 1) * BLOCK_SIZE] for n in wanted)
            expected.append(None if content is None else found)
        assert module.read_small_files(paths, sizes, block_numbers, to_end) == expected


@pytest.mark.parametrize("module", FORMS)
def test_a_file_that_cannot_be_read_is_named(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    (tmp_path / "directory").mkdir()
    paths = [str(tmp_path / name) for name in ("there", "missing", "directory", "there")]
    with pytest.raises(OSError, match=os.strerror(errno.EISDIR)) as caught:
        module.read_small_files(paths, [1] * 4, [None] * 4, [False] * 4)
    assert (caught.value.errno, caught.value.filename) == (errno.EISDIR, paths[2])


@pytest.mark.parametrize("module", FORMS)
@given(contents=st.lists(st.binary(max_size=40), max_size=5))
def test_files_hold_what_was_written(module: ModuleType, contents: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        paths = [f"{directory}/{number}\udcff" for number in range(len(contents))]
        module.write_small_files(paths, contents, MODE)
        assert [Path(path).read_bytes() for path in paths] == contents
        assert all(Path(path).stat().st_mode & 0o777 == MODE for path in paths)


@pytest.mark.parametrize("module", FORMS)
def test_no_file_is_written_over_and_none_through_a_link(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"before")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("there", "link"):
        paths = [str(tmp_path / f"first{name}"), str(tmp_path / name), str(tmp_path / f"last{name}")]
        with pytest.raises(module.FileNotCreated) as caught:
            module.write_small_files(paths, [b"a", b"b", b"c"], MODE)
        assert (caught.value.errno, caught.value.filename) == (errno.EEXIST, paths[1])
        assert (tmp_path / f"first{name}").read_bytes() == b"a"
        assert not (tmp_path / f"last{name}").exists()
    assert (tmp_path / "there").read_bytes() == b"before"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("module", FORMS)
def test_nothing_is_read_through_a_link(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links") as caught:
        module.read_small_files([str(tmp_path / "link")], [6], [None], [True])
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(tmp_path / "link"))


@pytest.mark.parametrize("module", FORMS)
def test_what_does_not_fit_is_no_success(module: ModuleType, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(module.FileNotWritten) as caught:
            module.write_small_files([str(tmp_path / "a"), str(tmp_path / "b")], [bytes(100), bytes(101)], MODE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, held)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "b"))


@pytest.mark.parametrize("module", FORMS)
def test_what_cannot_be_synced_is_named(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    paths = [str(tmp_path / "there"), str(tmp_path / "missing")]
    module.sync_files(paths[:1])
    with pytest.raises(FileNotFoundError) as caught:
        module.sync_files(paths)
    assert caught.value.filename == paths[1]
