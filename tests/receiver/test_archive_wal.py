"""``pgwal archive-wal`` as archive_command of real servers: what is archived, what is refused, and what is kept."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from support.archive_relay import ArchiveRelay
from support.shared_bucket import shared_bucket
from test_main_job import PGWAL, checksums, pgwal, prepare, run_load, streaming, wait_until_promoted

from pgwal.repository.repository import Repository
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server


@pytest.fixture
def relay(scratch: Path, repo: Path) -> Iterator[ArchiveRelay]:
    with ArchiveRelay(scratch / "relay", [*PGWAL, "archive-wal", "--repo", str(repo)]) as relay:
        yield relay


def archiving_server(make_server: ServerFactory, relay: ArchiveRelay, **settings: str | int | bool) -> ThrowawayServer:
    wanted = {"archive_mode": True, "archive_command": relay.setting, "wal_keep_size": "1GB", **settings}
    server = make_server(settings=wanted)
    relay.serve(server)
    return server


def switch_wal(server: ThrowawayServer) -> str:
    """End the open segment, and return its name."""
    with server.connect() as connection:
        row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
    assert row is not None
    return str(row[0])


def wait_until_archived(server: ThrowawayServer, name: str, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with server.connect() as connection:
            row = connection.execute("SELECT last_archived_wal, last_failed_wal FROM pg_stat_archiver").fetchone()
        assert row is not None
        if row[0] is not None and str(row[0]) >= name:
            return
        assert time.monotonic() < deadline, row
        time.sleep(0.05)


def archived(repo: Path, name: str) -> bytes:
    return Repository.open(repo).wal.read_segment(name)


def servers_segments(server: ThrowawayServer, last: str) -> list[Path]:
    """Return the segments of a server up to one."""
    return sorted(path for path in (server.data_directory / "pg_wal").glob("0" * 7 + "?" * 17) if path.name <= last)


@pytest.mark.postgres(18)
def test_what_a_server_hands_over_is_kept_byte_for_byte(
    make_server: ServerFactory, relay: ArchiveRelay, repo: Path
) -> None:
    server = archiving_server(make_server, relay)
    pgwal("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    prepare(server)
    for step in range(1, 4):
        run_load(server, step)
        last = switch_wal(server)
    wait_until_archived(server, last)
    assert set(relay.codes[-3:]) <= {(name, 0) for name, _ in relay.codes}
    first = min(segment.segment_no for segment in Repository.open(repo).wal.segments())
    for path in servers_segments(server, last):
        if Repository.open(repo).geometry.parse_file_name(path.name)[1] >= first:
            assert archived(repo, path.name) == path.read_bytes()


@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
@pytest.mark.parametrize("compress", ["zstd", "none"])
def test_beside_a_receiver_both_keep_the_same(
    make_server: ServerFactory, relay: ArchiveRelay, repo: Path, compress: str
) -> None:
    relay.command += ["-Z", compress]
    server = archiving_server(make_server, relay)
    prepare(server)
    with streaming(server, repo, "--slot", "pgwal", "--create-slot", "-Z", compress) as receiver:
        for step in range(1, 5):
            run_load(server, step)
            last = switch_wal(server)
        wait_until_archived(server, last)
        assert receiver.poll() is None
        switch_wal(server)
    segments = Repository.open(repo).wal.segments()
    assert all(segment.complete for segment in segments if segment.name[:24] <= last)
    for path in servers_segments(server, last):
        if path.name in {segment.name[:24] for segment in segments}:
            assert archived(repo, path.name) == path.read_bytes()
    assert all(code == 0 for name, code in relay.codes if name >= segments[0].name[:24])


@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
def test_a_receiver_that_comes_late_takes_what_is_there_for_received(
    make_server: ServerFactory, relay: ArchiveRelay, repo: Path
) -> None:
    server = archiving_server(make_server, relay)
    prepare(server)
    pgwal("stream", "--repo", repo, "-d", server.conninfo, "--slot", "pgwal", "--create-slot", "--once")
    with streaming(server, repo, "--slot", "pgwal") as receiver:
        receiver.send_signal(signal.SIGSTOP)
        for step in range(1, 4):
            run_load(server, step)
            last = switch_wal(server)
        # The archive has whole what the receiver is still to be sent.
        wait_until_archived(server, last)
        stored = {path.name: path.stat().st_ino for path in (repo / "wal").iterdir()}
        receiver.send_signal(signal.SIGCONT)
        wait_until_received(server, last)
    for path in (repo / "wal").iterdir():
        if path.name[:24] <= last and path.name in stored and not path.name.endswith(".partial"):
            assert path.stat().st_ino == stored[path.name]
    for path in servers_segments(server, last)[-3:]:
        assert archived(repo, path.name) == path.read_bytes()


def wait_until_received(server: ThrowawayServer, name: str) -> None:
    """Wait until the slot needs no more of a segment."""
    deadline = time.monotonic() + 240
    while True:
        with server.connect() as connection:
            row = connection.execute("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots").fetchone()
        assert row is not None
        if str(row[0]) > name:
            return
        assert time.monotonic() < deadline, row
        time.sleep(0.05)


@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
def test_what_differs_is_refused_and_the_server_keeps_it(
    make_server: ServerFactory, relay: ArchiveRelay, repo: Path, scratch: Path
) -> None:
    server = archiving_server(make_server, relay, archive_mode=False)
    pgwal("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    server.stop()
    shutil.copytree(server.data_directory, scratch / "copy")
    give_to_server(scratch / "copy")
    server.start()
    prepare(server)
    first = switch_wal(server)
    second = switch_wal_with(server, "CREATE TABLE more AS SELECT 1 AS a")
    pgwal("archive-wal", "--repo", repo, server.data_directory / "pg_wal" / first)
    # The same cluster, started again from a copy: its WAL has the same names.
    other = make_server(adopt=scratch / "copy", settings={"archive_mode": False})
    with other.connect() as connection:
        connection.execute("CREATE TABLE other_table AS SELECT i FROM generate_series(1, 1000) AS i")
    assert switch_wal(other) == first
    switch_wal_with(other, "CREATE TABLE yet_another AS SELECT 1 AS a")
    before = archived(repo, first)
    for name in (first, second):
        finished = run_archive_wal(repo, other.data_directory / "pg_wal" / name)
        assert finished.returncode == 4, finished.stderr
        assert f"WAL segment {name} is not of the archive's history" in finished.stderr
    assert archived(repo, first) == before == (server.data_directory / "pg_wal" / first).read_bytes()
    assert not Repository.open(repo).wal.is_complete(*Repository.open(repo).geometry.parse_file_name(second))
    foreign = make_server(own_system_identifier=True)
    name = switch_wal_with(foreign, "CREATE TABLE foreign_table AS SELECT 1 AS a")
    finished = run_archive_wal(repo, foreign.data_directory / "pg_wal" / name)
    assert finished.returncode == 1
    assert "system identifier" in finished.stderr


def switch_wal_with(server: ThrowawayServer, statement: str) -> str:
    with server.connect() as connection:
        connection.execute(statement)
    return switch_wal(server)


def run_archive_wal(repo: Path | str, path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PGWAL, "archive-wal", "--repo", str(repo), *args, str(path)], capture_output=True, text=True
    )


@pytest.mark.postgres(13, 18)
@pytest.mark.only_format("plain")
def test_the_main_job_by_archive_command_alone(
    make_server: ServerFactory, relay: ArchiveRelay, repo: Path, scratch: Path
) -> None:
    """Between backups nobody receives, and nobody summarizes: the map of an incremental comes from archived WAL."""
    server = archiving_server(make_server, relay, wal_keep_size=0)
    source = ["--repo", repo, "-d", server.conninfo, "-c", "fast"]
    prepare(server)
    full = json.loads(pgwal("full", *source, "--json"))
    for step in (1, 2):
        run_load(server, step)
        wait_until_archived(server, switch_wal(server))
    with server.connect() as connection:
        # The server removes what is archived.
        connection.execute("CHECKPOINT")
    first = json.loads(pgwal("incremental", *source, "--json"))
    assert first["prior"] == full["id"]
    assert 0 < first["copied_block_count"] < first["block_count"]
    run_load(server, 3)
    wait_until_archived(server, switch_wal(server))
    second = json.loads(pgwal("incremental", *source, "--json"))
    assert second["prior"] == first["id"]
    run_load(server, 4)
    wait_until_archived(server, switch_wal(server))
    expected = checksums(server)
    target = scratch / "restored"
    pgwal("restore", "latest", "--repo", repo, "-D", target)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(repo)], scratch / "restoring") as restoring:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{restoring.restore_command}'\n")
        relay.serve(restored := make_server(adopt=target))
        wait_until_promoted(restored)
        assert checksums(restored) == expected
        # It goes on with the same archive_command, on a timeline of its own.
        wait_until_archived(restored, switch_wal_with(restored, "CREATE TABLE afterwards AS SELECT 1 AS a"))
    assert (repo / "wal" / "00000002.history").is_file()
    names = [path.name for path in (repo / "wal").iterdir()]
    assert any(name.endswith(".backup") for name in names)
    assert len(pgwal("verify", "--repo", repo)) > 0


@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
def test_the_open_segment_of_a_timeline_that_was_left_never_counts_as_whole(
    make_server: ServerFactory, relay: ArchiveRelay, repo: Path, scratch: Path
) -> None:
    primary = archiving_server(make_server, relay)
    primary.stop()
    shutil.copytree(primary.data_directory, scratch / "copy", symlinks=True)
    (scratch / "copy" / "standby.signal").touch()
    primary.start()
    prepare(primary)
    pgwal("full", "--repo", repo, "-d", primary.conninfo, "-c", "fast")
    standby = make_server(adopt=scratch / "copy", settings={"primary_conninfo": primary.conninfo, "hot_standby": True})
    wait_until_archived(primary, switch_wal_with(primary, "CREATE TABLE some_words AS SELECT 1 AS a"))
    with primary.connect() as connection:
        connection.execute("CREATE TABLE last_words AS SELECT i FROM generate_series(1, 100) AS i")
        row = connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_lsn()").fetchone()
    assert row is not None
    left, lsn = str(row[0]), str(row[1])
    wait_until_replayed(standby, lsn)
    primary.kill()
    relay.serve(standby)
    standby.promote()
    wait_until_archived(standby, switch_wal_with(standby, "CREATE TABLE first_words AS SELECT 1 AS a"))
    files = [path.name for path in (repo / "wal").glob(f"{left}*")]
    assert len(files) == 1
    assert re.fullmatch(rf"{left}\.[0-9A-F]{{16}}\.zst\.partial", files[0])
    archive = Repository.open(repo).wal
    assert not archive.is_complete(*archive.geometry.parse_file_name(left))
    # It holds what the standby has of it, up to where it left the timeline; and to hand it over again is no failure.
    partial = standby.data_directory / "pg_wal" / f"{left}.partial"
    size = archive.history(2).switches[-1].switch_lsn % archive.geometry.segment_size
    assert archive.read_segment(left)[:size] == partial.read_bytes()[:size]
    assert run_archive_wal(repo, partial).returncode == 0
    history = scratch / "00000002.history"
    history.write_bytes(archive.history_content(2).replace(b"\t0/", b"\t1/"))
    assert run_archive_wal(repo, history).returncode == 4
    pgwal("incremental", "--repo", repo, "-d", standby.conninfo, "-c", "fast")


def wait_until_replayed(server: ThrowawayServer, lsn: str) -> None:
    deadline = time.monotonic() + 240
    while True:
        with server.connect() as connection:
            row = connection.execute(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn").fetchone()
        if row is not None and row[0]:
            return
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.05)


@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
def test_without_a_repository_the_server_keeps_its_wal(
    make_server: ServerFactory, relay: ArchiveRelay, repo: Path, scratch: Path
) -> None:
    server = archiving_server(make_server, relay)
    name = switch_wal_with(server, "CREATE TABLE waiting AS SELECT 1 AS a")
    wait_until_refused(server, name)
    assert not repo.exists()
    pgwal("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    wait_until_archived(server, switch_wal_with(server, "CREATE TABLE archived AS SELECT 1 AS a"))
    # As when its disk is not mounted.
    repo.rename(scratch / "away")
    name = switch_wal_with(server, "CREATE TABLE waiting_again AS SELECT 1 AS a")
    wait_until_refused(server, name)
    assert (server.data_directory / "pg_wal" / "archive_status" / f"{name}.ready").exists()
    (scratch / "away").rename(repo)
    wait_until_archived(server, name)
    assert {code for _, code in relay.codes} == {0, 1}
    assert archived(repo, name) == (server.data_directory / "pg_wal" / name).read_bytes()


def wait_until_refused(server: ThrowawayServer, name: str) -> None:
    deadline = time.monotonic() + 240
    while True:
        with server.connect() as connection:
            row = connection.execute("SELECT last_failed_wal FROM pg_stat_archiver").fetchone()
        if row is not None and row[0] is not None and row[0] >= name:
            return
        assert time.monotonic() < deadline, row
        time.sleep(0.05)


@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
def test_what_waits_is_archived_ahead_and_told_of_by_marks_that_fit_alone(
    make_server: ServerFactory, repo: Path
) -> None:
    server = make_server(settings={"archive_mode": True, "archive_command": "false", "wal_keep_size": "1GB"})
    pgwal("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    names = [switch_wal_with(server, f"CREATE TABLE made_{number} AS SELECT 1 AS a") for number in range(4)]
    wal = server.data_directory / "pg_wal"
    # As on a full disk.
    limited = ["sh", "-c", 'ulimit -f 2000; exec "$@"', "sh", *PGWAL, "archive-wal", "-Z", "none", "--repo", str(repo)]
    finished = subprocess.run([*limited, str(wal / names[0])], capture_output=True, text=True)
    assert finished.returncode == 1, finished.stderr
    assert not list((repo / "wal").glob(f"*{names[0]}*"))
    assert run_archive_wal(repo, wal / names[0]).returncode == 0
    archive = Repository.open(repo).wal
    deadline = time.monotonic() + 240
    while not all(archive.is_complete(*archive.geometry.parse_file_name(name)) for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [archived(repo, name) for name in names] == [(wal / name).read_bytes() for name in names]
    for name in names[1:3]:
        assert run_archive_wal(repo, wal / name).returncode == 0
    # A mark says nothing of a file that is another one, nor of an object that is gone.
    (repo / "wal" / f"{names[3]}.zst").unlink()
    assert run_archive_wal(repo, wal / names[3]).returncode == 0
    assert archived(repo, names[3]) == (wal / names[3]).read_bytes()
    changed = bytearray((wal / names[3]).read_bytes())
    changed[100] ^= 1
    (wal / names[3]).write_bytes(changed)
    assert run_archive_wal(repo, wal / names[3]).returncode == 4


@pytest.mark.postgres(18)
@pytest.mark.parametrize("where", ["encrypted", "bucket"])
def test_sealed_and_stored_over_a_network_the_same_holds(
    make_server: ServerFactory, scratch: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, identity = str(scratch / "sealed"), scratch / "identity.txt"
    recipient = pgwal("key", "generate", "-o", identity).strip()
    opening: list[str] = []
    if where == "bucket":
        for name, value in shared_bucket().server.environment().items():
            monkeypatch.setenv(name, value)
        address = str(shared_bucket().place())
    else:
        pgwal("init", "--repo", address, "--recipient", recipient)
        opening = ["--identity", str(identity)]
    server = make_server(settings={"archive_mode": True, "archive_command": "false", "wal_keep_size": "1GB"})
    pgwal("full", "--repo", address, "-d", server.conninfo, "-c", "fast")
    names = [switch_wal_with(server, f"CREATE TABLE made_{number} AS SELECT 1 AS a") for number in range(3)]
    wal = server.data_directory / "pg_wal"
    for _ in range(2):
        for name in names:
            # Twice over, and with a public key alone: what is there is compared.
            finished = run_archive_wal(address, wal / name)
            assert finished.returncode == 0, finished.stderr
    changed = scratch / names[0]
    changed.write_bytes((wal / names[0]).read_bytes()[:-1] + b"\1")
    assert run_archive_wal(address, changed).returncode in (1, 4)
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setenv("XDG_STATE_HOME", str(scratch / "elsewhere"))
        for name in names:
            pgwal("fetch-wal", "--repo", address, *opening, name, scratch / f"fetched-{name}")
            assert (scratch / f"fetched-{name}").read_bytes() == (wal / name).read_bytes()

        shutil.rmtree(wal / "archived.pgwal")
        if opening:
            finished = run_archive_wal(address, wal / names[0])
            assert finished.returncode == 1
            assert "cannot read it to compare" in finished.stderr
            assert "--identity" in finished.stderr
        assert run_archive_wal(address, wal / names[0], *opening).returncode == 0
