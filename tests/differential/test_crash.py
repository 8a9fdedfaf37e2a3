"""The server crashes while it writes a record of many segments: what it overwrites after recovery never happened."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from differential.test_records import BLOCK, LINE
from differential.test_summaries import last_cut, native_summaries, wait_for_both
from fix_servers import ServerFactory
from pgwal_process import succeed
from test_main_job import PGWAL, checksums, prepare, run_load, streaming, wait_until_promoted

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal.segment import WalGeometry
from pgwal.summary.codec import decode_summary
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

pytestmark = pytest.mark.other_minors

MB = 1 << 20
SEGMENT = WalGeometry(MB)
WAIT_S = 60
ATTEMPTS = 5

SETTINGS: dict[str, str | int | bool] = {"autovacuum": False, "wal_keep_size": "1GB", "max_wal_size": "2GB"}


def position(server: ThrowawayServer, function: str = "pg_current_wal_insert_lsn") -> Lsn:
    with server.connect() as connection:
        row = connection.execute(f"SELECT {function}()::text").fetchone()
    assert row is not None
    return Lsn.parse(row[0])


def crash_in_a_record(server: ThrowawayServer, repo: Path) -> bool:
    """Kill the server while it writes a record of 180 MB, start it again, and tell whether it overwrote the record."""
    begin = position(server)
    connection = psycopg.connect(server.conninfo)
    backend = connection.info.backend_pid

    def run() -> None:
        # That the server goes away is what this is about.
        with suppress(psycopg.Error):
            connection.execute("SELECT pg_logical_emit_message(true, 'test', repeat('interrupted ', 15000000))")

    thread = threading.Thread(target=run)
    thread.start()
    # Segments that are full are flushed, and sent: half of a record gets to the receiver.  The writer goes on in
    # slices, or on a busy machine all of it might be written before the server is killed.
    while not has_received(repo, Lsn(begin + 3 * MB)) and thread.is_alive():
        os.kill(backend, signal.SIGCONT)
        time.sleep(0.001)
        os.kill(backend, signal.SIGSTOP)
        time.sleep(0.01)
    server.kill()
    thread.join()
    connection.close()
    server.start()
    # What the insert position counts need not be written yet.
    return "OVERWRITE_CONTRECORD" in "".join(waldump(server, begin, position(server), check=False))


def waldump(server: ThrowawayServer, start: Lsn, end: Lsn, *, check: bool = True) -> list[str]:
    """Return what pg_waldump prints; with file names, for it may take an empty segment for the first."""
    names = [SEGMENT.file_name(1, number) for number in (SEGMENT.segment_no(start), SEGMENT.last_segment_no(end))]
    bounds = ["-p", str(server.data_directory / "pg_wal"), "-s", str(start), "-e", str(end)]
    return server.run_tool("pg_waldump", *bounds, *names, check=check).stdout.splitlines()


def essence(lines: list[str]) -> list[tuple[object, ...]]:
    """Return what pg_waldump and pgwal inspect print alike."""
    found = []
    for line in lines:
        head = LINE.match(line)
        assert head is not None, line
        blocks = [tuple(block.group("id", "spc", "db", "rel", "fork", "block")) for block in BLOCK.finditer(line)]
        lsns = [Lsn.parse(head[name]) for name in ("lsn", "prev")]
        found.append((*lsns, head["rmgr"], int(head["total"]), int(head["xid"]), blocks))
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def has_received(repo: Path, lsn: Lsn) -> bool:
    state = Repository.open(repo).receiver_state()
    return state is not None and state.flushed_lsn >= lsn


def assert_summaries_equal_the_servers(server: ThrowawayServer, repo: Path) -> None:
    with server.connect() as connection:
        connection.execute("CHECKPOINT")
    wait_for_both(server, repo, last_cut(server))
    repository = Repository.open(repo)
    native = native_summaries(server)
    ours = repository.summaries.ranges()
    end = min(ours[-1].end, max(r.end for r in native))
    compared = [r for r in ours[1:] if r.end <= end]
    assert compared == sorted(r for r in native if compared[0].start <= r.start and r.end <= end)
    for summary_range in compared:
        expected = decode_summary(native[summary_range].read_bytes(), "the server's")
        assert repository.summaries.read(summary_range) == expected, str(summary_range)


@pytest.mark.postgres(15, 16, 17, 18, 19)
def test_a_record_that_a_crash_cut_off(make_server: ServerFactory, scratch: Path) -> None:
    settings = SETTINGS | ({"summarize_wal": True} if make_server.installation.major >= 17 else {})
    server = make_server(initdb_args=("-k", "--wal-segsize=1"), settings=settings)
    repo = scratch / "repo"
    source: list[str | Path] = [
        "--repo",
        repo,
        "-d",
        server.conninfo,
        "--pgdata",
        server.data_directory,
        "-c",
        "fast",
        "--json",
    ]
    prepare(server)
    with streaming(server, repo):
        full = json.loads(succeed("full", *source))
        start = Lsn.parse(full["start_lsn"])
        run_load(server, 1)
        assert any(crash_in_a_record(server, repo) for _ in range(ATTEMPTS)), "no record was cut off"
        run_load(server, 2)
        end = position(server)
        run_load(server, 3)
        wait_for(lambda: has_received(repo, position(server, "pg_current_wal_flush_lsn")), "the receiver")
        incremental = json.loads(succeed("incremental", *source))
        if server.installation.major >= 17:
            assert_summaries_equal_the_servers(server, repo)
    assert incremental["prior"] == full["id"]
    assert 0 < incremental["copied_block_count"] < incremental["block_count"]

    bounds = ["--from", str(start), "--to", str(end)]
    inspected = succeed("inspect", repo / "wal", *bounds).splitlines()
    assert essence(inspected) == essence(waldump(server, start, end))
    (overwriting, *_) = [line for line in inspected if "OVERWRITE_CONTRECORD" in line]
    # It lies in a segment behind that of the record that it makes void, and links to the one before.
    head = LINE.match(overwriting)
    assert head is not None
    assert Lsn.parse(head["lsn"]) - Lsn.parse(head["prev"]) > 2 * MB
    assert "OVERWRITE_CONTRECORD" in succeed("inspect", repo / "wal", *bounds, "--rmgr", "XLOG", "--stats")
    # Summaries, the repository's WAL and the server's own WAL are one.
    mapped = succeed("map", "--repo", repo, *bounds)
    assert "FORK main: blocks" in mapped
    assert succeed("map", "--wal", repo / "wal", *bounds, "--json") == succeed(
        "map", "--wal", server.data_directory / "pg_wal", *bounds, "--json"
    )

    expected = checksums(server)
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    target = scratch / "restored"
    succeed("restore", "latest", "--repo", repo, "-D", target)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(repo)], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as file:
            file.write(f"restore_command = '{relay.restore_command}'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected
