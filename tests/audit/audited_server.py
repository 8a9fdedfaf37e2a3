"""A server, a repository of its backups, and audits of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgwal_process import Outcome, run_pgwal, succeed

from pgwal.relation import RelationFile, parse_relation_path
from pgwal.repository.repository import Repository
from pgwal.summary.block_map import RelationFork
from pgwal_cli.throwaway_server import ThrowawayServer


@dataclass(frozen=True)
class AuditedServer:
    """Commands that read the server's files locally, or over SQL."""

    server: ThrowawayServer
    repo: Path | str
    """A directory, or the address of a place in an object store."""
    is_local: bool = True

    @property
    def place(self) -> list[str | Path]:
        local: list[str | Path] = ["--pgdata", self.server.data_directory] if self.is_local else []
        return ["--repo", self.repo, "-d", self.server.conninfo, *local, "--json"]

    def execute(self, *statements: str) -> None:
        with self.server.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def back_up(self, command: str, *options: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(succeed(command, *self.place, "-c", "fast", *options))
        return document

    def try_back_up(self, command: str, *options: str) -> Outcome:
        return run_pgwal(command, *self.place, "-c", "fast", *options)

    def receive(self) -> None:
        """Receive the rest of a segment, so that there is a summary of it."""
        self.execute("CHECKPOINT", "SELECT pg_switch_wal()")
        succeed("stream", "--repo", self.repo, "-d", self.server.conninfo, "--once")

    def audit(self, *options: str) -> dict[str, Any]:
        """Audit, and have nothing found."""
        outcome = self.try_audit("--percent", "100", *options)
        assert outcome.code == 0, f"{outcome.stderr}\n{outcome.stdout}"
        document: dict[str, Any] = json.loads(outcome.stdout)
        assert document["missed_blocks"] == []
        assert document["missed_block_count"] == 0
        return document

    def try_audit(self, *options: str | Path) -> Outcome:
        return run_pgwal("audit", *self.place, *options)

    def value(self, query: str) -> str:
        with self.server.connect() as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return str(row[0])

    def path_of(self, relation: str) -> str:
        return self.value(f"SELECT pg_relation_filepath('{relation}')")

    def file_of(self, relation: str) -> RelationFile:
        found = parse_relation_path(self.path_of(relation))
        assert found is not None
        return found

    def forget(self, relation: str, block_no: int) -> list[str]:
        """Take a block out of all summaries that hold it, and return their ranges."""
        locator, fork, _ = self.file_of(relation)
        repository = Repository.open(self.repo)
        changed = []
        for part in repository.summaries.ranges():
            block_map, link = repository.summaries.read_linked(part)
            entry = block_map.get(RelationFork(*locator, fork))
            if entry is not None and block_no in entry.blocks:
                entry.blocks.remove(block_no)
                repository.summaries.write(part, block_map, link)
                changed.append(str(part))
        return changed

    def remove_summaries(self) -> None:
        summaries = Repository.open(self.repo).summaries
        for part in summaries.ranges():
            summaries.delete(part)
