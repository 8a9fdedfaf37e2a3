"""Links in a repository lead nowhere, and what is not pgwal's is never deleted: seen with the commands themselves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from keeping.stored_repository import FIRST, FULL, SECOND, Stored, build_repository
from pgwal_process import assert_failed, assert_nothing_raw, run_pgwal, succeed

from pgwal.backup.source import WantedContent, read_wanted
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.errors import RepositoryError, ServerError
from pgwal.repository.local import LocalStore
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal_cli.throwaway_server import ThrowawayServer

FAILED = 1
PRECIOUS = b"precious\n" * 100
ABANDONED = "20250101T000000Z_full.unfinished"


def precious_directory(place: Path) -> Path:
    (place / "data").mkdir(parents=True)
    (place / "data" / "file").write_bytes(PRECIOUS)
    (place / "backup.json").write_bytes(PRECIOUS)
    return place


def everything(place: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None for path in sorted(place.rglob("*"))
    }


def replace_by_link(path: Path, target: Path) -> None:
    """Let a link to something of the same kind, which is precious, stand where a part of the repository was."""
    if path.is_dir():
        path.rename(path.with_name(f".{path.name}.was"))
        precious_directory(target)
    else:
        path.unlink(missing_ok=True)
        target.write_bytes(PRECIOUS)
    path.symlink_to(target)


def next_partial(repo: Path) -> str:
    """Return the name of the file that a receiver writes next."""
    repository = Repository.open(repo)
    resume_point = repository.wal.resume_point()
    assert resume_point is not None
    timeline_id, lsn = resume_point
    return repository.geometry.file_name(timeline_id, repository.geometry.segment_no(lsn)) + ".partial"


@pytest.mark.postgres(13, 18)
def test_a_link_is_refused_by_what_writes(server: ThrowawayServer, scratch: Path) -> None:
    made, victim = scratch / "made", scratch / "victim"
    succeed("full", "--repo", made, "-d", server.conninfo, "-c", "fast")
    names = ["backup.lock", "receiver.lock", "receiver.json", "wal", "summaries", "backups", "pgwal.json"]
    for number, name in enumerate([*names, f"wal/{next_partial(made)}"]):
        repo, victim = scratch / f"repo{number}", scratch / f"victim{number}"
        shutil.copytree(made, repo)
        replace_by_link(repo / name, victim)
        before = contents(victim)
        full = run_pgwal("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
        stream = run_pgwal("stream", "--repo", repo, "-d", server.conninfo, "--once")
        assert contents(victim) == before
        assert_failed(full, FAILED, rf"{repo}/{name}.*symbolic link", "not followed")
        if name == "backup.lock":
            assert stream.code == 0, stream.stderr
        else:
            assert_failed(stream, FAILED, rf"{repo}/{name}.*symbolic link", "not followed")


def contents(place: Path) -> object:
    return everything(place) if place.is_dir() else place.read_bytes()


@pytest.mark.postgres(13, 18)
def test_what_an_abandoned_backup_did_not_leave_stays(server: ThrowawayServer, scratch: Path) -> None:
    repo, outside = scratch / "repo", precious_directory(scratch / "outside")
    succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    backups = repo / "backups"
    (backups / ABANDONED).symlink_to(outside)
    precious_directory(backups / "mine.unfinished")
    abandoned = precious_directory(backups / "20250101T000001Z_incr.unfinished")
    (abandoned / "notes").write_bytes(PRECIOUS)
    (abandoned / "data" / "elsewhere").symlink_to(outside)
    (abandoned / "data" / "pg_wal").symlink_to(outside / "data")
    (repo / "wal" / ".mine.1.tmp").write_bytes(PRECIOUS)
    (repo / "wal" / f".{'0' * 7}1{'0' * 16}.12.tmp").write_bytes(b"of a receiver")
    precious_directory(backups / "20250101T000002Z_incr.unfinished")
    outcome = run_pgwal("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    assert outcome.code == 0, outcome.stderr
    assert_nothing_raw(outcome)
    assert f"{abandoned} stays: it holds notes, which is not pgwal's" in outcome.stderr
    assert everything(outside) == everything(backups / "mine.unfinished")
    assert everything(outside)["data/file"] == PRECIOUS
    assert everything(abandoned) == {"notes": PRECIOUS}
    assert not (backups / "20250101T000002Z_incr.unfinished").exists()
    assert (backups / ABANDONED).is_symlink()
    assert [path.name for path in (repo / "wal").glob(".*")] == [".mine.1.tmp"]


# ---- without a server


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return build_repository(tmp_path / "repo")


@pytest.mark.parametrize("name", ["wal", "summaries", "backups"])
def test_a_linked_directory_is_refused_by_what_reads(stored: Stored, tmp_path: Path, name: str) -> None:
    (stored.root / name).rename(tmp_path / name)
    (stored.root / name).symlink_to(tmp_path / name)
    for command in (["list"], ["show", FULL], ["restore", "-D", tmp_path / "target"], ["verify"], ["status"]):
        outcome = run_pgwal(*command, "--repo", stored.root)
        assert_failed(outcome, FAILED, f"cannot open {stored.root}/{name}: it is a symbolic link", "not followed")
    assert not (tmp_path / "target").exists()
    outcome = run_pgwal("fetch-wal", "--repo", stored.root, "0" * 7 + "1" + "0" * 15 + "1", tmp_path / "RECOVERYXLOG")
    assert outcome.code >= 126
    assert not (tmp_path / "RECOVERYXLOG").exists()


def test_a_linked_segment_is_not_handed_to_a_server(stored: Stored, tmp_path: Path) -> None:
    name = stored.repository.geometry.file_name(1, 1)
    (stored.root / "wal" / name).rename(tmp_path / name)
    (stored.root / "wal" / name).symlink_to(tmp_path / name)
    outcome = run_pgwal("fetch-wal", "--repo", stored.root, name, tmp_path / "RECOVERYXLOG")
    assert outcome.code >= 126
    assert "symbolic link" in outcome.stderr
    assert not (tmp_path / "RECOVERYXLOG").exists()


def test_a_linked_backup_is_named_and_left_out(stored: Stored, tmp_path: Path) -> None:
    backup = stored.root / "backups" / SECOND
    backup.rename(tmp_path / SECOND)
    backup.symlink_to(tmp_path / SECOND)
    outcome = run_pgwal("list", "--repo", stored.root)
    assert outcome.code == 0
    assert f"warning: backup {SECOND} is left out: " in outcome.stderr
    assert FIRST in outcome.stdout
    assert SECOND not in outcome.stdout
    assert "it is not a directory" in run_pgwal("verify", "--repo", stored.root).stdout


def test_the_repository_itself_may_be_reached_through_a_link(stored: Stored, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(stored.root)
    assert SECOND in succeed("list", "--repo", tmp_path / "link")


def test_a_fifo_is_no_object(stored: Stored) -> None:
    entry = stored.root / "backups" / SECOND / "backup.json"
    entry.unlink()
    os.mkfifo(entry)
    outcome = run_pgwal("list", "--repo", stored.root)
    assert outcome.code == 0
    assert f"cannot open {entry}: it is not a regular file" in outcome.stderr


def put(place: LocalPlace) -> None:
    place.store.put("in/object", b"new", replace=True)


def put_first(place: LocalPlace) -> None:
    place.store.put("in/object", b"new")


def preallocate(place: LocalPlace) -> None:
    place.spool.preallocate("in/object", 1 << 16).close()


def lock(place: LocalPlace) -> None:
    with place.leases.lock("in/object", "a test"):
        pass


def create_notes(place: LocalPlace) -> None:
    place.spool.create_notes("in/object").close()


def delete_all(place: LocalPlace) -> None:
    place.store.delete_all("in/object")


@pytest.mark.parametrize("act", [put_first, preallocate, lock, create_notes, delete_all])
def test_no_operation_goes_through_a_link(tmp_path: Path, act: Callable[[LocalPlace], None]) -> None:
    place = LocalPlace(tmp_path / "store")
    place.make(["in"])
    victim = precious_directory(tmp_path / "victim") if act is delete_all else tmp_path / "victim"
    if act is not delete_all:
        victim.write_bytes(PRECIOUS)
    (tmp_path / "store/in/object").symlink_to(victim)
    with pytest.raises(RepositoryError):
        act(place)
    assert victim.read_bytes() == PRECIOUS if victim.is_file() else (victim / "data/file").read_bytes() == PRECIOUS


@pytest.mark.parametrize("act", [put, put_first, preallocate, lock, create_notes])
def test_no_operation_goes_through_a_linked_directory(tmp_path: Path, act: Callable[[LocalPlace], None]) -> None:
    place = LocalPlace(tmp_path / "store")
    place.make()
    (tmp_path / "victim").mkdir()
    (tmp_path / "store/in").symlink_to(tmp_path / "victim")
    with pytest.raises(RepositoryError, match="symbolic link"):
        act(place)
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize("name", ["../victim", "in/../../victim", "/victim", "in//x", "."])
def test_no_name_leads_upwards(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_bytes(PRECIOUS)
    store = LocalStore(tmp_path / "store")
    store.create_directory("in")
    with pytest.raises(RepositoryError):
        store.get(name)
    with pytest.raises(RepositoryError):
        store.put(name, b"new")
    assert (tmp_path / "victim").read_bytes() == PRECIOUS


@pytest.mark.postgres(18)
def test_a_repository_is_used_without_links_as_before(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server()
    for kind in ("full", "incremental"):
        succeed(kind, "--repo", scratch / "repo", "-d", server.conninfo, "-c", "fast")
    assert len(Repository.open(scratch / "repo").catalogue.entries()) == 2
    succeed("verify", "--repo", scratch / "repo")


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_file_that_is_exchanged_for_a_link_is_not_read_through(tmp_path: Path, size: int) -> None:
    """A data directory is read as it was listed: what was a file then is one now."""
    (tmp_path / "secret").write_bytes(bytes(size))
    (tmp_path / "pgdata").mkdir()
    (tmp_path / "pgdata/file").symlink_to(tmp_path / "secret")
    source = LocalDataDirectory(tmp_path / "pgdata")
    for wanted in (WantedContent("file", size, None, to_end=True), WantedContent("file", size, None)):
        with pytest.raises(ServerError, match="exchanged for a symbolic link") as refused:
            read_wanted(source, wanted)
        assert "Take the backup again" in (refused.value.hint or "")
        with pytest.raises(ServerError, match="exchanged for a symbolic link"):
            source.read_small([wanted])
