"""Damage, gaps and obstacles in a repository or at the target of a restore: each is named, none passes for good."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_formats import new_repository
from fix_servers import ServerFactory, Templates
from guarded.other_user import as_ordinary_user
from pgwal_process import assert_failed, run_pgwal, succeed

from pgwal.repository.compression import Compression
from pgwal.repository.storage_format import StorageFormat
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

pytestmark = pytest.mark.postgres(15, 18)
EITHER_WILL_DO = pytest.mark.postgres(18)
"""For what no version has a say in."""

FAILED, CHAIN_BROKEN = 1, 4
CONTROL_FILE = "global/pg_control"


@dataclass(frozen=True)
class Taken:
    """A server, and the repository of it: a full backup, one incremental, and some segments of WAL after those."""

    server: ThrowawayServer
    repo: Path
    full: dict[str, str]
    incremental: dict[str, str]
    end_lsn: str

    @property
    def over_tcp(self) -> str:
        return f"host=127.0.0.1 port={self.server.port} user=postgres dbname=postgres"

    def taking(self, kind: str, *args: str | Path) -> list[str | Path]:
        source: list[str | Path] = ["-d", self.server.conninfo, "--pgdata", self.server.data_directory]
        return [kind, "--repo", self.repo, *source, "-c", "fast", *args]


@pytest.fixture(scope="module")
def pristine(
    installation: ServerInstallation, server_templates: Templates, module_scratch: Path, storage_format: StorageFormat
) -> Iterator[Taken]:
    directory = module_scratch / f"damage-{installation.major}-{storage_format.files}"
    with ServerFactory(installation, server_templates, directory) as factory:
        server = factory(settings={"wal_keep_size": "1GB"}, start=False)
        # For those who may not enter the directory of the socket.
        server.listen_addresses = "127.0.0.1"
        server.start()
        taken = Taken(server, new_repository(directory / "repo", storage_format), {}, {}, "")
        run_sql(
            taken.server, "CREATE TABLE t AS SELECT i, repeat('x', 500) AS filler FROM generate_series(1, 20000) AS i"
        )
        full = json.loads(succeed(*taken.taking("full", "--json")))
        run_sql(taken.server, "UPDATE t SET i = -i WHERE i % 100 = 0")
        incremental = json.loads(succeed(*taken.taking("incremental", "--json")))
        for _ in range(3):
            run_sql(taken.server, "UPDATE t SET i = i + 1 WHERE i % 100 = 0")
            run_sql(taken.server, "SELECT pg_switch_wal()")
        # Plain, to be damaged at a place that is known.
        stream: list[str | Path] = ["stream", "--repo", taken.repo, "-d", taken.server.conninfo, "--once"]
        succeed(*stream, "--compress", "none")
        with taken.server.connect() as connection:
            row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        assert row is not None
        yield Taken(taken.server, taken.repo, full, incremental, row[0])


@pytest.fixture
def taken(pristine: Taken, scratch: Path) -> Taken:
    """A copy of the repository, to do with as a test likes."""
    repo = scratch / "repo"
    shutil.copytree(pristine.repo, repo)
    return Taken(pristine.server, repo, pristine.full, pristine.incremental, pristine.end_lsn)


def run_sql(server: ThrowawayServer, statement: str) -> None:
    with server.connect() as connection:
        connection.execute(statement)


def flip_byte(path: Path, offset: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x40
    path.write_bytes(content)


# ---- what to build on


def test_nothing_to_build_on(taken: Taken, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    outcome = run_pgwal(*taken.taking("incremental"), "--repo", absent)
    assert_failed(outcome, CHAIN_BROKEN, f"no repository in {absent}, and so no backup", "full backup.*--repo")
    assert not absent.exists()
    outcome = run_pgwal(*taken.taking("incremental", "--since", "0/1000"))
    assert_failed(outcome, CHAIN_BROKEN, "no backup started at or before 0/1000", f"oldest is {taken.full['id']}")
    outcome = run_pgwal(*taken.taking("incremental", "--since", "20200101T000000Z_full"))
    assert_failed(outcome, FAILED, "no backup 20200101T000000Z_full", "pgwal list")
    shutil.rmtree(taken.repo / "backups")
    outcome = run_pgwal(*taken.taking("incremental"))
    assert_failed(outcome, CHAIN_BROKEN, "there is no backup yet", "Take a full backup")


@EITHER_WILL_DO
def test_prior_backup_that_is_gone(taken: Taken, tmp_path: Path) -> None:
    shutil.rmtree(taken.repo / "backups" / taken.full["id"])
    cause = f"{taken.incremental['id']} builds on {taken.full['id']}, which is not there"
    assert_failed(run_pgwal(*taken.taking("incremental")), CHAIN_BROKEN, cause, "full backup")
    outcome = run_pgwal("restore", "latest", "--repo", taken.repo, "-D", tmp_path / "target")
    assert_failed(outcome, CHAIN_BROKEN, cause)
    assert not (tmp_path / "target").exists()


# ---- WAL and summaries


def middle_segment(taken: Taken) -> Path:
    """Return a segment between the latest backup and the newest one."""
    stop_lsn = int(taken.incremental["stop_lsn"].partition("/")[2], 16)
    return taken.repo / "wal" / f"0000000100000000{stop_lsn // (16 << 20) + 1:08X}"


def forget_summaries(taken: Taken) -> None:
    for summary in (taken.repo / "summaries").iterdir():
        summary.unlink()


def test_missing_wal_is_named(taken: Taken) -> None:
    segment = middle_segment(taken)
    segment.unlink()
    forget_summaries(taken)
    end = f"0/{(int(segment.name[-8:], 16) + 1) * (16 << 20):X}"
    cause = f"WAL is missing: 0/[0-9A-F]+ to {end} on timeline 1 is neither summarised nor in the repository"
    hint = f"Copy segment {segment.name} into .*wal.*full backup"
    assert_failed(run_pgwal(*taken.taking("incremental")), CHAIN_BROKEN, cause, hint)
    mapped = run_pgwal("map", "--repo", taken.repo, "--from", taken.incremental["start_lsn"], "--to", taken.end_lsn)
    assert_failed(mapped, CHAIN_BROKEN, cause, hint)
    listed = json.loads(succeed("list", "--repo", taken.repo, "--json"))["backups"]
    assert [entry["id"] for entry in listed] == [taken.full["id"], taken.incremental["id"]]
    assert not list((taken.repo / "backups").glob("*.unfinished"))


@EITHER_WILL_DO
def test_damaged_wal_is_named(taken: Taken) -> None:
    segment = middle_segment(taken)
    flip_byte(segment, 100)
    forget_summaries(taken)
    mapped = run_pgwal("map", "--repo", taken.repo, "--from", taken.incremental["start_lsn"], "--to", taken.end_lsn)
    assert_failed(mapped, CHAIN_BROKEN, "WAL is damaged: segment [0-9A-F]{24} .*WAL ends at", "Replace that segment")


@EITHER_WILL_DO
def test_wal_that_has_not_come_yet(taken: Taken) -> None:
    mapped = run_pgwal("map", "--repo", taken.repo, "--from", taken.end_lsn, "--to", "0/F0000000")
    assert_failed(mapped, CHAIN_BROKEN, "to 0/F0000000 on timeline 1 is neither", "pgwal stream will fetch it")


def test_damaged_summary_is_named(taken: Taken) -> None:
    start = taken.full["start_lsn"]
    whole = succeed("map", "--repo", taken.repo, "--from", start, "--to", taken.incremental["start_lsn"])
    for summary in (taken.repo / "summaries").iterdir():
        flip_byte(summary, 10)
    for command in (
        ["map", "--repo", taken.repo, "--from", start, "--to", taken.incremental["start_lsn"]],
        taken.taking("incremental", "--since", taken.full["id"]),
    ):
        assert_failed(run_pgwal(*command), FAILED, r"summaries/[0-9A-F]{40}\.summary: .*CRC", "Delete this file")
    # The way out that the hint names is one.
    forget_summaries(taken)
    assert succeed("map", "--repo", taken.repo, "--from", start, "--to", taken.incremental["start_lsn"]) == whole


@EITHER_WILL_DO
def test_state_of_the_receiver_is_not_needed(taken: Taken) -> None:
    # It is not synced: after a power cut it may be empty.
    (taken.repo / "receiver.json").write_bytes(b"")
    succeed(*taken.taking("incremental"))


# ---- the catalogue and what is stored


def damage_entry(path: Path, how: str) -> None:
    if how == "absent":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes().replace(b'"kind"', b'"kinx"', 1))


@EITHER_WILL_DO
@pytest.mark.parametrize("how", ["absent", "empty", "flipped"])
def test_damaged_catalogue_entry_is_named(taken: Taken, tmp_path: Path, how: str) -> None:
    entry = taken.repo / "backups" / taken.full["id"] / "backup.json"
    damage_entry(entry, how)
    damage = f"catalogue entry {entry} is damaged"
    for backup in (taken.full["id"], taken.incremental["id"]):
        outcome = run_pgwal("restore", backup, "--repo", taken.repo, "-D", tmp_path / "target")
        if backup == taken.full["id"]:
            assert_failed(outcome, FAILED, damage, f"move {entry.parent} away")
        else:
            assert_failed(outcome, CHAIN_BROKEN, f"{backup} builds on {taken.full['id']}, which is not there")
            assert damage in outcome.stderr
    assert damage in run_pgwal("list", "--repo", taken.repo).stderr
    outcome = run_pgwal(*taken.taking("incremental"))
    assert_failed(outcome, CHAIN_BROKEN, "which is not there", "Take a full backup")
    assert damage in outcome.stderr
    assert not (tmp_path / "target").exists()


@EITHER_WILL_DO
def test_damaged_list_of_files_stops_a_restore(taken: Taken, tmp_path: Path) -> None:
    entry = taken.repo / "backups" / taken.incremental["id"] / "backup.json"
    entry.write_bytes(entry.read_bytes().replace(b'"mtime": 1', b'"mtime": 2', 1))
    outcome = run_pgwal("restore", "latest", "--repo", taken.repo, "-D", tmp_path / "target")
    assert_failed(outcome, FAILED, f"catalogue entry {entry} is damaged: its digest does not match")
    assert not (tmp_path / "target" / CONTROL_FILE).exists()


@pytest.mark.only_format("plain")
def test_damaged_file_stops_a_restore(taken: Taken, tmp_path: Path) -> None:
    full, incremental = (taken.repo / "backups" / backup["id"] for backup in (taken.full, taken.incremental))
    stored_blocks = max((incremental / "data/base").rglob("INCREMENTAL.*"), key=lambda path: path.stat().st_size)
    for backup, damaged in (
        (taken.full["id"], full / "data/PG_VERSION"),
        (taken.full["id"], full / "data" / CONTROL_FILE),
        (taken.incremental["id"], stored_blocks),
    ):
        target = tmp_path / damaged.name
        flip_byte(damaged)
        outcome = run_pgwal("restore", backup, "--repo", taken.repo, "-D", target)
        flip_byte(damaged)
        assert_failed(outcome, FAILED, f"of backup {backup} is damaged: its digest", "another backup")
        assert f"{target} is incomplete and cannot be started" in outcome.stderr
        assert not (target / CONTROL_FILE).exists()


@EITHER_WILL_DO
@pytest.mark.only_format("plain")
def test_missing_file_stops_a_restore(taken: Taken, tmp_path: Path) -> None:
    missing = taken.repo / "backups" / taken.full["id"] / "data/PG_VERSION"
    missing.unlink()
    outcome = run_pgwal("restore", taken.full["id"], "--repo", taken.repo, "-D", tmp_path / "target")
    assert_failed(outcome, CHAIN_BROKEN, f"{missing} is missing", "another backup")
    assert not (tmp_path / "target" / CONTROL_FILE).exists()


@EITHER_WILL_DO
@pytest.mark.only_format("packed")
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_damaged_pack_stops_a_restore(taken: Taken, tmp_path: Path, how: str) -> None:
    names = {path: path.read_bytes() for path in (taken.repo / "packs").glob("*/*")}
    for path, content in names.items():
        if how == "missing":
            path.unlink()
        else:
            flip_byte(path, len(content) // 2)
        target = tmp_path / path.name
        # Of an older one's not every frame is needed.
        entries = {
            each["id"]: taken.repo / "backups" / each["id"] / "backup.json" for each in (taken.full, taken.incremental)
        }
        (owner,) = [backup_id for backup_id, entry in entries.items() if path.name in entry.read_text()]
        outcome = run_pgwal("restore", owner, "--repo", taken.repo, "-D", target)
        path.write_bytes(content)
        cause = f"{path} is missing, and with it" if how == "missing" else f"{path}.* damaged"
        assert_failed(outcome, FAILED, cause, "another backup")
        assert not (target / CONTROL_FILE).exists()


# ---- the target of a restore


@EITHER_WILL_DO
def test_targets_that_cannot_be_used(taken: Taken, tmp_path: Path) -> None:
    restore: list[str | Path] = ["restore", taken.full["id"], "--repo", taken.repo]
    (tmp_path / "mine").touch()
    outcome = run_pgwal(*restore, "-D", tmp_path)
    assert_failed(outcome, FAILED, f"directory {tmp_path} is not empty", "empty directory")
    outcome = run_pgwal(*restore, "-D", tmp_path / "mine")
    assert_failed(outcome, FAILED, f"cannot use {tmp_path / 'mine'}: Not a directory")
    outcome = run_pgwal(*restore, "-D", tmp_path / "no" / "parent")
    assert_failed(outcome, FAILED, "cannot create .*/no/parent: No such file or directory", "directory above it first")
    outcome = run_pgwal(*restore, "-D", tmp_path / "new", "-T", "/old=/new")
    assert_failed(outcome, FAILED, "has no tablespace at /old", "Its tablespaces are: none")
    outcome = run_pgwal("restore", "20200101T000000Z_full", "--repo", taken.repo, "-D", tmp_path / "new")
    assert_failed(outcome, FAILED, "no backup 20200101T000000Z_full", "pgwal list")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# ---- permissions and space


@EITHER_WILL_DO
def test_directory_of_something_else_is_no_repository(taken: Taken, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").touch()
    for command in (["stream", "-d", taken.server.conninfo, "--once"], taken.taking("full")):
        outcome = run_pgwal(*command, "--repo", tmp_path)
        assert_failed(outcome, FAILED, f"{tmp_path} is not empty and no repository: it holds letters.txt", "--repo")
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


@EITHER_WILL_DO
def test_repository_of_another_user(taken: Taken, scratch: Path) -> None:
    give_to_server(taken.repo)
    taken.repo.chmod(0o700 if os.geteuid() == 0 else 0o000)
    try:
        for command in (
            ["list"],
            ["map", "--from", "0/1", "--to", "0/2"],
            ["restore", "latest", "-D", scratch / "target"],
            ["stream", "-d", taken.over_tcp, "--once"],
        ):
            outcome = run_pgwal(*command, "--repo", taken.repo, prefix=as_ordinary_user())
            cause = f"cannot .*{taken.repo}.*: Permission denied"
            assert_failed(outcome, FAILED, cause, "user that owns the repository")
    finally:
        taken.repo.chmod(0o700)
    assert not (scratch / "target").exists()


@EITHER_WILL_DO
def test_repository_that_cannot_be_written(taken: Taken, scratch: Path) -> None:
    stream: list[str | Path] = ["stream", "-d", taken.over_tcp, "--once"]
    parent = scratch / "closed"
    parent.mkdir(mode=0o555)
    outcome = run_pgwal(*stream, "--repo", parent / "repo", prefix=as_ordinary_user())
    assert_failed(outcome, FAILED, f"cannot create {parent / 'repo'}: Permission denied", "owns the repository")
    outcome = run_pgwal("restore", "latest", "--repo", taken.repo, "-D", parent / "new", prefix=as_ordinary_user())
    assert_failed(outcome, FAILED, f"cannot create {parent / 'new'}: Permission denied", "who may write there")
    make_read_only(taken.repo)
    outcome = run_pgwal(*stream, "--repo", taken.repo, prefix=as_ordinary_user())
    assert_failed(outcome, FAILED, f"cannot .*{taken.repo}.*: Permission denied", "owns the repository")
    listed = run_pgwal("list", "--repo", taken.repo, prefix=as_ordinary_user())
    assert listed.code == 0, listed.stderr


@EITHER_WILL_DO
@pytest.mark.skipif(os.geteuid() != 0, reason="without root, the server's user is the one that runs pgwal")
def test_data_directory_of_another_user(taken: Taken, tmp_path: Path) -> None:
    outcome = run_pgwal(
        *taken.taking("full"), "-d", taken.over_tcp, "--repo", tmp_path / "repo", prefix=as_ordinary_user()
    )
    assert_failed(outcome, FAILED, "cannot read .*pg_control: Permission denied", "as the server's user")
    assert not (tmp_path / "repo").exists()


def make_read_only(repo: Path) -> None:
    for parent, directories, files in os.walk(repo):
        for name in (*directories, *files):
            (Path(parent) / name).chmod(0o555)
    repo.chmod(0o555)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a segment of WAL and not for a backup."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=30m,mode=0755", "tmpfs", mount_point], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode != 0:
        pytest.skip(f"this machine lets no small file system be mounted: {mounted.stderr.strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", mount_point], check=True)


def test_full_disk(taken: Taken, small_disk: Path, storage_format: StorageFormat) -> None:
    # What is compressed would have room.
    repo = new_repository(small_disk / "repo", storage_format._replace(compression=Compression.parse("none")))
    outcome = run_pgwal(*taken.taking("full"), "--repo", repo)
    # Its own receiver may need the last of the room before the backup's files do.
    place = f"{repo}/(backups|packs|wal)/"
    assert_failed(outcome, FAILED, f"cannot (open|write) {place}.*: No space left", "Free some space")
    assert list((repo / "backups").iterdir()) == []
    assert [path for path in repo.glob("packs/*/*") if path.is_file()] == []
    # The archive begins while there is room; then more arrives than there is room for.
    subprocess.run(["mount", "-o", "remount,size=80m", small_disk], check=True)
    stream: list[str | Path] = ["stream", "--repo", repo, "-d", taken.server.conninfo, "--once", "--compress", "none"]
    succeed(*stream)
    for _ in range(6):
        run_sql(taken.server, "SELECT pg_logical_emit_message(true, 'pgwal', 'written')")
        run_sql(taken.server, "SELECT pg_switch_wal()")
    outcome = run_pgwal(*stream)
    assert_failed(outcome, FAILED, f"cannot (open|write) {repo}/.*: No space left on device", "Free some space")
    # Nothing is left that keeps a backup from being taken when there is room.
    subprocess.run(["mount", "-o", "remount,size=500m", small_disk], check=True)
    succeed(*taken.taking("full"), "--repo", repo)
