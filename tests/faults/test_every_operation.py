"""Whatever the operating system refuses, and whenever: every command ends, says why, and leaves nothing half done.

A command is run once to learn what it does, and then again and again, each time with another call of its failing:
see faulty_system.  What ends with 0 all the same has done its work.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import zstandard
from fix_formats import new_repository
from fix_servers import ServerFactory, Templates
from pgwal_process import Outcome, assert_nothing_raw, succeed
from support.faulty_system import Fault, FaultySystem, Operation, choose_faults

from pgwal.repository.storage_format import FileFormat, StorageFormat
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer

SEED = 14
EITHER_WILL_DO = pytest.mark.postgres(18)
"""For what no version has a say in."""
KNOWN_CODES = {0, 1, 3, 4, 5, 6}
FATAL = 126
SMALL_SEGMENTS = ("--wal-segsize=1",)


@dataclass
class Scene:
    """A server; a repository with three backups, the second incremental, and WAL behind them; and where commands work.

    Another repository, ``behind``, has the first backup only and none of the WAL after it.
    """

    server: ThrowawayServer
    repo: Path
    behind: Path
    work: Path
    system: FaultySystem
    backups: list[dict[str, str]]

    @property
    def copy(self) -> Path:
        return self.work / "repo"

    @property
    def target(self) -> Path:
        return self.work / "target"

    def renew(self, source: Path) -> None:
        """Put a copy of a repository, and nothing else, into the place where a command works."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        shutil.copytree(source, self.copy)

    def clear_target(self) -> None:
        if self.target.is_dir():
            shutil.rmtree(self.target)
        self.target.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def scene(
    installation: ServerInstallation, server_templates: Templates, session_scratch: Path, storage_format: StorageFormat
) -> Iterator[Scene]:
    directory = session_scratch / f"faults-{installation.major}-{storage_format.files}"
    with ServerFactory(installation, server_templates, directory) as factory:
        server = factory(initdb_args=SMALL_SEGMENTS, settings={"wal_keep_size": "200MB"})
        with server.connect() as session:
            session.execute("UPDATE pg_database SET datistemplate = false WHERE datname = 'template0'")
            session.execute("DROP DATABASE template0")
        repo, behind, work = (directory / name for name in ("origin", "behind", "work"))
        new_repository(repo, storage_format)
        taking = ["--repo", repo, "-d", server.conninfo, "-c", "fast", "--json"]
        backups = [json.loads(succeed("full", *taking))]
        shutil.copytree(repo, behind)
        with server.connect() as session:
            session.execute("CREATE TABLE t AS SELECT i, repeat('x', 500) AS filler FROM generate_series(1, 4000) i")
        backups.append(json.loads(succeed("incremental", *taking)))
        backups.append(json.loads(succeed("full", *taking)))
        with server.connect() as session:
            session.execute("UPDATE t SET i = i + 1")
        succeed("stream", "--repo", repo, "-d", server.conninfo, "--once", "-Z", "none")
        work.mkdir()
        with FaultySystem(directory, [work]) as system:
            yield Scene(server, repo, behind, work, system, backups)


def run_with_faults(
    scene: Scene,
    arguments: list[str | Path],
    count: int,
    before: Callable[[], None],
    after: Callable[[Outcome], None],
) -> None:
    """Run a command with ``count`` faults, and look at what each run leaves."""
    before()
    operations = scene.system.operations(arguments)
    after(Outcome(0, "", ""))
    for fault in choose_faults(operations, count, Random(SEED)):
        before()
        outcome = scene.system.run(arguments, fault)
        try:
            _check(outcome)
            after(outcome)
        except AssertionError as error:
            raise AssertionError(f"after {fault}: {outcome}") from error


def _check(outcome: Outcome) -> None:
    """Check that a command ended as commands do, whatever it met."""
    assert outcome.code in KNOWN_CODES
    assert_nothing_raw(outcome)
    assert outcome.code in (0, 5) or len(outcome.errors) == 1
    assert "[Errno" not in outcome.stderr


def nothing() -> None:
    pass


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_backups_over_sql(scene: Scene, kind: str) -> None:
    check_backups(scene, kind, [])


@EITHER_WILL_DO
@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_local_backups(scene: Scene, kind: str) -> None:
    check_backups(scene, kind, ["--pgdata", scene.server.data_directory])


def check_backups(scene: Scene, kind: str, where: list[str | Path]) -> None:
    scene.renew(scene.repo)
    taking = [kind, "--repo", scene.copy, "-d", scene.server.conninfo, "-c", "fast", "-j", "2", *where]
    expected = len(scene.backups)

    def count(outcome: Outcome) -> None:
        nonlocal expected
        expected += outcome.code == 0
        published = [path for path in (scene.copy / "backups").iterdir() if not path.name.endswith(".unfinished")]
        # When it failed after the rename, nobody can tell whether it outlasts a power cut.
        assert len(published) == expected or re.search("cannot (sync|move)", outcome.stderr)
        expected = len(published)

    run_with_faults(scene, taking, 8, nothing, count)
    succeed("verify", "--repo", scene.copy)
    with scene.server.connect() as session:
        left = session.execute("SELECT query FROM pg_stat_activity WHERE application_name = 'pgwal'").fetchall()
    assert not left


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_a_disk_that_is_full_ends_all_jobs(scene: Scene, storage_format: StorageFormat, jobs: int) -> None:
    scene.renew(scene.behind)
    taking = ["full", "--repo", scene.copy, "-d", scene.server.conninfo, "-c", "fast", "-j", str(jobs)]
    stored = Operation("write", "/repo/backups/#T#Z_full.unfinished/data/base/#/#")
    if storage_format.files is FileFormat.PACKED:
        # Of these there are as many as jobs, a few megabytes in all, and each is written with few calls.
        stored = Operation("write", "/repo/packs/#/.#.#-#.tmp")
    for nth in (1, 2, 40) if storage_format.files is FileFormat.PLAIN else (1,):
        outcome = scene.system.run(taking, Fault(stored, nth, errno.ENOSPC, lasts=True))
        _check(outcome)
        assert outcome.code == 1
        assert "No space left" in outcome.errors[0]
        assert outcome.hints == ["Free some space; WAL that was reported as received is safe."]
        assert len(list((scene.copy / "backups").iterdir())) == 1


