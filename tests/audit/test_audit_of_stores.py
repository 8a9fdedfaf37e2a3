"""Audits whose WAL and summaries are in an object store, or encrypted: beside a receiver, and under load."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from audit.audited_server import AuditedServer
from audit.test_audit import BLOCK_NO, QUIET, SMALL_SEGMENTS, fill
from fix_servers import ServerFactory
from pgwal_process import assert_nothing_raw, run_pgwal, succeed
from support.shared_bucket import shared_bucket
from test_main_job import streaming

from pgwal.budget import HELD_SECRET_SEGMENTS
from pgwal_cli.exit_codes import VERIFICATION_FAILED

UNDER_LOAD = 2
"""Audits, and backups with one, while rows change."""
CHANGES_BETWEEN_CHECKPOINTS = 50


@pytest.fixture(params=["bucket", "encrypted directory"])
def audited(
    request: pytest.FixtureRequest, make_server: ServerFactory, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> AuditedServer:
    """A server, and a repository whose host has public keys alone where it is encrypted."""
    repo: Path | str = scratch / "repo"
    if request.param == "bucket":
        for name, value in shared_bucket().server.environment().items():
            monkeypatch.setenv(name, value)
        repo = shared_bucket().place().address
    else:
        recipient = succeed("key", "generate", "-o", scratch / "identity").strip()
        succeed("init", "--repo", repo, "--recipient", recipient)
    server = make_server(initdb_args=SMALL_SEGMENTS, settings=QUIET)
    return AuditedServer(server, repo)


@contextmanager
def changing(audited: AuditedServer, table: str) -> Iterator[threading.Event]:
    """Change rows of a table all the time; what is given is set when some have been changed."""
    has_begun, is_over = threading.Event(), threading.Event()

    def change() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            audited.execute(f"UPDATE {table} SET filler = 'r{number}' WHERE id % 61 = {number % 61}")
            # Not each time: with an image of each page there would be a segment for each few changes.
            if number % CHANGES_BETWEEN_CHECKPOINTS == 0:
                audited.execute("CHECKPOINT")
                has_begun.set()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield has_begun
    finally:
        is_over.set()
        thread.join()


@pytest.mark.postgres(14, 18)
def test_audits_under_load_and_of_a_block_that_the_map_lacks(audited: AuditedServer, scratch: Path) -> None:
    fill(audited)
    fill(audited, "changed")
    audited.back_up("full")
    with streaming(audited.server, str(audited.repo)), changing(audited, "changed") as has_begun:
        assert has_begun.wait(60)
        for _ in range(UNDER_LOAD):
            assert audited.audit()["unchanged_block_count"] > 100
            made = audited.back_up("incremental", "--audit", "100")
            assert made["audit"]["missed_block_count"] == 0
    # At rest it starts with a segment, where summaries begin on all majors: no WAL of before has to be opened later.
    audited.back_up("incremental")
    audited.execute(f"DELETE FROM kept WHERE ctid = '({BLOCK_NO},1)'")
    audited.receive()
    audited.audit()
    assert audited.forget("kept", BLOCK_NO)

    outcome = audited.try_audit("--percent", "100")
    assert outcome.code == VERIFICATION_FAILED, outcome.stderr
    assert_nothing_raw(outcome)
    (missed,) = json.loads(outcome.stdout)["missed_blocks"]
    assert (missed["path"], missed["fork"], missed["block_no"]) == (audited.path_of("kept"), "main", BLOCK_NO)
    assert (missed["record"]["rmgr"], missed["record"]["record_type"]) == ("Heap", "DELETE")
    assert missed["record"]["end_lsn"] == missed["page_lsn"]
    refused = audited.try_back_up("incremental", "--audit", "100")
    assert refused.code == VERIFICATION_FAILED
    assert missed["path"] in refused.errors[-1]

    if not (scratch / "identity").exists():
        return
    # A host without an identity cannot read the record of what it stored long ago; the block is missed all the same.
    audited.execute(*["CHECKPOINT", "SELECT pg_switch_wal()"] * (HELD_SECRET_SEGMENTS + 2))
    audited.receive()
    outcome = audited.try_audit("--percent", "100")
    assert outcome.code == VERIFICATION_FAILED, outcome.stderr
    unnamed = {"named_by_record": False, "record": None, "wal_encrypted": True}
    assert json.loads(outcome.stdout)["missed_blocks"] == [missed | unnamed]
    assert (
        "with --identity, the record is looked for"
        in run_pgwal("audit", *audited.place[:-1], "--percent", "100").stdout
    )
    named = audited.try_audit("--percent", "100", "--identity", scratch / "identity")
    assert json.loads(named.stdout)["missed_blocks"] == [missed]
