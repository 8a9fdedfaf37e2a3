"""A synthetic full backup is, byte for byte, what pg_combinebackup makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from differential.test_native_tools import readable_copy
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.made_repository import SYSTEM_IDENTIFIER, Blocks, MadeRepository, block
from test_main_job import streaming

from pgwal.backup.manifest import FileChecksum, ManifestWriter
from pgwal.backup.manifest_reader import read_manifest
from pgwal.repository.storage_format import StorageFormat
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

OF_THEIR_OWN = {"backup_manifest", "backup_label"}


def run_sql(server: ThrowawayServer, *statements: str) -> None:
    with server.connect(autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def tree(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if path.name not in OF_THEIR_OWN
    }


@pytest.mark.postgres(17, 18, 19)
@pytest.mark.packed_on_all
def test_equal_to_the_native_tool(make_server: ServerFactory, scratch: Path, repo: Path) -> None:
    server = make_server(settings={"autovacuum": False, "summarize_wal": True, "wal_keep_size": "1GB"})
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    run_sql(server, "CREATE TABLE t AS SELECT i, repeat('x', 100) AS f FROM generate_series(1, 20000) AS i")
    with streaming(server, repo):
        ids = [json.loads(succeed("full", *source))["id"]]
        for step in range(3):
            run_sql(
                server,
                f"UPDATE t SET i = -i WHERE i % 500 = {step}",
                f"CREATE TABLE made_{step} AS SELECT * FROM t WHERE i < 100",
                f"DELETE FROM t WHERE i > {18000 - 3000 * step}",
                "VACUUM t",
                "ALTER SYSTEM SET work_mem = '5MB'",
            )
            ids.append(json.loads(succeed("incremental", *source))["id"])
    native, ours = scratch / "native", scratch / "ours"
    for count in (2, 4):
        (scratch / str(count)).mkdir()
        give_to_server(scratch / str(count))
        chain = [str(readable_copy(repo, backup_id, scratch / str(count))) for backup_id in ids[:count]]
        server.run_tool("pg_combinebackup", "--no-sync", "-o", f"{native}{count}", *chain)
        succeed("combine", ids[count - 1], "--repo", repo, "-o", f"{ours}{count}", "-N")
        made = Path(f"{ours}{count}")
        give_to_server(made)
        assert tree(made) == tree(Path(f"{native}{count}"))
        assert (made / "backup_label").read_bytes() == (Path(f"{native}{count}") / "backup_label").read_bytes()
        server.run_tool("pg_verifybackup", "-n", str(made))
        theirs, mine = (
            read_manifest((Path(f"{place}{count}") / "backup_manifest").read_bytes()) for place in (native, ours)
        )
        assert {file._replace(last_modified="") for file in mine.files} == {
            file._replace(last_modified="") for file in theirs.files
        }
        assert (mine.version, mine.system_identifier, mine.wal_ranges) == (
            theirs.version,
            theirs.system_identifier,
            theirs.wal_ranges,
        )


def test_combine_says_what_is_wrong(tmp_path: Path) -> None:
    outcome = run_pgwal("combine", "20260101T000000Z_full", "--repo", tmp_path, "-o", tmp_path / "x")
    assert_failed(outcome, 1, "there is no repository")


def test_manifests_as_they_are_wanted(tmp_path: Path, storage_format: StorageFormat) -> None:
    made = MadeRepository(tmp_path / "repo", storage_format=storage_format)
    made.add({"base/5/16384": block("a") + block("b")})
    made.add({"base/5/16384": Blocks(2, {1: block("B")})})
    for algorithm in ("NONE", "CRC32C", "SHA256", "SHA512"):
        output = tmp_path / algorithm
        words = ["--manifest-checksums", algorithm]
        succeed("combine", made.ids[1], "--repo", made.path, "-o", output, *words)
        files = {file.path: file for file in read_manifest((output / "backup_manifest").read_bytes()).files}
        assert set(files) == {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()} - {
            "backup_manifest"
        }
        wanted = FileChecksum(algorithm)
        wanted.update(block("a") + block("B"))
        for file in files.values():
            assert file.checksum_algorithm == algorithm
        assert files["base/5/16384"].checksum_hex == wanted.hexdigest()
    succeed("combine", made.ids[1], "--repo", made.path, "-o", tmp_path / "without", "--no-manifest")
    assert not (tmp_path / "without/backup_manifest").exists()
    assert tree(tmp_path / "without") == tree(tmp_path / "NONE")
    outcome = run_pgwal(
        "combine", made.ids[1], "--repo", made.path, "-o", tmp_path / "x", "--manifest-checksums", "MD5"
    )
    assert_failed(outcome, 2, "MD5")


@pytest.mark.parametrize("number", [0, 1])
def test_a_directory_with_the_manifest_of_another_cluster_is_refused(
    tmp_path: Path, storage_format: StorageFormat, number: int
) -> None:
    made = MadeRepository(tmp_path / "repo", storage_format=storage_format)
    made.add({"base/5/16384": block("a")})
    made.add({"base/5/16384": Blocks(1, {})})
    for backup_id in made.ids:
        writer = ManifestWriter(18, SYSTEM_IDENTIFIER)
        (made.data(backup_id) / "backup_manifest").write_bytes(writer.header() + writer.finish([]))
    succeed("combine", made.ids[1], "--repo", made.path, "-o", tmp_path / "right")
    writer = ManifestWriter(18, SYSTEM_IDENTIFIER + 1)
    manifest = made.data(made.ids[number]) / "backup_manifest"
    manifest.write_bytes(writer.header() + writer.finish([]))
    outcome = run_pgwal("combine", made.ids[1], "--repo", made.path, "-o", tmp_path / "wrong")
    assert_failed(outcome, 1, f"{manifest} is of the cluster with system identifier {SYSTEM_IDENTIFIER + 1}", "verify")
    assert not (tmp_path / "wrong").exists()
