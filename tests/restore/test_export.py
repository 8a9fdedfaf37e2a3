"""Exports are the plain format, byte for byte, whatever the repository stores, and PostgreSQL's tools take them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from differential.test_native_tools import readable_copy
from fix_formats import PACKED_FORMAT
from keeping.stored_repository import FIRST, FULL, SECOND, build_repository
from pgwal_process import assert_failed, run_pgwal, succeed
from test_main_job import prepare

from pgwal.repository.storage_format import StorageFormat
from pgwal_cli.throwaway_server import ThrowawayServer


def tree(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


def test_equal_to_what_a_plain_repository_holds(tmp_path: Path, storage_format: StorageFormat) -> None:
    plain = build_repository(tmp_path / "plain")
    stored = build_repository(tmp_path / "repo", storage_format=storage_format)
    for backup_id in (FULL, FIRST, SECOND):
        output = tmp_path / "exported" / backup_id
        output.parent.mkdir(exist_ok=True)
        succeed("export", backup_id, "--repo", stored.root, "-o", output, "-j", "2")
        assert tree(output) == tree(plain.root / "backups" / backup_id / "data")


def test_both_formats_are_combined_to_the_same(tmp_path: Path) -> None:
    found = []
    for name, files in (("plain", StorageFormat()), ("packed", PACKED_FORMAT)):
        stored = build_repository(tmp_path / name, storage_format=files)
        output = tmp_path / f"{name}_combined"
        succeed("combine", SECOND, "--repo", stored.root, "-o", output, "-N")
        found.append(tree(output))
    assert {path for path in found[0] if found[0][path] != found[1][path]} <= {"backup_manifest"}
    assert found[0].keys() == found[1].keys()


def test_what_cannot_be_exported_is_said(tmp_path: Path, storage_format: StorageFormat) -> None:
    stored = build_repository(tmp_path / "repo", storage_format=storage_format)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    exporting = ["export", FULL, "--repo", stored.root, "-o"]
    assert_failed(run_pgwal(*exporting, tmp_path / "full"), 1, "is not empty")
    assert_failed(run_pgwal(*exporting, stored.root / "wal" / "new"), 1, "lies in the repository", "outside of")
    assert not (stored.root / "wal" / "new").exists()


@pytest.mark.postgres(13, 14, 15, 16)
@pytest.mark.packed_on_all
def test_a_full_backup_is_verified_by_pg_verifybackup(server: ThrowawayServer, repo: Path, scratch: Path) -> None:
    if not server.installation.has_tool("pg_verifybackup"):
        pytest.skip("this installation comes without pg_verifybackup")
    prepare(server)
    source = ["-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    backup = json.loads(succeed("full", "--repo", repo, *source))["id"]
    verified = server.run_tool("pg_verifybackup", "-n", str(readable_copy(repo, backup, scratch)))
    assert "backup successfully verified" in verified.stdout
