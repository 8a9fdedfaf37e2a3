"""Where a restore writes: where the user said, and nowhere because a catalogue entry says so."""

from __future__ import annotations

import json
import os
import pwd
import stat
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from guarded.other_user import as_root, give_to_nobody
from pgwal_process import assert_failed, assert_nothing_raw, run_pgwal, succeed
from restore.made_repository import MadeRepository
from restore.restored_server import Scene, checksums

from pgwal.backup.exclusion import INCOMPLETE_NAME, tablespace_version_directory
from pgwal_cli.throwaway_server import give_to_server

FAILED = 1
VERSION = tablespace_version_directory(18)
IN_PLACE = "--allow-tablespaces-in-place"


def tree(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


# ---- forged places


@pytest.mark.parametrize("command", ["restore", "combine"])
def test_a_forged_place_is_not_written_to(tmp_path: Path, command: str) -> None:
    """An entry that says where its tablespaces were may have been written by anybody."""
    made, victim = MadeRepository(tmp_path / "repo"), tmp_path / "victim"
    path = f"pg_tblspc/16500/{VERSION}/5/16384"
    made.add({path: bytes(8192)}, tablespaces={16500: f"{victim}/absent"})
    victim.mkdir()
    target = tmp_path / "target"
    words = [*([command] if command == "restore" else [command, made.ids[0]]), "--repo", made.path]
    words += ["-D" if command == "restore" else "-o", target]
    outcome = run_pgwal(*words)
    cause = f"would write outside of {target}: tablespace 16500 at {victim}/absent"
    assert_failed(outcome, FAILED, cause, f"-T OLD=NEW.*{IN_PLACE}")
    assert tree(victim) == set()
    assert not target.exists()
    outcome = run_pgwal(*words, "-T", f"{victim}/absent={tmp_path}/mapped")
    assert outcome.code == 0, outcome.stderr
    assert f"tablespace 16500 goes to {tmp_path}/mapped" in outcome.stderr
    assert tree(victim) == set()
    assert (tmp_path / "mapped" / VERSION / "5/16384").stat().st_size == 8192


def test_a_place_that_the_caller_prepared_is_written_to(tmp_path: Path) -> None:
    made, place = MadeRepository(tmp_path / "repo"), tmp_path / "place"
    made.add({f"pg_tblspc/16500/{VERSION}/5/16384": bytes(8192)}, tablespaces={16500: str(place)})
    place.mkdir(mode=0o755)
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "target")
    assert outcome.code == 0, outcome.stderr
    assert f"tablespace 16500 goes to {place}" in outcome.stderr
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    # A second time there is something in it.
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "second", IN_PLACE)
    assert_failed_after_words(outcome.code, outcome.errors, f"directory {place} is not empty")


@as_root
@pytest.mark.parametrize("how", ["foreign", "link", "filled"])
def test_a_place_that_somebody_else_prepared_is_not(tmp_path: Path, how: str) -> None:
    made, place = MadeRepository(tmp_path / "repo"), tmp_path / "place"
    made.add({f"pg_tblspc/16500/{VERSION}/5/16384": bytes(8192)}, tablespaces={16500: str(place)})
    (tmp_path / "elsewhere").mkdir()
    if how == "link":
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
    if how == "foreign":
        give_to_nobody(place)
    elif how == "filled":
        (place / "file").touch()
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "target")
    assert_failed(outcome, FAILED, f"would write outside of .*: tablespace 16500 at {place}", IN_PLACE)
    assert not (tmp_path / "target").exists()
    assert tree(tmp_path / "elsewhere") == set()


@pytest.mark.parametrize("path", ["pg_tblspc/16500/authorized_keys", f"pg_tblspc/16500/x{VERSION}/5/16384"])
def test_nothing_but_a_clusters_own_is_written_into_a_tablespace(tmp_path: Path, path: str) -> None:
    made, place = MadeRepository(tmp_path / "repo"), tmp_path / "place"
    made.add({path: bytes(8192)}, tablespaces={16500: str(place)})
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "target", IN_PLACE)
    assert_failed_after_words(outcome.code, outcome.errors, "is not below what PostgreSQL has in a tablespace")
    assert tree(place) == set()
    assert not (tmp_path / "target/global/pg_control").exists()


def assert_failed_after_words(code: int, errors: list[str], cause: str) -> None:
    assert code == FAILED
    assert len(errors) == 1
    assert cause in errors[0]


# ---- places that overlap


