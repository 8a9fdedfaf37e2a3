"""Patroni makes a replica by pgwal, makes it anew after a switchover, and bootstraps a cluster at a point in time.

Patroni comes from the package index, into an environment of its own, with Raft as its store.  What it is told is what
docs/patroni.md says.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pgwal_process import PGWAL, environment

from pgwal_cli.server_account import server_identity
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import can_execute_python, give_to_server

pytestmark = [
    pytest.mark.skipif("PGWAL_PATRONI_TESTS" not in os.environ, reason="PGWAL_PATRONI_TESTS is not set"),
    pytest.mark.skipif(not can_execute_python(), reason="the servers' user cannot run this Python"),
]
TIMEOUT_S = 180


@pytest.fixture(scope="module")
def programs(module_scratch: Path) -> Path:
    """The directory of Patroni's programs; PGWAL_PATRONI_TESTS may name one where it is installed."""
    named = Path(os.environ["PGWAL_PATRONI_TESTS"])
    if (named / "patroni").exists():
        return named
    subprocess.run([sys.executable, "-m", "venv", module_scratch / "patroni"], check=True)
    wanted = ["patroni[raft]>=4,<5", "psycopg[binary]"]
    programs = module_scratch / "patroni" / "bin"
    subprocess.run([programs / "pip", "install", "-q", *wanted], check=True)
    return programs


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    assert isinstance(port, int)
    return port


def address() -> str:
    return f"127.0.0.1:{free_port()}"


@dataclass
class Node:
    """A node of Patroni: where it is, and what it is told."""

    name: str
    directory: Path
    programs: Path
    installation: ServerInstallation
    raft: str = field(default_factory=address)
    api: str = field(default_factory=address)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data_directory(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def configuration(self, partners: list[Node], repo: Path, restore: str | None) -> dict[str, Any]:
        """Return what docs/patroni.md says; with ``restore`` the cluster is bootstrapped by that command."""
        pgwal = shlex.join(PGWAL)
        bootstrap: dict[str, Any] = {
            "dcs": {"ttl": 20, "loop_wait": 1, "retry_timeout": 5, "postgresql": {"use_pg_rewind": False}},
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"wal-segsize": "1"}],
        }
        if restore is not None:
            bootstrap["method"] = "pgwal"
            bootstrap["pgwal"] = {
                "command": f"{pgwal} {restore} -D {self.data_directory}",
                "no_params": True,
                "keep_existing_recovery_conf": True,
            }
        fetch = f"{pgwal} fetch-wal --standby --repo {repo} %f %p"
        return {
            "scope": "restored" if restore else "main",
            "name": self.name,
            "restapi": {"listen": self.api, "connect_address": self.api},
            "raft": {
                "data_dir": str(self.directory / "raft"),
                "self_addr": self.raft,
                "partner_addrs": [each.raft for each in partners],
            },
            "bootstrap": bootstrap,
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data_directory),
                "bin_dir": str(self.installation.bin_dir),
                "pgpass": str(self.directory / "pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", "password": "secret"},
                    "replication": {"username": "replicator", "password": "secret"},
                },
                "parameters": {"unix_socket_directories": "", "wal_keep_size": "256MB", "fsync": False},
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
                "create_replica_methods": ["pgwal"],
                "pgwal": {
                    "command": f"{pgwal} restore --standby --repo {repo} -D {self.data_directory}",
                    "no_params": True,
                    "no_leader": True,
                },
                "recovery_conf": {"restore_command": fetch},
            },
        }

    @contextmanager
    def running(self, partners: list[Node], repo: Path, restore: str | None = None) -> Iterator[None]:
        """Run Patroni on the node, and have its server end with it."""
        self.directory.mkdir(mode=0o700)
        configuration = self.directory / "patroni.yml"
        # JSON is YAML.
        configuration.write_text(json.dumps(self.configuration(partners, repo, restore)))
        for path in (self.directory, configuration):
            give_to_server(path)
        with self.started("patroni", configuration):
            yield

    @contextmanager
    def voting(self, partners: list[Node]) -> Iterator[None]:
        """Have the node be no more than a voice of the store."""
        self.directory.mkdir(mode=0o700)
        configuration = self.directory / "patroni.yml"
        raft = {"self_addr": self.raft, "partner_addrs": [each.raft for each in partners]}
        raft["data_dir"] = str(self.directory / "raft")
        configuration.write_text(json.dumps({"raft": raft}))
        for path in (self.directory, configuration):
            give_to_server(path)
        with self.started("patroni_raft_controller", configuration):
            yield

    @contextmanager
    def started(self, program: str, configuration: Path) -> Iterator[None]:
        variables = environment(**self.installation.environment()) | {"HOME": str(self.directory)}
        with (self.directory / "log").open("w") as log:
            process = subprocess.Popen(
                [self.programs / program, configuration],
                cwd=self.directory,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **server_identity(),
            )
            self.process = process
            try:
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def query(self, statement: str) -> Any:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Speak to Patroni's API; POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self.api}/{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def leads(self) -> bool:
        """Tell whether it is the leader, and has ended recovery, which comes later."""
        return self.ask("primary")[0] == 200 and self.query("SELECT pg_is_in_recovery()") is False

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process is not None
            assert self.process.poll() is None, self.log[-4000:]
            assert time.monotonic() < deadline, self.log[-4000:]
            time.sleep(0.2)

    def wait_until_level(self, leader: Node) -> None:
        """Wait until the node has what its leader has, by a stream from it."""
        position = leader.query("SELECT pg_current_wal_lsn()::text")
        self.wait_until(lambda: self.ask("replica")[0] == 200)
        level = f"SELECT coalesce(pg_last_wal_replay_lsn() >= '{position}', false)"
        self.wait_until(lambda: bool(self.query(level)))
        self.wait_until(lambda: self.query("SELECT status FROM pg_stat_wal_receiver") == "streaming")


