"""Names that are bytes: of restore points and tablespaces, in databases of other encodings than UTF-8."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import PGWAL, environment, run_pgwal, succeed
from restore.restored_server import Scene

from pgwal.backup.recovery import RecoveryTarget, with_settings
from pgwal.backup.stored_path import decode_path
from pgwal.errors import RecoveryTargetError
from pgwal_cli.throwaway_server import give_to_server

NAME = b"vor der \xc4nderung"
"""In LATIN1, and no UTF-8."""
LOCATION = b"pl\xe4tze \xc3\xa4\\x"
"""No UTF-8 either, though some of it is."""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A locale in which these bytes are no characters at all."""
LATIN1 = "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"


def test_a_name_of_any_bytes_is_written_as_it_is() -> None:
    target = RecoveryTarget(name=decode_path(NAME))
    assert with_settings(b"", target.settings()) == b"recovery_target_name = '" + NAME + b"'\n"
    assert str(target).isascii()
    with pytest.raises(RecoveryTargetError):
        RecoveryTarget(name=decode_path(b"\xc4" * 64))
    RecoveryTarget(name=decode_path(b"\xc4" * 63))


@pytest.mark.postgres(13, 18)
@pytest.mark.parametrize("way", ["sql", "pgdata"])
def test_bytes_of_another_encoding(make_server: ServerFactory, scratch: Path, repo: Path, way: str) -> None:
    server = make_server(settings={"autovacuum": False})
    location = Path(os.fsdecode(os.fsencode(scratch) + b"/" + LOCATION))
    location.mkdir()
    give_to_server(location)
    with server.connect(autocommit=True) as connection:
        connection.execute(LATIN1)
    # Each way from another database: in UTF-8 the location is no text.
    dbname = "latin" if way == "sql" else "postgres"
    source = ["-d", f"{server.conninfo} dbname={dbname}", "-c", "fast"]
    source += ["--pgdata", str(server.data_directory)] if way == "pgdata" else []
    scene = Scene(repo, make_server)
    with server.connect(autocommit=True, dbname="latin", client_encoding="UTF8") as connection:
        connection.execute(b"CREATE TABLESPACE there LOCATION " + latin_literal(os.fsencode(location)))
        connection.execute("CREATE TABLE t (id int) TABLESPACE there")
        connection.execute("INSERT INTO t VALUES (1)")
        succeed("full", "--repo", scene.repo, *source)
        connection.execute("INSERT INTO t VALUES (2)")
        succeed("incremental", "--repo", scene.repo, *source)
        connection.execute("INSERT INTO t VALUES (3)")
        connection.execute(b"SELECT pg_create_restore_point(" + latin_literal(NAME) + b")")
        connection.execute("INSERT INTO t VALUES (4)")
        connection.execute("SELECT pg_switch_wal()")
    succeed("stream", "--once", "--repo", scene.repo, "-d", server.conninfo)
    server.kill()
    shown = json.loads(succeed("list", "--repo", scene.repo, "--json"))["backups"][-1]["id"]
    document = json.loads(succeed("show", shown, "--repo", scene.repo, "--json"))
    assert [each["path"] for each in document["tablespaces"]] == [str(location)]
    for locale in ({"LC_ALL": "C.UTF-8"}, ASCII):
        words = [*PGWAL, "show", shown, "--repo", str(scene.repo)]
        printed = subprocess.run(words, env=environment(**locale), capture_output=True, check=True).stdout
        assert os.fsencode(location) in printed
    elsewhere = Path(os.fsdecode(os.fsencode(scratch) + b"/\xfcberall"))
    target = ["--target-name", os.fsdecode(NAME), "--target-action", "promote"]
    scene.restore(scratch / "restored", *target, tablespaces={location: elsewhere})
    with scene.started(scratch / "restored") as restored, restored.connect(dbname="latin") as connection:
        assert connection.execute("SELECT id FROM t ORDER BY id").fetchall() == [(1,), (2,), (3,)]
    # To where it was, too.
    shutil.rmtree(location)
    in_place = "--allow-tablespaces-in-place"
    succeed("restore", "--repo", scene.repo, "-D", scratch / "second", *target, "-N", in_place, env=ASCII)
    assert os.listdir(location)  # noqa: PTH208 (names alone)
    name = b"recovery_target_name = '" + NAME + b"'"
    assert all(name in (scratch / where / "postgresql.auto.conf").read_bytes() for where in ("restored", "second"))
    outcome = run_pgwal("restore", "--repo", scene.repo, "-D", scratch / "third", "-T", f"{location}x=/nowhere")
    assert outcome.code == 1
    assert "has no tablespace at" in outcome.stderr


def latin_literal(content: bytes) -> bytes:
    """Return a string literal for a session of client encoding UTF8, of bytes that are LATIN1."""
    text = content.decode("latin-1").replace("\\", "\\\\").replace("'", "''")
    return f"E'{text}'".encode()
