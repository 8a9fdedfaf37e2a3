"""Recovery to a point: which rows are there, which backup is taken, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fix_servers import ServerFactory, Templates
from hypothesis import given
from hypothesis import strategies as st
from pgwal_process import Outcome, assert_failed, run_pgwal, succeed
from restore.restored_server import Scene

from pgwal.backup.backup_file import encode_file
from pgwal.backup.entry_document import decode_entry, encode_entry
from pgwal.backup.recovery import RecoveryTarget, TargetAction, parse_target_time, recovery_settings, with_settings
from pgwal.errors import RecoveryTargetError
from pgwal.lsn import Lsn
from pgwal.segment import WalGeometry
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer

# ---- settings


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15))
def test_any_name_is_quoted(name: str) -> None:
    content = with_settings(b"", RecoveryTarget(name=name).settings())
    assert content.count(b"\n") == 1
    quoted = content.decode().removeprefix("recovery_target_name = '").removesuffix("'\n")
    assert unquoted(quoted) == name


def unquoted(text: str) -> str:
    """Undo the quoting as DeescapeQuotedString of guc-file.l does."""
    result, at = "", 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
            result += {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}.get(text[at], text[at])
        elif text[at] == "'":
            at += 1
            assert text[at] == "'"
            result += "'"
        else:
            result += text[at]
        at += 1
    return result


def test_settings_of_an_earlier_restore_are_left_out() -> None:
    before = (
        b"# Do not edit\nwork_mem = '4MB'\nrecovery_target_time = '2020-01-01'\nRECOVERY_TARGET = 'immediate'\n"
        b"restore_command = 'old'\nport = '5433'"
    )
    settings = [("restore_command", "it's \\ new"), *RecoveryTarget(lsn=Lsn(0x1_0000_0028)).settings()]
    assert with_settings(before, settings) == (
        b"# Do not edit\nwork_mem = '4MB'\nrecovery_target_time = '2020-01-01'\nRECOVERY_TARGET = 'immediate'\n"
        b"port = '5433'\nrestore_command = 'it''s \\\\ new'\nrecovery_target_lsn = '1/28'\n"
    )
    stated = with_settings(before, recovery_settings(RecoveryTarget(lsn=Lsn(0x1_0000_0028)), "new", 18)).decode()
    assert "2020-01-01" not in stated
    assert "immediate" not in stated
    assert stated.startswith("# Do not edit\nwork_mem = '4MB'\nport = '5433'\n")


@pytest.mark.parametrize("major", [13, 15, 16, 18])
def test_every_recovery_setting_is_stated_and_what_is_wanted_last(major: int) -> None:
    stated = list(recovery_settings(RecoveryTarget(xid=800, exclusive=True), "fetch", major))
    names = [name for name, _ in stated]
    assert len(set(names)) == len(names)
    assert ("promote_trigger_file" in names) == (major < 16)
    empty = ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time"]
    assert {dict(stated)[name] for name in (*empty, "primary_conninfo", "recovery_end_command")} == {""}
    assert names.index("recovery_target_xid") > max(names.index(name) for name in empty)
    assert dict(stated)["recovery_target_inclusive"] == "off"


def test_all_settings() -> None:
    target = RecoveryTarget(
        time=parse_target_time("2026-11-22 10:15:30.5+02:00"), timeline=3, action=TargetAction.SHUTDOWN, exclusive=True
    )
    assert dict(target.settings()) == {
        "recovery_target_time": "2026-11-22 08:15:30.500000+00",
        "recovery_target_inclusive": "off",
        "recovery_target_timeline": "3",
        "recovery_target_action": "shutdown",
    }
    assert dict(RecoveryTarget(xid=(7 << 32) + 800).settings()) == {"recovery_target_xid": "800"}
    assert dict(RecoveryTarget().settings()) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        {"lsn": Lsn(5), "name": "x"},
        {"xid": 5, "immediate": True},
        {"action": TargetAction.PAUSE},
        {"exclusive": True},
        {"name": "x", "exclusive": True},
        {"immediate": True, "exclusive": True},
        {"name": "n" * 64},
        {"name": ""},
        {"xid": 2},
        {"xid": 1 << 32},
        {"xid": -5},
        {"timeline": 0},
    ],
)
def test_targets_that_make_no_sense(arguments: dict[str, object]) -> None:
    with pytest.raises(RecoveryTargetError):
        RecoveryTarget(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["yesterday", "", "2026-13-01", "2026-11-22 10:15:99"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(RecoveryTargetError):
        parse_target_time(text)


# ---- servers


@dataclass
class Moments:
    """A full backup, rows 1 and 2, an incremental, rows 3 to 5; and where, when and by which transaction each came."""

    scene: Scene
    server: ThrowawayServer
    full: str = ""
    incremental: str = ""
    lsns: dict[int, str] = field(default_factory=dict)
    times: dict[int, str] = field(default_factory=dict)
    xids: dict[int, str] = field(default_factory=dict)

    def back_up(self, command: str) -> str:
        source = ["-d", self.server.conninfo, "--pgdata", self.server.data_directory, "-c", "fast", "--json"]
        return str(json.loads(succeed(command, "--repo", self.scene.repo, *source))["id"])

    def add(self, number: int, *, prepared: bool = False) -> None:
        with self.server.connect(autocommit=True) as connection:
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (%s)", [number])
            if number in (3, 4):
                # The end of a transaction that removes files says so beside its operation.
                connection.execute("TRUNCATE emptied")
            row = connection.execute("SELECT txid_current() % (2^32)::bigint").fetchone()
            assert row is not None
            self.xids[number] = str(row[0])
            connection.execute("PREPARE TRANSACTION 'it'" if prepared else "COMMIT")
            if prepared:
                connection.execute("COMMIT PREPARED 'it'")
            row = connection.execute("SELECT pg_current_wal_insert_lsn()::text, clock_timestamp()").fetchone()
            assert row is not None
            self.lsns[number] = row[0]
            self.times[number] = row[1].astimezone(UTC).isoformat()
            connection.execute("SELECT pg_create_restore_point(%s)", [f"after '{number}'"])
        time.sleep(0.01)


@pytest.fixture(scope="module")
def moments(installation: ServerInstallation, server_templates: Templates, module_scratch: Path) -> Iterator[Moments]:
    directory = module_scratch / f"moments-{installation.major}"
    with ServerFactory(installation, server_templates, directory) as factory:
        settings: dict[str, str | int | bool] = {"autovacuum": False, "max_prepared_transactions": 5}
        server = factory(initdb_args=("--wal-segsize=1",), settings=settings)
        moments = Moments(Scene(directory / "repo", factory), server)
        with server.connect() as connection:
            connection.execute("CREATE TABLE t (id int); CREATE TABLE emptied (id int)")
        moments.full = moments.back_up("full")
        # The ends of backups are noted in whole seconds.
        time.sleep(2.1)
        moments.add(1)
        moments.add(2)
        moments.incremental = moments.back_up("incremental")
        time.sleep(2.1)
        moments.add(3)
        moments.add(4, prepared=True)
        with server.connect() as connection:
            connection.execute("SELECT pg_switch_wal()")
        moments.add(5)
        with server.connect() as connection:
            connection.execute("CREATE TABLE filler AS SELECT i FROM generate_series(1, 1000) AS i")
        # The last segment stays partial.
        succeed("stream", "--once", "--repo", moments.scene.repo, "-d", server.conninfo)
        server.kill()
        yield moments
    shutil.rmtree(directory, ignore_errors=True)


def restored_rows(moments: Moments, scratch: Path, *target: str) -> tuple[str, list[int]]:
    """Restore without naming a backup; return which one was taken, and the rows."""
    directory = scratch / "restored"
    action = ["--target-action", "promote"] if target else []
    restore = ["restore", "--repo", moments.scene.repo, "-D", directory, "-N", "--json", *target, *action]
    foreseen = json.loads(succeed(*restore, "--dry-run"))
    assert not directory.exists()
    outcome = run_pgwal(*restore)
    assert outcome.code == 0, outcome.stderr
    backup, replay = json.loads(outcome.stdout)["backup"], foreseen["replay"]
    assert foreseen["backup"] == backup
    assert re.search(rf"restoring backup {backup}.* from {replay['start_lsn']} to {replay['end_lsn']}", outcome.stderr)
    with moments.scene.started(directory) as server, server.connect() as connection:
        rows = [row[0] for row in connection.execute("SELECT id FROM t ORDER BY id")]
        row = connection.execute("SELECT pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()").fetchone()
    assert row is not None
    geometry = WalGeometry(1 << 20)
    ends = [geometry.first_record_position(Lsn.parse(end)) for end in (row[0], replay["end_lsn"])]
    assert ends[0] == ends[1], (row, replay)
    assert replay["last_transaction_at"] == (row[1] and row[1].astimezone(UTC).isoformat())
    return backup, rows


CASES = {
    "lsn": (lambda m: ["--target-lsn", m.lsns[3]], [1, 2, 3], True),
    "lsn-before-the-newest-backup": (lambda m: ["--target-lsn", m.lsns[1]], [1], False),
    "time": (lambda m: ["--target-time", m.times[3]], [1, 2, 3], True),
    "time-before-the-newest-backup": (lambda m: ["--target-time", m.times[1]], [1], False),
    "xid": (lambda m: ["--target-xid", m.xids[3]], [1, 2, 3], True),
    "xid-exclusive": (lambda m: ["--target-xid", m.xids[3], "--target-exclusive"], [1, 2], True),
    "xid-prepared": (lambda m: ["--target-xid", m.xids[4]], [1, 2, 3, 4], True),
    "xid-before-the-newest-backup": (lambda m: ["--target-xid", m.xids[1]], [1], False),
    "name": (lambda _: ["--target-name", "after '5'"], [1, 2, 3, 4, 5], True),
    "name-before-the-newest-backup": (lambda _: ["--target-name", "after '1'"], [1], False),
    "immediate": (lambda _: ["--target-immediate"], [1, 2], True),
    "all": (lambda _: [], [1, 2, 3, 4, 5], True),
}


CASES_OF_13 = ("time", "xid-prepared", "name-before-the-newest-backup")


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("case", CASES)
def test_rows_at_the_target(moments: Moments, scratch: Path, case: str) -> None:
    if moments.server.installation.major == 13 and case not in CASES_OF_13:
        pytest.skip("18 shows it")
    target, rows, is_newest = CASES[case]
    backup = moments.incremental if is_newest else moments.full
    assert restored_rows(moments, scratch, *target(moments)) == (backup, rows)


def refused(moments: Moments, scratch: Path, *args: str) -> Outcome:
    restore = ["restore", "--repo", moments.scene.repo, "-D", scratch / "refused", *args]
    outcome = run_pgwal(*restore)
    # A look ahead ends as the restore does.
    assert run_pgwal(*restore, "--dry-run") == outcome
    assert not (scratch / "refused").exists()
    return outcome


@pytest.mark.postgres(18)
def test_targets_that_cannot_be_reached(moments: Moments, scratch: Path) -> None:
    before = "before the end of backup"
    assert_failed(refused(moments, scratch, "--target-lsn", "0/100"), 1, before, "later target")
    assert_failed(refused(moments, scratch, moments.incremental, "--target-lsn", moments.lsns[1]), 1, before, "older")
    assert_failed(refused(moments, scratch, "latest", "--target-lsn", moments.lsns[1]), 1, before, "older")
    assert_failed(refused(moments, scratch, "--target-time", "2001-01-01 00:00Z"), 1, before, "later")
    ended = "time 2101-.* the last transaction ended at 20.*[+]00 in the WAL since backup"
    assert_failed(refused(moments, scratch, "--target-time", "2101-01-01 00:00Z"), 1, ended, "giving no target")
    assert_failed(refused(moments, scratch, "--target-lsn", "F/0"), 1, "has not been received; up to 0/", "earlier")
    missing = "is not in the WAL received since backup"
    assert_failed(refused(moments, scratch, "--target-name", "nowhere"), 1, missing, "pgwal status")
    assert_failed(refused(moments, scratch, moments.incremental, "--target-xid", moments.xids[1]), 1, missing)
    assert_failed(refused(moments, scratch, "--target-xid", "4000000000"), 1, missing)
    assert_failed(refused(moments, scratch, "--target-timeline", "7"), 4, "timeline 7 is unknown", "known are: 1")
    assert_failed(refused(moments, scratch, "--target-timeline", "x"), 2, "not a timeline")
    assert_failed(refused(moments, scratch, "--target-lsn", "0/1", "--target-immediate"), 1, "more than one")


@pytest.mark.postgres(18)
def test_wal_that_recovery_needs_is_missing(moments: Moments, scratch: Path) -> None:
    repo = scratch / "repo"
    shutil.copytree(moments.scene.repo, repo)
    start = Lsn.parse(json.loads(succeed("list", "--repo", repo, "--json"))["backups"][-1]["start_lsn"])
    (segment,) = (repo / "wal").glob(f"{1:08X}{0:08X}{start >> 20:08X}*")
    segment.unlink()
    outcome = run_pgwal("restore", "--repo", repo, "-D", scratch / "refused")
    assert_failed(outcome, 4, "WAL segment 0000000100000000.* is missing, which recovery needs", "pgwal combine")
    # Where WAL comes from elsewhere, that is no matter.
    succeed("restore", "--repo", repo, "-D", scratch / "elsewhere", "--restore-command", "false")


def test_a_time_without_offset_is_local() -> None:
    local = parse_target_time("2026-11-22 10:15:30")
    assert local == datetime(2026, 11, 22, 10, 15, 30).astimezone()


@pytest.mark.parametrize(
    ("local", "cause", "readings"),
    [
        ("2026-10-25 02:30", "exists twice", "2026-10-25 02:30:00+02:00 or 2026-10-25 02:30:00+01:00"),
        ("2026-03-29 02:30", "does not exist", "2026-03-29 01:30:00+01:00 or 2026-03-29 03:30:00+02:00"),
    ],
)
def test_a_local_time_that_is_none_or_two(tmp_path: Path, local: str, cause: str, readings: str) -> None:
    arguments = ["restore", "--repo", tmp_path / "repo", "-D", tmp_path / "data", "--target-time"]
    # The rule of the zone itself, for a machine that has no list of zones.
    berlin = {"TZ": "CET-1CEST,M3.5.0,M10.5.0/3"}
    outcome = run_pgwal(*arguments, local, env=berlin)
    assert_failed(outcome, 1, f"the local time {local} {cause}", re.escape(readings))
    assert_failed(run_pgwal(*arguments, "2026-10-25 04:30", env=berlin), 1, "repository")


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec -= 600;
    return code;
}
"""


