"""A server with ``full_page_writes = off``, as on ZFS: full backups of a primary are right, others are refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from differential.test_presence import SOURCES, Site, site  # noqa: F401
from differential.test_timelines import Pair, insert_lsn, one_value, pair, replays, wait_for  # noqa: F401
from pgwal_process import assert_failed, run_pgwal, succeed
from restore.restored_server import assert_sound, checksums

from pgwal.repository.repository import Repository
from pgwal.wal.decoder import WalDecoder
from pgwal.wal.record import WalRecord
from pgwal_cli.exit_codes import FAILED
from pgwal_cli.throwaway_server import ThrowawayServer

OFF = ("ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()")


def wait_for_setting(server: ThrowawayServer, value: str) -> None:
    wait_for(lambda: one_value(server, "SHOW full_page_writes") == value, "the setting")


def page_images(repo: Path, backup_id: str) -> int:
    """Return how many page images WAL has between start and stop of a backup."""
    repository = Repository.open(repo)
    entry = repository.catalogue.entry(backup_id)
    decoder, found = WalDecoder(repository.geometry.segment_size, entry.start_lsn), 0
    for data in repository.wal.read(entry.start_timeline_id, entry.start_lsn):
        decoder.feed(data)
        while isinstance(record := decoder.next_record(), WalRecord):
            if record.lsn >= entry.stop_lsn:
                return found
            found += sum(block.has_image for block in record.blocks)
    return found


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("source", SOURCES)
def test_full_backups_are_right(site: Site, source: str) -> None:  # noqa: F811
    site.run(*OFF)
    site.run(
        *(
            f"CREATE TABLE t{n} AS SELECT i AS id, repeat('x', 300) AS f FROM generate_series(1, 4000) AS i"
            for n in range(4)
        )
    )
    done = threading.Event()

    def change() -> None:
        step = 0
        # Not as fast as it goes: what is written here is decoded, and replayed twice.
        while not done.wait(0.05):
            step += 1
            site.run(*(f"UPDATE t{n} SET f = repeat('{step % 10}', 300) WHERE id % 40 = {step % 40}" for n in range(4)))

    changing = threading.Thread(target=change)
    changing.start()
    try:
        backup_id = json.loads(succeed(*site.taking("full", source), "--max-rate", "8M"))["id"]
    finally:
        done.set()
        changing.join()
    assert page_images(site.repo, backup_id) > 50
    refused = run_pgwal(*site.taking("incremental", source))
    assert_failed(refused, FAILED, "full_page_writes is off", "full_page_writes = on .*A full backup is possible")
    taken = run_pgwal(*site.taking("backup", source))
    assert taken.code == 0, taken.stderr
    assert "no incremental backup is possible: full_page_writes is off" in taken.stderr
    assert json.loads(taken.stdout)["kind"] == "full"
    findings = json.loads(run_pgwal("check", "-d", site.server.conninfo, "--json").stdout)["findings"]
    (finding,) = [each for each in findings if each["name"] == "full_page_writes"]
    assert finding["status"] == "warning"
    # What ZFS users can do for incrementals, as the docs say.
    site.run("ALTER SYSTEM SET full_page_writes = on", "SELECT pg_reload_conf()")
    wait_for_setting(site.server, "on")
    site.run("UPDATE t1 SET f = 'new' WHERE id < 100")
    assert json.loads(succeed(*site.taking("incremental", source)))["kind"] == "incremental"
    succeed("stream", "--once", "--repo", site.repo, "-d", site.server.conninfo)
    expected = checksums(site.server)
    for number, restored_id in enumerate((backup_id, "latest")):
        target = site.scene.restore(site.scratch / f"restored{number}", restored_id)
        with site.scene.started(target) as server:
            assert checksums(server) == expected
            assert_sound(server)


@pytest.mark.postgres(18)
def test_a_standby_of_such_a_primary_is_refused(pair: Pair, scratch: Path) -> None:  # noqa: F811
    with pair.primary.connect() as connection:
        for statement in OFF:
            connection.execute(statement)
        wait_for_setting(pair.primary, "off")
        for statement in ("CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT"):
            connection.execute(statement)
    end = insert_lsn(pair.primary)
    wait_for(lambda: replays(pair.standby, end), "the standby")
    with pair.standby.connect() as connection:
        connection.execute("CHECKPOINT")
    refused = run_pgwal("full", "--repo", scratch / "repo", "-d", pair.standby.conninfo, "-c", "fast")
    assert_failed(refused, FAILED, "full_page_writes is off", "on the primary, or back the primary up")
    assert not (scratch / "repo").exists()
