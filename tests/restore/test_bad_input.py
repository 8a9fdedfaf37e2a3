"""What lies in a repository: each is an error, nothing is written outside of the target, nothing can be started."""

from __future__ import annotations

import os
import resource
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pgwal_process import assert_failed, run_pgwal
from restore.made_repository import Blocks, MadeRepository, block

from pgwal.backup.exclusion import INCOMPLETE_NAME
from pgwal.backup.incremental_file import INCREMENTAL_MAGIC
from pgwal.checksum import ContentDigest
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.rebuild_options import RebuildOptions
from pgwal.engine.restore import RestoreRequest, restore_backup
from pgwal.errors import FormatError, PgwalError
from pgwal.relation import BLOCKS_PER_FILE
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.storage_format import PLAIN_FORMAT, StorageFormat

TABLE = "base/5/16384"


def make(
    directory: Path, *, notes_header_digests: bool = True, storage_format: StorageFormat = PLAIN_FORMAT
) -> MadeRepository:
    """Make a full backup and an incremental one of a table of four blocks, of which one changes."""
    made = MadeRepository(directory / "repo", notes_header_digests=notes_header_digests, storage_format=storage_format)
    made.add({TABLE: block("a") + block("b") + block("c") + block("d"), "base/5/16385": block("u")})
    made.add({TABLE: Blocks(4, {1: block("B")}), "base/5/16385": Blocks(1, {})})
    return made


@pytest.fixture
def made(tmp_path: Path, storage_format: StorageFormat) -> MadeRepository:
    return make(tmp_path, storage_format=storage_format)


def restore(made: MadeRepository, target: Path) -> None:
    restore_backup(RestoreRequest(LocalPlace(made.path), made.ids[-1], target, "false", options=RebuildOptions(jobs=2)))


