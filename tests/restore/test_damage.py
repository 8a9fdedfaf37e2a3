"""Damage in older members of a chain: what is copied is checked where it lies, and nothing is made of it."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from core.test_page import build_page
from hypothesis import given, settings
from hypothesis import strategies as st
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.made_repository import Blocks, Content, MadeRepository

from pgwal.backup.exclusion import INCOMPLETE_NAME
from pgwal.disk.copy_method import CopyMethod
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.rebuild_options import RebuildOptions
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.errors import MissingPriorBackup, PgwalError
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.local_place import LocalPlace

TABLE = "base/5/16384"
SECOND_FILE = "base/5/16385.1"
UNCHANGED = "base/5/16386"
INCREMENTAL = "base/5/INCREMENTAL.16384"

BLOCK_COUNT = 12
FIRST_CHANGED = (2, 5, 9)
THEN_CHANGED = (3, 5, 10)


def pages(seed: int, first_block: int = 0, count: int = BLOCK_COUNT) -> list[bytes]:
    return [bytes(build_page(seed + number, first_block + number)) for number in range(count)]


def make_chain(
    directory: Path, *, noted: bool = True, spoilt: int | None = None
) -> tuple[MadeRepository, dict[str, bytes]]:
    """Make a chain of three backups, and return what its files are at the end; the server itself spoilt one block."""
    made = MadeRepository(directory / "repo", data_checksums=True, notes_header_digests=noted)
    content = pages(1)
    content[7] = bytes(BLOCK_SIZE)
    if spoilt is not None:
        content[spoilt] = content[spoilt][:-1] + bytes([content[spoilt][-1] ^ 1])
    second = pages(40, 131072)
    unchanged = b"".join(pages(80))
    made.add({TABLE: b"".join(content), SECOND_FILE: b"".join(second), UNCHANGED: unchanged})
    for seed, numbers in ((100, FIRST_CHANGED), (200, THEN_CHANGED)):
        blocks = {number: bytes(build_page(seed + number, number)) for number in numbers}
        for number, new in blocks.items():
            content[number] = new
        files: dict[str, Content] = {TABLE: Blocks(BLOCK_COUNT, blocks), UNCHANGED: Blocks(BLOCK_COUNT, {})}
        second[1] = bytes(build_page(seed, 131073))
        files[SECOND_FILE] = Blocks(BLOCK_COUNT, {1: second[1]})
        made.add(files)
    return made, {TABLE: b"".join(content), SECOND_FILE: b"".join(second), UNCHANGED: unchanged}


def assert_right(directory: Path, expected: dict[str, bytes]) -> None:
    assert {path: (directory / path).read_bytes() for path in expected} == expected


def flip(path: Path, at: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(content)


def assert_refused(made: MadeRepository, cause: str, *args: str) -> None:
    """Check that restore and combine fail for this cause, and leave nothing that could be started."""
    for command, option in (("restore", "-D"), ("combine", "-o")):
        target = made.path.parent / command
        words = [] if command == "restore" else [made.ids[-1]]
        assert_failed(
            run_pgwal(command, "--repo", made.path, option, target, *words, *args), 1, cause, "another backup"
        )
        assert not (target / "global/pg_control").exists()
        assert (target / INCOMPLETE_NAME).exists()


def test_flipped_byte_in_the_full_backup(tmp_path: Path) -> None:
    made, _ = make_chain(tmp_path)
    flip(made.data(made.ids[0]) / TABLE, 4 * BLOCK_SIZE + 5000)
    assert_refused(
        made, f"{TABLE} of backup {made.ids[0]} is damaged: the page of block 4 is not what its checksum says"
    )


def restoring(made: MadeRepository) -> PgwalError:
    """Return the error with which a restore ends."""
    with pytest.raises(PgwalError) as caught:
        restore_backup(RestoreRequest(LocalPlace(made.path), "latest", made.path.parent / "target", "false"))
    return caught.value


def test_facts_of_damage(tmp_path: Path) -> None:
    made, _ = make_chain(tmp_path)
    flip(made.data(made.ids[1]) / INCREMENTAL, BLOCK_SIZE + 2 * BLOCK_SIZE + 17)
    place = {"backup_id": made.ids[1], "path": str(made.data(made.ids[1]) / INCREMENTAL)}
    assert restoring(made).facts == {**place, "offset_bytes": 3 * BLOCK_SIZE}


def test_facts_of_what_is_cut_off_or_missing(tmp_path: Path) -> None:
    made, _ = make_chain(tmp_path)
    path = made.data(made.ids[0]) / TABLE
    place = {"backup_id": made.ids[0], "path": str(path)}
    path.write_bytes(path.read_bytes()[:-1])
    sizes = {"size_bytes": BLOCK_COUNT * BLOCK_SIZE - 1, "expected_size_bytes": BLOCK_COUNT * BLOCK_SIZE}
    assert restoring(made).facts == {**place, **sizes}
    shutil.rmtree(tmp_path / "target")
    path.unlink()
    error = restoring(made)
    assert isinstance(error, MissingPriorBackup)
    assert error.facts == place


def test_page_of_a_second_file(tmp_path: Path) -> None:
    made, _ = make_chain(tmp_path)
    flip(made.data(made.ids[0]) / SECOND_FILE, 6 * BLOCK_SIZE + 5000)
    assert_refused(made, f"{SECOND_FILE} of backup {made.ids[0]} is damaged: the page of block 6")


def test_flipped_byte_in_a_block_of_an_older_incremental(tmp_path: Path) -> None:
    made, _ = make_chain(tmp_path)
    # Blocks 2 and 9 of it are used, 5 is newer in the last one.
    path = made.data(made.ids[1]) / INCREMENTAL
    flip(path, BLOCK_SIZE + 2 * BLOCK_SIZE + 17)
    assert_refused(made, f"{INCREMENTAL} of backup {made.ids[1]} is damaged: the page of block 9")


@pytest.mark.parametrize("at", [4, 8, 12, 15], ids=["count", "length", "number", "number-high"])
@pytest.mark.parametrize("noted", [True, False], ids=["noted", "entry-of-an-older-pgwal"])
def test_flipped_bit_in_the_header_of_an_older_incremental(tmp_path: Path, at: int, noted: bool) -> None:
    made, _ = make_chain(tmp_path, noted=noted)
    flip(made.data(made.ids[1]) / INCREMENTAL, at)
    assert_refused(made, f"{made.ids[1]}")


def test_bits_that_hide_a_page_do_not_hide_it_here(tmp_path: Path) -> None:
    """An LSN of the future, or a page that says that it is new: a backup passes over those."""
    made, _ = make_chain(tmp_path)
    path = made.data(made.ids[0]) / TABLE
    stored = path.read_bytes()
    flip(path, 4 * BLOCK_SIZE + 3, 0x80)
    assert_refused(made, "the page of block 4 is not what its checksum says")
    for command in ("restore", "combine"):
        shutil.rmtree(tmp_path / command)
    path.write_bytes(stored[: 6 * BLOCK_SIZE + 14] + b"\0\0" + stored[6 * BLOCK_SIZE + 16 :])
    assert_refused(made, "the page of block 6 is not what its checksum says")


def test_page_that_the_server_had_so_is_restored_with_a_warning(tmp_path: Path) -> None:
    """What was bad when it was backed up makes no backup unrestorable."""
    made, expected = make_chain(tmp_path, spoilt=4)
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "restored")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.count("pgwal: warning: checksum verification failed") == 1
    assert f"in file {TABLE}, block 4" in outcome.stderr
    assert made.ids[0] in outcome.stderr
    assert_right(tmp_path / "restored", expected)
    # Damage in the same file is found all the same.
    flip(made.data(made.ids[0]) / TABLE, 6 * BLOCK_SIZE + 5000)
    assert_refused(made, "is damaged: the page of block 4")


@pytest.mark.parametrize("method", ["--copy-file-range", "--link"])
def test_headers_are_checked_whatever_way_files_are_copied(tmp_path: Path, method: str) -> None:
    made, expected = make_chain(tmp_path)
    succeed("restore", "--repo", made.path, "-D", tmp_path / "right", method)
    assert_right(tmp_path / "right", expected)
    for number in (1, 2):
        flip(made.data(made.ids[number]) / INCREMENTAL, 12)
        assert_refused(made, f"{INCREMENTAL} of backup {made.ids[number]} is damaged: the digest of its header", method)
        for command in ("restore", "combine"):
            shutil.rmtree(tmp_path / command)
        flip(made.data(made.ids[number]) / INCREMENTAL, 12)


@dataclass(frozen=True, repr=False)
class Chain:
    """A chain, and what its files are at the end: too much to print."""

    made: MadeRepository
    expected: dict[str, bytes]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(*make_chain(tmp_path_factory.mktemp("chain")))


@settings(max_examples=150, deadline=None)
@given(member=st.integers(0, 2), seed=st.integers(0, 1 << 32), is_copied=st.booleans())
def test_random_flips_are_found_or_do_not_matter(chain: Chain, member: int, seed: int, is_copied: bool) -> None:
    """One bit of any file of any backup of a chain: the restored files are right, or there are none."""
    made, expected = chain.made, chain.expected
    rng = random.Random(seed)
    stored = sorted(path for path in made.data(made.ids[member]).rglob("*") if path.is_file())
    # What is linked is not read.
    path = rng.choice([path for path in stored if is_copied or path.name != Path(UNCHANGED).name])
    right = path.read_bytes()
    # The first bytes of pages and of headers matter most.
    at = rng.choice([rng.randrange(len(right)), rng.randrange(0, len(right), BLOCK_SIZE) + rng.randrange(24)])
    flip(path, min(at, len(right) - 1), 1 << rng.randrange(8))
    options = RebuildOptions(CopyMethod.COPY if is_copied else CopyMethod.LINK, sync=False)
    target, combined = (made.path.parent / name for name in ("target", "combined"))
    try:
        restore_backup(RestoreRequest(LocalPlace(made.path), "latest", target, "false", options=options))
    except PgwalError:
        assert not (target / "global/pg_control").exists()
    else:
        assert_right(target, expected)
        combine_backups(CombineRequest(LocalPlace(made.path), made.ids[-1], combined))
        assert_right(combined, expected)
    finally:
        path.write_bytes(right)
        for directory in (target, combined):
            shutil.rmtree(directory, ignore_errors=True)
