"""Audits: what the block map lacks is found and named, and nothing else is, whatever the server does meanwhile.

PGWAL_LARGE_TESTS=1 has them run on 13 to 19, and all of them over SQL as well.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from array import array
from pathlib import Path

import pytest
from audit.audited_server import AuditedServer
from differential.workload import INITDB_ARGS, SETTINGS, Workload
from fix_servers import MAJORS, ServerFactory
from pgwal_process import assert_failed, assert_nothing_raw, run_pgwal
from test_main_job import streaming, wait_until_promoted

from pgwal.backup.plan import IncrementalFile
from pgwal.backup.source import SourceFile
from pgwal.engine.audit import audit
from pgwal.engine.audit_sample import AuditSample
from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.copied_file import Item, PlannedFile
from pgwal.lsn import Lsn
from pgwal.page import page_lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.relation import BLOCK_SIZE
from pgwal.repository.local_place import LocalPlace
from pgwal_cli.exit_codes import CHAIN_BROKEN, FAILED, USAGE, VERIFICATION_FAILED
from pgwal_cli.throwaway_server import give_to_server

IS_EXHAUSTIVE = "PGWAL_LARGE_TESTS" in os.environ
LOOKED_AT = MAJORS if IS_EXHAUSTIVE else (18,)
QUIET: dict[str, str | int | bool] = {"autovacuum": False, "wal_keep_size": "1GB"}
SMALL_SEGMENTS = ("--wal-segsize=1",)
BLOCK_NO = 7


def no_checksums(major: int) -> tuple[str, ...]:
    return ("--no-data-checksums",) if major >= 18 else ()


def fill(audited: AuditedServer, table: str = "kept", rows: int = 3000) -> None:
    """Make a table of some 70 rows a block, of which nothing is left to be frozen or marked."""
    audited.execute(
        f"CREATE TABLE {table} (id int, filler text)",
        f"INSERT INTO {table} SELECT i, repeat('x', 80) FROM generate_series(1, {rows}) AS i",
        f"VACUUM (FREEZE) {table}",
    )


@pytest.fixture(params=["local", "sql"] if IS_EXHAUSTIVE else ["local"])
def audited(request: pytest.FixtureRequest, make_server: ServerFactory, scratch: Path) -> AuditedServer:
    server = make_server(initdb_args=SMALL_SEGMENTS, settings=QUIET)
    return AuditedServer(server, scratch / "repo", is_local=request.param == "local")


# ---- what is missed


@pytest.mark.postgres(*LOOKED_AT)
def test_a_block_that_the_map_lacks(audited: AuditedServer) -> None:
    fill(audited)
    full = audited.back_up("full")
    audited.execute(f"DELETE FROM kept WHERE ctid = '({BLOCK_NO},1)'")
    audited.receive()
    before = audited.audit()
    assert before["prior"] == full["id"]
    assert before["newer_block_count"] == 0
    assert audited.forget("kept", BLOCK_NO)

    outcome = audited.try_audit("--percent", "100")
    assert outcome.code == VERIFICATION_FAILED
    assert_nothing_raw(outcome)
    found = json.loads(outcome.stdout)
    assert found["unchanged_block_count"] == before["unchanged_block_count"] + 1
    (missed,) = found["missed_blocks"]
    spc_oid, db_oid, rel_number = audited.file_of("kept").locator
    assert (missed["path"], missed["fork"], missed["block_no"]) == (audited.path_of("kept"), "main", BLOCK_NO)
    assert (missed["tablespace_oid"], missed["database_oid"], missed["relation_number"]) == (
        spc_oid,
        db_oid,
        rel_number,
    )
    assert (missed["record"]["rmgr"], missed["record"]["record_type"]) == ("Heap", "DELETE")
    assert missed["record"]["end_lsn"] == missed["page_lsn"]
    assert missed["named_by_record"]
    assert Lsn.parse(found["window"][0]["start_lsn"]) < Lsn.parse(missed["page_lsn"])

    over_sql = AuditedServer(audited.server, audited.repo, is_local=False)
    text = run_pgwal("audit", *over_sql.place[:-1], "--percent", "100")
    assert text.code == VERIFICATION_FAILED
    line = f"missed: {missed['path']}, fork main, block {BLOCK_NO}: its page LSN is {missed['page_lsn']}; the record"
    assert line in text.stdout
    assert "rmgr: Heap" in text.stdout

    refused = run_pgwal("incremental", *audited.place[:-1], "-c", "fast", "--audit", "100")
    assert refused.code == VERIFICATION_FAILED
    assert missed["path"] in refused.errors[-1]
    assert missed["page_lsn"] in refused.errors[-1]
    assert "not published" in refused.hints[-1]
    assert [path.name for path in Path(audited.repo, "backups").iterdir()] == [full["id"]]

    # As the hint says: WAL is read in place of the summaries.
    audited.remove_summaries()
    audited.audit()
    incremental = audited.back_up("incremental", "--audit", "100")
    assert incremental["audit"]["missed_block_count"] == 0
    assert incremental["audit"]["read_block_count"] == incremental["audit"]["unchanged_block_count"] > 100


@pytest.mark.postgres(18)
def test_a_sample_can_be_drawn_again(make_server: ServerFactory, scratch: Path) -> None:
    audited = AuditedServer(make_server(initdb_args=SMALL_SEGMENTS, settings=QUIET), scratch / "repo")
    fill(audited)
    audited.back_up("full")
    audited.execute(f"DELETE FROM kept WHERE ctid = '({BLOCK_NO},1)'")
    audited.receive()
    audited.forget("kept", BLOCK_NO)
    path = audited.path_of("kept")
    size_bytes = (audited.server.data_directory / path).stat().st_size
    item = Item(SourceFile(path, size_bytes, 0.0), size_bytes)
    planned = PlannedFile(item.file, IncrementalFile(size_bytes // BLOCK_SIZE, array("I")))
    has_it = {seed: BLOCK_NO in AuditSample(50.0, seed).blocks(item, planned) for seed in range(20)}
    assert set(has_it.values()) == {True, False}
    for seed in (min(seed for seed in has_it if has_it[seed] is wanted) for wanted in (True, False)):
        outcomes = [audited.try_audit("--percent", "50", "--seed", str(seed)) for _ in range(2)]
        documents = [json.loads(outcome.stdout) for outcome in outcomes]
        assert {outcome.code for outcome in outcomes} == {VERIFICATION_FAILED if has_it[seed] else 0}
        assert documents[0]["seed"] == documents[1]["seed"] == seed
        assert documents[0]["read_block_count"] == documents[1]["read_block_count"]
        assert 0.4 < documents[0]["read_block_count"] / documents[0]["unchanged_block_count"] < 0.6


@pytest.mark.postgres(*LOOKED_AT)
@pytest.mark.parametrize("has_checksums", [False, True], ids=["no checksums", "checksums"])
def test_pages_with_lsns_that_no_record_has(make_server: ServerFactory, scratch: Path, has_checksums: bool) -> None:
    """Nothing that WAL explains, and no server would write; a page of zeros is of before any window."""
    arguments = ("-k",) if has_checksums else no_checksums(make_server.installation.major)
    audited = AuditedServer(make_server(initdb_args=(*SMALL_SEGMENTS, *arguments), settings=QUIET), scratch / "repo")
    fill(audited)
    fill(audited, "other")
    start = Lsn.parse(audited.back_up("full")["start_lsn"])
    audited.execute(f"DELETE FROM other WHERE ctid = '({BLOCK_NO},1)'")
    path, other = (audited.server.data_directory / audited.path_of(table) for table in ("kept", "other"))
    audited.server.stop()
    of_another = page_lsn(other.read_bytes()[BLOCK_NO * BLOCK_SIZE :][:8])
    content = bytearray(path.read_bytes())
    for block_no, lsn in ((3, start + 1), (5, 0xFFFFFFFF << 32), (9, start), (13, of_another)):
        struct.pack_into("<II", content, block_no * BLOCK_SIZE, lsn >> 32, lsn & 0xFFFFFFFF)
    content[11 * BLOCK_SIZE : 12 * BLOCK_SIZE] = bytes(BLOCK_SIZE)
    path.write_bytes(content)
    audited.server.start()
    outcome = audited.try_audit("--percent", "100")
    assert outcome.code == VERIFICATION_FAILED, outcome.stderr
    assert_nothing_raw(outcome)
    missed = json.loads(outcome.stdout)["missed_blocks"]
    assert [(each["block_no"], each["wal_archived"]) for each in missed] == [(3, True), (5, False), (13, True)]
    assert [each["record"] for each in missed[:2]] == [None, None]
    assert [each["damaged"] for each in missed[:2]] == [has_checksums, has_checksums]
    assert missed[2]["record"]["record_type"] == "DELETE"
    assert not missed[2]["named_by_record"]


# ---- what is not


@pytest.mark.postgres(*LOOKED_AT)
def test_after_changes_of_every_kind(make_server: ServerFactory, scratch: Path) -> None:
    """Rows, indexes of all kinds, sequences, DDL, unlogged and temporary relations, tablespaces, databases."""
    server = make_server(initdb_args=INITDB_ARGS, settings=SETTINGS | {"wal_keep_size": "1GB"})
    workload = Workload(server, scratch)
    workload.prepare()
    local = AuditedServer(server, scratch / "repo")
    local.back_up("full")
    with streaming(server, local.repo):
        workload.run()
        # Much of it is not in the files yet.
        local.audit()
        local.execute("CHECKPOINT")
        found = [audited.audit() for audited in (local, AuditedServer(server, local.repo, is_local=False))]
        assert found[0]["unchanged_block_count"] == found[1]["unchanged_block_count"]
        assert found[0]["read_block_count"] == found[0]["unchanged_block_count"] > 1000
        assert Lsn.parse(found[0]["flushed_lsn"]) > Lsn.parse(found[0]["window"][0]["start_lsn"])
        assert local.back_up("incremental", "--audit", "100")["audit"]["missed_block_count"] == 0


@pytest.mark.postgres(*LOOKED_AT)
@pytest.mark.parametrize("has_checksums", [False, True], ids=["no checksums", "checksums"])
def test_hint_bits(make_server: ServerFactory, scratch: Path, has_checksums: bool) -> None:
    """With checksums WAL has the page at the first hint since a checkpoint, and the map the block; else neither."""
    arguments = ("-k",) if has_checksums else no_checksums(make_server.installation.major)
    audited = AuditedServer(make_server(initdb_args=(*SMALL_SEGMENTS, *arguments), settings=QUIET), scratch / "repo")
    audited.execute("CREATE TABLE hinted AS SELECT i, repeat('h', 90) FROM generate_series(1, 3000) AS i")
    audited.back_up("full")
    path = audited.server.data_directory / audited.path_of("hinted")
    before = path.read_bytes()
    audited.execute("SELECT count(*) FROM hinted", "CHECKPOINT")
    after = path.read_bytes()
    starts = range(0, len(before), BLOCK_SIZE)
    hinted = [at for at in starts if before[at : at + BLOCK_SIZE] != after[at : at + BLOCK_SIZE]]
    assert len(hinted) > 40
    found = audited.audit()
    incremental = audited.back_up("incremental", "--audit", "100")
    assert (incremental["changed_block_count"] >= len(hinted)) is has_checksums
    assert found["missed_block_count"] == incremental["audit"]["missed_block_count"] == 0


@pytest.mark.postgres(*LOOKED_AT)
def test_blocks_that_change_while_they_are_audited(audited: AuditedServer) -> None:
    """Changed, truncated, dropped, rewritten, moved: WAL up to then says so."""
    for table in ("a_changed", "a_shrunk", "a_dropped", "a_rewritten"):
        fill(audited, table)
    audited.back_up("full")
    is_first = True

    def change(_done: int, _total: int) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            audited.execute(
                "UPDATE a_changed SET filler = 'changed' WHERE id % 70 = 0",
                "DELETE FROM a_shrunk WHERE ctid >= '(10,0)'",
                "VACUUM a_shrunk",
                "INSERT INTO a_shrunk SELECT i, 'grown' FROM generate_series(1, 500) AS i",
                "DROP TABLE a_dropped",
                "VACUUM FULL a_rewritten",
                "CHECKPOINT",
            )

    with streaming(audited.server, audited.repo):
        request = BackupRequest(
            LocalPlace(audited.repo),
            ConnectionParameters(audited.server.conninfo),
            audited.server.data_directory if audited.is_local else None,
            since="latest",
            audit=AuditSample(100.0, 0),
        )
        report = audit(request, change)
    assert not is_first
    assert report.tally.missed == []
    assert report.tally.missed_count == 0
    # Some were looked at after that.
    assert report.tally.newer_block_count > 30


@pytest.mark.postgres(*LOOKED_AT)
def test_a_standby_that_is_promoted(make_server: ServerFactory, scratch: Path) -> None:
    primary = make_server(initdb_args=SMALL_SEGMENTS, settings=QUIET, start=False)
    directory = scratch / "standby"
    shutil.copytree(primary.data_directory, directory)
    (directory / "standby.signal").touch()
    give_to_server(directory)
    primary.start()
    audited = AuditedServer(primary, scratch / "repo")
    of_standby = AuditedServer(
        make_server(adopt=directory, settings={"primary_conninfo": primary.conninfo}), audited.repo
    )
    fill(audited)
    audited.back_up("full")
    audited.execute("UPDATE kept SET filler = 'changed' WHERE id % 97 = 1", "CHECKPOINT")
    changed = audited.audit()
    deadline = time.monotonic() + 60
    while int(of_standby.value("SELECT count(*) FROM kept WHERE filler = 'changed'")) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert of_standby.audit()["unchanged_block_count"] == changed["unchanged_block_count"]
    audited.receive()
    primary.stop()
    of_standby.server.promote()
    wait_until_promoted(of_standby.server)
    # Before its first checkpoint, perhaps.
    found = of_standby.audit()
    assert [part["timeline"] for part in found["window"]] == [1, 2]
    of_standby.execute("UPDATE kept SET filler = 'again' WHERE id % 89 = 1", "CHECKPOINT")
    assert of_standby.audit()["unchanged_block_count"] <= found["unchanged_block_count"]


# ---- what cannot be audited


@pytest.mark.postgres(18)
def test_refusals(make_server: ServerFactory, scratch: Path) -> None:
    audited = AuditedServer(make_server(settings=QUIET), scratch / "repo")
    place = audited.place[:-1]
    assert_failed(run_pgwal("audit", *place), CHAIN_BROKEN, "no backup to build on")
    assert_failed(run_pgwal("audit", *place, "--percent", "0"), USAGE, "no percentage")
    assert_failed(run_pgwal("audit", *place, "--percent", "100.5"), USAGE, "no percentage")
    assert_failed(run_pgwal("incremental", *place, "--audit", "1", "--dry-run"), USAGE, "reads nothing")
    audited.back_up("full")
    assert_failed(run_pgwal("audit", *place, "--since", "20200101T000000Z_full"), FAILED, "there is no backup")
    # What `backup` takes is full where nothing is there; that has no window.
    other = AuditedServer(audited.server, scratch / "other")
    assert other.back_up("backup", "--audit", "100")["audit"] is None