def test_places_in_the_repository_are_refused(tmp_path: Path) -> None:
    made = MadeRepository(tmp_path / "repo")
    made.add({}, tablespaces={16500: "/one"})
    (tmp_path / "link").symlink_to(made.path)
    before = tree(made.path)
    for place in (made.path, made.path / "target", made.path / "backups/target", tmp_path / "link/target"):
        outcome = run_pgwal("restore", "--repo", made.path, "-D", place, "-T", f"/one={tmp_path}/one")
        assert_failed(outcome, FAILED, f"{place} lies in the repository {made.path}", "outside of the repository")
        outcome = run_pgwal("combine", made.ids[0], "--repo", made.path, "-o", place, "-T", f"/one={tmp_path}/one")
        assert_failed(outcome, FAILED, f"{place} lies in the repository {made.path}", "outside of the repository")
        outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "target", "-T", f"/one={place}")
        assert_failed(outcome, FAILED, f"{place} lies in the repository {made.path}", "outside of the repository")
    assert tree(made.path) == before
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("place", ["", "global", "pg_wal", "base/5", "pg_tblspc", "x/../pg_wal", "../link"])
def test_a_tablespace_does_not_go_where_the_cluster_has_files(tmp_path: Path, place: str) -> None:
    made, target = MadeRepository(tmp_path / "repo"), tmp_path / "target"
    made.add({}, tablespaces={16500: "/one"})
    (tmp_path / "link").symlink_to(target)
    outcome = run_pgwal("restore", "--repo", made.path, "-D", target, "-T", f"/one={target}/{place}".rstrip("/"))
    assert_failed(outcome, FAILED, "tablespace 16500 would go to .*, where the data directory has files", "-T OLD=NEW")
    assert not target.exists()
    # Elsewhere in the data directory there may be one.
    succeed("restore", "--repo", made.path, "-D", target, "-T", f"/one={target}/side")
    assert (target / "pg_tblspc/16500").resolve() == target / "side"


@pytest.mark.parametrize("spelling", ["same", "./same", "link/same", "x/../same", "real/../link/same"])
def test_two_spellings_of_one_directory_are_one(tmp_path: Path, spelling: str) -> None:
    made, place = MadeRepository(tmp_path / "repo"), tmp_path / "real"
    made.add({}, tablespaces={16500: "/one", 16501: "/two"})
    place.mkdir()
    (place / "link").symlink_to(place)
    mappings = ["-T", f"/one={place}/same", "-T", f"/two={place}/{spelling.replace('real/../', '')}"]
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "target", *mappings)
    assert_failed(outcome, FAILED, f"16500 and 16501 would share directory {place}/same", "-T OLD=NEW")
    assert not (tmp_path / "target").exists()


# ---- repositories in data directories


@pytest.mark.postgres(13, 18)
def test_a_repository_does_not_lie_in_what_it_backs_up(make_server: ServerFactory, scratch: Path) -> None:
    server = make_server()
    side = scratch / "side"
    side.mkdir()
    give_to_server(side)
    with server.connect() as connection:
        connection.execute(f"CREATE TABLESPACE side LOCATION '{side}'")
    (version,) = side.iterdir()
    (scratch / "link").symlink_to(server.data_directory)
    before = tree(server.data_directory)
    for place in (server.data_directory / "repo", scratch / "link/base/repo", version / "repo", scratch / "link/a/b"):
        for command in (["full"], ["full", "--pgdata", server.data_directory], ["backup"], ["stream", "--once"]):
            outcome = run_pgwal(*command, "--repo", place, "-d", server.conninfo)
            assert_failed(outcome, FAILED, f"repository {place} would lie in the data directory", "outside of it")
    assert {name for name in tree(server.data_directory) if "repo" in name} == set()
    assert "a" not in tree(server.data_directory) - before
    # One that has got there by a move is not gone on with.
    repo = scratch / "repo"
    succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    repo.rename(server.data_directory / "repo")
    for command in (["full"], ["incremental"], ["stream", "--once"]):
        outcome = run_pgwal(*command, "--repo", server.data_directory / "repo", "-d", server.conninfo)
        assert_failed(outcome, FAILED, "would lie in the data directory", "outside of it")
    succeed(
        "restore",
        "--repo",
        server.data_directory / "repo",
        "-D",
        scratch / "target",
        IN_PLACE,
        "-T",
        f"{side}={scratch}/x",
    )


