"""A repository that others can write, or that is another user's, is refused; root counts as another user."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from guarded.other_user import as_root, give_to_nobody, run_as_nobody
from keeping.stored_repository import FULL, Stored, build_repository
from pgwal_process import assert_failed, run_pgwal, succeed

from pgwal.errors import RepositoryError
from pgwal.repository.repository import Repository

FAILED = 1
NAMES = ["", "wal", "summaries", "backups"]


@pytest.fixture
def stored(scratch: Path) -> Stored:
    return build_repository(scratch / "repo")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_can_write_is_named(stored: Stored, scratch: Path, name: str, mode: int) -> None:
    directory = stored.root / name if name else stored.root
    directory.chmod(mode)
    for command in (["list"], ["verify"], ["expire", "--keep-full", "1"], ["restore", "-D", scratch / "target"]):
        cause = rf"{directory} can be written by others than its owner \(mode {mode:04o}\)"
        assert_failed(run_pgwal(*command, "--repo", stored.root), FAILED, cause, f"chmod go-w {directory}")
    segment = stored.repository.geometry.file_name(1, 1)
    outcome = run_pgwal("fetch-wal", "--repo", stored.root, segment, scratch / "RECOVERYXLOG")
    assert outcome.code >= 126
    assert not (scratch / "RECOVERYXLOG").exists()
    directory.chmod(0o755)
    succeed("list", "--repo", stored.root)


@pytest.mark.postgres(18)
def test_an_open_directory_is_not_made_a_repository(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server()
    (scratch / "repo").mkdir()
    (scratch / "repo").chmod(0o777)
    outcome = run_pgwal("full", "--repo", scratch / "repo", "-d", server.conninfo)
    assert_failed(outcome, FAILED, "can be written by others", "directory below it")
    assert list((scratch / "repo").iterdir()) == []
    # As the hint says.
    succeed("full", "--repo", scratch / "repo" / "below", "-d", server.conninfo, "-c", "fast")


@as_root
@pytest.mark.postgres(18)
def test_root_does_not_write_what_another_user_owns(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server()
    succeed("full", "--repo", scratch / "repo", "-d", server.conninfo, "-c", "fast")
    give_to_nobody(scratch / "repo")
    commands: list[list[str | Path]] = [
        ["full", "-d", server.conninfo, "-c", "fast"],
        ["incremental", "-d", server.conninfo, "-c", "fast"],
        ["stream", "-d", server.conninfo, "--once"],
        ["expire", "--keep-full", "1"],
    ]
    before = {path: path.stat().st_mtime_ns for path in (scratch / "repo").rglob("*")}
    for command in commands:
        outcome = run_pgwal(*command, "--repo", scratch / "repo")
        assert_failed(outcome, FAILED, "belongs to nobody, and root runs this", "Run it as nobody")
    assert {path: path.stat().st_mtime_ns for path in (scratch / "repo").rglob("*")} == before
    # Reading is another thing: restores on a new machine are done by root.
    assert "full" in succeed("list", "--repo", scratch / "repo")
    assert run_as_nobody("list", "--repo", scratch / "repo").code == 0
    assert run_as_nobody("expire", "--keep-full", "1", "--repo", scratch / "repo").code == 0


@as_root
def test_a_part_of_another_user_is_named(stored: Stored) -> None:
    give_to_nobody(stored.root / "wal")
    with pytest.raises(RepositoryError, match=f"{stored.root}/wal belongs to nobody, and the repository to root"):
        Repository.open(stored.root)


@as_root
def test_another_user_may_read_what_is_open_to_him(stored: Stored) -> None:
    for path in (stored.root, *stored.root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert FULL in run_as_nobody("list", "--repo", stored.root).stdout
    outcome = run_as_nobody("expire", "--keep-full", "1", "--repo", stored.root)
    assert_failed(outcome, FAILED, r"cannot lock .*backup\.lock: Permission denied", "user that owns the repository")
    shutil.rmtree(stored.root)