def pgwal(*arguments: str | Path) -> str:
    """Run pgwal as the user of the servers, whose the repository is."""
    command = [*PGWAL, *map(str, arguments)]
    finished = subprocess.run(
        command, cwd="/", env=environment(), capture_output=True, text=True, check=False, **server_identity()
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


ROWS = "SELECT count(*)::text || ' ' || coalesce(sum(id), 0) FROM t"


@pytest.mark.postgres(18)
def test_patroni(installation: ServerInstallation, programs: Path, scratch: Path) -> None:
    repo = scratch / "repo"
    one, two, voice, restored = (
        Node(name, scratch / name, programs, installation) for name in ("one", "two", "voice", "restored")
    )
    with ExitStack() as running:
        running.enter_context(voice.voting([one, two]))
        running.enter_context(one.running([two, voice], repo))
        one.wait_until(one.leads)
        one.query("CREATE TABLE t AS SELECT generate_series(1, 5000) AS id")
        pgwal("full", "--repo", repo, "-d", one.conninfo, "-c", "fast")
        one.query("INSERT INTO t SELECT generate_series(5001, 6000)")
        lsn, at_point = one.query("SELECT pg_current_wal_insert_lsn()::text"), one.query(ROWS)
        one.query("INSERT INTO t SELECT generate_series(6001, 9000)")
        pgwal("stream", "--once", "--repo", repo, "-d", one.conninfo)
        one.query("INSERT INTO t SELECT generate_series(9001, 12000)")

        running.enter_context(two.running([one, voice], repo))
        two.wait_until_level(one)
        assert two.query(ROWS) == one.query(ROWS)
        assert "replica has been created using pgwal" in two.log
        assert re.search(r'restored log file "\w{24}" from archive', two.log)

        # The other way round, and the first node made anew of the backup from before.
        code, answer = one.ask("switchover", {"leader": "one", "candidate": "two"})
        assert code == 200, answer
        two.wait_until(two.leads)
        two.query("INSERT INTO t SELECT generate_series(12001, 13000)")
        one.wait_until_level(two)
        code, answer = one.ask("reinitialize", {"force": True})
        assert code == 200, answer
        one.wait_until(lambda: "replica has been created using pgwal" in one.log)
        one.wait_until_level(two)
        assert one.query(ROWS) == two.query(ROWS)

        restore = f"restore --repo {repo} --target-lsn {lsn} --target-action promote"
        running.enter_context(restored.running([], repo, restore))
        restored.wait_until(restored.leads)
        assert restored.query(ROWS) == at_point
