"""A server whose WAL has a page magic that pgwal does not know: a release candidate, or a version to come."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import run_pgwal
from receiver.oracle import SLOT
from receiver.proxy import Proxy

from pgwal.wal.page_magic import wal_format_of_major

UNKNOWN_MAGIC = 0xD1F0


@pytest.mark.postgres(18)
def test_wal_of_an_unknown_magic_is_refused_before_any_is_stored(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(start=False), scratch / "repo"
    server.listen_addresses = "127.0.0.1"
    server.start()
    magic = wal_format_of_major(server.installation.major).magic
    with Proxy(server.port) as proxy:
        proxy.replaced = struct.pack("<H", magic), struct.pack("<H", UNKNOWN_MAGIC)
        conninfo = f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres"
        outcome = run_pgwal("stream", "--repo", str(repo), "-d", conninfo, *SLOT, "--once")
    assert outcome.code == 1
    assert f"WAL page magic {UNKNOWN_MAGIC:#06x} is not of PostgreSQL 13 to 19" in outcome.stderr
    assert "install the newest pgwal" in outcome.stderr
    assert all(path.stat().st_size == 0 or not any(path.read_bytes()) for path in (repo / "wal").glob("0*"))