@pytest.mark.postgres(13, 18)
def test_stream(scene: Scene) -> None:
    streaming = ["stream", "--repo", scene.copy, "-d", scene.server.conninfo, "--once"]

    def check_archive(outcome: Outcome) -> None:
        if outcome.code:
            assert scene.system.run(streaming).code == 0
        received = list((scene.copy / "wal").glob("*0*"))
        assert len(received) > 5
        for path in received:
            if path.suffix != ".partial":
                content = path.read_bytes()
                content = zstandard.decompress(content) if path.suffix == ".zst" else content
                assert content == (scene.server.data_directory / "pg_wal" / path.stem).read_bytes()

    run_with_faults(scene, streaming, 10, lambda: scene.renew(scene.behind), check_archive)


@EITHER_WILL_DO
@pytest.mark.parametrize(("command", "option"), [("restore", "-D"), ("combine", "-o")])
def test_rebuilding(scene: Scene, command: str, option: str) -> None:
    scene.renew(scene.repo)
    rebuilding = [command, scene.backups[1]["id"], "--repo", scene.copy, option, scene.target]
    contents: list[dict[str, bytes]] = []

    def check_target(outcome: Outcome) -> None:
        if outcome.code == 0:
            assert (scene.target / "global/pg_control").exists()
            found = {str(path.relative_to(scene.target)): path.read_bytes() for path in scene.target.glob("base/*/*")}
            contents.append(found)
            assert found == contents[0]

    run_with_faults(scene, rebuilding, 10, scene.clear_target, check_target)


@EITHER_WILL_DO
def test_fetch_wal(scene: Scene) -> None:
    scene.renew(scene.repo)
    segment = max(path for path in (scene.copy / "wal").iterdir() if not path.suffix)
    # A server takes 126 and above for a failure, less for a file that is not there.
    fetching = ["fetch-wal", segment.name, scene.target, "--repo", scene.copy]

    def check_segment(outcome: Outcome) -> None:
        assert scene.target.exists() == (outcome.code == 0)
        assert outcome.code or scene.target.read_bytes() == segment.read_bytes()

    scene.clear_target()
    operations = scene.system.operations(fetching)
    for fault in choose_faults(operations, 12, Random(SEED)):
        scene.clear_target()
        outcome = scene.system.run(fetching, fault)
        assert outcome.code in (0, FATAL), (str(fault), outcome)
        assert_nothing_raw(outcome)
        check_segment(outcome)


@EITHER_WILL_DO
def test_expire(scene: Scene) -> None:
    def check_rest(outcome: Outcome) -> None:
        listed = json.loads(scene.system.run(["list", "--repo", scene.copy, "--json"]).stdout)["backups"]
        assert scene.backups[2]["id"] in [backup["id"] for backup in listed]
        # What it could not read it cannot judge: that stays, and is named.
        assert outcome.code or len(listed) == 1 or "is left in place" in outcome.stderr

    expiring = ["expire", "--repo", scene.copy, "--keep-full", "1"]
    run_with_faults(scene, expiring, 8, lambda: scene.renew(scene.repo), check_rest)


@EITHER_WILL_DO
def test_commands_that_read(scene: Scene) -> None:
    scene.renew(scene.repo)
    repo: list[str | Path] = ["--repo", scene.copy]
    server: list[str | Path] = ["-d", scene.server.conninfo]
    wal = scene.copy / "wal"
    between: list[str | Path] = ["--from", scene.backups[0]["start_lsn"], "--to", scene.backups[1]["start_lsn"]]
    commands: list[list[str | Path]] = [
        ["list", *repo],
        ["show", scene.backups[1]["id"], *repo],
        ["status", *repo, *server],
        ["check", *server],
        ["grants", "--role", "postgres", *server],
        ["verify", *repo],
        ["map", *repo, *between],
        ["map", "--wal", wal, *between],
        ["inspect", wal, "--stats"],
        ["summarize", wal, "-o", scene.target, "-j", "2"],
        ["incremental", *repo, *server, "--dry-run"],
    ]
    for command in commands:
        succeeded = scene.system.run(command)

        # What a server has done meanwhile shows in the others.
        is_constant = command[0] not in ("status", "incremental")

        def check_output(outcome: Outcome, expected: str = succeeded.stdout, is_constant: bool = is_constant) -> None:
            if outcome.code == 0 and outcome.stdout and is_constant:
                assert outcome.stdout == expected

        run_with_faults(scene, command, 5, nothing, check_output)
