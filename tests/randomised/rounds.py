"""One round: a server under a load of every kind, backups at random moments, and restores of some to random points.

Everything is drawn from the round's seed: the version, the cluster's and the server's settings, what the load and the
round do.  What two sessions do at the same time is as it comes, so that a seed repeats a round closely, not exactly.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from subprocess import Popen
from typing import Any

import psycopg
from fix_formats import PACKED_FORMAT, new_repository
from fix_servers import BASE_SETTINGS, MAJORS
from lending import lent_to_server
from pgwal_process import PGWAL, Outcome, assert_nothing_raw, start_pgwal
from pgwal_process import finish as finish_process
from randomised import history_operations
from randomised.archive import ALIGNMENT, Archive, Backup
from randomised.cluster_state import State, damage, differences, read_state
from randomised.lives import MARKS, Life, Moment, wrong_marks
from randomised.load import Load, prepare

from pgwal.backup.chain import prior_id_among
from pgwal.engine.fetch_wal import fetch
from pgwal.errors import PgwalError
from pgwal.lsn import Lsn
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import PLAIN_FORMAT, StorageFormat
from pgwal.segment import is_history_name, is_segment_name
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

# The load takes all of the machine that it can get.
WAIT_S = 180.0
CHAIN_BROKEN = 4
VERIFICATION_FAILED = 5
# Failed, usage, no connection, a gap or another history: what docs/commands.md says of a refusal.
REFUSALS = (1, 2, 3, CHAIN_BROKEN)
MOST_FETCHED_ONE_BY_ONE = 8
AUDIT_PERCENTS = (5, 25, 100)
"""How much of what is not copied is read each time; a round's database is small."""
AUDIT_SHARE = 0.5
"""How often a round makes an audit without a backup; each incremental backup makes one of its own."""
MERGE_SHARE = 0.3
"""How often a backup is merged after one was taken: by a chance of its own, which changes no other."""


def format_of(seed: int) -> StorageFormat:
    """Return how the repositories of a round store files: by a chance of its own, which changes no other."""
    return random.Random(f"format of round {seed}").choice([PLAIN_FORMAT, PACKED_FORMAT])


def major_of(seed: int) -> int:
    """Return the version that a round is for: each has its turn."""
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
class RestorePoint:
    """A moment at which the load paused, and what the cluster held then."""

    name: str
    lsn: Lsn
    state: State
    moment: Moment


