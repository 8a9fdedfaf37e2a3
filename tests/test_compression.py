"""Finished segments are compressed: readable at every instant, whatever ends the compressor, and by everything."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import assert_failed, run_pgwal, succeed
from test_main_job import PGWAL, checksums, prepare, run_load, streaming, wait_until_promoted

from pgwal.errors import FormatError, ObjectNotFound, RepositoryError
from pgwal.lsn import Lsn
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.local import LocalStore
from pgwal.repository.memory import MemoryStore
from pgwal.repository.repository import Repository
from pgwal.repository.store import Child
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_compressor import SegmentCompressor, compress_segment
from pgwal.segment import WalGeometry
from pgwal_cli.exit_codes import USAGE
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

GEOMETRY = WalGeometry(1 << 20)
NAME = "000000010000000000000003"
CONTENT = random.Random(1).randbytes(1 << 19) + bytes(1 << 19)
SUFFIXES = {"zstd": ".zst", "lz4": ".lz4", "gzip": ".gz"}


@pytest.fixture
def archive(tmp_path: Path) -> WalArchive:
    """An archive with one plain segment."""
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / NAME).write_bytes(CONTENT)
    return WalArchive(LocalStore(tmp_path), GEOMETRY)


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "wal").iterdir()}


def compress_all(tmp_path: Path, archive: WalArchive, compression: str = "zstd") -> SegmentCompressor:
    with SegmentCompressor(LocalStore(tmp_path), archive, Compression.parse(compression)) as compressor:
        pass
    return compressor


# ---- the option


def test_methods_and_levels() -> None:
    assert Compression.parse("zstd") == Compression()
    assert Compression.parse("gzip:9") == Compression(CompressionMethod.GZIP, 9)
    assert Compression.parse("none").method is CompressionMethod.NONE
    for text in ("", "bzip2", "zstd:", "zstd:0", "zstd:23", "zstd:x", "lz4:1", "none:1", "gzip:10"):
        with pytest.raises(FormatError):
            Compression.parse(text)


def test_an_unknown_method_is_a_usage_error(tmp_path: Path) -> None:
    outcome = run_pgwal("stream", "--repo", tmp_path / "repo", "-Z", "rar")
    assert_failed(outcome, USAGE, "unknown compression method 'rar'")


# ---- one archive, without a server


@pytest.mark.parametrize("method", [*SUFFIXES, "zstd:1", "gzip:1"])
def test_a_compressed_segment_reads_as_before(tmp_path: Path, archive: WalArchive, method: str) -> None:
    resume_point = archive.resume_point()
    assert compress_all(tmp_path, archive, method).done_count == 1
    assert names(tmp_path) == {NAME + SUFFIXES[method.partition(":")[0]]}
    assert archive.read_file(NAME) == CONTENT
    assert archive.is_complete(1, 3)
    assert archive.resume_point() == resume_point
    assert b"".join(archive.read(1, GEOMETRY.segment_start(3))) == CONTENT


def test_none_leaves_segments_plain(tmp_path: Path, archive: WalArchive) -> None:
    compress_all(tmp_path, archive, "none")
    assert names(tmp_path) == {NAME}


def test_what_is_not_finished_stays(tmp_path: Path, archive: WalArchive) -> None:
    for other in ("000000010000000000000004.partial", "00000002.history", "000000010000000000000002.gz"):
        (tmp_path / "wal" / other).write_bytes(b"x")
    before = names(tmp_path) - {NAME}
    compress_all(tmp_path, archive)
    assert names(tmp_path) == before | {f"{NAME}.zst"}


DYING = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from pgwal.repository.local import LocalStore
    from pgwal.repository.compression import Compression
    from pgwal.repository.wal_compressor import compress_segment
    from pgwal.segment import WalGeometry

    steps_left = int(sys.argv[2])

    def dying_before(function):
        def step(*args, **kwargs):
            global steps_left
            if steps_left == 0:
                os._exit(9)
            steps_left -= 1
            return function(*args, **kwargs)
        return step

    os.open, os.fsync = dying_before(os.open), dying_before(os.fsync)
    Path.rename, Path.unlink = dying_before(Path.rename), dying_before(Path.unlink)
    compress_segment(LocalStore(Path(sys.argv[1])), WalGeometry(1 << 20), sys.argv[3], Compression())
""")


