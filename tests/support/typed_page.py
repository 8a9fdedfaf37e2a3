"""Run the commands of a page of the documentation as somebody would who types them, on a real server.

Names that a page takes for an example (paths, ids, LSNs, hosts) are replaced by real ones.  ``psql`` and ``pg_ctl`` are
done by the tests' own means: the servers of a page run as another user, where the tests run as root.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psycopg
from restore.restored_server import Scene
from test_main_job import server_streams

from pgwal_cli.throwaway_server import ThrowawayServer

ROOT = Path(__file__).parents[2]
BACKUP_ID = "20261122T101530Z_full"
FIRST_LSN, LAST_LSN = "0/3000028", "0/5000028"
PUBLIC_KEY = re.compile(r"age1[0-9a-z]{20,}")
STREAM_TIMEOUT_S = 30


def typed_commands(page: Path) -> list[str]:
    """Return the commands of a page's blocks, one logical line each, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition("   # ")[0] for line in lines if line.strip() and not line.startswith("#")]


@dataclass
class TypedPage:
    """Somebody at a terminal; ``environment`` and ``directory`` are the shell's, ``names`` are replaced by line."""

    directory: Path
    names: Mapping[str, str | Path] = field(default_factory=dict)
    scene: Scene | None = None
    server: ThrowawayServer | None = None
    after_backup: Callable[[], None] = lambda: None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    output: str = ""
    _restored: dict[str, ThrowawayServer] = field(default_factory=dict)
    _opened: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{self.environment['PATH']}"
        if self.server is not None:
            self.environment |= {"PGHOST": str(self.server.socket_directory), "PGPORT": str(self.server.port)}
            self.environment |= {"PGUSER": "postgres", "PGDATABASE": "postgres"}

    def run(self, page: Path) -> None:
        """Type everything; what ends with another exit code than 0 ends the test."""
        with self._opened:
            for command in typed_commands(page):
                self._type(self._with_real_names(command))

    def _type(self, command: str) -> None:
        word = command.split()[0]
        if word == "export":
            for setting in shlex.split(command.replace("$PWD", str(self.directory)))[1:]:
                name, _, value = setting.partition("=")
                self.environment[name] = self.environment.get(f"REAL_{name}", value)
        elif word in self._OWN_MEANS:
            self._OWN_MEANS[word](self, shlex.split(command))
        elif command.endswith(" &"):
            self._stream(command.removesuffix(" &"))
        else:
            self._bash(command)
        if re.match(r"pgwal (full|incremental|backup)\b(?!.*--dry-run)", command):
            self.after_backup()

    def _bash(self, command: str) -> None:
        ran = subprocess.run(
            ["bash", "-c", command], cwd=self.directory, env=self.environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
        self.output += f"{ran.stdout}{ran.stderr}"

    def _stream(self, command: str) -> None:
        assert self.server is not None
        receiver = subprocess.Popen(shlex.split(command), cwd=self.directory, env=self.environment)
        self._opened.callback(_end, receiver)
        deadline = time.monotonic() + STREAM_TIMEOUT_S
        while not server_streams(self.server):
            assert receiver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    # -- what is not run as it stands

    def _activate(self, words: list[str]) -> None:
        self.environment["PATH"] = f"{self.directory / Path(words[1]).parent}:{self.environment['PATH']}"

    def _pip(self, words: list[str]) -> None:
        """Check that the extras are there; what is installed is the pgwal that is tested."""
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = re.fullmatch(r"\.\[(.*)\]", words[-1])
        assert wanted is not None
        assert set(wanted[1].split(",")) <= set(extras)

    def _psql(self, words: list[str]) -> None:
        assert self.server is not None
        server = self._restored["5433"] if "5433" in words else self.server
        statement = words[-1] if "-c" in words else Path(words[words.index("-f") + 1]).read_text()
        with server.connect() as connection:
            cursor = connection.execute(statement.encode())
            if cursor.rownumber is not None:
                self.output += f"{cursor.fetchall()}\n"

    def _pg_ctl(self, words: list[str]) -> None:
        assert self.scene is not None
        target = Path(words[words.index("-D") + 1])
        if words[-1] == "stop":
            self._restored.pop("5433").stop()
            return
        is_standby = (target / "standby.signal").exists()
        waits = is_standby or "recovery_target_" in (target / "postgresql.auto.conf").read_text()
        started = self.scene.started(target, promoted=not waits, for_standby=is_standby)
        self._restored["5433"] = self._opened.enter_context(started)

    _OWN_MEANS: ClassVar[Mapping[str, Callable[[TypedPage, list[str]], None]]] = {
        ".": _activate,
        "deactivate": lambda _page, _words: None,
        "pip": _pip,
        "psql": _psql,
        "pg_ctl": _pg_ctl,
    }

    # -- names

    def _with_real_names(self, command: str) -> str:
        for printed, real in self.names.items():
            command = command.replace(printed, str(real))
        if any(name in command for name in (BACKUP_ID, FIRST_LSN, LAST_LSN)):
            listed = subprocess.check_output(["pgwal", "list", "--json"], env=self.environment)
            found = json.loads(listed)
            backups = found["backups"] if isinstance(found, dict) else found
            command = command.replace(BACKUP_ID, backups[0]["id"])
            command = command.replace(FIRST_LSN, backups[0]["start_lsn"]).replace(LAST_LSN, backups[-1]["start_lsn"])
        keys = PUBLIC_KEY.findall(self.output)
        return PUBLIC_KEY.sub(keys[-1], command) if keys else command


def _end(receiver: subprocess.Popen[bytes]) -> None:
    receiver.terminate()
    assert receiver.wait(timeout=STREAM_TIMEOUT_S) == 0


def server_time(server: ThrowawayServer) -> str:
    """Return the server's time, behind all that it has committed."""
    with psycopg.connect(server.conninfo) as connection:
        row = connection.execute("SELECT clock_timestamp() AT TIME ZONE 'UTC'").fetchone()
    assert row is not None
    return f"{row[0]}+00"