# ---- modes and owners


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("group", [False, True])
def test_modes_are_those_of_the_cluster(make_server: ServerFactory, scratch: Path, group: bool) -> None:
    server = make_server(initdb_args=("-g",) if group else ())
    (server.data_directory / INCOMPLETE_NAME).write_text("of an earlier restore\n")
    side = scratch / "side"
    side.mkdir(mode=0o700)
    give_to_server(side)
    with server.connect() as connection:
        connection.execute(f"CREATE TABLESPACE side LOCATION '{side}'")
        connection.execute("CREATE TABLE t TABLESPACE side AS SELECT generate_series(1, 1000) AS i")
    scene = Scene(scratch / "repo", make_server)
    for kind, *args in (["full"], ["incremental", "--pgdata", server.data_directory]):
        succeed(kind, "--repo", scene.repo, "-d", server.conninfo, "-c", "fast", *args)
        with server.connect() as connection:
            connection.execute("UPDATE t SET i = -i")
    rows = checksums(server)
    succeed("stream", "--once", "--repo", scene.repo, "-d", server.conninfo)
    for path in (scene.repo, *scene.repo.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    target, new_side = scratch / "target", scratch / "new"
    target.mkdir()
    target.chmod(0o755)
    new_side.mkdir()
    new_side.chmod(0o777)
    old_umask = os.umask(0o077)
    try:
        scene.restore(target, tablespaces={side: new_side})
        succeed(
            "combine",
            json.loads(succeed("list", "--repo", scene.repo, "--json"))["backups"][-1]["id"],
            "--repo",
            scene.repo,
            "-o",
            scratch / "combined",
            "-T",
            f"{side}={scratch}/combined_side",
        )
    finally:
        os.umask(old_umask)
    for root in (target, new_side, scratch / "combined", scratch / "combined_side"):
        for path in (root, *root.rglob("*")):
            wanted = (0o750 if group else 0o700) if path.is_dir() else (0o640 if group else 0o600)
            assert stat.S_IMODE(path.lstat().st_mode) == wanted or path.is_symlink(), path
    assert not (target / INCOMPLETE_NAME).exists()
    with scene.started(target) as restored:
        assert checksums(restored) == rows
        with restored.connect() as connection:
            row = connection.execute("SHOW data_directory_mode").fetchone()
        assert row == ("0750" if group else "0700",)


@as_root
@pytest.mark.postgres(18)
def test_root_restores_for_the_directorys_owner(make_server: ServerFactory, scratch: Path) -> None:
    server, nobody = make_server(), pwd.getpwnam("nobody")
    side = scratch / "side"
    side.mkdir()
    give_to_server(side)
    with server.connect() as connection:
        connection.execute(f"CREATE TABLESPACE side LOCATION '{side}'")
        connection.execute("CREATE TABLE t TABLESPACE side AS SELECT 1 AS i")
    repo = scratch / "repo"
    succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    target, new_side = scratch / "target", scratch / "new"
    for place in (target, new_side):
        place.mkdir(mode=0o755)
        os.chown(place, nobody.pw_uid, nobody.pw_gid)
    outcome = run_pgwal("restore", "--repo", repo, "-D", target, "-T", f"{side}={new_side}")
    assert outcome.code == 0, outcome.stderr
    assert_nothing_raw(outcome)
    assert "belongs to root" not in outcome.stderr
    for root in (target, new_side):
        for path in (root, *root.rglob("*")):
            assert (path.lstat().st_uid, path.lstat().st_gid) == (nobody.pw_uid, nobody.pw_gid), path
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
    # Links of the repository's own files stay whose they are.
    for place in (scratch / "linked", scratch / "linked_side"):
        place.mkdir(mode=0o755)
        os.chown(place, nobody.pw_uid, nobody.pw_gid)
    mapping = f"{side}={scratch}/linked_side"
    assert run_pgwal("restore", "--repo", repo, "-D", scratch / "linked", "-T", mapping, "--link").code == 0
    assert {path.lstat().st_uid for path in repo.rglob("*")} == {0}
    # Where there was no directory, root's it is, and that is said.
    outcome = run_pgwal("restore", "--repo", repo, "-D", scratch / "roots", "-T", f"{side}={scratch}/roots_side")
    assert f"all of {scratch}/roots belongs to root, and a server does not run as root" in outcome.stderr


def test_a_file_that_marks_an_incomplete_restore_is_left_out(tmp_path: Path) -> None:
    """Backups of before this was known may hold one."""
    made = MadeRepository(tmp_path / "repo")
    made.add({INCOMPLETE_NAME: b"of an earlier restore"})
    outcome = run_pgwal("restore", "--repo", made.path, "-D", tmp_path / "target")
    assert outcome.code == 0, outcome.stderr
    assert f"{INCOMPLETE_NAME} of the backup is left out" in outcome.stderr
    assert not (tmp_path / "target" / INCOMPLETE_NAME).exists()
    assert (tmp_path / "target/global/pg_control").exists()
