"""One round: a server under a load of every kind, backups at random moments, and restores of some to random points.

Everything is drawn from the round's seed: the version, the cluster's and the server's settings, what the load and the
round do.  What two sessions do at the same time is as it comes, so that a seed repeats a round closely, not exactly.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from fix_servers import BASE_SETTINGS, MAJORS
from pgwal_process import PGWAL, Outcome, assert_nothing_raw, start_pgwal
from pgwal_process import finish as finish_process
from randomised.cluster_state import State, damage, differences, read_state
from randomised.load import Load, prepare

from pgwal.engine.fetch_wal import fetch
from pgwal.lsn import Lsn
from pgwal.repository.repository import Repository
from pgwal.segment import is_history_name, is_segment_name
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import (
    ServerInstallation,
    ThrowawayServer,
    give_to_server,
)

# The load takes all of the machine that it can get.
WAIT_S = 180.0
CHAIN_BROKEN = 4
MOST_FETCHED_ONE_BY_ONE = 8


def major_of(seed: int) -> int:
    """Return the version that a round is for: of six in a row, each has its turn."""
    return MAJORS[seed % len(MAJORS)]


@dataclass(frozen=True)
class Choices:
    """What a seed makes of cluster and server."""

    initdb_args: tuple[str, ...]
    settings: dict[str, str | int | bool]
    use_slot: bool
    has_standby: bool
    session_count: int
    step_count: int

    @classmethod
    def draw(cls, chance: random.Random, installation: ServerInstallation) -> Choices:
        major = installation.major
        initdb_args = [f"--wal-segsize={chance.choice([1, 16, 16, 16])}"]
        checksums = chance.random() < 0.5
        if checksums:
            initdb_args.append("-k")
        elif major >= 18:
            initdb_args.append("--no-data-checksums")
        has_standby = chance.random() < 0.3
        # A slot does not go over to the standby.
        use_slot = not has_standby and chance.random() < 0.5
        settings: dict[str, str | int | bool] = {
            "max_prepared_transactions": 20,
            "autovacuum": chance.random() < 0.5,
            "autovacuum_naptime": "1s",
            "shared_buffers": chance.choice(["1MB", "16MB", "128MB", "128MB"]),
            "max_wal_size": chance.choice(["32MB", "1GB"]),
            "wal_keep_size": 0 if use_slot else "2GB",
            "wal_level": chance.choice(["replica", "logical"]),
            "wal_compression": chance.random() < 0.3,
            "wal_log_hints": chance.random() < 0.2,
            "wal_retrieve_retry_interval": "100ms",
        }
        if major >= 15:
            settings["allow_in_place_tablespaces"] = True
        if major >= 17:
            settings["summarize_wal"] = chance.random() < 0.3
        return cls(tuple(initdb_args), settings, use_slot, has_standby, chance.randint(1, 3), chance.randint(1, 3))


@dataclass(frozen=True)
class Backup:
    """A backup that was taken; ``state`` is what the cluster held, where it was taken while the load paused."""

    backup_id: str
    prior_id: str | None
    start_lsn: Lsn
    stop_lsn: Lsn
    state: State | None

    @property
    def is_incremental(self) -> bool:
        return self.prior_id is not None


@dataclass(frozen=True)
class RestorePoint:
    """A moment at which the load paused, and what the cluster held then."""

    name: str
    lsn: Lsn
    state: State


@dataclass
class Target:
    """How far a restored server replays, and what it must hold then, if that is known."""

    settings: dict[str, str]
    state: State | None


@dataclass
class Round:
    """One round in a directory of its own; ``play`` raises AssertionError when anything is not as it must be."""

    seed: int
    installation: ServerInstallation
    directory: Path
    restore_count: int = 1
    cleanup: ExitStack = field(default_factory=ExitStack)

    def play(self) -> None:
        self.chance = random.Random(f"round {self.seed}")
        self.choices = Choices.draw(self.chance, self.installation)
        self.repo = self.directory / "repo"
        self.backups: dict[str, Backup] = {}
        self.points: list[RestorePoint] = []
        self.locations: list[Path] = []
        self.receiver: Popen[str] | None = None
        self.standby: ThrowawayServer | None = None
        self._started_s = time.monotonic()
        self.note(f"seed {self.seed}, {self.installation.version}, {self.choices}")
        with self.cleanup:
            self.make_servers()
            self.run_load()
            for number in range(self.restore_count):
                self.restore_one(number)

    def note(self, text: str) -> None:
        line = f"{time.monotonic() - self._started_s:6.2f} {text}"
        print(line, flush=True)
        with (self.directory / "events.log").open("a") as log:
            log.write(line + "\n")

    # -- servers

    def make_servers(self) -> None:
        self.server = ThrowawayServer(self.installation, self.directory / "primary")
        self.cleanup.callback(_discard, self.server)
        self.server.initdb(*self.choices.initdb_args)
        self.server.configure(**BASE_SETTINGS | self.choices.settings)
        if self.choices.has_standby:
            self.make_standby()
        self.server.start()
        if self.choices.use_slot:
            _value(self.server, "pg_create_physical_replication_slot('pgwal', true)")
        tablespaces = self.make_tablespaces()
        with self.server.connect() as connection:
            query = "SELECT FROM pg_available_extensions WHERE name = 'pg_visibility'"
            has_visibility = connection.execute(query).fetchone() is not None
        prepare(self.server, random.Random(f"prepare {self.seed}"), tablespaces, has_visibility)
        self.load = Load(self.server, f"load {self.seed}", self.choices.session_count, tablespaces, has_visibility)

    def make_standby(self) -> None:
        """Make a cold copy follow the primary."""
        self.standby = ThrowawayServer(self.installation, self.directory / "standby")
        self.cleanup.callback(_discard, self.standby)
        shutil.copytree(self.server.data_directory, self.standby.data_directory, symlinks=True)
        (self.standby.data_directory / "standby.signal").touch()
        give_to_server(self.standby.data_directory)
        self.standby.configure(primary_conninfo=self.server.conninfo)

    def make_tablespaces(self) -> list[str]:
        names = []
        with self.server.connect() as connection:
            # Both servers would use the same directory.
            for number in range(0 if self.choices.has_standby else self.chance.randint(0, 2)):
                location = self.directory / f"space{number}"
                location.mkdir()
                give_to_server(location)
                self.locations.append(location)
                connection.execute(f"CREATE TABLESPACE space{number} LOCATION '{location}'".encode())
                names.append(f"space{number}")
            if self.installation.major >= 15 and self.chance.random() < 0.5:
                connection.execute("CREATE TABLESPACE in_place LOCATION ''")
                names.append("in_place")
        return names

    # -- under load

    def run_load(self) -> None:
        if self.standby is not None:
            self.standby.start()
        steps: dict[Callable[[], None], int] = {
            self.back_up: 10,
            self.back_up_at_rest: 3,
            self.make_restore_point: 4,
            self.start_receiver: 4,
            self.kill_receiver: 3,
            self.crash: 2,
            self.crash_during_backup: 1,
            self.kill_backup: 2,
            self.promote: 2 if self.standby is not None else 0,
        }
        if self.choices.has_standby:
            self.load.copying_files.acquire()
        with self.load:
            if self.chance.random() < 0.7:
                self.start_receiver()
            self.let_it_run()
            self.take("full")
            for step in self.chance.choices(list(steps), list(steps.values()), k=self.choices.step_count):
                self.let_it_run()
                step()
            self.let_it_run()
            self.take("incremental")
            self.let_it_run()
            self.make_restore_point()
        with self.server.connect() as connection:
            # To stop short of a position needs a record behind it.
            connection.execute("SELECT pg_switch_wal()")
        self.note(f"operations: {dict(self.load.done)}; failed: {dict(self.load.failed)}")
        self.final_state = read_state(self.server)
        self.receive_the_rest()
        self.server.kill()
        if self.standby is not None:
            self.standby.kill()

    def let_it_run(self) -> None:
        time.sleep(self.chance.choice([0.0, 0.1, 0.3]))

    def make_restore_point(self) -> None:
        with self.load.paused(), self.server.connect() as connection:
            name = f"point{len(self.points)}"
            row = connection.execute("SELECT pg_create_restore_point(%s)::text", [name]).fetchone()
            assert row is not None
            self.points.append(RestorePoint(name, Lsn.parse(row[0]), read_state(self.server)))
        self.note(f"{name} at {row[0]}")

    def crash(self) -> None:
        self.note("the server crashes")
        if self.chance.random() < 0.5:
            self.server.kill()
        else:
            self.server.stop("immediate")
        self.server.start()

    def promote(self) -> None:
        """Lose the primary; nothing that the standby did not get has reached the receiver."""
        if self.standby is None:
            return
        standby = self.standby
        with self.load.paused():
            self.kill_receiver()
            lsn = _lsn(self.server, "pg_current_wal_insert_lsn()")
            _wait_for(lambda: _lsn(standby, "coalesce(pg_last_wal_replay_lsn(), '0/0')") >= lsn, "the standby")
            if self.chance.random() < 0.5:
                self.server.kill()
            else:
                self.server.stop("fast")
            standby.promote()
            self.server, self.standby = standby, None
            self.load.server = self.server
        self.note(f"promoted the standby at {lsn}")

    # -- the receiver

    def start_receiver(self) -> None:
        if self.receiver is not None:
            return
        slot = ["--slot", "pgwal"] if self.choices.use_slot else []
        compression = self.chance.choice(["zstd", "lz4", "gzip", "none"])
        source = self.standby if self.standby is not None and self.chance.random() < 0.3 else self.server
        self.note(f"start the receiver, from the {source.directory.name}")
        self.receiver = start_pgwal("stream", "--repo", self.repo, "-d", source.conninfo, "-Z", compression, *slot)
        self.cleanup.callback(self.receiver.kill)
        if self.chance.random() < 0.8:
            _wait_for(lambda: self._receives_from(source), "the receiver")

    def _receives_from(self, source: ThrowawayServer) -> bool:
        assert self.receiver is not None
        assert self.receiver.poll() is None, finish(self.receiver).stderr
        receivers = "count(*) FROM pg_stat_replication WHERE application_name ~ 'pgwal'"
        return bool(_value(source, receivers))

    def kill_receiver(self) -> None:
        """Kill the receiver with the means that lets it do nothing any more."""
        if self.receiver is None:
            return
        self.note("kill -9 the receiver")
        assert self.receiver.poll() is None, finish(self.receiver).stderr
        self.receiver.kill()
        finish(self.receiver)
        self.receiver = None

    def receive_the_rest(self) -> None:
        if self.receiver is not None and self.chance.random() < 0.5:
            self.receiver.terminate()
            outcome = finish(self.receiver)
            assert outcome.code == 0, outcome.stderr
            self.receiver = None
        self.kill_receiver()
        slot = ["--slot", "pgwal"] if self.choices.use_slot else []
        _succeeded(finish(start_pgwal("stream", "--repo", self.repo, "-d", self.server.conninfo, "--once", *slot)))

    # -- backups

    def back_up(self) -> None:
        self.take(self.chance.choice(["full", *["incremental"] * 6, "backup"]))

    def back_up_at_rest(self) -> None:
        with self.load.paused():
            self.take(self.chance.choice(["incremental", "backup"]), read_state(self.server))

    def take(self, command: str, state: State | None = None) -> None:
        """Take a backup, of the standby at times; that may have no restart point to start from."""
        source = self.server
        if self.standby is not None and state is None and self.backups and self.chance.random() < 0.4:
            source = self.standby
        with self.no_database_copied():
            outcome = finish(self.start_backup(command, source))
        if source is not self.server and outcome.code == CHAIN_BROKEN and "no restart point" in outcome.stderr:
            self.note("the standby has no restart point")
            return
        _succeeded(outcome)
        made = json.loads(outcome.stdout)
        start, stop = Lsn.parse(made["start_lsn"]), Lsn.parse(made["stop_lsn"])
        self.backups[made["id"]] = Backup(made["id"], made["prior"], start, stop, state)
        copied = f"{made['copied_blocks']} of {made['blocks']} blocks"
        self.note(f"backup {made['id']} on {made['prior']} from {start} to {stop}: {copied}, {made['seconds']}")

    @contextmanager
    def no_database_copied(self) -> Iterator[None]:
        """Have no files of a database copied while a backup may be under way; that of a standby starts long before."""
        if self.choices.has_standby:
            yield
        else:
            with self.load.copying_files:
                yield

    def start_backup(self, command: str, source: ThrowawayServer) -> Popen[str]:
        arguments: list[str | Path] = ["--repo", self.repo, "-d", source.conninfo, "--json", "-c", "fast"]
        if self.chance.random() < 0.5:
            arguments += ["--pgdata", source.data_directory]
        if self.choices.use_slot:
            arguments += ["--slot", "pgwal"]
        if command == "incremental":
            arguments += ["--since", self.since()]
        arguments += ["--manifest-checksums", self.chance.choice(["NONE", "CRC32C", "SHA256"])]
        shown = " ".join(str(argument) for argument in arguments[4:])
        self.note(f"{command} {shown} of the {source.directory.name}")
        return start_pgwal(command, *arguments)

    def since(self) -> str:
        """Return what an incremental backup is to build on."""
        backup = self.chance.choice(list(self.backups.values()))
        first = min(each.start_lsn for each in self.backups.values())
        lsns = [str(point.lsn) for point in self.points if point.lsn >= first]
        return self.chance.choice(["latest", "latest", backup.backup_id, str(backup.start_lsn), *lsns[-1:]])

    def kill_backup(self) -> None:
        with self.no_database_copied():
            process = self.start_backup("backup", self.server)
            time.sleep(self.chance.uniform(0.2, 1.5))
            process.kill()
            outcome = finish(process)
        self.note(f"kill -9 the backup: {outcome.code}")
        self.note_unreported()

    def crash_during_backup(self) -> None:
        with self.no_database_copied():
            process = self.start_backup("backup", self.server)
            time.sleep(self.chance.uniform(0.3, 1.0))
            self.crash()
            outcome = finish(process)
        self.note(f"the backup ended with {outcome.code} {outcome.stderr}")
        assert_nothing_raw(outcome)
        self.note_unreported()

    def note_unreported(self) -> None:
        """Note a backup that was finished before it could say so: it counts as any other."""
        if not (self.repo / "pgwal.json").exists():
            return
        for entry in Repository.open(self.repo).catalogue.entries():
            found = Backup(entry.backup_id, entry.prior_id, entry.start_lsn, entry.stop_lsn, None)
            self.backups.setdefault(entry.backup_id, found)

    # -- restoring

    def restore_one(self, number: int) -> None:
        incremental = [backup for backup in self.backups.values() if backup.is_incremental]
        takes_incremental = self.chance.random() < 0.9 and incremental
        backup = self.chance.choice(incremental if takes_incremental else list(self.backups.values()))
        target = self.choose_target(backup)
        combine = self.installation.major >= 17 and self.chance.random() < 0.4
        self.note(f"restore {backup.backup_id} to {target.settings}{' by pg_combinebackup' if combine else ''}")
        if self.installation.major >= 17:
            self.verify(backup)
        restored = self.directory / f"restored{number}"
        mapping = {location: self.directory / f"{restored.name}_{location.name}" for location in self.locations}
        if combine and backup.is_incremental:
            self.combine(backup, restored)
        else:
            moved = [word for old, new in mapping.items() for word in ("-T", f"{old}={new}")]
            _succeeded(finish(start_pgwal("restore", backup.backup_id, "--repo", self.repo, "-D", restored, *moved)))
        with self.running(restored, target) as server:
            self.compare(server, target)
        for directory in (restored, *mapping.values()):
            shutil.rmtree(directory, ignore_errors=True)

    def choose_target(self, backup: Backup) -> Target:
        targets = [Target({"recovery_target": "immediate"}, backup.state)]
        for point in self.points:
            if point.lsn >= backup.stop_lsn:
                targets.append(Target({"recovery_target_name": point.name}, point.state))
                exclusive = {"recovery_target_lsn": str(point.lsn), "recovery_target_inclusive": "off"}
                targets.append(Target(exclusive, point.state))
        targets.append(Target({}, self.final_state))
        return self.chance.choice([*targets[1:], *targets])

    def chain(self, backup: Backup) -> list[Path]:
        """Return the data of a backup and those that it builds on, the full one first."""
        found = [self.repo / "backups" / backup.backup_id / "data"]
        while backup.prior_id is not None:
            backup = self.backups[backup.prior_id]
            found.insert(0, self.repo / "backups" / backup.backup_id / "data")
        return found

    def verify(self, backup: Backup) -> None:
        give_to_server(self.repo)
        for data in self.chain(backup):
            self.server.run_tool("pg_verifybackup", "-n", str(data))

    def combine(self, backup: Backup, restored: Path) -> None:
        """Have the server's own tool restore a chain; tablespaces end up in the data directory."""
        chain = map(str, self.chain(backup))
        self.server.run_tool("pg_combinebackup", "--no-sync", "-o", str(restored), *chain)
        (restored / "recovery.signal").touch()
        # That of a standby, which pgwal restore leaves out.
        (restored / "standby.signal").unlink(missing_ok=True)

    @contextmanager
    def restore_command(self, restored: Path) -> Iterator[str]:
        """Give a restore_command: the real one at times, mostly WAL that was fetched before, for it is quicker."""
        fetched = self.directory / "fetched"
        if not fetched.exists():
            self.fetch_all(fetched)
        if len(list(fetched.iterdir())) <= MOST_FETCHED_ONE_BY_ONE and self.chance.random() < 0.3:
            command = [*PGWAL, "fetch-wal", "--repo", str(self.repo)]
            with RestoreCommandRelay(command, self.directory / "relay", restored) as relay:
                yield relay.restore_command
        else:
            yield f'cp "{fetched}/%f" "%p"'

    def fetch_all(self, directory: Path) -> None:
        """Fetch all WAL of the repository, as fetch-wal does for one name."""
        directory.mkdir()
        for path in (self.repo / "wal").iterdir():
            name = path.name if is_history_name(path.name) else path.name.partition(".")[0]
            if is_history_name(name) or is_segment_name(name):
                fetch(self.repo, name, directory / name)
        give_to_server(directory)

    @contextmanager
    def running(self, restored: Path, target: Target) -> Iterator[ThrowawayServer]:
        """Run a restored cluster until it is a primary."""
        server = ThrowawayServer(self.installation, self.directory / f"{restored.name}_server")
        with self.restore_command(restored) as command:
            settings = {"restore_command": command, "primary_conninfo": ""} | target.settings
            settings |= {"recovery_target_action": "promote", "autovacuum": "off"}
            with (restored / "postgresql.auto.conf").open("a") as file:
                file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
            server.adopt(restored)
            try:
                server.start(timeout_s=120)
                _wait_for(lambda: _value(server, "pg_is_in_recovery()") is False, "recovery to end")
                yield server
            except Exception as error:
                self.note(f"{error}\n{server.log_tail()}")
                raise
            finally:
                _discard(server)

    def compare(self, server: ThrowawayServer, target: Target) -> None:
        self.note("compare")
        if target.state is not None:
            found = differences(target.state, read_state(server))
            assert not found, "\n".join(found)
        found = damage(server)
        assert not found, "\n".join(found)
        self.note("the same and sound" if target.state is not None else "sound")


def _discard(server: ThrowawayServer) -> None:
    # Nothing is read from it any more, so there is nothing to finish cleanly.
    server.kill()
    server.close()


def finish(process: Popen[str]) -> Outcome:
    return finish_process(process, WAIT_S)


def _succeeded(outcome: Outcome) -> None:
    assert outcome.code == 0, f"exit code {outcome.code}\n{outcome.stderr}"
    assert "Traceback" not in outcome.stderr, outcome.stderr


def _value(server: ThrowawayServer, expression: str) -> Any:
    with server.connect() as connection:
        row = connection.execute(f"SELECT {expression}".encode()).fetchone()
    assert row is not None
    return row[0]


def _lsn(server: ThrowawayServer, expression: str) -> Lsn:
    return Lsn.parse(str(_value(server, f"({expression})::text")))


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


@contextmanager
def round_directory(seed: int) -> Iterator[Path]:
    """Make a directory for a round that servers can use; it stays when the round fails."""
    directory = Path(tempfile.mkdtemp(prefix=f"pgwal-round-{seed}-"))
    directory.chmod(0o755)
    give_to_server(directory)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
