"""Killed in the middle: a restore that was is seen to be one; a server that was loses no committed row.

PGWAL_RESTORE_KILLS is how many restores are killed, each after a random time.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from core.test_control_file import build
from fix_servers import ServerFactory
from pgwal_process import finish, run_pgwal, start_pgwal, succeed
from restore.damaged_directory import tree
from restore.made_repository import Blocks, MadeRepository, block
from restore.restored_server import Scene
from seeds import new_seed
from test_main_job import server_streams

from pgwal.backup.exclusion import INCOMPLETE_NAME
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.repository.storage_format import StorageFormat
from pgwal_cli.throwaway_server import ThrowawayServer

KILLS = int(os.environ.get("PGWAL_RESTORE_KILLS", "8"))


def made_chain(directory: Path, storage_format: StorageFormat) -> MadeRepository:
    made = MadeRepository(directory / "repo", storage_format=storage_format)
    paths = [f"base/5/{number}" for number in range(20000, 21000)]
    made.add(dict.fromkeys(paths, block("a") * 4))
    made.add(dict.fromkeys(paths, Blocks(4, {2: block("b")})))
    return made


@pytest.mark.parametrize("command", ["restore", "combine"])
def test_killed_while_it_writes(tmp_path: Path, storage_format: StorageFormat, command: str) -> None:
    made = made_chain(tmp_path, storage_format)
    target = tmp_path / "target"
    arguments = {"restore": ["restore", "-D", target], "combine": ["combine", made.ids[-1], "-o", target]}[command]
    seed = new_seed()
    rng = random.Random(seed)
    killed = 0
    for _ in range(KILLS):
        process = start_pgwal(*arguments, "--repo", made.path)
        while process.poll() is None and not target.exists():
            time.sleep(0.001)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        done = finish(process).code == 0
        startable = (target / "global/pg_control").exists()
        assert startable or not done
        if startable:
            # All of it is there, whether the process lived to say so or not.
            assert not (target / INCOMPLETE_NAME).exists()
            assert len(list((target / "base/5").iterdir())) == 1000
        elif any(target.iterdir()):
            killed += 1
            assert (target / INCOMPLETE_NAME).exists()
            outcome = run_pgwal(*arguments, "--repo", made.path)
            assert outcome.code == 1
            assert "interrupted" in outcome.errors[0]
        os.system(f"rm -rf {target}")
    assert killed, "none was killed in the middle"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Load:
    """Clients that insert rows one by one and note which were committed."""

    def __init__(self, server: ThrowawayServer) -> None:
        self.committed: list[int] = []
        self._conninfo = server.conninfo
        self._threads = [threading.Thread(target=self._insert, args=(number,)) for number in range(4)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _insert(self, number: int) -> None:
        try:
            with psycopg.connect(self._conninfo, autocommit=True) as connection:
                for row in range(number, 1 << 30, 4):
                    connection.execute("INSERT INTO t VALUES (%s)", [row])
                    self.committed.append(row)
        except psycopg.Error:
            pass  # The server is gone.


@pytest.mark.postgres(13, 18)
def test_no_committed_row_is_lost_with_a_synchronous_receiver(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server(settings={"autovacuum": False, "wal_keep_size": "1GB"})
    repo = scratch / "repo"
    with server.connect() as connection:
        connection.execute("CREATE TABLE t (id int)")
    source = ["-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast", "--json"]
    receiver = start_pgwal("stream", "--repo", repo, "-d", server.conninfo, "--synchronous")
    try:
        wait_until(lambda: server_streams(server))
        succeed("full", "--repo", repo, *source)
        server.configure(synchronous_standby_names="*")
        server.reload()
        load = Load(server)
        load.start()
        wait_until(lambda: len(load.committed) > 100)
        backup = json.loads(succeed("incremental", "--repo", repo, *source))["id"]
        enough = len(load.committed) + 300
        wait_until(lambda: len(load.committed) > enough)
    finally:
        # Both at once, in the middle of it.
        server.kill()
        receiver.kill()
        receiver.communicate()
    load.join()
    committed = set(load.committed)
    print(f"{len(committed)} rows were committed")
    assert list((repo / "wal").glob("*.partial"))
    scene = Scene(repo, make_server)
    target = scene.restore(scratch / "restored", backup)
    with scene.started(target) as restored, restored.connect() as connection:
        found = {row[0] for row in connection.execute("SELECT id FROM t")}
    assert not committed - found


@pytest.mark.parametrize("first", ["fresh", "delta"])
def test_what_was_killed_is_finished_by_a_delta(tmp_path: Path, storage_format: StorageFormat, first: str) -> None:
    made = MadeRepository(tmp_path / "repo", storage_format=storage_format)
    paths = [f"base/5/{number}" for number in range(20000, 20500)]
    made.add({CONTROL_FILE_PATH: build(18)} | dict.fromkeys(paths, block("a") * 4))
    made.add({CONTROL_FILE_PATH: build(18)} | dict.fromkeys(paths[50:], Blocks(4, {2: block("b")})))
    words = ["restore", "--repo", made.path, "-D"]
    succeed(*words, tmp_path / "fresh")
    expected = tree(tmp_path / "fresh")
    seed = new_seed()
    rng, target, killed = random.Random(seed), tmp_path / "target", 0
    for _ in range(KILLS):
        if first == "delta":
            succeed(*words, target, made.ids[0], "-N")
        process = start_pgwal(*words, target, *(["--delta"] if first == "delta" else []))
        while process.poll() is None and not (target / INCOMPLETE_NAME).exists():
            time.sleep(0.001)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        finish(process)
        if (target / INCOMPLETE_NAME).exists():
            killed += 1
            # Once before the start, in the middle of it another time.
            assert not (target / CONTROL_FILE_PATH).exists() or first == "delta"
        succeed(*words, target, "--delta")
        assert tree(target) == expected
        shutil.rmtree(target)
    assert killed, "none was killed in the middle"
