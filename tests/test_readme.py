"""The README's everyday commands run as printed, on a real server; only paths and LSNs are put in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_main_job import pgwal, prepare, run_load, server_streams

from pgwal_cli.throwaway_server import ThrowawayServer

BACKUP_ID = "20261122T101530Z_full"
README = Path(__file__).parent.parent / "README.md"


def everyday() -> str:
    return README.read_text().split("## Every day")[1].split("\n## ")[0]


def everyday_commands() -> list[str]:
    """Return the commands of the section, one logical line each, without comments."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", everyday(), re.DOTALL) for line in block.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.postgres(18)
def test_everyday_commands(server: ThrowawayServer, scratch: Path) -> None:
    prepare(server)
    repo, restored = scratch / "repo", scratch / "restored"
    places = {
        "/srv/backups/main": str(repo),
        "/var/lib/postgresql/18/main": str(server.data_directory),
        "/srv/restored": str(restored),
        "/srv/earlier": str(scratch / "earlier"),
        "/srv/exported": str(scratch / "exported"),
        "/srv/second": str(scratch / "second"),
        "/srv/report.html": str(scratch / "report.html"),
    }
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"PGHOST": str(server.socket_directory), "PGPORT": str(server.port), "PGUSER": "postgres"}
    (configuration,) = re.findall(r"```toml\n(.*?)```", everyday(), re.DOTALL)
    environment["PGWAL_CONFIG"] = str(scratch / "pgwal.toml")
    Path(environment["PGWAL_CONFIG"]).write_text(configuration.replace("/srv/backups/main", str(repo)))
    Path(environment["PGWAL_CONFIG"]).chmod(0o644)
    receivers: list[subprocess.Popen[bytes]] = []
    ran = []
    try:
        for step, command in enumerate(everyday_commands()):
            for printed, actual in places.items():
                command = command.replace(printed, actual)
            if command.startswith("export "):
                name, _, value = command.removeprefix("export ").partition("=")
                environment[name] = value
            elif command.startswith("unset "):
                del environment[command.removeprefix("unset ")]
            elif command.endswith(" &"):
                receivers.append(subprocess.Popen(command.removesuffix(" &").split(), env=environment))
                # A person types slowly enough for the receiver to be there first.
                while not server_streams(server):
                    assert receivers[-1].poll() is None
                    time.sleep(0.05)
            else:
                if " 0/" in command or BACKUP_ID in command:
                    command = with_real_names(command, repo)
                subprocess.run(command, shell=True, check=True, env=environment)
                run_load(server, step)
            ran += command.split()
    finally:
        for receiver in receivers:
            receiver.terminate()
            assert receiver.wait(timeout=30) == 0
    assert {"check", "stream", "full", "incremental", "list", "map", "restore", "verify", "expire"} <= set(ran)
    assert (restored / "global" / "pg_control").exists()
    subprocess.run([server.installation.tool("pg_verifybackup"), "-n", scratch / "exported"], check=True)


def with_real_names(command: str, repo: Path) -> str:
    entries = json.loads(pgwal("list", "--repo", repo, "--json"))["backups"]
    starts = [entry["start_lsn"] for entry in entries]
    command = command.replace("0/3000028", starts[0]).replace("0/5000028", starts[-1])
    return command.replace(BACKUP_ID, entries[0]["id"])
