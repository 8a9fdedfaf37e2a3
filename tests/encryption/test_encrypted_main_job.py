"""The main job with an encrypted repository: a host that has public keys alone writes it, another one restores it.

PGWAL_LARGE_TESTS=1 has it done with a server of every second major version as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from fix_servers import ServerFactory
from support.shared_bucket import shared_bucket
from test_main_job import PGWAL, checksums, pgwal, prepare, run_load, streaming, wait_until_promoted

from pgwal.encryption.container import MAGIC
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.local_place import LocalPlace
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.throwaway_server import ThrowawayServer

MARK = b"a mark that nobody may see"
TABLE = b"table_of_secrets"
MAJORS = (13, 15, 17, 18, 19) if "PGWAL_LARGE_TESTS" in os.environ else (18,)
IN_CLEAR = {"pgwal.json", "format.json", "receiver.lock", "backup.lock"}


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> LocalPlace | CloudPlace:
    if request.param == "directory":
        return LocalPlace(scratch / "repo")
    for name, value in shared_bucket().server.environment().items():
        monkeypatch.setenv(name, value)
    return shared_bucket().place()


class Host:
    """A machine: where its user's programs keep their configuration and state."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._monkeypatch = monkeypatch

    def enter(self) -> None:
        self._monkeypatch.setenv("XDG_CONFIG_HOME", str(self._directory / "config"))
        self._monkeypatch.setenv("XDG_STATE_HOME", str(self._directory / "state"))

    def files(self) -> Iterator[Path]:
        return (path for path in self._directory.rglob("*") if path.is_file())