def test_a_crash_at_any_step_leaves_a_whole_segment(tmp_path: Path, archive: WalArchive) -> None:
    seen = set()
    for step in range(20):
        (tmp_path / "wal" / NAME).write_bytes(CONTENT)
        code = subprocess.run([sys.executable, "-c", DYING, tmp_path, str(step), NAME]).returncode
        left = names(tmp_path)
        seen.add(frozenset(name.removeprefix(".").removesuffix(".tmp").rpartition(".")[2] for name in left))
        assert archive.read_file(NAME) == CONTENT
        assert archive.is_complete(1, 3)
        compress_all(tmp_path, archive)
        assert names(tmp_path) == {f"{NAME}.zst"}, left
        assert archive.read_file(NAME) == CONTENT
        (tmp_path / "wal" / f"{NAME}.zst").unlink()
        if code == 0:
            break
        assert code == 9
    else:
        pytest.fail("it never came to its end")
    assert len(seen) >= 4, "plain alone, with a temporary, with the whole compressed one, compressed alone"


@pytest.mark.parametrize("method", ["zstd", "gzip"])
def test_a_damaged_compressed_file_gives_way_to_a_plain_one(tmp_path: Path, archive: WalArchive, method: str) -> None:
    (tmp_path / "wal" / f"{NAME}.zst").write_bytes(b"damaged")
    compress_all(tmp_path, archive, method)
    assert names(tmp_path) == {NAME + SUFFIXES[method]}
    assert archive.read_file(NAME) == CONTENT


def test_files_that_differ_both_stay(tmp_path: Path, archive: WalArchive, caplog: pytest.LogCaptureFixture) -> None:
    compress_all(tmp_path, archive)
    (tmp_path / "wal" / NAME).write_bytes(bytes(1 << 20))
    assert compress_all(tmp_path, archive).failed_count == 1
    assert names(tmp_path) == {NAME, f"{NAME}.zst"}
    assert "hold different WAL" in caplog.text


def test_a_short_plain_file_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(RepositoryError):
        compress_segment(LocalStore(tmp_path), GEOMETRY, NAME, Compression())
    assert names(tmp_path) == {NAME}


