"""Every version: full, full and one, full and five incrementals, across a timeline switch, with tablespaces.

Between the backups relations are dropped, created, truncated and grown; each chain is restored, started and checked.
PGWAL_LARGE_TESTS=1 adds a relation that grows over a gigabyte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fix_formats import new_repository
from fix_servers import ServerFactory, Templates
from pgwal_process import run_pgwal, succeed
from restore.restored_server import Rows, Scene, assert_sound, checksums
from test_main_job import wait_until_promoted

from pgwal.repository.storage_format import StorageFormat
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

SETTINGS: dict[str, str | int | bool] = {"autovacuum": False, "wal_keep_size": "1GB", "shared_buffers": "16MB"}

PREPARE = """
    CREATE TABLE kept (id int PRIMARY KEY, filler text);
    INSERT INTO kept SELECT i, repeat('k', 100) FROM generate_series(1, 4000) AS i;
    CREATE TABLE shrinking AS SELECT * FROM kept;
    CREATE TABLE emptied AS SELECT * FROM kept;
    CREATE TABLE dropped AS SELECT * FROM kept;
    CREATE TABLE elsewhere (id int PRIMARY KEY, filler text) TABLESPACE side;
    INSERT INTO elsewhere SELECT * FROM kept;
"""
STEPS = (
    "UPDATE kept SET filler = 'one' WHERE id % 50 = 1; UPDATE elsewhere SET filler = 'one' WHERE id % 90 = 1;"
    " DROP TABLE dropped; CREATE TABLE created AS SELECT * FROM kept WHERE id % 3 = 0; TRUNCATE emptied;"
    " DELETE FROM shrinking WHERE id > 500",
    "VACUUM shrinking; INSERT INTO emptied SELECT * FROM kept WHERE id < 100;"
    " CREATE TABLE moved TABLESPACE side AS SELECT * FROM kept",
    "INSERT INTO shrinking SELECT i, 'grown' FROM generate_series(10000, 14000) AS i; DROP TABLE created",
    "CREATE TABLE created AS SELECT * FROM kept WHERE id % 7 = 0; UPDATE elsewhere SET filler = 'four' WHERE id > 9",
    "VACUUM FULL kept; TRUNCATE moved; INSERT INTO elsewhere SELECT i, 'five' FROM generate_series(5000, 9000) AS i",
)


@dataclass
class Story:
    """A server's backups, each with the rows of that moment; the last one is of the next timeline."""

    scene: Scene
    server: ThrowawayServer
    tablespace: Path
    backups: list[tuple[str, Rows]] = field(default_factory=list)

    def run(self, script: str) -> None:
        with self.server.connect(autocommit=True) as connection:
            for statement in script.split(";"):
                if statement.strip():
                    connection.execute(statement.encode())

    def back_up(self, command: str) -> None:
        source = ["-d", self.server.conninfo, "--pgdata", self.server.data_directory, "-c", "fast", "--json"]
        report = json.loads(succeed(command, "--repo", self.scene.repo, *source))
        self.backups.append((report["id"], checksums(self.server)))

    def switch_timeline(self) -> None:
        """Have the server recover to the end of its own WAL, after which it is on a new timeline."""
        self.server.stop()
        signal = self.server.data_directory / "recovery.signal"
        signal.touch()
        give_to_server(signal)
        self.server.configure(restore_command="/bin/false")
        self.server.start()
        wait_until_promoted(self.server)
        succeed("stream", "--once", "--repo", self.scene.repo, "-d", self.server.conninfo)


@pytest.fixture(scope="module")
def story(
    installation: ServerInstallation, server_templates: Templates, module_scratch: Path, storage_format: StorageFormat
) -> Iterator[Story]:
    directory = module_scratch / f"matrix-{installation.major}-{storage_format.files}"
    with ServerFactory(installation, server_templates, directory) as factory:
        server = factory(initdb_args=("--wal-segsize=1",), settings=SETTINGS)
        tablespace = directory / "side"
        tablespace.mkdir(mode=0o700)
        give_to_server(tablespace)
        scene = Scene(new_repository(directory / "repo", storage_format), factory)
        story = Story(scene, server, tablespace)
        story.run(f"CREATE TABLESPACE side LOCATION '{tablespace}';" + PREPARE)
        story.back_up("full")
        for step in STEPS:
            story.run(step)
            story.back_up("incremental")
        story.switch_timeline()
        story.run("UPDATE kept SET filler = 'later' WHERE id % 10 = 3; DROP TABLE moved")
        story.back_up("incremental")
        story.run("DELETE FROM kept WHERE id % 4 = 0; DROP TABLE elsewhere")
        yield story
        server.kill()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.postgres
