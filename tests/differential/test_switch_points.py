"""A server that was recovered to before a failover goes on: its history has switch points that fall."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from differential.test_timelines import Pair, has_received, insert_lsn, pair, receiver, replays, wait_for  # noqa: F401
from fix_servers import ServerFactory
from pgwal_process import succeed
from restore.restored_server import Scene
from test_main_job import checksums, prepare, run_load

from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository


@pytest.mark.postgres(13, 18, 19)
def test_switch_points_that_fall(pair: Pair, make_server: ServerFactory, scratch: Path) -> None:  # noqa: F811
    prepare(pair.primary)
    scene = Scene(pair.repo, make_server)
    with receiver(pair.conninfo, pair.repo):
        full = json.loads(succeed("full", *pair.source(pair.primary)))
        run_load(pair.primary, 1)
        target = insert_lsn(pair.primary)
        run_load(pair.primary, 2)
        wait_for(lambda: replays(pair.standby, insert_lsn(pair.primary)), "the standby to follow")
        pair.primary.kill()
        pair.standby.promote()
        run_load(pair.standby, 3)
        wait_for(lambda: has_received(pair.repo, 2, insert_lsn(pair.standby)), "the new timeline")
    pair.standby.stop()
    earlier = scene.restore(scratch / "earlier", "--target-lsn", str(target), "--target-action", "promote")
    with scene.started(earlier) as server:
        history = _history_of(server.data_directory, 3)
        assert [line.split()[0] for line in history] == ["1", "2"]
        first, second = (Lsn.parse(line.split()[1]) for line in history)
        assert second < first, "not the case that was to be made"
        run_load(server, 4)
        source: list[str | Path] = ["--repo", pair.repo, "-d", server.conninfo, "-c", "fast", "--json"]
        incremental = json.loads(succeed("incremental", *source))
        assert incremental["prior"] == full["id"]
        assert [part["timeline"] for part in incremental["window"]] == [1, 3]
        run_load(server, 5)
        expected = checksums(server)
        succeed("stream", "--repo", pair.repo, "-d", server.conninfo, "--once")
    assert {segment.timeline_id for segment in Repository.open(pair.repo).wal.segments()} == {1, 2, 3}
    with scene.started(scene.restore(scratch / "latest", "latest")) as restored:
        assert checksums(restored) == expected


def _history_of(data_directory: Path, timeline_id: int) -> list[str]:
    text = (data_directory / "pg_wal" / f"{timeline_id:08X}.history").read_text()
    return [line for line in text.splitlines() if line.strip()]