@dataclass
class Target:
    """How far a restored server replays, and what it must hold then, if that is known."""

    settings: dict[str, str]
    state: State | None
    least_marks: int
    marks: int | None = None


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
        self.numbers = count(1)
        self.merging = random.Random(f"merges of round {self.seed}")
        self.auditing = random.Random(f"audits of round {self.seed}")
        self.life = Life()
        self.storage_format = format_of(self.seed)
        self.archives = [Archive(self.make_repository(1), self.life)]
        self.points: list[RestorePoint] = []
        self.place: Path | None = None
        self.is_on_way_out = False
        self.operations: list[str] = []
        self.receiver: Popen[str] | None = None
        self.standby: ThrowawayServer | None = None
        self._started_s = time.monotonic()
        self.note(f"seed {self.seed}, {self.installation.version}, {self.storage_format}, {self.choices}")
        with self.cleanup:
            self.make_servers()
            self.run_load()
            for number in range(self.restore_count):
                self.restore_one(number)

    @property
    def archive(self) -> Archive:
        """The repository in use."""
        return self.archives[-1]

    @property
    def repo(self) -> Path:
        return self.archive.repo

    def make_repository(self, number: int) -> Path:
        return new_repository(self.directory / f"repo{number}", self.storage_format)

    def note(self, text: str) -> None:
        line = f"{time.monotonic() - self._started_s:6.2f} {text}"
        print(line, flush=True)
        with (self.directory / "events.log").open("a") as log:
            log.write(line + "\n")

    # -- servers

    def make_servers(self) -> None:
        self.server = ThrowawayServer(self.installation, self.directory / "primary")
        self.discard_at_end(self.server)
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
            connection.execute(f"CREATE TABLE {MARKS} (n int)".encode())
        prepare(self.server, random.Random(f"prepare {self.seed}"), tablespaces, has_visibility)
        load_seed, session_count = f"load {self.seed}", self.choices.session_count
        self.load = Load(self.server, load_seed, session_count, tablespaces, self.place, has_visibility)

    def discard_at_end(self, server: ThrowawayServer) -> None:
        self.cleanup.callback(_discard, server)

    def lose_standby(self) -> None:
        """Go on without the standby, which would not follow."""
        if self.standby is not None:
            # It may receive from the standby.
            self.kill_receiver()
            self.standby.kill()
            self.standby = None

    def make_standby(self) -> None:
        """Make a cold copy follow the primary."""
        self.standby = ThrowawayServer(self.installation, self.directory / "standby")
        self.discard_at_end(self.standby)
        shutil.copytree(self.server.data_directory, self.standby.data_directory, symlinks=True)
        (self.standby.data_directory / "standby.signal").touch()
        give_to_server(self.standby.data_directory)
        self.standby.configure(primary_conninfo=self.server.conninfo)

    def make_tablespaces(self) -> list[str]:
        names = []
        # Both servers would use the same directory.
        if not self.choices.has_standby and self.chance.random() < 0.7:
            self.place = self.directory / "made_spaces"
            self.place.mkdir()
            give_to_server(self.place)
        with self.server.connect() as connection:
            for number in range(0 if self.choices.has_standby else self.chance.randint(0, 2)):
                location = self.directory / f"space{number}"
                location.mkdir()
                give_to_server(location)
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
        does = partial(partial, self.change_history)
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
            does(history_operations.roll_back): 4,
            does(history_operations.clone): 3,
            does(history_operations.promote_twice): 3,
            does(history_operations.recycle_wal): 0 if self.choices.use_slot else 3,
            does(history_operations.recycle_wal_during_backup): 0 if self.choices.use_slot else 3,
            does(history_operations.back_up_with_tablespaces): 3,
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
            if self.auditing.random() < AUDIT_SHARE:
                self.audit()
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
        self.check_nothing_overwritten()
        self.server.kill()
        if self.standby is not None:
            self.standby.kill()

    def let_it_run(self) -> None:
        time.sleep(self.chance.choice([0.0, 0.1, 0.3]))

    def make_restore_point(self) -> None:
        with self.load.paused(), self.server.connect() as connection:
            self.mark()
            name = f"point{len(self.points)}"
            row = connection.execute("SELECT pg_create_restore_point(%s)::text", [name]).fetchone()
            assert row is not None
            self.points.append(RestorePoint(name, Lsn.parse(row[0]), read_state(self.server), self.life.now()))
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

    # -- lives and archives

    def change_history(self, operation: Callable[[Round], None]) -> None:
        self.note(f"{operation.__name__} ...")
        self.operations.append(operation.__name__)
        operation(self)

    def mark(self) -> None:
        """Leave a mark in this life."""
        number = next(self.numbers)
        with self.server.connect() as connection:
            connection.execute(f"INSERT INTO {MARKS} VALUES (%s)".encode(), [number])
        self.life.own.append(number)

    def end_life(self) -> None:
        """Note what is received of a life that is about to be lost."""
        self.archive.note_received()

    def begin_life(self, moment: Moment, operation: str) -> None:
        """Have the server, which runs, go on from an earlier moment."""
        self.life = moment.branch()
        self.mark()
        self.doubt(operation)
        self.note(f"{operation}: goes on from {moment.mark_count} marks")

    def doubt(self, operation: str) -> None:
        """From now on pgwal may refuse to go on with this archive."""
        archive = self.archive
        archive.doubt = operation if archive.doubt is None else f"{archive.doubt}; {operation}"

    def accepted(self, command: str) -> None:
        """Check what a command that succeeded went on with, where pgwal had a reason to refuse."""
        archive = self.archive
        if archive.doubt is None:
            return
        self.check_nothing_overwritten()
        difference = archive.difference_from(self.server)
        assert difference is None, f"MIXED: {command} ended with 0 after {archive.doubt}, though {difference}"
        self.follow_life()

    def follow_life(self) -> None:
        """Count the archive as one of the life that goes on; what it has of others is of no use to that."""
        archive = self.archive
        archive.life = self.life
        kept = {name: backup for name, backup in archive.backups.items() if self.life.holds(backup.moment)}
        archive.has_lost_backups = archive.has_lost_backups or len(kept) < len(archive.backups)
        archive.backups = kept

    def check_nothing_overwritten(self) -> None:
        for archive in self.archives:
            found = archive.overwritten()
            assert not found, f"OVERWRITTEN after {archive.doubt}: {found}"

    def refused(self, command: str, outcome: Outcome) -> None:
        """Check how a command refused and that it had a reason to, and take the way out."""
        archive = self.archive
        failed = f"{command} ended with {outcome.code}"
        assert archive.doubt is not None, f"{failed} for no reason\n{outcome.stderr}"
        assert not self.is_on_way_out, f"NO WAY OUT: {failed}\n{outcome.stderr}"
        failed += f" after {archive.doubt}"
        assert_nothing_raw(outcome)
        assert outcome.code in REFUSALS, f"NOT DOCUMENTED: {failed}\n{outcome.stderr}"
        assert outcome.errors, f"NO REASON GIVEN: {failed}\n{outcome.stderr}"
        assert outcome.hints, f"NO WAY OUT: {failed}\n{outcome.stderr}"
        self.note(f"{failed}: {outcome.errors[-1]}; {outcome.hints[-1]}")
        self.check_nothing_overwritten()
        difference = archive.difference_from(self.server)
        lost = archive.has_lost_backups or not all(self.life.holds(each.moment) for each in archive.backups.values())
        reason = difference is not None or lost or archive.recycled
        assert reason, f"REFUSED THOUGH RIGHT: {failed}: the archive is the server's\n{outcome.stderr}"
        self.is_on_way_out = True
        try:
            self.take_way_out(difference)
        finally:
            self.is_on_way_out = False

    def take_way_out(self, difference: str | None) -> None:
        """Do what the documentation says: a full backup, into another repository where the history is another."""
        self.stop_receiver_as_it_is()
        if difference is None:
            self.note("way out: a full backup")
            self.follow_life()
            self.take("full")
        elif self.chance.random() < 0.5:
            self.accept_new_history()
        else:
            self.note("way out: a new repository")
            self.archive.note_received()
            self.archive.is_left = True
            repo = self.make_repository(len(self.archives) + 1)
            new = Archive(repo, self.life, recycled=self.archive.recycled)
            self.archives.append(new)
            self.take("full")
        if difference is not None:
            # A server that keeps no WAL may recycle some again before the archive gets it.
            self.archive.doubt = "recycled WAL" if self.archive.recycled else None

    def accept_new_history(self) -> None:
        """Move what the server has lost aside, and go on with the same repository."""
        self.note("way out: pgwal stream --accept-new-history")
        self.archive.note_received()
        outcome = finish(self.start_stream("--once", "--accept-new-history"))
        is_recycled = outcome.code == CHAIN_BROKEN and "already removed" in outcome.stderr
        failed = f"NO WAY OUT: --accept-new-history ended with {outcome.code}\n{outcome.stderr}"
        assert outcome.code == 0 or (is_recycled and "pgwal full" in outcome.hints[-1]), failed
        there = {entry.backup_id for entry in Repository.open(self.repo).catalogue.entries()}
        self.archive.backups = {name: each for name, each in self.archive.backups.items() if name in there}
        self.accepted("stream --accept-new-history")
        # What the server wrote from where the two part may be gone: then, as is said, a full backup goes on.
        self.take("full" if is_recycled else "backup")

    # -- the receiver

    def start_receiver(self) -> None:
        self.look_after_receiver()
        if self.receiver is not None:
            return
        compression = self.chance.choice(["zstd", "lz4", "gzip", "none"])
        source = self.standby if self.standby is not None and self.chance.random() < 0.3 else self.server
        self.note(f"start the receiver, from the {source.directory.name}")
        self.receiver = self.start_stream("-Z", compression, source=source)
        if self.chance.random() < 0.8:
            _wait_for(lambda: self._has_ended_or_receives_from(source), "the receiver")
        self.look_after_receiver()

    def start_stream(self, *arguments: str, source: ThrowawayServer | None = None) -> Popen[str]:
        slot = ["--slot", "pgwal"] if self.choices.use_slot else []
        conninfo = (source or self.server).conninfo
        process = start_pgwal("stream", "--repo", self.repo, "-d", conninfo, *arguments, *slot)
        self.cleanup.callback(process.kill)
        return process

    def _has_ended_or_receives_from(self, source: ThrowawayServer) -> bool:
        assert self.receiver is not None
        receivers = "count(*) FROM pg_stat_replication WHERE application_name ~ 'pgwal'"
        return self.receiver.poll() is not None or bool(_value(source, receivers))

    def look_after_receiver(self) -> None:
        """Notice that the receiver has ended, which it does by itself to refuse only."""
        if self.receiver is not None and self.receiver.poll() is not None:
            outcome = finish(self.receiver)
            self.receiver = None
            self.refused("stream", outcome)

    def stop_receiver_as_it_is(self) -> None:
        if self.receiver is not None:
            self.receiver.kill()
            finish(self.receiver)
            self.receiver = None

    def kill_receiver(self) -> None:
        """Kill the receiver with the means that lets it do nothing any more."""
        self.look_after_receiver()
        if self.receiver is None:
            return
        self.note("kill -9 the receiver")
        self.stop_receiver_as_it_is()

    def receive_once(self) -> None:
        """Receive what there is, unless pgwal refuses to go on with the archive."""
        outcome = finish(self.start_stream("--once"))
        if outcome.code != 0:
            self.refused("stream --once", outcome)
            return
        assert_nothing_raw(outcome)
        self.accepted("stream --once")

    def receive_the_rest(self) -> None:
        self.look_after_receiver()
        if self.receiver is not None and self.chance.random() < 0.5:
            self.receiver.terminate()
            outcome = finish(self.receiver)
            self.receiver = None
            if outcome.code != 0:
                self.refused("stream", outcome)
        self.kill_receiver()
        # Once more after a refusal, for the way out may have been a backup that received no more than it needs.
        self.receive_once()
        _succeeded(finish(self.start_stream("--once")))

    # -- backups

    def back_up(self) -> None:
        self.take(self.chance.choice(["full", *["incremental"] * 6, "backup"]))

    def back_up_at_rest(self) -> None:
        self.look_after_receiver()
        with self.load.paused():
            self.take(self.chance.choice(["incremental", "backup"]), read_state(self.server))

    def take(self, command: str, state: State | None = None) -> None:
        """Take a backup, of the standby at times; that may have no restart point to start from."""
        self.look_after_receiver()
        source = self.server
        if self.standby is not None and state is None and self.archive.backups and self.chance.random() < 0.4:
            source = self.standby
        if command == "incremental" and not self.archive.backups:
            command = "full"
        with self.no_database_copied():
            process = self.start_backup(command, source)
            outcome = finish(process)
        if source is not self.server and outcome.code == CHAIN_BROKEN and "no restart point" in outcome.stderr:
            self.note("the standby has no restart point")
            return
        self.count_backup(command, outcome, state)
        if self.merging.random() < MERGE_SHARE:
            self.merge()

    def audit(self) -> None:
        """Read blocks that have not changed since the newest backup, while databases are copied, too."""
        self.look_after_receiver()
        if not self.archive.backups:
            return
        source = self.server
        if self.standby is not None and self.auditing.random() < 0.4:
            source = self.standby
        arguments: list[str | Path] = ["--repo", self.repo, "-d", source.conninfo, "--json"]
        if self.auditing.random() < 0.5:
            arguments += ["--pgdata", source.data_directory]
        if self.choices.use_slot:
            arguments += ["--slot", "pgwal"]
        arguments += ["--percent", str(self.auditing.choice(AUDIT_PERCENTS))]
        outcome = finish(start_pgwal("audit", *arguments))
        if source is not self.server and outcome.code == CHAIN_BROKEN and "before backup" in outcome.stderr:
            self.note("the standby has not got to where the backup started")
            return
        if outcome.code != 0:
            assert outcome.code != VERIFICATION_FAILED, f"MISSED: {outcome.stdout}"
            self.refused("audit", outcome)
            return
        assert_nothing_raw(outcome)
        found = json.loads(outcome.stdout)
        read, unchanged, newer = (found[f"{kind}_block_count"] for kind in ("read", "unchanged", "newer"))
        counts = f"{read} of {unchanged} blocks, {newer} newer"
        self.note(f"audit of the {source.directory.name} since {found['prior']}: {counts}")
        self.accepted("audit")

    def merge(self) -> None:
        """Merge a backup, whose place the full one takes; at times it goes at once, as expire has it go.

        Expire itself would remove WAL, too, of which a round checks that nobody does.
        """
        archive = self.archive
        # One that was merged is still there, and is counted again when a backup is killed.
        merged = {backup.backup_id.partition("_")[0] for backup in archive.backups.values() if backup.is_merged}
        incremental = [
            backup
            for backup in archive.backups.values()
            if backup.is_incremental and backup.backup_id.partition("_")[0] not in merged
        ]
        if not incremental:
            return
        backup = self.merging.choice(incremental)
        outcome = finish(start_pgwal("merge", backup.backup_id, "--repo", archive.repo, "--json"))
        _succeeded(outcome)
        merged_id = json.loads(outcome.stdout)["id"]
        self.note(f"merged {backup.backup_id} into {merged_id}")
        del archive.backups[backup.backup_id]
        archive.backups = {
            name: replace(each, prior_id=merged_id) if each.prior_id == backup.backup_id else each
            for name, each in archive.backups.items()
        }
        archive.backups[merged_id] = replace(backup, backup_id=merged_id, prior_id=None, is_merged=True)
        if self.merging.random() < 0.5:
            shutil.rmtree(archive.repo / "backups" / backup.backup_id)

    def count_backup(self, command: str, outcome: Outcome, state: State | None = None) -> None:
        """Count a backup among those that can be restored, unless pgwal refused to take it."""
        if outcome.code != 0:
            self.refused(command, outcome)
            return
        assert_nothing_raw(outcome)
        made = json.loads(outcome.stdout)
        start, stop = Lsn.parse(made["start_lsn"]), Lsn.parse(made["stop_lsn"])
        assert self.archive.has_wal(start, stop), f"PUBLISHED WITHOUT ITS WAL: {command}, {self.archive.doubt}"
        prior_id = None if made["prior"] is None else prior_id_among(made["prior"], self.archive.backups)
        backup = Backup(made["id"], prior_id, start, stop, state, self.life.now())
        self.archive.backups[backup.backup_id] = backup
        copied = f"{made['copied_block_count']} of {made['block_count']} blocks"
        self.note(f"backup {made['id']} on {made['prior']} from {start} to {stop}: {copied}, {made['phase_seconds']}")
        self.accepted(command)

    @contextmanager
    def no_database_copied(self) -> Iterator[None]:
        """Have no files of a database copied while a backup may be under way; that of a standby starts long before."""
        if self.choices.has_standby:
            yield
        else:
            with self.load.copying_files:
                yield

    def start_backup(self, command: str, source: ThrowawayServer, *more: str) -> Popen[str]:
        arguments: list[str | Path] = ["--repo", self.repo, "-d", source.conninfo, "--json", "-c", "fast"]
        if self.chance.random() < 0.5:
            arguments += ["--pgdata", source.data_directory]
        if self.choices.use_slot:
            arguments += ["--slot", "pgwal"]
        if command == "incremental":
            arguments += ["--since", self.since()]
        if command != "full":
            arguments += ["--audit", str(self.auditing.choice(AUDIT_PERCENTS))]
        arguments += ["--manifest-checksums", self.chance.choice(["NONE", "CRC32C", "SHA256"]), *more]
        shown = " ".join(str(argument) for argument in arguments[4:])
        self.note(f"{command} {shown} of the {source.directory.name}")
        return start_pgwal(command, *arguments)

    def since(self) -> str:
        """Return what an incremental backup is to build on."""
        backups = list(self.archive.backups.values())
        backup = self.chance.choice(backups)
        first = min(each.start_lsn for each in backups)
        lsns = [str(point.lsn) for point in self.points if point.lsn >= first and self.life.holds(point.moment)]
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
        archive = self.archive
        if not archive.exists or archive.has_lost_backups:
            return
        entries = Repository.open(self.repo).catalogue.entries()
        new = [entry for entry in entries if entry.backup_id not in archive.backups]
        for entry in new:
            found = Backup(entry.backup_id, entry.prior_id, entry.start_lsn, entry.stop_lsn, None, self.life.now())
            archive.backups[entry.backup_id] = found
        if new:
            self.accepted("a backup that could not say so")

    # -- restoring

    def restore_one(self, number: int) -> None:
        left = [archive for archive in self.archives[:-1] if archive.backups]
        archive = self.chance.choice(left) if left and self.chance.random() < 0.4 else self.archive
        incremental = [backup for backup in archive.backups.values() if backup.is_incremental or backup.is_merged]
        takes_incremental = self.chance.random() < 0.9 and incremental
        backup = self.chance.choice(incremental if takes_incremental else list(archive.backups.values()))
        target = self.choose_target(archive, backup)
        locations = self.locations(archive, backup)
        combine = self.installation.major >= 17 and self.chance.random() < 0.4
        # Where a tablespace is created anew in replay, the directory that the tool leaves would be in the way.
        combine = combine and not any(self.place in location.parents for location in locations)
        how = " by pg_combinebackup" if combine and backup.is_incremental else ""
        self.note(f"restore {backup.backup_id} of {archive.repo.name} to {target.settings}{how}")
        if self.installation.major >= 17:
            self.verify(archive, backup)
        restored = self.directory / f"restored{number}"
        mapping = {location: self.directory / f"{restored.name}_{location.name}" for location in locations}
        if how:
            self.combine(archive, backup, restored)
        else:
            words = [word for old, new in mapping.items() for word in ("-T", f"{old}={new}")]
            if not archive.has_wal(backup.start_lsn, None):
                words.append("--to-gap")
            outcome = finish(start_pgwal("restore", backup.backup_id, "--repo", archive.repo, "-D", restored, *words))
            if _is_about_the_source(outcome) or _is_about_a_place_in_wal(outcome, mapping):
                self.note("refused: WAL creates a tablespace at a place that cannot be had")
                return
            _succeeded(outcome)
        with self.running(archive, restored, target, combined=bool(how)) as server:
            self.compare(archive, server, target)
        for directory in (restored, *mapping.values()):
            shutil.rmtree(directory, ignore_errors=True)

    def locations(self, archive: Archive, backup: Backup) -> list[Path]:
        """Return the tablespaces of a backup that lie outside of the data directory."""
        entries = Repository.open(archive.repo).catalogue.entries()
        (entry,) = (entry for entry in entries if entry.backup_id == backup.backup_id)
        return [Path(location) for location in entry.tablespaces.values() if Path(location).is_absolute()]

    def choose_target(self, archive: Archive, backup: Backup) -> Target:
        least = backup.moment.mark_count
        targets = [Target({"recovery_target": "immediate"}, backup.state, least)]
        end = archive.end()
        for point in self.points:
            is_later = archive.life.holds(point.moment) and point.lsn >= backup.stop_lsn
            if not is_later or not archive.has_wal(backup.start_lsn, point.lsn):
                continue
            if archive.is_left and end < point.lsn + ALIGNMENT:
                continue
            marks = point.moment.mark_count
            targets.append(Target({"recovery_target_name": point.name}, point.state, least, marks))
            if not archive.is_left:
                exclusive = {"recovery_target_lsn": str(point.lsn), "recovery_target_inclusive": "off"}
                targets.append(Target(exclusive, point.state, least, marks))
        if archive.has_wal(backup.start_lsn, None):
            final = None if archive.is_left else self.final_state
            targets.append(Target({}, final, least, None if archive.is_left else len(self.life.marks)))
        return self.chance.choice([*targets[1:], *targets])

    @contextmanager
    def chain(self, archive: Archive, backup: Backup) -> Iterator[list[Path]]:
        """Lend the data of a backup and those that it builds on, the full one first, to the server's own tools."""
        ids = [backup.backup_id]
        while backup.prior_id is not None:
            backup = archive.backups[backup.prior_id]
            ids.insert(0, backup.backup_id)
        if self.storage_format == PLAIN_FORMAT:
            with lent_to_server(archive.repo):
                yield [archive.repo / "backups" / backup_id / "data" for backup_id in ids]
            return
        exported = self.directory / "exported"
        exported.mkdir()
        for backup_id in ids:
            words = ["--repo", archive.repo, "-o", exported / backup_id, "-N"]
            _succeeded(finish(start_pgwal("export", backup_id, *words)))
        give_to_server(exported)
        yield [exported / backup_id for backup_id in ids]
        shutil.rmtree(exported)

    def verify(self, archive: Archive, backup: Backup) -> None:
        with self.chain(archive, backup) as chain:
            for data in chain:
                self.server.run_tool("pg_verifybackup", "-n", str(data))

    def combine(self, archive: Archive, backup: Backup, restored: Path) -> None:
        """Have the server's own tool restore a chain; tablespaces end up in the data directory."""
        with self.chain(archive, backup) as chain:
            self.server.run_tool("pg_combinebackup", "--no-sync", "-o", str(restored), *map(str, chain))
        (restored / "recovery.signal").touch()
        # That of a standby, which pgwal restore leaves out.
        (restored / "standby.signal").unlink(missing_ok=True)

    @contextmanager
    def restore_command(self, repo: Path) -> Iterator[str]:
        """Give a restore_command: the real one at times, mostly WAL that was fetched before, for it is quicker."""
        fetched = self.directory / f"fetched_{repo.name}"
        if not fetched.exists():
            _fetch_all(repo, fetched)
        if len(list(fetched.iterdir())) <= MOST_FETCHED_ONE_BY_ONE and self.chance.random() < 0.3:
            command = [*PGWAL, "fetch-wal", "--repo", str(repo), "--to-gap"]
            with RestoreCommandRelay(command, self.directory / "relay") as relay:
                yield relay.restore_command
        else:
            yield f'cp "{fetched}/%f" "%p"'

    @contextmanager
    def running(self, archive: Archive, restored: Path, target: Target, *, combined: bool) -> Iterator[ThrowawayServer]:
        """Run a restored cluster until it is a primary."""
        server = ThrowawayServer(self.installation, self.directory / f"{restored.name}_server")
        with self.restore_command(archive.repo) as command:
            settings = {"restore_command": command, "primary_conninfo": ""} | target.settings
            settings |= {"recovery_target_action": "promote", "autovacuum": "off"}
            with (restored / "postgresql.auto.conf").open("a") as file:
                file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
            server.adopt(restored)
            try:
                self.recover(server, combined=combined)
                yield server
            except Exception as error:
                self.note(f"{error}\n{server.log_tail()}")
                raise
            finally:
                _discard(server)

    def recover(self, server: ThrowawayServer, *, combined: bool) -> None:
        """Start a restored server, and wait until it is a primary; one that is ``combined`` may take a second start.

        A backup, whatever tool takes it, has the main fork of an unlogged relation if it saw that before its init fork.
        At the end of recovery the server then fails to make the main fork, and at the next start removes it first
        (ResetUnloggedRelations in reinit.c).  Only pgwal restore leaves it out.
        """
        try:
            server.start(timeout_s=120)
            _wait_for(server.has_ended_recovery, "recovery to end")
        except (PgwalError, psycopg.Error, AssertionError):
            if not combined or "File exists" not in server.log_tail():
                raise
            self.note("unlogged main fork in the way: started again")
            server.start(timeout_s=120)
            _wait_for(server.has_ended_recovery, "recovery to end")

    def compare(self, archive: Archive, server: ThrowawayServer, target: Target) -> None:
        self.note("compare")
        with server.connect() as connection:
            marks = [n for (n,) in connection.execute(f"SELECT n FROM {MARKS} ORDER BY n".encode())]
        wrong = wrong_marks(archive.life, marks, least=target.least_marks, exactly=target.marks)
        assert wrong is None, f"WRONG ROWS: {wrong}"
        if target.state is not None:
            found = differences(target.state, read_state(server))
            assert not found, "WRONG ROWS: " + "\n".join(found)
        found = damage(server)
        assert not found, "\n".join(found)
        self.note("the same and sound" if target.state is not None else "sound")