def everything(directory: Path) -> dict[str, bytes | None]:
    """Return all names below a directory with what the files hold."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def assert_refused(made: MadeRepository, kinds: type[PgwalError] | tuple[type[PgwalError], ...] = PgwalError) -> None:
    """Check that neither restore nor combine makes anything that could be started, or touches anything else."""
    around = made.path.parent
    before = everything(around)
    for number in range(2):
        target = around / f"target{number}"
        request = CombineRequest(LocalPlace(made.path), made.ids[-1], target)
        with pytest.raises(kinds):
            combine_backups(request) if number else restore(made, target)
        assert not (target / "global/pg_control").exists()
        if target.exists():
            assert (target / INCOMPLETE_NAME).exists()
            for path in target.rglob("*"):
                assert not path.is_symlink()
    after = everything(around)
    assert {name: content for name, content in after.items() if not name.startswith("target")} == before


def test_what_is_true_is_restored(made: MadeRepository, tmp_path: Path) -> None:
    restore(made, tmp_path / "target")
    found = everything(tmp_path / "target")
    assert found[TABLE] == block("a") + block("B") + block("c") + block("d")
    assert found["base/5/16385"] == block("u")
    assert INCOMPLETE_NAME not in found
    for path in (tmp_path / "target").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


# ---- the catalogue


def rewrite(made: MadeRepository, number: int, change: Callable[[bytes], bytes]) -> None:
    """Change a backup.json and make its digest right again, as somebody would who wants to be believed."""
    path = made.path / "backups" / made.ids[number] / "backup.json"
    lines = path.read_bytes().splitlines(keepends=True)
    content = change(b"".join(lines[:-1]))
    assert content != b"".join(lines[:-1])
    digest = ContentDigest()
    digest.update(content)
    path.write_bytes(content + f'"digest": "xxh3-128:{digest.hexdigest()}"}}\n'.encode())


@pytest.mark.parametrize("path", [b"../stolen", b"/tmp/pgwal-stolen", b"base/../../stolen", b"base//5", b".", b"a/./b"])
@pytest.mark.parametrize("number", [0, 1])
def test_paths_that_climb_out(made: MadeRepository, number: int, path: bytes) -> None:
    rewrite(made, number, lambda content: content.replace(b'"PG_VERSION"', b'"' + path + b'"'))
    assert_refused(made, FormatError)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b'"size": 32768', b'"size": 40960'),
        lambda content: content.replace(b'"size": 3,', b'"size": 4,').replace(b'"stored": 3,', b'"stored": 4,'),
        lambda content: content.replace(b'"size": 3,', b'"size": 9223372036854775807,'),
        lambda content: content.replace(b'"truncation_block_length": 4', b'"truncation_block_length": 2'),
        lambda content: content.replace(b'"blocks": 1,', b'"blocks": 2,'),
        lambda content: content.replace(b'"blocks": 1,', b'"blocks": 4294967296,'),
        lambda content: content.replace(b'"header_digest": "', b'"header_digest": "0'),
        lambda content: content.replace(b', "header_digest"', b', "digest_of_the_header"'),
        lambda content: content.replace(b'"blocks": 0', b'"blocks": 0, "header_digest": "' + b"0" * 32 + b'"'),
        lambda content: content.replace(b'"major": 18', b'"major": 17'),
        lambda content: content.replace(b'"path": "global/pg_control"', b'"path": "global/pg_contro1"'),
    ],
    ids=[
        "larger",
        "larger-than-stored",
        "absurd",
        "shorter",
        "more-blocks",
        "absurd-blocks",
        "no-digest",
        "unknown",
        "needless",
        "major",
        "no-control",
    ],
)
def test_catalogue_entry_that_lies(made: MadeRepository, change: Callable[[bytes], bytes]) -> None:
    rewrite(made, 1, change)
    assert_refused(made)


def test_priors_in_a_circle(made: MadeRepository) -> None:
    made.add({TABLE: Blocks(4, {})})
    older, newer = (made.ids[number].encode() for number in (1, 2))
    full = made.ids[0].encode()
    rewrite(made, 1, lambda content: content.replace(b'"prior": "' + full, b'"prior": "' + newer))
    assert older
    assert_refused(made)


def test_prior_that_is_not_a_backup(made: MadeRepository) -> None:
    full = made.ids[0].encode()
    rewrite(made, 1, lambda content: content.replace(b'"prior": "' + full, b'"prior": "../../elsewhere'))
    assert_refused(made)


# ---- the data


@pytest.mark.only_format("plain")
def test_links_in_the_data_are_not_followed(made: MadeRepository, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"18\n")
    stored = made.data(made.ids[1]) / "PG_VERSION"
    stored.unlink()
    stored.symlink_to(secret)
    assert_refused(made)


@pytest.mark.only_format("plain")
@pytest.mark.parametrize("number", [0, 1])
def test_linked_directories_are_not_followed(made: MadeRepository, tmp_path: Path, number: int) -> None:
    directory = made.data(made.ids[number]) / "base/5"
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    assert_refused(made)


@pytest.mark.only_format("plain")
@pytest.mark.parametrize("number", [0, 1])
def test_pipe_in_the_data_does_not_block(made: MadeRepository, number: int) -> None:
    stored = made.data(made.ids[number]) / ("base/5/16384" if number == 0 else "PG_VERSION")
    stored.unlink()
    os.mkfifo(stored)
    assert_refused(made)


@pytest.mark.only_format("plain")
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["base/5/16384", "base/5/16385"])
def test_files_of_another_length(made: MadeRepository, number: int, name: str) -> None:
    stored = made.data(made.ids[number]) / (name if number == 0 else name.replace("/5/", "/5/INCREMENTAL."))
    content = stored.read_bytes()
    for changed in (content[:-1], content + b"x", b""):
        stored.write_bytes(changed)
        target = made.path.parent / "target"
        with pytest.raises(PgwalError):
            restore(made, target)
        assert not (target / "global/pg_control").exists()
        os.system(f"rm -rf {target}")


@pytest.mark.only_format("plain")
def test_unchanged_file_of_an_older_backup_is_checked(made: MadeRepository) -> None:
    stored = made.data(made.ids[0]) / "base/5/16385"
    stored.write_bytes(block("v"))
    assert_refused(made, FormatError)


def header_bytes(magic: int, count: int, kept: int, numbers: list[int]) -> bytes:
    return struct.pack(f"<III{len(numbers)}I", magic, count, kept, *numbers)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    magic=st.one_of(st.just(INCREMENTAL_MAGIC), st.integers(0, 0xFFFFFFFF)),
    count=st.one_of(st.integers(0, 4), st.integers(0, 0xFFFFFFFF)),
    kept=st.one_of(st.integers(0, 5), st.integers(0, 0xFFFFFFFF)),
    numbers=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 0xFFFFFFFF)), max_size=6),
    older=st.booleans(),
    noted=st.booleans(),
)
@example(magic=INCREMENTAL_MAGIC, count=0xFFFFFFFF, kept=4, numbers=[1], older=False, noted=True)
@example(magic=INCREMENTAL_MAGIC, count=1, kept=0xFFFFFFFF, numbers=[1], older=False, noted=True)
@example(magic=INCREMENTAL_MAGIC, count=1, kept=4, numbers=[BLOCKS_PER_FILE], older=True, noted=False)
@example(magic=INCREMENTAL_MAGIC, count=2, kept=4, numbers=[1, 1], older=True, noted=False)
def test_headers_that_lie(
    tmp_path_factory: pytest.TempPathFactory,
    magic: int,
    count: int,
    kept: int,
    numbers: list[int],
    older: bool,
    noted: bool,
) -> None:
    """A header is not what was stored, in the newest backup or an older one, with its digest in the entry or not."""
    directory = tmp_path_factory.mktemp("headers")
    made = make(directory, notes_header_digests=noted)
    if older:
        made.add({TABLE: Blocks(4, {2: block("C")})})
    stored = made.data(made.ids[1]) / "base/5/INCREMENTAL.16384"
    content = stored.read_bytes()
    lie = header_bytes(magic, count, kept, numbers)
    changed = lie + content[len(lie) :]
    stored.write_bytes(changed)
    target = directory / "target"
    if changed == content:
        return
    with pytest.raises(PgwalError):
        restore(made, target)
    assert not (target / "global/pg_control").exists()


@pytest.mark.only_format("plain")
def test_absurd_counts_take_no_memory(made: MadeRepository, tmp_path: Path) -> None:
    stored = made.data(made.ids[1]) / "base/5/INCREMENTAL.16384"
    with stored.open("r+b") as file:
        file.write(header_bytes(INCREMENTAL_MAGIC, 0xFFFFFFF0, 0xFFFFFFF0, []))
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(made, FormatError)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < limit + 50_000
    outcome = run_pgwal("restore", "latest", "--repo", made.path, "-D", tmp_path / "target")
    assert_failed(outcome, 1, "INCREMENTAL", "Restore another backup")


# ---- the place to restore into


def test_directory_with_an_interrupted_restore_is_named(made: MadeRepository, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / INCOMPLETE_NAME).touch()
    outcome = run_pgwal("restore", "--repo", made.path, "-D", target)
    assert_failed(outcome, 1, "holds a restore that was interrupted", "--delta, or empty it")


def test_two_tablespaces_do_not_share_a_directory(tmp_path: Path, storage_format: StorageFormat) -> None:
    made = MadeRepository(tmp_path / "repo", storage_format=storage_format)
    made.add({}, tablespaces={16500: "/one", 16501: "/two"})
    mappings = ["-T", f"/one={tmp_path}/same", "-T", f"/two={tmp_path}/same"]
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "target", *mappings)
    assert_failed(outcome, 1, "would share directory", "-T OLD=NEW")
    assert not (tmp_path / "target").exists()