@pytest.mark.postgres(18)
def test_a_host_whose_clock_is_behind(make_server: ServerFactory, scratch: Path) -> None:
    """Ten minutes behind: by that clock, the backup had ended before the table was dropped."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler to make a clock with that goes wrong")
    (scratch / "clock.c").write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", scratch / "clock.so", scratch / "clock.c", "-ldl"], check=True)
    late = {"LD_PRELOAD": str(scratch / "clock.so")}
    server, repo = make_server(initdb_args=("--wal-segsize=1",)), scratch / "repo"
    source = ["--repo", repo, "-d", server.conninfo, "-c", "fast"]
    with server.connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
    first = json.loads(succeed("full", *source, "--json", env=late))
    time.sleep(2.1)
    with server.connect() as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        connection.execute("DROP TABLE kept")
    time.sleep(1.1)
    second = json.loads(succeed("full", *source, "--json", env=late))
    with server.connect() as connection:
        connection.execute("CREATE TABLE later AS SELECT 1 AS id")
    succeed("stream", "--repo", repo, "-d", server.conninfo, "--once")
    listed = {backup["id"]: backup for backup in json.loads(succeed("list", "--repo", repo, "--json"))["backups"]}
    assert datetime.fromisoformat(listed[first["id"]]["finished_at"]) < row[0]
    assert datetime.fromisoformat(listed[second["id"]]["started_at"]) > row[0] - timedelta(seconds=1)
    before_the_drop = ["restore", "--repo", repo, "--target-time", row[0].isoformat(), "--target-action", "promote"]
    assert json.loads(succeed(*before_the_drop, "-D", scratch / "1", "--json"))["backup"] == first["id"]
    # Nor is an entry believed whose times are such a clock's: WAL tells of a later transaction.
    entry = repo / "backups" / second["id"] / "backup.json"
    head, files = decode_entry(iter(entry.read_bytes().splitlines(keepends=True)))
    wrong = {
        name: (row[0] - timedelta(minutes=9)).isoformat(timespec="seconds") for name in ("started_at", "finished_at")
    }
    entry.write_bytes(b"".join(encode_entry(replace(head, **wrong), map(encode_file, list(files)))))
    assert json.loads(succeed(*before_the_drop, "-D", scratch / "2", "--json"))["backup"] == first["id"]
