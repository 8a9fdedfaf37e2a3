"""verify --restore to a point, and the report that it leaves: what was done, how it ended, whole in any case."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fix_servers import ServerFactory, Templates
from pgwal_process import Outcome, assert_failed, finish, run_pgwal, start_pgwal, succeed

from pgwal import __version__
from pgwal_cli.exit_codes import VERIFICATION_FAILED
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

TRIAL_S = 300


@dataclass
class Tried:
    """A full backup, a row, an incremental, and a second row at a time and with a restore point; then a tablespace."""

    repo: Path
    server: ThrowawayServer
    full: str = ""
    incremental: str = ""
    time: str = ""
    lsn: str = ""
    """Behind the second row."""

    def verify(self, *args: str | Path) -> Outcome:
        command = ["verify", "--repo", self.repo, "--restore", "--bindir", self.server.installation.bin_dir]
        return finish(start_pgwal(*command, *args), TRIAL_S)


@pytest.fixture(scope="module")
def tried(installation: ServerInstallation, server_templates: Templates, module_scratch: Path) -> Iterator[Tried]:
    directory = module_scratch / f"tried-{installation.major}"
    with ServerFactory(installation, server_templates, directory) as factory:
        server = factory(initdb_args=("--wal-segsize=1",), settings={"autovacuum": False})
        tried = Tried(directory / "repo", server)
        source = ["--repo", tried.repo, "-d", server.conninfo, "-c", "fast", "--json"]
        (directory / "late").mkdir(mode=0o700)
        give_to_server(directory / "late")
        with server.connect() as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
            tried.full = json.loads(succeed("full", *source))["id"]
            time.sleep(2.1)
            connection.execute("INSERT INTO t VALUES (1)")
            row = connection.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None
            tried.time = row[0].astimezone(UTC).isoformat()
            time.sleep(1.1)
            tried.incremental = json.loads(succeed("incremental", *source))["id"]
            connection.execute("INSERT INTO t VALUES (2)")
            row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            assert row is not None
            tried.lsn = row[0]
            connection.execute("SELECT pg_create_restore_point('two')")
            connection.execute(f"CREATE TABLESPACE late LOCATION '{directory / 'late'}'")
            connection.execute("CREATE TABLE last AS SELECT 3 AS id; SELECT pg_create_restore_point('last')")
        succeed("stream", "--once", "--repo", tried.repo, "-d", server.conninfo)
        server.kill()
        yield tried
    shutil.rmtree(directory, ignore_errors=True)


def report_of(path: Path) -> tuple[dict[str, Any], str]:
    """Read both files, which are all that is there."""
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, f"{path.stem}.txt"]
    return json.loads(path.read_text()), path.with_suffix(".txt").read_text()


@pytest.mark.postgres(18)
def test_a_trial_to_a_time_is_proven_by_its_report(tried: Tried, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    outcome = tried.verify("--target-time", tried.time, "--report", path, "--json")
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    report, text = report_of(path)
    assert (report["version"], report["verdict"], report["failure"]) == (1, "passed", None)
    assert (report["messages"], report["pgwal_version"]) == ([], __version__)
    # The newest one had ended behind that time.
    assert report["restored"]["backup"] == tried.full
    assert report["asked"]["recovery"]["recovery_target_time"].startswith(tried.time[:10])
    replayed, expected = report["replayed"], report["replayed"]["expected"]
    assert replayed["last_transaction_at"] == expected["last_transaction_at"] <= tried.time
    assert replayed["replayed_lsn"] == expected["end_lsn"]
    assert replayed["server_version"] == str(tried.server.installation.version)
    listed = {backup["id"]: backup for backup in json.loads(succeed("list", "--repo", tried.repo, "--json"))["backups"]}
    backups = {backup["id"]: backup for backup in report["verified"]["backups"]}
    assert backups.keys() == listed.keys() == {tried.full, tried.incremental}
    for backup_id, backup in backups.items():
        assert (backup["start_lsn"], backup["stop_lsn"]) == (
            listed[backup_id]["start_lsn"],
            listed[backup_id]["stop_lsn"],
        )
        entry = tried.repo / "backups" / backup_id / "backup.json"
        assert backup["entry_sha256"] == sha256(entry.read_bytes()).hexdigest()
    identity = json.loads((tried.repo / "pgwal.json").read_text())
    assert report["system_identifier"] == str(identity["system_identifier"])
    checked = report["checked"]
    assert [database["database"] for database in checked["databases"]] == ["postgres", "template1"]
    assert checked["table_count"] > 100 < checked["index_count"]
    assert all(report[part]["seconds"] > 0 for part in ("verified", "restored", "replayed", "checked"))
    for said in ("verification report: PASSED", tried.full, replayed["replayed_lsn"], "database postgres: "):
        assert said in text
    # Another one takes its place.
    assert run_pgwal("verify", "--repo", tried.repo, "--report", path).code == 0
    report, text = report_of(path)
    assert (report["verdict"], report["restored"], report["asked"]["restore"]) == ("passed", None, False)
    assert "without a trial restore" in text


@pytest.mark.skipif("PGWAL_LARGE_TESTS" not in os.environ, reason="PGWAL_LARGE_TESTS is not set")
@pytest.mark.postgres(18)
def test_trials_to_other_targets(tried: Tried) -> None:
    for target, backup in (
        (["--target-lsn", tried.lsn], tried.incremental),
        (["--target-name", "two"], tried.incremental),
        ([tried.full, "--target-immediate"], tried.full),
    ):
        outcome = tried.verify(*target, "--json")
        assert outcome.code == 0, outcome.stdout + outcome.stderr
        trial = json.loads(outcome.stdout)["trial"]
        assert (trial["backup"], trial["stopped_before_lsn"]) == (backup, None)


@pytest.mark.postgres(18)
def test_failures_are_reported(tried: Tried, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    # Behind the creation of a tablespace, which would be the one of the source.
    outcome = tried.verify("--target-name", "last", "--report", path)
    assert_failed(outcome, 1, "'last' cannot be tried: before it WAL creates tablespace", "Choose a target before LSN")
    report, text = report_of(path)
    assert (report["verdict"], report["failure"]["kind"]) == ("failed", "RecoveryTargetError")
    assert report["verified"] is not None
    assert (report["restored"], report["checked"]) == (None, None)
    assert f"It FAILED: RecoveryTargetError: {outcome.errors[0]}" in text
    assert_failed(tried.verify("--target-time", "2001-01-01 00:00Z", "--report", path), 1, "before the end of backup")
    assert "before the end of backup" in report_of(path)[0]["failure"]["message"]
    # A repository that is none, and no verification at all.
    outcome = run_pgwal("verify", "--repo", tmp_path / "none", "--report", path)
    assert outcome.code == 1
    report, _ = report_of(path)
    assert (report["verdict"], report["verified"], report["failure"]["message"]) == ("failed", None, outcome.errors[0])


@pytest.mark.postgres(18)
def test_damage_is_reported(tried: Tried, tmp_path: Path) -> None:
    repo, path = tmp_path / "repo", tmp_path / "reports" / "report"
    path.parent.mkdir()
    shutil.copytree(tried.repo, repo)
    version = repo / "backups" / tried.full / "data" / "PG_VERSION"
    version.write_bytes(b"19\n")
    outcome = run_pgwal("verify", "--repo", repo, "--restore", "--report", path)
    assert outcome.code == VERIFICATION_FAILED
    report, text = json.loads(path.read_text()), Path(f"{path}.txt").read_text()
    assert (report["verdict"], report["restored"]) == ("failed", None)
    assert any("PG_VERSION" in problem for problem in report["messages"])
    assert report["failure"]["kind"] == "NothingRestored"
    assert "verification report: FAILED" in text
    assert "PG_VERSION" in text


def test_a_report_needs_a_place(tmp_path: Path) -> None:
    verify = ["verify", "--repo", tmp_path / "repo", "--report"]
    assert_failed(run_pgwal(*verify, tmp_path / "none" / "report"), 1, "is no directory that can be written", "Make")
    assert_failed(run_pgwal(*verify, tmp_path), 1, "it is a directory", "Name a file")
    assert_failed(run_pgwal(*verify, tmp_path / "x", "--target-immediate"), 2, "are for --restore")
