"""``--dry-run``: what an incremental backup would copy; it touches nothing. And gaps that are seen early."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed

from pgwal_cli.exit_codes import CHAIN_BROKEN
from pgwal_cli.throwaway_server import ThrowawayServer


def as_options(server: ThrowawayServer, repo: Path) -> list[str | Path]:
    return ["--repo", repo, "-d", server.conninfo]


def receive(server: ThrowawayServer, repo: Path) -> None:
    succeed("stream", *as_options(server, repo), "--once")


def state(server: ThrowawayServer, repo: Path) -> tuple[object, ...]:
    """Return what a dry run must leave alone."""
    with server.connect() as session:
        lsn = session.execute("SELECT checkpoint_lsn FROM pg_control_checkpoint()").fetchone()
    return lsn, sorted((path, path.stat().st_mtime_ns) for path in repo.rglob("*"))


@pytest.mark.postgres(13, 18)
def test_a_dry_run_names_what_the_backup_copies(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(settings={"autovacuum": False}), scratch / "repo"
    with server.connect() as session:
        session.execute("CREATE SCHEMA s")
        for table in ("s.changed", "unchanged", "truncated"):
            session.execute(f"CREATE TABLE {table} (i int, v text) WITH (fillfactor = 50)")
            session.execute(f"INSERT INTO {table} SELECT i, repeat('x', 500) FROM generate_series(1, 3000) AS i")
            # Hint bits are logged where pages have checksums.
            session.execute(f"SELECT count(*) FROM {table}")
        session.execute("CREATE DATABASE other")
    full = json.loads(succeed("full", *as_options(server, repo), "-c", "fast", "--json"))
    with server.connect() as session:
        session.execute("UPDATE s.changed SET v = 'y' WHERE ctid >= '(11,0)' AND ctid < '(14,0)'")
        session.execute("TRUNCATE truncated")
        session.execute("INSERT INTO truncated SELECT i, repeat('x', 500) FROM generate_series(1, 100) AS i")
    with server.connect(dbname="other") as session:
        session.execute("CREATE TABLE elsewhere AS SELECT generate_series(1, 1000) AS i")
        (path,) = session.execute("SELECT pg_relation_filepath('elsewhere')").fetchone() or ("",)
        session.execute("CHECKPOINT")
    receive(server, repo)
    before = state(server, repo)
    found = {}
    for source in ([], ["--pgdata", server.data_directory]):
        found[len(source)] = json.loads(
            succeed("incremental", *as_options(server, repo), *source, "--dry-run", "--json")
        )
    text = succeed("incremental", *as_options(server, repo), "--dry-run")
    assert f"would build on {full['id']}" in text
    assert re.search(r"^s\.changed +[0-9]+ +", text, re.MULTILINE)
    assert f"other: {path}" in text
    assert state(server, repo) == before
    document = found[0]
    assert document["relations"] == found[2]["relations"]
    blocks = {each["relation"] or each["path"]: each["block_count"] for each in document["relations"]}
    # The free space map goes whole.
    assert 3 <= blocks["s.changed"] <= 3 + 4
    assert blocks.get("public.unchanged", 0) <= 4
    # All of a table that was made anew.
    assert 5 < blocks["public.truncated"] < 50
    assert blocks[path] > 0
    assert document["block_count"] == sum(blocks.values())
    assert (document["prior"], document["kind"]) == (full["id"], "incremental")
    assert document["size_bytes"] < document["cluster_bytes"] / 2
    taken = json.loads(succeed("incremental", *as_options(server, repo), "-c", "fast", "--json"))
    # Little is written between the two.
    assert document["size_bytes"] <= taken["read_bytes"] <= document["size_bytes"] + 100 * 8192


@pytest.mark.postgres(18)
def test_a_dry_run_says_what_is_not_counted_or_not_possible(server: ThrowawayServer, scratch: Path) -> None:
    repo = scratch / "repo"
    dry = [*as_options(server, repo), "--dry-run"]
    assert_failed(run_pgwal("incremental", *dry), CHAIN_BROKEN, "no backup to build on")
    outcome = run_pgwal("backup", *dry)
    assert outcome.code == 0, outcome.stderr
    assert "this would be a full backup" in outcome.stderr
    assert "This would be a full backup." in outcome.stdout
    assert not repo.exists()
    succeed("full", *as_options(server, repo), "-c", "fast")
    with server.connect() as session:
        session.execute("CREATE TABLE t AS SELECT generate_series(1, 10000) AS i")
    text = succeed("backup", *dry)
    assert re.search(r"The server is at [0-9A-F]+/[0-9A-F]+: .* of WAL are not received, nor counted", text)
    assert "This would build on" in text
    receive(server, repo)
    assert re.search(r"^public\.t +4[0-9] +", succeed("backup", *dry), re.MULTILINE)


@pytest.mark.postgres(18)
def test_a_gap_is_found_before_the_checkpoint(server: ThrowawayServer, scratch: Path) -> None:
    repo = scratch / "repo"
    succeed("full", *as_options(server, repo), "-c", "fast")
    with server.connect() as session:
        for _ in range(3):
            session.execute("CREATE TABLE IF NOT EXISTS t AS SELECT 1")
            session.execute("INSERT INTO t SELECT generate_series(1, 10)")
            session.execute("SELECT pg_switch_wal()")
    receive(server, repo)
    segments = sorted((repo / "wal").glob("0*"))
    # Both what was received and what was made of it.
    for path in (segments[-2], *(repo / "summaries").iterdir()):
        path.unlink()
    with server.connect() as session:
        (before,) = session.execute("SELECT checkpoint_lsn FROM pg_control_checkpoint()").fetchone() or (None,)
        for options in ([], ["--dry-run"]):
            outcome = run_pgwal("incremental", *as_options(server, repo), "-c", "fast", *options)
            assert_failed(outcome, CHAIN_BROKEN, "WAL is missing: ", "Copy segment|full backup")
        (after,) = session.execute("SELECT checkpoint_lsn FROM pg_control_checkpoint()").fetchone() or (None,)
    assert before == after