def _is_about_the_source(outcome: Outcome) -> bool:
    """Tell whether a restore was refused because the server that runs here uses the place of a tablespace."""
    found = re.search(r"directory (.+) is not empty, and WAL creates tablespace", outcome.stderr)
    return outcome.code != 0 and found is not None and any(Path(found[1]).iterdir())


def _is_about_a_place_in_wal(outcome: Outcome, mapping: Mapping[Path, Path]) -> bool:
    """Tell whether a restore was refused because a tablespace of the backup is created once more by its WAL."""
    found = re.search(r"-T cannot move tablespace \d+ at (.+) \(LSN", outcome.stderr)
    return outcome.code != 0 and found is not None and Path(found[1]) in mapping


def _discard(server: ThrowawayServer) -> None:
    # Nothing is read from it any more, so there is nothing to finish cleanly.
    server.kill()
    server.close()


def finish(process: Popen[str]) -> Outcome:
    return finish_process(process, WAIT_S)


def _succeeded(outcome: Outcome) -> None:
    assert outcome.code == 0, f"exit code {outcome.code}\n{outcome.stderr}"
    assert "Traceback" not in outcome.stderr, outcome.stderr


def _fetch_all(repo: Path, directory: Path) -> None:
    """Fetch all WAL of a repository, as fetch-wal does for one name."""
    directory.mkdir()
    for path in (repo / "wal").iterdir():
        name = path.name if is_history_name(path.name) else path.name.partition(".")[0]
        if is_history_name(name) or is_segment_name(name):
            # No target is behind a gap, and one may lie in the segment that is not whole before it.
            fetch(LocalPlace(repo), name, directory / name, to_gap=True)
    give_to_server(directory)


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
def round_directory(seed: int, *, keep: bool = True) -> Iterator[Path]:
    """Make a directory for a round that servers can use; where ``keep`` is set, it stays when the round fails."""
    directory = Path(tempfile.mkdtemp(prefix=f"pgwal-round-{seed}-"))
    directory.chmod(0o755)
    give_to_server(directory)
    try:
        yield directory
    except BaseException:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory, ignore_errors=True)