@pytest.mark.parametrize("number", [0, 1, 5, 6], ids=["full", "one", "five", "switch"])
def test_restored_as_of_the_backup(story: Story, scratch: Path, number: int) -> None:
    backup_id, rows = story.backups[number]
    target, side = scratch / "restored", scratch / "side"
    timeline = ("--target-timeline", "2" if number == 6 else "1")
    story.scene.restore(
        target,
        backup_id,
        "--target-immediate",
        "--target-action=promote",
        *timeline,
        tablespaces={story.tablespace: side},
    )
    with story.scene.started(target) as server:
        assert checksums(server) == rows
        assert_sound(server)
        assert any(side.iterdir())


@pytest.mark.postgres(13, 18, 19)
def test_combined_backup_starts(story: Story, scratch: Path) -> None:
    """Without recovery settings it is a backup as pg_basebackup makes them: WAL is brought to it by hand."""
    backup_id, rows = story.backups[5]
    output = scratch / "combined"
    mapping = f"{story.tablespace}={scratch / 'side'}"
    succeed("combine", backup_id, "--repo", story.scene.repo, "-o", output, "-N", "-T", mapping)
    # With what the links of its tablespaces lead to.
    give_to_server(output)
    assert not (output / "recovery.signal").exists()
    if story.server.installation.has_tool("pg_verifybackup"):
        story.server.run_tool("pg_verifybackup", "-n", str(output))
    (output / "recovery.signal").touch()
    with (output / "postgresql.auto.conf").open("a") as settings:
        settings.write("recovery_target = 'immediate'\nrecovery_target_action = 'promote'\n")
    with story.scene.started(output) as server:
        assert checksums(server) == rows


@pytest.mark.postgres(18)
def test_backup_of_another_timeline_is_refused(story: Story, scratch: Path) -> None:
    newest = story.backups[-1][0]
    arguments = [
        "restore",
        newest,
        "--repo",
        story.scene.repo,
        "-D",
        scratch / "x",
        "-T",
        f"{story.tablespace}={scratch}/y",
    ]
    outcome = run_pgwal(*arguments, "--target-timeline", "1")
    assert outcome.code == 4
    assert "not in the history of timeline 1" in outcome.errors[0]
    outcome = run_pgwal(*arguments, "--target-timeline", "9")
    assert outcome.code == 4
    assert "timeline 9 is unknown" in outcome.errors[0]
    assert "1, 2" in outcome.hints[0]
    assert not (scratch / "x").exists()


@pytest.mark.postgres
@pytest.mark.skipif("PGWAL_LARGE_TESTS" not in os.environ, reason="writes two gigabytes; PGWAL_LARGE_TESTS=1 runs it")
def test_relation_grown_over_a_gigabyte(make_server: ServerFactory, scratch: Path, repo: Path) -> None:
    server = make_server(settings=SETTINGS | {"max_wal_size": "4GB", "wal_compression": "off"})
    story = Story(Scene(repo, make_server), server, scratch)
    grow = "INSERT INTO large SELECT i, repeat('x', 7000) FROM generate_series({}, {}) AS i"
    story.run(
        "CREATE TABLE large (id int, filler text); ALTER TABLE large ALTER filler SET STORAGE PLAIN;"
        + grow.format(1, 120_000)
    )
    story.back_up("full")
    story.run(grow.format(120_001, 140_000) + "; UPDATE large SET id = -id WHERE id IN (5, 70000)")
    source = ["-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    backup = json.loads(succeed("incremental", "--repo", story.scene.repo, *source))["id"]
    query = b"SELECT count(*), sum(id::bigint), sum(length(filler)) FROM large"
    with server.connect() as connection:
        expected = connection.execute(query).fetchone()
    target = story.scene.restore(scratch / "restored", backup)
    with story.scene.started(target) as restored, restored.connect() as connection:
        assert connection.execute(query).fetchone() == expected
        assert len(list((target / "base").rglob("*.1"))) == 1
