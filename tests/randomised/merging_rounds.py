"""A round of merges: a server under load, an incremental backup each time, and then a merge or an expire, or a kill.

As often as that is wanted, in any kind of repository.  At the end each backup that is left is restored, and runs.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fix_servers import BASE_SETTINGS
from pgwal_process import PGWAL, Outcome, assert_nothing_raw, finish, start_pgwal
from randomised.cluster_state import State, damage, differences, read_state
from randomised.lives import MARKS
from randomised.load import Load, prepare
from support.shared_bucket import shared_bucket

from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer

KINDS = ("plain", "packed", "encrypted", "bucket")
WAIT_S = 180.0
CHAIN_BROKEN = 4
SLOT = "pgwal"
RULES = (
    ("--keep-full", "1"),
    ("--keep-hourly", "1"),
    ("--keep-hourly", "2", "--keep-full", "1"),
    ("--keep-days", "1"),
    ("--keep-monthly", "1", "--keep-wal-for", "1"),
    ("--keep-full", "1", "--keep-wal-for", "2"),
)


@dataclass
class MergingRound:
    """One round; ``merges`` are so many that succeed, of ``merge`` or of ``expire --merge``."""

    seed: int
    kind: str
    installation: ServerInstallation
    directory: Path
    merges: int = 30
    cleanup: ExitStack = field(default_factory=ExitStack)

    def play(self) -> None:
        self.chance = random.Random(f"merges {self.seed}")
        self.states: dict[str, State | None] = {}
        """By the time in a backup's id, what the cluster held, where that was at rest."""
        self.marks: dict[str, int] = {}
        self.mark_count = 0
        self.pinned: set[str] = set()
        self.merged_count = 0
        self._started_s = time.monotonic()
        with self.cleanup:
            self.make_repository()
            self.make_server()
            self.note(f"seed {self.seed}, {self.installation.version}, {self.kind}")
            self.run_load()
            self.server.kill()
            for number, backup in enumerate(self.backups()):
                self.restore(number, backup)

    def note(self, text: str) -> None:
        print(f"{time.monotonic() - self._started_s:6.2f} {text}", flush=True)

    # -- what there is

    def make_repository(self) -> None:
        self.environment: dict[str, str] = {
            name: str(self.directory / name.lower()) for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME")
        }
        self.address = str(self.directory / "repo")
        options = ["--format", "plain" if self.kind == "plain" else "packed"]
        if self.kind == "bucket":
            self.environment |= shared_bucket().server.environment()
            self.address = str(shared_bucket().place())
        elif self.kind == "encrypted":
            identity = self.directory / "identity.txt"
            recipient = self.run("key", "generate", "-o", identity, repo=False).strip()
            options += ["--recipient", recipient]
            self.environment["PGWAL_IDENTITY"] = str(identity)
        self.run("init", *options)

    def make_server(self) -> None:
        self.server = ThrowawayServer(self.installation, self.directory / "server")
        self.cleanup.callback(_discard, self.server)
        checksums = ["-k"] if self.chance.random() < 0.5 else []
        if not checksums and self.installation.major >= 18:
            checksums = ["--no-data-checksums"]
        self.server.initdb(f"--wal-segsize={self.chance.choice([1, 16])}", *checksums)
        settings: dict[str, str | int | bool] = {
            "max_prepared_transactions": 20,
            "autovacuum": self.chance.random() < 0.5,
            "autovacuum_naptime": "1s",
            "shared_buffers": self.chance.choice(["1MB", "16MB", "128MB"]),
        }
        if self.installation.major >= 15:
            settings["allow_in_place_tablespaces"] = True
        self.server.configure(**BASE_SETTINGS | settings)
        self.server.start()
        with self.server.connect() as connection:
            connection.execute(f"SELECT pg_create_physical_replication_slot('{SLOT}', true)".encode())
            connection.execute(f"CREATE TABLE {MARKS} (n int)".encode())
        prepare(self.server, random.Random(f"prepare {self.seed}"), [], has_visibility=False)
        self.load = Load(self.server, f"load {self.seed}", self.chance.randint(1, 2), [], None, has_visibility=False)

    def run(self, *arguments: str | Path, repo: bool = True) -> str:
        """Run pgwal, which must succeed, and return what it printed."""
        outcome = self.finish_pgwal(*arguments, repo=repo)
        assert outcome.code == 0, f"{arguments} ended with {outcome.code}\n{outcome.stderr}"
        return outcome.stdout

    def finish_pgwal(self, *arguments: str | Path, repo: bool = True) -> Outcome:
        outcome = finish(start_pgwal(*arguments, *self.where(repo=repo), env=self.environment), WAIT_S)
        assert_nothing_raw(outcome)
        return outcome

    def where(self, *, repo: bool) -> list[str]:
        return ["--repo", self.address] if repo else []

    def backups(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("list", "--json"))["backups"]
        return found

    # -- under load

    def run_load(self) -> None:
        with self.load, self.receiving():
            self.take("full")
            while self.merged_count < self.merges:
                time.sleep(self.chance.choice([0.0, 0.05, 0.2]))
                self.take("incremental")
                steps = {self.merge: 6, self.expire: 4, self.kill_merge: 1, self.kill_expire: 1}
                (step,) = self.chance.choices(list(steps), list(steps.values()))
                step()
            self.expire()
        self.check()

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Run a receiver in half of the rounds; otherwise backups receive what they need."""
        if self.chance.random() < 0.5:
            yield
            return
        command = ["stream", *self.where(repo=True), "-d", self.server.conninfo, "--slot", SLOT]
        receiver = start_pgwal(*command, env=self.environment)
        self.cleanup.callback(receiver.kill)
        try:
            yield
        finally:
            receiver.terminate()
            outcome = finish(receiver, WAIT_S)
        assert outcome.code == 0, outcome.stderr

    def take(self, command: str) -> None:
        with ExitStack() as held:
            is_at_rest = self.chance.random() < 0.4
            held.enter_context(self.load.paused() if is_at_rest else self.load.copying_files)
            self.mark_count += 1
            with self.server.connect() as connection:
                connection.execute(f"INSERT INTO {MARKS} VALUES ({self.mark_count})".encode())
            state = read_state(self.server) if is_at_rest else None
            words = [command, "-d", self.server.conninfo, "--slot", SLOT, "-c", "fast", "--json"]
            if self.chance.random() < 0.5:
                words += ["--pgdata", str(self.server.data_directory)]
            words += ["--manifest-checksums", self.chance.choice(["NONE", "CRC32C", "SHA256"])]
            since = "latest"
            if command == "incremental":
                since = self.chance.choice(["latest", "latest", *(each["id"] for each in self.backups()[-3:])])
            outcome = self.finish_pgwal(*words, *([] if since == "latest" else ["--since", since]))
            if outcome.code == CHAIN_BROKEN and since != "latest":
                # Of a long-term backup there is no WAL to build on.
                outcome = self.finish_pgwal(*words)
            assert outcome.code == 0, outcome.stderr
        backup = json.loads(outcome.stdout)
        time_part = backup["id"].partition("_")[0]
        self.states[time_part], self.marks[time_part] = state, self.mark_count
        self.note(
            f"{backup['id']} on {backup['prior']}: {backup['copied_block_count']} of {backup['block_count']} blocks"
        )
        if self.chance.random() < 0.1:
            self.run("pin", backup["id"])
            self.pinned.add(time_part)

    def merge(self) -> None:
        outcome = self.finish_pgwal("merge", self.chosen(), "--json")
        if outcome.code != 0:
            # An expire may have merged all that there is.
            assert "full backup already" in outcome.stderr, outcome.stderr
            return
        merged = json.loads(outcome.stdout)
        self.merged_count += 1
        self.note(f"merge {self.merged_count}: {merged['backup']} into {merged['id']}")

    def chosen(self) -> str:
        """Return which backup to merge: mostly the newest."""
        incremental = [backup["id"] for backup in self.backups() if backup["id"].endswith("incr")]
        if self.chance.random() < 0.7 or not incremental:
            return "latest"
        return self.chance.choice(incremental)

    def expire(self) -> None:
        report = json.loads(self.run("expire", *self.expire_words(), "--json"))
        self.merged_count += len(report["merged_backups"])
        kept_ids = {backup["id"] for backup in report["kept_backups"]}
        kept = {backup_id.partition("_")[0] for backup_id in kept_ids}
        assert self.pinned <= kept, f"expired though pinned: {self.pinned - kept}"
        assert max(self.marks) in kept, "the newest has gone"
        assert {backup["id"] for backup in self.backups()} == kept_ids
        self.note(
            f"expired {len(report['expired_backups'])}, rewrote {len(report['rewritten_packs'])}: {len(kept)} left"
        )
        if self.chance.random() < 0.2:
            self.check()

    def expire_words(self) -> list[str]:
        words = [*self.chance.choice(RULES), *self.chance.choice([["--merge"], ["--merge"], []])]
        # As a larger repository would have more than may be rewritten at once.
        return [*words, "--max-rewrite", self.chance.choice(["0", "200k", "1G", "1G"])]

    def kill_merge(self) -> None:
        self.kill("merge", self.chosen())

    def kill_expire(self) -> None:
        self.kill("expire", *self.expire_words())

    def kill(self, *words: str) -> None:
        """Kill a command at any moment: what counted before counts still, or what stands for it."""
        before = self.backups()
        process = start_pgwal(*words, *self.where(repo=True), env=self.environment)
        time.sleep(self.chance.uniform(0.2, 0.9))
        process.kill()
        finish(process)
        left = self.backups()
        newest = max(backup["id"].partition("_")[0] for backup in before)
        assert newest in {backup["id"].partition("_")[0] for backup in left}
        if words[0] == "merge":
            assert {backup["id"] for backup in before} <= {backup["id"] for backup in left}
        self.note(f"kill -9 {words[0]}: {len(before)} backups, {len(left)} now")
        self.check()

    def check(self) -> None:
        """Verify all there is."""
        self.run("verify", "-j", "2")

    # -- restoring

    def restore(self, number: int, backup: Mapping[str, Any]) -> None:
        backup_id = backup["id"]
        restored = self.directory / f"restored{number}"
        to_its_end = ["--target-immediate", "--target-action", "promote"]
        self.run("restore", backup_id, "-D", restored, *to_its_end)
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        command = ["env", *variables, *PGWAL, "fetch-wal", *self.where(repo=True)]
        server = ThrowawayServer(self.installation, self.directory / f"server{number}")
        with RestoreCommandRelay(command, self.directory / "relay") as relay:
            with (restored / "postgresql.auto.conf").open("a") as file:
                file.write(f"restore_command = '{relay.restore_command}'\nautovacuum = off\nprimary_conninfo = ''\n")
            server.adopt(restored)
            try:
                server.start(timeout_s=120)
                _wait_for_end_of_recovery(server)
                self.compare(backup_id, server)
            except Exception as error:
                self.note(f"{backup_id}: {error}\n{server.log_tail()}")
                raise
            finally:
                _discard(server)
        shutil.rmtree(restored, ignore_errors=True)

    def compare(self, backup_id: str, server: ThrowawayServer) -> None:
        time_part = backup_id.partition("_")[0]
        with server.connect() as connection:
            marks = [n for (n,) in connection.execute(f"SELECT n FROM {MARKS} ORDER BY n".encode())]
        assert marks == list(range(1, self.marks[time_part] + 1)), f"WRONG ROWS: {marks}"
        state = self.states[time_part]
        if state is not None:
            found = differences(state, read_state(server))
            assert not found, "WRONG ROWS: " + "\n".join(found)
        found = damage(server)
        assert not found, "\n".join(found)
        self.note(f"{backup_id}: {'the same and sound' if state is not None else 'sound'}")


def _wait_for_end_of_recovery(server: ThrowawayServer) -> None:
    deadline = time.monotonic() + WAIT_S
    while not server.has_ended_recovery():
        assert time.monotonic() < deadline, "recovery does not end"
        time.sleep(0.02)


def _discard(server: ThrowawayServer) -> None:
    server.kill()
    server.close()
