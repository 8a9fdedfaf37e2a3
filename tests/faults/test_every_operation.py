"""Whatever the operating system refuses, and whenever: every command ends, says why, and leaves nothing half done.

A command is run once to learn what it does, and then again and again, each time with another call of its failing:
see faulty_system.  What ends with 0 all the same has done its work.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from fix_servers import ServerFactory, Templates
from pgwal_process import Outcome, assert_nothing_raw, succeed
from support.faulty_system import FaultySystem, choose_faults

from pgwal_cli.throwaway_server import ServerInstallation, ThrowawayServer

pytestmark = pytest.mark.postgres(13, 18)

SEED = 14
FAULTS_PER_COMMAND = 40
KNOWN_CODES = {0, 1, 3, 4, 5, 6}
FATAL = 126
SMALL_SEGMENTS = ("--wal-segsize=1",)


@dataclass
class Scene:
    """A server, a repository with a chain of two backups and WAL behind them, and one that is behind with WAL."""

    server: ThrowawayServer
    repo: Path
    behind: Path
    work: Path
    system: FaultySystem
    backups: list[str]

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


@pytest.fixture(scope="module")
def scene(
    installation: ServerInstallation, server_templates: Templates, session_scratch: Path
) -> Iterator[Scene]:
    directory = session_scratch / f"faults-{installation.major}"
    with ServerFactory(installation, server_templates, directory) as factory:
        server = factory(initdb_args=SMALL_SEGMENTS, settings={"wal_keep_size": "100MB"})
        repo, behind, work = (directory / name for name in ("origin", "behind", "work"))
        connection = ["-d", server.conninfo]
        _make_small(server)
        full = succeed("full", "--repo", repo, *connection, "-c", "fast").split()[2]
        shutil.copytree(repo, behind)
        with server.connect() as session:
            session.execute("CREATE TABLE t AS SELECT i, repeat('x', 500) AS filler FROM generate_series(1, 4000) i")
        incremental = succeed("incremental", "--repo", repo, *connection, "-c", "fast").split()[2]
        with server.connect() as session:
            session.execute("UPDATE t SET i = i + 1")
        succeed("stream", "--repo", repo, *connection, "--once", "-Z", "none")
        work.mkdir()
        with FaultySystem(directory, [work]) as system:
            yield Scene(server, repo, behind, work, system, [full, incremental])


def _make_small(server: ThrowawayServer) -> None:
    """Leave one database of three."""
    with server.connect() as connection:
        for name in ("template0", "template1"):
            connection.execute(f"UPDATE pg_database SET datistemplate = false WHERE datname = '{name}'")
            connection.execute(f"DROP DATABASE {name}")


def check(outcome: Outcome) -> None:
    """Check that a command that met a fault ended as commands do."""
    assert outcome.code in KNOWN_CODES, outcome
    assert_nothing_raw(outcome)
    assert (outcome.code == 0) == (outcome.errors == []), outcome


def run_with_faults(
    scene: Scene, arguments: list[str | Path], before: Callable[[], None], after: Callable[[Outcome], None]
) -> None:
    before()
    operations = scene.system.operations(arguments)
    import time
    print(arguments[0], sum(operations.values()), len(operations))
    t=time.time()
    for fault in choose_faults(operations, FAULTS_PER_COMMAND, Random(SEED)):
        before()
        t1=time.time()
        outcome = scene.system.run(arguments, fault)
        print(fault, outcome.code, outcome.stderr, f"{time.time()-t1:.2f}")
        try:
            check(outcome)
            after(outcome)
        except AssertionError as e:
            print("BAD", e)
    print("TOOK", time.time()-t)


def nothing() -> None:
    pass


def ignore(_: Outcome) -> None:
    pass


@pytest.mark.parametrize("source", ["over SQL", "local"])
@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_backups(scene: Scene, kind: str, source: str) -> None:
    where = [] if source == "over SQL" else ["--pgdata", scene.server.data_directory]
    arguments = [kind, "--repo", scene.copy, "-d", scene.server.conninfo, "-c", "fast", "-j", "2", *where]
    scene.renew(scene.repo)
    taken = [2]

    def after(outcome: Outcome) -> None:
        taken.append(outcome.code == 0)

    run_with_faults(scene, arguments, nothing, after)
    published = [path for path in (scene.copy / "backups").iterdir() if "unfinished" not in path.name]
    print(len(published), sum(taken) + 1)
    succeed("verify", "--repo", scene.copy)


def test_stream(scene: Scene) -> None:
    arguments = ["stream", "--repo", scene.copy, "-d", scene.server.conninfo, "--once"]
    run_with_faults(scene, arguments, lambda: scene.renew(scene.behind), ignore)


@pytest.mark.parametrize("command", ["restore", "combine"])
def test_rebuilding(scene: Scene, command: str) -> None:
    scene.renew(scene.repo)
    to = "-D" if command == "restore" else "-o"
    arguments = [command, scene.backups[1], "--repo", scene.copy, to, scene.target]
    run_with_faults(scene, arguments, lambda: shutil.rmtree(scene.target, ignore_errors=True), ignore)


@pytest.mark.parametrize(
    "command", [["list"], ["status"], ["verify"], ["show", "ID"], ["fetch-wal"], ["map"], ["inspect"], ["summarize"], ["check"], ["expire"]],
    ids=lambda command: command[0],
)
def test_others(scene: Scene, command: list[str]) -> None:
    scene.renew(scene.repo)
    repo = ["--repo", scene.copy]
    (segment, *_) = sorted((scene.copy / "wal").glob("*0" * 1 + "?"))
    arguments = {
        "list": ["list", *repo],
        "status": ["status", *repo, "-d", scene.server.conninfo],
        "verify": ["verify", *repo],
        "show": ["show", scene.backups[1], *repo],
        "fetch-wal": ["fetch-wal", segment.name, scene.target, *repo],
        "map": ["map", "--wal", scene.copy / "wal", "--from", "0/0", "--to", "0/0"],
        "inspect": ["inspect", scene.copy / "wal", "--stats"],
        "summarize": ["summarize", scene.copy / "wal", "-o", scene.target, "-j", "2"],
        "check": ["check", "-d", scene.server.conninfo],
        "expire": ["expire", *repo, "--keep-full", "1"],
    }[command[0]]
    run_with_faults(scene, arguments, nothing, ignore)
