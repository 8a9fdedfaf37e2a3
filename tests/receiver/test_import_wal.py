"""``pgwal import``: archives of others, taken over as far as they fit, on a real server's WAL."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import subprocess
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from fix_servers import ServerFactory
from test_main_job import PGWAL, checksums, pgwal, prepare, run_load, wait_until_promoted

from pgwal.repository.repository import Repository
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

FORMS = {
    "zst": zstandard.ZstdCompressor().compress,
    "gz": gzip.compress,
    "lz4": lz4.frame.compress,
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=0),
}


def import_wal(repo: Path, directory: Path, *args: str, code: int = 0) -> dict[str, list[str]]:
    """Run it, and return the paths of each outcome, and what is missing."""
    finished = subprocess.run(
        [*PGWAL, "import", "--repo", str(repo), "--json", *args, str(directory)], capture_output=True, text=True
    )
    assert finished.returncode == code, finished.stderr + finished.stdout
    document = json.loads(finished.stdout)
    found: dict[str, list[str]] = {}
    for file in document["files"]:
        assert (file["outcome"] == "refused") == (file["reason"] is not None)
        found.setdefault(file["outcome"], []).append(file["path"])
    if document["gaps"]:
        found["gaps"] = [gap["first_segment"] for gap in document["gaps"]]
    return found


def receive(server: ThrowawayServer, directory: Path, *args: str) -> subprocess.Popen[bytes]:
    """Run pg_receivewal into a directory."""
    directory.mkdir(exist_ok=True)
    program = server.installation.bin_dir / "pg_receivewal"
    return subprocess.Popen(
        [program, "-D", directory, "-d", server.conninfo, "--no-sync", *args], stderr=subprocess.DEVNULL
    )


def receive_up_to_now(server: ThrowawayServer, directory: Path, *args: str) -> None:
    with server.connect() as connection:
        row = connection.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
    assert row is not None
    assert receive(server, directory, "-E", str(row[0]), *args).wait(120) == 0


@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
def test_imported_wal_is_restored_to_its_end(make_server: ServerFactory, repo: Path, scratch: Path) -> None:
    server = make_server(settings={"wal_keep_size": "1GB"})
    prepare(server)
    source = ["--repo", repo, "-d", server.conninfo, "-c", "fast"]
    full = json.loads(pgwal("full", *source, "--json"))
    other = scratch / "other"
    with server.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('other', true)")
    for step in (1, 2, 3):
        run_load(server, step)
        with server.connect() as connection:
            connection.execute("SELECT pg_switch_wal()")
    run_load(server, 4)
    receive_up_to_now(server, other, "--slot", "other")
    expected = checksums(server)
    found = import_wal(repo, other, "--dry-run")
    assert len(found["taken"]) >= 3
    assert found == import_wal(repo, other)
    again = import_wal(repo, other)
    assert set(again) == {"there"}
    target = scratch / "restored"
    pgwal("restore", full["id"], "--repo", repo, "-D", target)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(repo)], scratch / "restoring") as restoring:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{restoring.restore_command}'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected
    incremental = json.loads(pgwal("incremental", *source, "--json"))
    assert incremental["prior"] == full["id"]
    assert 0 < incremental["copied_block_count"] < incremental["block_count"]


@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
def test_every_file_of_an_archive_is_accounted_for(make_server: ServerFactory, repo: Path, scratch: Path) -> None:
    server = make_server(settings={"wal_keep_size": "1GB"})
    pgwal("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    names = []
    for number in range(8):
        with server.connect() as connection:
            connection.execute(f"CREATE TABLE made_{number} AS SELECT i FROM generate_series(1, 1000) AS i")
            row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        assert row is not None
        names.append(str(row[0]))
    wal = {name: (server.data_directory / "pg_wal" / name).read_bytes() for name in names}
    barman = scratch / "wals"
    folder = barman / names[0][:16]
    folder.mkdir(parents=True)
    (barman / "xlog.db").write_text("of Barman's own\n")
    # Compressed in all forms, with a name that tells it and without.
    for name, (suffix, compress) in zip(names, FORMS.items(), strict=False):
        (folder / name).write_bytes(compress(wal[name]))
        if suffix == "zst":
            (folder / f"{name}.{suffix}").write_bytes(compress(wal[name]))
    # One is missing; one is damaged, and whole ones follow it; one differs from another file of its name.
    damaged = bytearray(wal[names[6]])
    damaged[300] ^= 0xFF
    (folder / names[6]).write_bytes(damaged)
    (folder / names[7]).write_bytes(wal[names[7]])
    (folder / f"{names[7]}.gz").write_bytes(gzip.compress(wal[names[6]]))
    (folder / "00000001000000000000FFFF").write_bytes(wal[names[7]])
    found = import_wal(repo, barman, code=1)
    inner = folder.name
    assert found["taken"] == [f"{inner}/{name}" for name in (*names[:5], names[7])]
    assert found["double"] == [f"{inner}/{names[0]}.zst"]
    assert found["no WAL"] == ["xlog.db"]
    refused = ("00000001000000000000FFFF", names[6], f"{names[7]}.gz")
    assert sorted(found["refused"]) == sorted(f"{inner}/{name}" for name in refused)
    assert names[5] in found["gaps"]
    archive = Repository.open(repo).wal
    for name in (*names[:5], names[7]):
        assert archive.read_segment(name) == wal[name]
    assert not archive.is_complete(*archive.geometry.parse_file_name(names[6]))
    # What was missing comes later.
    later = scratch / "later"
    later.mkdir()
    for name in names[5:7]:
        shutil.copy(server.data_directory / "pg_wal" / name, later)
    assert import_wal(repo, later) == {"taken": names[5:7]}
    foreign = make_server(own_system_identifier=True)
    receive_up_to_now(foreign, scratch / "foreign")
    assert "taken" not in import_wal(repo, scratch / "foreign", code=1)
