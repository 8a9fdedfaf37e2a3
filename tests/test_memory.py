"""The most memory that commands have, of WAL and summaries that anyone may have made as large as possible."""

from __future__ import annotations

from pathlib import Path

import pytest
from pgwal_process import peak_mb

from pgwal_cli.throwaway_server import ThrowawayServer

MB = 1 << 20


@pytest.mark.postgres(18)
def test_a_receiver_needs_no_more_memory_for_a_long_record(server: ThrowawayServer, scratch: Path) -> None:
    stream = ("stream", "--repo", scratch / "repo", "-d", server.conninfo, "--once", "--slot", "s")
    without = peak_mb(*stream, "--create-slot")
    with server.connect() as connection:
        connection.execute("SELECT pg_logical_emit_message(false, 'long', repeat('y', 100000000))")
    assert peak_mb(*stream) < without + 30
