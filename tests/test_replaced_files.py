"""Files that are replaced by renames while a backup runs are whole in it, whatever their size was when listed."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import succeed
from restore.restored_server import Scene

from pgwal.backup.entry_document import decode_entry
from pgwal.backup.manifest_reader import read_manifest
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.errors import FileReplaced
from pgwal.postgres import file_contents, whole_file
from pgwal.postgres.connection import ConnectionParameters, connect_sql
from pgwal.postgres.files import SqlDataDirectory
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

# In bytes: what is read together with others, what is read alone, and in several calls of the server.
SIZES = {"tiny": (20, 60), "small": (1000, 90_000), "medium": (100_000, 300_000), "large": (400_000, 3_000_000)}
DIRECTORY = "replaced"
RATE = "20M"
"""So that a file is listed long before it is read."""


def generation(name: str, number: int) -> bytes:
    """Return what a file holds in one of its generations: every byte of it tells, and so does its size."""
    chance = random.Random(f"{name} {number}")
    size = chance.randint(*SIZES[name])
    line = b"%08d %08d\n" % (number, size)
    if name == "tiny" and number % 7 == 0:
        return b""
    return (line * (size // len(line) + 1))[:size]


def is_whole(name: str, content: bytes) -> bool:
    # Of an empty one nothing tells, and nothing is missing.
    return not content or content == generation(name, int(content.split(b" ")[0]))


@contextmanager
def repeating(action: Callable[[int], None]) -> Iterator[None]:
    """Do something again and again, with a number that grows, in a thread of its own."""
    ended = threading.Event()
    failures = []

    def run() -> None:
        number = 0
        try:
            while not ended.wait(0.001):
                number += 1
                action(number)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures


def replace(path: Path, content: bytes) -> None:
    new = path.with_name(f"new.{path.name}")
    new.write_bytes(content)
    give_to_server(new)
    new.rename(path)


@contextmanager
def changing(server: ThrowawayServer) -> Iterator[None]:
    """Replace files all the time: some of nobody's, and the server its configuration."""
    directory = server.data_directory / DIRECTORY
    directory.mkdir()
    give_to_server(directory)

    def replace_files(number: int) -> None:
        for name in SIZES:
            replace(directory / name, generation(name, number))

    def alter(number: int) -> None:
        value = "x" * random.Random(number).randint(1, 3000)
        connection.execute(f"ALTER SYSTEM SET cluster_name = 'c{value[:50]}'".encode())
        connection.execute(f"ALTER SYSTEM SET my.setting = '{value}'".encode())

    replace_files(0)
    with server.connect() as connection:
        # Of a class that is not known, a setting can be altered once it has a value.
        connection.execute("SET my.setting = ''")
        with repeating(replace_files), repeating(alter):
            yield


def assert_whole(data: Path) -> None:
    for name in SIZES:
        assert is_whole(name, (data / DIRECTORY / name).read_bytes()), name
    lines = (data / "postgresql.auto.conf").read_text().splitlines(keepends=True)
    assert all(line.startswith(("#", "cluster_name = 'c", "my.setting = 'x")) for line in lines)
    assert all(line.endswith(("\n", "'\n")) for line in lines)


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("source", ["local", "sql"])
def test_files_that_are_replaced_all_the_time(
    server: ThrowawayServer, make_server: ServerFactory, scratch: Path, source: str
) -> None:
    scene = Scene(scratch / "repo", make_server)
    local: list[str | Path] = ["--pgdata", server.data_directory] if source == "local" else []
    options = ["--repo", scene.repo, "-d", server.conninfo, "-c", "fast", "--json", *local]
    with changing(server):
        for command, rate in (("full", ["-r", RATE, "-j", "1"]), ("incremental", []), ("full", ["-r", RATE])):
            backup = scene.repo / "backups" / json.loads(succeed(command, *options, *rate))["id"]
            assert_whole(backup / "data")
            with (backup / "backup.json").open("rb") as content:
                entry, files = decode_entry(content)
                listed = list(files)
            for file in listed:
                assert (backup / "data" / file.stored_path).stat().st_size == file.stored_size_bytes, file.path
            assert entry.totals.size_bytes == sum(file.size_bytes for file in listed)
            manifest = read_manifest((backup / "data" / "backup_manifest").read_bytes())
            assert {file.path: file.size for file in manifest.files} == {
                file.stored_path: file.stored_size_bytes for file in listed
            }
        if server.installation.has_tool("pg_basebackup"):
            server.run_tool("pg_basebackup", "-D", str(scratch / "native"), "-c", "fast", "--no-sync")
            assert_whole(scratch / "native")
    succeed("verify", "--repo", scene.repo)
    with scene.started(scene.restore(scratch / "restored", "latest")):
        pass


# ---- files that are too large for one call of the server


@pytest.fixture
def source(server: ThrowawayServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlDataDirectory]:
    for module in (file_contents, whole_file):
        monkeypatch.setattr(module, "SQL_READ_BYTES", 1000)
    monkeypatch.setattr(whole_file, "SQL_WHOLE_FILE_BYTES", 20_000)
    monkeypatch.setattr(file_contents, "SQL_QUERY_READS", 10)
    with SqlDataDirectory(connect_sql(ConnectionParameters(server.conninfo))) as directory:
        yield directory


def write(server: ThrowawayServer, content: bytes) -> Path:
    path = server.data_directory / "file"
    replace(path, content)
    return path


@pytest.mark.postgres(13, 18)
def test_a_large_file_is_of_one_piece(server: ThrowawayServer, source: SqlDataDirectory) -> None:
    old, new = os.urandom(50_000), os.urandom(50_000)
    path = write(server, old)
    for is_settled in (False, True):
        if is_settled:
            # As it is seen by the server; when it was renamed cannot be set.
            time.sleep(0.1)
            os.utime(path, (0, 0))
        chunks = source.read_to_end("file", len(old))
        assert chunks is not None
        assert b"".join(chunks) == old
    for content in (new, new[:30_000], new + old):
        write(server, old)
        chunks = source.read_to_end("file", len(old))
        assert chunks is not None
        first = next(chunks)
        write(server, content)
        with pytest.raises(FileReplaced, match="file was replaced"):
            assert first + b"".join(chunks)
        chunks = source.read_to_end("file", len(old))
        assert chunks is not None
        assert b"".join(chunks) == content


@pytest.mark.postgres(13, 18)
def test_a_log_that_grows_is_read_up_to_where_it_ended(server: ThrowawayServer, source: SqlDataDirectory) -> None:
    old = os.urandom(50_000)
    path = write(server, old)
    for reading in (source, LocalDataDirectory(server.data_directory)):
        size = path.stat().st_size
        chunks = reading.read_to_end("file", 100)
        assert chunks is not None
        first = next(chunks)
        with path.open("ab") as file:
            file.write(os.urandom(10_000))
        assert first + b"".join(chunks) == path.read_bytes()[:size]


@pytest.mark.postgres(13, 18)
def test_a_small_file_has_another_size_than_listed(server: ThrowawayServer, source: SqlDataDirectory) -> None:
    content = os.urandom(15_000)
    path = write(server, content)
    for reading in (source, LocalDataDirectory(server.data_directory)):
        for listed in (0, 1, 14_999, 15_000, 15_001, 19_999, 20_000, 90_000):
            chunks = reading.read_to_end("file", listed)
            assert chunks is not None
            assert b"".join(chunks) == content
    path.unlink()
    for reading in (source, LocalDataDirectory(server.data_directory)):
        for listed in (0, 15_000, 90_000):
            assert reading.read_to_end("file", listed) is None
