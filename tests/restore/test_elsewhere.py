"""What a restored or a trial server must not do: write to the source's tablespaces, run what a backup brings along."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import Outcome, assert_failed, finish, run_pgwal, start_pgwal, succeed
from restore.restored_server import Scene

from pgwal.lsn import Lsn
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

TRIAL_S = 300


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def tried(server: ThrowawayServer, repo: Path) -> Outcome:
    process = start_pgwal("verify", "--repo", repo, "--restore", "--bindir", server.installation.bin_dir, "--json")
    return finish(process, TRIAL_S)


def rows(server: ThrowawayServer, table: str) -> int:
    with server.connect() as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


# ---- tablespaces


@dataclass
class Live:
    """A server that runs, with a tablespace that is younger than its backup, and with all of its WAL received."""

    scene: Scene
    server: ThrowawayServer
    location: Path
    lsn: str

    @property
    def restore(self) -> list[str | Path]:
        return ["restore", "--repo", self.scene.repo, "-N"]


@contextmanager
def live_tablespace(make_server: ServerFactory, scratch: Path) -> Iterator[Live]:
    server, repo, location = make_server(initdb_args=("--wal-segsize=1",)), scratch / "repo", scratch / "live"
    location.mkdir(mode=0o700)
    give_to_server(location)
    with server.connect() as connection:
        connection.execute("CREATE TABLE before AS SELECT generate_series(1, 10) AS id")
    succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    with server.connect() as connection:
        connection.execute("INSERT INTO before SELECT generate_series(11, 20)")
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        connection.execute(f"CREATE TABLESPACE late LOCATION '{location}'")
        connection.execute("CREATE TABLE t TABLESPACE late AS SELECT generate_series(1, 9000) AS id")
        connection.execute("CREATE TABLE after AS SELECT 1 AS id")
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    with server.connect() as connection:
        connection.execute("CHECKPOINT")
    yield Live(Scene(repo, make_server), server, location, row[0])


@pytest.mark.postgres(13, 18)
def test_a_trial_leaves_a_live_tablespace_alone(make_server: ServerFactory, scratch: Path) -> None:
    with live_tablespace(make_server, scratch) as live:
        before = digests(live.location)
        assert len(before) > 0
        outcome = tried(live.server, live.scene.repo)
        assert outcome.code == 0, outcome.stdout + outcome.stderr
        trial = json.loads(outcome.stdout)["trial"]
        assert (trial["stopped_before_lsn"] is not None, trial["messages"]) == (True, [])
        assert digests(live.location) == before
        live.server.restart("immediate")
        assert rows(live.server, "t") == 9000


@pytest.mark.postgres(18)
def test_the_trial_says_where_it_ended(make_server: ServerFactory, scratch: Path) -> None:
    with live_tablespace(make_server, scratch) as live:
        bindir = live.server.installation.bin_dir
        outcome = finish(start_pgwal("verify", "--repo", live.scene.repo, "--restore", "--bindir", bindir), TRIAL_S)
        pattern = r"the trial ended before LSN (\S+): there WAL creates tablespace \d+ at " + re.escape(
            str(live.location)
        )
        assert re.search(pattern, outcome.stdout), outcome.stdout


@pytest.mark.postgres(13, 18)
def test_a_restore_beside_a_live_tablespace(make_server: ServerFactory, scratch: Path) -> None:
    with live_tablespace(make_server, scratch) as live:
        before, target = digests(live.location), scratch / "restored"
        outcome = run_pgwal(*live.restore, "-D", target)
        creates = rf"{live.location} is not empty, and WAL creates tablespace \d+ at {live.location} [(]LSN (\S+)[)]"
        found = re.search(creates, outcome.stderr)
        assert outcome.code == 1, outcome.stderr
        assert found is not None, outcome.stderr
        assert not target.exists()
        moved = run_pgwal(*live.restore, "-D", target, "-T", f"{live.location}={scratch / 'new'}")
        assert_failed(moved, 1, "-T cannot move tablespace", f"--target-lsn {found[1]} --target-exclusive")
        # Within the record before it, so that it is the first one at or behind the target.
        within = Lsn(Lsn.parse(found[1]) - 1)
        outcome = run_pgwal(*live.restore, "-D", target, "--target-lsn", str(within), "--target-action", "promote")
        assert_failed(outcome, 1, creates)
        # The way out, and a target that lies before.
        way_out = ["--target-lsn", found[1], "--target-exclusive", "--target-action", "promote"]
        live.scene.restore(target, *way_out)
        with live.scene.started(target) as restored:
            assert rows(restored, "before") == 20
        live.scene.restore(scratch / "immediate", "--target-immediate", "--target-action", "promote")
        assert digests(live.location) == before


@pytest.mark.postgres(13, 18)
def test_a_restore_where_the_place_is_free(make_server: ServerFactory, scratch: Path) -> None:
    with live_tablespace(make_server, scratch) as live:
        live.server.kill()
        live.location.rename(scratch / "aside")
        live.location.mkdir(mode=0o700)
        give_to_server(live.location)
        target = scratch / "restored"
        outcome = run_pgwal(*live.restore, "-D", target)
        assert outcome.code == 0, outcome.stderr
        assert re.search(
            rf"warning: WAL behind backup \S+ creates tablespace \d+ at {live.location} [(]LSN \S+[)]", outcome.stderr
        ), outcome.stderr
        with live.scene.started(target) as restored:
            assert (rows(restored, "t"), rows(restored, "after")) == (9000, 1)


# ---- what a backup brings along


def evil(server: ThrowawayServer, marker: Path, *, login: bool) -> None:
    """Have the cluster run a program wherever it can, and set what would stop or mislead a check."""
    program = f"COPY (SELECT 1) TO PROGRAM 'cat >>{marker}'"
    with server.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 100) AS id")
        connection.execute(
            f"CREATE FUNCTION touch() RETURNS void LANGUAGE plpgsql AS $$ BEGIN {program}; END $$;"
            "CREATE FUNCTION touched(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM public.touch(); RETURN $1; END $$"
        )
        connection.execute("CREATE INDEX plain ON t (id)")
        connection.execute("CREATE INDEX calling ON t (touched(id))")
        connection.execute(
            f"CREATE FUNCTION on_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {program}; END $$"
        )
        connection.execute(
            f"CREATE FUNCTION format(text, name, name) RETURNS text LANGUAGE plpgsql AS"
            f" $$ BEGIN {program}; RETURN 'x'; END $$"
        )
        for setting in (
            "statement_timeout = '1ms'",
            "default_transaction_read_only = on",
            "search_path = public, pg_catalog",
            "lock_timeout = '1ms'",
        ):
            connection.execute(f"ALTER DATABASE template1 SET {setting}")
            connection.execute(f"ALTER ROLE postgres SET {setting}")
        connection.execute("ALTER ROLE postgres SET session_preload_libraries = 'no_such_library'")
        connection.execute("CREATE EVENT TRIGGER ended ON ddl_command_end EXECUTE FUNCTION on_event()")
        connection.execute("CREATE EVENT TRIGGER started ON ddl_command_start EXECUTE FUNCTION on_event()")
        connection.execute("ALTER EVENT TRIGGER ended ENABLE ALWAYS")
        if login:
            connection.execute("ALTER DATABASE postgres SET event_triggers = on")
            connection.execute("CREATE EVENT TRIGGER entered ON login EXECUTE FUNCTION on_event()")
            connection.execute("ALTER EVENT TRIGGER entered ENABLE ALWAYS")


@pytest.mark.postgres(13, 18)
def test_a_trial_runs_nothing_of_the_backups_own(make_server: ServerFactory, scratch: Path) -> None:
    server, repo, marker = make_server(initdb_args=("--wal-segsize=1",)), scratch / "repo", scratch / "marker"
    evil(server, marker, login=server.installation.major >= 17)
    command = f"echo run >>{marker}"
    server.configure(
        archive_mode="always",
        archive_command=command,
        shared_preload_libraries="no_such_library",
        logging_collector=True,
        log_directory=str(scratch / "logs"),
        ssl=True,
        ssl_cert_file=str(scratch / "none.crt"),
        recovery_end_command=command,
        archive_cleanup_command=command,
        recovery_target_xid="3",
    )
    # What was just configured is not loaded; the rest must not be in the way of the backup.
    options = ["session_preload_libraries=", "search_path=pg_catalog", "statement_timeout=0", "lock_timeout=0"]
    options += ["event_triggers=off"] if server.installation.major >= 17 else []
    succeed(
        "full", "--repo", repo, "-d", server.conninfo, "--pgdata", server.data_directory, "-c", "fast",
        env={"PGOPTIONS": " ".join(f"-c {option}" for option in options)},
    )  # fmt: skip
    server.kill()
    marker.unlink(missing_ok=True)
    outcome = tried(server, repo)
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    trial = json.loads(outcome.stdout)["trial"]
    assert (trial["messages"], trial["database_count"]) == ([], 2)
    assert trial["unchecked_indexes"] == ["postgres: public.calling"]
    assert not marker.exists()
    assert not (scratch / "logs").exists()


# ---- configuration that leads out


@pytest.mark.postgres(18)
def test_configuration_that_leads_out_is_named(make_server: ServerFactory, scratch: Path) -> None:
    server, repo, outside = make_server(), scratch / "repo", scratch / "outside"
    outside.mkdir()
    data = server.data_directory
    with (data / "postgresql.conf").open("a") as file:
        file.write(
            f"data_directory = '{data}'\nHBA_FILE '{outside}/pg_hba.conf'  # Debian\nident_file = pg_ident.conf\n"
            f"include_if_exists '{outside}/more.conf'\ninclude 'own.conf'\narchive_mode = on\n"
        )
    (data / "own.conf").write_text(f"log_directory = '{outside}'\narchive_command = 'cp %p {outside}/%f'\n")
    succeed("full", "--repo", repo, "-d", server.conninfo, "--pgdata", data, "-c", "fast")
    restore = ["restore", "--repo", repo, "-N", "-D"]
    warned = run_pgwal(*restore, scratch / "1").stderr
    for expected in (
        f"data_directory is {data}: a server that is started with -D {scratch}/1 runs on that directory instead",
        f"hba_file is {outside}/pg_hba.conf, outside of {scratch}/1",
        f"{outside}/more.conf is included, outside of {scratch}/1",
        f"log_directory is {outside}, outside of",
        f"archive_mode is on: the restored server archives its WAL with archive_command = 'cp %p {outside}/%f'",
    ):
        assert expected in warned, warned
    assert "ident_file" not in warned
    assert "archive_mode = 'off'" not in (scratch / "1/postgresql.auto.conf").read_text()
    # At a target another history begins: it stays out of the source's archive.
    for number, arguments in enumerate((["--target-immediate"], ["--archive-mode=off"]), 2):
        outcome = run_pgwal(*restore, scratch / f"{number}", *arguments)
        assert "archive_mode is off in postgresql.auto.conf" in outcome.stdout
        assert "archive_mode is on" not in outcome.stderr
        assert "archive_mode = 'off'" in (scratch / f"{number}/postgresql.auto.conf").read_text()
    outcome = run_pgwal(*restore, scratch / "4", "--target-immediate", "--archive-mode=preserve")
    assert "archive_mode is on" in outcome.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another user")
@pytest.mark.postgres(18)
def test_root_tries_nothing_where_others_can_write(make_server: ServerFactory, scratch: Path) -> None:
    server, repo = make_server(), scratch / "repo"
    succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    trial = ["verify", "--repo", repo, "--restore", "--bindir", server.installation.bin_dir, "--restore-dir"]
    outcome = run_pgwal(*trial, scratch / "trial")
    assert_failed(outcome, 1, "can be written by others than root", "directories of root")
    assert not (scratch / "trial").exists()
    shutil.rmtree(repo)