class Commands:
    """Runs pgwal, and keeps what it says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, *args: str | Path) -> str:
        code, stdout = self.end(*args)
        assert code == 0, self.said[-1]
        return stdout

    def end(self, *args: str | Path) -> tuple[int, str]:
        finished = subprocess.run([*PGWAL, *map(str, args)], capture_output=True, text=True)
        self.said += [finished.stdout, finished.stderr]
        return finished.returncode, finished.stdout


def observing_command(directory: Path, identity: Path) -> tuple[str, Path]:
    """Return a command that prints an identity, and the file to which it notes all that it can see of processes."""
    seen, script = directory / "seen", directory / "identity-command"
    looks = f"(ps -eo args; env; cat /proc/[0-9]*/environ 2>/dev/null) >>{seen}"
    script.write_text(f"{looks}\ncat {identity}\n")
    return f"sh {script}", seen


def stored_objects(place: LocalPlace | CloudPlace) -> dict[str, bytes]:
    """Return all that is stored, as it is."""
    if isinstance(place, CloudPlace):
        names = [item["path"] for batch in obstore.list(place.client) for item in batch]
        return {name: bytes(obstore.get(place.client, name).bytes()) for name in names}
    root = place.root
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def holds(contents: Iterator[bytes], wanted: bytes) -> bool:
    return any(wanted in content for content in contents)


def assert_equal_data(first: Path, second: Path) -> None:
    """Compare the files of relations in two directories."""
    names = {path.relative_to(first) for path in first.glob("base/*/*") if path.is_file()}
    assert names == {path.relative_to(second) for path in second.glob("base/*/*") if path.is_file()}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.postgres(*MAJORS)
def test_a_host_with_public_keys_alone_writes_what_an_identity_restores(
    server: ThrowawayServer,
    make_server: ServerFactory,
    scratch: Path,
    place: LocalPlace | CloudPlace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, pgwal = str(place), Commands()
    host, vault = Host(scratch / "host", monkeypatch), Host(scratch / "vault", monkeypatch)
    identity = scratch / "identity.txt"
    recipient = pgwal("key", "generate", "-o", identity).strip()
    secret = identity.read_text()
    identity.unlink()
    host.enter()
    # Not compressed: what is searched for would not be found in any repository.
    pgwal("init", "--repo", address, "--recipient", recipient, "--compress", "none")
    source = ["--repo", address, "-d", server.conninfo, "-c", "fast"]
    prepare(server)
    with server.connect() as connection:
        connection.execute(f"CREATE TABLE {TABLE.decode()} AS SELECT i, '{MARK.decode()}' FROM generate_series(1, 9) i")
    with streaming(server, address, "--slot", "pgwal", "--create-slot", "--if-not-exists", "--compress", "none"):
        full = json.loads(pgwal("full", *source, "--json"))
        run_load(server, 1)
        first = json.loads(pgwal("incremental", *source, "--json"))
        run_load(server, 2)
    # A receiver that begins again goes on from what it stored itself.
    with streaming(server, address, "--slot", "pgwal", "--compress", "none"):
        second = json.loads(pgwal("incremental", *source, "--json"))
        with server.connect() as connection:
            connection.execute(f"INSERT INTO {TABLE.decode()} VALUES (10, '{MARK.decode()}')")
            connection.execute("SELECT pg_switch_wal()")
        run_load(server, 3)
        time.sleep(1)
    expected = checksums(server)
    third = json.loads(pgwal("incremental", *source, "--slot", "pgwal", "--json"))
    listed = json.loads(pgwal("list", "--repo", address, "--json"))["backups"]
    assert [entry["id"] for entry in listed] == [backup["id"] for backup in (full, first, second, third)]
    assert [backup["prior"] for backup in (first, second, third)] == [full["id"], first["id"], second["id"]]
    assert address in pgwal("status", "--repo", address, "-d", server.conninfo, "--slot", "pgwal")
    assert "FORK main: blocks" in pgwal(
        "map", "--repo", address, "--from", full["start_lsn"], "--to", second["start_lsn"]
    )
    assert "nothing is wrong" in pgwal("verify", "--repo", address)
    pgwal("expire", "--repo", address, "--keep-full", "1")

    objects = stored_objects(place)
    assert {name.partition("/")[0] for name in objects} >= {"wal", "packs", "summaries", "backups", "keys"}
    for name, content in objects.items():
        assert content.startswith(MAGIC) or name in IN_CLEAR or name.startswith(("keys/", ".leases/")), name
    for wanted in (MARK, TABLE, b"account", secret.split()[-1].encode()):
        assert not holds(iter(objects.values()), wanted)
    assert holds((path.read_bytes() for path in server.data_directory.rglob("base/*/*")), MARK)
    assert not holds((path.read_bytes() for path in host.files()), secret.split()[-1].encode())
    assert pgwal.end("restore", "--repo", address, "-D", scratch / "refused")[0] == 1
    assert "--identity" in pgwal.said[-1]
    assert "Traceback" not in pgwal.said[-1]
    assert not (scratch / "refused").exists()
    (metadata_key,) = (path.read_text().split()[-1] for path in host.files() if "metadata-keys" in path.parts)

    vault.enter()
    identity.write_text(secret)
    identity.chmod(0o600)
    key = ["--identity", str(identity)]
    assert "nothing is wrong" in pgwal("verify", "--repo", address, *key)
    command, seen = observing_command(scratch, identity)
    pgwal("export", second["id"], "--repo", address, "-o", scratch / "exported", "--identity-command", command)
    monkeypatch.setenv("PGWAL_IDENTITY", str(identity))
    assert "nothing is wrong" in pgwal(
        "verify", "--restore", "--bindir", server.installation.bin_dir, "--repo", address
    )
    monkeypatch.delenv("PGWAL_IDENTITY")
    merged = json.loads(pgwal("merge", third["id"], "--repo", address, "--json", *key))["id"]
    assert "nothing is wrong" in pgwal("verify", "--repo", address, *key)
    pgwal("combine", third["id"], "--repo", address, "-o", scratch / "combined", "--no-sync", *key)
    pgwal("combine", merged, "--repo", address, "-o", scratch / "merged", "--no-sync", *key)
    assert_equal_data(scratch / "combined", scratch / "merged")
    host.enter()
    pgwal("expire", "--repo", address, "--keep-full", "1")
    assert [entry["id"] for entry in json.loads(pgwal("list", "--repo", address, "--json"))["backups"]] == [merged]
    vault.enter()
    target = scratch / "restored"
    pgwal("restore", "latest", "--repo", address, "-D", target, *key)
    settings = (target / "postgresql.auto.conf").read_text()
    assert str(identity) in settings
    assert secret.split()[-1] not in settings
    with RestoreCommandRelay([*PGWAL, "fetch-wal", "--repo", address, *key], scratch / "relay") as relay:
        with (target / "postgresql.auto.conf").open("a") as file:
            file.write(f"restore_command = '{relay.restore_command}'\n")
        restored = make_server(adopt=target)
        wait_until_promoted(restored)
        assert checksums(restored) == expected
    written = (path for path in (*vault.files(), *target.rglob("*"), *(scratch / "relay").rglob("*")) if path.is_file())
    assert not holds((path.read_bytes() for path in written), secret.split()[-1].encode())
    for text in (*pgwal.said, seen.read_text(errors="replace")):
        assert secret.split()[-1] not in text
        assert metadata_key not in text
    assert holds(iter((seen.read_bytes(),)), b"pgwal_cli")


@pytest.mark.postgres(18)
def test_another_host_receives_on_when_an_identity_was_there_once(
    server: ThrowawayServer, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot read what the lost one stored; when that is summarised it need not any more."""
    lost, other = Host(scratch / "lost", monkeypatch), Host(scratch / "other", monkeypatch)
    repo, identity = scratch / "repo", scratch / "identity.txt"
    recipient = pgwal("key", "generate", "-o", identity).strip()
    lost.enter()
    pgwal("init", "--repo", repo, "--recipient", recipient)
    source = ["--repo", repo, "-d", server.conninfo, "-c", "fast"]
    receive = ["stream", "--repo", repo, "-d", server.conninfo, "--slot", "pgwal", "--once"]
    pgwal(*receive, "--create-slot", "--if-not-exists")
    full = json.loads(pgwal("full", *source, "--slot", "pgwal", "--json"))
    prepare(server)
    with server.connect() as connection:
        connection.execute("SELECT pg_switch_wal()")
    pgwal(*receive)
    other.enter()
    key = ["--identity", str(identity)]
    pgwal("key", "metadata", "--repo", repo, *key)
    run_load(server, 1)
    refused = subprocess.run([*PGWAL, *map(str, receive)], capture_output=True, text=True)
    assert (refused.returncode, "--identity" in refused.stderr) == (1, True)
    pgwal(*receive, *key)
    pgwal(*receive)
    first = json.loads(pgwal("incremental", *source, "--slot", "pgwal", "--json"))
    assert first["prior"] == full["id"]
    assert "nothing is wrong" in pgwal("verify", "--repo", repo, *key)