def test_a_full_disk_leaves_the_segment_plain(
    tmp_path: Path, archive: WalArchive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RepositoryError("cannot write: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "put", full)
        assert compress_all(tmp_path, archive).failed_count == 1
    assert names(tmp_path) == {NAME}
    assert "not compressed for now" in caplog.text


def test_a_failed_segment_is_tried_again(tmp_path: Path, archive: WalArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgwal.repository.wal_compressor.COMPRESSOR_RETRY_S", 0.01)
    put = LocalStore.put
    failures = iter([RepositoryError("no space")])

    def full_once(self: LocalStore, name: str, content: Iterator[bytes], *, replace: bool) -> None:
        for failure in failures:
            raise failure
        put(self, name, content, replace=replace)

    monkeypatch.setattr(LocalStore, "put", full_once)
    with SegmentCompressor(LocalStore(tmp_path), archive, Compression()) as compressor:
        deadline = time.monotonic() + 10
        while not compressor.done_count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert names(tmp_path) == {f"{NAME}.zst"}


def test_what_is_moved_away_while_it_pauses_does_not_come_back(tmp_path: Path, archive: WalArchive) -> None:
    for number in range(4, 20):
        (tmp_path / "wal" / f"00000001{number:016X}").write_bytes(CONTENT)
    (tmp_path / "aside").mkdir()
    with SegmentCompressor(LocalStore(tmp_path), archive, Compression.parse("gzip:9")) as compressor:
        while not compressor.done_count:
            time.sleep(0.001)
        with compressor.paused():
            plain = {name for name in names(tmp_path) if "." not in name}
            compressed = names(tmp_path) - plain
            for name in plain:
                (tmp_path / "wal" / name).rename(tmp_path / "aside" / name)
    assert plain
    assert names(tmp_path) == compressed


def test_a_segment_that_changes_its_name_meanwhile_is_seen(
    archive: WalArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the directory finds the plain file's name, and the file is gone when its size is asked for."""
    children = LocalStore.children
    pending: Iterator[str] = iter([NAME])

    def look_then_compress(self: LocalStore, folder: str) -> Iterator[Child]:
        found = list(children(self, folder))
        for name in pending:
            compress_segment(self, GEOMETRY, name, Compression())
        return iter(found)

    monkeypatch.setattr(LocalStore, "children", look_then_compress)
    assert [segment.name for segment in archive.segments()] == [f"{NAME}.zst"]


def test_a_segment_is_read_on_when_it_is_compressed_meanwhile() -> None:
    """Elsewhere than in files, nothing holds on to what is read and removed."""
    store, geometry = MemoryStore(), WalGeometry(32 << 20)
    content = random.Random(2).randbytes(32 << 20)
    archive = WalArchive(store, geometry)
    store.put(f"wal/{NAME}", content)
    pieces = archive.read(1, Lsn(geometry.segment_start(3) + (3 << 20)))
    read = [next(pieces)]
    compress_segment(store, geometry, NAME, Compression())
    assert [segment.name for segment in archive.segments()] == [f"{NAME}.zst"]
    assert b"".join([*read, *pieces]) == content[3 << 20 :]

    pieces = archive.segment_pieces(NAME)
    next(pieces)
    store.delete(f"wal/{NAME}.zst")
    with pytest.raises(ObjectNotFound, match=f"{NAME} is not in"):
        list(pieces)


# ---- with servers


def small_segments(make_server: ServerFactory) -> ThrowawayServer:
    return make_server(initdb_args=("--wal-segsize=1",), settings={"wal_keep_size": "1GB"})


def archived(repo: Path, suffix: str) -> dict[str, Path]:
    return {path.name.removesuffix(suffix): path for path in (repo / "wal").glob(f"*{suffix}")}


@pytest.mark.postgres(15, 18)
@pytest.mark.parametrize("method", SUFFIXES)
def test_segments_are_the_servers_own(make_server: ServerFactory, scratch: Path, method: str) -> None:
    server, repo = small_segments(make_server), scratch / "repo"
    prepare(server)
    stream = ["stream", "--repo", repo, "-d", server.conninfo, "--once"]
    slot = ["--slot", "pgwal", "--create-slot", "--if-not-exists"]
    for step in range(3):
        run_load(server, step)
        succeed(*stream, *slot, "-Z", method)
    with server.connect() as connection:
        connection.execute("SELECT pg_switch_wal()")
    succeed(*stream, *slot, "-Z", method)
    found = archived(repo, SUFFIXES[method])
    assert len(found) > 5
    assert not [path for path in (repo / "wal").iterdir() if len(path.name) == 24], "no plain segment is left"
    repository = Repository.open(repo)
    for name in found:
        assert repository.wal.read_file(name) == (server.data_directory / "pg_wal" / name).read_bytes()
        succeed("fetch-wal", name, scratch / name, "--repo", repo)
        assert (scratch / name).read_bytes() == (server.data_directory / "pg_wal" / name).read_bytes()
    numbers = sorted(segment.segment_no for segment in repository.wal.segments())
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    # Nothing is received twice: the next run goes on behind the last compressed segment.
    before = {name: path.stat().st_mtime_ns for name, path in found.items()}
    succeed(*stream, *slot, "-Z", method)
    assert {name: path.stat().st_mtime_ns for name, path in archived(repo, SUFFIXES[method]).items()} == before


@pytest.mark.postgres(15, 18)
def test_plain_segments_of_an_earlier_receiver_are_compressed(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = small_segments(make_server), scratch / "repo"
    stream = ["stream", "--repo", repo, "-d", server.conninfo, "--once", "-S", "pgwal", "--create-slot"]
    succeed(*stream, "-Z", "none")
    prepare(server)
    succeed(*stream, "--if-not-exists", "-Z", "none")
    plain = {path.name for path in (repo / "wal").iterdir() if len(path.name) == 24}
    assert plain
    succeed(*stream, "--if-not-exists")
    assert plain <= set(archived(repo, ".zst"))
    assert not any((repo / "wal" / name).exists() for name in plain)


@pytest.mark.postgres(15, 18)
def test_a_server_replays_compressed_wal(make_server: ServerFactory, scratch: Path) -> None:
    """Killed in the middle of it, the receiver goes on; backups and their own receivers work with what is there."""
    server, repo, target = small_segments(make_server), scratch / "repo", scratch / "restored"
    slot = ("--slot", "pgwal", "--create-slot", "--if-not-exists")
    source = ["--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast"]
    prepare(server)
    full = json.loads(succeed("full", *source, "--json"))
    assert archived(repo, ".zst"), "a backup's own receiver compresses as well"
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once", *slot)
    for step in range(3):
        process = subprocess.Popen(
            [*PGWAL, "stream", "--repo", str(repo), "-d", server.conninfo, *slot], stderr=subprocess.DEVNULL
        )
        for part in range(5):
            run_load(server, 10 * step + part)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with streaming(server, repo, *slot):
        incremental = json.loads(succeed("incremental", *source, "--json"))
        run_load(server, 50)
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once", *slot)
    expected = checksums(server)
    assert incremental["prior"] == full["id"]
    assert len(archived(repo, ".zst")) > 5
    succeed("restore", "latest", "--repo", repo, "-D", target)
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", str(repo)], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"restore_command = '{relay.restore_command}'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected
